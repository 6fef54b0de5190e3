"""Suites of benchmarks: their files, their data, the command, and the page that it writes."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import SupervisionSegment
from phone_corpus import write_encoder

from spear_lib.bin import benchmark
from spear_lib.data.audio_files import open_audio
from spear_lib.data.manifests import Manifest, save_cuts
from spear_lib.evaluation.benchmarks import synthetic
from spear_lib.evaluation.benchmarks.makers import MAKERS, make
from spear_lib.evaluation.benchmarks.suite import read_suite
from spear_lib.evaluation.hear.tasks import read_task
from spear_lib.report.benchmarks import benchmark_section, collect_benchmarks
from spear_lib.report.paper_rows import PAPER, ROWS, paper_values

REPOSITORY = Path(__file__).parents[2]
SUITES = sorted(REPOSITORY.glob("egs/*/conf/benchmarks/*.yaml"))
SEEN: set[str] = set()
PLACES = {"corpora": "", "data": "data", "made": "made"}


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", SUITES, ids=lambda path: "/".join(path.parts[-4:]))
def test_suites_of_the_recipes_are_understood_by_their_commands(path, tmp_path):
    """Every option is one of the command's, every kind of data is known, every column of the paper too."""
    import importlib

    from spear_lib.config import parse

    for task in read_suite(path, PLACES):
        key = repr((task.command, task.options, task.make, task.paper_column))
        if key in SEEN:  # in a file that this one extends
            continue
        SEEN.add(key)
        module = importlib.import_module(f"spear_lib.bin.{task.command}")
        (options,) = [
            v for n, v in vars(module).items() if n.endswith("Options") and v.__module__ == module.__name__
        ]
        parse(options, ["--encoders=[x]", f"--output_dir={tmp_path}", *task.arguments()])
        assert not task.make or task.make["kind"] in MAKERS
        assert not task.paper_column or paper_values(task.paper_column)


def test_places_are_filled_and_what_is_missing_is_named(tmp_path):
    (tmp_path / "corpora" / "here").mkdir(parents=True)
    text = """
common: {num_seeds: 2}
tasks:
  A one:
    command: evaluate_xares
    options: {task: x, clips: ["{corpora}/here"], linear: {epochs: 3}}
  B: {command: evaluate_xares, options: {clips: ["{corpora}/gone.tsv"], num_seeds: 5}}
  C: {command: evaluate_hear, make: {kind: pitch}, options: {tasks: ["{made}"]}}
  D: false
"""
    suite = write(tmp_path / "suite.yaml", text)
    places = PLACES | {"corpora": str(tmp_path / "corpora")}
    one, two, three = read_suite(suite, places)
    assert one.folder_name == "a_one" and not one.missing
    assert (
        f'--clips=["{tmp_path}/corpora/here"]' in one.arguments() and "--linear.epochs=3" in one.arguments()
    )
    assert "--num_seeds=2" in one.arguments() and "--num_seeds=5" in two.arguments()
    assert two.missing == f"{tmp_path}/corpora/gone.tsv is not there"
    assert three.options["tasks"] == ["made/c"] and not three.missing
    assert read_suite(suite, PLACES)[0].missing == "{corpora} is not given, for {corpora}/here"
    assert [task.name for task in read_suite(suite, places, ["C"])] == ["C"]
    with pytest.raises(ValueError, match="has no task 'E': it has A one, B, C"):
        read_suite(suite, places, ["E"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tasks: {A: {command: rm}}", "command is 'rm', use evaluate_abx"),
        (
            "tasks: {A: {command: evaluate_abx, option: 1}}",
            "'option' is not known, use command, options, make",
        ),
        ("task: {}", "'task' is not known, use common, tasks"),
        ("tasks: {A: {command: evaluate_abx, options: {audio: '{x}/y'}}}", "{x} is not known, use {corpora}"),
        ("tasks: {a b: {command: evaluate_abx}, a-b: {command: evaluate_abx}}", "have one folder of results"),
        ("tasks: {}", "names no tasks"),
    ],
)
def test_wrong_suites_are_refused(tmp_path, text, words):
    with pytest.raises(ValueError) as error:
        read_suite(write(tmp_path / "suite.yaml", text), PLACES)
    assert words in str(error.value)


