"""Stages 3 to 6 of the recipes with teachers that have weights, through the real scripts."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from audio_teacher_fixtures import save_dasheng_checkpoint
from teacher_fixtures import tiny_checkpoint
from toy_recipe import REPOSITORY

from spear_lib.data.manifests import Manifest
from spear_lib.encoders import save_encoder
from spear_lib.encoders.kinds import build_encoder
from spear_lib.encoders.zipformer import ZipformerConfig
from spear_lib.quantization import Quantizer
from spear_lib.teachers import create_teacher
from spear_lib.tokens.fields import load_tokens, token_facts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def prepare(recipe: str, data: Path, *options: str, script="prepare.sh") -> subprocess.CompletedProcess:
    """prepare.sh (or run.sh) on the tiny corpus."""
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    path = str(REPOSITORY / "egs" / recipe / script)
    command = [path, "--mini", "true", "--conf", "tiny", "--data-dir", str(data), *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """recipe -> data folder after stage 2."""
    folders = {}
    for recipe in ("librispeech", "audioset"):
        folders[recipe] = tmp_path_factory.mktemp(recipe) / "data"
        result = prepare(recipe, folders[recipe], "--stop-stage", "2")
        assert result.returncode == 0, result.stderr[-3000:]
    return folders


def copy_of(data: Path, folder: Path) -> Path:
    """A data folder of one's own; the manifests go on naming the audio of the first."""
    corpus = data / "corpus"
    shutil.copytree(data, folder, ignore=lambda where, _: ["corpus"] if Path(where) == data else [])
    (folder / "corpus").symlink_to(corpus)
    return folder


# egs/audioset with Dasheng is in test_audioset_recipe.py.
@pytest.mark.parametrize(
    "recipe, teacher, layer, options",
    [
        ("librispeech", "wavlm", 3, ["--teacher-dtype", "bfloat16"]),
        ("librispeech", "hubert", 2, ["--teacher-layer", "2"]),
        ("librispeech", "dasheng", None, []),
        ("audioset", "wavlm", 3, ["--teacher-dtype", "bfloat16"]),
        ("librispeech", "spear", None, []),
        ("audioset", "spear", 1, ["--teacher-layer", "1"]),
    ],
)
def test_stages_3_to_6(corpora, tmp_path, recipe, teacher, layer, options):
    data = copy_of(corpora[recipe], tmp_path / "data")
    if teacher == "dasheng":
        checkpoint = save_dasheng_checkpoint(tmp_path / "dasheng.pt")
    elif teacher == "spear":
        checkpoint = tmp_path / "encoder"
        save_encoder(build_encoder(ZipformerConfig.mini()), checkpoint, {})
    else:
        checkpoint = tiny_checkpoint(tmp_path / "checkpoint", teacher)
    options = ["--teacher", teacher, "--teacher-path", str(checkpoint), *options]
    result = prepare(recipe, data, *options, "--stage", "3", "--stop-stage", "6")
    assert result.returncode == 0, result.stderr[-3000:]
    same = create_teacher(teacher, checkpoint, **({} if layer is None else {"layer": layer}))
    quantizer = Quantizer.load(data / "quantizers" / teacher)
    assert quantizer.provenance["teacher"]["teacher_id"] == same.id
    field = f"{same.field_prefix}_cb{quantizer.num_codebooks}"
    cut = Manifest(data / "cuts" / f"{recipe}_cuts_dev.jsonl.gz")[0]
    facts = token_facts(cut, field)
    assert (facts["teacher_id"], facts["first_frame_center_ms"]) == (same.id, same.first_frame_center_ms)
    audio = torch.from_numpy(cut.load_audio()[:1])
    embeddings, _ = same.embed(audio, torch.tensor([audio.shape[1]]))
    equal = np.mean(load_tokens(cut, field) == quantizer.encode(embeddings[0]).numpy())
    marker = json.loads((data / ".done" / "stage-3.json").read_text())
    if teacher == "wavlm":
        assert marker["options"]["teacher_dtype"] == "bfloat16"
        assert "bfloat16 against float32" in result.stderr and "tokens are equal" in result.stderr
        assert equal > 0.8
    else:
        assert marker["options"]["teacher_dtype"] == "float32"
        assert "against float32" not in result.stderr
        assert equal >= 0.999
    if teacher == "spear":  # a second iteration: the first frames of an utterance have no tokens
        options = ["--teacher", "spear", "--exp-dir", str(tmp_path / "exp"), "--stop-stage", "10"]
        result = prepare(recipe, data, *options, script="run.sh")
        assert result.returncode == 0, result.stderr[-3000:]


def test_a_teacher_without_weights_stops_the_recipe_with_one_line(corpora, tmp_path):
    data = copy_of(corpora["librispeech"], tmp_path / "data")
    for path, expected in (("nothing", "no folder"), ("", "the wavlm teacher needs a path")):
        options = ["--teacher", "wavlm", "--teacher-path", str(tmp_path / path) if path else ""]
        result = prepare("librispeech", data, *options, "--stage", "3", "--stop-stage", "3")
        assert result.returncode == 1
        error = next(line for line in result.stderr.splitlines() if line.startswith("error: "))
        assert expected in error and "https://huggingface.co/microsoft/wavlm-large" in error
        assert "Traceback" not in result.stderr
