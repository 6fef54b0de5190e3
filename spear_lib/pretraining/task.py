"""Pre-training: an encoder predicts the tokens of speech and audio teachers from a masked input (paper §3.2).

Legend: B utterances, N samples of audio, T student frames, P channels of the encoder's output.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spear_lib.config import to_dict
from spear_lib.pretraining.alignment import align_targets, frames_per_student_frame
from spear_lib.pretraining.heads import MaskedPredictionHead
from spear_lib.pretraining.objective import ObjectiveConfig, frame_weights, masked_prediction_stats
from spear_lib.training.task import Stats, StepClock, StepResult, Task


@dataclass(frozen=True)
class TokenField:
    """What is known about the tokens of one custom field of the cuts (from the token store's metadata)."""

    name: str
    num_codebooks: int
    codebook_size: int
    frame_rate: float
    first_frame_center_ms: float
    quantizer_id: str
    teacher_id: str

    @classmethod
    def from_facts(cls, name: str, facts: dict[str, Any]) -> "TokenField":
        """The field ``name`` of a token store with these ``facts`` (its store.json)."""
        try:
            return cls(
                name=name,
                num_codebooks=int(facts["num_codebooks"]),
                codebook_size=int(facts["codebook_size"]),
                frame_rate=float(facts["frame_rate"]),
                first_frame_center_ms=float(facts["first_frame_center_ms"]),
                quantizer_id=str(facts["quantizer_id"]),
                teacher_id=str(facts["teacher_id"]),
            )
        except KeyError as error:
            raise ValueError(
                f"the store of the tokens {name!r} does not say {error}: its store.json is missing or moved. "
                "Put the store back where the cuts point, or attach the tokens again (stage 6)"
            ) from error


class PretrainingModel(nn.Module):
    """Encoder and one prediction head per token field; state-dict names start with ``encoder.`` and
    ``heads.``."""

    def __init__(self, encoder: nn.Module, fields: list[TokenField]) -> None:
        super().__init__()
        if not fields:
            raise ValueError("pre-training needs at least one token field: name it in data.token_fields")
        self.encoder = encoder
        self.heads = nn.ModuleDict()
        for field in fields:
            group = frames_per_student_frame(field.frame_rate, encoder.frame_rate)
            self.heads[field.name] = MaskedPredictionHead(
                encoder.output_dim, group * field.num_codebooks, field.codebook_size
            )


class PretrainingTask(Task):
    """Eq. 1 over the token fields of a batch.

    Args:
      model: PretrainingModel of the same fields.
      fields: the tokens to predict.
      objective: strategy, alpha, alignment and lambdas.
    """

    kind = "pretraining"

    def __init__(
        self, model: PretrainingModel, fields: list[TokenField], objective: ObjectiveConfig | None = None
    ) -> None:
        self.model, self.fields = model, fields
        self.objective = objective or ObjectiveConfig()
        if self.objective.strategy == "single" and len(fields) != 1:
            raise ValueError(
                f"strategy single predicts one token field, the data has {[f.name for f in fields]}: name "
                "one of them"
            )
        unknown = set(self.objective.field_weights) - {field.name for field in fields}
        if unknown:
            raise ValueError(
                f"field_weights names {sorted(unknown)}, and the token fields are {[f.name for f in fields]}"
            )

    def begin_step(self, batch: Any, clock: StepClock) -> None:
        self.model.encoder.begin_step(clock.batch_count, clock.step_key, batch.keys, clock.gradient_scale)

    def after_backward(self) -> None:
        self.model.encoder.limit_gradients()

    def compute(self, batch: Any) -> StepResult:
        encoder = self.model.encoder
        output = encoder.extract(batch.waveforms, batch.num_samples, batch.time_mask, batch.channel_mask)
        # The heads take the encoder's output in float32; only their matrix products follow autocast (spec
        # optim §4).
        return self._losses(output.encoder_out.float(), output.lengths, batch)

    def _losses(self, encoder_out: Tensor, lengths: Tensor, batch: Any) -> StepResult:
        """encoder_out (B, T, P), lengths (B,) -> the weighted sum over fields and frames."""
        encoder = self.model.encoder
        num_frames = encoder_out.shape[1]
        if batch.time_mask is None:
            masked = torch.zeros(encoder_out.shape[:2], dtype=torch.bool, device=encoder_out.device)
        else:
            masked = encoder.masked_frames(batch.time_mask, num_frames)
        in_utterance = torch.arange(num_frames, device=encoder_out.device) < lengths.unsqueeze(1)
        total, stats = encoder_out.new_zeros(()), {}
        for field in self.fields:
            targets = align_targets(
                batch.tokens[field.name],
                field.frame_rate,
                field.first_frame_center_ms,
                num_frames,
                encoder.frame_rate,
                encoder.first_frame_center_ms,
                self.objective.align,
                lengths,
            )
            scored = (targets >= 0).any(-1)
            hidden, chosen = encoder_out[scored], targets[scored]
            weights = frame_weights(masked[scored], self.objective.alpha, chosen.shape[1])
            weighted, loss, correct = self.model.heads[field.name](hidden, chosen, weights)
            field_stats = masked_prediction_stats(loss, correct, chosen, masked[scored])
            total = total + self.objective.field_weights.get(field.name, 1.0) * weighted
            # Teacher and student frames of the same audio may differ by framing at the end, not by more.
            field_stats["frames_without_target"] = ((in_utterance & ~scored).sum(), in_utterance.sum())
            if not self.model.training:
                field_stats |= _codebook_stats(correct, chosen, masked[scored], field.codebook_size)
            prefix = "" if len(self.fields) == 1 else f"{field.name}/"
            stats.update({prefix + name: pair for name, pair in field_stats.items()})
        return StepResult(total, lengths.sum(), stats)

    def summarise(self, totals: Stats) -> dict[str, float]:
        """Sum / count; token histograms become the unigram entropy, codebook counts one accuracy each."""
        values: dict[str, float] = {}
        for name, (total, count) in sorted(totals.items()):
            if name.endswith("unigram_entropy"):
                values[name] = unigram_entropy(torch.as_tensor(total))
            elif isinstance(total, Tensor) and total.dim() == 1:
                for index, (right, seen) in enumerate(zip(total.tolist(), count.tolist())):
                    if seen > 0:
                        values[f"{name}_{index:02d}"] = right / seen
            elif float(count) > 0:
                values[name] = float(total) / float(count)
        return values

    def describe(self, values: dict[str, float]) -> str:
        chance = math.log(self.fields[0].codebook_size)
        parts = []
        for field in self.fields:
            prefix = "" if len(self.fields) == 1 else f"{field.name}/"
            chosen = {name: values.get(prefix + name) for name in ("masked_loss", "unmasked_loss")}
            text = ", ".join(f"{name} {value:.3f}" for name, value in chosen.items() if value is not None)
            entropy = values.get(prefix + "unigram_entropy")
            beside = f"chance {chance:.3f}" + (f", unigram {entropy:.3f}" if entropy is not None else "")
            accuracy = values.get(prefix + "masked_accuracy")
            right = f", masked accuracy {100 * accuracy:.1f} %" if accuracy is not None else ""
            parts.append(f"{prefix}{text} ({beside}){right}")
        return "; ".join(parts)

    def facts(self) -> dict[str, object]:
        encoder = self.model.encoder
        count = sum(p.numel() for p in encoder.parameters())
        heads = sum(p.numel() for p in self.model.heads.parameters())
        facts: dict[str, object] = {
            "encoder": f"{count:,} parameters, {encoder.frame_rate:g} Hz, plus {heads:,} in the prediction "
            "heads"
        }
        for field in self.fields:
            facts[f"tokens {field.name}"] = (
                f"{field.num_codebooks} codebooks x {field.codebook_size} at {field.frame_rate:g} Hz, "
                f"quantiser {field.quantizer_id}, teacher {field.teacher_id}; "
                f"guessing costs ln {field.codebook_size} = {math.log(field.codebook_size):.3f} nats per "
                "codebook"
            )
        return facts

    def identity(self) -> dict[str, Any]:
        return {
            "encoder_config": to_dict(self.model.encoder.config),
            "quantizer_ids": {field.name: field.quantizer_id for field in self.fields},
            "token_fields": [asdict(field) for field in self.fields],
        }


def _codebook_stats(correct: Tensor, targets: Tensor, masked: Tensor, codebook_size: int) -> Stats:
    """Validation only: accuracy of each codebook on masked frames, and how often each token occurs.

    correct and targets (F, N), masked (F,).
    """
    valid = targets >= 0
    masked = masked.unsqueeze(-1)
    offsets = torch.arange(targets.shape[1], device=targets.device) * codebook_size
    histogram = torch.bincount(
        (targets + offsets)[valid], minlength=targets.shape[1] * codebook_size
    ).reshape(targets.shape[1], codebook_size)
    return {
        "masked_accuracy_codebook": ((correct & masked).sum(0), (valid & masked).sum(0)),
        "unigram_entropy": (histogram, 1.0),
    }


def unigram_entropy(histogram: Tensor) -> float:
    """Mean over codebooks of the entropy in nats of their token counts, (N, K) -> number.

    It is the loss of the best predictor that does not look at the audio, so a masked loss above it has learnt
    nothing but frequencies.
    """
    shares = histogram.double() / histogram.sum(-1, keepdim=True).clamp(min=1).double()
    return float(-torch.xlogy(shares, shares).sum(-1).mean())
