"""The report: complete from complete folders, honest about missing pieces, self-contained, escaped."""

import html
import json
import math
import re

import pytest
from report_fixtures import make_data, make_everything, write_lines

from spear_lib.bin import report as report_command
from spear_lib.report import data as report_data
from spear_lib.report import render as report_render
from spear_lib.report.render import Code, Fold, Picture, Section, Table


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    make_everything(folder)
    names = ("pretrain", "finetune_pretrained", "finetune_scratch")
    folders = ",".join(str(folder / "exp" / name) for name in names)
    arguments = ["--data_dir", str(folder / "data"), "--experiment_dirs", f"[{folders}]"]
    arguments += ["--output_dir", str(folder / "exp" / "report"), "--title", "Toy & recipe"]
    report_command.main(arguments)
    return folder / "exp" / "report"


def test_json_holds_the_numbers(finished):
    content = json.loads((finished / "report.json").read_text())
    assert content["missing"] == []
    assert [row["set"] for row in content["corpus"]] == ["train", "labelled", "dev", "test-clean"]
    assert [(run["name"], run["kind"]) for run in content["experiments"]] == [
        ("pretrain", "pretraining"),
        ("pretrained", "asr"),
        ("scratch", "asr"),
    ]
    measure = {"name": "wer", "title": "word error rate", "unit": "%", "better": "lower"}
    assert list(content["tasks"]) == ["pretraining", "asr"] and content["tasks"]["asr"] == measure
    assert content["experiments"][0]["last"]["valid/dev"]["step"] == 1000
    assert content["unigram_entropy"] == pytest.approx(sum([4.6, 4.7, 4.8] * 2 + [4.6, 4.7]) / 8)
    rates = {(r["arm"], r["set"]): r["wer"] for r in content["results"]}
    # 5 of 20 utterances of 6 words have 1 substitution and 1 deletion.
    assert rates["pretrained", "dev"] == pytest.approx(100 * 10 / 120, abs=0.005)
    assert [marker["stage"] for marker in content["stages"]] == [0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13]


@pytest.mark.parametrize("name", ["report.md", "report.html"])
def test_every_section_is_there(finished, name):
    text = (finished / name).read_text()
    for heading in ("In short", "Corpus", "Quantiser", "Tokens", "Pre-training: pretrain",
                    "Fine-tuning for speech recognition", "Word error rates", "Probes of the frozen features",
                    "Time and memory", "To do it again"):  # fmt: skip
        assert heading in text
    assert "8.33" in text and "4.710" in text and "5.545" in text and "./run.sh --mini true" in text
    assert "Cheap probe of the encoder's features at every validation" in html.unescape(text)
    assert "codebook_00" not in text  # hundreds of numbers that nobody reads in a table
    assert "64.2 ± 0.8" in text and "the classes of sounds" in text  # what clips with events are probed for


def test_html_opens_offline(finished):
    text = (finished / "report.html").read_text()
    assert text.count("data:image/png;base64,") == len(list((finished / "pictures").glob("*.png"))) == 9
    assert "<script" not in text and "Toy &amp; recipe" in text
    assert not re.findall(r'(?:src|href)="(?!data:image|#)', text)
    assert "THE HAT &lt;SAT&gt;" in text and "<SAT>" not in text


def test_markdown_pictures_exist(finished):
    names = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", (finished / "report.md").read_text())
    assert len(names) == 9 and all((finished / name).stat().st_size > 5000 for name in names)


def test_missing_pieces_are_named(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "exp" / "empty").mkdir(parents=True)
    data = report_data.collect(tmp_path / "data", [tmp_path / "exp" / "empty"], tmp_path / "exp")
    missing = " ".join(data.missing)
    for piece in (
        "stage 1",
        "stage 4",
        "stage 5",
        "stages 12 and 13",
        "probes.json",
        "stage-*.json",
        "empty",
    ):
        assert piece in missing
    from spear_lib.report.pages import write_report

    write_report(tmp_path / "data", [], tmp_path / "exp", tmp_path / "report", "t", "c")
    assert "Not found" in (tmp_path / "report" / "report.md").read_text()


def test_one_set_decoded_twice_has_two_names(tmp_path):
    make_everything(tmp_path)
    run = tmp_path / "exp" / "finetune_pretrained"
    plain = next(run.glob("**/wer-dev.json"))
    second = run / f"{plain.parent.name}_lm" / plain.name
    second.parent.mkdir()
    second.write_text(json.dumps({**json.loads(plain.read_text()), "wer": 1.5}))
    data = report_data.collect(tmp_path / "data", [run], tmp_path / "exp")
    rates = {(each["arm"], each["set"]): each["wer"] for each in data.results}
    assert rates[f"pretrained, {second.parent.name}", "dev"] == 1.5 and rates["pretrained", "dev"] > 1.5


