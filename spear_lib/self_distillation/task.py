"""Self-distillation: the student predicts, for masked frames, which code a teacher's layer has there (spec
spidr §1).

The teacher follows the student, the codes follow the teacher; both move once per optimiser step, with what
was summed over its micro-batches and ranks, and not where the step was skipped.

Legend: B utterances, T frames, D channels, K codes, F masked frames, n codebooks.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spear_lib.config import to_dict
from spear_lib.data.batch import Batch
from spear_lib.encoders.kinds import Encoder
from spear_lib.self_distillation.codebooks import Codebook, target_vectors
from spear_lib.self_distillation.description import DESCRIPTION
from spear_lib.self_distillation.objective import ObjectiveConfig, perplexity, prediction_loss
from spear_lib.self_distillation.starting import drawn_means, frame_keys, revive, share_for, start_from
from spear_lib.self_distillation.teacher import follow
from spear_lib.self_distillation.views import LayerPair, Seen, view_of
from spear_lib.training.task import Stats, StepClock, StepResult, Task


class SelfDistillationModel(nn.Module):
    """Encoder, teacher, codebooks, and heads where the encoder has none of its own.

    Of a spidr encoder the names are the published ones, behind ``encoder.`` for what belongs to the encoder.
    """

    def __init__(self, encoder: Encoder, objective: ObjectiveConfig) -> None:
        super().__init__()
        self.encoder = encoder
        view = view_of(encoder, objective.stacks)
        self.teacher = view.new_teacher()
        self.codebooks = nn.ModuleList(Codebook(objective.codebook_size, dim) for dim in view.dims)
        own = view.heads(objective.codebook_size)
        if own is not None:
            self.heads = own
        if objective.revive_after:
            for number in range(len(view.dims)):
                idle = torch.zeros(objective.codebook_size, dtype=torch.int64)
                self.codebooks[number].register_buffer("idle", idle)
        for parameter in view.untrained():
            parameter.requires_grad_(False)
        self.view = view
        self.teacher.eval()

    def train(self, mode: bool = True) -> "SelfDistillationModel":
        """The teacher is never in training mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def head(self, number: int, x: Tensor) -> Tensor:
        """Logits (..., K) of codebook ``number`` for x (..., D)."""
        heads = self.heads if hasattr(self, "heads") else self.encoder.heads
        return heads[number](x)


class Scored(NamedTuple):
    """One layer's part of a batch."""

    total: Tensor
    """Sum of the losses of its masked frames."""
    losses: Tensor
    """(F,) nats."""
    labels: Tensor
    """(F,) int64."""
    stats: Stats


def masked_rows(masked: Tensor) -> Tensor:
    """(B, T) bool -> (F,) int64: the masked frames, counted through the batch."""
    return masked.flatten().nonzero().flatten()


