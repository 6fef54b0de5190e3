"""HEAR tasks on frozen encoders: embeddings, predictor and scores as in heareval (paper Tables 5, 15, 16).

    python -m spear_lib.bin.evaluate_hear --encoders '[exp/pretrain/encoder]' --tasks '[HEAR/tasks]' \\
        --layers concat --output_dir exp/hear

Run the same command again to go on after a crash; tasks that are done are not measured again.
"""

import logging
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from spear_lib.bin.common import command_line, run
from spear_lib.config import parse
from spear_lib.evaluation.hear.predictor import PredictorConfig
from spear_lib.evaluation.hear.protocol import run_task
from spear_lib.evaluation.hear.tasks import find_tasks, read_task
from spear_lib.evaluation.measured import MeasureOptions, Results, encoder_facts, fingerprint, log_table
from spear_lib.runtime.log import first_screen

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class HearOptions(MeasureOptions):
    """Encoders, tasks and the predictor."""

    tasks: list[str]
    """HEAR task folders as published, or folders of them."""
    layers: str = "output"
    """What is embedded: output (the paper's white rows), concat (all layers side by side: its grey rows), or
    the number of a layer."""
    timestamp_offsets_ms: list[float] = field(default_factory=lambda: [0.0])
    """Event tasks: added to the times of frames; of several the best on validation is taken and reported. An
    encoder that predicts teacher frame j at output j is said to be 32.5 ms early: [0, -32.5]."""
    keep_embeddings: bool = False
    """Keep the embeddings of a task in output_dir after it is measured."""
    predictor: PredictorConfig = field(default_factory=PredictorConfig)


def main(argv: list[str] | None = None) -> None:
    options = parse(HearOptions, argv, prog="python -m spear_lib.bin.evaluate_hear", description=__doc__)
    if options.layers in ("all", "weighted") or "," in options.layers:
        raise ValueError(f"layers is {options.layers!r}: use output, concat or the number of a layer")
    tasks = [read_task(folder) for folder in find_tasks(options.tasks)]
    results = Results(options.output_dir, "hear", command_line("spear_lib.bin.evaluate_hear", argv))
    first_screen(
        "HEAR tasks on frozen encoders",
        {
            "encoders": ", ".join(options.named()),
            "layers": options.layers,
            "tasks": ", ".join(task.name for task in tasks),
            "seeds": options.seeds,
            "result": results.path,
        },
    )
    table: dict[str, dict[str, str]] = {}
    for name, encoder in options.load(options.layers):
        means = []
        for task in tasks:
            facts = encoder_facts(encoder) | {
                "task": task.name,
                "data": fingerprint([task.labels, {s: list(clips) for s, clips in task.clips.items()}]),
                "predictor": asdict(options.predictor),
                "offsets": options.timestamp_offsets_ms,
                "seeds": options.seeds,
            }
            cache = Path(options.output_dir) / "embeddings" / encoder.identity() / task.name
            result = results.measure(
                name,
                task.name,
                facts,
                lambda task=task, encoder=encoder, cache=cache: run_task(
                    task, encoder, cache, options.predictor, options.seeds, options.timestamp_offsets_ms
                ),
            )
            if not options.keep_embeddings:
                shutil.rmtree(cache, ignore_errors=True)
            score = result["scores"][result["metric"]]
            means.append(score["mean"])
            table.setdefault(name, {})[task.name] = f"{score['mean']:.3f} ± {score['std']:.3f}"
            logger.info(
                "%s, %s: %s %.3f ± %.3f", name, task.name, result["metric"], score["mean"], score["std"]
            )
        table[name]["mean"] = f"{sum(means) / len(means):.3f}"
    log_table(table)


if __name__ == "__main__":
    run(main)