def test_runs_that_did_not_describe_themselves_yet_are_shown_the_same(tmp_path):
    """Experiments made before task.json: the command knows them by a metric."""
    make_everything(tmp_path)
    folders = [tmp_path / "exp" / name for name in ("pretrain", "finetune_pretrained", "finetune_scratch")]
    arguments = [
        "--data_dir",
        str(tmp_path / "data"),
        "--experiment_dirs",
        f"[{','.join(map(str, folders))}]",
    ]
    report_command.main(
        [*arguments, "--output_dir", str(tmp_path / "new"), "--exp_dir", str(tmp_path / "exp")]
    )
    for folder in folders:
        (folder / "task.json").unlink()
    report_command.main(
        [*arguments, "--output_dir", str(tmp_path / "old"), "--exp_dir", str(tmp_path / "exp")]
    )
    new, old = ((tmp_path / name / "report.md").read_text().splitlines()[3:] for name in ("new", "old"))
    assert new == old and len(new) > 100
    # Without such knowledge the report says what writes the file.
    data = report_data.collect(tmp_path / "data", folders, tmp_path / "exp")
    assert (
        not data.experiments and sum("training command, started again" in each for each in data.missing) == 3
    )


def test_a_damaged_description_is_named(tmp_path):
    (tmp_path / "data").mkdir()
    for text, message in (('{"kind"', "is not valid JSON"), ('{"kind": "a", "colour": 1}', "colour")):
        (tmp_path / "task.json").write_text(text)
        with pytest.raises(ValueError, match=f"task.json.*{message}"):
            report_data.collect(tmp_path / "data", [tmp_path], tmp_path)


def test_absent_folders_are_errors(tmp_path):
    with pytest.raises(ValueError, match="run prepare.sh first"):
        report_data.collect(tmp_path / "nowhere", [], tmp_path)
    with pytest.raises(ValueError, match="nowhere does not exist"):
        report_data.collect(tmp_path, [tmp_path / "nowhere"], tmp_path)


def test_damaged_files_are_named(tmp_path):
    make_data(tmp_path / "data")
    path = tmp_path / "data" / "manifests" / "librispeech_statistics.json"
    path.write_text('{"train": {')
    with pytest.raises(ValueError, match=r"librispeech_statistics.json is not valid JSON"):
        report_data.collect(tmp_path / "data", [], tmp_path)


def test_short_names_tell_folders_apart(tmp_path):
    same = [tmp_path / "seed0" / "pretrained", tmp_path / "seed1" / "pretrained"]
    assert report_data.short_names(same) == ["seed0/pretrained", "seed1/pretrained"]
    assert report_data.short_names([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]


def test_rendering_escapes_and_folds():
    blocks = [
        Fold("more <b>", [Table(["a|b", "n"], [["x|y", "1"]]), Picture("p", b"png", "see"), Code("a < b")])
    ]
    page = report_render.to_html("t", "m", [Section("S", ["lead", *blocks])])
    assert "<summary>more &lt;b&gt;</summary>" in page and "a &lt; b" in page
    text = report_render.to_markdown("t", "m", [Section("S", blocks)], "pictures")
    assert "| x\\|y | 1 |" in text and "](pictures/p.png)" in text


def test_two_token_fields_are_told_apart(tmp_path):
    """egs/mixed: two teachers, two validation sets, each loss beside chance and entropy of its own tokens."""
    make_everything(tmp_path)
    store = tmp_path / "data" / "tokens" / "spectral" / "train" / "store.json"
    info = json.loads(store.read_text())
    for field, size in (("s16", 4), ("a8", 32)):
        for part, statistics in (("train", "corpus_a"), ("dev", "corpus_b")):
            other = tmp_path / "data" / "tokens" / field / f"part-{part}" / "store.json"
            other.parent.mkdir(parents=True)
            other.write_text(json.dumps({**info, "field": field, "codebook_size": size}))
            numbers = {"train": {"cuts": 7, "hours": 0.5}}
            (tmp_path / "data" / "manifests" / f"{statistics}_statistics.json").write_text(
                json.dumps(numbers)
            )
    records = []
    for step in (100, 200):
        speech = {"s16/masked_loss": 5.0 - step / 1000, "s16/speech/masked_loss": 5.0 - step / 1000}
        audio = {"a8/masked_loss": 4.0 - step / 1000, "a8/audio/masked_loss": 4.0 - step / 1000}
        both = {**speech, **audio}
        records.append({"step": step, "kind": "train", "loss": 6.0, **both})
        levels = {"s16/chance": math.log(4), "s16/unigram_entropy": 4.44}
        records.append({"step": step, "kind": "valid/speech-dev", **speech, **levels})
        entropies = {"s16/unigram_entropy": 4.22, "a8/unigram_entropy": 3.33, "a8/chance": math.log(32)}
        entropies["s16/chance"] = math.log(4)
        records.append({"step": step, "kind": "valid/audio-dev", **both, **entropies})
    folder = tmp_path / "exp" / "pretrain"
    write_lines(folder / "metrics.jsonl", records)
    arguments = ["--data_dir", str(tmp_path / "data"), "--experiment_dirs", f"[{folder}]"]
    report_command.main([*arguments, "--output_dir", str(tmp_path / "report")])
    text = (tmp_path / "report" / "report.md").read_text()
    rows = dict(re.findall(r"^\| Token loss on masked frames \((.*?)\) \| (.*?) \|$", text, re.MULTILINE))
    assert rows == {
        "pretrain, valid/speech-dev, s16": "4.800 nats | chance 1.386, token frequencies alone 4.440",
        "pretrain, valid/audio-dev, s16": "4.800 nats | chance 1.386, token frequencies alone 4.220",
        "pretrain, valid/audio-dev, a8": "3.800 nats | chance 3.466, token frequencies alone 3.330",
    }
    assert (tmp_path / "report" / "pictures" / "code-usage.png").is_file()
    assert "| corpus_a, train |" in text and "| corpus_b, train |" in text
