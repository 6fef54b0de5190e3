"""Fine-tuning for audio tagging in task.json: what the report shows of it."""

from spear_lib.runtime.task_file import (
    FIRST_VALIDATION,
    TRAINING,
    Bars,
    Curves,
    ItemScores,
    Measure,
    Panel,
    Results,
    TaskDescription,
)

# All classes begin at one half and most are absent: the loss soon falls to a hundredth.
_LOSS = {"metrics": {"loss": "loss"}, "axis": "loss (nats per clip and class)", "logarithmic": True}

DESCRIPTION = TaskDescription(
    kind="tagging",
    title="Fine-tuning for audio tagging",
    measure=Measure(name="map", title="mean average precision", unit="%", better="higher"),
    summary="A few labelled minutes turn the encoder into a tagger of sounds.",
    text="The tagger learns from the labelled clips. Its training loss is higher than that of validation "
    "where clips are mixed with each other, because a mixture has no certain labels.",
    curves=[
        Curves(
            name="tagging-curves",
            caption="Fine-tuning for tagging; a lower loss and a higher mean average precision are better.",
            panels=[
                Panel(lines=TRAINING, column="training loss", **_LOSS),
                Panel(lines=FIRST_VALIDATION, column="validation loss", **_LOSS),
                Panel(
                    lines=FIRST_VALIDATION,
                    metrics={"mAP": "map"},
                    axis="mean average precision (%)",
                    column="validation: mean average precision (%)",
                    digits=2,
                ),
            ],
        )
    ],
    results=Results(
        files="tagging",
        title="Tagging",
        text="Average precision: clips are ranked by the probability of a class; it is the mean, over the "
        "clips that have the class, of the share of right clips down to them. Its mean over the classes that "
        "occur is the mean average precision (mAP). Chance is what random probabilities reach.",
        columns={
            "set": "{set}",
            "arm": "{arm}",
            "mAP (%)": "{map:.2f}",
            "chance (%)": "{chance_map:.2f}",
            "mean ROC area": "{mean_auc:.4f}",
            "d'": "{d_prime:.2f}",
            "clips": "{num_clips:,}",
            "classes that occur": "{num_scored_classes} of {num_classes}",
        },
        compare_with="chance {chance_map:.2f} %; {num_clips:,} clips",
        bars=Bars(
            axis="mean average precision (%; line: chance)",
            caption="Higher is better; the line is chance.",
            chance="chance_map",
            highest=100.0,
        ),
        item_scores=ItemScores(
            items="classes",
            id="label",
            item="name",
            size="support",
            score="average_precision",
            title="Every class of {set}",
            caption="Average precision of each class of {set}, those with most clips first.",
            item_axis="class (clips that have it)",
            size_axis="clips that have the class",
            score_axis="average precision (%)",
            columns=["class", "clips", "average precision, {arm} (%)"],
        ),
    ),
)
