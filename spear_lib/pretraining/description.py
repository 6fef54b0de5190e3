"""Pre-training in task.json: what the report shows of it."""

from spear_lib.runtime.task_file import (
    EACH_VALIDATION,
    TRAINING,
    Curves,
    Level,
    Measure,
    Panel,
    TaskDescription,
)

_LOSS = {
    "metrics": {"masked frames": "masked_loss", "unmasked frames": "unmasked_loss"},
    "axis": "loss (nats per codebook and frame)",
    "levels": True,
}
_ACCURACY = {
    "metrics": {"masked frames": "masked_accuracy", "unmasked frames": "unmasked_accuracy"},
    "axis": "tokens predicted right (%)",
    "factor": 100.0,
}

DESCRIPTION = TaskDescription(
    kind="pretraining",
    title="Pre-training",
    measure=Measure(name="masked_loss", title="token loss on masked frames", unit="nats", better="lower"),
    summary="From audio without labels an encoder learns to predict the tokens of masked audio.",
    text="Some frames of the input are hidden and the encoder predicts their tokens from the rest (masked "
    "frames), and also those of the visible frames (unmasked). A masked loss below the token frequencies "
    "means that it uses the context; zero is impossible.",
    side_by_side=False,
    curves=[
        Curves(
            name="pretrain-loss",
            caption="Token loss; lower is better. Unigram: the token frequencies alone.",
            panels=[Panel(lines=TRAINING, **_LOSS), Panel(lines=EACH_VALIDATION, **_LOSS)],
        ),
        Curves(
            name="pretrain-accuracy",
            caption="Token accuracy; higher is better.",
            panels=[Panel(lines=TRAINING, **_ACCURACY), Panel(lines=EACH_VALIDATION, **_ACCURACY)],
        ),
    ],
    levels=[
        Level(metric="chance", label="chance", words="chance"),
        Level(metric="unigram_entropy", label="unigram", words="token frequencies alone", measured=True),
    ],
    unlisted="_codebook_",  # hundreds of numbers that nobody reads in a table
)
