"""SUPERB's tasks without s3prl: which task stands for which name, and their result on one encoder.

SD, SV (ASV), SF, SE, SS and QbE are here alone; SID, KS, ER, PR and ASR can be trained here or by s3prl.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spear_lib.evaluation.clip_sets import Clip
from spear_lib.evaluation.downstream import spoken_terms
from spear_lib.evaluation.downstream.classification import Classification
from spear_lib.evaluation.downstream.diarization import Diarization
from spear_lib.evaluation.downstream.separation import Separation
from spear_lib.evaluation.downstream.states import FrozenStates
from spear_lib.evaluation.downstream.training import HeadConfig, HeadTask, train_head
from spear_lib.evaluation.downstream.transcription import Transcription
from spear_lib.evaluation.downstream.verification import Verification, read_trials
from spear_lib.evaluation.measured import mean_and_deviation
from spear_lib.interfaces.aligned import AlignedEncoder
from spear_lib.runtime.progress import progress
from spear_lib.runtime.tables import read_table

logger = logging.getLogger(__name__)

QBE = "qbe"
OWN = ("sd", "asv", QBE, "sf", "se", "ss")
"""Tasks that only this trains."""
BOTH = ("sid", "ks", "er", "pr", "asr")
"""Tasks that s3prl trains too."""
LABELS = {"sd": "speaker", "asv": "speaker", "sf": "slots", "se": "sources", "ss": "sources", QBE: "text"}
"""Task -> where its labels are, unless another field is named."""
Parts = tuple[Sequence[Clip], Sequence[Clip], Sequence[Clip]]


@dataclass(frozen=True)
class OwnConfig:
    """What tasks of our own need beside clips."""

    head: HeadConfig
    measures: list[str] = field(default_factory=list)
    trials: str = ""
    collar: float = 0.0


def make_task(name: str, parts: Parts, config: OwnConfig) -> HeadTask:
    """The task ``name`` on training, validation and test clips."""
    train, valid, test = parts
    if name == "sd":
        return Diarization([*train, *valid, *test], config.collar)
    if name == "asv":
        trials = read_trials(config.trials, [clip.name for clip in test]) if config.trials else None
        return Verification(train, trials)
    if name in ("se", "ss"):
        measures = config.measures or (["pesq", "stoi", "si_sdri"] if name == "se" else ["si_sdri"])
        task = Separation([*train, *valid, *test], measures)
        if (task.num_sources == 1) != (name == "se"):
            raise ValueError(
                f"the clips have {task.num_sources} sources: se wants one, ss two or more; use the other task"
            )
        return task
    if name in ("sf", "pr", "asr"):
        return Transcription(train, name)
    return Classification(train)


def sweep(
    name: str,
    parts: Parts,
    encoder: AlignedEncoder,
    config: OwnConfig,
    learning_rates: Sequence[float],
    seeds: Sequence[int],
) -> dict[str, Any]:
    """Every learning rate with the first seed; the best on validation with the others too.

    Returns:
      The result for ``measured.Results``: mean and std of the primary measure over seeds, the other measures
      under "beside", all runs.
    """
    task = make_task(name, parts, config)
    states = FrozenStates(encoder, config.head.max_gigabytes)

    def run(rate: float, seed: int) -> dict[str, Any]:
        recipe = config.head.on(task.recipe, rate)
        found = train_head(task, states, parts, recipe, seed, config.head.normalise)
        text = ", ".join(f"{measure} {value:.2f}" for measure, value in found["test"].items())
        logger.info("%s, learning rate %g, seed %d: test %s", name, recipe.learning_rate, seed, text)
        return {"learning_rate": recipe.learning_rate, "seed": seed, **found}

    runs = [run(rate, seeds[0]) for rate in learning_rates]
    sign = 1 if task.better == "higher" else -1
    best = max(runs, key=lambda one: sign * one["valid"][task.metric])
    chosen = [best] + [run(best["learning_rate"], seed) for seed in seeds[1:]]
    tested = {measure: [one["test"][measure] for one in chosen] for measure in best["test"]}
    beside = {
        measure: {"better": _better(measure), **mean_and_deviation(values)}
        for measure, values in tested.items()
        if measure != task.metric
    }
    return {
        "metric": task.metric,
        "better": task.better,
        **mean_and_deviation(tested[task.metric]),
        "beside": beside,
        "learning_rate": best["learning_rate"],
        "seeds": list(seeds),
        "runs": [*runs, *chosen[1:]],
        "counts": dict(zip(("train", "valid", "test"), map(len, parts))),
    }


def _better(measure: str) -> str:
    return "higher" if measure.startswith(("PESQ", "STOI", "SI-SDRi")) else "lower"


def read_relevance(path: str, queries: Sequence[Clip], documents: Sequence[Clip]) -> np.ndarray:
    """(queries, documents) bool: which query is in which document.

    Args:
      path: table (.tsv, .csv) with the columns query and document, the names of clips; empty: a query is in
        the documents whose transcripts hold its words one after the other.

    Raises:
      ValueError: the table lacks a column.
    """
    found = np.zeros((len(queries), len(documents)), dtype=bool)
    if path:
        pairs = {(row["query"], row["document"]) for _, row in read_table(path, ("query", "document"))}
        for row, query in enumerate(queries):
            found[row] = [(query.name, document.name) in pairs for document in documents]
        return found
    texts = [f" {' '.join(' '.join(document.labels).upper().split())} " for document in documents]
    for row, query in enumerate(queries):
        words = f" {' '.join(' '.join(query.labels).upper().split())} "
        found[row] = [words in text for text in texts]
    return found


def find_terms(
    encoder: AlignedEncoder,
    documents: Sequence[Clip],
    valid: Sequence[Clip],
    test: Sequence[Clip],
    relevant: str = "",
    max_gigabytes: float = 2.0,
) -> dict[str, Any]:
    """QbE: every layer on the development queries, the best one on the others.

    Returns:
      The result for ``measured.Results``; MTWV 0..1.
    """
    states = FrozenStates(encoder, max_gigabytes)
    of_dev = read_relevance(relevant, valid, documents)
    of_test = read_relevance(relevant, test, documents)
    for part, of_part in (("development queries", of_dev), ("queries", of_test)):
        if not of_part.any():
            raise ValueError(
                f"none of the {len(of_part)} {part} is in a document: check relevant, or the texts"
            )

    def scores(queries: Sequence[Clip], layer: int) -> np.ndarray:
        width = encoder.state_dims[layer]  # without the channels that were filled up

        def of(clips: Sequence[Clip]) -> list[np.ndarray]:
            return [states.of([clip])[0][layer, :, :width].cpu().numpy() for clip in clips]

        return spoken_terms.detection_scores(of(queries), of(documents))

    found = [
        spoken_terms.mtwv(scores(valid, layer), of_dev)
        for layer in progress(range(states.num_states), states.num_states, "layers on dev queries", "layers")
    ]
    best = max(range(len(found)), key=lambda layer: found[layer][0])
    tested = scores(test, best)
    value, _ = spoken_terms.mtwv(tested, of_test)
    actual = spoken_terms.term_weighted_value(tested, of_test, found[best][1])
    return {
        "metric": "MTWV",
        "better": "higher",
        "mean": value,
        "beside": {"TWV at the dev threshold": {"better": "higher", "mean": actual}},
        "dev": [one for one, _ in found],
        "layer": encoder.state_names[best],
        "counts": {"documents": len(documents), "dev queries": len(valid), "queries": len(test)},
    }
