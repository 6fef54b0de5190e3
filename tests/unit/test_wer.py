"""Word error rate against hand counts and a brute-force Levenshtein distance."""

import functools
import itertools

import pytest

from spear_lib.asr import wer
from spear_lib.runtime import keyed_random


def levenshtein(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    """By definition, with no table: the witness."""

    @functools.cache
    def distance(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return i + j
        return min(
            distance(i - 1, j) + 1,
            distance(i, j - 1) + 1,
            distance(i - 1, j - 1) + (a[i - 1] != b[j - 1]),
        )

    return distance(len(a), len(b))


def test_hand_counted_example():
    references = {
        "u1": "the cat sat on the mat",
        "u2": "HELLO   WORLD",
        "u3": "one two",
        "u4": "*",
    }
    hypotheses = {
        "u1": "the hat sat on mat today",  # cat->hat, -the-, +today+
        "u2": "HELLO WORLD",  # spaces collapse: right
        "u3": "",  # two deletions
        "u4": "",  # a literal asterisk is a word like any other: one deletion
    }
    errors = wer.score(references, hypotheses)
    assert (errors.substitutions, errors.deletions, errors.insertions) == (1, 4, 1)
    assert errors.num_words == 6 + 2 + 2 + 1
    assert errors.wer == pytest.approx(100 * 6 / 11)
    summary = errors.summary()
    assert summary["wer"] == 54.55  # 600/11 = 54.545...
    assert summary["num_wrong_utterances"] == 3
    assert [item["id"] for item in summary["worst"]] == ["u1", "u3", "u4"]
    assert summary["confusions"]["substitutions"] == [["cat->hat", 1]]
    assert errors.utterances[0].marked() == "the cat->hat sat on -the- mat +today+"


def test_characters_are_counted_with_their_spaces():
    # By hand: "ab c" -> "abc" lacks a space; "de" -> "" lacks two; "f  g" is "f g", three characters.
    errors = wer.score({"a": "ab c", "b": "de", "c": "f  g"}, {"a": "abc", "b": "", "c": "f g"})
    assert [utterance.character_errors for utterance in errors.utterances] == [1, 2, 0]
    assert errors.num_characters == 4 + 2 + 3
    assert (errors.summary()["cer"], errors.summary()["num_characters"]) == (33.33, 9)
    # The words have another alignment: three are wrong, one of them inserted nowhere.
    assert errors.wer == pytest.approx(100 * 3 / 5)
    random = keyed_random.generator("test_cer", 1)
    for trial in range(40):
        a, b = ("".join(random.choice(list("ab "), size=9)) for _ in range(2))
        utterance = wer.align_words(str(trial), f"x{a}", b)
        found = levenshtein(tuple(utterance.reference), tuple(utterance.hypothesis))
        assert utterance.character_errors == found


def test_case_and_punctuation_count():
    errors = wer.score({"u": "it's here"}, {"u": "It's here."})
    assert errors.substitutions == 2


def test_all_short_pairs_against_brute_force():
    words = "ab"
    sequences = [s for n in range(4) for s in itertools.product(words, repeat=n)]
    for a, b in itertools.product(sequences, sequences):
        utterance = wer.align_words("u", " ".join(a), " ".join(b))
        assert utterance.errors == levenshtein(a, b), (a, b)
        assert (utterance.reference.split(), utterance.hypothesis.split()) == (list(a), list(b))
        assert utterance.num_words == len(a)


def test_random_long_pairs_against_brute_force():
    random = keyed_random.generator("test_wer", 1)
    for trial in range(40):
        a = tuple(random.choice(list("abcde"), size=random.integers(0, 25)))
        b = tuple(random.choice(list("abcde"), size=random.integers(0, 25)))
        utterance = wer.align_words(str(trial), " ".join(a), " ".join(b))
        assert utterance.errors == levenshtein(a, b)


def test_interval_is_seeded_and_covers_the_rate():
    references = {str(i): "a b c d" for i in range(50)}
    hypotheses = {str(i): "a b c d" if i % 2 else "a x c d" for i in range(50)}
    errors = wer.score(references, hypotheses)
    low, high = errors.interval(seed=3)
    assert (low, high) == errors.interval(seed=3)
    assert (low, high) != errors.interval(seed=4)
    # Binomial with 50 draws of probability 1/2, a quarter of the words each: 12.5 +- 1.96 * 1.77 percent.
    assert low == pytest.approx(12.5 - 3.46, abs=0.6) and high == pytest.approx(12.5 + 3.46, abs=0.6)


def test_interval_of_identical_utterances_is_a_point():
    errors = wer.score({"a": "x y", "b": "x y"}, {"a": "x", "b": "x"})
    assert errors.interval() == (50.0, 50.0)


def test_interval_of_few_utterances_stays_a_rate():
    one_wrong = {"a": "x y", "b": "x y", "c": "x y"}, {"a": "x y", "b": "x y", "c": "x"}
    low, high = wer.score(*one_wrong).interval()
    assert low == 0 and high > 30
    # A quarter of the sets drawn from these two hold no reference word.
    assert wer.score({"a": "x y", "b": ""}, {"a": "x", "b": "z"}).interval() == (0.0, 100.0)


def test_missing_utterance_is_an_error():
    with pytest.raises(ValueError, match=r"1 of 2 utterances of test-clean have no decoding output.*'b'"):
        wer.score({"a": "x", "b": "y"}, {"a": "x"}, name="test-clean")


def test_unknown_utterance_is_an_error():
    with pytest.raises(ValueError, match="'z'.*another set"):
        wer.score({"a": "x"}, {"a": "x", "z": "y"})


def test_no_reference_word_is_an_error():
    with pytest.raises(ValueError, match="hold no word"):
        wer.score({"a": "  "}, {"a": "x"})


def test_errors_file(tmp_path):
    errors = wer.score({"a": "x y", "b": "z"}, {"a": "x q", "b": "z"})
    wer.write_errors(errors, tmp_path / "errs.txt", title="test-clean")
    text = (tmp_path / "errs.txt").read_text()
    assert "CER 25.00 % of 4 characters (spaces count)" in text
    assert "WER 33.33 %" in text and "a (1/2): x y->q" in text and "\nb (" not in text
    assert list(tmp_path.iterdir()) == [tmp_path / "errs.txt"]
