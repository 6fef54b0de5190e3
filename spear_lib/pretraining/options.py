"""Options of pre-training."""

from dataclasses import dataclass, field

from spear_lib.config import MAY_CHANGE, RESEED_MAY_CHANGE
from spear_lib.encoders.kinds import KINDS, EncoderConfig, EncoderOptions
from spear_lib.evaluation.validation_probe import ValidationProbeConfig
from spear_lib.pretraining import ObjectiveConfig
from spear_lib.pretraining.data import PretrainingDataConfig
from spear_lib.pretraining.initial import config_of
from spear_lib.pretraining.plan import PretrainingPlanConfig
from spear_lib.training.options import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class PretrainOptions(EncoderOptions):
    """Pre-training of one encoder."""

    experiment_dir: str = field(metadata=MAY_CHANGE)
    """Folder for checkpoints, metrics.jsonl, log.txt and config.yaml; a run that is there already goes on."""
    valid_cuts: list[str] = field(default_factory=list, metadata=MAY_CHANGE)
    """Manifests of validation cuts with the same token fields; each is a set, named after its file."""
    encoder_type: str = "zipformer"
    """zipformer, of the settings in ``encoder``; or transformer, of those in ``transformer`` (paper F.3)."""
    init_encoder: str = field(default="", metadata=MAY_CHANGE)
    """Go on from this encoder instead of random weights: a folder or checkpoint that load_encoder reads, ours
    or published. Its shape holds; balancers, dropout and the like follow ``encoder``. Its schedules are at
    their end unless training.schedule_offset_batches says otherwise (1: nearly as from random weights)."""
    data: PretrainingDataConfig = field(default_factory=PretrainingDataConfig, metadata=RESEED_MAY_CHANGE)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    probe: ValidationProbeConfig = field(default_factory=ValidationProbeConfig, metadata=MAY_CHANGE)
    dry_run: bool = field(default=False, metadata=MAY_CHANGE)
    """Train nothing: print what the run would take on the machines of ``plan`` (memory, steps, hours)."""
    plan: PretrainingPlanConfig = field(default_factory=PretrainingPlanConfig, metadata=MAY_CHANGE)

    def __post_init__(self) -> None:
        if self.encoder_type not in KINDS:
            raise ValueError(f"encoder_type is {self.encoder_type!r}; use {' or '.join(KINDS)}")
        masking = self.data.masking
        if self.objective.alpha == 1.0 and not (masking.enabled and masking.time_probability > 0):
            raise ValueError(
                "objective.alpha is 1, so only masked frames count, and no frame is masked: the loss would "
                "be 0. Lower alpha, or set data.masking.enabled and data.masking.time_probability"
            )
        reads_waveforms = KINDS[self.encoder_type].encoder.input_kind == "waveform"
        if reads_waveforms and masking.enabled and masking.channel_probability > 0:
            raise ValueError(
                f"a {self.encoder_type} reads waveforms and has no mel bins to mask: set "
                "data.masking.channel_probability to 0"
            )

    @property
    def encoder_config(self) -> EncoderConfig:
        """The settings of the encoder to build."""
        return config_of(self, getattr(self, KINDS[self.encoder_type].option))
