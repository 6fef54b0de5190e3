"""What a step of pre-training costs: the model, its tokens and a batch that have no memory (ours)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spear_lib.data.batch import Batch
from spear_lib.encoders.kinds import EncoderConfig, build_encoder
from spear_lib.features.fbank import SAMPLE_RATE, fbank_length
from spear_lib.features.masking import MaskingConfig, channel_mask, time_mask
from spear_lib.pretraining import ObjectiveConfig, PretrainingModel, PretrainingTask, TokenField
from spear_lib.training.options import TrainingConfig
from spear_lib.training.planning.machines import PlanConfig
from spear_lib.training.planning.memory import Pretence, StepMemory
from spear_lib.training.planning.step import Shape, count_task


@dataclass(frozen=True)
class PretrainingPlanConfig(PlanConfig):
    """The machines that a dry run plans for, and the tokens where no cuts describe them."""

    codebooks: list[int] = field(default_factory=list)
    """Codebooks of each teacher's tokens, where no training cuts say it; default: 16 (speech teacher), then 8
    (audio teacher) (paper §4)."""
    token_rates: list[float] = field(default_factory=list)
    """Frame rates of these tokens in Hz; default: 50, then 25."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.codebooks) != len(self.token_rates):
            raise ValueError(
                f"plan.codebooks has {len(self.codebooks)} values and plan.token_rates "
                f"{len(self.token_rates)}: give one of each for every teacher, or neither"
            )


def assumed_fields(objective: ObjectiveConfig, plan: PretrainingPlanConfig | None = None) -> list[TokenField]:
    """The token fields of ``plan`` where no corpus describes them, as many as the strategy needs."""
    plan = plan or PretrainingPlanConfig()
    count = 1 if objective.strategy == "single" else 2
    codebooks = plan.codebooks or [16, 8][:count]
    rates = plan.token_rates or [50.0, 25.0][:count]
    if len(codebooks) != count:
        raise ValueError(
            f"objective.strategy {objective.strategy} has {count} token fields and plan.codebooks describes "
            f"{len(codebooks)}: give one number for each"
        )
    names = ["speech_tokens", "audio_tokens"]
    return [
        TokenField(name, number, 256, float(rate), 500.0 / rate, "assumed", "assumed")
        for name, number, rate in zip(names, codebooks, rates)
    ]


def pretend_batch(
    pretence: Pretence, shape: Shape, fields: Sequence[TokenField], masking: MaskingConfig, strategy: str
) -> Batch:
    """A batch of ``shape`` whose waveforms have no memory; every frame has a target."""
    number, samples = shape.utterances, round(shape.seconds * SAMPLE_RATE)
    lengths, keys = torch.full((number,), samples), torch.arange(number)
    tokens: dict[str, Tensor] = {}
    for each in fields:
        frames = math.ceil(shape.seconds * each.frame_rate)
        tokens[each.name] = torch.zeros(number, frames, each.num_codebooks, dtype=torch.int64)
    batch = Batch(
        ids=[str(index) for index in range(number)],
        keys=keys,
        waveforms=pretence.empty(number, samples),
        num_samples=lengths,
        tokens=tokens,
        # Where both teachers score audio cuts, these are the costliest.
        audio=torch.full((number,), strategy in ("joint", "asymmetrical")),
    )
    if masking.enabled:
        batch.time_mask = time_mask(
            fbank_length(lengths), keys, masking.time_probability, masking.time_span, masking.time_min_spans
        )
        batch.channel_mask = channel_mask(keys, masking.channel_probability, masking.channel_span)
    return batch


def count_pretraining_step(
    encoder: EncoderConfig,
    fields: Sequence[TokenField],
    objective: ObjectiveConfig,
    masking: MaskingConfig,
    training: TrainingConfig,
    shape: Shape,
    precision: str,
    processes: int,
    for_accelerator: bool = True,
    batch_count: float = 0.0,
) -> tuple[StepMemory, int, int]:
    """The cost of a pre-training step, and the parameters of the encoder and of the heads.

    Args:
      encoder: real sizes; the model has no memory.
      shape: of the batch.
      others: as for ``count_task``.
    """
    pretence = Pretence()
    task = pretence.task(lambda: task_of(encoder, fields, objective))
    memory = count_task(
        task,
        pretend_batch(pretence, shape, fields, masking, objective.strategy),
        training,
        precision,
        processes,
        for_accelerator,
        batch_count,
    )
    return memory, *part_sizes(task)


def task_of(
    encoder: EncoderConfig, fields: Sequence[TokenField], objective: ObjectiveConfig
) -> PretrainingTask:
    """A task with a new model."""
    fields = list(fields)
    return PretrainingTask(PretrainingModel(build_encoder(encoder), fields), fields, objective)


def part_sizes(task: PretrainingTask) -> tuple[int, int]:
    """Parameters of the encoder and of the heads."""
    encoder, heads = (
        sum(p.numel() for p in part.parameters()) for part in (task.model.encoder, task.model.heads)
    )
    return encoder, heads
