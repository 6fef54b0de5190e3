"""Stages 3 to 6 as commands: from recordings to cuts with tokens; killed in the middle; refused with
reasons."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lhotse import Recording

from spear_lib.bin import check_tokens, dump_tokens, extract_embeddings, train_quantizer
from spear_lib.bin.common import run
from spear_lib.data.manifests import Manifest, save_cuts
from spear_lib.data.tokens import load_tokens, token_facts
from spear_lib.quantization import Quantizer

NUM_CUTS = 12
RECIPE = """
spectral: {num_mel_coefficients: 6, num_time_coefficients: 2}
sampling: {num_frames: 600, frames_per_cut: 60, shard_frames: 240}
training: {num_codebooks: 3, codebook_size: 8, rounds: 3, frames_per_round: 400, init_frames: 300,
           init_iterations: 2, classifier_frames: 300, classifier_steps: 3, held_out_fraction: 0.2}
"""

# Runs a command and kills its own process at the n-th rename: what was renamed before stays, all else is
# lost.
KILLED = """
import os, signal, sys
count, replace = int(sys.argv.pop(1)), os.replace
def replace_and_die(*arguments):
    global count
    count -= 1
    if count < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*arguments)
os.replace = replace_and_die
import importlib
importlib.import_module(sys.argv.pop(1)).main()
"""


def make_cuts(folder: Path, count: int = NUM_CUTS, seed: int = 0) -> Path:
    """Recordings of filtered noise with moving tones, 1 to 2 s, and their manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    random, cuts = np.random.default_rng(seed), []
    for number in range(count):
        samples = int(16000 * (1 + number / count))
        time = np.arange(samples) / 16000
        tone = np.sin(2 * np.pi * (300 + 200 * (number % 5)) * time * (1 + 0.3 * np.sin(3 * time)))
        path = folder / f"r{number}.wav"
        soundfile.write(path, 0.2 * tone + 0.02 * random.standard_normal(samples), 16000)
        cuts.append(Recording.from_file(path).to_cut())
    save_cuts(cuts, folder / "cuts.jsonl.gz")
    return folder / "cuts.jsonl.gz"


