"""Tokens on cuts: the one place where they are attached, loaded, checked and collated.

Tokens are codes of a multi-codebook quantiser, (T, N) unsigned integers, one custom field per teacher on the
cut. Importing this module registers the reader, after which ``cut.load_<field>()`` works as for any lhotse
array.

lhotse's own handling of such fields has traps (padding with 0, a valid token; -100 that wraps to 156 in
uint8; empty arrays for cuts that do not start at 0; silent cutting by speed perturbation; mixtures that grow
the field). Code of this library therefore loads tokens with ``load_tokens`` and pads them with
``collate_tokens`` only.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lhotse.array import Array, TemporalArray
from lhotse.cut import Cut, MixedCut
from torch import Tensor

from spear_lib.data.batch import PADDING
from spear_lib.data.packed_arrays import STORAGE_TYPE, PackedTokenReader
from spear_lib.runtime.files import read_json, write_json
from spear_lib.tokens.plan import ShardPlan, TokenFacts, frames_lost_at_the_edges
from spear_lib.tokens.store import (
    STORE_FILE,
    Entry,
    TokenStoreReader,
    TokenStoreWriter,
    store_facts,
    write_store,
)

__all__ = [
    "FRAME_TOLERANCE",
    "STORAGE_TYPE",
    "STORE_FILE",
    "PackedTokenReader",
    "ShardPlan",
    "TokenFacts",
    "TokenReport",
    "TokenStoreReader",
    "TokenStoreWriter",
    "attach_tokens",
    "collate_tokens",
    "load_tokens",
    "quantizer_id",
    "store_facts",
    "token_facts",
    "token_files",
    "validate",
    "write_store",
    "write_store_facts",
]

FRAME_TOLERANCE = 2
"""Token frames by which a count may differ from what the duration and the teacher's frames say (rounding)."""


def attach_tokens(
    cuts: Iterable[Cut], store: str | Path | TokenStoreReader, field: str | None = None
) -> Iterator[Cut]:
    """Cuts with the token field of ``store`` attached, in their order; cuts that were skipped are left out.

    A cut's tokens are found by its recording, channel, start and duration, never by its id.

    Args:
      cuts: the cuts that the tokens were made for.
      store: a finished token store.
      field: name of the field; the store's own by default. Another name is refused.

    Raises:
      ValueError: a cut without tokens, a number of frames that does not fit, another field name.
    """
    reader = store if isinstance(store, TokenStoreReader) else TokenStoreReader(store)
    facts = reader.facts
    if field is not None and field != facts.field:
        raise ValueError(f"{reader.store} holds the field {facts.field!r}, not {field!r}")
    for cut in cuts:
        entry = reader.find(cut)
        if entry is None:
            raise ValueError(
                f"{reader.store} has no tokens of cut {cut.id} ({cut.duration:.3f} s from {cut.start:.3f} s "
                "of its recording): the store was made for other cuts, or the cuts changed; run stage 5 "
                "again with these"
            )
        if entry.skipped:
            continue
        _check_frames(cut, entry, facts)
        tokens = TemporalArray(
            array=Array(
                storage_type=STORAGE_TYPE,
                storage_path=entry.path,
                storage_key=entry.key,
                shape=[entry.num_frames, facts.num_codebooks],
            ),
            temporal_dim=0,
            frame_shift=1.0 / facts.frame_rate,
            # With 0 here, a cut that does not start at 0 would load an empty array.
            start=cut.start,
        )
        cut = cut.with_custom(facts.field, tokens)
        cut.custom[_quantizer_key(facts.field)] = facts.quantizer_id
        yield cut


def _check_frames(cut: Cut, entry: Entry, facts: TokenFacts) -> None:
    expected = facts.num_frames(cut.duration)
    if abs(entry.num_frames - expected) > FRAME_TOLERANCE:
        raise ValueError(
            f"cut {cut.id} has {entry.num_frames} token frames, expected {expected:.1f} +- {FRAME_TOLERANCE} "
            f"({cut.duration:.3f} s at {facts.frame_rate:g} Hz, frame 0 centred at "
            f"{facts.first_frame_center_ms:g} ms)"
        )


def _quantizer_key(field: str) -> str:
    return f"{field}_quantizer_id"


