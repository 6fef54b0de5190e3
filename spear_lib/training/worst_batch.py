"""Does the largest batch fit into memory? Asked before the first step instead of in the middle of a night
(ours).

One forward and backward pass on the batch of the epoch that needs the most, with the number format of
training. Nothing stays of it: gradients are dropped, buffers and random states are put back, the optimiser
and the schedules do not see it. The memory that the optimiser will ask for at its first step is held
meanwhile.
"""

import logging
import resource
import sys

import torch
from torch import Tensor, nn

from spear_lib.runtime.world import World
from spear_lib.training.interfaces import TrainingBatch
from spear_lib.training.precision import Precision
from spear_lib.training.task import StepClock, Task

logger = logging.getLogger(__name__)

ADAM_STATES = 2
"""Numbers that ScaledAdam keeps for each weight: the momentum of the update and the second moment."""


def wanted(option: str, device: torch.device) -> bool:
    """Whether ``training.memory_scan`` asks for the scan: ``auto`` does on GPUs, where running out of memory
    ends a run and reserving the largest blocks first also avoids fragments."""
    return option == "always" or (option == "auto" and device.type == "cuda")


def scan_memory(
    task: Task,
    batch: TrainingBatch,
    epoch: int,
    precision: Precision,
    world: World,
    clock: StepClock,
    optimizer: torch.optim.Optimizer,
) -> float:
    """Forward and backward on this rank's share of the largest batch of ``epoch``; all ranks call it.

    Args:
      batch: the share, still on the host.
      clock: where training is, as the next step would see it.

    Returns:
      The peak in GB (10^9 bytes): of the device's allocations on a GPU, of the process on a CPU.

    Raises:
      RuntimeError: it does not fit on some rank; says what to change.
    """
    if not len(batch):  # unusable cuts: the data report them when their turn comes
        return 0.0
    seconds = batch.padded_seconds / len(batch)
    words = f"{len(batch)} utterances of up to {seconds:.1f} s, {len(batch) * seconds:.0f} s with padding"
    if world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(world.device)
    failure = ""
    try:
        _forward_and_backward(task, batch, precision, world, clock, optimizer)
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        failure = str(error).splitlines()[0]
    finally:
        for parameter in task.model.parameters():
            parameter.grad = None
    if world.any(bool(failure)):
        if world.device.type == "cuda":
            torch.cuda.empty_cache()
        raise RuntimeError(
            f"the largest batch of epoch {epoch} ({words} on rank {world.rank}) does not fit into the memory "
            f"of {_describe_device(world.device)} ({failure or 'another rank ran out'}). Lower "
            "data.batch_seconds and raise training.accumulate_batches by the same factor (the same step in "
            "smaller pieces), set encoder.checkpoint_activations to true (about half the activations, a "
            "third more time), lower data.max_duration, or use more processes"
        )
    peak = _peak_gb(world.device)
    if world.is_main:
        logger.info(
            "memory scan: the largest batch of epoch %d (%s on this process) peaks at %.2f GB of %s",
            epoch,
            words,
            peak,
            _describe_device(world.device),
        )
    return peak


def _forward_and_backward(
    task: Task,
    batch: TrainingBatch,
    precision: Precision,
    world: World,
    clock: StepClock,
    optimizer: torch.optim.Optimizer,
) -> None:
    buffers = {name: buffer.clone() for name, buffer in task.model.named_buffers()}
    devices = [world.device] if world.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        held = _optimizer_memory(task.model, optimizer)
        task.model.train()
        batch = batch.to(world.device)
        task.begin_step(batch, clock)
        with precision.autocast():
            result = task.compute(batch)
        (result.loss_sum * world.world_size).backward()
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
        del held
    for name, buffer in task.model.named_buffers():
        buffer.copy_(buffers[name])


def _optimizer_memory(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Room for the optimiser's state, where it does not exist yet."""
    if optimizer.state:
        return []
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [torch.empty_like(parameter) for parameter in trained for _ in range(ADAM_STATES)]


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _peak_gb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _describe_device(device: torch.device) -> str:
    if device.type != "cuda":
        return "this process (resident memory)"
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name} with {properties.total_memory / 1e9:.1f} GB"
