"""egs/mixed with the data groups of the paper's Tables 1 and 2, on made-up folders as published."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from clip_fixtures import JAMENDO, write
from test_speech_corpora import MAKERS, sound
from toy_recipe import REPOSITORY

from spear_lib.data.domains import domain_of
from spear_lib.data.manifests import Manifest
from spear_lib.runtime.metrics_log import read_metrics

RECIPE = REPOSITORY / "egs" / "mixed"
GROUPS = {
    "speech-84k": {"libriheavy", "gigaspeech", "voxpopuli"},
    "audio-13k": {"audio", "vggsound", "freesound", "music4all", "mtg_jamendo"},
}
GROUPS["sa-97k"] = GROUPS["speech-84k"] | GROUPS["audio-13k"]
GROUPS["sa-197k"] = GROUPS["sa-97k"] | {"yodas_granary"}


def make_vggsound(folder: Path) -> None:
    names = [f"abcdefghij{number}" for number in range(4)]
    rows = [f'{name},30,"dog, barking",{"test" if name.endswith("3") else "train"}' for name in names]
    write(folder / "vggsound.csv", "\n".join(rows) + "\n")
    for name in names:
        sound(folder / "audio" / f"{name}_000030.wav", 10)


def make_freesound(folder: Path) -> None:
    truth = folder / "FSD50K.ground_truth"
    write(truth / "dev.csv", "fname,labels,mids,split\n1,Dog,/m/0bt9lr,train\n2,Dog,/m/0bt9lr,val\n")
    write(truth / "eval.csv", "fname,labels,mids\n3,Dog,/m/0bt9lr\n")
    for name, part in ((1, "dev"), (2, "dev"), (3, "eval")):
        sound(folder / f"FSD50K.{part}_audio" / f"{name}.wav", 4)


def make_music4all(folder: Path) -> None:
    write(folder / "id_genres.csv", "id\tgenres\na1\trock\nb2\tpop,jazz\n")
    for name in ("a1", "b2"):
        sound(folder / "audios" / f"{name}.wav", 30)


def make_mtg_jamendo(folder: Path) -> None:
    write(folder / "data" / "autotagging.tsv", JAMENDO)
    sound(folder / "14" / "214.wav", 4.6)
    sound(folder / "82" / "382.low.wav", 2.0)


ALL_MAKERS = {name: MAKERS[name] for name in (*GROUPS["speech-84k"], "yodas_granary")} | {
    "vggsound": make_vggsound,
    "freesound": make_freesound,
    "music4all": make_music4all,
    "mtg_jamendo": make_mtg_jamendo,
}
# Usable cuts of each: clips of test parts and missing files are not among them.
CUTS = {"libriheavy": 2, "gigaspeech": 2, "voxpopuli": 4, "yodas_granary": 4}
CUTS |= {"vggsound": 3, "freesound": 2, "music4all": 2, "mtg_jamendo": 2}


def script(name: str, *arguments: object, recipe: Path = RECIPE) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = [str(recipe / name), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500)


def run(name: str, *arguments: object, recipe: Path = RECIPE) -> str:
    done = script(name, *arguments, recipe=recipe)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("corpus", CUTS)
def test_a_published_corpus_becomes_a_part(corpus, tmp_path):
    make = ALL_MAKERS[corpus]
    (tmp_path / "corpus").mkdir()
    make(tmp_path / "corpus")
    options = ["--corpus", corpus, "--corpus-dir", tmp_path / "corpus", "--output", tmp_path / "out"]
    done = subprocess.run(
        [
            sys.executable,
            RECIPE / "local" / "prepare_part.py",
            *map(str, options),
            "--max-bad-fraction",
            "0.5",  # of Libriheavy's three cuts one has no audio
        ],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    train, dev = (Manifest(tmp_path / "out" / f"{corpus}_cuts_{name}.jsonl.gz") for name in ("train", "dev"))
    assert (len(train), len(dev)) == (CUTS[corpus] - 1, 1)
    assert not set(train.ids) & set(dev.ids)
    domain = "speech" if corpus in MAKERS else "audio"
    assert {domain_of(cut) for manifest in (train, dev) for cut in manifest} == {domain}
    assert json.loads((tmp_path / "out" / f"{corpus}_statistics.json").read_text())["train"] == len(train)
    assert {path.name for path in (tmp_path / "out").glob("*.jsonl.gz")} == {
        f"{corpus}_cuts_train.jsonl.gz",
        f"{corpus}_cuts_dev.jsonl.gz",
    }


def test_groups_are_those_of_the_paper():
    """Parts of each group, as the recipe's own functions see them."""
    for group, parts in GROUPS.items():
        lines = (
            "source local/corpus.sh; source ../common/parts/parts.sh; option_given() { false; }; "
            f'group={group}; show() {{ echo "$part"; }}; '
            'for_parts show; choose_group; echo "$domains,$strategy"'
        )
        done = subprocess.run(["bash", "-c", lines], cwd=RECIPE, capture_output=True, text=True, check=True)
        *found, last = done.stdout.split("\n")[:-1]
        assert set(found) == parts
        expected = {"speech-84k": "speech,single", "audio-13k": "audio,single"}
        assert last == expected.get(group, "speech audio,")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--group", "sa-300k"), "takes one of small, speech-84k, audio-13k, sa-97k, sa-197k"),
        (("--group", "speech-84k"), "has no part speech to train a quantiser on: give --speech-quantizer"),
        (("--group", "audio-13k", "--strategy", "joint"), "--strategy is for two teachers"),
        (("--group", "sa-97k", "--mini", "true"), "--mini true synthesises the parts of --group small"),
        (
            ("--group", "speech-84k", "--speech-quantizer", "/x"),
            "no libriheavy corpus: give --libriheavy-data DIR, the folder of the corpus as published",
        ),
    ],
)
def test_options_of_groups_that_make_no_sense(arguments, message, tmp_path):
    done = script("prepare.sh", *arguments, "--data-dir", tmp_path / "data", "--exp-dir", tmp_path / "exp")
    assert done.returncode in (1, 2) and message in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_speech_alone_is_trained_on_a_group(tmp_path):
    """A quantiser of egs/librispeech at the tiny size, its tokens on three corpora, and an encoder."""
    speech = tmp_path / "librispeech"
    folders = ("--data-dir", speech / "data", "--exp-dir", speech / "exp", "--conf", "tiny", "--mini", "true")
    run("prepare.sh", *folders, "--stop-stage", 4, recipe=REPOSITORY / "egs" / "librispeech")
    options = ["--group", "speech-84k", "--conf", "tiny"]
    options += ["--data-dir", tmp_path / "data", "--exp-dir", tmp_path / "exp"]
    given = ["--speech-quantizer", speech / "data" / "quantizers" / "spectral"]
    for name in sorted(GROUPS["speech-84k"]):
        (tmp_path / name).mkdir()
        ALL_MAKERS[name](tmp_path / name)
        given += [f"--{name}-data", tmp_path / name]
    heavy = tmp_path / "libriheavy"
    sound(heavy / "librilight" / "small" / "100" / "sea_mp3" / "02.flac", 12)  # nothing is missing here
    run("prepare.sh", *options, *given, "--noise-dir", speech / "data" / "corpus" / "musan")
    run("run.sh", *options, "--stop-stage", 11)
    kinds = {line["kind"] for line in read_metrics(tmp_path / "exp" / "pretrain" / "metrics.jsonl")}
    assert {f"valid/{name}-dev" for name in GROUPS["speech-84k"]} <= kinds
    assert (tmp_path / "exp" / "pretrain" / "encoder" / "model.safetensors").is_file()
