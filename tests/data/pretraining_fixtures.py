"""A tiny corpus with tokens, made in code: tones whose pitch the tokens name, so that there is something
to learn."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile
import yaml
from lhotse import MonoCut, Recording, SupervisionSegment

from spear_lib import keyed_random
from spear_lib.data.manifests import save_cuts
from spear_lib.data.tokens import TokenFacts, attach_tokens, write_store, write_store_facts

REPOSITORY = Path(__file__).parents[2]
FIELD = "tones_cb2"
NUM_TONES = 6
FRAME = 320  # samples of a token frame, 50 Hz


def make_corpus(folder: Path, num_cuts: int, name: str = "train", quantizer_id: str = "tones-1") -> Path:
    """Cuts of 0.7 to 1.6 s with tokens of 2 codebooks (tone now, tone before); returns their manifest."""
    audio_dir = folder / "audio"
    audio_dir.mkdir(parents=True, exist_ok=True)
    cuts, codes = [], []
    for index in range(num_cuts):
        cut_id = f"{name}-{index:03d}"
        random = keyed_random.generator("corpus", cut_id)
        num_frames = int(random.integers(35, 80))
        tones = np.repeat(random.integers(0, NUM_TONES, size=num_frames // 6 + 1), 6)[:num_frames]
        phase = np.cumsum(np.repeat(300.0 * 1.5**tones, FRAME)) / 16000 * 2 * np.pi
        samples = (0.3 * np.sin(phase) + 0.01 * random.standard_normal(phase.shape)).astype(np.float32)
        path = audio_dir / f"{cut_id}.wav"
        soundfile.write(path, samples, 16000)
        recording = Recording.from_file(path, recording_id=cut_id)
        text = SupervisionSegment(cut_id, cut_id, 0.0, recording.duration, text="TONE")
        cuts.append(MonoCut(cut_id, 0.0, recording.duration, 0, recording=recording, supervisions=[text]))
        before = np.concatenate([tones[:1], tones[:-6], np.zeros(6, dtype=tones.dtype)])[: len(tones)]
        codes.append(np.stack([tones, before], 1).astype(np.uint8))
    facts = TokenFacts(FIELD, "tones", quantizer_id, 50.0, 10.0, 2, NUM_TONES, name)
    store = folder / "tokens" / name
    write_store(store, facts, cuts, codes)
    write_store_facts(store, facts, {})
    manifest = folder / f"tiny_cuts_{name}.jsonl.gz"
    save_cuts(attach_tokens(cuts, store), manifest)
    return manifest


def write_config(folder: Path, train: Path, valid: Path, **training) -> Path:
    """A configuration of pretrain for these cuts; regularisers whose statistics are per process are off."""
    options = {
        "valid_cuts": [str(valid)],
        "encoder": {
            "frontend_channels": [2, 4, 4],
            "downsampling_factor": [1, 2],
            "num_encoder_layers": [1],
            "encoder_dim": [24],
            "feedforward_dim": [32],
            "encoder_unmasked_dim": [16],
            "num_heads": [2],
            "query_head_dim": [8],
            "value_head_dim": [6],
            "pos_dim": 8,
            "cnn_module_kernel": [7],
            "balancer": False,
            "whiten": False,
        },
        "data": {
            "train_cuts": [str(train)],
            "token_fields": [FIELD],
            "batch_seconds": 8.0,
            "num_workers": 0,
            "mixing": {"enabled": False},
        },
        "training": {
            "max_steps": 8,
            "device": "cpu",
            "log_interval": 1,
            "valid_interval": 4,
            "save_interval": 3,
            "average_period": 1,
            "warmup_batches": 4.0,
            **training,
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(options))
    return path


def command(config: Path, experiment_dir: Path, *more: str, processes: int = 1) -> list[str]:
    """Command line of pretrain, through torchrun for several processes."""
    launcher = [sys.executable, "-m"]
    if processes > 1:
        launcher += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    options = ["--config", str(config), "--experiment_dir", str(experiment_dir), *more]
    return [*launcher, "spear_lib.bin.pretrain", *options]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def run(arguments: list[str], expected_status: int = 0) -> str:
    """Standard error of the command; fails the test on another exit status."""
    result = subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=550)
    assert result.returncode == expected_status, result.stderr
    return result.stderr
