"""The report of a recipe of sounds: tagging results of both arms, many classes and few."""

import numpy as np
import pytest
from report_fixtures import make_data, write, write_lines

from spear_lib.report import data as report_data
from spear_lib.report.pages import write_report
from spear_lib.runtime.task_file import write_task
from spear_lib.tagging.description import DESCRIPTION
from spear_lib.tagging.metrics import score


def make_run(folder, quality: float, num_classes: int) -> None:
    """What stages 12 and 13 leave."""
    records = []
    for step in range(20, 201, 20):
        records.append({"step": step, "epoch": 0, "kind": "train", "loss": 0.5 / step, "learning_rate": 0.04})
        if step % 100 == 0:
            valid = {"loss": 0.4 / step, "map": quality * step / 4}
            records.append({"step": step, "epoch": 0, "kind": "valid/dev", **valid})
    write_lines(folder / "metrics.jsonl", records)
    write_task(folder, DESCRIPTION)
    random = np.random.default_rng(0)
    names = {f"/m/{index}": f"Sound, number {index}" for index in range(num_classes)}
    for name in ("dev", "eval"):
        targets = random.random((200, num_classes)) < 0.05
        result = score(targets, random.random(targets.shape) + quality * targets, names)
        classes = [
            {
                "label": each.label,
                "name": each.name,
                "support": each.support,
                "average_precision": each.average_precision,
                "roc_area": each.roc_area,
            }
            for each in result.classes
        ]
        content = {"set": name, **result.summary(), "classes": classes}
        write(folder / "evaluation" / f"tagging-{name}.json", content)


@pytest.mark.parametrize("num_classes", [8, 90])
def test_a_tagging_report_is_complete(tmp_path, num_classes):
    make_data(tmp_path / "data")
    arms = [tmp_path / "exp" / f"finetune_{arm}" for arm in ("pretrained", "scratch")]
    for folder, quality in zip(arms, (0.9, 0.4)):
        make_run(folder, quality, num_classes)
    content = write_report(tmp_path / "data", arms, tmp_path / "exp", tmp_path / "report", "Sounds", "code")
    assert [run["kind"] for run in content["experiments"]] == ["tagging", "tagging"]
    found = {(each["arm"], each["set"]): each["map"] for each in content["results"]}
    assert found["pretrained", "eval"] > found["scratch", "eval"]
    text = (tmp_path / "report" / "report.md").read_text()
    assert "a tagger of sounds" in text and "peech" not in text.split("## Corpus")[0]
    assert f"Mean average precision, eval | pretrained {found['pretrained', 'eval']:.2f} %" in text
    for heading in ("## Fine-tuning for audio tagging", "## Tagging", "Every class of eval", "mean ROC area"):
        assert heading in text
    assert "## Word error rates" not in text and "(wer-" not in text
    assert "Every class of dev" not in text  # what was chosen on is not what counts
    pictures = {path.stem for path in (tmp_path / "report" / "pictures").glob("*.png")}
    assert {"tagging-curves", "tagging-results", "classes-eval"} <= pictures
    table = text[text.index("Every class of eval") :]
    supports = [int(line.split("|")[2]) for line in table.splitlines() if line.startswith("| Sound, number")]
    assert len(supports) == num_classes and supports == sorted(supports, reverse=True)


def test_clips_that_are_missing_are_stated(tmp_path):
    def counts(seen: int, skipped: int) -> dict:
        return {"seen": seen, "skipped": skipped, "limit": 0.3, "kinds": {}, "examples": {}, "notes": {}}

    statistics = {
        "sets": {"eval": {"cuts": 57, "hours": 0.1, "labels": {"Bark": 3}}},
        "tables": {"eval": {"missing": counts(62, 4), "other": counts(58, 1)}},
    }
    write(tmp_path / "data" / "manifests" / "audioset_statistics.json", statistics)
    write_report(tmp_path / "data", [], tmp_path / "exp", tmp_path / "report", "Sounds", "code")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| table | clips | missing | useless otherwise |" in text and "| eval | 62 | 4 | 1 |" in text
    assert "| eval | 57 |" in text


def test_without_any_result_the_report_names_what_is_missing(tmp_path):
    (tmp_path / "data").mkdir()
    write_lines(tmp_path / "run" / "metrics.jsonl", [{"step": 1, "kind": "train", "loss": 0.5}])
    write_task(tmp_path / "run", DESCRIPTION)
    missing = report_data.collect(tmp_path / "data", [tmp_path / "run"], tmp_path).missing
    assert any("tagging-*.json): run.sh stage 13" in each for each in missing)
