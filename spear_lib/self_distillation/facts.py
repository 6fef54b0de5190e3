"""What the first screen of self-distillation says."""

from spear_lib.evaluation.validation_probe import ValidationProbe
from spear_lib.runtime.world import World
from spear_lib.self_distillation.data import SelfDistillationData
from spear_lib.self_distillation.options import SelfDistillOptions
from spear_lib.self_distillation.task import SelfDistillationTask
from spear_lib.training.optimisers import describe_rate
from spear_lib.training.precision import Precision


def run_facts(
    options: SelfDistillOptions,
    processes: World,
    task: SelfDistillationTask,
    train_data: SelfDistillationData,
    valid_data: dict[str, SelfDistillationData],
    probe: ValidationProbe,
    kernels: str,
) -> dict[str, object]:
    """Name -> what a reader must know about this run."""
    training, seconds = options.training, options.data.batch_seconds * options.training.accumulate_batches
    precision = Precision(training.precision, processes.device)
    steps = max(1, train_data.num_batches(0) // training.accumulate_batches)
    masking, teacher = options.data.masking, options.objective.teacher
    lines = {
        "precision": f"{precision.name} ({precision.reason})",
        "kernels": kernels + ("; blocks by torch.compile" if options.compile else ""),
        "processes": processes.world_size,
        **train_data.facts(),
        "epoch": f"about {steps} steps",
        "batch": f"{seconds:g} s of audio over all processes (reference: 237.5 s on each of 16 GPUs)",
        "learning rate": describe_rate(training),
        "mask": f"spans of {20 * masking.span} ms, probability {masking.probability:g}",
        "teacher": f"{teacher.schedule}, moves by {teacher.weight(1):.3g} of the distance after step 1, "
        f"{teacher.weight(max(1, training.max_steps)):.3g} at the end",
        **task.facts(),
        "writes to": options.experiment_dir,
    }
    for name, data in valid_data.items():
        lines[f"validation {name}"] = f"{data.num_cuts} cuts, {data.total_seconds / 60:.1f} min"
    return lines | probe.facts()
