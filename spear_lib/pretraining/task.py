"""Pre-training: an encoder predicts the tokens of speech and audio teachers from a masked input (paper §3.2).

Legend: B utterances, N samples of audio, T student frames, P channels of the encoder's output.
"""

import math
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from spear_lib.config import to_dict
from spear_lib.data.batch import PADDING, Batch
from spear_lib.data.domains import AUDIO, DOMAINS, SPEECH
from spear_lib.pretraining.alignment import align_targets, frames_per_student_frame
from spear_lib.pretraining.description import DESCRIPTION
from spear_lib.pretraining.fields import TokenField
from spear_lib.pretraining.heads import HEADS, MaskedPredictionHead
from spear_lib.pretraining.objective import (
    ObjectiveConfig,
    Term,
    frame_weights,
    masked_prediction_stats,
)
from spear_lib.pretraining.validation_stats import codebook_stats, unigram_entropies
from spear_lib.training.task import Stats, StepClock, StepResult, Task


class PretrainingModel(nn.Module):
    """Encoder and one prediction head per token field; state-dict names start with ``encoder.`` and
    ``heads.``."""

    def __init__(self, encoder: nn.Module, fields: list[TokenField]) -> None:
        super().__init__()
        if not fields:
            raise ValueError("pre-training needs at least one token field: name it in data.token_fields")
        self.encoder = encoder
        self.heads = prediction_heads(encoder, fields)


def prediction_heads(encoder: nn.Module, fields: list[TokenField]) -> nn.ModuleDict:
    """A new head for each token field."""
    heads = nn.ModuleDict()
    for field in fields:
        group = frames_per_student_frame(field.frame_rate, encoder.frame_rate)
        heads[field.name] = MaskedPredictionHead(
            encoder.output_dim, group * field.num_codebooks, field.codebook_size
        )
    return heads


