"""The refinement search compiled by numba, frame by frame on a CPU (ours; search.py explains the
mathematics).

The same additions in the same order as search_torch.py, hence the same codes, but all tables of a frame stay
in the core's cache. Threads: as many as torch uses, each over its own slice of the frames.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numba import njit
from torch import Tensor

from spear_lib.quantization.search import CodeTable, candidates_kept


def refine_rows(table: CodeTable, h: Tensor, rows: Tensor, num_iterations: int, keep_best: bool) -> Tensor:
    """``search.refine`` on rows of C, (B, N) int64, instead of codes."""
    result = rows.to(torch.int32).contiguous()
    limits = [candidates_kept(joined, table.codebook_size) for joined in range(1, table.num_codebooks + 1)]
    shared = (
        table.gram.numpy(),
        table.energy.numpy(),
        np.array([0, *limits]),
        table.codebook_size,
        num_iterations,
        keep_best,
    )
    h = h.contiguous()
    threads = min(torch.get_num_threads(), len(result))
    slices = [slice(len(result) * i // threads, len(result) * (i + 1) // threads) for i in range(threads)]
    if threads == 1:
        _refine(result.numpy(), h.numpy(), *shared)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda part: _refine(result[part].numpy(), h[part].numpy(), *shared), slices))
    return result.long()


@njit(cache=True, nogil=True, inline="always")
def _smallest(values, count, kept, index):
    """The ``count`` smallest of ``values`` into ``kept``, ascending, and their positions; ties: the first."""
    filled = 0
    for position in range(len(values)):
        value = values[position]
        if filled < count:
            place = filled
            filled += 1
        elif value < kept[count - 1]:
            place = count - 1
        else:
            continue
        while place > 0 and kept[place - 1] > value:
            kept[place] = kept[place - 1]
            index[place] = index[place - 1]
            place -= 1
        kept[place] = value
        index[place] = position


@njit(cache=True, nogil=True, inline="always")
def _read_cross(cross, gram, rows, entry, count, wanted, n, m):
    """X of the wanted candidates of the codebooks n < m, from G."""
    now, then = rows[n], rows[m]
    now_then = gram[now, then]
    for a in range(count):
        s = n * count + a
        if not wanted[s]:
            continue
        left = entry[n, a]
        left_then = gram[left, then]
        for b in range(count):
            t = m * count + b
            if wanted[t]:
                right = entry[m, b]
                cross[s, t] = ((gram[left, right] - left_then) - gram[now, right]) + now_then


@njit(cache=True, nogil=True)
def _refine(all_rows, h, gram, energy, limits, size, num_iterations, keep_best):
    """Refines ``all_rows`` (B, N) int32 in place."""
    num_codebooks = all_rows.shape[1]
    total = num_codebooks * size
    first_count = 1 if num_codebooks == 1 else min(size, limits[1])
    most = num_codebooks * first_count
    widest = 1
    for joined in range(1, num_codebooks + 1):
        widest = max(widest, limits[joined])
    # Candidates of all groups lie side by side: candidate j of the group of codebook n has the row
    # entry[n, j]; X of candidates s < t of different groups is cross[s, t].
    residual = np.empty(total, np.float32)
    single = np.empty(size, np.float32)
    entry = np.empty((num_codebooks, widest), np.int32)
    new_entry = np.empty_like(entry)
    delta = np.empty(max(most, widest), np.float32)
    new_delta = np.empty_like(delta)
    everything = np.ones(most, np.bool_)
    wanted = np.zeros(most, np.bool_)
    cross = np.zeros((most, most), np.float32)
    new_cross = np.empty((most, most), np.float32)
    before = np.empty(most, np.float32)
    joint = np.empty(widest * widest, np.float32)
    kept = np.empty(max(widest, first_count), np.float32)
    index = np.empty(len(kept), np.int32)
    begin = np.empty(num_codebooks + 1, np.int64)  # first codebook of each group
    offset = np.empty(num_codebooks + 1, np.int64)  # first candidate of each group
    new_begin = np.empty_like(begin)
    new_offset = np.empty_like(offset)
    from_a = np.empty(most, np.int64)
    from_b = np.empty(most, np.int64)
    best = np.empty(num_codebooks, np.int32)
    two = np.float32(2)

    for frame in range(all_rows.shape[0]):
        rows = all_rows[frame]
        best_error = np.float32(np.inf)
        for number in range(num_iterations + int(keep_best)):
            for j in range(total):
                residual[j] = gram[rows[0], j]
            for n in range(1, num_codebooks):
                for j in range(total):
                    residual[j] += gram[rows[n], j]
            for j in range(total):
                residual[j] -= h[frame, j]
            if keep_best:
                error = residual[rows[0]] - h[frame, rows[0]]
                for n in range(1, num_codebooks):
                    error += residual[rows[n]] - h[frame, rows[n]]
                if error < best_error:
                    best_error = error
                    best[:] = rows
                if number == num_iterations:
                    break

            # Single changes.
            for n in range(num_codebooks):
                now, first = rows[n], n * size
                present = energy[now] - two * residual[now]
                for k in range(size):
                    j = first + k
                    single[k] = ((two * residual[j] + energy[j]) + present) - two * gram[now, j]
                if first_count < size:
                    _smallest(single, first_count, kept, index)
                else:
                    for k in range(size):
                        kept[k] = single[k]
                        index[k] = k
                for k in range(first_count):
                    delta[n * first_count + k] = kept[k]
                    entry[n, k] = first + index[k]
                begin[n] = n
                offset[n] = n * first_count
            begin[num_codebooks] = num_codebooks
            offset[num_codebooks] = most
            for n in range(0, num_codebooks - 1, 2):
                _read_cross(cross, gram, rows, entry, first_count, everything, n, n + 1)

            # Neighbours joined until one group is left.
            num_groups = num_codebooks
            while num_groups > 1:
                num_pairs = num_groups // 2
                new_offset[0] = 0
                for p in range(num_pairs):
                    a, b = offset[2 * p], offset[2 * p + 1]
                    count_a, count_b = b - a, offset[2 * p + 2] - b
                    for i in range(count_a):
                        for j in range(count_b):
                            joint[i * count_b + j] = (two * cross[a + i, b + j] + delta[a + i]) + delta[b + j]
                    pairs = count_a * count_b
                    limit = 1 if num_groups == 2 else limits[begin[2 * p + 2] - begin[2 * p]]
                    base = new_offset[p]
                    count = min(pairs, limit)
                    if pairs > limit:
                        _smallest(joint[:pairs], limit, kept, index)
                    else:
                        for t in range(pairs):
                            kept[t] = joint[t]
                            index[t] = t
                    for t in range(count):
                        new_delta[base + t] = kept[t]
                        from_a[base + t] = a + index[t] // count_b
                        from_b[base + t] = b + index[t] % count_b
                        for n in range(begin[2 * p], begin[2 * p + 1]):
                            new_entry[n, t] = entry[n, index[t] // count_b]
                        for n in range(begin[2 * p + 1], begin[2 * p + 2]):
                            new_entry[n, t] = entry[n, index[t] % count_b]
                    new_begin[p] = begin[2 * p]
                    new_offset[p + 1] = base + count
                if num_groups == num_codebooks:
                    # Of G only what the kept pairs need: its reads cost more than all the rest.
                    wanted[:] = False
                    wanted[offset[2 * num_pairs] : most] = True
                    for t in range(new_offset[num_pairs]):
                        wanted[from_a[t]] = True
                        wanted[from_b[t]] = True
                    for n in range(num_codebooks):
                        for m in range(n + 2 - n % 2, num_codebooks):
                            _read_cross(cross, gram, rows, entry, first_count, wanted, n, m)
                new_groups = num_pairs
                if num_groups % 2:
                    # The odd group out waits for the next level as it is.
                    lone, base = offset[num_groups - 1], new_offset[num_pairs]
                    count = offset[num_groups] - lone
                    for t in range(count):
                        new_delta[base + t] = delta[lone + t]
                        for n in range(begin[num_groups - 1], num_codebooks):
                            new_entry[n, t] = entry[n, t]
                    new_begin[num_pairs] = begin[num_groups - 1]
                    new_offset[num_pairs + 1] = base + count
                    new_groups += 1
                for p in range(num_pairs):
                    later = offset[2 * p + 2]
                    for s in range(new_offset[p], new_offset[p + 1]):
                        left, right = from_a[s], from_b[s]
                        for t in range(later, offset[num_groups]):
                            before[t] = cross[left, t] + cross[right, t]
                        for t in range(new_offset[p + 1], new_offset[num_pairs]):
                            new_cross[s, t] = before[from_a[t]] + before[from_b[t]]
                        if num_groups % 2:
                            lone, base = offset[num_groups - 1], new_offset[num_pairs]
                            for t in range(offset[num_groups] - lone):
                                new_cross[s, base + t] = before[lone + t]
                new_begin[new_groups] = num_codebooks
                cross, new_cross = new_cross, cross
                delta, new_delta = new_delta, delta
                entry, new_entry = new_entry, entry
                begin, new_begin = new_begin, begin
                offset, new_offset = new_offset, offset
                num_groups = new_groups

            changed = False
            for n in range(num_codebooks):
                if rows[n] != entry[n, 0]:
                    changed = True
                    rows[n] = entry[n, 0]
            if not changed:
                break
        if keep_best:
            rows[:] = best
