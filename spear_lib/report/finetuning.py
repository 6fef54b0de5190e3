"""The sections of the report about fine-tuning: curves, word error rates, tagging."""

from dataclasses import dataclass
from typing import Any

from spear_lib.report import plots
from spear_lib.report.data import Experiment, ReportData
from spear_lib.report.render import Fold, Picture, Section, Table, number, ordered

NUM_WORST = 5  # worst utterances shown per test set and arm


@dataclass(frozen=True)
class _Measure:
    """What a kind of fine-tuning is judged by."""

    kind: str
    title: str
    lead: str
    loss: str
    name: str
    """Of the metric."""
    words: str
    better: str


_MEASURES = (
    _Measure(
        "finetuning",
        "Fine-tuning",
        "The recogniser learns from the transcribed part. A training loss that falls while the validation "
        "loss rises means that it learns the training voices by heart.",
        "loss (nats per frame)",
        "wer",
        "word error rate (%), greedy search",
        "Fine-tuning; lower is better.",
    ),
    _Measure(
        "tagging",
        "Fine-tuning: tagging",
        "The tagger learns from the labelled clips. Its training loss is higher than that of validation "
        "where clips are mixed with each other, because a mixture has no certain labels.",
        "loss (nats per clip and class)",
        "map",
        "mean average precision (%)",
        "Fine-tuning for tagging; a lower loss and a higher mean average precision are better.",
    ),
)


def finetuning(data: ReportData) -> list[Section]:
    """Curves and last values of the fine-tuning runs, a section for each task."""
    return [_finetuning(runs, each) for each in _MEASURES if (runs := _runs(data, each.kind))]


def _runs(data: ReportData, kind: str) -> list[Experiment]:
    return [run for run in data.experiments if run.kind == kind]


def _finetuning(runs: list[Experiment], measure: _Measure) -> Section:
    section = Section(measure.title, [measure.lead])
    train = {run.name: run.curve("train", "loss") for run in runs}
    valid = {run.name: run.curve(run.valid_kinds[0], "loss") for run in runs if run.valid_kinds}
    values = {run.name: run.curve(run.valid_kinds[0], measure.name) for run in runs if run.valid_kinds}
    panels = [
        (title, axis, {name: curve for name, curve in curves.items() if curve[0]})
        for title, axis, curves in (
            ("training", measure.loss, train),
            ("validation", measure.loss, valid),
            ("validation", measure.words, values),
        )
    ]
    panels = [panel for panel in panels if panel[2]]
    if panels:
        # All classes begin at one half and most are absent: the loss soon falls to a hundredth.
        logarithmic = [measure.loss] if measure.kind == "tagging" else []
        png = plots.lines(panels, logarithmic=logarithmic)
        section.blocks.append(Picture(f"{measure.kind}-curves", png, measure.better))
    rows = []
    for run in runs:
        kind = run.valid_kinds[0] if run.valid_kinds else "valid"
        rows.append(
            [
                run.name,
                number(run.records[-1].get("step") if run.records else None),
                number(run.last("train", "loss"), 4),
                number(run.last(kind, "loss"), 4),
                number(run.last(kind, measure.name), 2),
            ]
        )
    header = ["arm", "steps", "training loss", "validation loss", f"validation: {measure.words}"]
    section.blocks.append(Table(header, rows))
    return section


def word_error_results(data: ReportData) -> Section | None:
    """Word error rates of every set and arm."""
    if not data.results:
        return None
    section = Section("Word error rates")
    section.blocks.append(
        "Substituted, inserted and deleted words divided by the words of the transcript, summed over the "
        "set. The interval says how far chance in the choice of utterances reaches (95 %, bootstrap)."
    )
    by_set = _by_set(data.results)
    rows = [
        [
            result["set"],
            result["arm"],
            str(result.get("method", "–")),
            f"{result['wer']:.2f}",
            "{:.2f} to {:.2f}".format(*result["interval_95"]),
            number(result["substitutions"]),
            number(result["insertions"]),
            number(result["deletions"]),
            number(result["num_words"]),
        ]
        for result in by_set
    ]
    header = ["test set", "arm", "search", "WER (%)", "95 % interval", "sub", "ins", "del", "words"]
    section.blocks.append(Table(header, rows))
    caption = "What the errors are made of."
    section.blocks.append(Picture("wer", plots.word_error_rates(by_set), caption))
    for result in by_set:
        worst = result.get("worst", [])[:NUM_WORST]
        if worst:
            table = Table(
                ["utterance", "errors", "transcript and recognised text"],
                [
                    [
                        item["id"],
                        f"{item['errors']}/{item['num_words']}",
                        f"{item['reference']}  →  {item['hypothesis']}",
                    ]
                    for item in worst
                ],
                numeric=False,
            )
            section.blocks.append(Fold(f"Worst utterances: {result['set']}, {result['arm']}", [table]))
    return section


def _by_set(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results of one set after the other, sets in the order of appearance."""
    sets = ordered(result["set"] for result in results)
    return [result for name in sets for result in results if result["set"] == name]


def tagging_results(data: ReportData) -> Section | None:
    """Mean average precision of every set and arm, and every class of the sets but the first (dev)."""
    if not data.tagging:
        return None
    section = Section("Tagging")
    section.blocks.append(
        "Average precision: clips are ranked by the probability of a class; it is the mean, over the clips "
        "that have the class, of the share of right clips down to them. Its mean over the classes that "
        "occur is the mean average precision (mAP). Chance is what random probabilities reach."
    )
    results = _by_set(data.tagging)
    rows = [
        [
            result["set"],
            result["arm"],
            f"{result['map']:.2f}",
            f"{result['chance_map']:.2f}",
            number(result["mean_auc"], 4),
            number(result["d_prime"], 2),
            number(result["num_clips"]),
            f"{result['num_scored_classes']} of {result['num_classes']}",
        ]
        for result in results
    ]
    header = ["set", "arm", "mAP (%)", "chance (%)", "mean ROC area", "d'", "clips", "classes that occur"]
    section.blocks.append(Table(header, rows))
    section.blocks.append(
        Picture("map", plots.mean_average_precisions(results), "Higher is better; the line is chance.")
    )
    sets = ordered(result["set"] for result in results)
    for name in sets[1:] or sets:
        arms = {result["arm"]: result["classes"] for result in results if result["set"] == name}
        caption = f"Average precision of each class of {name}, those with most clips first."
        section.blocks.append(Picture(f"classes-{name}", plots.class_precisions(arms), caption))
        section.blocks.append(Fold(f"Every class of {name}", [_class_table(arms)]))
    return section


def _class_table(arms: dict[str, list[dict[str, Any]]]) -> Table:
    found = {arm: {each["label"]: each for each in classes} for arm, classes in arms.items()}
    first = next(iter(arms.values()))
    rows = [
        [
            each["name"],
            number(each["support"]),
            *(f"{100 * found[arm][each['label']]['average_precision']:.1f}" for arm in arms),
        ]
        for each in first
    ]
    return Table(["class", "clips", *(f"average precision, {arm} (%)" for arm in arms)], rows)
