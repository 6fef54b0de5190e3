"""Beam search for the transducer over the lattice that the regular loss sums over, batched (ours).

There a unit takes no frame and blank ends one, so a frame may emit several units. The modified beam search
(spec rnnt §7) takes one unit per frame at most: where frames are long and units short, such as letters at
25 Hz, it misses the best transcripts of a model that was trained with the regular loss.

Legend: B utterances, K beam, T encoder frames, V units, C context of the decoder.
A beam has two halves of K hypotheses: those that may still emit in this frame, and those that have ended it.
"""

import torch
from torch import Tensor

from spear_lib.asr.hypothesis import Hypothesis
from spear_lib.asr.model import AsrModel
from spear_lib.asr.search import (
    append_to_hash,
    best_of_beam,
    decode_context,
    decoded_again,
    merge_equal,
    prepare,
    start_context,
    trace_back,
)
from spear_lib.asr.word_scores import FORBIDDEN, WordScorer

_MINUS_INF = -torch.inf


@torch.no_grad()
def lattice_beam_search(
    model: AsrModel,
    encoder_out: Tensor,
    lengths: Tensor,
    beam: int = 4,
    max_units_per_frame: int = 3,
    blank_penalty: float = 0.0,
    scorer: WordScorer | None = None,
) -> list[Hypothesis]:
    """The most probable unit sequences, each summed over its alignments as far as the beam holds them.

    Args:
      model: its decoder and joiner are used; put it into eval mode first.
      encoder_out: (B, T, E) encoder output.
      lengths: (B,) valid frames.
      beam: hypotheses kept per utterance, in and after a frame.
      max_units_per_frame: units that a frame may emit.
      blank_penalty: nats taken from blank's logit (fewer deletions).
      scorer: word n-gram (shallow fusion, Eq. 11): its weighted terms count beside the log-probability.

    Returns:
      One hypothesis per utterance, in the order of the batch, the highest score; ``nbest`` is the final beam.
    """
    if beam < 1 or max_units_per_frame < 1:
        raise ValueError(
            f"beam is {beam} and max_units_per_frame {max_units_per_frame}; both must be positive."
        )
    frames, order, active = prepare(model, encoder_out, lengths)
    search = _LatticeSearch(model, frames, beam, max_units_per_frame, blank_penalty, scorer, len(active))
    for t, rows in enumerate(active):
        search.frame(t, rows)
    found = search.results()
    results: list[Hypothesis | None] = [None] * len(order)
    for utterance, hypothesis in zip(order, found):
        results[utterance] = hypothesis
    return results


