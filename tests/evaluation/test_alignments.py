"""Readers of phones with times: the same phones from every format, exact borders, errors with their line."""

from fractions import Fraction

import pytest

from spear_lib.evaluation.alignments import is_silence, read_phones, read_speakers, with_speakers

LONG = '''File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 0.5
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 0.5
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 0.5
            text = "a ""word"""
    item [2]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 0.5
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 0.13
            text = "sil"
        intervals [2]:
            xmin = 0.13
            xmax = 0.29
            text = "ah"
        intervals [3]:
            xmin = 0.29
            xmax = 0.5
            text = "t"
'''
SHORT = """File type = "ooTextFile"
Object class = "TextGrid"

0
0.5
<exists>
2
"TextTier"
"points"
0
0.5
1
0.25
"here"
"IntervalTier"
"phones"
0
0.5
3
0
0.13
"sil"
0.13
0.29
"ah"
0.29
0.5
"t"
"""
FORMATS = {
    "spk1-u.TextGrid": LONG,
    "short/spk1-u.TextGrid": SHORT,
    "a.ctm": ";; comment\nspk1-u 1 0 0.13 sil\nspk1-u 1 0.13 0.16 ah 0.9\nspk1-u 1 0.29 0.21 t\n",
    "a.tsv": "utt\tstart_sample\tend_sample\tphone\n"
    "spk1-u\t0\t2080\tsil\nspk1-u\t2080\t4640\tah\nspk1-u\t4640\t8000\tt\n",
    "a.csv": "file,onset,offset,label,speaker\nspk1-u,0,0.13,sil,spk1\nspk1-u,0.13,0.29,ah,spk1\n"
    "spk1-u,0.29,0.5,t,spk1\n",
}


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_phones(tmp_path, name):
    phones = with_speakers(read_phones([write(tmp_path, name, FORMATS[name])]), None)
    assert [(phone.start, phone.end, phone.label, phone.previous, phone.next) for phone in phones] == [
        (Fraction(0), Fraction(13, 100), "sil", "#", "ah"),
        (Fraction(13, 100), Fraction(29, 100), "ah", "#", "t"),
        (Fraction(29, 100), Fraction(1, 2), "t", "ah", "#"),
    ]
    assert {(phone.file, phone.speaker) for phone in phones} == {("spk1-u", "spk1")}


def test_items_keep_their_own_neighbours(tmp_path):
    path = write(
        tmp_path, "x.item", "#file onset offset #phone prev next speaker\nf 0.1625 0.2350 T N IY s\n"
    )
    (phone,) = read_phones([path])
    assert (phone.start, phone.previous, phone.next, phone.speaker) == (Fraction(13, 80), "N", "IY", "s")


def test_a_folder_is_read_whole_and_utf_16_too(tmp_path):
    write(tmp_path, "b/one-1.TextGrid", LONG)
    (tmp_path / "two-1.TextGrid").write_bytes(SHORT.encode("utf-16"))
    write(tmp_path, "notes.txt", "no alignment")
    assert {phone.file for phone in read_phones([tmp_path])} == {"one-1", "two-1"}


def test_speakers_of_a_table(tmp_path):
    phones = read_phones([write(tmp_path, "a.ctm", FORMATS["a.ctm"])])
    table = write(tmp_path, "speakers.tsv", "utt\tspeaker\nspk1-u\tEve\n")
    assert {phone.speaker for phone in with_speakers(phones, read_speakers(table))} == {"Eve"}
    with pytest.raises(ValueError, match="lacks 1 files, for example spk1-u"):
        with_speakers(phones, {})
    with pytest.raises(ValueError, match="it needs utt and speaker"):
        read_speakers(write(tmp_path, "wrong.tsv", "a\tb\n"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.item", "f 0.1 0.2 T N\n", r"a\.item line 1: 'f 0.1 0.2 T N' is not file onset"),
        ("a.ctm", "f 1 zero 0.1 a\n", r"line 1: .* is not file channel start"),
        ("a.tsv", "utt\tstart\tphone\n", r"lacks end \(end or offset or end_sample\)"),
        ("a.tsv", "utt\tstart\tend\tphone\nf\t0\t\ta\n", "line 2: .* is not a row with two times"),
        ("a.TextGrid", "nothing", "is no TextGrid"),
        ("a.TextGrid", LONG.replace('"phones"', '"segments"'), "has the tiers words, segments"),
        ("a.wav", "", "the endings .item, .textgrid"),
        ("a.ctm", "\n", "no phones in"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        read_phones([write(tmp_path, name, text)])


def test_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        read_phones([tmp_path / "none.ctm"])


def test_silences():
    assert all(map(is_silence, ("", "sil", "SIL", "h#", "spn"))) and not is_silence("s")