def test_scenes_and_notes_are_what_they_say(tmp_path):
    """Onsets are where the level rises; the note is the strongest low partial."""
    samples, events = synthetic.scene(np.random.default_rng(3))
    assert len(samples) == 64000 and 2 <= len(events) <= 6
    for event in events:
        begin = round(event["start"] * 16)
        assert np.abs(samples[begin : begin + 800]).max() > 0.04
        assert 300 <= event["end"] - event["start"] <= 800
    sound = synthetic.note(57, np.random.default_rng(0))  # A3, 220 Hz
    spectrum = np.abs(np.fft.rfft(sound))
    assert abs(int(spectrum[100:400].argmax()) + 100 - 220) <= 3  # 1 Hz a bin
    make(tmp_path / "events", {"kind": "events", "num_clips": 10}, "task events")
    task = read_task(tmp_path / "events")
    assert [len(task.clips[part]) for part in ("train", "valid", "test")] == [6, 2, 2]
    first = (tmp_path / "events" / "16000" / "test" / "test-0000.wav").read_bytes()
    made = (tmp_path / "events" / "made.json").stat().st_mtime_ns
    make(tmp_path / "events", {"kind": "events", "num_clips": 10}, "task events")
    assert (tmp_path / "events" / "made.json").stat().st_mtime_ns == made  # nothing to do
    make(tmp_path / "events", {"kind": "events", "num_clips": 10, "seed": 1}, "task events")
    assert (tmp_path / "events" / "16000" / "test" / "test-0000.wav").read_bytes() != first
    with pytest.raises(ValueError, match="make has 'clips', events takes num_clips, seed"):
        make(tmp_path / "x", {"kind": "events", "clips": 1}, "task x")
    with pytest.raises(ValueError, match="make.kind is 'noise', use events, pitch"):
        make(tmp_path / "x", {"kind": "noise"}, "task x")


def test_mixtures_are_the_sum_of_their_sources(tmp_path):
    cuts = []
    for speaker in range(7):
        for number in range(2):
            path = tmp_path / f"s{speaker}-{number}.wav"
            sound = 0.2 * np.sin(2 * np.pi * (200 + 50 * speaker) * np.arange(12000) / 16000)
            soundfile.write(path, sound, 16000)
            cut = open_audio(path).with_id(path.stem)
            cut.supervisions = [SupervisionSegment(cut.id, "x", 0.0, 0.75, speaker=f"s{speaker}")]
            cuts.append(cut)
    save_cuts(cuts, tmp_path / "manifests" / "toy_cuts_dev.jsonl.gz")
    speakers = {}
    for kind, count in (("two_speakers", 2), ("noisy_speech", 1)):
        folder = tmp_path / kind
        make(folder, {"kind": kind, "cuts": str(tmp_path / "manifests"), "num_mixtures": 10}, "task")
        for part in ("train", "valid", "test"):
            for cut in Manifest(folder / f"{part}.jsonl.gz"):
                sources = [soundfile.read(path)[0] for path in cut.custom["sources"]]
                mixture = cut.load_audio()[0]
                assert len(sources) == count and all(len(one) == len(mixture) for one in sources)
                if count == 2:
                    assert np.abs(sum(sources) - mixture).max() < 2e-4
                    assert len(cut.supervisions) == 2 and cut.supervisions[0].start == 0.0
                    speakers.setdefault(part, set()).update(one.speaker for one in cut.supervisions)
                else:
                    level = 10 * np.log10(np.mean(sources[0] ** 2) / np.mean((mixture - sources[0]) ** 2))
                    assert -0.5 < level < 15.5
    assert not speakers["train"] & speakers["test"] and not speakers["valid"] & speakers["test"]
    with pytest.raises(ValueError, match="holds no .*_cuts_dev"):
        make(tmp_path / "x", {"kind": "two_speakers", "cuts": str(tmp_path)}, "task")


def test_what_a_killed_suite_has_measured_keeps_its_name(tmp_path, monkeypatch):
    text = """
tasks:
  Onsets, F:
    {command: evaluate_hear, make: {kind: events, num_clips: 5}, paper: D16, options: {tasks: ["{made}"]}}
"""
    given = [
        f"--suite={write(tmp_path / 's.yaml', text)}",
        "--encoders=[e]",
        f"--output_dir={tmp_path / 'out'}",
    ]

    def killed(task, options):
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "run_task", killed)
    with pytest.raises(KeyboardInterrupt):
        benchmark.main(given)
    status = json.loads((tmp_path / "out" / "benchmarks.json").read_text())
    assert [(entry["name"], entry["paper"]) for entry in status["tasks"]] == [("Onsets, F", "D16")]


