"""Searches for the transducer: greedy and modified beam search, batched over utterances (spec rnnt §7).

Legend: B utterances, K beam (hypotheses per utterance), T encoder frames, V units, C context of the decoder.
Nothing loops over utterances or hypotheses inside a frame. Utterances are sorted by length so that the
active ones are always the first rows.
"""

import torch
from torch import Tensor

from spear_lib.asr.hypothesis import Hypothesis
from spear_lib.asr.model import AsrModel
from spear_lib.asr.word_scores import FORBIDDEN, WordScorer
from spear_lib.runtime.devices import on_host


def check_batch(frames: Tensor, lengths: Tensor) -> tuple[list[int], list[int]]:
    """Order of the utterances by falling length, and per frame the number of utterances that have it.

    Args:
      frames: (B, T, ...).
      lengths: (B,) valid frames.

    Raises:
      ValueError: shapes or lengths that do not fit together.
    """
    if frames.dim() != 3 or lengths.shape != frames.shape[:1]:
        raise ValueError(
            f"encoder_out is {tuple(frames.shape)} with lengths {tuple(lengths.shape)}; "
            "expected (B, T, E) and (B,)."
        )
    sizes = lengths.tolist()
    if sizes and not 0 <= min(sizes) <= max(sizes) <= frames.shape[1]:
        raise ValueError(f"lengths {min(sizes)}..{max(sizes)} do not fit into {frames.shape[1]} frames.")
    order = sorted(range(len(sizes)), key=lambda row: -sizes[row])
    return order, [sum(size > t for size in sizes) for t in range(max(sizes, default=0))]


def prepare(model: AsrModel, encoder_out: Tensor, lengths: Tensor) -> tuple[Tensor, list[int], list[int]]:
    """Projected frames (B, T, J) sorted by falling length, the order and the active rows per frame."""
    order, active = check_batch(encoder_out, lengths)
    if encoder_out.isnan().any():
        raise ValueError("encoder_out holds NaN: the model or its input is broken, nothing can be recognised")
    rows = torch.tensor(order, dtype=torch.int64, device=encoder_out.device)
    return model.joiner.encoder_proj(encoder_out[rows].float()), order, active


def decode_context(model: AsrModel, context: Tensor) -> Tensor:
    """(N, C) last units -> (N, J) projected decoder output."""
    return model.joiner.decoder_proj(model.decoder(context, pad=False)[:, 0])


def decoded_again(
    model: AsrModel, context: Tensor, decoded: Tensor, parent: Tensor, changed: Tensor
) -> Tensor:
    """Decoder output (B, K, J) for the contexts (B, K, C) after a frame.

    Most hypotheses emit nothing: on a CPU only the contexts that changed are computed.
    """
    if not on_host(context):
        return decode_context(model, context.flatten(0, 1)).unflatten(0, context.shape[:2])
    kept = decoded.gather(1, parent[..., None].expand_as(decoded))
    if bool(changed.any()):
        kept[changed] = decode_context(model, context[changed])
    return kept


def start_context(model: AsrModel, rows: int, device: torch.device) -> Tensor:
    """(rows, C) units before the first one."""
    context = torch.full((rows, model.decoder.context_size), -1, dtype=torch.int64, device=device)
    context[:, -1] = model.blank_id
    return context


def _silent(tokens: Tensor, blank_id: int, unk_id: int | None) -> Tensor:
    """Which tokens emit nothing."""
    return tokens == blank_id if unk_id is None else (tokens == blank_id) | (tokens == unk_id)