class _LatticeSearch:
    """The beams of a batch whose utterances are sorted by falling length; places 0 to K - 1 are open (may
    still emit in this frame), K to 2 K - 1 have ended it."""

    def __init__(
        self, model: AsrModel, frames: Tensor, beam: int, max_units: int, blank_penalty: float,
        scorer: WordScorer | None, num_frames: int,
    ) -> None:  # fmt: skip
        batch, device = len(frames), frames.device
        self.model, self.frames, self.beam, self.max_units = model, frames, beam, max_units
        self.blank_penalty, self.scorer = blank_penalty, scorer
        shape = (batch, 2 * beam)
        places = torch.arange(2 * beam, device=device)
        self.swapped = places.roll(beam)  # ended before open
        self.scores = torch.full(shape, _MINUS_INF, device=device)  # -inf marks an unused place
        self.scores[:, 0] = 0.0
        self.hashes = torch.zeros(shape, dtype=torch.int64, device=device)
        self.context = start_context(model, batch * 2 * beam, device).unflatten(0, shape)
        self.decoded = (
            decode_context(model, self.context[:, 0])[:, None].expand(-1, 2 * beam, -1).contiguous()
        )
        self.lm = scorer.start(shape, device) if scorer else None
        # Traces instead of copied histories; a frame has a step per unit, one that all end, and the turn.
        self.steps_per_frame = max_units + 2
        self.parents = places.repeat(num_frames * self.steps_per_frame, batch, 1)
        self.tokens = torch.full_like(self.parents, -1)

    def frame(self, t: int, rows: int) -> None:
        """One frame of the first ``rows`` utterances."""
        first = t * self.steps_per_frame
        emitting = active = torch.arange(rows, device=self.frames.device)
        for emitted in range(self.max_units + 1):
            alive = self._step(first + emitted, t, emitting, last=emitted == self.max_units)
            emitting = emitting[alive]
            if not len(emitting):
                break
        turn = self.swapped.expand(rows, -1)
        self._move(first + self.max_units + 1, active, turn, torch.full_like(turn, -1))
        self.scores[:rows, : self.beam] = self.scores[:rows, self.beam :]
        self.scores[:rows, self.beam :] = _MINUS_INF

    def _step(self, step: int, t: int, rows: Tensor, last: bool) -> Tensor:
        """Open hypotheses of the utterances ``rows`` (R,) end the frame, and but in the last step emit one
        more unit; (R,) which utterances have some that are not behind all that have ended."""
        beam, model = self.beam, self.model
        old, old_hashes = self.scores[rows], self.hashes[rows]
        logits = model.joiner(self.frames[rows, t, None], self.decoded[rows, :beam], project_input=False)
        logits = logits.float()
        if self.blank_penalty:
            logits[..., model.blank_id] -= self.blank_penalty
        total = torch.log_softmax(logits, dim=-1) + old[:, :beam, None]
        # The same units, ended after another number of units in this frame: one hypothesis.
        ended = torch.cat([old[:, beam:], total[..., model.blank_id]], dim=1)
        ended = merge_equal(ended, old_hashes[:, self.swapped], ended > _MINUS_INF)
        lm = self.lm.at(rows) if self.lm is not None else None
        best_ended = (ended if lm is None else ended + lm.scores[:, self.swapped]).topk(beam, dim=1)
        ended_parent = self.swapped[best_ended.indices]
        ended_scores = ended.gather(1, best_ended.indices)
        total[..., model.blank_id] = _MINUS_INF
        of_open = torch.arange(beam, device=total.device).expand(len(rows), -1)
        gains = self.scorer.extended_scores(lm.gather(of_open)) if lm is not None else None
        best = (total if gains is None else total + gains).flatten(1).topk(beam, dim=1)
        # What is behind all that have ended here cannot catch up, as blank is still to come.
        alive = (best.values > best_ended.values[:, -1:]) & (best.values > FORBIDDEN / 2) & (not last)
        parent = torch.where(
            alive,
            torch.div(best.indices, total.shape[2], rounding_mode="floor"),
            of_open,
        )
        token = torch.where(alive, best.indices % total.shape[2], -1)
        chosen = None
        if gains is not None:
            kept = gains.flatten(1).gather(1, best.indices)
            chosen = torch.cat([kept, torch.zeros_like(kept)], dim=1)
        parents = torch.cat([parent, ended_parent], dim=1)
        self._move(step, rows, parents, torch.cat([token, torch.full_like(ended_parent, -1)], dim=1), chosen)
        open_scores = total.flatten(1).gather(1, best.indices).masked_fill(~alive, _MINUS_INF)
        self.scores[rows] = torch.cat([open_scores, ended_scores], dim=1)
        return alive.any(dim=1)

    def _move(
        self, step: int, rows: Tensor, parent: Tensor, token: Tensor, chosen: Tensor | None = None
    ) -> None:
        """Hypotheses of places ``parent`` (R, 2 K), with one more unit where ``token`` is not negative; their
        scores are the caller's."""
        silent = token < 0
        old_hash = self.hashes[rows].gather(1, parent)
        old_context = self.context[rows].gather(1, parent[..., None].expand(-1, -1, self.context.shape[2]))
        shifted = torch.cat([old_context[..., 1:], token[..., None]], dim=2)
        context = torch.where(silent[..., None], old_context, shifted)
        self.decoded[rows] = decoded_again(self.model, context, self.decoded[rows], parent, ~silent)
        self.hashes[rows] = torch.where(silent, old_hash, append_to_hash(old_hash, token))
        self.context[rows] = context
        if self.lm is not None:
            lm = self.lm.at(rows).gather(parent)
            self.lm.write(lm if chosen is None else self.scorer.extended(lm, token, chosen), rows)
        self.parents[step, rows], self.tokens[step, rows] = parent, token

    def results(self) -> list[Hypothesis]:
        """Per utterance the best of its final beam."""
        scores = self.scores
        if self.lm is not None:
            scores = scores + self.scorer.final_scores(self.lm)
        emitted = trace_back(self.parents, self.tokens)
        return [
            best_of_beam(of_beam, sequences, steps_per_frame=self.steps_per_frame)
            for of_beam, sequences in zip(scores[:, : self.beam].tolist(), emitted)
        ]
