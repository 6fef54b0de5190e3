"""Searches for CTC: greedy, and prefix beam search with a word n-gram (spec rnnt §8, Eq. 11), batched.

Legend: B utterances, K beam, T encoder frames, V units (blank included), S units of a hypothesis.
A prefix has two probabilities: of the alignments that end in blank and of those that end in its last unit.
Nothing loops over utterances or hypotheses inside a frame.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from spear_lib.asr.hypothesis import Hypothesis
from spear_lib.asr.search import append_to_hash, check_batch, trace_back
from spear_lib.asr.word_scores import FORBIDDEN, WordScorer

_MINUS_INF = -torch.inf
# Marks the unused places of a beam; prefixes' hashes are practically never these.
_UNUSED_HASH = -(1 << 62)


@torch.no_grad()
def ctc_greedy_search(log_probs: Tensor, lengths: Tensor, blank_penalty: float = 0.0) -> list[Hypothesis]:
    """The best unit of each frame, repeats and blanks taken out.

    Args:
      log_probs: (B, T, V) log-probabilities; blank is unit 0.
      lengths: (B,) valid frames.
      blank_penalty: nats taken from blank.

    Returns:
      One hypothesis per utterance; a unit's time is the first frame of its run.
    """
    log_probs = _prepared(log_probs, lengths, blank_penalty)
    values, units = log_probs.max(dim=2)
    inside = torch.arange(log_probs.shape[1], device=log_probs.device) < lengths.to(log_probs.device)[:, None]
    new = torch.ones_like(inside)
    new[:, 1:] = units[:, 1:] != units[:, :-1]
    written = (inside & new & (units != 0)).tolist()
    scores = torch.where(inside, values, 0.0).sum(1).tolist()
    results = []
    for row, score, flags in zip(units.tolist(), scores, written):
        times = [time for time, flag in enumerate(flags) if flag]
        results.append(Hypothesis([row[time] for time in times], times, score))
    return results


@torch.no_grad()
def ctc_prefix_beam_search(
    log_probs: Tensor,
    lengths: Tensor,
    beam: int = 100,
    scorer: WordScorer | None = None,
    beam_threshold: float = 50.0,
    blank_penalty: float = 0.0,
) -> list[Hypothesis]:
    """The most probable unit sequences, over all their alignments.

    Args:
      log_probs, lengths, blank_penalty: as ``ctc_greedy_search``.
      beam: prefixes kept per utterance (published tools: 500 to 1500 with a language model).
      scorer: word n-gram; without it log p_CTC alone counts.
      beam_threshold: prefixes that are so many nats below the best one are dropped.

    Returns:
      One hypothesis per utterance, the highest score; ``nbest`` is the final beam. A unit's time is the
      frame at which it begins in the most probable alignment.
    """
    if beam < 1 or beam_threshold <= 0:
        raise ValueError(f"beam is {beam} and beam_threshold {beam_threshold}; both must be positive.")
    log_probs = _prepared(log_probs, lengths, blank_penalty)
    order, active = check_batch(log_probs, lengths)
    log_probs = log_probs[torch.tensor(order, dtype=torch.int64, device=log_probs.device)]
    search = _PrefixSearch(log_probs, beam, scorer, beam_threshold, len(active))
    for t, rows in enumerate(active):
        search.step(t, rows)
    found = search.results()
    utterances: list[list[Hypothesis]] = [[] for _ in order]
    for place, utterance in enumerate(order):
        utterances[utterance] = found[place]
    best = [hypotheses[0] for hypotheses in utterances]
    # Only the best one's times are wanted: one alignment per utterance.
    inverse = torch.tensor(order, dtype=torch.int64).argsort()
    times = ctc_alignment(log_probs[inverse], lengths, [hypothesis.ids for hypothesis in best])
    for hypothesis, timestamps, hypotheses in zip(best, times, utterances):
        hypothesis.timestamps = timestamps
        hypothesis.nbest = hypotheses
    return best


def _prepared(log_probs: Tensor, lengths: Tensor, blank_penalty: float) -> Tensor:
    check_batch(log_probs, lengths)
    if log_probs.isnan().any():
        raise ValueError("log_probs hold NaN: the model or its input is broken, nothing can be recognised")
    log_probs = log_probs.float()
    if blank_penalty:
        log_probs = log_probs.clone()
        log_probs[..., 0] -= blank_penalty
        log_probs = log_probs.log_softmax(-1)
    return log_probs


class _PrefixSearch:
    """The beams of a batch whose utterances are sorted by falling length."""

    def __init__(
        self, log_probs: Tensor, beam: int, scorer: WordScorer | None, threshold: float, num_frames: int
    ) -> None:
        batch, device = len(log_probs), log_probs.device
        self.log_probs, self.beam, self.scorer, self.threshold = log_probs, beam, scorer, threshold
        shape = (batch, beam)
        self.blank = torch.full(shape, _MINUS_INF, device=device)  # alignments that end in blank
        self.blank[:, 0] = 0.0
        self.unit = torch.full(shape, _MINUS_INF, device=device)  # alignments that end in the last unit
        self.last = torch.zeros(shape, dtype=torch.int64, device=device)  # last unit; 0: empty prefix
        self.hash = torch.full(shape, _UNUSED_HASH, dtype=torch.int64, device=device)
        self.hash[:, 0] = 0
        self.parent_hash = torch.full_like(self.hash, _UNUSED_HASH - 1)
        self.lm = scorer.start(shape, device) if scorer else None
        self.parents = torch.arange(beam, device=device).repeat(num_frames, batch, 1)
        self.tokens = torch.full((num_frames, *shape), -1, dtype=torch.int64, device=device)

    def step(self, t: int, rows: int) -> None:
        """One frame of the first ``rows`` utterances."""
        frame = self.log_probs[:rows, t]
        blank, unit, last = self.blank[:rows], self.unit[:rows], self.last[:rows]
        total = torch.logaddexp(blank, unit)
        last_prob = frame.gather(1, last)
        stay_blank = total + frame[:, :1]
        stay_unit = unit + last_prob
        extend = total[:, :, None] + frame[:, None, :]  # (rows, K, V)
        # The same unit again is a new one only after a blank.
        extend.scatter_(2, last[:, :, None], (blank + last_prob)[:, :, None])
        extend[:, :, 0] = _MINUS_INF
        stay_unit = self._merge(extend, stay_unit, rows)
        stay = torch.logaddexp(stay_blank, stay_unit)
        if self.lm is not None:
            lm = self.lm.first(rows)
            lm_scores = self.scorer.extended_scores(lm)
            candidates = torch.cat([stay + lm.scores, (extend + lm_scores).flatten(1)], dim=1)
        else:
            candidates = torch.cat([stay, extend.flatten(1)], dim=1)
        best = candidates.topk(self.beam, dim=1)
        self._keep(t, rows, best.values, best.indices, stay_blank, stay_unit, extend)
        if self.lm is not None:
            kept = lm_scores.flatten(1).gather(1, (best.indices - self.beam).clamp(min=0))
            parent, token = self.parents[t, :rows], self.tokens[t, :rows]
            self.lm.write(self.scorer.extended(lm.gather(parent), token, kept))

    def _merge(self, extend: Tensor, stay_unit: Tensor, rows: int) -> Tensor:
        """Extensions that are another prefix of the beam are added to it and taken out of ``extend``."""
        sorted_hash, places = self.hash[:rows].sort(dim=1)
        place = torch.searchsorted(sorted_hash, self.parent_hash[:rows]).clamp(max=self.beam - 1)
        has_parent = sorted_hash.gather(1, place) == self.parent_hash[:rows]
        vocab_size = extend.shape[2]
        # Without a parent the cell of blank is meant, which holds -inf already.
        cell = places.gather(1, place) * vocab_size + torch.where(has_parent, self.last[:rows], 0)
        flat = extend.flatten(1)
        merged = torch.logaddexp(stay_unit, flat.gather(1, cell))
        flat.scatter_(1, cell, _MINUS_INF)
        return merged

    def _keep(
        self, t: int, rows: int, values: Tensor, indices: Tensor, stay_blank: Tensor, stay_unit: Tensor,
        extend: Tensor,
    ) -> None:  # fmt: skip
        vocab_size = extend.shape[2]
        stays = indices < self.beam
        cell = (indices - self.beam).clamp(min=0)
        parent = torch.where(stays, indices, torch.div(cell, vocab_size, rounding_mode="floor"))
        token = torch.where(stays, -1, cell % vocab_size)
        dead = ~(values > (values[:, :1] - self.threshold).clamp(min=FORBIDDEN / 2))
        kept = indices.clamp(max=self.beam - 1)
        new_blank = torch.where(stays, stay_blank.gather(1, kept), _MINUS_INF)
        new_unit = torch.where(stays, stay_unit.gather(1, kept), extend.flatten(1).gather(1, cell))
        old_hash = self.hash[:rows].gather(1, parent)
        new_hash = torch.where(stays, old_hash, append_to_hash(old_hash, token))
        new_parent = torch.where(stays, self.parent_hash[:rows].gather(1, parent), old_hash)
        self.last[:rows] = torch.where(stays, self.last[:rows].gather(1, parent), token)
        self.blank[:rows] = new_blank.masked_fill(dead, _MINUS_INF)
        self.unit[:rows] = new_unit.masked_fill(dead, _MINUS_INF)
        self.hash[:rows] = new_hash.masked_fill(dead, _UNUSED_HASH)
        self.parent_hash[:rows] = new_parent.masked_fill(dead, _UNUSED_HASH - 1)
        self.parents[t, :rows] = parent
        self.tokens[t, :rows] = token

    def results(self) -> list[list[Hypothesis]]:
        """Per utterance its final beam by falling score, never empty."""
        total = torch.logaddexp(self.blank, self.unit)
        if self.lm is not None:
            total = total + self.scorer.final_scores(self.lm)
        emitted = trace_back(self.parents, self.tokens)
        results = []
        for scores, sequences in zip(total.tolist(), emitted):
            found = [
                Hypothesis([unit for unit in sequence if unit >= 0], [], score)
                for score, sequence in zip(scores, sequences)
                if score > FORBIDDEN / 2
            ]
            # Every spelling was a forbidden one: an empty transcript.
            results.append(sorted(found, key=lambda item: -item.score) or [Hypothesis([], [], _MINUS_INF)])
        return results


def ctc_log_probabilities(log_probs: Tensor, targets: list[list[int]]) -> list[float]:
    """log P_CTC of transcripts of one utterance, summed over all alignments, nats; -inf where none fits.

    Args:
      log_probs: (T, V).
      targets: unit ids.
    """
    count, frames = len(targets), len(log_probs)
    sizes = torch.tensor([len(target) for target in targets], dtype=torch.int64)
    padded = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(target, dtype=torch.int64) for target in targets], batch_first=True
    )
    losses = F.ctc_loss(
        log_probs[:, None].expand(-1, count, -1),
        padded.to(log_probs.device),
        torch.full((count,), frames, dtype=torch.int64),
        sizes,
        reduction="none",
    )
    return (-losses).tolist()


@torch.no_grad()
def ctc_alignment(log_probs: Tensor, lengths: Tensor, targets: list[list[int]]) -> list[list[int]]:
    """The frame at which each unit of a transcript begins in its most probable alignment.

    Args:
      log_probs: (B, T, V).
      lengths: (B,) valid frames.
      targets: unit ids of each utterance.

    Raises:
      ValueError: a transcript that does not fit into its frames.
    """
    device = log_probs.device
    batch, num_frames = log_probs.shape[:2]
    sizes = lengths.tolist()
    for target, size in zip(targets, sizes):
        needed = len(target) + sum(a == b for a, b in zip(target, target[1:]))
        if needed > size:
            raise ValueError(f"{len(target)} units need {needed} frames of CTC, and there are {size}")
    longest = max(map(len, targets), default=0)
    if longest == 0 or num_frames == 0:
        return [[] for _ in targets]
    # States: blank, unit, blank, unit, ..., blank.
    states = torch.zeros((batch, 2 * longest + 1), dtype=torch.int64, device=device)
    for row, target in enumerate(targets):
        states[row, 1 : 2 * len(target) : 2] = torch.tensor(target, dtype=torch.int64, device=device)
    skip = torch.zeros_like(states, dtype=torch.bool)
    skip[:, 2:] = (states[:, 2:] != 0) & (states[:, 2:] != states[:, :-2])
    score = torch.full(states.shape, _MINUS_INF, device=device)
    score[:, 0] = 0.0  # before the first frame
    moves = torch.zeros((num_frames, *states.shape), dtype=torch.int8, device=device)
    first = torch.full(states.shape, _MINUS_INF, device=device)
    for t in range(num_frames):
        from_one = torch.cat([first[:, :1], score[:, :-1]], dim=1)
        from_two = torch.cat([first[:, :2], score[:, :-2]], dim=1).masked_fill(~skip, _MINUS_INF)
        best = torch.stack([score, from_one, from_two]).max(dim=0)
        moves[t] = best.indices
        score = torch.where(
            (t < lengths.to(device))[:, None], best.values + log_probs[:, t].float().gather(1, states), score
        )
    path_moves = moves.cpu().numpy()
    ends = score.cpu()
    results = []
    for row, (target, size) in enumerate(zip(targets, sizes)):
        place = 2 * len(target)
        if place and float(ends[row, place - 1]) > float(ends[row, place]):
            place -= 1
        times = [0] * len(target)
        for t in range(size - 1, -1, -1):
            if place % 2:
                times[place // 2] = t
            place -= int(path_moves[t, row, place])
        results.append(times)
    return results
