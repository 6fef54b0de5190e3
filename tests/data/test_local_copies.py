"""Copies of token shards and Shar archives on a disk of the machine: the same data, checked, and gone
afterwards."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from pretraining_fixtures import AUDIO_FIELD, FIELD, REPOSITORY, make_corpus, write_config

from spear_lib.bin import pretrain
from spear_lib.data import local_copies
from spear_lib.data.local_copies import keep_copies, local, release
from spear_lib.data.manifests import Manifest
from spear_lib.data.mixing import MixingConfig
from spear_lib.pretraining import ObjectiveConfig
from spear_lib.pretraining.data import PretrainingData, PretrainingDataConfig
from spear_lib.runtime.metrics_log import read_metrics
from spear_lib.tokens.shar import export_shar

BOTH = [FIELD, AUDIO_FIELD]
TIMES = ("seconds", "audio_seconds_per_second")


@pytest.fixture(autouse=True)
def no_space_is_spared(monkeypatch):
    """The machine that tests run on may have a disk that is nearly full."""
    monkeypatch.setattr(local_copies, "_SPARE", 0.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    manifest = make_corpus(folder, 10, audio=True, fields=BOTH)
    export_shar(Manifest(manifest), folder / "shar", BOTH, "flac", shard_cuts=4)
    return folder


@pytest.fixture
def corpus(made, tmp_path, monkeypatch):
    """A copy that a test may spoil; no copies of its files are left to the next one."""
    monkeypatch.delenv(local_copies.SLURM_FOLDER, raising=False)
    shutil.copytree(made / "shar", tmp_path / "shar")
    yield tmp_path
    release()


def data_of(path: Path, **options) -> PretrainingData:
    mixing = MixingConfig(noise_probability=0.0, utterance_probability=0.5, token_probability=0.0)
    config = PretrainingDataConfig(
        train_cuts=[str(path)],
        token_fields=BOTH,
        batch_seconds=4.0,
        mixing=mixing,
        **{"num_workers": 0, **options},
    )
    return PretrainingData(config, needed_fields=ObjectiveConfig("asymmetrical").fields_by_domain(BOTH))


def same_batches(one: PretrainingData, two: PretrainingData) -> None:
    for a, b in zip(one.epoch_batches(0), two.epoch_batches(0), strict=True):
        assert a.ids == b.ids and torch.equal(a.waveforms, b.waveforms)
        assert all(torch.equal(a.tokens[name], b.tokens[name]) for name in BOTH)


def in_folder(folder: Path) -> list[str]:
    """Names of the copies that are there."""
    return sorted(path.name for path in folder.rglob("*") if path.suffix in (".bin", ".tar"))


def test_batches_are_read_from_copies_and_are_the_same(corpus, made):
    plain = data_of(corpus / "shar")
    expected = list(plain.epoch_batches(0))
    disk = corpus / "disk"
    copied = data_of(corpus / "shar", local_dir=str(disk), num_workers=2)
    assert in_folder(disk) == sorted(path.name for path in (corpus / "shar").glob("*.tar"))
    for archive in (corpus / "shar").glob("*.tar"):  # whoever reads it now reads nothing
        os.truncate(archive, 0)
    for a, b in zip(expected, copied.epoch_batches(0), strict=True):
        assert a.ids == b.ids and torch.equal(a.waveforms, b.waveforms)
        assert all(torch.equal(a.tokens[name], b.tokens[name]) for name in BOTH)
    release()
    assert list((disk / f"spear-{os.getuid()}").iterdir()) == []


def test_a_manifests_token_shards_are_copied(made, tmp_path, caplog):
    manifest = made / "tiny_cuts_train.jsonl.gz"
    with caplog.at_level("INFO"):
        copied = data_of(manifest, local_dir=str(tmp_path))
    assert in_folder(tmp_path) == ["shard-00000.bin", "shard-00000.bin"]
    assert "1 copied here in" in caplog.text and "sizes and sha256 checked" in caplog.text
    same_batches(data_of(manifest), copied)
    release()
    assert in_folder(tmp_path) == []


def test_pretraining_gives_the_same_losses_and_leaves_nothing(tmp_path, monkeypatch):
    train, valid = make_corpus(tmp_path, 8), make_corpus(tmp_path, 2, "dev")
    config = write_config(tmp_path, train, valid, max_steps=3, valid_interval=0)
    disk = tmp_path / "disk"
    monkeypatch.setenv(local_copies.SLURM_FOLDER, str(disk))
    pretrain.main(["--config", str(config), "--experiment_dir", str(tmp_path / "copies")])
    assert len(in_folder(disk)) == 2  # of train and of dev; this process goes on
    release()
    monkeypatch.delenv(local_copies.SLURM_FOLDER, raising=False)
    pretrain.main(["--config", str(config), "--experiment_dir", str(tmp_path / "plain")])
    lines = [
        [{name: value for name, value in line.items() if name not in TIMES} for line in read_metrics(path)]
        for path in (tmp_path / "copies" / "metrics.jsonl", tmp_path / "plain" / "metrics.jsonl")
    ]
    assert lines[0] == lines[1] and len(lines[0]) > 3 and in_folder(disk) == []


HOLD = """
import logging, sys
from spear_lib.data import local_copies
from spear_lib.data.local_copies import keep_copies
local_copies._SPARE = 0.0
logging.basicConfig(level="INFO", format="%(message)s")
keep_copies([sys.argv[1]], sys.argv[2])
print("there", flush=True)
sys.stdin.read()
"""


def another_process(file: Path, disk: Path) -> subprocess.Popen:
    """Makes copies and keeps them until its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(file), str(disk)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "there\n", process.stderr.read()
    return process