class PretrainingTask(Task[Batch]):
    """Eq. 1 summed over teachers as the strategy says.

    Args:
      model: PretrainingModel of the same fields.
      fields: the tokens to predict; of two teachers the speech teacher's first.
      objective: strategy, alpha, alignment and lambda.
    """

    description = DESCRIPTION
    kernels = (HEADS,)

    def __init__(
        self, model: PretrainingModel, fields: list[TokenField], objective: ObjectiveConfig | None = None
    ) -> None:
        self.model, self.fields = model, fields
        self.objective = objective or ObjectiveConfig()
        self.terms = self.objective.terms([field.name for field in fields])

    def begin_step(self, batch: Batch, clock: StepClock) -> None:
        self.model.encoder.begin_step(clock.batch_count, clock.step_key, batch.keys, clock.gradient_scale)

    def after_backward(self) -> None:
        self.model.encoder.limit_gradients()

    def compute(self, batch: Batch) -> StepResult:
        encoder = self.model.encoder
        output = encoder.extract(batch.waveforms, batch.num_samples, batch.time_mask, batch.channel_mask)
        # The heads take the encoder's output in float32; only their matrix products follow autocast (spec
        # optim §4).
        return self.losses(output.encoder_out.float(), output.lengths, batch)

    def losses(self, encoder_out: Tensor, lengths: Tensor, batch: Batch) -> StepResult:
        """encoder_out (B, T, P), lengths (B,) -> the weighted sum over teachers, cuts and frames."""
        if batch.time_mask is None:
            masked = torch.zeros(encoder_out.shape[:2], dtype=torch.bool, device=encoder_out.device)
        else:
            masked = self.model.encoder.masked_frames(batch.time_mask, encoder_out.shape[1])
        audio = torch.zeros_like(lengths, dtype=torch.bool) if batch.audio is None else batch.audio
        total, stats = encoder_out.new_zeros(()), {}
        for field, term in zip(self.fields, self.terms):
            weighted, field_stats = self._score(field, term, encoder_out, lengths, masked, audio, batch)
            total = total + term.weight * weighted
            stats.update({self._prefix(field) + name: pair for name, pair in field_stats.items()})
        stats["loss"] = (total.detach(), lengths.sum())
        return StepResult(total, lengths.sum(), stats)

    def _score(
        self,
        field: TokenField,
        term: Term,
        encoder_out: Tensor,
        lengths: Tensor,
        masked: Tensor,
        audio: Tensor,
        batch: Batch,
    ) -> tuple[Tensor, Stats]:
        """Eq. 1 of one teacher on the cuts that the strategy gives it: S or A, without lambda.

        Where there are none, the head still runs, on no frames: DDP then finds a gradient of zero for it.

        Args:
          lengths: (B,) valid frames of ``encoder_out`` (B, T, P).
          masked: (B, T) bool.
          audio: (B,) bool, the cut's domain.
        """
        encoder, num_frames = self.model.encoder, encoder_out.shape[1]
        tokens = batch.tokens.get(field.name)
        if tokens is None:  # no cut of the batch has this teacher's tokens
            tokens = batch.keys.new_zeros(len(lengths), 0, field.num_codebooks)
        targets = align_targets(
            tokens,
            field.frame_rate,
            field.first_frame_center_ms,
            num_frames,
            encoder.frame_rate,
            encoder.first_frame_center_ms,
            self.objective.align,
            lengths,
        )
        chosen_cuts = torch.where(audio, AUDIO in term.domains, SPEECH in term.domains)
        scored = (targets >= 0).any(-1) & chosen_cuts.unsqueeze(1)
        hidden, chosen, hid = encoder_out[scored], targets[scored], masked[scored]
        weights = frame_weights(hid, self.objective.alpha, chosen.shape[1])
        weighted, loss, correct = self.model.heads[field.name](hidden, chosen, weights)

        validating = not self.model.training
        stats = masked_prediction_stats(loss, correct, chosen, hid)
        if validating:
            stats |= codebook_stats(loss, correct, chosen, hid, field.codebook_size)
        if validating or len(self.fields) > 1:
            from_audio = audio.unsqueeze(1).expand_as(scored)[scored]
            for domain, rows in ((SPEECH, ~from_audio), (AUDIO, from_audio)):
                only = chosen.masked_fill(~rows.unsqueeze(1), PADDING)
                rows = rows.unsqueeze(1)
                by_domain = masked_prediction_stats(loss * rows, correct & rows, only, hid)
                if validating:
                    by_domain |= codebook_stats(loss, correct, only, hid, field.codebook_size)
                stats |= {f"{domain}/{name}": pair for name, pair in by_domain.items()}
        # Teacher and student frames of the same audio may differ by framing at the end, not by more. A cut
        # without any target is a token-mixed one, which is scored on the mixed field alone.
        expected = torch.arange(num_frames, device=lengths.device) < lengths.unsqueeze(1)
        expected = expected & scored.any(1, keepdim=True)
        stats["frames_without_target"] = ((expected & ~scored).sum(), expected.sum())
        return weighted, stats

    def _prefix(self, field: TokenField) -> str:
        """What the names of a field's statistics begin with."""
        return "" if len(self.fields) == 1 else f"{field.name}/"

    def summarise(self, totals: Stats) -> dict[str, float]:
        """Sum / count; codebook counts one value each; token histograms their unigram entropies, with the
        chance level beside them.

        The domains of a single token field are told apart where both were seen.
        """
        values: dict[str, float] = {}
        one_domain = len(self.fields) == 1 and not all(_seen(totals, domain) for domain in DOMAINS)
        for name, (total, count) in sorted(totals.items()):
            if one_domain and name.startswith(tuple(f"{domain}/" for domain in DOMAINS)):
                continue
            if name.endswith("unigram_entropy"):
                histogram = torch.as_tensor(total)
                if not histogram.any():
                    continue
                entropies = unigram_entropies(histogram)
                values[name] = float(entropies.mean())
                values[name.removesuffix("unigram_entropy") + "chance"] = math.log(histogram.shape[1])
                total, count, name = entropies, torch.ones_like(entropies), f"{name}_codebook"
            if isinstance(total, Tensor) and total.dim() == 1:
                for index, (of_codebook, seen) in enumerate(zip(total.tolist(), count.tolist())):
                    if seen > 0:
                        values[f"{name}_{index:02d}"] = of_codebook / seen
            elif float(count) > 0:
                values[name] = float(total) / float(count)
        return values

    def describe(self, values: dict[str, float]) -> str:
        parts = []
        if len(self.fields) > 1 and "loss" in values:
            parts.append(f"loss {values['loss']:.3f} per frame")
        for field in self.fields:
            prefix = self._prefix(field)
            parts.append(_describe(values, prefix, field.codebook_size))
            by_domain = [f"{prefix}{domain}/" for domain in DOMAINS]
            if all(f"{name}unigram_entropy" in values for name in by_domain):
                parts += [_describe(values, name, field.codebook_size) for name in by_domain]
        return "; ".join(part for part in parts if part)

    def facts(self) -> dict[str, object]:
        encoder = self.model.encoder
        count = sum(p.numel() for p in encoder.parameters())
        heads = sum(p.numel() for p in self.model.heads.parameters())
        facts: dict[str, object] = {
            "encoder": f"{count:,} parameters, {encoder.frame_rate:g} Hz, plus {heads:,} in the prediction "
            "heads"
        }
        for field, term in zip(self.fields, self.terms):
            facts[f"tokens {field.name}"] = (
                f"{field.num_codebooks} codebooks x {field.codebook_size} at {field.frame_rate:g} Hz, "
                f"quantiser {field.quantizer_id}, teacher {field.teacher_id}; weight {term.weight:g} on "
                f"{' and '.join(term.domains)} cuts; guessing costs ln {field.codebook_size} = "
                f"{math.log(field.codebook_size):.3f} nats per codebook"
            )
        return facts

    def identity(self) -> dict[str, Any]:
        return {
            "encoder_config": to_dict(self.model.encoder.config),
            "quantizer_ids": {field.name: field.quantizer_id for field in self.fields},
            "token_fields": [asdict(field) for field in self.fields],
        }


def _seen(totals: Stats, domain: str) -> bool:
    """Whether frames of this domain were scored."""
    pairs = (totals.get(f"{domain}/{name}_loss") for name in ("masked", "unmasked"))
    return any(pair is not None and float(pair[1]) > 0 for pair in pairs)


def _describe(values: dict[str, float], prefix: str, codebook_size: int) -> str:
    """The losses whose names begin with ``prefix``; empty where no cut of this field or domain was seen."""
    chosen = {name: values.get(prefix + name) for name in ("masked_loss", "unmasked_loss")}
    text = ", ".join(f"{name} {value:.3f}" for name, value in chosen.items() if value is not None)
    if not text:
        return ""
    entropy, accuracy = values.get(prefix + "unigram_entropy"), values.get(prefix + "masked_accuracy")
    beside = f"chance {math.log(codebook_size):.3f}"
    beside += f", unigram {entropy:.3f}" if entropy is not None else ""
    right = f", masked accuracy {100 * accuracy:.1f} %" if accuracy is not None else ""
    return f"{prefix}{text} ({beside}){right}"
