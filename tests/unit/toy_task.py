"""A small task and data set for tests of the training loop: regression on keyed random vectors."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from spear_lib.runtime import keyed_random
from spear_lib.runtime.task_file import Measure, TaskDescription
from spear_lib.training.options import TrainingConfig
from spear_lib.training.task import StepClock, StepResult, Task

BATCH_SECONDS = 60.0


@dataclass
class ToyBatch:
    ids: list[str]
    keys: Tensor
    inputs: Tensor
    targets: Tensor
    audio_seconds: float = 15.0
    padded_seconds: float = 16.0
    counts: bool = True
    statistics: dict[str, tuple[float, int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device, non_blocking: bool = False) -> "ToyBatch":
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))


@dataclass
class ToyData:
    """``size`` utterances in global batches, reshuffled each epoch; batch number ``bad`` holds a NaN."""

    size: int = 20
    rank: int = 0
    world_size: int = 1
    bad: int = -1
    batch_size: int = 4
    seen: list[tuple[int, int]] = field(default_factory=list)
    fingerprint: str | None = None
    targets_fingerprint: str | None = None

    def num_batches(self, epoch: int) -> int:
        return math.ceil(self.size / self.batch_size)

    def epoch_batches(self, epoch: int, start_batch: int = 0) -> Iterator[ToyBatch]:
        order = keyed_random.generator("toy", epoch).permutation(self.size)
        for index in range(start_batch, self.num_batches(epoch)):
            self.seen.append((epoch, index))
            rows = order[self.batch_size * index :][: self.batch_size][self.rank :: self.world_size]
            ids = [f"utterance-{row}" for row in rows]
            inputs = torch.stack([keyed_random.uniform(torch.tensor(int(row)), 5, 6) for row in rows]) - 0.5
            targets = inputs @ torch.arange(18.0).reshape(6, 3).sin()
            if index == self.bad:
                inputs = inputs * float("nan")
            yield ToyBatch(ids, keyed_random.keys(epoch, ids=ids), inputs, targets)

    def batching(self, epoch: int) -> str:
        return f"batches of {self.batch_size}"

    def largest_batch(self, epoch: int) -> ToyBatch:
        return next(replace(self, seen=[]).epoch_batches(epoch))


class ToyModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 16)
        self.encoder_embed = nn.Linear(16, 16)
        self.output = nn.Linear(16, 3)

    def forward(self, inputs: Tensor, noise: Tensor) -> Tensor:
        return self.output(self.encoder_embed(self.encoder(inputs)).tanh() * noise)


TOY = TaskDescription(
    kind="toy", title="Toy", measure=Measure(name="loss", title="squared error", unit="", better="lower")
)


class ToyTask(Task[ToyBatch]):
    description = TOY

    def __init__(self, identity: str = "quantiser-a") -> None:
        torch.manual_seed(3)
        self.model = ToyModel()
        self.name = identity
        self.clocks: list[StepClock] = []
        self.keys: Tensor | None = None

    def begin_step(self, batch: ToyBatch, clock: StepClock) -> None:
        self.clocks.append(clock)
        self.keys = batch.keys ^ clock.step_key

    def compute(self, batch: ToyBatch) -> StepResult:
        noise = torch.ones(len(batch.ids), 16)
        if self.model.training:  # a keyed dropout, as the encoder's
            noise = (keyed_random.uniform(self.keys, 1, 16) > 0.1).float()
        error = (self.model(batch.inputs, noise) - batch.targets).square().sum()
        return StepResult(error, len(batch.ids), {"loss": (error.detach(), len(batch.ids))})

    def identity(self) -> dict[str, str]:
        return {"quantizer_ids": self.name}


class SumTask(Task):
    """The sum of a network's outputs as the loss: every byte of its step is known."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def compute(self, batch) -> StepResult:
        return StepResult(self.model(batch).sum(), 1)


def toy_config(**changes) -> TrainingConfig:
    """Settings for runs of a few steps on CPU."""
    values = {
        "max_steps": 12,
        "device": "cpu",
        "log_interval": 1,
        "valid_interval": 6,
        "save_interval": 5,
        "keep_checkpoints": 2,
        "average_period": 2,
        "warmup_batches": 2.0,
        "lr_hours": 10.0,
    }
    return TrainingConfig(**(values | changes))


def losses(experiment_dir, kind: str = "train") -> dict[int, float]:
    """Step -> loss of an experiment's metrics.jsonl."""
    from spear_lib.runtime.metrics_log import read_metrics

    lines = [line for line in read_metrics(experiment_dir / "metrics.jsonl") if line["kind"] == kind]
    assert len({line["step"] for line in lines}) == len(lines), "a step was reported twice"
    return {line["step"]: line["loss"] for line in lines}
