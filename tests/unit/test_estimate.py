"""The estimate of a token run: its figures against the sums done by hand."""

import pytest
from test_token_stages import call

from spear_lib.bin import estimate
from spear_lib.bin.estimate import Options, cost_lines, size
from spear_lib.teachers import create_teacher


class WavLMLarge:
    frame_rate, embedding_dim = 50.0, 1024


def test_figures_of_wavlm_large():
    """1000 h: 800 B/s of tokens, 205 kB/s of float32 embeddings (the issue's own figures)."""
    lines = cost_lines(Options(1000, rate=500, job_hours=0.5), WavLMLarge(), 500)
    assert lines["tokens"] == "2.88 GB (800 bytes per second of audio), about 45 shards"
    assert lines["not written"].startswith("737 GB")
    assert lines["device hours"].startswith("2 h (120 min) for 1000 h")
    assert lines["jobs"].startswith("--num_splits 4 (at most 0.5 h each: about 0.5 h; up to 45 jobs")
    small = cost_lines(Options(1, num_codebooks=1, codebook_size=500), WavLMLarge(), 1.0)
    assert small["tokens"] == "360 kB (100 bytes per second of audio), about 1 shards"
    assert small["jobs"].startswith("--num_splits 1 ")


def test_sizes():
    assert [size(each) for each in (1e3, 2.5e6, 3e9, 4.56e13)] == ["1 kB", "2.5 MB", "3 GB", "45.6 TB"]


def test_command_measures_a_rate(capsys):
    options = ("--hours", 10, "--measure_seconds", 0.05, "--batch_seconds", 4, "--clip_seconds", 2)
    call(estimate, *options, "--num_codebooks", 2)
    printed = capsys.readouterr().out
    assert "3.6 MB (100 bytes per second" in printed and "audio seconds per second of one device" in printed


def test_measured_rate_counts_audio(monkeypatch):
    """A clock that stands still but for one second per call: 2 clips of 2 s per second."""
    clock = iter(range(100))
    monkeypatch.setattr(estimate.time, "monotonic", lambda: float(next(clock)))
    options = Options(
        1, batch_seconds=4, clip_seconds=2, measure_seconds=0.5, num_codebooks=1, codebook_size=4
    )
    teacher = create_teacher("spectral")
    quantizer = estimate.Quantizer(teacher.embedding_dim, 1, 4).eval()
    # Began at 0, asked at 1 whether to stop (no calls yet), at 2 (one call done), stopped, read at 3.
    assert estimate.measure(teacher, quantizer, options) == pytest.approx(4 / 3)


def test_impossible_options():
    with pytest.raises(ValueError, match="hours is 0: it must be positive"):
        Options(0)
