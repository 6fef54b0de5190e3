"""The report of a task that the library does not know: all that it shows is in task.json and the results."""

import dataclasses

import pytest
from report_fixtures import write, write_lines

from spear_lib.report.pages import write_report
from spear_lib.report.results import fill
from spear_lib.runtime.task_file import (
    FIRST_VALIDATION,
    TRAINING,
    Bars,
    Curves,
    Level,
    Measure,
    Panel,
    Results,
    TaskDescription,
    read_task,
    write_task,
)

VERIFICATION = TaskDescription(
    kind="verification",
    title="Speaker verification",
    measure=Measure(name="eer", title="equal error rate", unit="%", better="lower"),
    summary="The encoder learns who speaks.",
    curves=[
        Curves(
            name="verification-curves",
            caption="Lower is better.",
            panels=[
                Panel(lines=TRAINING, metrics={"loss": "loss"}, axis="loss (nats)", column="training loss"),
                Panel(
                    lines=FIRST_VALIDATION,
                    metrics={"EER": "eer"},
                    factor=100.0,
                    axis="equal error rate (%)",
                    column="validation: EER (%)",
                    digits=1,
                ),
            ],
        )
    ],
    results=Results(
        files="eer",
        title="Equal error rates",
        text="Where as many pairs are wrongly taken as wrongly refused.",
        columns={"set": "{set}", "arm": "{arm}", "EER (%)": "{eer:.1f}", "cost": "{min_dcf:.3f}"},
        compare_with="chance {chance:.0f} %; {num_pairs:,} pairs",
        bars=Bars(axis="equal error rate (%)", caption="Lower is better.", chance="chance", highest=100.0),
    ),
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    for arm, loss in (("pretrained", 0.25), ("scratch", 0.5)):
        run = tmp_path / "exp" / f"finetune_{arm}"
        records = [{"step": 10, "kind": "train", "loss": 2.0}, {"step": 20, "kind": "train", "loss": loss}]
        records.append({"step": 20, "kind": "valid/dev", "eer": loss / 2})
        write_lines(run / "metrics.jsonl", records)
        write_task(run, VERIFICATION)
        result = {"set": "test", "eer": 50 * loss, "min_dcf": None, "chance": 50.0, "num_pairs": 12000}
        write(run / "pairs" / "eer-test.json", result)
    return tmp_path


def arms(folder):
    return [folder / "exp" / f"finetune_{arm}" for arm in ("pretrained", "scratch")]


def test_a_new_task_is_reported_by_its_description_alone(folder):
    content = write_report(folder / "data", arms(folder), folder / "exp", folder / "report", "Who", "code")
    text = (folder / "report" / "report.md").read_text()
    for line in (
        "The encoder learns who speaks.",
        "| Equal error rate, test | pretrained 12.50 %; scratch 25.00 % | chance 50 %; 12,000 pairs |",
        "## Speaker verification",
        "| arm | steps | training loss | validation: EER (%) |",
        "| pretrained | 20 | 0.2500 | 12.5 |",
        "## Equal error rates",
        "| test | scratch | 25.0 | – |",
    ):
        assert line in text, line
    pictures = {path.stem for path in (folder / "report" / "pictures").glob("*.png")}
    assert pictures == {"verification-curves", "verification-results"}
    assert content["tasks"]["verification"]["better"] == "lower"
    assert [result["kind"] for result in content["results"]] == ["verification"] * 2


def test_a_run_by_itself_shows_its_levels_and_all_last_values(folder):
    alone = dataclasses.replace(
        VERIFICATION,
        side_by_side=False,
        results=None,
        levels=[Level(metric="guess", label="guess", words="guessing")],
        unlisted="hidden",
    )
    run = arms(folder)[0]
    write_task(run, alone)
    records = [{"step": 1, "kind": "valid/dev", "eer": 0.4, "guess": 0.5, "hidden_part": 7.77}]
    write_lines(run / "metrics.jsonl", records)
    write_report(folder / "data", [run], folder / "exp", folder / "report", "Who", "code")
    text = (folder / "report" / "report.md").read_text()
    assert "| Equal error rate (pretrained, valid/dev) | 0.400 % | guessing 0.500 |" in text
    assert "## Speaker verification: pretrained" in text and "valid/dev, guess | 0.5000" in text
    assert "hidden" not in text and "## Equal error rates" not in text


def test_a_description_is_read_as_it_was_written(tmp_path):
    write_task(tmp_path, VERIFICATION)
    assert read_task(tmp_path) == VERIFICATION


def test_better_is_lower_or_higher():
    with pytest.raises(ValueError, match="measure eer: better is 'less', it must be lower or higher"):
        Measure(name="eer", title="equal error rate", unit="%", better="less")


def test_templates_show_what_is_absent_as_a_dash_and_name_what_does_not_fit():
    assert (
        fill("{a:.1f} of {b[1]}, {c:,} and {d[0]:.2f}", {"a": 2, "b": [3, 4], "c": None})
        == "2.0 of 4, – and –"
    )
    with pytest.raises(ValueError, match="the template '{a:.1f}' of task.json does not fit its result"):
        fill("{a:.1f}", {"a": "text"})
