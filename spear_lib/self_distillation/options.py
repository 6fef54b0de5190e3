"""Options of self-distillation."""

from dataclasses import dataclass, field

from spear_lib.config import MAY_CHANGE, RESEED_MAY_CHANGE
from spear_lib.encoders.kinds import KINDS, EncoderConfig, EncoderOptions
from spear_lib.evaluation.validation_probe import ValidationProbeConfig
from spear_lib.features.fbank import SAMPLE_RATE
from spear_lib.self_distillation.data import SelfDistillationDataConfig
from spear_lib.self_distillation.objective import ObjectiveConfig
from spear_lib.self_distillation.with_tokens import TokenTermConfig
from spear_lib.training.options import TrainingConfig
from spear_lib.training.planning.machines import PlanConfig


@dataclass(frozen=True, kw_only=True)
class SelfDistillOptions(EncoderOptions):
    """Self-distillation of one encoder."""

    experiment_dir: str = field(metadata=MAY_CHANGE)
    """Folder for checkpoints, metrics.jsonl, log.txt and config.yaml; a run that is there already goes on."""
    valid_cuts: list[str] = field(default_factory=list, metadata=MAY_CHANGE)
    """Manifests of validation cuts; each is a set, named after its file."""
    encoder_type: str = "spidr"
    """spidr, of the settings in ``spidr`` (with spidr.heads_on output it is DinoSR); or zipformer, of those
    in ``encoder`` (ours, "SpidR-Z")."""
    data: SelfDistillationDataConfig = field(
        default_factory=SelfDistillationDataConfig, metadata=RESEED_MAY_CHANGE
    )
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    tokens: TokenTermConfig = field(default_factory=TokenTermConfig)
    """Only with data.token_fields: masked prediction of teacher tokens beside it (SPEAR's objective)."""
    start: str = field(default="", metadata=MAY_CHANGE)
    """A published checkpoint of SpidR or DinoSR whose student, teacher and codebooks training starts from."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    compile: bool = field(default=False, metadata=MAY_CHANGE)
    """Student and teacher by torch.compile; for encoder_type spidr. The first step waits minutes for it; a
    run that was gone on with equals the unbroken one to rounding, not to the bit."""
    dry_run: bool = field(default=False, metadata=MAY_CHANGE)
    """Train nothing: print what the run would take (memory, steps, GPU-hours)."""
    plan: PlanConfig = field(default_factory=PlanConfig, metadata=MAY_CHANGE)
    """The machines of dry_run."""
    probe: ValidationProbeConfig = field(default_factory=ValidationProbeConfig, metadata=MAY_CHANGE)

    def __post_init__(self) -> None:
        if self.encoder_type not in ("spidr", "zipformer"):
            raise ValueError(f"encoder_type is {self.encoder_type!r}; use spidr or zipformer")
        shortest = KINDS[self.encoder_type].encoder.min_samples / SAMPLE_RATE
        if self.data.min_duration < shortest:
            raise ValueError(
                f"data.min_duration is {self.data.min_duration} s, but audio shorter than {shortest} s gives "
                f"the encoder no frame: set it to {shortest} or more"
            )
        if self.compile and self.encoder_type != "spidr":
            raise ValueError(
                "compile is for encoder_type spidr: the draws of a Zipformer would make new graphs in every "
                "step, it has kernels of its own (training.kernels)"
            )
        if self.start and self.encoder_type != "spidr":
            raise ValueError("start is for encoder_type spidr: there is no published Zipformer of this kind")
        if self.start and (self.data.token_fields or self.objective.codebook_start == "data"):
            raise ValueError(
                "start brings codebooks and no token heads: leave data.token_fields empty and set "
                "objective.codebook_start to random, or the codes of the file would be thrown away"
            )

    @property
    def encoder_config(self) -> EncoderConfig:
        """The settings of the encoder to build."""
        return getattr(self, KINDS[self.encoder_type].option)
