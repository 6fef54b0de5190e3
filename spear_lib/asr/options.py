"""Options of fine-tuning for speech recognition."""

from dataclasses import dataclass, field

from spear_lib.asr.data import AsrDataConfig
from spear_lib.asr.model import TransducerConfig
from spear_lib.config import MAY_CHANGE, RESEED_MAY_CHANGE
from spear_lib.training.finetuning import FinetuningOptions


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(FinetuningOptions):
    """What is fine-tuned, on what, and where the result goes."""

    units: str
    """Text units: bpe.model, the folder that holds it, or "characters" (the 29 labels of the CTC models)."""
    valid_wer: bool = field(default=True, metadata=MAY_CHANGE)
    """Recognise the validation set at every validation (greedy search)."""
    data: AsrDataConfig = field(default_factory=AsrDataConfig, metadata=RESEED_MAY_CHANGE)
    """Training data."""
    model: TransducerConfig = field(default_factory=TransducerConfig)
    """The heads: transducer, CTC or both."""
