"""Probes follow the labels of the cuts: sound events, words and speakers, both in one list of manifests."""

import json

import numpy as np
import pytest
import soundfile
import torch
from asr_fixtures import TINY_ENCODER, make_cuts
from lhotse import Recording, SupervisionSegment
from lhotse.cut import MonoCut
from test_finetune_probe import call

from spear_lib.data.manifests import save_cuts
from spear_lib.encoders import load_encoder, save_encoder
from spear_lib.evaluation.probe_cuts import read_cuts
from spear_lib.runtime import keyed_random

PITCHES = {"/m/low": 250.0, "/m/middle": 900.0, "/m/high": 3100.0}


def make_clips(folder, name, num_clips, labelled=True):
    """Clips of 0.6 s that sound one or two of three event classes; every class is a tone."""
    folder.mkdir(parents=True, exist_ok=True)
    time, cuts = np.arange(9600) / 16000, []
    for number in range(num_clips):
        random = keyed_random.generator("clips", name, number)
        events = [str(event) for event in random.choice(list(PITCHES), size=1 + number % 2, replace=False)]
        samples = 0.002 * random.standard_normal(len(time))
        for event in events:
            samples += 0.2 * np.sin(2 * np.pi * PITCHES[event] * random.uniform(0.9, 1.1) * time)
        id = f"{name}-{number:03d}"
        soundfile.write(folder / f"{id}.wav", samples, 16000)
        recording = Recording.from_file(folder / f"{id}.wav", recording_id=id)
        custom = {"audio_event": ";".join(events)} if labelled else None
        segment = SupervisionSegment(id, id, 0.0, recording.duration, custom=custom)
        cut = MonoCut(id, 0.0, recording.duration, 0, [segment], recording=recording)
        cuts.append(cut.with_custom("domain", "audio"))
    manifest = folder / f"clips_cuts_{name}.jsonl.gz"
    save_cuts(cuts, manifest)
    return manifest


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("events")
    torch.manual_seed(0)
    save_encoder(load_encoder(TINY_ENCODER), folder / "encoder", {})
    clips = {
        name: make_clips(folder, name, count) for name, count in (("train", 30), ("dev", 16), ("test", 16))
    }
    return {**clips, "encoder": folder / "encoder", "folder": folder}


def test_events_are_probed_where_clips_carry_them(corpus, tmp_path):
    call(corpus, tmp_path)
    result = json.loads((tmp_path / "probes.json").read_text())
    assert list(result["tasks"]) == ["events"] and result["num_labels"] == {"events": 3}
    events = result["tasks"]["events"]
    assert list(events) == ["pre-trained", "random weights", "log-mel"]
    assert events["log-mel"]["mean"] > 95 and events["log-mel"]["metric"] == "mean average precision"
    # 24 labels of 16 clips and 3 classes.
    assert "3 sound event classes" in result["description"]["events"]
    assert "50.0 %" in result["description"]["events"]


def test_speech_and_audio_in_one_list_are_probed_for_what_each_carries(corpus, tmp_path):
    sets = {"train": (24, [0, 1]), "dev": (16, [2, 3]), "test": (16, [4, 5])}
    speech = {name: make_cuts(tmp_path / "speech", name + "-speech", *of) for name, of in sets.items()}
    both = {name: f"{corpus[name]}, {path}" for name, path in speech.items()}
    call({**corpus, **both}, tmp_path / "both")
    call({**corpus, **speech}, tmp_path / "speech")
    call(corpus, tmp_path / "audio")
    tasks = {
        name: json.loads((tmp_path / name / "probes.json").read_text())["tasks"]
        for name in ("both", "speech", "audio")
    }
    assert list(tasks["both"]) == ["words", "events", "speaker"]
    # The other corpus beside it changes nothing but batch mates.
    for name, kinds in (("speech", ("words", "speaker")), ("audio", ("events",))):
        for kind in kinds:
            for features, value in tasks[name][kind].items():
                assert tasks["both"][kind][features]["mean"] == pytest.approx(value["mean"], abs=0.5)


def test_a_limit_holds_for_each_domain(corpus, tmp_path):
    speech = make_cuts(tmp_path, "few", 12, [0, 1])
    part = read_cuts([str(corpus["train"]), str(speech)], 8, seed=0)
    assert part.describe() == "16 cuts (words 8, speaker 8, events 8)"
    assert [len(rows) for _, rows in part.manifests] == [8, 8]


def test_cuts_without_labels_are_left_out_and_nothing_to_probe_is_explained(corpus, tmp_path, caplog):
    bare = make_clips(tmp_path, "bare", 4, labelled=False)
    with caplog.at_level("INFO"):
        part = read_cuts([str(corpus["dev"]), str(bare)], 0, seed=0)
    assert len(part) == 16 and "4 cuts without transcript, speaker or sound events" in caplog.text
    with pytest.raises(ValueError, match="nothing that can be probed: .* dev_cuts 0 cuts .no labels."):
        call({**corpus, "dev": bare}, tmp_path)


def test_too_rare_events_are_explained(corpus, tmp_path):
    with pytest.raises(ValueError, match="no event occurs in at least 29 of 30 .* lower min_event_count"):
        call(corpus, tmp_path, min_event_count="29")


def test_speakers_give_several_cuts_in_a_turn_and_durations_are_filtered(tmp_path):
    cuts = make_cuts(tmp_path, "many", 18, [0, 0, 1, 1, 2, 3])  # 6 cuts of two speakers, 3 of two
    four = read_cuts([str(cuts)], 8, seed=0, per_speaker=4)
    assert sorted(four.speakers.count(who) for who in set(four.speakers)) == [4, 4]
    assert {"speaker-0", "speaker-1"} == set(four.speakers)
    two = read_cuts([str(cuts)], 8, seed=0, per_speaker=2)
    assert sorted(two.speakers.count(who) for who in set(two.speakers)) == [2, 2, 2, 2]
    short = read_cuts([str(cuts)], 0, seed=0, accepts=lambda seconds: seconds < 0.7)
    durations = short.manifests[0][0].durations
    assert 0 < len(short) < 18 and all(durations[row] < 0.7 for row in short.manifests[0][1])
