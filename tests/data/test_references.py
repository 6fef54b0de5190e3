"""The one function for a cut's transcript: order of time, and only text of the cut's own audio."""

import json

import pytest
from dataset_fixtures import make_cuts
from lhotse import SupervisionSegment

from spear_lib.asr.data import AsrData, AsrDataConfig
from spear_lib.data.manifests import Manifest, save_cuts
from spear_lib.data.references import references, text_outside, transcript, transcript_in
from spear_lib.evaluation.probe_cuts import Labels


def say(cut, *parts: tuple[float, float, str | None]):
    """``cut`` with supervisions (start, end in s, text), in this order."""
    cut.supervisions = [
        SupervisionSegment(f"{cut.id}-{n}", cut.recording_id, start, end - start, text=text)
        for n, (start, end, text) in enumerate(parts)
    ]
    return cut


def test_training_units_and_scoring_read_the_same_words_in_the_order_of_time(tmp_path):
    cuts = make_cuts(tmp_path / "wav", 2)
    say(cuts[0], (0.5, 1.0, "FROM THE  VILLAGE"), (0.2, 0.3, None), (0.0, 0.5, " TEN HAMMERS ARE\n"))
    save_cuts(cuts, tmp_path / "cuts.jsonl")
    manifest = Manifest(tmp_path / "cuts.jsonl")
    expected = "TEN HAMMERS ARE FROM THE VILLAGE"
    assert transcript(cuts[0]) == references(manifest)["cut00"] == expected
    assert transcript_in(json.loads((tmp_path / "cuts.jsonl").read_text().splitlines()[0])) == expected
    data = AsrData(AsrDataConfig(train_cuts=[str(manifest.paths[0])], num_workers=0), training=False)
    texts = {name: text for b in data.epoch_batches(0) for name, text in zip(b.ids, b.texts)}
    assert texts == references(manifest)
    assert Labels.of(cuts[0]).words == tuple(sorted(expected.split()))


def test_text_of_other_audio_is_refused_with_its_times(tmp_path):
    cut = make_cuts(tmp_path / "wav", 1)[0]
    assert text_outside(say(cut, (-0.04, cut.duration + 0.04, "ROUNDED"))) == ""
    assert text_outside(say(cut, (-9.0, 99.0, None), (-9.0, 99.0, ""))) == ""  # nothing is said there
    for start, end in ((-20.0, 40.0), (0.0, cut.duration + 0.1), (-0.1, 0.5), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="cut cut00 lasts .* 'TEN HAMMERS' goes from .*do not belong"):
            transcript(say(cut, (0.0, 0.5, "GOOD"), (start, end, "TEN HAMMERS")))
        assert Labels.of(cut).words == ()  # a probe goes on without
    with pytest.raises(ValueError, match="cut cut00 has no transcript"):
        transcript(say(cut))
