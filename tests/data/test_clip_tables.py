"""Tables of labelled clips: what is read of them, and what is wrong with them, line by line."""

import pytest
from clip_fixtures import HEADER, JAMENDO, write

from spear_lib.corpora.clip_tables import read_audioset_segments, read_class_list, read_clips


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '-ZhevVpy1s0, zero, 10.000, "/m/012xff"\n',
            'line 4 .*expected YTID, start_seconds, end_seconds, "label',
        ),
        ("-ZhevVpy1s0, 0.000\n", "line 4"),
        (
            "-ZhevVpy1s0, 0.000, 10.000, /m/012xff, /m/09x0r\n",
            "line 4: expected four columns .*one quoted column",
        ),
        ('-ZhevVpy1s0, 10.000, 0.000, "/m/012xff"\n', "line 4: .*an end after the start"),
        ('-ZhevVpy1s0, 0.000, 10.000, "/m/012xff\n', "is no csv .*is a quote missing"),
    ],
)
def test_a_broken_line_of_audioset_is_named(tmp_path, line, message):
    path = write(tmp_path / "eval_segments.csv", HEADER + line)
    with pytest.raises(ValueError, match=message):
        list(read_audioset_segments(path, "eval"))


def test_labels_of_a_line_are_read_once_and_without_blanks(tmp_path):
    path = write(tmp_path / "e.csv", HEADER + 'abc, 0.000, 10.000, "/m/012xff, /m/012xff,,/m/09x0r"\n\n')
    assert [item.labels for item in read_audioset_segments(path, "eval")] == [("/m/012xff", "/m/09x0r")]


def test_class_list(tmp_path):
    text = 'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/05zppz,"Male speech, man speaking"\n'
    path = write(tmp_path / "classes.csv", text)
    assert read_class_list(path) == {"/m/09x0r": "Speech", "/m/05zppz": "Male speech, man speaking"}
    for wrong, message in (
        (text.replace("1,", "2,"), "line 3: expected index 1 and a mid that did not come before"),
        (text.replace("/m/05zppz", "/m/09x0r"), "found index '1' and mid '/m/09x0r'"),
        (text.replace("display_name", "name"), "expected the columns index, mid, display_name"),
        (text.replace('"', ""), "line 3 has 4 columns, its first line 3: .*not quoted"),
        (text.splitlines()[0], "holds no classes"),
    ):
        with pytest.raises(ValueError, match=message):
            read_class_list(write(path, wrong))
    path.write_bytes("index,mid,display_name\n0,/m/1,Café\n".encode("latin-1"))
    with pytest.raises(ValueError, match="is not UTF-8"):
        read_class_list(path)


def test_a_folder_that_is_none_says_what_is_expected(tmp_path):
    with pytest.raises(ValueError, match=r"unknown corpus 'audio_set'.*did you mean 'audioset'"):
        read_clips("audio_set", tmp_path)
    with pytest.raises(ValueError, match="is not a folder: expected DIR/vggsound.csv and the audio"):
        read_clips("vggsound", tmp_path / "no")
    with pytest.raises(ValueError, match="has none of eval_segments.csv, balanced_train"):
        list(read_clips("audioset", tmp_path))
    for corpus, name in (
        ("vggsound", "vggsound.csv"),
        ("freesound", "dev.csv"),
        ("music4all", "id_genres.csv"),
    ):
        with pytest.raises(ValueError, match=f"{name} does not exist: see the name, and the folder"):
            list(read_clips(corpus, tmp_path))
    with pytest.raises(ValueError, match="autotagging.tsv does not exist"):
        list(read_clips("mtg_jamendo", tmp_path))


@pytest.mark.parametrize(
    ("corpus", "name", "text", "message"),
    [
        ("vggsound", "vggsound.csv", "abc,one,rain,train\n", "line 1 .*expected YouTube id"),
        ("vggsound", "vggsound.csv", "abc,1,rain\n", "line 1 .*expected YouTube id"),
        ("vggsound", "vggsound.csv", "abc,1,rain,dev\n", "train or test"),
        (
            "freesound",
            "FSD50K.ground_truth/dev.csv",
            "file,labels\n",
            "expected the columns fname, labels, mids, split",
        ),
        ("music4all", "id_genres.csv", "id,genres\n", "expected the columns id, genres"),
        ("mtg_jamendo", "data/autotagging.tsv", "a\tb\n", "expected the columns TRACK_ID, ARTIST_ID"),
        ("mtg_jamendo", "data/autotagging.tsv", JAMENDO.replace("4.6", "long"), "line 2 .*expected TRACK_ID"),
    ],
)
def test_a_table_of_another_shape_is_refused(tmp_path, corpus, name, text, message):
    write(tmp_path / name, text)
    with pytest.raises(ValueError, match=message):
        list(read_clips(corpus, tmp_path))