def test_what_a_killed_job_left_is_removed_and_what_others_read_is_not(corpus, caplog):
    disk, files = corpus / "disk", sorted((corpus / "shar").glob("*.tar"))
    killed = another_process(files[0], disk)
    alive = another_process(corpus / "shar" / "recording.000000.tar", disk)
    assert len(in_folder(disk)) == 6
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    with caplog.at_level("INFO"):
        keep_copies([str(corpus / "shar" / f"{FIELD}.000000.tar")], str(disk))
    assert "which a job that ended left" in caplog.text
    assert in_folder(disk) == sorted(
        path.name for name in ("recording", FIELD) for path in (corpus / "shar").glob(f"{name}.*.tar")
    )
    # The last one that reads a copy removes it.
    with caplog.at_level("INFO"):
        keep_copies([str(corpus / "shar" / "recording.000001.tar")], str(disk))
    assert "(0 copied here" in caplog.text
    alive.communicate()
    assert len(in_folder(disk)) == 6
    release()
    assert in_folder(disk) == []


def test_processes_share_the_work(corpus):
    disk = corpus / "disk"
    first = another_process(corpus / "shar" / "recording.000000.tar", disk)
    second = another_process(corpus / "shar" / "recording.000002.tar", disk)
    said = [process.communicate()[1] for process in (first, second)]
    assert "(3 copied here" in said[0] and "(0 copied here" in said[1]
    assert in_folder(disk) == []


def test_what_does_not_fit_is_read_from_where_it_is(corpus, monkeypatch, caplog):
    plain, disk = data_of(corpus / "shar"), corpus / "disk"
    sizes = {
        name: sum(path.stat().st_size for path in (corpus / "shar").glob(f"{name}.*.tar"))
        for name in ("recording", *BOTH)
    }
    usage = namedtuple("usage", "total used free")
    total = sizes[FIELD] + sizes[AUDIO_FIELD] + 1000

    def of_disk(path):
        used = sum(file.stat().st_size for file in Path(path).rglob("*.tar"))
        return usage(total, used, total - used)

    monkeypatch.setattr(local_copies.shutil, "disk_usage", of_disk)
    copied = data_of(corpus / "shar", local_dir=str(disk))
    assert "recording.*.tar" in caplog.text and "do not fit in" in caplog.text
    assert "has room for" in caplog.text and caplog.text.count("read from where they are") == 1
    assert not any(name.startswith("recording") for name in in_folder(disk)) and in_folder(disk)
    same_batches(plain, copied)


@pytest.mark.parametrize("what", ["a file", "full"])
def test_a_disk_that_cannot_hold_copies_is_said_once_for_each(corpus, monkeypatch, caplog, what):
    disk = corpus / "disk"
    if what == "a file":
        disk.touch()
    else:
        monkeypatch.setattr(local_copies, "_BLOCK", 100)

        def full(path):
            raise OSError(28, "cannot write it: free some space", str(path)) from OSError(28, "No space left")

        monkeypatch.setattr(local_copies, "atomic_path", full)
    copied = data_of(corpus / "shar", local_dir=str(disk))
    assert caplog.text.count("no local copies in") == 3
    assert {"a file": "Not a directory", "full": "No space left"}[what] in caplog.text
    same_batches(data_of(corpus / "shar"), copied)


def test_a_damaged_shard_is_an_error_and_a_damaged_copy_is_not_read(made, tmp_path, caplog):
    store = Path(shutil.copytree(made / "tokens" / FIELD / "train", tmp_path / "store"))
    shard = store / "shards" / "shard-00000.bin"
    keep_copies([str(shard)], str(tmp_path / "disk"))
    assert Path(local(str(shard))).read_bytes() == shard.read_bytes() and local(str(shard)) != str(shard)
    os.truncate(local(str(shard)), 3)
    assert local(str(shard)) == str(shard) and "gone or changed" in caplog.text
    release()
    content = bytearray(shard.read_bytes())
    content[5] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match="shard-00000.bin changed since it was written .*run stage 5"):
        keep_copies([str(shard)], str(tmp_path / "disk"))
    index = json.loads(shard.with_suffix(".json").read_text())
    assert index["num_bytes"] == len(content)  # so only its hash told


def test_nothing_is_looked_up_where_nothing_is_copied(monkeypatch):
    monkeypatch.delenv(local_copies.SLURM_FOLDER, raising=False)

    def files():
        yield from [][0]

    keep_copies(files())
    monkeypatch.setenv(local_copies.SLURM_FOLDER, "")
    keep_copies(files())
