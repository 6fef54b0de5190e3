"""Time of ABX error rates beside fastabx, on the same frames and phones, in one process.

    python tools/benchmarks/abx.py
    python tools/benchmarks/abx.py --phones 2000 --speakers 10 --rounds 1

fastabx (PyPI, Python 3.12 and newer) is no part of the requirements: `pip install --no-deps fastabx
torchdtw polars polars-runtime-32`. Where no triplet is left out both must find the same rate to 1e-5, or
there is nothing to compare. Reading of the files is counted for both. The two alternate; the ratio of
their processor times is formed in each round, its median printed. "limited" is what the command asks by
itself (ZeroSpeech: 10 items, 5 speakers of x); which ones they draw is each one's own, so these rates
differ a little.

--record NAME leaves the table in docs/results for RESULTS.md.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import torch
from recording import quiet, recorded

from spear_lib.evaluation.abx.rates import AbxConfig, abx, cut_segments
from spear_lib.evaluation.alignments import read_phones

RATE = 50
CENTER = Fraction(1, 2 * RATE)  # fastabx: frame i is at (i + 1/2) / rate
ALL = AbxConfig(max_items=0, max_x_speakers=0)


def make_corpus(folder: Path, phones: int, speakers: int, kinds: int, channels: int) -> None:
    """Files of 20 phones of 4 to 14 frames, whose frames are their phone's and speaker's means and noise."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(kinds, channels, generator=generator)
    voices = torch.randn(speakers, channels, generator=generator)
    lines = ["#file onset offset #phone prev-phone next-phone speaker"]
    for number in range((phones + 19) // 20):
        speaker = number % speakers
        labels = torch.randint(kinds, (min(20, phones - 20 * number),), generator=generator)
        lengths = torch.randint(4, 15, labels.shape, generator=generator)
        frames = (means[labels] + voices[speaker]).repeat_interleave(lengths, 0)
        frames = frames + 8.0 * torch.randn(frames.shape, generator=generator)
        torch.save(frames, folder / f"f{number}.pt")
        ends = lengths.cumsum(0)
        names = ["#", *(f"p{label}" for label in labels.tolist()), "#"]
        for index, (end, length) in enumerate(zip(ends.tolist(), lengths.tolist())):
            times = f"{(end - length) / RATE:.2f} {end / RATE:.2f}"
            lines.append(f"f{number} {times} {names[index + 1]} {names[index]} {names[index + 2]} s{speaker}")
    (folder / "phones.item").write_text("\n".join(lines) + "\n", encoding="utf-8")


def ours(folder: Path, speaker: str, config: AbxConfig) -> float:
    """The error rate from the files, context any."""
    frames = {path.stem: torch.load(path) for path in folder.glob("*.pt")}
    segments = cut_segments(read_phones([folder / "phones.item"]), frames, RATE, CENTER)
    return abx(segments, speaker, "any", "angular", config).error


def peer(folder: Path, speaker: str, config: AbxConfig) -> float:
    """The same by fastabx."""
    from fastabx import zerospeech_abx

    return zerospeech_abx(
        folder / "phones.item",
        folder,
        max_size_group=config.max_items or None,
        max_x_across=config.max_x_speakers or None,
        speaker=speaker,
        context="any",
        distance="angular",
        frequency=RATE,
        device="cpu",
        progress=False,
    )


def timed(function: Callable[..., float], *arguments: object) -> tuple[float, float]:
    """(what it returns, processor seconds)."""
    started = time.process_time()
    value = function(*arguments)
    return value, time.process_time() - started


@recorded("made-up frames of made-up phones")
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--phones", type=int, default=10000)
    parser.add_argument("--speakers", type=int, default=40)
    parser.add_argument("--kinds", type=int, default=39, help="phones that there are")
    parser.add_argument("--channels", type=int, default=256, help="of a frame")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args(argv)
    try:
        import fastabx  # noqa: F401
    except (ImportError, SyntaxError) as error:
        print(f"fastabx cannot be imported ({error}); see --help of this script: its times are missing")
        peers = None
    else:
        peers = peer
    torch.set_num_threads(1)
    print(
        "| speakers | triplets | error, ours % | fastabx % | ours, CPU s | fastabx, CPU s | fastabx / ours |"
    )
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name, quiet():
        folder = Path(name)
        make_corpus(folder, arguments.phones, arguments.speakers, arguments.kinds, arguments.channels)
        for speaker, which, config in (
            ("within", "all", ALL),
            ("within", "limited", AbxConfig()),
            ("across", "limited", AbxConfig()),
        ):
            found: dict[str, list[tuple[float, float]]] = {"ours": [], "peer": []}
            for _ in range(arguments.rounds):
                found["ours"].append(timed(ours, folder, speaker, config))
                if peers:
                    found["peer"].append(timed(peers, folder, speaker, config))
            error = found["ours"][0][0]
            cells = [
                f"{100 * error:.3f}",
                "",
                f"{statistics.median(t for _, t in found['ours']):.1f}",
                "",
                "",
            ]
            if peers:
                other = found["peer"][0][0]
                if config == ALL and abs(error - other) > 1e-5:
                    raise RuntimeError(f"{speaker}: {error} here, {other} by fastabx: nothing to compare")
                ratios = [b[1] / a[1] for a, b in zip(found["ours"], found["peer"])]
                cells[1] = f"{100 * other:.3f}"
                cells[3] = f"{statistics.median(t for _, t in found['peer']):.1f}"
                cells[4] = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"| {' | '.join([speaker, which, *cells])} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
