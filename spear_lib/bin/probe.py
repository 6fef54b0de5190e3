"""Linear probes of frozen features, against log-mel features and a random encoder (stage 13).

What is probed follows from the labels of the cuts: words and speakers of speech, event classes of sounds.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spear_lib.bin.common import command_line, run
from spear_lib.config import parse, to_dict
from spear_lib.encoders import load_encoder
from spear_lib.encoders.kinds import Encoder
from spear_lib.evaluation.probe_cuts import read_cuts
from spear_lib.evaluation.probe_features import encoder_features, log_mel_features
from spear_lib.evaluation.probes import Probes
from spear_lib.interfaces.upstreams import random_encoder
from spear_lib.runtime.files import write_json
from spear_lib.runtime.log import commit, first_screen
from spear_lib.runtime.world import choose_device

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProbeOptions:
    """Encoder and sets."""

    encoder: str
    """Pre-trained encoder: a folder of stage 11 or a checkpoint."""
    train_cuts: list[str]
    """Manifests whose transcripts or sound events the probes learn from; speech and audio may be mixed."""
    dev_cuts: list[str]
    """Manifests of other speakers and clips: choose layer and ridge strength."""
    test_cuts: list[str]
    """Manifests of yet other speakers and clips: the results."""
    output_dir: str
    """Receives probes.json."""
    max_train_cuts: int = 400
    """Most training cuts of each domain (0: all); speakers take turns."""
    max_dev_cuts: int = 200
    """Most dev cuts of each domain (0: all)."""
    max_test_cuts: int = 400
    """Most test cuts of each domain over all test sets (0: all)."""
    min_word_count: int = 10
    """Words in fewer training utterances are not probed."""
    min_event_count: int = 5
    """Event classes of fewer training clips are not probed."""
    num_seeds: int = 3
    """Probes per kind of features, each on another part of the data, for mean and standard deviation."""
    batch_seconds: float = 120.0
    """Padded audio per batch, s."""
    device: str = "auto"
    """cpu, cuda or auto."""
    seed: int = 0
    """Of the choice of cuts and of the random encoder."""


def main(argv: list[str] | None = None) -> None:
    options = parse(
        ProbeOptions,
        argv,
        prog="python -m spear_lib.bin.probe",
        description="Linear probes of frozen features, against log-mel features and random weights.",
    )
    device = choose_device(options.device)
    encoder = load_encoder(options.encoder)
    limits = (options.max_train_cuts, options.max_dev_cuts, options.max_test_cuts)
    paths = (options.train_cuts, options.dev_cuts, options.test_cuts)
    train, dev, test = (read_cuts(path, most, options.seed) for path, most in zip(paths, limits))
    heard = set(train.speakers) & set(dev.speakers + test.speakers)
    if heard:
        raise ValueError(
            f"{len(heard)} speakers of train_cuts are in dev_cuts or test_cuts too, for example "
            f"'{sorted(heard)[0]}'; the word probe is about unseen speakers: give sets without common ones"
        )
    min_counts = {"words": options.min_word_count, "events": options.min_event_count}
    probes = Probes((train, dev, test), min_counts, options.num_seeds)
    first_screen(
        "Probing frozen features",
        {
            "encoder": options.encoder,
            **{name: part.describe() for name, part in zip(("train", "dev", "test"), probes.sets)},
            **{f"probe of {kind}": probes.describe(kind) for kind in probes.kinds},
            "result": Path(options.output_dir) / "probes.json",
        },
    )

    def of_encoder(module: Encoder, name: str) -> list[list[np.ndarray]]:
        return [
            encoder_features(module, part.manifests, options.batch_seconds, device, name)
            for part in probes.sets
        ]

    features = {
        "pre-trained": of_encoder(encoder, "pre-trained"),
        "random weights": of_encoder(random_encoder(encoder, options.seed), "random weights"),
        "log-mel": [log_mel_features(part.manifests, options.batch_seconds) for part in probes.sets],
    }
    tasks = {
        kind: {name: probes.run(kind, values).to_json() for name, values in features.items()}
        for kind in probes.kinds
    }
    description = {kind: probes.describe(kind) for kind in probes.kinds}
    output_dir = Path(options.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    write_json(
        output_dir / "probes.json",
        {
            "tasks": tasks,
            "description": description,
            "num_labels": {kind: len(labels) for kind, labels in probes.chosen.items()},
            "num_cuts": [len(part) for part in probes.sets],
            "options": to_dict(options),
            "command": command_line("spear_lib.bin.probe", argv),
            "code": commit(),
        },
    )
    for task, results in tasks.items():
        logger.info("%s: %s", task, description[task])
        for name, value in results.items():
            logger.info(
                "  %-15s %6.2f ± %.2f %%  layer %s", name, value["mean"], value["std"], value["layer"]
            )


if __name__ == "__main__":
    run(main)
