"""Bad cuts are counted and left out below the limit, and stop the run above it."""

import numpy as np
import pytest
import soundfile
from lhotse import Recording, SupervisionSegment

from spear_lib.corpora.validation import DUPLICATE, LENGTH, NO_TRANSCRIPT, validate_cuts
from spear_lib.data.audio import CORRUPT, EMPTY, MISSING
from spear_lib.data.problems import Problems


@pytest.fixture
def cuts(tmp_path):
    """20 good cuts of half a second."""
    random = np.random.default_rng(0)
    result = []
    for number in range(20):
        name = f"cut{number:02d}"
        path = tmp_path / f"{name}.flac"
        soundfile.write(path, random.normal(0, 0.1, 8000), 16000)
        cut = Recording.from_file(path, recording_id=name).to_cut()
        cut.id = name
        cut.supervisions = [SupervisionSegment(name, name, 0, cut.duration, text="SOME WORDS", speaker="1")]
        result.append(cut)
    return result


def path_of(cut):
    return cut.recording.sources[0].source


def spoil(kind, cuts):
    """Makes cut05 bad in one way."""
    cut = cuts[5]
    if kind == MISSING:
        __import__("os").unlink(path_of(cut))
    elif kind == CORRUPT:
        with open(path_of(cut), "r+b") as file:
            file.seek(300)
            file.write(bytes(3000))
    elif kind == EMPTY:
        open(path_of(cut), "wb").close()
    elif kind == NO_TRANSCRIPT:
        cut.supervisions[0].text = "  "
    elif kind == DUPLICATE:
        cut.id = "cut04"
    elif kind == LENGTH:
        cuts[5] = cut.truncate(duration=0.05, preserve_id=True)


def test_good_cuts_stay_in_order(cuts):
    kept, problems = validate_cuts(cuts, 0.0, num_jobs=2)
    assert kept == cuts and problems.num_bad == 0 and problems.num_seen == 20
    assert problems.describe() == "none"


@pytest.mark.parametrize("kind", [MISSING, CORRUPT, EMPTY, NO_TRANSCRIPT, DUPLICATE, LENGTH])
def test_one_bad_cut_is_skipped_below_the_limit_and_stops_above_it(cuts, kind):
    spoil(kind, cuts)
    kept, problems = validate_cuts(cuts, 0.05)
    assert kept == cuts[:5] + cuts[6:]
    assert problems.names(kind) == [cuts[5].id]
    assert problems.to_dict()["kinds"] == {kind: 1} and problems.to_dict()["skipped"] == 1
    with pytest.raises(ValueError, match=rf"1 of 20 cuts .* limit is 4 %: 1 {kind} \({cuts[5].id}\)"):
        validate_cuts(cuts, 0.04)


def test_transcripts_and_audio_are_optional(cuts):
    spoil(NO_TRANSCRIPT, cuts)
    spoil(MISSING, cuts)
    kept, _ = validate_cuts(cuts, 0.0, need_text=False, check_audio=False)
    assert len(kept) == 20


def test_shortened_file_is_found(cuts):
    soundfile.write(path_of(cuts[3]), np.zeros(4000), 16000)
    _, problems = validate_cuts(cuts, 0.1)
    assert problems.names(CORRUPT) == ["cut03"]


def test_8_khz_is_kept_and_counted(cuts, tmp_path):
    path = tmp_path / "slow.wav"
    soundfile.write(path, np.random.default_rng(1).normal(0, 0.1, 4000), 8000)
    cut = Recording.from_file(path, recording_id="slow").to_cut()
    cut.supervisions = cuts[0].supervisions
    kept, problems = validate_cuts([*cuts, cut], 0.0)
    assert len(kept) == 21 and problems.notes == {"resampled from 8000 Hz": 1}


@pytest.mark.parametrize("start, end, outside", [(-20.0, 40.0, True), (0.2, 1.0, True), (-0.03, 0.53, False)])
def test_text_outside_the_audio_is_counted(cuts, start, end, outside):
    said = cuts[7].supervisions[0]
    said.start, said.duration = start, end - start
    kept, problems = validate_cuts(cuts, 0.1)
    assert len(kept) == 20 - outside and problems.names("text outside the audio") == ["cut07"] * outside
    assert len(validate_cuts(cuts, 0.0, need_text=False)[0]) == 20


def test_a_transcribed_file_of_which_half_is_zeros_is_counted(cuts, tmp_path):
    """A download that was given its room on disk and then stopped: its header is right."""
    noise = np.random.default_rng(0).normal(0, 0.1, 64000)
    for number, speech in enumerate((20000, 40000)):
        path = tmp_path / f"part{number}.wav"
        soundfile.write(path, np.where(np.arange(64000) < speech, noise, 0.0), 16000)
        cut = Recording.from_file(path, recording_id=f"part{number}").to_cut().with_id(f"part{number}")
        cut.supervisions = [SupervisionSegment(cut.id, cut.id, 0, 4.0, text="SOME WORDS")]
        cuts.append(cut)
    kept, problems = validate_cuts(cuts, 0.1)
    assert problems.names("nothing but zeros in its second half") == ["part0"] and len(kept) == 21
    assert len(validate_cuts(cuts, 0.0, need_text=False)[0]) == 22


def test_nothing_left(cuts):
    for cut in cuts:
        cut.supervisions[0].text = ""
    with pytest.raises(ValueError, match="no usable cuts are left: 20 without transcript"):
        validate_cuts(cuts, 1.0)
    with pytest.raises(ValueError, match="no usable cuts are left: none"):
        validate_cuts([], 1.0)


def test_continues_a_count(cuts):
    problems = Problems(0.2, "utterances")
    for number in range(5):
        problems.bad("transcript without audio", f"gone{number}")
    _, result = validate_cuts(cuts, problems=problems)
    assert result is problems and problems.num_seen == 25
    problems.bad("transcript without audio", "gone5")
    with pytest.raises(ValueError, match="6 of 26 utterances"):
        problems.check()
