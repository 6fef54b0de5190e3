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
from spear_lib.quantization import Quantizer
from spear_lib.tokens.fields import load_tokens, token_facts
from spear_lib.tokens.making import load_teacher

NUM_CUTS = 12
SHARDS = ("--shard_hours", 5 / 3600)
"""Four shards of the 17.5 s."""
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


def call(module, *arguments: object) -> None:
    module.main(list(map(str, arguments)))


def call_killed(module, renames: int, *arguments: object) -> None:
    """Run a command in a process of its own that is killed (-9) at rename number ``renames`` + 1."""
    command = [sys.executable, "-c", KILLED, str(renames), module.__name__, *map(str, arguments)]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr


def snapshot(folder: Path) -> dict[str, bytes]:
    """All files but TensorBoard's, which hold the clock."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.parent.name != "tensorboard"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder in which stages 3 to 6 ran without interruption."""
    folder = tmp_path_factory.mktemp("stages")
    cuts = make_cuts(folder / "audio")
    (folder / "quantizer.yaml").write_text(RECIPE)
    config = ("--config", folder / "quantizer.yaml")
    call(extract_embeddings, *config, "--cuts", cuts, "--output_dir", folder / "embeddings")
    embeddings = ("--embeddings", folder / "embeddings")
    call(train_quantizer, *config, *embeddings, "--output_dir", folder / "quantizer")
    dump = ("--cuts", cuts, "--quantizer", folder / "quantizer", *SHARDS)
    call(dump_tokens, *dump, "--output_dir", folder / "tokens")
    check = ("--cuts", cuts, "--store", folder / "tokens", "--quantizer", folder / "quantizer")
    call(check_tokens, *check, "--output_cuts", folder / "cuts" / "cuts.jsonl.gz")
    return folder


def test_every_cut_has_the_tokens_of_its_own_audio(made):
    quantizer = Quantizer.load(made / "quantizer")
    teacher = load_teacher(quantizer, "quantizer")
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
    assert (facts["field"], facts["num_cuts"], facts["num_shards"]) == ("spectral_cb3", NUM_CUTS, 4)
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


def test_killed_embeddings_and_training_end_the_same(made, tmp_path):
    extract = ("--config", made / "quantizer.yaml", "--cuts", made / "audio" / "cuts.jsonl.gz")
    extract = (*extract, "--output_dir", tmp_path / "embeddings")
    call_killed(extract_embeddings, 4, *extract)
    assert not (tmp_path / "embeddings" / "embeddings.json").exists()
    first = (tmp_path / "embeddings" / "shard-00000.npy").stat().st_mtime_ns
    call(extract_embeddings, *extract)
    assert (tmp_path / "embeddings" / "shard-00000.npy").stat().st_mtime_ns == first
    assert snapshot(tmp_path / "embeddings") == snapshot(made / "embeddings")

    train = ("--config", made / "quantizer.yaml", "--embeddings", tmp_path / "embeddings")
    train = (*train, "--output_dir", tmp_path / "quantizer")
    call_killed(train_quantizer, 2, *train)
    assert [path.name for path in (tmp_path / "quantizer").iterdir() if path.suffix != ".tmp"] == [
        "training_state.pt"
    ]
    call(train_quantizer, *train)
    name = "quantizer.safetensors"
    assert (tmp_path / "quantizer" / name).read_bytes() == (made / "quantizer" / name).read_bytes()
    assert (tmp_path / "quantizer" / "report.json").read_bytes() == (
        made / "quantizer" / "report.json"
    ).read_bytes()


def tokens_only(folder: Path) -> dict[str, bytes]:
    """The store without what check_tokens adds."""
    return {name: content for name, content in snapshot(folder).items() if name != "store.json"}


def test_killed_dump_goes_on_and_ends_the_same(made, tmp_path):
    dump = ("--cuts", made / "audio" / "cuts.jsonl.gz", "--quantizer", made / "quantizer", *SHARDS)
    dump = (*dump, "--output_dir", tmp_path)
    # Renames: plan.json, then .bin and .json of each shard: killed between the two of shard 1.
    call_killed(dump_tokens, 4, *dump)
    assert (tmp_path / "shards" / "shard-00001.bin").exists()
    assert not (tmp_path / "shards" / "shard-00001.json").exists()
    first = (tmp_path / "shards" / "shard-00000.bin").stat().st_mtime_ns
    # As two array jobs would do it, then once more for nothing.
    call(dump_tokens, *dump, "--num_splits", 2, "--split", 2)
    call(dump_tokens, *dump, "--num_splits", 2, "--split", 1)
    # One more was killed between committing a shard and giving back its lock.
    (tmp_path / "shards" / "shard-00003.lock").write_text('{"host": "n", "pid": 1, "since": 0}')
    call(dump_tokens, *dump)
    assert (tmp_path / "shards" / "shard-00000.bin").stat().st_mtime_ns == first
    assert tokens_only(tmp_path) == tokens_only(made / "tokens")


