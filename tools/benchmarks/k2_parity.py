"""Losses of spear_lib.transducer beside k2's, in one process (k2_parity.sh makes its environment).

    python tools/benchmarks/k2_parity.py [--batches 200] [--seed 0]

Random batches (sizes, types, scales, delay penalties, reductions, utterances without labels, of one frame,
with more labels than frames, padding) go through both libraries in float64 and float32: losses, gradients of
every input, occupations and prune ranges. Prints one line per quantity with the largest difference and its
limit; status 1 if a limit is passed. Needs nothing but torch and k2.
"""

import argparse
import collections
import sys

import torch

import spear_lib.transducer as ours

# Largest absolute difference allowed, of losses relative to max(1, |loss|). k2 computes the delay penalty in
# float32 whatever the input is, so float64 with a penalty has a limit of its own.
LIMITS = {"float64": 1e-11, "float64, delay penalty": 1e-5, "float32": 1e-4}


def random_batch(generator: torch.Generator, rnnt_type: str) -> dict:
    """Arrays and options of one batch that k2 1.23.4 accepts."""

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    batch, labels, classes = draw(1, 4), draw(1, 9), draw(2, 12)
    frames = labels + draw(0, 12)
    sizes = []
    for b in range(batch):
        t = frames if b == 0 else draw(1, frames)
        s = labels if b == 0 else draw(0, labels)
        sizes.append((s, t))  # modified with s > t: no path, an infinite loss from both
    peak = [0.5, 2.0, 6.0][draw(0, 2)]
    normal = {"generator": generator, "dtype": torch.float64}
    return {
        "lm": torch.randn(batch, labels + 1, classes, **normal) * peak,
        "am": torch.randn(batch, frames, classes, **normal) * peak,
        "symbols": torch.randint(1, classes, (batch, labels), generator=generator),
        "boundary": torch.tensor([[0, 0, s, t] for s, t in sizes]),
        "rnnt_type": rnnt_type,
        "delay_penalty": [0.0, 0.0, 0.1][draw(0, 2)],
        "reduction": ["none", "sum", "mean"][draw(0, 2)],
        "scales": [(0.25, 0.0), (0.1, 0.1), (0.0, 0.2)][draw(0, 2)],
        "s_range": draw(2, 5),
        "weights": torch.rand(batch, **normal) + 0.5,
        "noise": torch.randn(batch, frames, labels + 1, classes, **normal),
    }


def outcome(loss, inputs: list, weights) -> list:
    """[loss, gradient of each input]; "none" is weighted per utterance, infinite losses pull nothing."""
    weighted = loss * weights if loss.dim() else loss
    finite = torch.where(torch.isfinite(weighted), weighted, torch.zeros_like(weighted))
    return [loss.detach(), *torch.autograd.grad(finite.sum(), inputs)]


def run(library, data: dict, dtype: torch.dtype, ranges=None) -> dict:
    """Every quantity of one library, name -> tensors. ``ranges``: prune by these instead of its own."""
    lm, am = (data[name].to(dtype, copy=True).requires_grad_() for name in ("lm", "am"))
    symbols, boundary, weights = data["symbols"], data["boundary"], data["weights"].to(dtype)
    common = {name: data[name] for name in ("rnnt_type", "delay_penalty", "reduction")}
    common["boundary"] = boundary
    lm_scale, am_scale = data["scales"]
    simple, _ = library.rnnt_loss_simple(lm, am, symbols, 0, return_grad=True, **common)
    smoothed, occupation = library.rnnt_loss_smoothed(
        lm, am, symbols, 0, lm_only_scale=lm_scale, am_only_scale=am_scale, return_grad=True, **common
    )
    found = {
        "simple loss and gradients": outcome(simple, [lm, am], weights),
        "smoothed loss and gradients": outcome(smoothed, [lm, am], weights),
        "occupations": [x.detach() for x in occupation],
    }
    if ranges is None:
        ranges = library.get_rnnt_prune_ranges(*occupation, boundary, data["s_range"])
    found["prune ranges"] = [ranges]
    am_pruned, lm_pruned = library.do_rnnt_pruning(am=am, lm=lm, ranges=ranges)
    noise = data["noise"].to(dtype)
    index = ranges.unsqueeze(-1).expand(-1, -1, -1, noise.shape[-1])
    pruned = library.rnnt_loss_pruned(
        am_pruned + lm_pruned + noise.gather(2, index), symbols, ranges, 0, **common
    )
    found["pruned loss and gradients"] = outcome(pruned, [lm, am], weights)
    logits = (am.unsqueeze(2) + lm.unsqueeze(1) + noise).detach().requires_grad_()
    full = library.rnnt_loss(logits, symbols, 0, **common)
    found["full loss and gradient"] = outcome(full, [logits], weights)
    return found


