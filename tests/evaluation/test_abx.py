"""ABX error rates against fastabx, warping against a plain loop, and classes that must give 0 and 1/2."""

import csv
import json
import math
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from spear_lib.evaluation.abx.distances import DISTANCES, warp
from spear_lib.evaluation.abx.rates import AbxConfig, abx, cut_segments, frame_range
from spear_lib.evaluation.alignments import Phone, read_phones

GOLDEN = Path(__file__).parents[1] / "golden" / "abx"
CENTER = Fraction(1, 100)  # fastabx: frame i of 50 Hz is at (i + 1/2) / 50 s
ALL = AbxConfig(max_items=0, max_x_speakers=0)


def features(distance: str) -> dict[str, torch.Tensor]:
    if distance == "identical":
        lines = (GOLDEN / "units.jsonl").read_text(encoding="utf-8").splitlines()
        return {row["audio"]: torch.tensor(row["units"]).unsqueeze(1) for row in map(json.loads, lines)}
    return {path.stem: torch.from_numpy(np.load(path)) for path in (GOLDEN / "features").glob("*.npy")}


def rows(name: str) -> list[dict]:
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))["rows"]


@pytest.mark.parametrize("name", ["expected.json", "expected_librilight_bug.json"])
def test_the_rates_of_fastabx(name):
    cached = {}
    checked = 0
    for row in rows(name):
        key = row["item"], row["distance"]
        if key not in cached:
            phones = read_phones([GOLDEN / f"{row['item']}.item"])
            cached[key] = cut_segments(
                phones, features(row["distance"]), 50, CENTER, without_last="bug" in name
            )
        distance = {"identical": "units"}.get(row["distance"], row["distance"])
        result = abx(cached[key], row["speaker"], row["context"], distance, ALL)
        assert result.num_cells == row["cells"]
        assert result.error == pytest.approx(row["error"], abs=1e-5), row
        checked += 1
    assert checked >= 12


@pytest.mark.parametrize("speaker", ["within", "across"])
@pytest.mark.parametrize("context", ["within", "any"])
def test_every_cell_of_fastabx(speaker, context):
    segments = cut_segments(read_phones([GOLDEN / "phones.item"]), features("angular"), 50, CENTER)
    names = {"#phone": "phone", "#phone_b": "other", "speaker": "speaker", "speaker_x": "x_speaker"}
    names |= {"prev-phone": "previous", "next-phone": "next"}
    found = {}
    for cell in abx(segments, speaker, context, "angular", ALL).cells:
        found[tuple(cell[name] for name in sorted(names.values()))] = cell["error"]
    with open(GOLDEN / f"cells_{speaker}_{context}.csv", encoding="utf-8") as file:
        expected = list(csv.DictReader(file))
    assert len(found) == len(expected)
    for row in expected:
        cell = {ours: row.get(theirs, "") for theirs, ours in names.items()}
        cell["x_speaker"] = cell["x_speaker"] or cell["speaker"]
        key = tuple(cell[name] for name in sorted(names.values()))
        # One near tie of a triplet may fall on either side.
        assert found[key] == pytest.approx(float(row["score"]), abs=1e-3), row


def one_by_one(frames: np.ndarray) -> float:
    """A plain loop with a traceback."""
    cost = np.full((frames.shape[0] + 1, frames.shape[1] + 1), math.inf)
    cost[0, 0] = 0
    for i, j in np.ndindex(frames.shape):
        cost[i + 1, j + 1] = frames[i, j] + min(cost[i, j], cost[i + 1, j], cost[i, j + 1])
    i, j, cells = *frames.shape, 1
    while (i, j) != (1, 1):
        i, j = min(((i - 1, j - 1), (i, j - 1), (i - 1, j)), key=lambda at: cost[at])
        cells += 1
    return cost[-1, -1] / cells


@pytest.mark.parametrize("ties", [False, True])
def test_warping_against_a_plain_loop(ties):
    random = np.random.default_rng(0)
    frames = random.random((60, 70))
    if ties:
        frames = np.round(frames)
    count = 300
    rows, columns = (random.integers(1, 12, count) for _ in range(2))
    i, j = (random.integers(0, width - n + 1) for width, n in zip(frames.shape, (rows, columns)))
    places = (torch.from_numpy(each) for each in (70 * i + j, np.full(count, 70), rows, columns))
    found = warp([torch.from_numpy(frames)], *places)
    for value, a, n, b, m in zip(found.tolist(), i, rows, j, columns):
        assert value == pytest.approx(one_by_one(frames[a : a + n, b : b + m]), abs=1e-12)


def test_distances_of_frames():
    angular, euclidean = DISTANCES["angular"], DISTANCES["euclidean"]
    x, y = torch.randn(5, 8, dtype=torch.float64), torch.randn(7, 8, dtype=torch.float64)
    for i, j in ((0, 0), (4, 6), (2, 3)):
        cosine = float(x[i] @ y[j] / x[i].norm() / y[j].norm())
        assert angular(x, y)[i, j] == pytest.approx(math.acos(cosine) / math.pi)
        assert euclidean(x, y)[i, j] == pytest.approx(float((x[i] - y[j]).norm()))
    assert angular(torch.zeros(1, 3), torch.ones(1, 3)).item() == 0.5
    units = torch.tensor([[1, 2], [1, 3], [4, 5]])
    assert DISTANCES["units"](units, units).tolist() == [[0, 0.5, 1], [0.5, 0, 1], [1, 1, 0]]