def test_unfinished_and_foreign_stores_are_refused(made, tmp_path):
    cuts, tokens = made / "audio" / "cuts.jsonl.gz", tmp_path / "tokens"
    out = ("--output_cuts", tmp_path / "out.jsonl.gz")
    shutil.copytree(made / "tokens", tokens)
    fewer, other = tmp_path / "fewer.jsonl.gz", tmp_path / "more.jsonl.gz"
    everything = list(Manifest(cuts))
    save_cuts(everything[:-1], fewer)
    with pytest.raises(
        ValueError, match="holds tokens of 1 cuts that .*does not have, for example r11.*another corpus"
    ):
        call(check_tokens, "--cuts", fewer, "--store", tokens, *out)
    save_cuts([*everything, everything[0].truncate(duration=0.9).with_id("new")], other)
    with pytest.raises(ValueError, match="1 of 13 cuts have no tokens in .*new: not in the store"):
        call(check_tokens, "--cuts", other, "--store", tokens, *out)
    assert (tokens / "bad_cuts.txt").read_text() == "new\tnot in the store\n"
    save_cuts([*everything, everything[0].with_id("new")], other)
    with pytest.raises(ValueError, match="1 cuts are the same audio .*for example r0 and new"):
        call(check_tokens, "--cuts", other, "--store", tokens, *out)
    strange = Quantizer(12, 3, 8)
    strange.save(tmp_path / "strange")
    check = ("--cuts", cuts, "--store", tokens, "--quantizer", tmp_path / "strange")
    with pytest.raises(ValueError, match=f"but .* is {strange.id}; delete the store"):
        call(check_tokens, *check, *out)
    (tokens / "shards" / "shard-00002.json").unlink()
    with pytest.raises(ValueError, match=r"1 of 4 shards of .* are not made \(2\)"):
        call(check_tokens, "--cuts", cuts, "--store", tokens, *out)
    assert not (tmp_path / "out.jsonl.gz").exists()


def test_renamed_and_reordered_cuts_keep_their_tokens(made, tmp_path):
    cuts = tmp_path / "renamed.jsonl.gz"
    save_cuts(
        [cut.with_id(f"x-{cut.id}") for cut in reversed(list(Manifest(made / "audio" / "cuts.jsonl.gz")))],
        cuts,
    )
    shutil.copytree(made / "tokens", tmp_path / "tokens")
    check = ("--cuts", cuts, "--store", tmp_path / "tokens")
    call(check_tokens, *check, "--output_cuts", tmp_path / "out.jsonl.gz")
    old = Manifest(made / "cuts" / "cuts.jsonl.gz")
    for cut in Manifest(tmp_path / "out.jsonl.gz"):
        before = load_tokens(old[old.position(cut.id[2:])], "spectral_cb3")
        assert np.array_equal(load_tokens(cut, "spectral_cb3"), before)


def test_several_stores_are_attached_at_once(made, tmp_path, caplog):
    config = ("--config", made / "quantizer.yaml", "--embeddings", made / "embeddings")
    second, cuts = tmp_path / "second", made / "audio" / "cuts.jsonl.gz"
    call(train_quantizer, *config, "--training.num_codebooks", 2, "--output_dir", second)
    call(dump_tokens, "--cuts", cuts, "--quantizer", second, "--output_dir", tmp_path / "two")
    first = made / "tokens"
    before = (first / "store.json").stat().st_mtime_ns
    out = tmp_path / "out.jsonl.gz"
    check = ("--cuts", cuts, "--store", f"[{first},{tmp_path / 'two'}]", "--output_cuts", out)
    call(check_tokens, *check, "--quantizer", f"[{made / 'quantizer'},{second}]")
    assert (first / "store.json").stat().st_mtime_ns == before, "the same facts are not written again"
    old = Manifest(made / "cuts" / "cuts.jsonl.gz")
    for cut in Manifest(out):
        assert np.array_equal(
            load_tokens(cut, "spectral_cb3"), load_tokens(old[old.position(cut.id)], "spectral_cb3")
        )
        assert load_tokens(cut, "spectral_cb2").shape == (len(load_tokens(cut, "spectral_cb3")), 2)
    with pytest.raises(ValueError, match=r"two holds tokens of quantiser \w+, but .*quantizer.* is "):
        call(check_tokens, *check, "--quantizer", f"[{made / 'quantizer'},{made / 'quantizer'}]")
    same = ("--cuts", cuts, "--store", f"[{first},{tmp_path / 'copy'}]")
    shutil.copytree(first, tmp_path / "copy")
    with pytest.raises(
        ValueError, match="two of the stores hold the field 'spectral_cb3': a cut has it once"
    ):
        call(check_tokens, *same)
    with pytest.raises(SystemExit):
        call(check_tokens, *check, "--quantizer", second)


