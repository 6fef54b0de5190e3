"""Options of fine-tuning for audio tagging."""

from dataclasses import dataclass, field

from spear_lib.config import RESEED_MAY_CHANGE
from spear_lib.tagging.data import TaggingDataConfig
from spear_lib.tagging.model import TaggingConfig
from spear_lib.training.finetuning import FinetuningOptions


@dataclass(frozen=True, kw_only=True)
class FinetuneTaggingOptions(FinetuningOptions):
    """What is fine-tuned, on what, and where the result goes."""

    classes: str
    """AudioSet's class_labels_indices.csv, or a list of the same form: index, mid, display_name."""
    data: TaggingDataConfig = field(default_factory=TaggingDataConfig, metadata=RESEED_MAY_CHANGE)
    """Training data."""
    model: TaggingConfig = field(default_factory=TaggingConfig)
    """The head."""
