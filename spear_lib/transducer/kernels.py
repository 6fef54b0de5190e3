"""The recursions of the lattice and of the pruned band as Triton kernels: one launch instead of one per step.

One program per utterance walks through its diagonals (or frames) and holds one of them at a time. It computes
in float64 whatever the inputs are, as the torch backend does: the walk waits for memory, not for arithmetic,
and sums of 1e3 to 1e4 nats keep their last digits. Half precision never gets here (``losses``).

Sizes are not specialised: a batch of another shape needs no other compilation. The logic is tested under
Triton's interpreter (TRITON_INTERPRET=1, on a CPU), and a test compiles the kernels for CUDA; no GPU was at
hand, so nothing has been measured on one.

Legend: B utterances, T frames, S labels, R states of the band; s = labels emitted, t = frames consumed.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from spear_lib.transducer import band, lattice


# ------------------------------------------------------------------------------------------ small pieces
@triton.jit
def _logadd(x, y):
    """log(exp x + exp y); -inf of two -inf, NaN of any NaN."""
    top = tl.maximum(x, y)
    top = tl.where(top == -float("inf"), 0.0, top)
    return top + tl.log(tl.exp(x - top) + tl.exp(y - top))


@triton.jit
def _weight(exponent):
    """exp, and 0 for NaN (-inf - -inf) and inf (- -inf): arcs of states that no path reaches."""
    weight = tl.exp(exponent)
    return tl.where(weight < float("inf"), weight, 0.0)


@triton.jit
def _moved(x, place, shift, size, other):
    """x at ``place + shift``, ``other`` outside 0..size-1; all in registers."""
    source = place + shift
    hit = source[:, None] == place[None, :]
    picked = tl.sum(tl.where(hit, x[None, :], 0.0), axis=1)
    return tl.where((source >= 0) & (source < size), picked, other)


@triton.jit
def _at(x, place, index):
    """The one value of x at ``index``."""
    return tl.sum(tl.where(place == index, x, 0.0), axis=0)


# ------------------------------------------------------------------------------------------ full lattice
@triton.jit(do_not_specialize=["labels", "frames", "px_frames", "rows"])
def _lattice_forward(
    px, py, num_labels, num_frames, alpha, scores, labels, frames, px_frames, rows,
    REGULAR: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """alpha (B, rows, S+1): row d holds the states s + t = d (regular) or t = d, as in ``lattice``."""
    b = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, WIDTH)
    exists = s <= labels
    last_s = tl.load(num_labels + b).to(tl.int32)
    steps = tl.load(num_frames + b).to(tl.int32)
    if REGULAR:
        steps += last_s
    row = alpha + b * rows * (labels + 1)
    px += b * labels * px_frames
    py += b * (labels + 1) * frames
    tl.store(row + s, tl.where(s == 0, 0.0, -float("inf")).to(tl.float64), mask=exists)
    tl.debug_barrier()  # a state reads what its neighbour wrote
    d = 0
    while d < steps:
        t = d - s if REGULAR else d + 0 * s
        t_label = t + 1 if REGULAR else t  # of the label that leads from s - 1 to s
        by_blank = exists & (t >= 0) & (t < frames)
        by_label = exists & (s > 0) & (t_label >= 0) & (t_label < frames)
        blank = tl.load(py + s * frames + t, mask=by_blank, other=-float("inf")).to(tl.float64)
        label = tl.load(px + (s - 1) * px_frames + t_label, mask=by_label, other=-float("inf")).to(tl.float64)
        blank += tl.load(row + s, mask=exists, other=-float("inf"))
        label += tl.load(row + s - 1, mask=exists & (s > 0), other=-float("inf"))
        row += labels + 1
        tl.store(row + s, _logadd(label, blank), mask=exists)
        tl.debug_barrier()
        d += 1
    tl.store(scores + b, tl.load(row + last_s))


@triton.jit(do_not_specialize=["labels", "frames", "px_frames", "rows"])
def _lattice_backward(
    px, py, num_labels, num_frames, alpha, scores, visits, gx, gy, labels, frames, px_frames, rows,
    REGULAR: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Occupations gx (shaped as px), gy (as py); visits (B, 2, S+1) is scratch: of this and the next row."""
    b = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, WIDTH)
    width = labels + 1
    exists = s <= labels
    last_s = tl.load(num_labels + b).to(tl.int32)
    steps = tl.load(num_frames + b).to(tl.int32)
    if REGULAR:
        steps += last_s
    there = alpha + (b * rows + steps) * width
    px += b * labels * px_frames
    gx += b * labels * px_frames
    py += b * width * frames
    gy += b * width * frames
    visits += b * 2 * width
    score = tl.load(scores + b)
    reached = tl.where((score > -float("inf")) & (score < float("inf")), 1.0, 0.0)
    tl.store(
        visits + (steps % 2) * width + s, tl.where(s == last_s, reached, 0.0).to(tl.float64), mask=exists
    )
    tl.debug_barrier()
    d = steps - 1
    while d >= 0:
        t = d - s if REGULAR else d + 0 * s
        on_blank = exists & (t >= 0) & (t < frames)
        on_label = on_blank & (s < labels)
        here = tl.load(there - width + s, mask=exists, other=-float("inf"))
        blank = tl.load(py + s * frames + t, mask=on_blank, other=-float("inf")).to(tl.float64)
        label = tl.load(px + s * px_frames + t, mask=on_label, other=-float("inf")).to(tl.float64)
        after_blank = tl.load(there + s, mask=exists, other=-float("inf"))
        after_label = tl.load(there + s + 1, mask=exists & (s < labels), other=-float("inf"))
        later = visits + ((d + 1) % 2) * width
        by_blank = tl.load(later + s, mask=exists, other=0.0) * _weight(here + blank - after_blank)
        by_label = tl.load(later + s + 1, mask=exists & (s < labels), other=0.0)
        by_label *= _weight(here + label - after_label)
        tl.store(gy + s * frames + t, by_blank, mask=on_blank)
        tl.store(gx + s * px_frames + t, by_label, mask=on_label)
        tl.store(visits + (d % 2) * width + s, by_blank + by_label, mask=exists)
        tl.debug_barrier()
        there -= width
        d -= 1


