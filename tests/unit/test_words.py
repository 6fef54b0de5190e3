"""Words out of units, the windows of long recordings, and the join of their transcripts."""

import random

import pytest

from spear_lib.asr.units import character_units
from spear_lib.asr.words import Unit, Word, join, mean_confidence, words_of
from spear_lib.data.audio_windows import WindowConfig, plan_windows


def word(text: str, start: float, length: float = 0.2) -> Word:
    return Word(text, (Unit(text, start, start + length, 0.5),))


def texts(words: list[Word]) -> str:
    return " ".join(each.text for each in words)


def test_characters_become_words_with_times():
    units = character_units()
    ids = units.encode("GO ON")
    recognised = [Unit(units.unit(id), 0.1 * n, 0.1 * n + 0.04, 0.9) for n, id in enumerate(ids)]
    words = words_of(units, ids, recognised)
    assert [w.text for w in words] == ["GO", "ON"] and texts(words) == units.decode(ids)
    assert words[0].start == 0.0 and words[0].end == pytest.approx(0.14)
    assert words[1].end == pytest.approx(0.44) and words[1].confidence == pytest.approx(0.9)
    assert words[0].to_dict()["units"][1] == {"text": "O", "start": 0.1, "end": 0.14, "confidence": 0.9}


def test_units_without_letters_are_no_words():
    units = character_units()
    ids = [units.encode("A B")[1]] * 2  # two spaces
    assert words_of(units, ids, [Unit(" ", 0.0, 0.1, 1.0), Unit(" ", 0.2, 0.3, 1.0)]) == []
    assert words_of(units, [], []) == [] and mean_confidence([]) == 1.0


def test_join_at_the_word_both_have_nearest_the_middle():
    left = [word("A", 1.0), word("B", 2.0), word("C", 3.0), word("CUT", 3.9)]
    right = [word("TAIL", 2.1), word("C", 3.1), word("D", 4.0), word("E", 5.0)]
    assert texts(join(left, right, 2.0, 4.0)) == "A B C D E"


def test_word_that_moves_over_the_middle_is_neither_lost_nor_doubled():
    for left_start, right_start in ((2.95, 3.05), (3.05, 2.95)):
        left, right = [word("A", 1.0), word("B", left_start)], [word("B", right_start), word("C", 5.0)]
        assert texts(join(left, right, 2.0, 4.0)) == "A B C"


def test_repeated_words_are_paired_by_their_times():
    times = [0.5 * n for n in range(20)]
    left = [word("GO", t) for t in times if t < 6.0]
    right = [word("GO", t + 0.04) for t in times if t >= 4.0]
    assert len(join(left, right, 4.0, 6.0)) == 20


def test_without_agreement_the_longest_pause_decides():
    left = [word("A", 1.0), word("CARRY", 3.05), word("X", 3.5)]
    right = [word("Y", 2.0), word("CARRIE", 2.95), word("Z", 5.0)]
    # Pauses of the overlap: 2.2 to 2.95 and 3.25 to 3.5.
    assert texts(join(left, right, 2.0, 4.0)) == "A CARRIE Z"
    assert texts(join([word("A", 1.0)], [word("B", 5.0)], 2.0, 4.0)) == "A B"
    assert texts(join([], [word("B", 3.5)], 2.0, 4.0)) == "B"


def test_joined_windows_are_the_whole_text():
    """Every window sees the words inside it, moved by up to 0.1 s, and garbles those at its edges."""
    for seed in range(50):
        draw = random.Random(seed)
        config = WindowConfig(window_seconds=8.0, overlap_seconds=3.0)
        starts, time = [], 0.3
        while time < 60.0:
            starts.append(time)
            time += draw.uniform(0.25, 0.9)
        whole = [word(draw.choice("ABCDE"), start) for start in starts]
        joined, reached = [], 0.0
        for begin, end in plan_windows(61.0, config):
            seen = []
            for each in whole:
                if begin + 0.1 <= each.start <= end - 0.1:
                    near_edge = (each.start < begin + 0.5 and begin > 0) or each.start > end - 0.5
                    text = "?" if near_edge and end < 61.0 else each.text
                    seen.append(word(text, each.start + draw.uniform(-0.1, 0.1)))
            joined = join(joined, seen, begin, reached) if begin > 0 else seen
            reached = end
        assert texts(joined) == texts(whole), seed


@pytest.mark.parametrize("seconds", [0.1, 29.99, 30.0, 30.01, 56.0, 56.01, 3600.0])
def test_windows_cover_the_recording_and_overlap(seconds):
    config = WindowConfig()
    windows = plan_windows(seconds, config)
    assert windows[0][0] == 0.0 and windows[-1][1] == seconds
    assert all(end - begin <= 30.0 + 1e-9 for begin, end in windows)
    for (_, end), (begin, _) in zip(windows, windows[1:]):
        assert 4.0 - 1e-9 <= end - begin <= 30.0
    assert len(windows) == max(1, -(-int(1000 * (seconds - 30)) // 26000) + 1)


def test_window_options_are_checked():
    with pytest.raises(ValueError, match="overlap_seconds is 20 with window_seconds 30.*at most half"):
        WindowConfig(30.0, 20.0)
    with pytest.raises(ValueError, match="overlap_seconds is 0"):
        WindowConfig(30.0, 0.0)
    with pytest.raises(ValueError, match="batch_seconds is 0"):
        WindowConfig(batch_seconds=0.0)
