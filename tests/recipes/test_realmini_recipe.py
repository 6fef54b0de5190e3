"""egs/realmini: its readers and tables on made-up corpora, and on the real ones where they are at hand."""

import csv
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from toy_recipe import REPOSITORY

from spear_lib.data.audio import load_audio
from spear_lib.data.domains import domain_of
from spear_lib.data.manifests import Manifest

RECIPE = REPOSITORY / "egs" / "realmini"


@pytest.fixture(scope="module")
def local():
    """The modules of egs/realmini/local."""
    sys.path.insert(0, str(RECIPE / "local"))
    names = ("recordings", "prepare_part", "evaluation_tables", "prepare_noise")
    hidden = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    modules = {name: importlib.import_module(name) for name in names}
    yield modules
    sys.path.remove(str(RECIPE / "local"))
    for name in names:
        del sys.modules[name]
    sys.modules.update(hidden)


def table(path: Path, columns: str, rows: list[tuple]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(columns.split()), *("\t".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")


def sound(path: Path, seconds: float, rate: int = 16000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * rate)) / rate
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * (200 + len(path.stem) * 40) * time), rate)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """A made-up folder in the layout that --corpus-dir takes."""
    folder = tmp_path_factory.mktemp("corpora")
    rows = []
    for split, speakers, count in (("train", "abc", 40), ("test", "xy", 5)):
        for speaker in speakers:
            for number in range(count):
                name = f"an{number:02d}-{speaker}"
                rows.append((name, split, speaker, f"{split}/{name}.wav", "YES"))
                sound(folder / "an4" / split / f"{name}.wav", 0.5)
    table(folder / "an4" / "utterances.tsv", "utt split speaker path text", rows)
    for digit in range(3):
        for index in range(8):
            sound(folder / "fsdd" / "recordings" / f"{digit}_theo_{index}.wav", 0.25, rate=8000)
    meetings = [("trn00", "train", 2), ("dev00", "dev", 2), ("tst00", "test", 2)]
    rows = [(name, split, f"audio/{name}.wav", 12.0) for name, split, _ in meetings]
    ami = folder / "ami_diarization_mini"
    table(ami / "recordings.tsv", "recording split path seconds", rows)
    turns = [
        (split, name, start, 4.0, who) for name, split, _ in meetings for start, who in ((1, "A"), (3, "B"))
    ]
    table(ami / "segments.tsv", "split recording start duration speaker", turns)
    for name, _, _ in meetings:
        sound(ami / "audio" / f"{name}.wav", 12.0)
    rows = []
    for number in range(30):
        rows.append(
            (f"c{number:02d}", number % 5 + 1, ("rain", "dog")[number // 5 % 2], f"audio/c{number:02d}.wav")
        )
        sound(folder / "esc10" / "audio" / f"c{number:02d}.wav", 1.0)
    table(folder / "esc10" / "clips.tsv", "clip fold label path", rows)
    decay = np.exp(-np.arange(3200) / 400) * np.random.default_rng(0).standard_normal(3200)
    (folder / "noise_rir" / "rir").mkdir(parents=True)
    soundfile.write(folder / "noise_rir" / "rir" / "hall.flac", 0.3 * np.r_[1.0, 0.3 * decay], 16000)
    sound(folder / "noise_rir" / "noise" / "boiler.wav", 12.0)
    return folder


def part_of(local, corpora: Path, part: str, output: Path, *options: str) -> dict[str, Manifest]:
    given = ["--corpus", part, "--corpus-dir", str(corpora), "--output", str(output / "manifests"), *options]
    local["prepare_part"].main(given)
    return {
        name: Manifest(output / "manifests" / f"{part}_cuts_{name}.jsonl.gz") for name in ("train", "dev")
    }


def test_speech_is_of_three_corpora_and_of_no_test_speaker(local, corpora, tmp_path):
    sets = part_of(local, corpora, "speech", tmp_path)
    names = {name: [re.sub("-[0-9]+$", "", cut_id) for cut_id in sets[name].ids] for name in sets}
    # The first hundred by speaker are dev: all of a and b, half of c. Two cuts of each 12 s meeting.
    assert [sum(one.startswith(corpus) for one in names["train"]) for corpus in ("an4", "fsdd", "ami")] == [
        20,
        2,
        2,
    ]
    assert [sum(one.startswith(corpus) for one in names["dev"]) for corpus in ("an4", "fsdd", "ami")] == [
        100,
        0,
        2,
    ]
    assert not any("tst" in one or one.endswith(("-x", "-y")) for one in names["train"] + names["dev"])
    cuts = list(sets["train"])
    assert {domain_of(cut) for cut in cuts} == {"speech"} and max(cut.duration for cut in cuts) <= 10
    # Nine recordings from index 5 on: a string of eight and one of one; 0.25 s each, 0.15 s between them.
    strings = sorted(cut.duration for cut in cuts if cut.id.startswith("fsdd"))
    assert strings == pytest.approx([0.25, 8 * 0.25 + 7 * 0.15])
    # About half of the training speech sounds in the room, always the same; dev never does.
    in_rooms = {cut.id for cut in cuts if cut.recording.transforms}
    assert 0.2 < len(in_rooms) / len(cuts) < 0.8
    assert not any(cut.recording.transforms for cut in sets["dev"])
    again = part_of(local, corpora, "speech", tmp_path / "again")["train"]
    assert in_rooms == {cut.id for cut in again if cut.recording.transforms}
    one = next(cut for cut in cuts if cut.id in in_rooms and cut.id.startswith("an4"))
    dry, _ = soundfile.read(one.recording.sources[0].source, dtype="float32")
    wet = load_audio(one)
    assert len(wet) == len(dry) and np.isfinite(wet).all()
    response, _ = soundfile.read(corpora / "noise_rir" / "rir" / "hall.flac")
    expected = np.convolve(dry, response)[: len(dry)]
    assert np.corrcoef(wet, expected)[0, 1] > 0.999  # up to its level, the convolution by definition


def test_sounds_are_all_folds_without_labels(local, corpora, tmp_path):
    sets = part_of(local, corpora, "audio", tmp_path)
    assert (len(sets["train"]), len(sets["dev"])) == (28, 2)
    for cut in sets["train"]:
        assert domain_of(cut) == "audio" and not cut.supervisions and not cut.recording.transforms
    few = part_of(local, corpora, "audio", tmp_path / "few", "--max-recordings", "3")
    assert (len(few["train"]), len(few["dev"])) == (3, 2)


def test_what_is_missing_is_named(local, corpora, tmp_path):
    folder = tmp_path / "corpora"
    folder.mkdir()
    (folder / "fsdd").symlink_to(corpora / "fsdd")

    def refused(match: str) -> None:
        with pytest.raises(ValueError, match=match):
            part_of(local, folder, "speech", tmp_path)

    refused(
        "has no folder an4, ami_diarization_mini, which the part speech is made of: complete it, or change"
    )
    for name in ("an4", "ami_diarization_mini"):
        (folder / name).mkdir()
    refused("an4/utterances.tsv does not exist: the README of egs/realmini says")
    (folder / "an4" / "utterances.tsv").write_text("utt\tpath\n")
    refused(r"utterances.tsv has no column split, speaker: .* found utt, path")


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_tables_of_the_evaluation(local, corpora, tmp_path, caplog):
    tables = local["evaluation_tables"]
    tables.main(["--corpus-dir", str(corpora), "--output", str(tmp_path)])
    assert "no folder timit_nltk in" in caplog.text and not (tmp_path / "timit-phones.tsv").exists()
    assert {row["part"] for row in read(tmp_path / "esc10.tsv")} == set("12345")
    speakers = read(tmp_path / "an4-speakers.tsv")
    assert len(speakers) == 110 and {row["label"] for row in speakers} == set("abcxy")
    assert {row["part"] for row in speakers if row["label"] == "x"} == {f"fold{n}" for n in range(5)}
    stretches = [
        (row["part"], float(row["start"]), float(row["end"]), row["label"])
        for row in read(tmp_path / "ami-overlap.tsv")
        if row["part"] == "test"
    ]
    # A speaks from 1 to 5, B from 3 to 7.
    assert [each for each in stretches if each[3] == "overlap"] == [("test", 3.0, 5.0, "overlap")]
    assert stretches[0][1] == 0.0 and stretches[-1][2] == 12.0
    assert all(before[2] == after[1] for before, after in zip(stretches, stretches[1:]))
    tables.main(
        ["--corpus-dir", str(corpora), "--output", str(tmp_path), "--tasks", "esc10", "--max-recordings", "1"]
    )
    few = read(tmp_path / "esc10.tsv")
    assert len(few) == len({(row["part"], row["label"]) for row in few}) == 10


def test_overlap_is_counted_by_the_number_of_speakers(local):
    found = local["evaluation_tables"].stretches([(0, 2), (2, 3), (1, 9), (1.5, 2)], 4.0)
    # Touching turns do not overlap; three at once are one stretch; turns end with the recording.
    overlap = [(start, end) for start, end, label in found if label == "overlap"]
    assert sum(end - start for start, end in overlap) == pytest.approx(2.0) and overlap[0][0] == 1
    assert found[-1][1] == 4.0


TIMIT_PHONES = """
aa ae ah ao aw ax ax-h axr ay b bcl ch d dcl dh dx eh el em en eng epi er ey f g gcl h# hh hv
ih ix iy jh k kcl l m n ng nx ow oy p pau pcl q r s sh t tcl th uh uw ux v w y z zh
"""


def test_timits_phones_are_folded_to_39_classes(local):
    phones = TIMIT_PHONES.split()
    assert len(phones) == 61
    folded = {local["evaluation_tables"].CLASS_OF.get(phone, phone) for phone in phones if phone != "q"}
    assert len(folded) == 39 and {"sil", "aa", "sh"} <= folded and not {"ao", "zh", "h#", "ix"} & folded


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--mini", "true"),
            "--mini true: no recipe synthesises the part speech, it is a corpus of recordings",
        ),
        ((), "no speech corpus: give --speech-data DIR, the folder of the corpus as published"),
        (("--group", "large"), "--group large: no part of local/corpus.sh is in it; the groups are small"),
    ],
)
def test_options_that_make_no_sense(options, message, tmp_path):
    folders = ["--data-dir", str(tmp_path / "data"), "--exp-dir", str(tmp_path / "exp"), "--conf", "tiny"]
    done = subprocess.run(
        [str(RECIPE / "prepare.sh"), *folders, *options],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.returncode in (1, 2) and message in done.stderr


def call(recipe: Path, script: str, folder: Path, *options: object) -> str:
    folders = ["--data-dir", str(folder / "data"), "--exp-dir", str(folder / "exp"), "--conf", "tiny"]
    done = subprocess.run(
        [str(recipe / script), *folders, *map(str, options)],
        env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


REAL = os.environ.get("SPEAR_REAL_CORPORA", "")
NEEDED = ("an4", "fsdd", "ami_diarization_mini", "esc10", "noise_rir", "timit_nltk")
LACKING = [name for name in NEEDED if not REAL or not (Path(REAL) / name).is_dir()]
real = pytest.mark.skipif(bool(LACKING), reason=f"SPEAR_REAL_CORPORA lacks {', '.join(LACKING)}")


@real
def test_the_real_corpora_are_read(local, tmp_path):
    noises = tmp_path / "noise_cuts.jsonl.gz"
    local["prepare_noise"].main(["--noise-dir", f"{REAL}/noise_rir", "--output", str(noises)])
    assert len(Manifest(noises)) == 16  # 25 s: 10, 10 and 5; 20 s: 10 and 10
    # Twelve recordings of each corpus and set, those that there are; of meetings, four cuts of each.
    sets = part_of(local, Path(REAL), "speech", tmp_path, "--max-recordings", "12")
    assert len(sets["train"]) == 12 + 12 + 4 * 10
    assert sum(bool(cut.recording.transforms) for cut in sets["train"]) == 24


@real
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_tiny_size_runs_on_the_real_corpora(tmp_path):
    call(RECIPE, "prepare.sh", tmp_path, "--corpus-dir", REAL, "--noise-dir", f"{REAL}/noise_rir")
    call(RECIPE, "run.sh", tmp_path)
    results = json.loads((tmp_path / "exp" / "evaluation" / "results.json").read_text())["results"]
    assert set(results) == {"SPEAR", "random weights", "log-mel"}
    assert all(set(tasks) == {"esc10", "ami-overlap"} for tasks in results.values())
    assert (tmp_path / "exp" / "report" / "report.html").is_file()
    assert call(RECIPE, "run.sh", tmp_path).count("skipped\n") == 5


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_copy_takes_another_corpus_as_the_readme_says(corpora, tmp_path):
    """Folders of audio in place of the corpora, and a task of their own."""
    egs = tmp_path / "egs"
    for name in ("common", "mixed", "realmini"):
        ignored = shutil.ignore_patterns("data", "exp")
        target = egs / ("mycorpus" if name == "realmini" else name)
        shutil.copytree(REPOSITORY / "egs" / name, target, ignore=ignored)
    (tmp_path / "spear_lib").symlink_to(REPOSITORY / "spear_lib")
    own = egs / "mycorpus" / "local"
    facts = (own / "corpus.sh").read_text()
    facts = facts.replace("corpus=realmini", "corpus=mine").replace(
        'evaluation_tasks="esc10 ami-overlap"', ""
    )
    facts = re.sub(r'^evaluation_tasks=".*"$', 'evaluation_tasks="who"', facts, flags=re.MULTILINE)
    (own / "corpus.sh").write_text(facts)
    readers = """
def folder_of(folder):
    for number, path in enumerate(sorted(folder.rglob("*.wav"))):
        yield Item(DEV if number % 5 == 0 else TRAIN, path.stem, (path,))


READERS = {
    "speech": {"an4": folder_of, "ami_diarization_mini": folder_of},
    "audio": {"esc10": folder_of, "fsdd": folder_of},
}
ROOMS = "no rooms"
"""
    with (own / "recordings.py").open("a") as file:
        file.write(readers)
    task = """

def who(corpora):
    paths = sorted((corpora / "an4" / "test").glob("*.wav"))
    return [{"path": path, "label": path.stem[-1], "part": number % 3} for number, path in enumerate(paths)]


TASKS = {"who": ("an4", who)}
"""
    tables = own / "evaluation_tables.py"
    tables.write_text(tables.read_text().replace("\ndef main(", f"{task}\n\ndef main("))
    call(egs / "mycorpus", "prepare.sh", tmp_path, "--corpus-dir", corpora)
    call(egs / "mycorpus", "run.sh", tmp_path)
    results = json.loads((tmp_path / "exp" / "evaluation" / "results.json").read_text())["results"]
    assert set(results["SPEAR"]) == {"who"}
    assert {path.name.split("_")[0] for path in (tmp_path / "data" / "cuts").iterdir()} == {"mine"}