@torch.no_grad()
def greedy_search_batch(
    model: AsrModel,
    encoder_out: Tensor,
    lengths: Tensor,
    blank_penalty: float = 0.0,
    max_symbols_per_frame: int = 1,
    unk_id: int | None = None,
) -> list[Hypothesis]:
    """Best unit per frame.

    Args:
      model: its decoder and joiner are used; put it into eval mode first.
      encoder_out: (B, T, E) encoder output.
      lengths: (B,) valid frames.
      blank_penalty: nats taken from blank's logit (fewer deletions).
      max_symbols_per_frame: units that one frame may emit.
      unk_id: unit that is treated as blank, if there is one.

    Returns:
      One hypothesis per utterance, in the order of the batch.
    """
    frames, order, active = prepare(model, encoder_out, lengths)
    batch, device = len(order), encoder_out.device
    context = start_context(model, batch, device)
    decoded = decode_context(model, context)
    scores = torch.zeros(batch, device=device)
    emitted: list[Tensor] = []  # per (frame, symbol): (B,) unit or -1
    times: list[int] = []
    for t, rows in enumerate(active):
        going = torch.ones(rows, dtype=torch.bool, device=device)
        for _ in range(max_symbols_per_frame):
            logits = model.joiner(frames[:rows, t], decoded[:rows], project_input=False).float()
            if blank_penalty:
                logits[:, model.blank_id] -= blank_penalty
            best = torch.log_softmax(logits, dim=1).max(dim=1)
            scores[:rows] += torch.where(going, best.values, 0.0)
            going = going & ~_silent(best.indices, model.blank_id, unk_id)
            if not bool(going.any()):
                break
            step = torch.full((batch,), -1, dtype=torch.int64, device=device)
            step[:rows] = torch.where(going, best.indices, -1)
            emitted.append(step)
            times.append(t)
            shifted = torch.cat([context[:rows, 1:], best.indices[:, None]], dim=1)
            context[:rows] = torch.where(going[:, None], shifted, context[:rows])
            decoded[:rows] = decode_context(model, context[:rows])
    table = torch.stack(emitted, dim=1).tolist() if emitted else [[] for _ in order]
    results: list[Hypothesis | None] = [None] * batch
    for row, (utterance, score) in enumerate(zip(order, scores.tolist())):
        pairs = [(unit, time) for unit, time in zip(table[row], times) if unit >= 0]
        results[utterance] = Hypothesis([u for u, _ in pairs], [t for _, t in pairs], score)
    return results


def append_to_hash(state: Tensor, token: Tensor) -> Tensor:
    """64-bit hash of a unit sequence extended by ``token`` (multiply, add, xor-shift; wraps around)."""
    mixed = (state ^ (token + 1)) * -7046029254386353131
    return mixed ^ ((mixed >> 29) & ((1 << 35) - 1))


def merge_equal(scores: Tensor, hashes: Tensor, alive: Tensor) -> Tensor:
    """Hypotheses (B, K) with the same units are one: the first gets the sum, others and dead ones -inf."""
    same = (hashes[:, :, None] == hashes[:, None, :]) & alive[:, :, None] & alive[:, None, :]
    merged = torch.logsumexp(torch.where(same, scores[:, None, :], -torch.inf), dim=2)
    return merged.masked_fill(same.tril(-1).any(dim=2) | ~alive, -torch.inf)