def solve_lattice(
    px: Tensor, py: Tensor, num_labels: Tensor, num_frames: Tensor, regular: bool, occupation: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """``lattice.solve_lattice`` by the kernels: scores (B,) float64, occupations shaped as the inputs."""
    batch, states, frames = py.shape
    if py.numel() == 0:
        return lattice.solve_lattice(px, py, num_labels, num_frames, regular, occupation)
    px, py = px.contiguous(), py.contiguous()
    labels = states - 1
    rows = frames + labels + 1 if regular else frames + 1
    alpha = py.new_empty((batch, rows, states), dtype=torch.float64)
    scores = py.new_empty(batch, dtype=torch.float64)
    inputs = px, py, num_labels.contiguous(), num_frames.contiguous(), alpha, scores
    sizes = labels, frames, px.shape[2], rows
    options = {"REGULAR": regular, "WIDTH": triton.next_power_of_2(states)}
    options["num_warps"] = min(8, max(1, options["WIDTH"] // 32))
    _lattice_forward[(batch,)](*inputs, *sizes, **options)
    if not occupation:
        return scores, None, None
    gx, gy = torch.zeros_like(px), torch.zeros_like(py)
    visits = alpha.new_empty((batch, 2, states))
    _lattice_backward[(batch,)](*inputs, visits, gx, gy, *sizes, **options)
    return scores, gx, gy


# ------------------------------------------------------------------------------------------- pruned band
@triton.jit
def _emit(alpha, label, place, size):
    """Any number of labels inside a frame: alpha[r] takes alpha[r-1] and the label of state r - 1."""
    r = 1
    while r < size:
        alpha = tl.where(place == r, _logadd(alpha, _at(alpha + label, place, r - 1)), alpha)
        r += 1
    return alpha


@triton.jit(do_not_specialize=["frames", "size"])
def _band_forward(
    px, py, start, num_labels, num_frames, alpha, scores, frames, size,
    REGULAR: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """alpha (B, T+1, R); the virtual frame T_b has the window of the last frame, as in ``band``."""
    b = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, WIDTH)
    exists = place < size
    end = tl.load(num_frames + b).to(tl.int32)
    px += b * frames * size
    py += b * frames * size
    start += b * frames
    alpha += b * (frames + 1) * size
    first = tl.load(start).to(tl.int32)
    row = tl.where(first + place == 0, 0.0, -float("inf")).to(tl.float64)
    if REGULAR:
        row = _emit(row, tl.load(px + place, mask=exists, other=-float("inf")).to(tl.float64), place, size)
    tl.store(alpha + place, row, mask=exists)
    t = 0
    while t < end:
        following = tl.load(start + tl.minimum(t + 1, end - 1)).to(tl.int32)
        shift = following - first
        blank = tl.load(py + t * size + place, mask=exists, other=-float("inf")).to(tl.float64)
        arrived = _moved(row + blank, place, shift, size, -float("inf"))
        if REGULAR:
            inside = exists & (t + 1 + 0 * place < frames)
            label = tl.load(px + (t + 1) * size + place, mask=inside, other=-float("inf")).to(tl.float64)
            row = _emit(arrived, label, place, size)
        else:
            label = tl.load(px + t * size + place, mask=exists, other=-float("inf")).to(tl.float64)
            row = _logadd(arrived, _moved(row + label, place, shift - 1, size, -float("inf")))
        row = tl.where(exists, row, -float("inf"))
        first = following
        t += 1
        tl.store(alpha + t * size + place, row, mask=exists)
    last = tl.load(num_labels + b).to(tl.int32) - first
    score = tl.where((last >= 0) & (last < size), _at(row, place, last), -float("inf"))
    tl.store(scores + b, score)


@triton.jit(do_not_specialize=["frames", "size"])
def _band_backward(
    px, py, start, num_labels, num_frames, alpha, scores, gx, gy, frames, size,
    REGULAR: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Occupations gx, gy (B, T, R). ``visits``: probability that a path is in a state of the later frame."""
    b = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, WIDTH)
    exists = place < size
    end = tl.load(num_frames + b).to(tl.int32)
    px += b * frames * size
    py += b * frames * size
    gx += b * frames * size
    gy += b * frames * size
    start += b * frames
    alpha += b * (frames + 1) * size
    later = tl.load(start + tl.maximum(end - 1, 0)).to(tl.int32)
    score = tl.load(scores + b)
    reached = tl.where((score > -float("inf")) & (score < float("inf")), 1.0, 0.0)
    last = tl.load(num_labels + b).to(tl.int32) - later
    visits = tl.where(place == last, reached, 0.0).to(tl.float64)
    t = end - 1
    while t >= 0:
        first = tl.load(start + t).to(tl.int32)
        shift = later - first
        here = tl.load(alpha + t * size + place, mask=exists, other=-float("inf"))
        there = tl.load(alpha + (t + 1) * size + place, mask=exists, other=-float("inf"))
        blank = tl.load(py + t * size + place, mask=exists, other=-float("inf")).to(tl.float64)
        label = tl.load(px + t * size + place, mask=exists, other=-float("inf")).to(tl.float64)
        landing = _moved(there, place, -shift, size, -float("inf"))
        by_blank = _moved(visits, place, -shift, size, 0.0) * _weight(here + blank - landing)
        if REGULAR:
            by_label = tl.zeros_like(by_blank)
            visits = by_blank
            r = size - 1
            while r > 0:
                flow = _at(visits, place, r) * _weight(here + label - _at(here, place, r))
                flow = tl.where(place == r - 1, flow, 0.0)
                by_label += flow
                visits += flow
                r -= 1
        else:
            landing = _moved(there, place, 1 - shift, size, -float("inf"))
            by_label = _moved(visits, place, 1 - shift, size, 0.0) * _weight(here + label - landing)
            visits = by_blank + by_label
        tl.store(gy + t * size + place, by_blank, mask=exists)
        tl.store(gx + t * size + place, by_label, mask=exists)
        later = first
        t -= 1


def solve_band(
    px: Tensor,
    py: Tensor,
    start: Tensor,
    num_labels: Tensor,
    num_frames: Tensor,
    regular: bool,
    occupation: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """``band.solve_band`` by the kernels: scores (B,) float64, occupations shaped and typed as the inputs."""
    if py.numel() == 0:
        return band.solve_band(px, py, start, num_labels, num_frames, regular, occupation)
    batch, frames, size = py.shape
    px, py = px.contiguous(), py.contiguous()
    alpha = py.new_empty((batch, frames + 1, size), dtype=torch.float64)
    scores = py.new_empty(batch, dtype=torch.float64)
    inputs = px, py, start.contiguous(), num_labels.contiguous(), num_frames.contiguous(), alpha, scores
    options = {"REGULAR": regular, "WIDTH": triton.next_power_of_2(size), "num_warps": 1}
    _band_forward[(batch,)](*inputs, frames, size, **options)
    if not occupation:
        return scores, None, None
    gx, gy = torch.zeros_like(px), torch.zeros_like(py)
    _band_backward[(batch,)](*inputs, gx, gy, frames, size, **options)
    return scores, gx, gy