def test_the_command_goes_on_and_writes_a_page(tmp_path, caplog):
    encoder = write_encoder(tmp_path / "encoder")
    text = """
common: {num_seeds: 1}
tasks:
  Onsets:
    command: evaluate_hear
    make: {kind: events, num_clips: 5}
    paper: D16
    options: {tasks: ["{made}"], predictor: {grid_points: 1, max_epochs: 2}}
  ESC: {command: evaluate_xares, options: {task: e, clips: ["{corpora}/clips.tsv"]}}
"""
    given = [f"--suite={write(tmp_path / 's.yaml', text)}", f"--encoders=[mini={encoder}]", "--device=cpu"]
    given += ["--baselines=false", f"--output_dir={tmp_path / 'out'}", "--title=Toy"]
    benchmark.main(given)
    result = tmp_path / "out" / "onsets" / "results.json"
    before = result.stat().st_mtime_ns
    page = (tmp_path / "out" / "report.md").read_text()
    assert "left out: ESC, as {corpora} is not given" in caplog.text
    assert "| Onsets | event_onset_200ms_fms (%), higher |" in page
    assert "SPEAR_s+a Large" in page and "93.8" in page
    assert " clips, " in page and " rows train" in page and "{" not in page.split("![")[0]
    assert (tmp_path / "out" / "pictures" / "benchmarks-0.png").stat().st_size > 5000
    assert "data:image/png;base64" in (tmp_path / "out" / "report.html").read_text()
    (one,) = collect_benchmarks(tmp_path / "out")
    assert one.paper_column == "D16" and 0 <= one.values["mini"][0] <= 100
    benchmark.main(given)
    assert result.stat().st_mtime_ns == before
    status = json.loads((tmp_path / "out" / "benchmarks.json").read_text())
    assert status["left_out"] == {"ESC": "{corpora} is not given, for {corpora}/clips.tsv"}
    with pytest.raises(ValueError, match="no task of .* can run"):
        benchmark.main([*given, "--tasks=[ESC]"])


def test_the_papers_rows_are_those_of_the_table_of_its_values():
    with open(REPOSITORY / "docs" / "paper_values.csv", encoding="utf-8") as file:
        printed = {(row["where"], row["row"], row["column"]): row["value"] for row in csv.DictReader(file)}
    for column, (table, values) in PAPER.items():
        assert len(values) == len(ROWS)
        for model, value in zip(ROWS, values):
            there = printed.get((table, model, column))
            assert (there is None) == (value is None) and (value is None or float(there) == value), (
                column,
                model,
            )


def test_scores_of_all_commands_are_read_and_compared(tmp_path):
    """The forms in which results.json holds them: a mean, others beside it, 10-NN; HEAR above."""

    def results(task: str, kind: str, of_tasks: dict) -> None:
        write(tmp_path / task / "results.json", json.dumps({"kind": kind, "results": of_tasks}))

    rate = {
        "metric": "DER (%)",
        "better": "lower",
        "std": 1.0,
        "beside": {"missed (%)": {"mean": 3.0, "better": "lower"}},
    }
    results("sd", "superb", {"ours": {"sd": rate | {"mean": 20.0}}, "log-mel": {"sd": rate | {"mean": 30.0}}})
    clip = {"metric": "accuracy (%)", "better": "higher", "knn": 10.0}
    results(
        "esc", "xares", {"ours": {"esc": clip | {"mean": 40.0}}, "log-mel": {"esc": clip | {"mean": 50.0}}}
    )
    found = {f"{one.task}, {one.metric}": one for one in collect_benchmarks(tmp_path)}
    assert list(found) == ["esc, accuracy (%)", "esc, 10-NN accuracy (%)", "sd, DER (%)", "sd, missed (%)"]
    assert found["sd, DER (%)"].values == {"ours": (20.0, 1.0), "log-mel": (30.0, 1.0)}
    assert not found["sd, DER (%)"].higher_is_better
    section = benchmark_section(list(found.values()))
    table = next(block for block in section.blocks if hasattr(block, "rows"))
    assert table.rows[2][2:4] == ["20.0 ± 1.0 (best)", "30.0 ± 1.0"]
    assert "ours beats log-mel in 1 of 4 rows." in section.blocks  # equal is not better
    assert benchmark_section([]) is None
