"""Fine-tuning for speech recognition in task.json: what the report shows of it."""

from spear_lib.runtime.task_file import (
    FIRST_VALIDATION,
    TRAINING,
    Bars,
    Curves,
    Listing,
    Measure,
    Panel,
    Results,
    TaskDescription,
)

_LOSS = {"metrics": {"loss": "loss"}, "axis": "loss (nats per frame)"}

DESCRIPTION = TaskDescription(
    kind="asr",
    title="Fine-tuning for speech recognition",
    measure=Measure(name="wer", title="word error rate", unit="%", better="lower"),
    summary="A few transcribed minutes turn the encoder into a speech recogniser.",
    text="The recogniser learns from the transcribed part. A training loss that falls while the validation "
    "loss rises means that it learns the training voices by heart.",
    curves=[
        Curves(
            name="asr-curves",
            caption="Fine-tuning; lower is better.",
            panels=[
                Panel(lines=TRAINING, column="training loss", **_LOSS),
                Panel(lines=FIRST_VALIDATION, column="validation loss", **_LOSS),
                Panel(
                    lines=FIRST_VALIDATION,
                    metrics={"WER": "wer"},
                    axis="word error rate (%), greedy search",
                    column="validation: word error rate (%), greedy search",
                    digits=2,
                ),
            ],
        )
    ],
    results=Results(
        files="wer",
        title="Word error rates",
        text="Substituted, inserted and deleted words divided by the words of the transcript, summed over "
        "the set. The interval says how far chance in the choice of utterances reaches (95 %, bootstrap). "
        "CER is the same for characters, spaces among them.",
        columns={
            "test set": "{set}",
            "arm": "{arm}",
            "search": "{method}",
            "WER (%)": "{wer:.2f}",
            "95 % interval": "{interval_95[0]:.2f} to {interval_95[1]:.2f}",
            "CER (%)": "{cer:.2f}",
            "sub": "{substitutions:,}",
            "ins": "{insertions:,}",
            "del": "{deletions:,}",
            "words": "{num_words:,}",
        },
        compare_with="{num_words:,} words, {num_utterances:,} utterances",
        bars=Bars(
            axis="word error rate (% of reference words; whisker: 95 % interval)",
            caption="What the errors are made of.",
            parts=["substitutions", "insertions", "deletions"],
            parts_of="num_words",
            interval="interval_95",
        ),
        listing=Listing(
            items="worst",
            title="Worst utterances: {set}, {arm}",
            columns={
                "utterance": "{id}",
                "errors": "{errors}/{num_words}",
                "transcript and recognised text": "{reference}  →  {hypothesis}",
            },
            limit=5,
        ),
    ),
)
