"""What a token store holds beside its manifest: gaps, code statistics, and the summary that a person
reads."""

import math
from typing import Any

import numpy as np

from spear_lib.data.manifests import Manifest
from spear_lib.tokens.plan import TokenFacts
from spear_lib.tokens.store import TokenStoreReader

MISSING = "not in the store"


def find_gaps(manifest: Manifest, reader: TokenStoreReader) -> tuple[dict[str, str], list[str]]:
    """Compare a manifest with a store by what audio they are about (recording, channel, start, duration).

    Returns:
      cuts of the manifest without tokens (id -> why), and ids of cuts that only the store has.
    """
    keys = np.asarray(manifest.audio_keys)
    gaps = {
        manifest.ids[position]: MISSING for position in np.flatnonzero(~np.isin(keys, reader.keys)).tolist()
    }
    for entry in reader.entries():
        if entry.skipped:
            gaps[entry.cut_id] = entry.skipped
    foreign = reader.cut_ids_of(reader.keys[~np.isin(reader.keys, keys)].tolist())
    return gaps, foreign


def usage_summary(counts: np.ndarray) -> dict[str, Any]:
    """Code statistics of ``TokenStoreReader.verify``'s counts (N, codebook_size), one value per codebook.

    Entropy in nats (the unigram baseline of the token loss), perplexity, share of the codes that occur,
    smallest and largest code.
    """
    share = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    logs = np.log(np.where(share > 0, share, 1.0))
    nats = -(share * logs).sum(axis=1)
    used = [np.flatnonzero(row) for row in counts]
    return {
        "unigram_entropy_nats": [round(float(each), 6) for each in nats],
        "mean_unigram_entropy_nats": round(float(nats.mean()), 6),
        "perplexity": [round(float(each), 3) for each in np.exp(nats)],
        "used_share": [round(float(each), 6) for each in (counts > 0).mean(axis=1)],
        "code_range": [[int(each[0]), int(each[-1])] if len(each) else [] for each in used],
    }


def summary_lines(facts: TokenFacts, counts: dict[str, Any], usage: dict[str, Any]) -> list[str]:
    """The store in a few lines, then one line per codebook."""
    seconds = counts["audio_hours"] * 3600
    rate = counts["num_frames"] / max(seconds, 1e-9)
    lines = [
        f"field       {facts.field}: {facts.num_codebooks} codebooks of {facts.codebook_size}, {facts.dtype}",
        f"made by     teacher {facts.teacher_id} ({facts.teacher_dtype}), quantiser {facts.quantizer_id}",
        f"cuts        {counts['num_cuts']} with tokens, {counts['num_skipped']} skipped, "
        f"{counts['audio_hours']:.2f} h",
        f"frames      {counts['num_frames']}, {rate:.2f} per second of audio (the teacher has "
        f"{facts.frame_rate:g}; frame 0 is centred at {facts.first_frame_center_ms:g} ms)",
        f"size        {counts['num_bytes'] / 1e6:.1f} MB in {counts['num_shards']} shards",
        f"entropy     {usage['mean_unigram_entropy_nats']:.3f} nats per codebook, of at most ln "
        f"{facts.codebook_size} = {math.log(facts.codebook_size):.3f}",
        "codebook    codes      used     perplexity",
    ]
    for number in range(facts.num_codebooks):
        low, high = usage["code_range"][number] or (0, 0)
        lines.append(
            f"{number:8d}    {f'{low}..{high}':9s}  {100 * usage['used_share'][number]:5.1f} %  "
            f"{usage['perplexity'][number]:9.1f}"
        )
    return lines
