"""tools/benchmarks/growth.py: exponents by hand, and what it finds of known growth."""

import math

import growth
import pytest


def test_exponents_by_hand():
    sizes = [1, 10, 100]
    assert growth.exponent(sizes, [3, 30, 300]) == pytest.approx(1.0)
    assert growth.exponent(sizes, [5, 500, 50_000]) == pytest.approx(2.0)
    assert growth.exponent(sizes, [7, 7, 7]) == pytest.approx(0.0)
    assert math.isnan(growth.exponent(sizes, [0, 1, 2]))
    row = growth.Growth("cuts", "seconds", sizes, [1, 1, 10]).row()
    assert row == ["cuts", "seconds", "1, 10, 100", "1, 1, 10", "0.50", "1.00"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": ("all",)}, "parts has 'all'; use step, stage_5, sampler"),
        ({"cuts": (10,)}, "two or more growing positive sizes"),
        ({"lengths": (10.0, 5.0)}, "two or more growing positive sizes"),
    ],
)
def test_wrong_options(changes, message):
    with pytest.raises(ValueError, match=message):
        growth.Options(**changes)


@pytest.mark.slow
def test_a_step_grows_with_the_batch_and_faster_with_the_length():
    options = growth.Options(size="tiny", lengths=(10.0, 60.0), utterances=(4, 8), measure=False)
    rows = {(row[0][:6], row[1]): float(row[4]) for row in (each.row() for each in growth.of_steps(options))}
    assert abs(rows["uttera", "kernels"]) < 0.02 and abs(rows["length", "kernels"]) < 0.1
    assert rows["uttera", "GFLOP"] == pytest.approx(1.0, abs=0.02)
    # Attention is quadratic in the length; linear layers are not.
    assert 1.05 < rows["length", "GFLOP"] < 2.0


def test_tables_of_cuts(capsys):
    growth.main(["--parts", "[stage_5, sampler]", "--stage_5_cuts", "[20, 40]", "--cuts", "[50, 100]"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| cuts of")]
    assert [row.split(" | ")[1] for row in rows] == [
        "CPU seconds",
        "more memory, MB",
        "making it, CPU seconds",
        "first batch of an epoch, CPU seconds",
        "a hundred more, CPU seconds",
        "more memory, MB",
    ]
