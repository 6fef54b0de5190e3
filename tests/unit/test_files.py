"""A full disk, for everything that writes results: one line that names the file, and what was there stays."""

import os
import resource
import stat
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from lhotse import MonoCut

from spear_lib import config
from spear_lib.asr.decoding import write_recognised
from spear_lib.encoders import save_encoder
from spear_lib.encoders.zipformer import SpearEncoder, ZipformerConfig
from spear_lib.quantization import Quantizer
from spear_lib.quantization.trainer import save_state
from spear_lib.runtime.files import atomic_file, atomic_path, write_json, write_text
from spear_lib.tokens.fields import ShardPlan, TokenFacts, TokenStoreWriter
from spear_lib.training.checkpoint import CheckpointFolder

LIMIT = 6000


@contextmanager
def full_disk(room: int = LIMIT):
    """No file of this process can grow beyond ``room`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@dataclass(frozen=True)
class Options:
    names: tuple[str, ...] = ()
    """Names."""


def write_tokens(folder: Path, size: int) -> None:
    facts = TokenFacts("tones_cb2", "tones", "q", 50.0, 10.0, 2, 256, "cuts")
    cut = MonoCut("a", start=0.0, duration=size / 50, channel=0)
    writer = TokenStoreWriter(folder, facts, ShardPlan((1,)))
    writer.write_shard(0, [cut], [np.full((size, 2), size % 7, dtype=np.uint8)])


def write_frames(folder: Path, size: int) -> None:
    with atomic_file(folder / "shard-00000.npy") as file:
        np.save(file, np.full((size, 2), size))


def write_encoder(folder: Path, size: int) -> None:
    tiny = {
        "frontend_channels": (2, 2, 2),
        "downsampling_factor": (1,),
        "num_encoder_layers": (1,),
        "cnn_module_kernel": (7,),
    }
    widths = {"encoder_dim": (8,), "encoder_unmasked_dim": (8,), "feedforward_dim": (8,), "num_heads": (1,)}
    save_encoder(SpearEncoder(ZipformerConfig(**tiny, **widths)), folder, {"size": size})


def write_results(folder: Path, size: int) -> None:
    results = {f"utterance-{n}": {"text": "A B"} for n in range(size)}
    write_recognised(folder / "recogs-dev.jsonl", results, dict.fromkeys(results, "A C"))


WRITERS = {
    "tokens": (write_tokens, 10, 10_000, "shard-00000.bin"),
    "embeddings": (write_frames, 10, 10_000, "shard-00000.npy"),
    "quantiser": (lambda d, n: Quantizer(n, 2, 4).save(d), 4, 4000, "quantizer.safetensors"),
    "quantiser training": (
        lambda d, n: save_state({"run_id": "a", "x": torch.ones(n)}, d / "training_state.pt"),
        4,
        40_000,
        "training_state.pt",
    ),
    "checkpoint": (
        lambda d, n: CheckpointFolder(d).save({"step": 1, "model": {"x": torch.ones(n)}}, False),
        4,
        40_000,
        "last.pt",
    ),
    "results": (write_results, 1, 1000, "recogs-dev.jsonl"),
    "text": (lambda d, n: write_text(d / "report.md", "x" * n), 4, 40_000, "report.md"),
    "json": (lambda d, n: write_json(d / "report.json", list(range(n))), 4, 40_000, "report.json"),
    "options": (
        lambda d, n: config.save(Options(("name",) * n), d / "config.yaml"),
        4,
        4000,
        "config.yaml",
    ),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_full_disk_leaves_the_old_file_and_the_next_run_replaces_it(kind, tmp_path):
    write, small, large, name = WRITERS[kind]
    write(tmp_path, small)
    (path,) = tmp_path.rglob(name)
    before = path.read_bytes()
    with full_disk(), pytest.raises((OSError, RuntimeError)) as error:
        write(tmp_path, large)
    message = str(error.value)
    assert str(path) in message and "run the same command again" in message, message
    assert path.read_bytes() == before
    assert not list(tmp_path.rglob("*.tmp"))
    write(tmp_path, large)
    assert path.stat().st_size > LIMIT


def test_full_disk_while_an_encoder_is_written_leaves_no_half_folder(tmp_path):
    with full_disk(), pytest.raises(OSError, match=r"cannot write .*model\.safetensors .*free some space"):
        write_encoder(tmp_path / "encoder", 1)
    assert os.listdir(tmp_path / "encoder") == []
    write_encoder(tmp_path / "encoder", 1)
    assert sorted(os.listdir(tmp_path / "encoder")) == ["config.json", "model.safetensors"]


def test_error_of_the_writer_goes_through_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="of the caller"), atomic_path(tmp_path / "x") as path:
        path.write_text("half")
        raise ValueError("of the caller")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("mask, mode", [(0o002, 0o664), (0o022, 0o644)])
def test_the_umask_says_who_can_read_what_is_written(kind, mask, mode, tmp_path):
    """safetensors makes its files 0600, which the group of a shared folder cannot read."""
    write, small, _, name = WRITERS[kind]
    before = os.umask(mask)
    try:
        write(tmp_path, small)
        write(tmp_path, small)  # replacing is no different
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file()}
    assert name in modes and set(modes.values()) == {mode}, modes