def difference(name: str, ours_value, theirs_value) -> float:
    """Largest difference; losses relative to max(1, |loss|); inf where one is finite and the other is not."""
    if ours_value.shape != theirs_value.shape:
        return float("inf")
    both_infinite = (ours_value == theirs_value) & torch.isinf(theirs_value)
    gap = torch.where(both_infinite, torch.zeros_like(ours_value), (ours_value - theirs_value).abs())
    gap = gap / theirs_value.abs().clamp(min=1).masked_fill(both_infinite, 1)
    gap = torch.where(torch.isnan(gap), torch.full_like(gap, float("inf")), gap)
    return float(gap.max()) if gap.numel() else 0.0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batches", type=int, default=200, help="random batches per lattice type")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    try:
        import k2
    except ImportError as error:
        print(
            f"error: k2 cannot be imported here ({error}): run tools/benchmarks/k2_parity.sh", file=sys.stderr
        )
        return 1
    print(f"k2 {k2.__dev_version__}, torch {torch.__version__}: {options.batches} random batches per type")
    worst: dict[tuple[str, str], float] = collections.defaultdict(float)
    ranges_total = ranges_equal = wider = impossible = 0
    generator = torch.Generator().manual_seed(options.seed)
    for rnnt_type in ("regular", "modified", "constrained"):
        for _ in range(options.batches):
            data = random_batch(generator, rnnt_type)
            for dtype in (torch.float64, torch.float32):
                kind = str(dtype).replace("torch.", "")
                if dtype is torch.float64 and data["delay_penalty"] > 0:
                    kind += ", delay penalty"
                own, theirs = run(ours, data, dtype), run(k2, data, dtype)
                has_path = (data["boundary"][:, 2] <= data["boundary"][:, 3]) | (rnnt_type == "regular")
                own_ranges, their_ranges = own.pop("prune ranges")[0], theirs.pop("prune ranges")[0]
                same_size = own_ranges.shape == their_ranges.shape
                if dtype is torch.float64:
                    impossible += int((~has_path).sum())
                    wider += not same_size
                    if same_size:
                        ranges_total += int(has_path.sum())
                        ranges_equal += int((own_ranges == their_ranges).flatten(1).all(1)[has_path].sum())
                if not torch.equal(own_ranges, their_ranges):  # compare the losses on one band all the same
                    theirs = run(k2, data, dtype, own_ranges)
                for found in (own, theirs):  # k2's occupations of an impossible utterance mean nothing
                    found["occupations"] = [x[has_path] for x in found["occupations"]]
                for name, values in own.items():
                    for a, b in zip(values, theirs[name]):
                        worst[name, kind] = max(worst[name, kind], difference(name, a, b))
    failed = False
    for (name, kind), gap in sorted(worst.items()):
        good = gap <= LIMITS[kind]
        failed |= not good
        print(f"  {name:28s} {kind:23s} largest difference {gap:.1e}  limit {LIMITS[kind]:.0e}  "
              f"{'ok' if good else 'FAILED'}")  # fmt: skip
    print(f"  infinite losses (more labels than frames): {impossible}, the same utterances in both")
    print(f"  prune ranges: identical for {ranges_equal} of {ranges_total} utterances (ties may differ)")
    print(f"  prune ranges wider than k2 1.23's, as k2 1.24's are: {wider} batches")
    failed |= ranges_equal < 0.999 * ranges_total
    print("k2 parity: " + ("FAILED" if failed else "ok"))
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
