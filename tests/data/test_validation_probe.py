"""The probe of the features at validation: what it asks, that ranks share it, that it disturbs nothing."""

import numpy as np
import pytest
import torch
from asr_fixtures import TINY_ENCODER, make_cuts
from pretraining_fixtures import make_corpus, write_config
from test_pretrain_two_teachers import call
from test_probe_events import make_clips

from spear_lib.data.manifests import Manifest, save_cuts
from spear_lib.encoders import load_encoder
from spear_lib.evaluation.validation_probe import ValidationProbe, ValidationProbeConfig
from spear_lib.runtime.world import World
from spear_lib.training.validation import ProbeReports


class OneOfTwo(World):
    """A process of two whose sums stay its own."""

    def sum(self, values):
        return values

    def union(self, values):
        return values


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    return {
        "speech": str(make_cuts(folder, "dev", 48, [0, 1, 2, 3])),
        "clips": str(make_clips(folder, "clips", 24)),
        "bare": str(make_clips(folder, "bare", 6, labelled=False)),
    }


def make_probe(sets, world=None, **config):
    torch.manual_seed(0)
    encoder = load_encoder(TINY_ENCODER)
    return ValidationProbe(encoder, sets, ValidationProbeConfig(**config), world or World())


def test_asks_what_the_cuts_carry(sets):
    probe = make_probe(sets)
    assert list(probe.facts()) == ["probe on speech", "probe on clips"]
    results = probe.measure()
    speech = {"speaker_accuracy", "words_average_precision"}
    assert set(results["speech"]) == speech | {f"log_mel/{name}" for name in speech}
    assert results["clips"]["log_mel/events_average_precision"] > 95
    assert all(0 < value <= 100 for values in results.values() for value in values.values())
    line = probe.describe(results["speech"])
    assert line.startswith("speaker accuracy ") and "% (log-mel " in line
    assert probe.measure() == results  # nothing is drawn, nothing is kept
    few = make_probe(sets, max_cuts=16).sets["speech"].cuts.speakers
    assert [few.count(who) for who in sorted(set(few))] == [8, 8]


def test_two_processes_share_the_batches_and_find_the_same(sets, monkeypatch):
    monkeypatch.setattr("spear_lib.evaluation.validation_probe.BATCH_SECONDS", 5.0)
    whole = make_probe(sets)
    parts = [make_probe(sets, OneOfTwo(rank, 2)) for rank in (0, 1)]
    for name in ("speech", "clips"):
        cuts = whole.sets[name].cuts
        features = whole._features(cuts)
        halves = [part._features(part.sets[name].cuts) for part in parts]
        assert all((half == 0).all(1).any() and (half != 0).any() for half in halves)
        assert np.array_equal(halves[0] + halves[1], features)
    assert parts[1].measure() == {}


def test_nothing_to_ask_is_said_once_and_off_is_off(sets, caplog):
    with caplog.at_level("INFO"):
        assert not make_probe({"bare": sets["bare"]})
    assert caplog.text.count("no probe of the features: no validation set has enough") == 1
    caplog.clear()
    assert not make_probe(sets, every=0) and not caplog.text
    with pytest.raises(ValueError, match="probe.every is -1"):
        ValidationProbeConfig(every=-1)
    with pytest.raises(ValueError, match="probe.max_cuts is 3, expected at least 8"):
        ValidationProbeConfig(max_cuts=3)


def test_features_that_are_not_finite_give_no_numbers(sets, caplog):
    probe = make_probe(sets)
    for parameter in probe.encoder.parameters():
        parameter.data.fill_(float("nan"))
    assert probe.measure() == {} and "features of the encoder are not finite" in caplog.text


def test_the_cost_is_logged_with_advice(caplog):
    class Written(list):
        def write(self, step, epoch, kind, values):
            self.append((step, kind, values))

    class Slow:
        every = 2

        def measure(self, between_batches):
            return {"dev": {"speaker_accuracy": 50.0}}

        def describe(self, values):
            return "words"

    written = Written()
    reports = ProbeReports(Slow(), written, World())
    assert [reports.due(number) for number in range(4)] == [True, False, True, False]
    with caplog.at_level("INFO"):
        reports.report(0, 0, 0.0)
        reports.report(10, 0, 1e9)
        reports.report(20, 0, 2e9)
    assert "0.0 % of the training time so far" in caplog.text and "lower probe.max_cuts" not in caplog.text
    with caplog.at_level("INFO"):
        reports._spent = 1e9
        reports.report(30, 0, 3e9)
    assert "33.3 % of the training time so far: raise probe.every or lower probe.max_cuts" in caplog.text
    assert [(step, kind) for step, kind, _ in written] == [(step, "probe/dev") for step in (0, 10, 20, 30)]
    assert not ProbeReports(None, written, World()).due(0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Tones with tokens and, in the validation cuts, speakers."""
    folder = tmp_path_factory.mktemp("probed")
    train, valid = make_corpus(folder, 10), make_corpus(folder, 12, "dev")
    cuts = list(Manifest(valid))
    for number, cut in enumerate(cuts):
        cut.supervisions[0].speaker = f"speaker-{number % 2}"
    save_cuts(cuts, valid)
    return write_config(folder, train, valid, max_steps=4, valid_interval=2, save_interval=2)


def without_times(lines):
    times = ("seconds", "audio_seconds_per_second")
    return [{name: value for name, value in line.items() if name not in times} for line in lines]


def test_pre_training_is_the_same_with_and_without_and_after_resuming(corpus, tmp_path):
    lines = call(corpus, tmp_path / "on")
    probed = [line for line in lines if line["kind"] == "probe/dev"]
    assert [line["step"] for line in probed] == [0, 2, 4]
    assert all({"speaker_accuracy", "log_mel/speaker_accuracy", "seconds"} <= set(line) for line in probed)
    off = call(corpus, tmp_path / "off", "--probe.every", "0")
    rest = [line for line in lines if line["kind"] != "probe/dev"]
    assert without_times(off) == without_times(rest)
    half = call(corpus, tmp_path / "parts", "--training.max_steps", "2")
    assert half[-1]["step"] == 2
    assert without_times(call(corpus, tmp_path / "parts")) == without_times(lines)
    with_scan = call(corpus, tmp_path / "scan", "--training.memory_scan", "always")
    assert without_times(with_scan) == without_times(lines)
    assert "memory scan: the largest batch of epoch 0" in (tmp_path / "scan" / "log.txt").read_text()
