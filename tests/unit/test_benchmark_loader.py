"""tools/benchmarks/loader.py runs on a handful of cuts and says what it compares."""

import importlib.util
from pathlib import Path

PATH = Path(__file__).parents[2] / "tools" / "benchmarks" / "loader.py"


def test_benchmark_of_the_loader(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("benchmark_loader", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.benchmark(tmp_path, rounds=1, num_cuts=24, workers=1, batch_seconds=60.0, training_rate=1000.0)
    printed = capsys.readouterr().out
    assert printed.count("ours is ") == 5 and "Through 1 worker process(es)" in printed
    assert "trains on 1000 audio-seconds per second (--training-rate; an assumption" in printed
    # The peer delivers the same audio with tokens, whatever was mixed in.
    theirs = module.Theirs(tmp_path, 60.0, 0)
    ours = module.Ours(tmp_path, 60.0, 0)
    assert abs(theirs.epoch(1) - ours.epoch(1)) < 0.5
