"""What tokens keep of a speaker (paper appendix F.4.2; spec evaluation §8).

An utterance becomes one vector: the mean over its frames of what the tokens stand for. If utterances of one
speaker lie together, the tokens carry the speaker. Compared are the teacher's own frames, all codebooks of a
multi-codebook quantiser, each codebook alone, and k-means. A picture in two dimensions proves nothing by
itself, so numbers in the full space stand beside it.

Legend: U utterances, F frames of a recording, D channels of the teacher.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from spear_lib.data.decoding import decode_ahead
from spear_lib.data.manifests import Manifest
from spear_lib.data.references import speaker
from spear_lib.quantization.tokeniser import Tokeniser
from spear_lib.runtime import keyed_random
from spear_lib.runtime.progress import progress
from spear_lib.teachers import Teacher
from spear_lib.teachers.embedding import embed_batches, length_batches

POOLINGS = ("mean", "mean_std")
TEACHER = "teacher's frames"


@dataclass
class Chosen:
    """Utterances of randomly chosen speakers."""

    positions: list[list[int]]
    """Per manifest, the positions of its utterances."""
    speakers: list[str]
    """Speaker of every utterance, in the order of the manifests and positions."""


def choose_utterances(
    manifests: Sequence[Manifest], num_speakers: int, utterances_per_speaker: int, seed: int
) -> Chosen:
    """``num_speakers`` random speakers (0: all) with ``utterances_per_speaker`` random utterances each (a
    speaker with fewer gives all, but at least two).

    Raises:
      ValueError: fewer such speakers than wanted, or fewer than two.
    """
    by_speaker: dict[str, list[tuple[int, int]]] = {}
    for number, manifest in enumerate(manifests):
        for position in range(len(manifest)):
            by_speaker.setdefault(speaker(manifest[position]), []).append((number, position))
    names = sorted(name for name, rows in by_speaker.items() if len(rows) >= 2)
    wanted = num_speakers or len(names)
    if wanted < 2 or wanted > len(names):
        raise ValueError(
            f"num_speakers is {num_speakers}: it must be in 2..{len(names)} (speakers with two utterances or "
            "more), or 0 for all; use more cuts, or another number"
        )
    draw = keyed_random.generator("token analysis", seed)
    chosen = [names[index] for index in sorted(draw.choice(len(names), wanted, replace=False))]
    rows = []
    for name in chosen:
        order = draw.permutation(len(by_speaker[name]))[:utterances_per_speaker]
        rows += [(*by_speaker[name][index], name) for index in order]
    rows.sort()
    positions = [[position for number, position, _ in rows if number == n] for n in range(len(manifests))]
    return Chosen(positions, [name for _, _, name in rows])


def representations(
    embeddings: Tensor, tokenisers: dict[str, Tokeniser], refine_iters: int
) -> dict[str, Tensor]:
    """What is compared of frames (F, D): name -> frames (F, D), all in the teacher's own scale.

    Names: TEACHER; each tokeniser's own; and, for several codebooks, "NAME: no. 1" and so on: one code vector
    instead of the sum (paper F.4.2: codebook 12).
    """
    result = {TEACHER: embeddings.float()}
    for name, tokeniser in tokenisers.items():
        codes = tokeniser.encode(embeddings, refine_iters)
        result[name] = tokeniser.decode(codes)
        centers = tokeniser.effective_centers()
        for codebook in range(tokeniser.num_codebooks if tokeniser.num_codebooks > 1 else 0):
            vectors = centers[codebook, codes[:, codebook].long()]
            result[codebook_name(name, codebook)] = vectors * tokeniser.std + tokeniser.mean
    return result


def codebook_name(name: str, codebook: int) -> str:
    """Name of one codebook (from 0) of a tokeniser, counted from 1 for readers."""
    return f"{name}: no. {codebook + 1}"


def named(loaded: Mapping[str, Tokeniser]) -> dict[str, Tokeniser]:
    """Tokenisers (by their paths) under names for readers: "4 codebooks", "k-means 500"; with the path where
    two would be called the same."""
    plain = [
        f"k-means {each.codebook_size}"
        if each.kind == "kmeans"
        else f"{each.num_codebooks} codebook{'s' * (each.num_codebooks > 1)}"
        for each in loaded.values()
    ]
    return {
        f"{name} ({path})" if plain.count(name) > 1 else name: each
        for name, (path, each) in zip(plain, loaded.items())
    }


def drawn(numbers: dict[str, dict[str, float]], tokenisers: Sequence[str], codebook: int) -> list[str]:
    """Which representations get a picture: the teacher, every tokeniser, and one codebook of each that has
    several.

    Args:
      numbers: what ``separability`` found for every representation.
      codebook: the single codebook, from 1; 0: the one with the median nearest-neighbour accuracy.
    """
    names = [TEACHER]
    for name in tokenisers:
        names.append(name)
        singles = [key for key in numbers if key.startswith(f"{name}: no. ")]
        if codebook > len(singles) > 0:
            raise ValueError(
                f"codebook is {codebook}, but {name!r} has {len(singles)}: use 1..{len(singles)}, or 0"
            )
        if singles:
            ranked = sorted(singles, key=lambda each: numbers[each]["nearest_neighbour"])
            names.append(codebook_name(name, codebook - 1) if codebook else ranked[len(ranked) // 2])
    return names


@dataclass
class _Sums:
    """Running sums of one representation."""

    total: Tensor | float
    squares: Tensor | float
    count: int = 0


@dataclass
class UtteranceVectors:
    """One vector per utterance for every representation, and the error of the frames."""

    vectors: dict[str, np.ndarray] = field(default_factory=dict)
    """Name -> (U, D), or (U, 2D) for pooling mean_std."""
    relative_error: dict[str, float] = field(default_factory=dict)
    """Name -> squared error of the frames relative to their spread around the mean."""


@torch.no_grad()
def utterance_vectors(
    teacher: Teacher,
    tokenisers: dict[str, Tokeniser],
    manifests: Sequence[Manifest],
    positions: Sequence[Sequence[int]],
    pooling: str = "mean",
    batch_seconds: float = 120.0,
    refine_iters: int = 5,
) -> UtteranceVectors:
    """Embed the utterances once and pool every representation of their frames.

    Args:
      tokenisers: name -> tokeniser, all of this teacher.
      positions: per manifest, in the order of the result.
      pooling: mean (paper F.4.2), or mean_std: mean and standard deviation per channel, for teachers that
        take the utterance's mean out.

    Raises:
      RuntimeError: audio that cannot be read.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling is {pooling!r}: use {' or '.join(POOLINGS)}")
    rows: dict[str, list[np.ndarray]] = {}
    errors: dict[str, float] = {}
    whole = _Sums(0.0, 0.0)
    for manifest, chosen in zip(manifests, positions):
        found: dict[int, dict[str, _Sums]] = {position: {} for position in chosen}
        batches = length_batches(manifest.durations[list(chosen)].tolist(), batch_seconds)
        groups = [[chosen[row] for row in batch] for batch in batches]
        for decoded in progress(decode_ahead(manifest, groups), len(groups), "embeddings", "batches"):
            for _, message in decoded.errors.values():
                raise RuntimeError(f"cannot read audio: {message}")
            for pieces in embed_batches(teacher, decoded.audio, batch_seconds):
                for piece in pieces:
                    frames = representations(piece.embeddings, tokenisers, refine_iters)
                    for name, values in frames.items():
                        _add(found[piece.position].setdefault(name, _Sums(0.0, 0.0)), values)
                        error = float((values - frames[TEACHER]).square().sum(dtype=torch.float64))
                        errors[name] = errors.get(name, 0.0) + error
                    _add(whole, frames[TEACHER].cpu())
        for position in chosen:
            if not found[position]:
                raise RuntimeError(f"{manifest.ids[position]} is too short for one frame of the teacher")
            for name, sums in found[position].items():
                rows.setdefault(name, []).append(_pooled(sums, pooling))
    spread = float((whole.squares - whole.total.square() / whole.count).sum())
    return UtteranceVectors(
        {name: np.stack(vectors) for name, vectors in rows.items()},
        {name: error / spread for name, error in errors.items()},
    )