def facts_key(field: str) -> str:
    """Custom field that holds facts of a cut's tokens ``field`` where they travel without their store."""
    return f"{field}_facts"


def quantizer_id(cut: Cut, field: str) -> str | None:
    """Id of the quantiser that made the cut's tokens ``field``; None where the cut does not say."""
    return (cut.custom or {}).get(_quantizer_key(field))


def load_tokens(cut: Cut, field: str) -> np.ndarray:
    """Tokens (T, N) of a cut or of a window of it, as stored (uint8; uint16 above 256 codes).

    Raises:
      ValueError: no such field, a mixed cut, a cut whose speed was changed after its tokens were made, or a
        number of frames that does not fit the duration.
    """
    if isinstance(cut, MixedCut):
        raise ValueError(
            f"cut {cut.id} is a mixture: lhotse grows and zero-fills token fields of mixtures. Load the "
            "tokens of the primary cut before mixing (spear_lib.data.mixing mixes waveforms and tokens after "
            "loading)"
        )
    manifest = (cut.custom or {}).get(field)
    if not isinstance(manifest, TemporalArray):
        known = sorted(name for name, value in (cut.custom or {}).items() if isinstance(value, TemporalArray))
        raise ValueError(
            f"cut {cut.id} has no tokens {field!r} (it has {', '.join(known) or 'none'}); run stage 6 "
            "(check_tokens) and use the cuts it writes"
        )
    rate = 1.0 / manifest.frame_shift
    recording = cut.recording
    if recording is not None and manifest.end > recording.duration + (FRAME_TOLERANCE + 0.5) / rate:
        raise ValueError(
            f"cut {cut.id}: tokens {field!r} end at {manifest.end:.2f} s but the recording at "
            f"{recording.duration:.2f} s. Was its speed changed after the tokens were made? Tokens do not "
            f"stretch"
        )
    # lhotse rounds the duration and may lose the last frame of a whole cut: to the end, then.
    to_the_end = abs(cut.end - manifest.end) < FRAME_TOLERANCE / rate
    tokens = manifest.load(start=cut.start, duration=None if to_the_end else cut.duration)
    expected = cut.duration * rate
    excess = tokens.shape[0] - expected
    if abs(excess) > FRAME_TOLERANCE and not -_lost_at_the_edges(cut, field, rate) <= excess <= 0:
        raise ValueError(
            f"cut {cut.id} has {tokens.shape[0]} frames of tokens {field!r}, expected {expected:.1f} +- "
            f"{FRAME_TOLERANCE} ({cut.duration:.3f} s at {rate:g} Hz). Padded, or its speed was changed, "
            "after the tokens were made?"
        )
    return tokens


def _lost_at_the_edges(cut: Cut, field: str, rate: float) -> float:
    """Frames by which a teacher's tokens may be fewer than duration x rate: what it lacks at the edges
    of an utterance, of which a window of the cut may have both, one or none."""
    facts = cut.custom.get(facts_key(field))
    if facts is None:
        facts = _facts_of(str(_store_of(cut.custom[field])))
    return frames_lost_at_the_edges(facts.get("first_frame_center_ms", 0.0), rate) + FRAME_TOLERANCE


def _store_of(manifest: TemporalArray) -> Path:
    return Path(manifest.array.storage_path).parent.parent


@lru_cache(maxsize=16)
def _facts_of(store: str) -> dict[str, Any]:
    return store_facts(store) if (Path(store) / STORE_FILE).is_file() else {}


def token_files(cut: Cut, fields: Iterable[str]) -> list[str]:
    """The shards (or Shar archives) that hold a cut's tokens, of those fields that it has."""
    values = [(cut.custom or {}).get(name) for name in fields]
    arrays = [value.array for value in values if isinstance(value, TemporalArray)]
    return [array.storage_path for array in arrays if array.storage_type == STORAGE_TYPE]


