"""Unit quality against golden numbers (scikit-learn) and cases that are known by hand."""

import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import homogeneity_score

from spear_lib.evaluation.alignments import Phone
from spear_lib.evaluation.unit_quality import (
    bit_rate,
    count_frames,
    phone_frames,
    quality_of_counts,
    repeats,
    unit_quality,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "abx" / "unit_quality"
CASES = json.loads((GOLDEN / "counts.json").read_text(encoding="utf-8"))["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_tables(case):
    found = quality_of_counts(np.array(case["counts"]))
    assert set(found) == set(case["expected"])
    for name, value in case["expected"].items():
        assert found[name] == pytest.approx(value, abs=1e-9), name


def test_sequences():
    content = json.loads((GOLDEN / "sequences.json").read_text(encoding="utf-8"))
    table = np.zeros((len(content["phones"]), content["num_units"]), dtype=np.int64)
    for row in content["files"]:
        counted = count_frames(np.array(row["phones_10ms"]), np.repeat(row["units_20ms"], 2), table)
        assert counted == row["counted_frames"]
    assert table.tolist() == content["counts"]
    found = quality_of_counts(table)
    units = [np.array(row["units_20ms"]) for row in content["files"]]
    found["bitrate_deduplicated"], runs = bit_rate(units, content["num_units"], content["seconds"])
    assert runs == content["deduplicated_units"]
    for name, value in content["expected"].items():
        if value is not None:
            assert found[name] == pytest.approx(value, abs=1e-9), name


def test_pnmi_is_homogeneity():
    random = np.random.default_rng(0)
    phones, units = random.integers(0, 5, 500), random.integers(0, 7, 500)
    units[phones == 2] = 3
    table = np.zeros((5, 7), dtype=int)
    count_frames(phones, units, table)
    assert quality_of_counts(table)["pnmi"] == pytest.approx(homogeneity_score(phones, units), abs=1e-9)


def test_from_phones_with_times():
    """0..60 ms "a", 60..75 ms silence (its frame is at 65 ms), 75..120 ms "b"; units of 20 ms."""
    borders = [Fraction(0), Fraction(60, 1000), Fraction(75, 1000), Fraction(120, 1000)]
    phones = [Phone("f", *pair, label) for *pair, label in zip(borders, borders[1:], ("a", "sil", "b"))]
    assert phone_frames(phones, ["SIL", "a", "b"]).tolist() == [1] * 6 + [0] + [2] * 5
    found = unit_quality(phones, {"f": np.array([1, 1, 1, 0, 2, 2])}, 4, 50, 0.12)
    assert found["frames"] == 12 and found["active_units"] == 3 and found["phones"] == 3
    assert found["phone_purity"] == pytest.approx(11 / 12)
    assert found["deduplicated_units"] == 3 and found["bitrate_deduplicated"] == pytest.approx(50.0)
    assert found["codebook_perplexity"] == pytest.approx(
        math.exp(-(6 / 12 * math.log(6 / 12) + 4 / 12 * math.log(4 / 12) + 2 / 12 * math.log(2 / 12)))
    )
    with pytest.raises(ValueError, match="f has 12 frames of phones and 4 of units"):
        unit_quality(phones, {"f": np.array([1, 1])}, 4, 50, 0.12)


def test_a_gap_in_an_alignment_is_not_counted():
    phones = [
        Phone("f", Fraction(0), Fraction(2, 100), "a"),
        Phone("f", Fraction(6, 100), Fraction(8, 100), "b"),
    ]
    assert unit_quality(phones, {"f": np.array([0, 1, 1, 2])}, 3, 50, 0.08)["frames"] == 4


def test_rates_that_fit():
    assert [repeats(rate) for rate in (100, 50, 25)] == [1, 2, 4]
    with pytest.raises(ValueError, match="units at 40 Hz"):
        repeats(40)
    with pytest.raises(ValueError, match="no frame has both"):
        quality_of_counts(np.zeros((2, 2)))
