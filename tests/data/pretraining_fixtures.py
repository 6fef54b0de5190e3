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

from spear_lib.data.manifests import save_cuts
from spear_lib.runtime import keyed_random
from spear_lib.tokens.fields import TokenFacts, attach_tokens, write_store, write_store_facts

REPOSITORY = Path(__file__).parents[2]
FIELD, AUDIO_FIELD = "tones_cb2", "loudness_cb3"
NUM_TONES = 6
FRAME = 320  # samples of a token frame, 50 Hz


def make_corpus(
    folder: Path,
    num_cuts: int,
    name: str = "train",
    quantizer_id: str = "tones-1",
    audio: bool = False,
    fields: tuple[str, ...] = (FIELD,),
) -> Path:
    """Cuts of 0.7 to 1.6 s with tokens; returns their manifest.

    Args:
      audio: whether their domain is audio rather than speech.
      fields: FIELD, 50 Hz tokens of 2 codebooks (tone now, tone before), and AUDIO_FIELD, 25 Hz tokens of 3
        (the tone, whether it is high, whether it is even).
    """
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
    slow = [np.stack([c[::2, 0], c[::2, 0] // 3, c[::2, 0] % 2], 1) for c in codes]
    for field, rate, arrays, quantizer in (
        (FIELD, 50.0, codes, quantizer_id),
        (AUDIO_FIELD, 25.0, slow, "loudness-1"),
    ):
        if field not in fields:
            continue
        size, width = 500.0 / rate, arrays[0].shape[1]
        facts = TokenFacts(field, field, quantizer, rate, size, width, NUM_TONES, name)
        store = folder / "tokens" / field / name
        write_store(store, facts, cuts, arrays)
        write_store_facts(store, facts, {})
        cuts = list(attach_tokens(cuts, store))
    if audio:
        cuts = [cut.with_custom("domain", "audio") for cut in cuts]
    manifest = folder / f"tiny_cuts_{name}.jsonl.gz"
    save_cuts(cuts, manifest)
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


def write_two_domain_config(folder: Path, strategy: str, **training) -> Path:
    """A made-up corpus of speech (FIELD) and audio (both fields), and its configuration."""
    both = (FIELD, AUDIO_FIELD)
    speech_fields = both if strategy == "joint" else (FIELD,)
    audio_fields = (AUDIO_FIELD,) if strategy == "disjoint" else both
    corpora = {
        name: make_corpus(folder, count, name, audio=audio, fields=audio_fields if audio else speech_fields)
        for name, count, audio in (
            ("speech", 8, False),
            ("audio", 8, True),
            ("speech-dev", 2, False),
            ("audio-dev", 2, True),
        )
    }
    path = write_config(folder, corpora["speech"], corpora["speech-dev"], **training)
    options = yaml.safe_load(path.read_text())
    options["data"]["train_cuts"].append(str(corpora["audio"]))
    options["valid_cuts"].append(str(corpora["audio-dev"]))
    options["data"]["token_fields"] = list(both)
    options["objective"] = {"strategy": strategy, "audio_weight": 0.5}
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
