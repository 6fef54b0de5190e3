"""The rounds of the refinement search, on any device (ours; search.py explains the mathematics).

Legend: as in search.py; J candidates of a group of codebooks, L codebooks in a group.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from spear_lib.quantization.code_table import CodeTable, candidates_kept


@dataclass
class _Group:
    """Candidates for L neighbouring codebooks."""

    rows: Tensor
    """(B, J, L): the rows of C that a candidate uses."""
    delta: Tensor
    """(B, J): what it changes the squared error by."""
    cross: Tensor
    """(B, J, W): X of the candidates with the W candidates of all later groups, side by side."""


def refine_rows(table: CodeTable, h: Tensor, rows: Tensor, num_iterations: int, keep_best: bool) -> Tensor:
    """``search.refine`` on rows of C, (B, N) int64, instead of codes."""
    result = rows.clone()
    best_error = None
    moving = None  # indexes of the frames that still change; None: all
    for number in range(num_iterations + int(keep_best)):
        # S: one sum of N rows of G per frame.
        residual = F.embedding_bag(rows, table.gram, mode="sum") - h  # r, (B, N*K)
        if keep_best:
            error = _error(residual - h, rows)
            if best_error is None:
                best_error = error
            else:
                better = error < best_error
                result[moving] = torch.where(better.unsqueeze(1), rows, result[moving])
                best_error = torch.where(better, error, best_error)
            if number == num_iterations:
                break
        found = _one_round(table, residual, rows)
        changed = (found != rows).any(dim=1).nonzero().squeeze(1)
        moving = changed if moving is None else moving[changed]
        if len(moving) == 0:
            break
        rows, h = found[changed], h[changed]
        if keep_best:
            best_error = best_error[changed]
        else:
            result[moving] = rows
    return result


def _error(difference: Tensor, rows: Tensor) -> Tensor:
    """|x^ - x|^2 - |x|^2 = sum_n (r - h) at the present rows, (B,)."""
    terms = difference.gather(1, rows)
    total = terms[:, 0].clone()
    for codebook in range(1, rows.shape[1]):
        total += terms[:, codebook]
    return total


def _one_round(table: CodeTable, residual: Tensor, rows: Tensor) -> Tensor:
    """One round: single changes, then neighbours joined until one group is left. Returns rows (B, N)."""
    groups = _single_changes(table, residual, rows)
    while len(groups) > 1:
        groups = _join_neighbours(groups, table.codebook_size)
    return groups[0].rows[:, 0, :]


def _smallest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` smallest along the last axis, ascending, and where they are; ties: the first.

    Sorted by integers that hold value and position: four times faster than by floats on a CPU, and unique.
    """
    bits = values.view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    position = torch.arange(values.shape[-1], device=values.device)
    keys = ordered.long().bitwise_left_shift_(32).bitwise_or_(position)
    index = keys.topk(count, dim=-1, largest=False).values.bitwise_and_(0xFFFFFFFF)
    return values.gather(-1, index), index


def _single_changes(table: CodeTable, residual: Tensor, rows: Tensor) -> list[_Group]:
    """One group per codebook with its best entries and their X with the later codebooks' best entries."""
    num_codebooks, size = table.num_codebooks, table.codebook_size
    delta = residual.mul(2).add_(table.energy)  # (B, N*K)
    present = table.energy[rows] - 2 * residual.gather(1, rows)  # (B, N)
    delta = delta.view(-1, num_codebooks, size).add_(present.unsqueeze(2))
    delta.sub_(table.own_block.index_select(0, rows.flatten()).view(delta.shape), alpha=2)
    count = 1 if num_codebooks == 1 else min(size, candidates_kept(1, size))
    if count < size:
        delta, entries = _smallest(delta, count)
    else:
        entries = torch.arange(size, device=rows.device).expand(delta.shape)
    candidates = entries + table.first_row[:, None]  # (B, N, J)
    gram, width = table.gram.view(-1), table.gram.shape[0]
    batch = len(rows)
    groups = []
    for n in range(num_codebooks):
        own, later = candidates[:, n], candidates[:, n + 1 :]  # (B, J), (B, M, J)
        now, later_now = rows[:, n], rows[:, n + 1 :]  # (B,), (B, M)
        shape = (batch, count, num_codebooks - 1 - n, count)

        def read(left: Tensor, right: Tensor) -> Tensor:
            # index_select reads four times faster than indexing.
            return gram.index_select(0, (left * width + right).flatten())

        cross = read(own[:, :, None], later.flatten(1)[:, None, :]).view(shape)
        cross -= read(own[:, :, None], later_now[:, None, :]).view(batch, count, -1, 1)
        cross -= read(now[:, None, None], later).view(batch, 1, -1, count)
        cross += read(now[:, None], later_now).view(batch, 1, -1, 1)
        groups.append(_Group(own.unsqueeze(2), delta[:, n], cross.flatten(2)))
    return groups


def _join_neighbours(groups: list[_Group], codebook_size: int) -> list[_Group]:
    """Groups 0 and 1, 2 and 3, ... joined: all pairs of candidates, cut to the best.

    An odd group out waits for the next level as it is.
    """
    pairs = [(groups[i], groups[i + 1]) for i in range(0, len(groups) - 1, 2)]
    chosen = []
    for a, b in pairs:
        joint = a.cross[:, :, : b.delta.shape[1]].mul(2)
        joint = joint.add_(a.delta.unsqueeze(2)).add_(b.delta.unsqueeze(1)).flatten(1)  # (B, Ja*Jb)
        num_joined = a.rows.shape[2] + b.rows.shape[2]
        limit = 1 if len(groups) == 2 else candidates_kept(num_joined, codebook_size)
        if joint.shape[1] > limit:
            joint, order = _smallest(joint, limit)
        else:
            order = torch.arange(joint.shape[1], device=joint.device).expand(joint.shape)
        from_b = b.delta.shape[1]
        chosen.append((joint, order // from_b, order % from_b))
    result = []
    for number, ((a, b), (delta, in_a, in_b)) in enumerate(zip(pairs, chosen)):
        rows = torch.cat([_take(a.rows, in_a), _take(b.rows, in_b)], dim=2)
        # X with the candidates of the later groups before they were joined ...
        before = _take(a.cross[:, :, b.delta.shape[1] :], in_a) + _take(b.cross, in_b)
        # ... and after: each is two of them.
        parts, offset = [], 0
        for (c, d), (_, in_c, in_d) in zip(pairs[number + 1 :], chosen[number + 1 :]):
            first = before.gather(2, (in_c + offset)[:, None, :].expand(-1, before.shape[1], -1))
            offset += c.delta.shape[1]
            second = before.gather(2, (in_d + offset)[:, None, :].expand(-1, before.shape[1], -1))
            offset += d.delta.shape[1]
            parts.append(first + second)
        parts.append(before[:, :, offset:])  # the odd group out, or nothing
        result.append(_Group(rows, delta, torch.cat(parts, dim=2)))
    return result + groups[2 * len(pairs) :]


def _take(source: Tensor, index: Tensor) -> Tensor:
    """Candidates ``index`` (B, J') of ``source`` (B, J, X) -> (B, J', X)."""
    batch, count, width = source.shape
    offset = torch.arange(0, batch * count, count, device=index.device)[:, None]
    taken = source.reshape(batch * count, width).index_select(0, (index + offset).flatten())
    return taken.view(batch, index.shape[1], width)