def _add(sums: _Sums, frames: Tensor) -> None:
    sums.total = sums.total + frames.sum(dim=0, dtype=torch.float64)
    sums.squares = sums.squares + frames.double().square().sum(dim=0)
    sums.count += len(frames)


def _pooled(sums: _Sums, pooling: str) -> np.ndarray:
    mean = sums.total / sums.count
    if pooling == "mean_std":
        deviation = (sums.squares / sums.count - mean.square()).clamp(min=0).sqrt()
        mean = torch.cat([mean, deviation])
    return mean.cpu().numpy()


def separability(vectors: np.ndarray, speakers: Sequence[str]) -> dict[str, float]:
    """How far speakers lie apart in the space of ``vectors`` (U, D), Euclidean.

    Returns:
      silhouette: in [-1, 1], 0 where own and nearest other speaker are equally far.
      nearest_neighbour: leave-one-out accuracy of the nearest utterance's speaker, percent.
      linear_probe: accuracy of ridge regression on standardised vectors, five folds, percent.
    """
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.metrics import silhouette_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.neighbors import NearestNeighbors
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    names, labels = np.unique(speakers, return_inverse=True)
    # The nearest of the others: the first of two may be the utterance itself or an equal vector.
    neighbours = NearestNeighbors(n_neighbors=1).fit(vectors).kneighbors(return_distance=False)[:, 0]
    folds = StratifiedKFold(min(5, int(np.bincount(labels).min())), shuffle=True, random_state=0)
    probe = make_pipeline(StandardScaler(), RidgeClassifierCV(np.logspace(-3, 3, 7)))
    guesses = cross_val_predict(probe, vectors, labels, cv=folds)
    return {
        "silhouette": float(silhouette_score(vectors, labels)),
        "nearest_neighbour": 100 * float(np.mean(labels[neighbours] == labels)),
        "linear_probe": 100 * float(np.mean(guesses == labels)),
        "chance": 100 * float(np.bincount(labels).max() / len(labels)),
    }


def two_dimensions(vectors: np.ndarray, seed: int) -> np.ndarray:
    """(U, 2) by t-SNE (the paper's picture is UMAP's, which would bring numba and llvmlite along)."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(vectors) - 1) / 3)
    return TSNE(perplexity=perplexity, random_state=seed, init="pca").fit_transform(vectors)