def made_up(difference: float, num_items: int = 12, dim: int = 16) -> dict:
    """Two phones, two speakers, whose frames differ in mean by ``difference`` deviations."""
    generator = torch.Generator().manual_seed(0)
    phones, frames = [], {}
    for speaker in ("s1", "s2"):
        own = torch.randn(num_items * 2 * 5, dim, generator=generator)
        for number in range(num_items * 2):
            label = "ab"[number % 2]
            if label == "b":
                own[number * 5 : number * 5 + 5] += difference
            start = Fraction(number, 10)
            phones.append(Phone(speaker, start, start + Fraction(1, 10), label, speaker=speaker))
        frames[speaker] = own
    return {"phones": phones, "features": frames, "rate": 50, "first_center": CENTER}


@pytest.mark.parametrize("speaker", ["within", "across"])
def test_equal_classes_give_chance_and_far_ones_none(speaker):
    same = abx(cut_segments(**made_up(0.0, 40)), speaker, "any", "euclidean", ALL).error
    assert abs(same - 0.5) < 0.08
    assert abx(cut_segments(**made_up(50.0)), speaker, "any", "euclidean", ALL).error == 0.0


def test_fewer_triplets_are_a_sample_of_all():
    segments = cut_segments(**made_up(0.3, 30))
    all_of_them = abx(segments, "across", "any", "euclidean", ALL)
    few = [abx(segments, "across", "any", "euclidean", AbxConfig(8, 1, seed)) for seed in range(8)]
    assert {one.num_items for one in few} == {32} and all_of_them.num_items == 120
    assert few[0].error == abx(segments, "across", "any", "euclidean", AbxConfig(8, 1, 0)).error
    assert len({one.error for one in few}) > 1
    assert abs(np.mean([one.error for one in few]) - all_of_them.error) < 0.05


def test_at_most_so_many_speakers_of_x():
    generator = torch.Generator().manual_seed(0)
    phones, frames = [], {}
    for number in range(6):
        name = f"s{number}"
        frames[name] = torch.randn(30, 4, generator=generator)
        for place, label in enumerate("abcabc"):
            start = Fraction(place, 10)
            phones.append(Phone(name, start, start + Fraction(1, 10), label, speaker=name))
    segments = cut_segments(phones, frames, 50, CENTER)
    cells = abx(segments, "across", "any", "angular", AbxConfig(0, 2, 0)).cells
    of_pair = {}
    for cell in cells:
        of_pair.setdefault((cell["phone"], cell["other"], cell["speaker"]), set()).add(cell["x_speaker"])
    assert len(of_pair) == 3 * 2 * 6 and all(len(names) == 2 for names in of_pair.values())
    assert len({frozenset(names) for names in of_pair.values()}) > 3


def test_frames_on_the_border_are_counted_exactly():
    """0.29 * 50 - 0.5 is 13.999999999999998 in floats: one frame would be lost or won."""
    phone = Phone("f", Fraction("0.29"), Fraction("0.57"), "a")
    assert frame_range(phone, 50, CENTER) == (14, 29)
    assert frame_range(phone, 50, CENTER, without_last=True) == (14, 28)
    assert frame_range(phone, 50, Fraction(5, 1000)) == (15, 29)  # ours: 5, 25, 45, ... ms


def test_what_cannot_be_measured_is_said():
    case = made_up(1.0)
    with pytest.raises(ValueError, match=r"speaker is 'both': use within or across"):
        abx(cut_segments(**case), "both")
    late = Phone("s1", Fraction(3), Fraction(4), "a", speaker="s1")
    with pytest.raises(ValueError, match=r"a of s1 ends at 4 s, but the file has 120 frames"):
        cut_segments([*case["phones"], late], **{k: v for k, v in case.items() if k != "phones"})
    short = Phone("s1", Fraction("0.011"), Fraction("0.012"), "a", speaker="s1")
    rest = {name: value for name, value in case.items() if name != "phones"}
    with pytest.raises(ValueError, match="1 of 49 phones have no frame"):
        cut_segments([*case["phones"], short], **rest)
    assert cut_segments([*case["phones"], short], **rest, max_too_short=0.05).too_short == 1
    alone = [phone for phone in case["phones"] if phone.speaker == "s1"]
    with pytest.raises(ValueError, match=r"no triplet fulfils speaker 'across'.*1 speakers"):
        abx(cut_segments(alone, **rest), "across")


@pytest.mark.slow
def test_ten_thousand_phones_take_minutes():
    """39 phones of 40 speakers, 64 channels, the ZeroSpeech sample: both conditions."""
    generator = torch.Generator().manual_seed(0)
    phones, frames = [], {}
    for number in range(40):
        name = f"s{number:02d}"
        labels = torch.randint(39, (250,), generator=generator).tolist()
        lengths = torch.randint(3, 12, (250,), generator=generator).tolist()
        frames[name] = torch.randn(sum(lengths), 64, generator=generator)
        begin = 0
        for label, length in zip(labels, lengths):
            times = (Fraction(begin, 50), Fraction(begin + length, 50) - Fraction(1, 1000))
            phones.append(Phone(name, *times, f"p{label}", speaker=name))
            begin += length
    segments = cut_segments(phones, frames, 50, CENTER)
    started = time.process_time()  # whatever else runs on the machine
    for speaker in ("within", "across"):
        assert abs(abx(segments, speaker).error - 0.5) < 0.02
    assert time.process_time() - started < 300