def call(module, monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    module.main()


def call_killed(module, renames: int, *arguments: object) -> None:
    """Run a command in a process of its own that is killed (-9) at rename number ``renames`` + 1."""
    command = [sys.executable, "-c", KILLED, str(renames), module.__name__, *map(str, arguments)]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder in which stages 3 to 6 ran without interruption."""
    folder = tmp_path_factory.mktemp("stages")
    with pytest.MonkeyPatch.context() as monkeypatch:
        cuts = make_cuts(folder / "audio")
        (folder / "quantizer.yaml").write_text(RECIPE)
        config = ("--config", folder / "quantizer.yaml")
        call(extract_embeddings, monkeypatch, *config, "--cuts", cuts, "--output_dir", folder / "embeddings")
        embeddings = ("--embeddings", folder / "embeddings")
        call(train_quantizer, monkeypatch, *config, *embeddings, "--output_dir", folder / "quantizer")
        dump = ("--cuts", cuts, "--quantizer", folder / "quantizer", "--shard_cuts", 3)
        call(dump_tokens, monkeypatch, *dump, "--output_dir", folder / "tokens", "--num_splits", 2)
        check = ("--cuts", cuts, "--store", folder / "tokens", "--quantizer", folder / "quantizer")
        call(check_tokens, monkeypatch, *check, "--output_cuts", folder / "cuts" / "cuts.jsonl.gz")
    return folder


def test_every_cut_has_the_tokens_of_its_own_audio(made):
    quantizer = Quantizer.load(made / "quantizer")
    teacher = dump_tokens.load_teacher(quantizer, dump_tokens.Options("", "", ""))
    cuts = Manifest(made / "cuts" / "cuts.jsonl.gz")
    assert cuts.ids == [f"r{number}" for number in range(NUM_CUTS)]
    for cut in cuts:
        audio = torch.from_numpy(cut.load_audio())
        embeddings, _ = teacher.embed(audio, torch.tensor([audio.shape[1]]))
        tokens = load_tokens(cut, "spectral_cb3")
        assert (tokens == quantizer.encode(embeddings[0]).numpy()).mean() > 0.999


def test_store_says_what_it_holds(made):
    facts = json.loads((made / "tokens" / "store.json").read_text())
    quantizer = Quantizer.load(made / "quantizer")
    assert facts["quantizer_id"] == quantizer.id
    assert facts["teacher_id"] == quantizer.provenance["teacher"]["teacher_id"]
    assert (facts["field"], facts["num_cuts"], facts["num_splits"]) == ("spectral_cb3", NUM_CUTS, 2)
    assert (facts["frame_rate"], facts["first_frame_center_ms"]) == (50.0, 5.0)
    assert (facts["num_codebooks"], facts["codebook_size"]) == (3, 8)
    cuts = Manifest(made / "cuts" / "cuts.jsonl.gz")
    tokens = [load_tokens(cut, "spectral_cb3") for cut in cuts]
    assert facts["num_frames"] == sum(len(each) for each in tokens)
    shares = np.bincount(np.concatenate(tokens)[:, 0], minlength=8) / facts["num_frames"]
    entropy = -sum(share * np.log(share) for share in shares if share)
    assert facts["unigram_entropy_nats"][0] == pytest.approx(entropy, abs=1e-5)
    assert token_facts(cuts[0], "spectral_cb3")["quantizer_id"] == quantizer.id


def test_report_lies_beside_the_quantiser(made):
    report = json.loads((made / "quantizer" / "report.json").read_text())
    assert list(report["relative_error"]) == ["0", "1", "2", "5"]
    assert report["quantizer_id"] == Quantizer.load(made / "quantizer").id
    assert len(report["history"]) == 3 and report["gaussian_bound"] > 0
    assert (made / "quantizer" / "report.png").stat().st_size > 10000
    assert not (made / "quantizer" / "training_state.pt").exists()


def test_killed_embeddings_and_training_end_the_same(made, tmp_path, monkeypatch):
    extract = ("--config", made / "quantizer.yaml", "--cuts", made / "audio" / "cuts.jsonl.gz")
    extract = (*extract, "--output_dir", tmp_path / "embeddings")
    call_killed(extract_embeddings, 4, *extract)
    assert not (tmp_path / "embeddings" / "embeddings.json").exists()
    first = (tmp_path / "embeddings" / "shard-00000.npy").stat().st_mtime_ns
    call(extract_embeddings, monkeypatch, *extract)
    assert (tmp_path / "embeddings" / "shard-00000.npy").stat().st_mtime_ns == first
    assert snapshot(tmp_path / "embeddings") == snapshot(made / "embeddings")

    train = ("--config", made / "quantizer.yaml", "--embeddings", tmp_path / "embeddings")
    train = (*train, "--output_dir", tmp_path / "quantizer")
    call_killed(train_quantizer, 2, *train)
    assert [path.name for path in (tmp_path / "quantizer").iterdir() if path.suffix != ".tmp"] == [
        "training_state.pt"
    ]
    call(train_quantizer, monkeypatch, *train)
    name = "quantizer.safetensors"
    assert (tmp_path / "quantizer" / name).read_bytes() == (made / "quantizer" / name).read_bytes()
    assert (tmp_path / "quantizer" / "report.json").read_bytes() == (
        made / "quantizer" / "report.json"
    ).read_bytes()


def test_killed_dump_goes_on_and_ends_the_same(made, tmp_path, monkeypatch):
    dump = ("--cuts", made / "audio" / "cuts.jsonl.gz", "--quantizer", made / "quantizer", "--shard_cuts", 3)
    dump = (*dump, "--output_dir", tmp_path, "--num_splits", 2)
    # Renames: split.json, then .bin and .json of each shard: killed between the two of shard 1 of split 1.
    call_killed(dump_tokens, 4, *dump)
    assert (tmp_path / "split-1-of-2" / "shard-00001.bin").exists()
    assert not (tmp_path / "split-1-of-2" / "shard-00001.json").exists()
    first = (tmp_path / "split-1-of-2" / "shard-00000.bin").stat().st_mtime_ns
    # As two array jobs would do it.
    call(dump_tokens, monkeypatch, *dump, "--split", 2)
    call(dump_tokens, monkeypatch, *dump, "--split", 1)
    assert (tmp_path / "split-1-of-2" / "shard-00000.bin").stat().st_mtime_ns == first
    whole = snapshot(made / "tokens")
    whole.pop("store.json")
    assert snapshot(tmp_path) == whole


def test_unfinished_and_foreign_stores_are_refused(made, tmp_path, monkeypatch):
    cuts, tokens = made / "audio" / "cuts.jsonl.gz", tmp_path / "tokens"
    out = ("--output_cuts", tmp_path / "out.jsonl.gz")
    shutil.copytree(made / "tokens", tokens)
    fewer, other = tmp_path / "fewer.jsonl.gz", tmp_path / "more.jsonl.gz"
    everything = list(Manifest(cuts))
    save_cuts(everything[:-1], fewer)
    with pytest.raises(
        ValueError, match="holds tokens of 1 cuts that .*does not have, for example r11.*another corpus"
    ):
        call(check_tokens, monkeypatch, "--cuts", fewer, "--store", tokens, *out)
    save_cuts([*everything, everything[0].with_id("new")], other)
    with pytest.raises(ValueError, match="1 of 13 cuts have no tokens in .*, for example new"):
        call(check_tokens, monkeypatch, "--cuts", other, "--store", tokens, *out)
    save_cuts([everything[0].truncate(duration=0.9).with_id("r0"), *everything[1:]], other)
    with pytest.raises(ValueError, match="same ids but in another order or with other durations"):
        call(check_tokens, monkeypatch, "--cuts", other, "--store", tokens, *out)
    strange = Quantizer(12, 3, 8)
    strange.save(tmp_path / "strange")
    with pytest.raises(ValueError, match=f"but .* is {strange.id}; delete the store"):
        call(
            check_tokens,
            monkeypatch,
            "--cuts",
            cuts,
            "--store",
            tokens,
            "--quantizer",
            tmp_path / "strange",
            *out,
        )
    shutil.rmtree(tokens / "split-2-of-2")
    with pytest.raises(ValueError, match="split 2 of 2 was never started"):
        call(check_tokens, monkeypatch, "--cuts", cuts, "--store", tokens, *out)
    assert not (tmp_path / "out.jsonl.gz").exists()


def test_other_options_into_the_same_folder_are_refused(made, tmp_path, monkeypatch):
    cuts = made / "audio" / "cuts.jsonl.gz"
    dump = ("--cuts", cuts, "--quantizer", made / "quantizer", "--output_dir", made / "tokens")
    with pytest.raises(ValueError, match="holds other cuts than this run would put there"):
        call(dump_tokens, monkeypatch, *dump, "--num_splits", 2, "--shard_cuts", 5)
    save_cuts(list(Manifest(cuts))[:4], tmp_path / "few.jsonl.gz")
    dump = (
        "--cuts",
        tmp_path / "few.jsonl.gz",
        "--quantizer",
        made / "quantizer",
        "--output_dir",
        made / "tokens",
    )
    with pytest.raises(ValueError, match="with cuts_id = .*delete the folder .*split-1-of-2"):
        call(dump_tokens, monkeypatch, *dump, "--num_splits", 2)
    extract = ("--config", made / "quantizer.yaml", "--cuts", cuts, "--output_dir", made / "embeddings")
    with pytest.raises(ValueError, match="holds embeddings made with other options"):
        call(extract_embeddings, monkeypatch, *extract, "--seed", 5)


def test_quantiser_without_its_teacher_is_refused(made, tmp_path, monkeypatch):
    dump = ("--cuts", made / "audio" / "cuts.jsonl.gz", "--output_dir", tmp_path / "tokens")
    quantizer = Quantizer.load(made / "quantizer")
    quantizer.provenance["teacher"]["teacher_id"] = "spectral-0"
    quantizer.save(tmp_path / "changed")
    with pytest.raises(
        ValueError, match="embeddings of teacher spectral-0, but this teacher is spectral-.*stages 3"
    ):
        call(dump_tokens, monkeypatch, *dump, "--quantizer", tmp_path / "changed")
    Quantizer(12, 3, 8).save(tmp_path / "bare")
    with pytest.raises(ValueError, match="does not say which teacher it belongs to"):
        call(dump_tokens, monkeypatch, *dump, "--quantizer", tmp_path / "bare")
    with pytest.raises(ValueError, match="split is 3 of num_splits 2: use 1..num_splits, or 0"):
        call(
            dump_tokens, monkeypatch, *dump, "--quantizer", tmp_path / "bare", "--num_splits", 2, "--split", 3
        )
    with pytest.raises(ValueError, match="embeddings.json does not exist; run stage 3"):
        call(train_quantizer, monkeypatch, "--embeddings", tmp_path, "--output_dir", tmp_path / "q")


def test_missing_audio_stops_the_dump_with_the_files_name(made, tmp_path, monkeypatch):
    cuts = make_cuts(tmp_path / "audio", 3)
    (tmp_path / "audio" / "r1.wav").unlink()
    dump = ("--cuts", cuts, "--quantizer", made / "quantizer", "--output_dir", tmp_path / "tokens")
    with pytest.raises(RuntimeError, match="r1.wav .*does not exist"):
        call(dump_tokens, monkeypatch, *dump)


def test_splits_cover_every_cut_once():
    for total in (0, 1, 7, 100):
        for num_splits in (1, 3, 8):
            parts = [dump_tokens.split_range(total, split, num_splits) for split in range(1, num_splits + 1)]
            assert [position for part in parts for position in part] == list(range(total))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_full_disk_ends_each_stage_with_one_line_and_the_next_run_ends_the_same(
    made, tmp_path, monkeypatch, capsys
):
    """The disk is full from the n-th file on; afterwards the same command goes on from what was kept."""
    config = ("--config", made / "quantizer.yaml")
    cuts = ("--cuts", made / "audio" / "cuts.jsonl.gz")
    embeddings = ("--embeddings", made / "embeddings")
    dump = (*cuts, "--quantizer", made / "quantizer", "--shard_cuts", 3, "--num_splits", 2)
    check = (*cuts, "--store", made / "tokens", "--quantizer", made / "quantizer")
    stages = [
        (extract_embeddings, (*config, *cuts, "--output_dir", tmp_path / "embeddings"), 4),
        (train_quantizer, (*config, *embeddings, "--output_dir", tmp_path / "quantizer"), 2),
        (dump_tokens, (*dump, "--output_dir", tmp_path / "tokens"), 5),
        (check_tokens, (*check, "--output_cuts", tmp_path / "cuts" / "cuts.jsonl.gz"), 0),
    ]
    for module, arguments, num_files in stages:
        left = [num_files]

        def fsync(descriptor, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            patch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
            with pytest.raises(SystemExit) as stopped:
                run(module.main)
        last = capsys.readouterr().err.splitlines()[-1]
        assert stopped.value.code == 1
        assert last.startswith("error: cannot write ") and "No space left on device" in last
        assert last.endswith("run the same command again") and not list(tmp_path.rglob("*.tmp"))
        call(module, monkeypatch, *arguments)
    for name in ("embeddings", "quantizer", "cuts"):
        assert snapshot(tmp_path / name) == snapshot(made / name)
    whole = snapshot(made / "tokens")
    whole.pop("store.json")
    assert snapshot(tmp_path / "tokens") == whole
