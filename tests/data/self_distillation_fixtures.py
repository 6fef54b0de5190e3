"""Runs of self_distill on the corpus of pretraining_fixtures."""

from pathlib import Path

import pretraining_fixtures
import torch
import yaml

from spear_lib.runtime.metrics_log import read_metrics

SPIDR = {
    "conv_channels": 8,
    "hidden_dim": 16,
    "num_layers": 3,
    "num_heads": 2,
    "feedforward_dim": 24,
    "position_kernel": 10,
    "position_depth": 2,
    "position_groups": 4,
    "num_codebooks": 2,
    "codebook_size": 8,
}
ADAMW = {"warmup_steps": 2, "hold_steps": 4, "decay_steps": 4}


def write_config(folder: Path, train: Path, valid: Path, name: str = "spidr", **changes) -> Path:
    """A configuration of self_distill for these cuts, ``folder/name.yaml``; ``changes`` by group."""
    options = {
        "valid_cuts": [str(valid)],
        "spidr": SPIDR,
        "data": {"train_cuts": [str(train)], "batch_seconds": 8.0, "num_workers": 0},
        "objective": {"codebook_size": 8, "teacher": {"start_decay": 0.9, "timescale": 4.0}},
        "probe": {"every": 0},
        "training": {
            "optimizer": "adamw",
            "learning_rate": 0.003,
            "adamw": ADAMW,
            "finish": ["encoder.feature_extractor", "encoder.feature_projection"],
            "finish_steps": 4,
            "max_steps": 8,
            "device": "cpu",
            "log_interval": 1,
            "valid_interval": 4,
            "save_interval": 2,
            "average_period": 2,
        },
    }
    for group, values in changes.items():
        options[group] = {**options.get(group, {}), **values} if isinstance(values, dict) else values
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(options))
    return path


def command(config: Path, experiment_dir: Path, *more: str, processes: int = 1) -> list[str]:
    """Command line of self_distill, through torchrun for several processes."""
    line = pretraining_fixtures.command(config, experiment_dir, *more, processes=processes)
    return [word.replace("spear_lib.bin.pretrain", "spear_lib.bin.self_distill") for word in line]


def reported(experiment_dir: Path) -> dict[tuple[str, int], dict[str, float]]:
    """(kind, step) -> everything that must repeat, without times."""
    timing = {"seconds", "audio_seconds_per_second"}
    lines = read_metrics(experiment_dir / "metrics.jsonl")
    values = {(line["kind"], line["step"]): {k: line[k] for k in line.keys() - timing} for line in lines}
    assert len(values) == len(lines), "a line was written twice"
    return values


def state(experiment_dir: Path, name: str = "last.pt") -> dict:
    return torch.load(experiment_dir / "checkpoints" / name, weights_only=True)
