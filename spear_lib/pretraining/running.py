"""The end of every command that trains an encoder from audio: the probe, the first screen, the loop."""

from collections.abc import Callable, Mapping
from typing import Any

from spear_lib.data.datasets import CutData
from spear_lib.data.manifests import set_name
from spear_lib.evaluation.validation_probe import ValidationProbe
from spear_lib.features.fbank import SAMPLE_RATE
from spear_lib.runtime.log import first_screen
from spear_lib.runtime.world import World
from spear_lib.training.kernels import use_kernels
from spear_lib.training.loop import train
from spear_lib.training.task import Task


def train_encoder(
    title: str,
    options: Any,
    processes: World,
    task: Task,
    train_data: CutData,
    valid_data: dict[str, CutData],
    facts: Callable[..., dict[str, object]],
    starts: Mapping[str, object] | None = None,
) -> None:
    """Trains, while a probe watches the validation sets.

    Args:
      title: of the first screen.
      options: with ``data``, ``training``, ``probe``, ``valid_cuts`` and ``experiment_dir``.
      task: its model has an ``encoder``.
      facts: (options, processes, task, train_data, valid_data, probe, kernels) -> lines of the first screen.
      starts: lines before them.
    """
    encoder = task.model.encoder
    shortest = encoder.min_samples / SAMPLE_RATE
    probe = ValidationProbe(
        encoder,
        {set_name(path): path for path in options.valid_cuts},
        options.probe,
        processes,
        (max(options.data.min_duration, shortest), options.data.max_duration),
    )
    kernels = use_kernels(options.training, processes.device, encoder, task.kernels)
    if processes.is_main:
        lines = facts(options, processes, task, train_data, valid_data, probe, kernels)
        first_screen(title, {**(starts or {}), **lines})
    train(
        task,
        train_data,
        valid_data,
        options.training,
        options.experiment_dir,
        batch_seconds=options.data.batch_seconds,
        world=processes,
        options=options,
        probe=probe,
    )