def test_check_without_output_only_checks_and_says_what_is_there(made, caplog):
    with caplog.at_level("INFO"):
        call(check_tokens, "--cuts", made / "audio" / "cuts.jsonl.gz", "--store", made / "tokens")
    assert "cuts        12 with tokens, 0 skipped" in caplog.text
    assert "all 12 cuts have their tokens" in caplog.text and "3 codebooks of 8, uint8" in caplog.text
    assert "878, 50.17 per second of audio" in caplog.text and "0..7" in caplog.text


def test_other_options_into_the_same_folder_are_refused(made, tmp_path):
    cuts = made / "audio" / "cuts.jsonl.gz"
    dump = ("--quantizer", made / "quantizer", "--output_dir", made / "tokens")
    with pytest.raises(ValueError, match="with refine_iters = 5, but this run has 1"):
        call(dump_tokens, *dump, "--cuts", cuts, "--refine_iters", 1)
    save_cuts(list(Manifest(cuts))[:4], tmp_path / "few.jsonl.gz")
    with pytest.raises(ValueError, match="with cuts_id = .*delete the folder"):
        call(dump_tokens, *dump, "--cuts", tmp_path / "few.jsonl.gz")
    extract = ("--config", made / "quantizer.yaml", "--cuts", cuts, "--output_dir", made / "embeddings")
    with pytest.raises(ValueError, match="holds embeddings made with other options"):
        call(extract_embeddings, *extract, "--seed", 5)


def test_quantiser_without_its_teacher_is_refused(made, tmp_path):
    dump = ("--cuts", made / "audio" / "cuts.jsonl.gz", "--output_dir", tmp_path / "tokens")
    quantizer = Quantizer.load(made / "quantizer")
    quantizer.provenance["teacher"]["teacher_id"] = "spectral-0"
    quantizer.save(tmp_path / "changed")
    with pytest.raises(
        ValueError, match="embeddings of teacher spectral-0, but this teacher is spectral-.*stages 3"
    ):
        call(dump_tokens, *dump, "--quantizer", tmp_path / "changed")
    Quantizer(12, 3, 8).save(tmp_path / "bare")
    with pytest.raises(ValueError, match="does not say which teacher it belongs to"):
        call(dump_tokens, *dump, "--quantizer", tmp_path / "bare")
    with pytest.raises(ValueError, match="embeddings.json does not exist; run stage 3"):
        call(train_quantizer, "--embeddings", tmp_path, "--output_dir", tmp_path / "q")


def test_options_that_cannot_be_are_refused(capsys):
    with pytest.raises(ValueError, match="split is 3 of num_splits 2: use 1..num_splits, or 0"):
        dump_tokens.Options("c", "q", "o", num_splits=2, split=3)
    with pytest.raises(ValueError, match=r"2 quantizer\(s\) but 1 output_dir\(s\)"):
        dump_tokens.Options("c", ["q", "r"], "o")
    with pytest.raises(ValueError, match="shard_hours is -1"):
        dump_tokens.Options("c", "q", "o", shard_hours=-1.0)
    with pytest.raises(SystemExit):
        call(dump_tokens, "--cuts", "c", "--quantizer", "q", "--output_dir", "o", "--split", 3)
    assert "split is 3 of num_splits 1" in capsys.readouterr().err


def test_full_disk_ends_each_stage_with_one_line_and_the_next_run_ends_the_same(
    made, tmp_path, monkeypatch, capsys
):
    """The disk is full from the n-th file on; afterwards the same command goes on from what was kept."""
    config = ("--config", made / "quantizer.yaml")
    cuts = ("--cuts", made / "audio" / "cuts.jsonl.gz")
    embeddings = ("--embeddings", made / "embeddings")
    dump = (*cuts, "--quantizer", made / "quantizer", *SHARDS)
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
            with pytest.raises(SystemExit) as stopped:
                run(lambda module=module, arguments=arguments: module.main([*map(str, arguments)]))
        last = capsys.readouterr().err.splitlines()[-1]
        assert stopped.value.code == 1
        assert last.startswith("error: cannot write ") and "No space left on device" in last
        assert last.endswith("run the same command again") and not list(tmp_path.rglob("*.tmp"))
        call(module, *arguments)
    for name in ("embeddings", "quantizer", "cuts"):
        assert snapshot(tmp_path / name) == snapshot(made / name)
    assert tokens_only(tmp_path / "tokens") == tokens_only(made / "tokens")
