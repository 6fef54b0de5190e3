"""Options of the training loop, shared by every command that trains."""

from dataclasses import dataclass, field

from spear_lib.config import MAY_CHANGE, RESEED_MAY_CHANGE
from spear_lib.kernels import CHOICES
from spear_lib.training.resuming import EXACT, RESEED


@dataclass(frozen=True)
class AdamWConfig:
    """AdamW and its schedule (training.optimizer adamw); the defaults are SpidR's (spec spidr §7)."""

    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of momentum and of the squared gradient (reference)."""
    eps: float = 1e-6
    """Added to the root of the squared gradient (reference)."""
    weight_decay: float = 0.01
    """Decoupled decay of every parameter, norms and biases included (reference)."""
    max_norm: float = 10.0
    """Limit of the norm of the whole gradient, of the mean over frames (reference; 0: none)."""
    warmup_steps: int = 12_000
    """Steps in which the rate rises (reference)."""
    hold_steps: int = 188_000
    """Steps at the full rate (reference)."""
    decay_steps: int = 200_000
    """Steps in which it falls exponentially (reference)."""
    start_factor: float = 0.01
    """Of the rate, in the first step (reference)."""
    final_factor: float = 0.01
    """Of the rate, when it has fallen (reference)."""

    def __post_init__(self) -> None:
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"adamw.betas is {self.betas}: two numbers, each at least 0 and below 1")
        for name in ("weight_decay", "max_norm", "warmup_steps", "hold_steps", "decay_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"adamw.{name} is {getattr(self, name)}: it must be 0 or more")
        for name in ("start_factor", "final_factor"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ValueError(f"adamw.{name} is {getattr(self, name)}: a share above 0, at most 1")
        if self.eps <= 0.0:
            raise ValueError(f"adamw.eps is {self.eps}: it must be above 0")


@dataclass(frozen=True)
class TrainingConfig:
    """Optimiser, schedules, lengths and intervals."""

    max_steps: int = field(default=400_000, metadata=MAY_CHANGE)
    """Stop after this many optimiser steps (paper Table 9; 0: no limit). The only limit that is
    deterministic."""
    max_epochs: int = field(default=0, metadata=MAY_CHANGE)
    """Stop after this many passes over the training data (ours; 0: no limit)."""
    max_minutes: float = field(default=0.0, metadata=MAY_CHANGE)
    """Stop after this many minutes of training, resumes included (ours; 0: no limit; not deterministic)."""
    accumulate_batches: int = field(default=1, metadata=RESEED_MAY_CHANGE)
    """Global batches whose gradients are summed before one optimiser step (ours)."""
    precision: str = "auto"
    """fp32 | bf16 | fp16 | auto: bf16 where the GPU has it, fp32 on CPU (reference: fp16; spec optim §4)."""
    kernels: str = field(default="auto", metadata=MAY_CHANGE)
    """auto | fused | eager: fused kernels of Triton (auto: on CUDA, where Triton is installed; each is first
    compared with eager PyTorch, and is off if it differs), or PyTorch's own operations. The same numbers up
    to rounding (ours)."""
    device: str = field(default="auto", metadata=MAY_CHANGE)
    """cpu | cuda | auto: cuda where a GPU is visible."""
    seed: int = field(default=0, metadata=RESEED_MAY_CHANGE)
    """Seed of initialisation and of every keyed draw of the model (ours)."""

    optimizer: str = "scaled_adam"
    """scaled_adam: of the gradient of the sum over frames, with the Eden schedule (paper B.2); adamw: of that
    of the mean over all frames of the global batch, with the schedule of ``adamw`` (SpidR)."""
    adamw: AdamWConfig = field(default_factory=AdamWConfig)
    learning_rate: float = 0.045
    """Peak learning rate; that of ScaledAdam is relative to the size of each tensor (paper Table 9)."""
    lr_batches: float = 7500.0
    """Decay constant in optimiser steps (reference; spec optim §2)."""
    lr_hours: float = 25_000.0
    """Decay constant in nominal hours of audio over all ranks (reference: 25000 for Base; spec optim §2.2).
    """
    warmup_batches: float = 500.0
    """Steps of linear warm-up of the learning rate (reference)."""
    warmup_start: float = 0.5
    """Learning-rate factor at the first step (reference)."""
    clipping_scale: float = 2.0
    """Gradients above this many times the median norm are scaled down (reference; 0: off)."""
    optimizer_variant: str = "spear"
    """spear | master: which ScaledAdam (spec optim §1.6)."""
    lr_scales: dict[str, float] = field(default_factory=dict)
    """Module path -> factor on the learning rate of its parameters, e.g. {encoder: 0.1} (spec optim §2.3)."""
    freeze: list[str] = field(default_factory=list)
    """Module paths without updates during the first freeze_steps steps, e.g. [encoder] (spec optim §5)."""
    freeze_steps: int = 0
    """Optimiser steps for which ``freeze`` holds (reference: 2000 in fine-tuning; 0: never frozen)."""

    finish: list[str] = field(default_factory=list)
    """Module paths that are trained in the first finish_steps steps alone, e.g. [encoder.feature_extractor]
    (spec spidr §7; with adamw)."""
    finish_steps: int = 0
    """Optimiser steps after which ``finish`` stands still."""

    schedule_reference_seconds: float = 600.0
    """Batch of audio in seconds for which one step advances the model's schedules by 1 (reference)."""
    schedule_offset_batches: float = 0.0
    """Added to the schedule clock; fine-tuning uses 100000, which makes every schedule final (reference)."""

    average_period: int = 200
    """Steps between two snapshots of the running model average (reference; spec optim §3; 0: no average)."""
    log_interval: int = field(default=50, metadata=MAY_CHANGE)
    """Steps between two lines of the log and of metrics.jsonl (ours)."""
    valid_interval: int = field(default=3000, metadata=MAY_CHANGE)
    """Steps between two validations (ours; 0: only at the end)."""
    save_interval: int = field(default=4000, metadata=MAY_CHANGE)
    """Steps between two kept checkpoints (reference: 4000); also how much a killed run loses at most."""
    keep_checkpoints: int = field(default=10, metadata=MAY_CHANGE)
    """How many step-*.pt to keep; older ones are deleted (ours; 0: all)."""
    resume: str = field(default=EXACT, metadata=MAY_CHANGE)
    """exact | reseed: a run that is there already goes on with the same batches, or with the data as they are
    now in a new order, from the next epoch on (after manifests, batch size or seed were changed)."""
    memory_scan: str = field(default="auto", metadata=MAY_CHANGE)
    """auto | always | never: try the largest batch before the first step (auto: on a GPU). On a CPU it costs
    a step and reports the resident memory."""
    max_skipped_steps: int = field(default=20, metadata=MAY_CHANGE)
    """Stop when this many steps in a row were skipped for non-finite gradients (ours)."""

    def __post_init__(self) -> None:
        for name in ("accumulate_batches", "log_interval", "save_interval"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, it is {getattr(self, name)}")
        if not (self.max_steps or self.max_epochs or self.max_minutes):
            raise ValueError("nothing ends this run: set max_steps (or max_epochs or max_minutes) above 0")
        if self.optimizer not in ("scaled_adam", "adamw"):
            raise ValueError(f"optimizer must be scaled_adam or adamw, it is {self.optimizer!r}")
        if bool(self.finish) != bool(self.finish_steps):
            raise ValueError(
                f"finish names {self.finish} and finish_steps is {self.finish_steps}: give both, or neither"
            )
        if self.finish and self.optimizer != "adamw":
            raise ValueError(
                "finish needs optimizer adamw: ScaledAdam would go on moving the parameters by their momentum"
            )
        if self.precision not in ("auto", "fp32", "bf16", "fp16"):
            raise ValueError(f"precision must be auto, fp32, bf16 or fp16, it is {self.precision!r}")
        if self.kernels not in CHOICES:
            raise ValueError(
                f"kernels must be {', '.join(CHOICES[:-1])} or {CHOICES[-1]}, it is {self.kernels!r}"
            )
        if self.resume not in (EXACT, RESEED):
            raise ValueError(f"resume must be {EXACT} or {RESEED}, it is {self.resume!r}")
        if self.memory_scan not in ("auto", "always", "never"):
            raise ValueError(f"memory_scan must be auto, always or never, it is {self.memory_scan!r}")
        if self.freeze and not self.freeze_steps:
            raise ValueError(
                f"freeze names {self.freeze} but freeze_steps is 0: set how many steps, or drop freeze"
            )
