"""Linear probes of frozen features: words and speakers, against log-mel and a random encoder (stage 13)."""

import logging
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from spear_lib import keyed_random
from spear_lib.bin.common import commit, first_screen, run
from spear_lib.config import parse, to_dict
from spear_lib.evaluation import probes
from spear_lib.files import write_json
from spear_lib.pretrained import load_encoder
from spear_lib.pretrained.kinds import Encoder
from spear_lib.training.distributed import choose_device

logger = logging.getLogger(__name__)

DESCRIPTION = {
    "words": "which of {words} frequent words does the utterance hold (from its mean feature); learnt from "
    "training speakers, tested on unseen ones; chance is the share of utterances with a word, {chance:.1f} %",
    "speaker": "which of {speakers} speakers, new to the encoder, is it (from the mean feature); half of "
    "each one's utterances train the probe, the other half test it; chance is about {chance:.1f} %",
}


@dataclass(frozen=True)
class ProbeOptions:
    """Encoder and sets."""

    encoder: str
    """Pre-trained encoder: a folder of stage 11 or a checkpoint."""
    train_cuts: list[str]
    """Manifests of training speakers, with transcripts: the word probe learns from them."""
    dev_cuts: list[str]
    """Manifests of other speakers: choose layer and ridge strength."""
    test_cuts: list[str]
    """Manifests of yet other speakers: the results."""
    output_dir: str
    """Receives probes.json."""
    max_train_cuts: int = 400
    """Most training cuts (0: all); speakers take turns."""
    max_dev_cuts: int = 200
    """Most dev cuts (0: all)."""
    max_test_cuts: int = 400
    """Most test cuts over all test sets (0: all)."""
    min_word_count: int = 10
    """Words in fewer training utterances are not probed."""
    num_seeds: int = 3
    """Probes per kind of features, each on another part of the data, for mean and standard deviation."""
    batch_seconds: float = 120.0
    """Padded audio per batch, s."""
    device: str = "auto"
    """cpu, cuda or auto."""
    seed: int = 0
    """Of the choice of cuts and of the random encoder."""


def random_encoder(encoder: Encoder, seed: int) -> Encoder:
    """The same shape with untrained weights."""
    torch.manual_seed(keyed_random.key("random encoder", seed))
    return load_encoder(encoder.config)


def main() -> None:
    options = parse(
        ProbeOptions,
        prog="python -m spear_lib.bin.probe",
        description="Linear probes of frozen features, against log-mel features and random weights.",
    )
    device = choose_device(options.device)
    encoder = load_encoder(options.encoder)
    limits = (options.max_train_cuts, options.max_dev_cuts, options.max_test_cuts)
    paths = (options.train_cuts, options.dev_cuts, options.test_cuts)
    sets = [probes.read_utterances(path, most, options.seed) for path, most in zip(paths, limits)]
    heard = set(sets[0].speakers) & set(sets[1].speakers + sets[2].speakers)
    if heard:
        raise ValueError(
            f"{len(heard)} speakers of train_cuts are in dev_cuts or test_cuts too, for example "
            f"'{sorted(heard)[0]}'; the word probe is about unseen speakers: give sets without common ones"
        )
    words = probes.frequent_words(sets[0].texts, options.min_word_count)
    if not words:
        raise ValueError(
            f"no word occurs in at least {options.min_word_count} of {len(sets[0].ids)} training utterances: "
            "raise max_train_cuts or lower min_word_count"
        )
    targets = tuple(probes.word_targets(part.texts, words) for part in sets)
    first_screen(
        "Probing frozen features",
        {
            "encoder": options.encoder,
            "cuts": f"{len(sets[0].ids)} train, {len(sets[1].ids)} dev, {len(sets[2].ids)} test",
            "words": len(words),
            "speakers": f"{len(set(sets[2].speakers))} in test",
            "result": Path(options.output_dir) / "probes.json",
        },
    )

    def of_encoder(module: Encoder, name: str) -> list[list[np.ndarray]]:
        return [probes.encoder_features(module, part, options.batch_seconds, device, name) for part in sets]

    features = {
        "pre-trained": of_encoder(encoder, "pre-trained"),
        "random weights": of_encoder(random_encoder(encoder, options.seed), "random weights"),
        "log-mel": [probes.log_mel_features(part, options.batch_seconds) for part in sets],
    }
    tasks: dict[str, dict[str, dict]] = {"words": {}, "speaker": {}}
    for name, (train, dev, test) in features.items():
        tasks["words"][name] = probes.probe_words(train, dev, test, targets, options.num_seeds).to_json()
        tasks["speaker"][name] = probes.probe_speakers(
            dev, test, sets[1].speakers, sets[2].speakers, options.num_seeds
        ).to_json()
    speakers = sets[2].speakers
    most_common = max(speakers.count(who) for who in set(speakers)) / len(speakers)
    description = {
        "words": DESCRIPTION["words"].format(words=len(words), chance=100 * float(targets[2].mean())),
        "speaker": DESCRIPTION["speaker"].format(speakers=len(set(speakers)), chance=100 * most_common),
    }
    output_dir = Path(options.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    write_json(
        output_dir / "probes.json",
        {
            "tasks": tasks,
            "description": description,
            "num_words": len(words),
            "num_cuts": [len(part.ids) for part in sets],
            "options": to_dict(options),
            "command": shlex.join(["python", "-m", "spear_lib.bin.probe", *sys.argv[1:]]),
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