class SelfDistillationTask(Task[Batch]):
    """SpidR, or DinoSR where the heads are on the encoder's output.

    Args:
      model: SelfDistillationModel of the same objective.
      objective: codebooks, targets and teacher.
    """

    description = DESCRIPTION
    own_state = ("teacher", "codebooks")

    def __init__(self, model: SelfDistillationModel, objective: ObjectiveConfig | None = None) -> None:
        self.model, self.objective = model, objective or ObjectiveConfig()
        self.step = 0
        # Of each codebook: what its codes won in this step, and of the first step the frames themselves.
        self._collected: dict[int, Tensor] = {}
        self._first: dict[int, list[tuple[Tensor, Tensor]]] = {}

    # ------------------------------------------------------------------ hooks of the loop

    def begin_step(self, batch: Batch, clock: StepClock) -> None:
        if clock.micro_batch == 0:  # whatever a skipped step or the memory scan left is thrown away
            self._collected, self._first = {}, {}
        self.step = clock.step
        self.model.encoder.begin_step(clock.batch_count, clock.step_key, batch.keys, clock.gradient_scale)

    def after_backward(self) -> None:
        self.model.encoder.limit_gradients()

    def after_step(self, step: int, total: Callable[[Tensor], Tensor]) -> None:
        """Moves the codes, then the teacher."""
        objective, view = self.objective, self.model.view
        collected = [total(self._collected[number]) for number in sorted(self._collected)]
        if self._first:
            self._start_from_data(collected, total)
        else:
            for codebook, each in zip(self.model.codebooks, collected):
                codebook.update(each, objective.codebook_decay)
                if objective.revive_after:
                    revive(codebook, codebook.idle, each, objective.revive_after, step)
        self._collected, self._first = {}, {}
        follow(self.model.teacher, view.student(), objective.teacher.weight(step), view.copied)

    # ------------------------------------------------------------------ the objective

    def compute(self, batch: Batch) -> StepResult:
        return self.losses(self.model.view.forward(self.model.teacher, batch), batch)

    def losses(self, seen: Seen, batch: Batch) -> StepResult:
        """The sum over masked frames of the mean over codebooks, from one forward."""
        collect = self.model.training and torch.is_grad_enabled()
        share = 1.0 / len(seen.pairs)
        loss, frames, stats = seen.unused, 0.0, {}
        rows, masked = None, None
        for number, (name, pair) in enumerate(zip(self.model.view.names, seen.pairs)):
            if pair.masked is not masked:  # counting them waits for the device: once for layers of one rate
                rows, masked = masked_rows(pair.masked), pair.masked
            scored = self.score(number, pair, batch, collect, rows)
            # A frame of a slower layer stands for several.
            loss = loss + share * pair.duration * scored.total
            frames += pair.duration * len(scored.labels)
            stats |= {f"{key}_{name}": value for key, value in scored.stats.items()}
        frames *= share
        stats["loss"] = (loss.detach(), frames)
        stats["masked_share"] = (seen.pairs[0].masked.sum(), seen.pairs[0].valid.sum())
        return StepResult(loss, frames, stats)

    def score(
        self,
        number: int,
        pair: LayerPair,
        batch: Batch,
        collect: bool = False,
        rows: Tensor | None = None,
    ) -> Scored:
        """Labels and losses of one codebook.

        Args:
          number: of the codebook.
          collect: remember what its codes won, for the step.
          rows: ``masked_rows`` of the pair, where they are known.
        """
        rows = masked_rows(pair.masked) if rows is None else rows
        codebook = self.model.codebooks[number]
        statistics = pair.valid if self.objective.target_statistics == "valid" else None
        vectors = target_vectors(pair.teacher, statistics).flatten(0, 1)[rows]
        labels = codebook.assign(vectors)
        logits = self.model.head(number, pair.student.flatten(0, 1)[rows]).float()
        total, losses, stats = prediction_loss(logits, labels)
        if collect:
            self._remember(number, codebook.collect(vectors, labels))
            if self.step == 1 and self.objective.codebook_start == "data":
                self._first.setdefault(number, []).append((vectors, frame_keys(batch.keys, pair.masked)))
        return Scored(total, losses, labels, stats)

    def _remember(self, number: int, won: Tensor) -> None:
        """Adds to what codebook ``number`` won in this step."""
        before = self._collected.get(number)
        self._collected[number] = won if before is None else before + won

    def _start_from_data(self, collected: list[Tensor], total: Callable[[Tensor], Tensor]) -> None:
        """Puts the codes onto frames of the first step."""
        for number, (codebook, won) in enumerate(zip(self.model.codebooks, collected)):
            size = len(codebook.counts)
            share = share_for(float(won[:, -1].sum()), size)
            parts = [drawn_means(vectors, keys, share, size) for vectors, keys in self._first[number]]
            start_from(codebook, total(sum(parts[1:], parts[0])))

    # ------------------------------------------------------------------ reports

    def summarise(self, totals: Stats) -> dict[str, float]:
        """Of every layer and in the mean over them: loss, accuracy, perplexities and active codes of the
        frames since the last report; and the codes that never won a frame."""
        values: dict[str, float] = {}
        codebooks = dict(zip(self.model.view.names, self.model.codebooks))
        for name, (total, count) in sorted(totals.items()):
            if float(count) <= 0:
                continue
            kind, _, layer = name.partition("_")
            if kind == "targets":
                values[f"target_perplexity_{layer}"] = perplexity(total, float(count))
                values[f"active_codes_{layer}"] = float((torch.as_tensor(total) > 0).sum())
                values[f"dead_codes_{layer}"] = float(codebooks[layer].num_dead())
            elif kind == "predictions":
                values[f"prediction_perplexity_{layer}"] = perplexity(total, float(count))
            else:
                values[name] = float(total) / float(count)
        for kind in ("accuracy", "target_perplexity", "prediction_perplexity", "active_codes", "dead_codes"):
            found = [values[f"{kind}_{name}"] for name in codebooks if f"{kind}_{name}" in values]
            if found:
                values[kind] = sum(found) / len(found)
        if "loss" in values:
            values["chance"] = math.log(self.objective.codebook_size)
        return values

    def describe(self, values: dict[str, float]) -> str:
        if "loss" not in values:
            return "no frame was masked"
        text = f"loss {values['loss']:.3f} (chance {values['chance']:.3f})"
        if "target_perplexity" in values:
            text += (
                f", perplexity of targets {values['target_perplexity']:.1f} and predictions "
                f"{values['prediction_perplexity']:.1f} of {self.objective.codebook_size}, "
                f"{values['active_codes']:.0f} codes active, {values['dead_codes']:.0f} never"
            )
        return text

    def facts(self) -> dict[str, object]:
        encoder, view = self.model.encoder, self.model.view
        size = self.objective.codebook_size
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        teacher = sum(p.numel() for p in self.model.teacher.parameters())
        return {
            "encoder": f"{encoder.encoder_type}, {encoder.frame_rate:g} Hz; {trained:,} trained parameters "
            f"with the heads, {teacher:,} in the teacher",
            "codebooks": f"{len(view.names)} of {size} codes ({', '.join(view.names)}); guessing costs "
            f"ln {size} = {math.log(size):.3f} nats",
        }

    def identity(self) -> dict[str, Any]:
        return {"encoder_config": to_dict(self.model.encoder.config)}