def collate_tokens(tokens: list[np.ndarray]) -> Tensor:
    """Arrays (T_b, N) of one batch -> (B, T, N) int64, filled with -100 behind each utterance's end."""
    if not tokens:
        raise ValueError("collate_tokens got an empty list: a batch has at least one utterance")
    widths = sorted({array.shape[1] for array in tokens})
    if len(widths) > 1:
        raise ValueError(
            f"tokens of one batch have {widths[0]} and {widths[1]} codebooks: they come from two quantisers"
        )
    batch = torch.full((len(tokens), max(a.shape[0] for a in tokens), widths[0]), PADDING, dtype=torch.int64)
    for row, array in enumerate(tokens):
        # int64 before any -100 comes near: in uint8 it would wrap to 156, a valid token.
        batch[row, : array.shape[0]] = torch.from_numpy(array.astype(np.int64))
    return batch


@dataclass(frozen=True)
class TokenReport:
    """What ``validate`` counted."""

    num_cuts: int
    num_frames: int
    num_missing: int
    """Cuts without the field."""
    num_mismatched: int
    """Cuts whose frame count does not fit their duration, or whose file cannot be read."""


def validate(
    cuts: Iterable[Cut], field: str, expected_quantizer_id: str | None = None, max_bad_fraction: float = 0.001
) -> TokenReport:
    """Load the tokens of every cut and count what is wrong.

    Args:
      expected_quantizer_id: refuse cuts whose tokens come from another quantiser.
      max_bad_fraction: share of cuts that may lack usable tokens (0.1 %).

    Raises:
      ValueError: too many bad cuts (with the first problem), or tokens of another quantiser.
    """
    num_cuts = num_frames = num_missing = num_mismatched = 0
    first_problem = ""
    for cut in cuts:
        num_cuts += 1
        if not cut.has_custom(field):
            num_missing += 1
            first_problem = first_problem or f"cut {cut.id} has no field {field!r}"
            continue
        theirs = cut.custom.get(_quantizer_key(field))
        if expected_quantizer_id is not None and theirs != expected_quantizer_id:
            raise ValueError(
                f"cut {cut.id}: tokens {field!r} come from quantiser {theirs}, expected "
                f"{expected_quantizer_id}; dump the tokens again with the right quantiser"
            )
        try:
            num_frames += load_tokens(cut, field).shape[0]
        except ValueError as error:
            num_mismatched += 1
            first_problem = first_problem or str(error)
    num_bad = num_missing + num_mismatched
    if num_bad > max_bad_fraction * num_cuts:
        raise ValueError(
            f"{num_bad} of {num_cuts} cuts have no usable tokens {field!r} ({num_missing} missing, "
            f"{num_mismatched} mismatched; at most {max_bad_fraction:.2%} allowed). First: {first_problem}"
        )
    return TokenReport(num_cuts, num_frames, num_missing, num_mismatched)


def token_facts(cut: Cut, field: str) -> dict[str, Any]:
    """What the manifest itself says of a cut's tokens: quantizer_id, frame_rate, num_codebooks (in Shar also
    the teacher, the centre of frame 0 and the codebook size); and, where the store is still at its place,
    everything of its store.json."""
    manifest = (cut.custom or {}).get(field)
    if not isinstance(manifest, TemporalArray):
        raise ValueError(f"cut {cut.id} has no tokens {field!r}; run stage 6 (check_tokens)")
    facts = {
        "field": field,
        "quantizer_id": cut.custom.get(_quantizer_key(field)),
        "frame_rate": 1.0 / manifest.frame_shift,
        "num_codebooks": manifest.shape[1],
        **cut.custom.get(facts_key(field), {}),
    }
    store = _store_of(manifest)
    if manifest.array.storage_type == STORAGE_TYPE and (store / STORE_FILE).is_file():
        full = store_facts(store)
        if facts["quantizer_id"] != full["quantizer_id"]:
            raise ValueError(
                f"cut {cut.id}: tokens {field!r} were attached for quantiser {facts['quantizer_id']}, but "
                f"{store} now holds tokens of {full['quantizer_id']}; run stage 6 (check_tokens) again"
            )
        facts = {**full, **facts}
    return facts


def write_store_facts(store: str | Path, facts: TokenFacts, summary: dict[str, Any]) -> None:
    """Write store.json: ``facts`` and ``summary`` in one flat object. A file that says the same stays
    untouched: another recipe's store may be checked again, and need not be writable."""
    path, content = Path(store) / STORE_FILE, {**asdict(facts), **summary}
    if not path.exists() or read_json(path) != json.loads(json.dumps(content)):
        write_json(path, content, compact=True)
