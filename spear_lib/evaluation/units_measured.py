"""Unit quality of clusters of an encoder's frames, and of the codebooks of a token store (ours)."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from spear_lib.evaluation.alignments import Phone
from spear_lib.evaluation.audio_by_name import NamedAudio, features_of, tokens_of
from spear_lib.evaluation.measured import mean_and_deviation
from spear_lib.evaluation.unit_quality import unit_quality
from spear_lib.interfaces.aligned import AlignedEncoder
from spear_lib.runtime import keyed_random
from spear_lib.runtime.progress import progress
from spear_lib.tokens.store import TokenStoreReader


class Clustering(NamedTuple):
    """How units are made of an encoder's frames."""

    num_clusters: int
    max_train_frames: int
    """Most frames that the clusters are trained on, drawn at random."""
    seeds: list[int]
    train_audio: NamedAudio | None = None
    """What they are trained on; None: the measured files."""


def cluster(
    frames: dict[str, Tensor], train: dict[str, Tensor], num_clusters: int, max_frames: int, seed: int
) -> dict[str, np.ndarray]:
    """k-means units of every file, (T,) each; of frames (T, D)."""
    from sklearn.cluster import MiniBatchKMeans

    pool = torch.cat(list(train.values())).numpy()
    if len(pool) < num_clusters:
        raise ValueError(f"{len(pool)} frames are fewer than {num_clusters} clusters: lower num_clusters")
    random = keyed_random.generator("unit clusters", seed)
    pool = pool[random.permutation(len(pool))[:max_frames]]
    kmeans = MiniBatchKMeans(num_clusters, batch_size=4096, n_init=3, random_state=seed).fit(pool)
    return {name: kmeans.predict(own.numpy()) for name, own in frames.items()}


def encoder_units(
    encoder: AlignedEncoder,
    clustering: Clustering,
    phones: list[Phone],
    audio: NamedAudio,
    names: list[str],
    seconds: float,
    name: str,
) -> dict[str, Any]:
    """Quality of the clusters of every state, over seeds."""
    states = features_of(encoder, audio, names, f"features of {name}")
    train = states
    if clustering.train_audio is not None:
        training = clustering.train_audio
        train = features_of(encoder, training, sorted(training), f"training features of {name}")
    found = []
    work = [(state, seed) for state in range(len(states)) for seed in clustering.seeds]
    for state, seed in progress(work, len(work), f"units of {name}", "clusterings"):
        units = cluster(
            states[state], train[state], clustering.num_clusters, clustering.max_train_frames, seed
        )
        found.append(unit_quality(phones, units, clustering.num_clusters, encoder.frame_rate, seconds))
    count = len(clustering.seeds)
    of_states = [found[begin : begin + count] for begin in range(0, len(found), count)]
    summary = [mean_and_deviation([one["pnmi"] for one in state]) for state in of_states]
    best = int(np.argmax([one["mean"] for one in summary]))
    return {
        "metric": "PNMI",
        "better": "higher",
        **summary[best],
        "best_state": best,
        "pnmi": [one["mean"] for one in summary],
        "quality": of_states[best],
        "seeds": clustering.seeds,
    }


def store_units(
    store: TokenStoreReader, phones: list[Phone], audio: NamedAudio, names: list[str], seconds: float
) -> dict[str, Any]:
    """Quality of every codebook, and the mean PNMI."""
    tokens, _ = tokens_of(store, audio, names)
    facts = store.facts
    quality = [
        unit_quality(
            phones,
            {name: codes[:, codebook].numpy() for name, codes in tokens.items()},
            facts.codebook_size,
            facts.frame_rate,
            seconds,
        )
        for codebook in range(facts.num_codebooks)
    ]
    values = [one["pnmi"] for one in quality]
    return {
        "metric": "PNMI, mean of codebooks",
        "better": "higher",
        **mean_and_deviation(values),
        "quality": quality,
    }