@torch.no_grad()
def modified_beam_search(
    model: AsrModel,
    encoder_out: Tensor,
    lengths: Tensor,
    beam: int = 4,
    blank_penalty: float = 0.0,
    temperature: float = 1.0,
    unk_id: int | None = None,
    scorer: WordScorer | None = None,
) -> list[Hypothesis]:
    """Beam search with at most one unit per frame, merging hypotheses with the same units.

    Args:
      model, encoder_out, lengths, blank_penalty, unk_id: as ``greedy_search_batch``.
      beam: hypotheses kept per utterance.
      temperature: divides the logits.
      scorer: word n-gram (shallow fusion, Eq. 11): its weighted terms count beside the log-probability.

    Returns:
      One hypothesis per utterance, in the order of the batch: the best by log-probability divided by
      (units + context size), as the reference normalises, or with a language model by its score alone;
      ``nbest`` is the whole final beam.
    """
    if beam < 1 or temperature <= 0:
        raise ValueError(f"beam is {beam} and temperature {temperature}; both must be positive.")
    frames, order, active = prepare(model, encoder_out, lengths)
    batch, device, num_frames = len(order), encoder_out.device, len(active)
    context = start_context(model, batch * beam, device).reshape(batch, beam, model.decoder.context_size)
    decoded = decode_context(model, context[:, 0])[:, None].expand(-1, beam, -1).contiguous()
    lm = scorer.start((batch, beam), device) if scorer else None
    scores = torch.full((batch, beam), -torch.inf, device=device)  # -inf marks an unused place of the beam
    scores[:, 0] = 0.0
    hashes = torch.zeros((batch, beam), dtype=torch.int64, device=device)
    # Traces instead of copied histories: where each hypothesis came from and what it emitted.
    parents = torch.arange(beam, device=device).repeat(num_frames, batch, 1)
    tokens = torch.full((num_frames, batch, beam), -1, dtype=torch.int64, device=device)
    for t, rows in enumerate(active):
        logits = model.joiner(frames[:rows, t, None], decoded[:rows], project_input=False).float()
        if blank_penalty:
            logits[..., model.blank_id] -= blank_penalty
        if temperature != 1.0:
            logits = logits / temperature
        total = torch.log_softmax(logits, dim=-1) + scores[:rows, :, None]
        vocab_size = total.shape[-1]
        ranked = total
        if lm is not None:
            active_lm = lm.first(rows)
            lm_scores = scorer.extended_scores(active_lm)
            for unit in (model.blank_id, unk_id):  # what emits nothing costs nothing
                if unit is not None:
                    lm_scores[..., unit] = active_lm.scores
            ranked = total + lm_scores
        # Falling: of equal hypotheses the first is the better.
        best = ranked.reshape(rows, -1).topk(beam, dim=1)
        parent = torch.div(best.indices, vocab_size, rounding_mode="floor")
        token = best.indices % vocab_size
        silent = _silent(token, model.blank_id, unk_id)
        old_hash = hashes[:rows].gather(1, parent)
        new_hash = torch.where(silent, old_hash, append_to_hash(old_hash, token))
        values = total.reshape(rows, -1).gather(1, best.indices)
        alive = best.values > FORBIDDEN / 2
        scores[:rows] = merge_equal(values, new_hash, alive)
        hashes[:rows] = new_hash
        parents[t, :rows] = parent
        tokens[t, :rows] = torch.where(silent, -1, token)
        if lm is not None:
            chosen = lm_scores.reshape(rows, -1).gather(1, best.indices)
            lm.write(scorer.extended(active_lm.gather(parent), tokens[t, :rows], chosen))
        old_context = context[:rows].gather(1, parent[..., None].expand(-1, -1, context.shape[2]))
        shifted = torch.cat([old_context[..., 1:], token[..., None]], dim=2)
        context[:rows] = torch.where(silent[..., None], old_context, shifted)
        decoded[:rows] = decoded_again(
            model, context[:rows], decoded[:rows], parent, ~silent & (scores[:rows] > -torch.inf)
        )
    if lm is not None:
        scores = scores + scorer.final_scores(lm)
    context_size = model.decoder.context_size if lm is None else None
    emitted = trace_back(parents, tokens)
    results: list[Hypothesis | None] = [None] * batch
    for row, (utterance, beam_scores) in enumerate(zip(order, scores.tolist())):
        results[utterance] = best_of_beam(beam_scores, emitted[row], context_size)
    return results


def trace_back(parents: Tensor, tokens: Tensor) -> list[list[list[int]]]:
    """parents, tokens (T, B, K) -> per utterance and place of the final beam the (T,) units, -1 = none."""
    num_frames, batch, beam = parents.shape
    place = torch.arange(beam, device=parents.device).repeat(batch, 1)
    steps = []
    for t in range(num_frames - 1, -1, -1):
        steps.append(tokens[t].gather(1, place))
        place = parents[t].gather(1, place)
    if not steps:
        return [[[] for _ in range(beam)] for _ in range(batch)]
    return torch.stack(steps[::-1], dim=2).tolist()


def best_of_beam(
    scores: list[float], emitted: list[list[int]], context_size: int | None = None, steps_per_frame: int = 1
) -> Hypothesis:
    """The best by score / (units + context_size), where that is None by score; with the whole beam."""
    nbest = []
    for score, units in zip(scores, emitted):
        if score > FORBIDDEN / 2:
            steps = [step for step, unit in enumerate(units) if unit >= 0]
            times = [step // steps_per_frame for step in steps]
            nbest.append(Hypothesis([units[step] for step in steps], times, score))
    if not nbest:  # every spelling was a forbidden one
        return Hypothesis([], [], float("-inf"))
    nbest.sort(key=lambda item: -item.score)
    best = nbest[0]
    if context_size is not None:
        best = max(nbest, key=lambda item: item.score / (len(item.ids) + context_size))
    best.nbest = nbest
    return best
