"""Self-distillation in task.json: what the report shows of it."""

from spear_lib.runtime.task_file import (
    EACH_VALIDATION,
    TRAINING,
    Curves,
    Level,
    Measure,
    Panel,
    TaskDescription,
)

_LOSS = {"metrics": {"masked frames": "loss"}, "axis": "loss (nats per codebook and frame)", "levels": True}
_CODES = {
    "metrics": {
        "perplexity of targets": "target_perplexity",
        "perplexity of predictions": "prediction_perplexity",
        "active codes": "active_codes",
    },
    "axis": "codes, mean over codebooks",
}

DESCRIPTION = TaskDescription(
    kind="self_distillation",
    title="Self-distillation",
    measure=Measure(name="loss", title="code loss on masked frames", unit="nats", better="lower"),
    summary="From audio without labels an encoder learns to predict how a slow copy of itself clusters the "
    "audio that it does not see.",
    text="The loss alone says little, because the codes move too: it falls when predictions get better, and "
    "also when few codes are left. Healthy codes keep their perplexity, and the predictions have the same.",
    side_by_side=False,
    curves=[
        Curves(
            name="self-distillation-loss",
            caption="Cross-entropy of the teacher's codes on masked frames.",
            panels=[Panel(lines=TRAINING, **_LOSS), Panel(lines=EACH_VALIDATION, **_LOSS)],
        ),
        Curves(
            name="self-distillation-codes",
            caption="How many codes are used; a fall is a collapse. Small batches use fewer by themselves.",
            panels=[Panel(lines=TRAINING, **_CODES), Panel(lines=EACH_VALIDATION, **_CODES)],
        ),
    ],
    levels=[Level(metric="chance", label="chance", words="chance")],
    unlisted="_layer_",
)
