"""QbE: is a spoken query in a document; DTW on frozen features, no training (after s3prl's quesst14_dtw).

Features are scaled per channel over all queries and documents; distance exp(1 - cosine) - 1, every row scaled
to 0..1 over the document; the query may begin and end anywhere in the document, and of each of its frames the
document's position moves by 0, 1 or 2 frames; the score is minus the mean distance, scaled per query over the
documents to mean 0 and deviation 1. Queries of less than 5 frames score 0 everywhere.

MTWV by the rule of MediaEval's QUESST 2014: the largest over thresholds of 1 - mean over queries of (missed
share + beta * falsely accepted share), beta = (cost_fa / cost_miss) (1 / prior - 1) = 12.49 with prior 0.0008
and costs 1 and 100. The layer is chosen on the development queries.

Legend: Q frames of a query, T of a document, D channels, L layers.
"""

from collections.abc import Sequence

import numpy as np

PRIOR, COST_MISS, COST_FALSE_ALARM = 0.0008, 100.0, 1.0
BETA = COST_FALSE_ALARM / COST_MISS * (1.0 / PRIOR - 1.0)
SHORTEST_QUERY = 5
BLOCK = 128
"""Documents that a query is compared with at once."""


def path_costs(distances: np.ndarray) -> np.ndarray:
    """Smallest mean over the query of a path that starts and ends anywhere, steps 0, 1 or 2.

    Args:
      distances: (documents, Q, T), infinite behind the end of a document.

    Returns:
      (documents,).
    """
    reached = distances[:, 0]
    for row in range(1, distances.shape[1]):
        one, two = (np.full_like(reached, np.inf) for _ in range(2))
        one[:, 1:], two[:, 2:] = reached[:, :-1], reached[:, :-2]
        reached = distances[:, row] + np.minimum(np.minimum(reached, one), two)
    return reached.min(1) / distances.shape[1]


def match_costs(query: np.ndarray, documents: Sequence[np.ndarray]) -> np.ndarray:
    """(documents,): of the cheapest path of the whole query through any stretch of each document.

    Args:
      query: (Q, D), documents: (T, D) each; vectors of length 1.
    """
    longest = max(map(len, documents))
    distances = np.full((len(documents), len(query), longest), np.inf, dtype=np.float32)
    for row, document in enumerate(documents):
        found = np.exp(1.0 - query @ document.T) - 1.0
        low, high = found.min(1, keepdims=True), found.max(1, keepdims=True)
        distances[row, :, : len(document)] = (found - low) / np.maximum(high - low, 1e-9)
    return path_costs(distances)


def detection_scores(queries: Sequence[np.ndarray], documents: Sequence[np.ndarray]) -> np.ndarray:
    """(queries, documents), higher is likelier; features as they come from the encoder."""
    together = np.concatenate([*queries, *documents])
    mean, deviation = together.mean(0), np.maximum(together.std(0, ddof=1), 1e-9)

    def scaled(frames: np.ndarray) -> np.ndarray:
        frames = (frames - mean) / deviation
        return frames / np.maximum(np.linalg.norm(frames, axis=1, keepdims=True), 1e-12)

    order = sorted(range(len(documents)), key=lambda index: len(documents[index]))  # little padding
    blocks = [order[start : start + BLOCK] for start in range(0, len(order), BLOCK)]
    ready = [scaled(one) for one in documents]
    found = np.zeros((len(queries), len(documents)))
    for row, query in enumerate(queries):
        if len(query) < SHORTEST_QUERY:
            continue
        own = scaled(query)
        for block in blocks:
            found[row, block] = -match_costs(own, [ready[index] for index in block])
        found[row] = (found[row] - found[row].mean()) / max(found[row].std(), 1e-9)
    return found


def mtwv(scores: np.ndarray, relevant: np.ndarray, beta: float = BETA) -> tuple[float, float]:
    """Maximum term-weighted value and its threshold.

    Args:
      scores: (queries, documents). relevant: the same, bool; queries without a relevant document do not
        count.

    Raises:
      ValueError: no query is in any document, or one is in all.
    """
    counted = relevant.any(1)
    scores, relevant = scores[counted], relevant[counted]
    if not len(scores):
        raise ValueError("no query is in any document: the term-weighted value is not defined")
    if relevant.all(1).any():
        raise ValueError("a query is in every document: there is nothing it could be falsely found in")
    # One trial accepted after the other, from the highest score down; equal scores together.
    hit = relevant / relevant.sum(1, keepdims=True)
    wrong = ~relevant / (~relevant).sum(1, keepdims=True)
    gains = ((hit - beta * wrong) / len(scores)).ravel()
    order = np.argsort(-scores.ravel(), kind="stable")
    values, ordered = np.cumsum(gains[order]), scores.ravel()[order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    best = ends[int(np.argmax(values[ends]))]
    if values[best] <= 0.0:
        return 0.0, float("inf")  # nothing accepted
    return float(values[best]), float(ordered[best])


def term_weighted_value(
    scores: np.ndarray, relevant: np.ndarray, threshold: float, beta: float = BETA
) -> float:
    """At a given threshold (ATWV where that was chosen on other queries)."""
    counted = relevant.any(1)
    accepted, relevant = scores[counted] >= threshold, relevant[counted]
    missed = (~accepted & relevant).sum(1) / relevant.sum(1)
    wrong = (accepted & ~relevant).sum(1) / (~relevant).sum(1)
    return float(1.0 - (missed + beta * wrong).mean())
