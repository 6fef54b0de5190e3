"""What the first screen of pre-training says."""

from typing import Any

from spear_lib.evaluation.validation_probe import ValidationProbe
from spear_lib.pretraining.data import PretrainingData
from spear_lib.pretraining.task import PretrainingTask
from spear_lib.runtime.world import World
from spear_lib.training.metrics import describe_batch, describe_length
from spear_lib.training.optimisers import describe_rate
from spear_lib.training.precision import Precision


def run_facts(
    options: Any,
    processes: World,
    task: PretrainingTask,
    train_data: PretrainingData,
    valid_data: dict[str, PretrainingData],
    probe: ValidationProbe,
    kernels: str,
) -> dict[str, object]:
    """Name -> what a reader must know about this run; ``options`` are PretrainOptions, ``kernels``
    is the line of ``use_kernels``."""
    training, seconds = options.training, options.data.batch_seconds * options.training.accumulate_batches
    precision = Precision(training.precision, processes.device)
    lines = {
        "precision": f"{precision.name} ({precision.reason})",
        "kernels": kernels,
        "processes": processes.world_size,
        **train_data.facts(),
        "batch": describe_batch(seconds, processes.world_size),
        "length": describe_length(training, train_data.num_batches(0)),
        "learning rate": describe_rate(training),
        **task.facts(),
        "writes to": options.experiment_dir,
    }
    for name, data in valid_data.items():
        lines[f"validation {name}"] = f"{data.num_cuts} cuts, {data.total_seconds / 60:.1f} min"
    return lines | probe.facts()
