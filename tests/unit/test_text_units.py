"""BPE and character units: round trips, identities and the errors that a user will meet."""

import re

import pytest

from spear_lib.asr.units import CharacterUnits, TextUnits, character_units, train_bpe, unwritable_references

SENTENCE = "THE CAT'S HAT SAT ON A MAT WHILE QUICK BROWN FOXES JUMP OVER LAZY DOGS AND VEX BIZARRE KINGS"
WORDS = SENTENCE.split()
TEXTS = [" ".join(WORDS[i:] + WORDS[: i // 2]) for i in range(len(WORDS))]


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    return TextUnits(train_bpe(TEXTS, 60, tmp_path_factory.mktemp("lang")))


def test_bpe_round_trip(bpe):
    assert bpe.vocab_size == len(bpe) == 60
    assert bpe.unit(bpe.blank_id) == "<blk>" and bpe.blank_id == 0
    for text in [*TEXTS, "  KING'S \t DOG\n"]:
        ids = bpe.encode(text)
        assert bpe.decode(ids) == " ".join(text.split())
        assert min(ids) > bpe.unk_id and max(ids) < bpe.vocab_size
    assert len(bpe.encode("THE CAT'S HAT")) < len("THE CAT'S HAT")
    assert bpe.encode("") == [] and bpe.decode([]) == ""
    assert bpe.decode([0, *bpe.encode("A MAT"), 0]) == "A MAT"


def test_bpe_is_reproducible_and_identified(bpe, tmp_path):
    again = train_bpe(iter(TEXTS), 60, tmp_path / "again")
    assert again.read_bytes() == bpe.path.read_bytes()
    assert TextUnits(tmp_path / "again").id == bpe.id
    other = TextUnits(train_bpe(TEXTS, 55, tmp_path / "other"))
    assert other.id != bpe.id and other.vocab_size == 55
    assert not list(tmp_path.rglob("*.tmp"))


def test_bpe_names_unknown_characters(bpe):
    with pytest.raises(ValueError, match=r"cannot write 'É' \(U\+00C9\) in the text 'CAFÉ'"):
        bpe.encode("CAFÉ")
    with pytest.raises(ValueError, match="other case"):
        bpe.encode("the cat")
    with pytest.raises(ValueError, match="cannot write"):
        bpe.encode("A <blk> MAT")


def test_the_mark_of_a_word_start_is_no_text(bpe, tmp_path):
    """sentencepiece would read it as a space, and lose it."""
    with pytest.raises(ValueError, match=r"cannot write '▁' \(U\+2581\) in the text 'A▁MAT'"):
        bpe.encode("A▁MAT")
    with pytest.raises(ValueError, match="cannot write '▁'"):
        bpe.check("▁")
    with pytest.raises(ValueError, match="a transcript contains '▁', which is reserved.*'THE▁CAT'"):
        train_bpe([*TEXTS, "THE▁CAT"], 60, tmp_path)
    with pytest.raises(ValueError, match="cannot write '▁'"):
        character_units().encode("A▁MAT")


def test_references_that_cannot_be_written_are_counted_with_what_to_do(bpe):
    units = character_units()
    assert unwritable_references(units, ["A MAT", "", "KING'S  DOG"]) == (0, "")
    number, why = unwritable_references(units, ["a mat", "A MAT.", "KING’S DOG", "CAFÉ", "A DOG", "ROOM 5"])
    assert number == 5
    for cure in (
        "the other case",
        "plain form",
        "punctuation",
        "accents",
        "or train units on text that holds",
    ):
        assert cure in why
    assert "'.' (U+002E)" in why and "'’' (U+2019)" in why
    assert unwritable_references(bpe, ["THE CAT", "THE▁CAT", "the cat"])[0] == 2
    many = unwritable_references(units, ["abcdefghijklmnop"])[1]
    assert "and 6 more: the units know the other case" in many


def test_bpe_vocabulary_too_large_names_the_largest(tmp_path):
    with pytest.raises(ValueError, match="vocab_size is 5000, but") as caught:
        train_bpe(TEXTS, 5000, tmp_path)
    largest = int(re.search(r"at most (\d+) BPE units", str(caught.value)).group(1))
    assert not (tmp_path / "bpe.model").exists()
    assert TextUnits(train_bpe(TEXTS, largest, tmp_path)).vocab_size == largest
    with pytest.raises(ValueError, match=f"at most {largest} BPE units"):
        train_bpe(TEXTS, largest + 1, tmp_path)


def test_bpe_vocabulary_too_small_names_the_smallest(tmp_path):
    with pytest.raises(ValueError, match="vocab_size is 10, but the text has") as caught:
        train_bpe(TEXTS, 10, tmp_path)
    smallest = int(re.search(r"at least (\d+)", str(caught.value)).group(1))
    assert TextUnits(train_bpe(TEXTS, smallest, tmp_path)).vocab_size == smallest


def test_bpe_wrong_inputs(bpe, tmp_path):
    with pytest.raises(ValueError, match="no text"):
        train_bpe(["", "  "], 50, tmp_path)
    with pytest.raises(ValueError, match="reserved"):
        train_bpe(["A <blk> B"], 50, tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        TextUnits(tmp_path)
    (tmp_path / "bpe.model").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="no sentencepiece model"):
        TextUnits(tmp_path)
    with pytest.raises(ValueError, match="unit id 60 is outside"):
        bpe.decode([60])


def test_character_units():
    units = character_units()
    assert units.vocab_size == 29 and units.blank_id == 0
    ids = units.encode("  IT'S  A  DOG ")
    assert units.decode(ids) == "IT'S A DOG" and len(ids) == len("IT'S A DOG")
    assert units.encode(" 'A") == [2, 3] and units.encode("A Z") == [3, 1, 28]
    assert units.decode([0, 1, 3, 0, 1, 1, 4, 1]) == "A B"
    assert units.id != CharacterUnits("AB ").id
    with pytest.raises(ValueError, match=r"'1' \(U\+0031\), '\?' \(U\+003F\)"):
        units.encode("A1?")
    with pytest.raises(ValueError, match="other case"):
        units.encode("dog")
    with pytest.raises(ValueError, match="outside 0..28"):
        units.decode([29])
