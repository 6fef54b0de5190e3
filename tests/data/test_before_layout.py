"""What commit 508c57e left, before the library's files moved, is read as it was: formats name no module path.

``golden/before_layout`` holds that commit's token store, its checkpoint after 3 of 8 steps on the corpus of
``pretraining_fixtures``, the metrics of its unbroken run, and a quantiser.
"""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from pretraining_fixtures import FIELD, command, environment, make_corpus, write_config

from spear_lib import load_encoder
from spear_lib.data.manifests import Manifest
from spear_lib.quantization import load_tokeniser
from spear_lib.runtime.metrics_log import read_metrics
from spear_lib.tokens.fields import load_tokens

GOLDEN = Path(__file__).parents[1] / "golden" / "before_layout"
CHECKPOINT = "step-00000003.pt"


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """The folder "corpus" with the same audio and, in place of its own, the old token store."""
    monkeypatch.chdir(tmp_path)
    folder = Path("corpus")
    train, valid = make_corpus(folder, 14), make_corpus(folder, 4, "dev")
    store = folder / "tokens" / FIELD / "train"
    made = {path.relative_to(store): path.read_bytes() for path in store.rglob("*") if path.is_file()}
    shutil.rmtree(store)
    shutil.copytree(GOLDEN / "tokens", store)
    old = {path.relative_to(store): path.read_bytes() for path in store.rglob("*") if path.is_file()}
    assert old == made, "a store of today has other bytes"
    return folder, write_config(folder, train, valid, max_steps=8, keep_checkpoints=10)


def test_tokens_of_an_old_store(corpus):
    cut = Manifest(corpus[0] / "tiny_cuts_train.jsonl.gz")[0]
    codes = load_tokens(cut, FIELD)
    stored = np.fromfile(GOLDEN / "tokens" / "shards" / "shard-00000.bin", dtype=np.uint8)
    assert codes.shape == (47, 2) and (np.asarray(codes).reshape(-1) == stored[: codes.size]).all()


def test_an_old_run_goes_on_with_the_same_losses(corpus):
    folder, config = corpus
    checkpoints = folder / "exp" / "checkpoints"
    checkpoints.mkdir(parents=True)
    for name in (CHECKPOINT, "last.pt"):
        shutil.copy(GOLDEN / CHECKPOINT, checkpoints / name)
    done = subprocess.run(
        command(config, folder / "exp"), env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "going on from" in done.stderr
    new = {(line["kind"], line["step"]): line for line in read_metrics(folder / "exp" / "metrics.jsonl")}
    old = {(line["kind"], line["step"]): line for line in read_metrics(GOLDEN / "metrics.jsonl")}
    for step in range(4, 9):
        for name in ("loss", "masked_loss", "unmasked_loss", "learning_rate"):
            if name in old["train", step]:
                assert new["train", step][name] == pytest.approx(old["train", step][name], rel=1e-5)
    assert new["valid/dev", 8]["masked_loss"] == pytest.approx(old["valid/dev", 8]["masked_loss"], rel=1e-5)


def test_encoder_of_an_old_checkpoint():
    encoder = load_encoder(GOLDEN / CHECKPOINT)
    output = encoder.extract(torch.zeros(1, 16000), torch.tensor([16000]))
    assert output.encoder_out.shape == (1, encoder.output_length(16000), 24)


def test_old_quantiser_gives_the_same_codes():
    quantizer = load_tokeniser(GOLDEN)
    assert quantizer.id == "950e94b09dc2e10a"
    x = torch.randn(7, quantizer.dim, generator=torch.Generator().manual_seed(0))
    codes = quantizer.encode(x)
    assert codes[:2].tolist() == [[173, 121], [11, 254]] and int(codes.to(torch.int64).sum()) == 1508
