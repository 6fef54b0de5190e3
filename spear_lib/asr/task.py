"""Fine-tuning for speech recognition as a task of the one training loop (paper §5.1; spec rnnt §6).

Legend: B utterances, N samples of audio, T encoder frames, S labels.
"""

import logging
from typing import Any

import torch
from torch import Tensor

from spear_lib.asr.description import DESCRIPTION
from spear_lib.asr.model import AsrModel
from spear_lib.asr.searcher import SearchConfig, Searcher
from spear_lib.asr.wer import align_words
from spear_lib.config import to_dict
from spear_lib.data.batch import Batch
from spear_lib.features.spec_augment import SpecAugmentConfig
from spear_lib.training.augmented_encoder import AugmentedEncoder
from spear_lib.training.task import Stats, StepClock, StepResult, Task
from spear_lib.transducer import select_backend

logger = logging.getLogger(__name__)


class AsrTask(Task[Batch]):
    """Losses of the model's heads, transducer and CTC, on transcripts.

    In training the features are augmented (SpecAugment, on the device) and the weights of the losses follow
    the step; in validation nothing is augmented and the final weights hold, so that validation losses of
    different steps can be compared.

    Args:
      model: encoder and head.
      units: text units; their size must be the model's vocabulary.
      spec_augment_config: SpecAugment of training.
      valid_wer: also recognise the validation sets (greedy search) and report their WER in percent.

    Raises:
      ValueError: the vocabulary of the model is not that of the units.
    """

    description = DESCRIPTION

    def __init__(
        self,
        model: AsrModel,
        units: Any,
        spec_augment_config: SpecAugmentConfig | None = None,
        valid_wer: bool = True,
    ) -> None:
        check_vocabulary(model.vocab_size, units)
        self.model, self.units, self.valid_wer = model, units, valid_wer
        self.augmented = AugmentedEncoder(spec_augment_config)
        self.step = 0
        self._ids: dict[str, list[int]] = {}

    def begin_step(self, batch: Batch, clock: StepClock) -> None:
        self.step = clock.step - 1  # the loss weights count from 0
        self.model.encoder.begin_step(clock.batch_count, clock.step_key, batch.keys, clock.gradient_scale)

    def after_backward(self) -> None:
        self.model.encoder.limit_gradients()

    def compute(self, batch: Batch) -> StepResult:
        model = self.model
        if batch.texts is None:
            raise ValueError("the batch has no transcripts; fine-tuning needs cuts with supervision texts")
        output = self.augmented(model.encoder, batch, model.training)
        targets = [self._encode(text) for text in batch.texts]
        lengths = usable_lengths(output.lengths, targets)
        counts = batch.samples_of_each or batch.num_samples.tolist()
        targets = learnable_targets([model.encoder.output_length(count) for count in counts], targets)
        step = self.step if model.training else model.config.warm_step
        losses = model.losses(output.encoder_out, lengths, targets, step, batch.keys)
        num_frames = losses["num_frames"]
        stats: Stats = {"loss": (losses["loss_sum"].detach(), num_frames)}
        stats |= {name: (value, num_frames) for name, value in losses.items() if name.endswith("_loss")}
        for name in ("dropped", "ctc_dropped"):
            if f"num_{name}" in losses:
                stats[name] = (losses[f"num_{name}"], len(targets))
        if self.valid_wer and not model.training:
            stats["wer"] = self._word_errors(output.encoder_out, output.lengths, batch.texts)
        return StepResult(losses["loss_sum"], num_frames, stats)

    def _encode(self, text: str) -> list[int]:
        if text not in self._ids:
            self._ids[text] = self.units.encode(text)
        return self._ids[text]

    def _word_errors(self, encoder_out: Tensor, lengths: Tensor, texts: list[str]) -> tuple[float, float]:
        """(100 x errors, reference words), so that the loop's sum / count is the WER in percent."""
        hypotheses = Searcher(self.model, self.units, SearchConfig("greedy"))(encoder_out, lengths)
        errors = words = 0
        for text, hypothesis in zip(texts, hypotheses):
            utterance = align_words("", text, self.units.decode(hypothesis.ids))
            errors += utterance.errors
            words += utterance.num_words
        return 100.0 * errors, float(words)

    def describe(self, values: dict[str, float]) -> str:
        parts = [f"loss {values['loss']:.4f}"]
        parts += [f"{name} {values[f'{name}_loss']:.4f}" for name in ("simple", "pruned", "ctc") if
                  f"{name}_loss" in values]  # fmt: skip
        if "wer" in values:
            parts.append(f"WER {values['wer']:.2f} % (greedy)")
        dropped = max(values.get("dropped", 0.0), values.get("ctc_dropped", 0.0))
        if dropped > 0:
            parts.append(f"dropped {100 * dropped:.2g} % (transcript longer than the audio)")
        return ", ".join(parts)

    def facts(self) -> dict[str, object]:
        model, config = self.model, self.model.config
        encoder = sum(p.numel() for p in model.encoder.parameters())
        total = sum(p.numel() for p in model.parameters())
        frame_ms = 1000 / model.encoder.frame_rate
        heads, transducer = [], {}
        if "transducer" in model.heads:
            heads.append(f"transducer, prune range {config.prune_range}")
            transducer = {"transducer": f"losses by {select_backend(config.backend)}"}
        if "ctc" in model.heads:
            heads.append(f"CTC with weight {config.ctc_loss_scale:g}")
        return {
            "encoder": f"{encoder:,} parameters, one frame every {frame_ms:g} ms",
            "head": f"{total - encoder:,} parameters: {' and '.join(heads)}",
            **transducer,
            "text units": f"{self.units.vocab_size} ({self.units.id})",
        }

    def identity(self) -> dict[str, Any]:
        transducer = to_dict(self.model.config)
        del transducer["backend"]  # says how it is computed, not what is trained
        return {
            "encoder_config": to_dict(self.model.encoder.config),
            "transducer_config": transducer,
            "units_id": self.units.id,
            "vocab_size": self.model.vocab_size,
        }


def check_vocabulary(vocab_size: int, units: Any) -> None:
    """Raises ValueError if a model with ``vocab_size`` outputs cannot have been made for ``units``."""
    if vocab_size != units.vocab_size:
        raise ValueError(
            f"the model has {vocab_size} output units, but the text units {units.id} are {units.vocab_size}; "
            "give the units that the model was trained with"
        )


def learnable_targets(num_frames: list[int], targets: list[list[int]]) -> list[list[int]]:
    """The targets, of which those that ``usable_lengths`` drops keep one unit: at its whole length an
    utterance that is not learnt would still set the width of the batch's lattice (72 words on 2 s: ten times
    the memory of eight clips)."""
    return [target if frames >= len(target) else target[:1] for frames, target in zip(num_frames, targets)]


def usable_lengths(lengths: Tensor, targets: list[list[int]]) -> Tensor:
    """Lengths (B,) with 0 for utterances that have fewer encoder frames than labels.

    The search emits at most one unit per frame, so such an utterance (a wrong transcript, mostly) cannot be
    learnt. Length 0 makes ``AsrModel.losses`` drop and count it, without the host waiting for the lengths.
    """
    needed = torch.tensor([len(target) for target in targets], dtype=lengths.dtype).to(lengths.device)
    return torch.where(lengths >= needed, lengths, 0)
