"""Stage 5's work on one shard: decoded audio -> teachers -> quantisers -> packed codes (ours).

Embeddings never leave the accelerator's memory. One pass over the audio serves any number of teachers, and
any number of quantisers of one teacher.

The batches of a shard follow from its cuts and ``batch_seconds`` alone, so its tokens are the same whoever
makes it, and whatever else is made in the same pass.
"""

import logging
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch

from spear_lib.data.audio import source_of
from spear_lib.data.decoding import decode, decode_ahead
from spear_lib.data.manifests import Manifest
from spear_lib.data.problems import Problems
from spear_lib.features.fbank import SAMPLE_RATE
from spear_lib.quantization import Tokeniser
from spear_lib.runtime.progress import progress
from spear_lib.teachers import Teacher
from spear_lib.teachers.embedding import NOT_FINITE, embed_batches, length_batches, not_finite
from spear_lib.teachers.options import TeacherOptions
from spear_lib.tokens.agreement import token_agreement
from spear_lib.tokens.plan import TokenFacts
from spear_lib.tokens.store import TokenStoreWriter

logger = logging.getLogger(__name__)

TOO_SHORT = "too short for one token"
AGREEMENT_CUTS = 8
"""Cuts on which the effect of a teacher's number format is measured."""


@dataclass(frozen=True)
class FieldInMaking:
    """A token field in the making: whose embeddings, which codes, where to."""

    teacher: Teacher
    quantizer: Tokeniser
    writer: TokenStoreWriter


def load_teacher(quantizer: Tokeniser, where: str, path: str = "", dtype: str = "") -> Teacher:
    """The very teacher whose embeddings the quantiser (at ``where``) was trained on, or an error."""
    provenance = quantizer.provenance
    if "recipe" not in provenance:
        raise ValueError(f"{where} does not say which teacher it belongs to; train it with train_quantizer")
    teacher = TeacherOptions.from_recipe(provenance["recipe"], path, dtype).create()
    if teacher.embedding_dim != quantizer.dim:
        raise ValueError(
            f"the teacher {teacher.id} has {teacher.embedding_dim} channels, but the quantiser {where} was "
            f"trained for {quantizer.dim}: give the weights of the right size (teacher_path), or train the "
            "quantiser again"
        )
    if teacher.id != provenance["teacher"]["teacher_id"]:
        raise ValueError(
            f"the quantiser was trained on embeddings of teacher {provenance['teacher']['teacher_id']}, but "
            f"this teacher is {teacher.id}: its weights or the code changed; train the quantiser again "
            "(stages 3 and 4)"
        )
    return teacher


def facts_of(
    teacher: Teacher, quantizer: Tokeniser, cuts_id: str, refine_iters: int, channels: str
) -> TokenFacts:
    """What is true of all tokens that this teacher and this quantiser make of a corpus."""
    return TokenFacts(
        field=f"{teacher.field_prefix}_{quantizer.field_suffix}",
        teacher_id=teacher.id,
        quantizer_id=quantizer.id,
        frame_rate=teacher.frame_rate,
        first_frame_center_ms=teacher.first_frame_center_ms,
        num_codebooks=quantizer.num_codebooks,
        codebook_size=quantizer.codebook_size,
        cuts_id=cuts_id,
        refine_iters=refine_iters,
        channels=channels,
        teacher_dtype=teacher.dtype,
    )


def log_agreement(fields: list[FieldInMaking], manifest: Manifest, shard: int) -> None:
    """Say how many tokens change because a teacher does not compute in float32, on the first cuts of a shard
    (spec teachers §1)."""
    for each in fields:
        facts, teacher = each.writer.facts, each.teacher
        if facts.teacher_dtype == "float32":
            continue
        positions = each.writer.plan.positions(shard)[:AGREEMENT_CUTS]
        longest = round(teacher.window_seconds * teacher.sample_rate)
        audio = [
            torch.from_numpy(samples[:longest])
            for samples in decode(manifest, positions, facts.channels).audio.values()
        ]
        if any(teacher.num_frames(len(samples)) for samples in audio):
            found = token_agreement(teacher, each.quantizer, audio, facts.refine_iters)
            logger.info("%s: %s", facts.field, found)


def make_shard(
    fields: list[FieldInMaking],
    shard: int,
    manifest: Manifest,
    problems: Problems,
    batch_seconds: float,
    num_workers: int,
    description: str,
    retry_skipped: bool = False,
) -> int:
    """Make the tokens of one shard for those fields that lack it, in one pass over the audio.

    Args:
      fields: all with the same plan of shards.
      problems: counts what is skipped and noted; raises when it is too much.
      num_workers: threads that decode audio ahead.
      retry_skipped: make the shard again where cuts were skipped.

    Returns:
      how many fields were made; 0 if all had the shard.

    Raises:
      RuntimeError: another process is making this shard.
      ValueError: too many cuts that cannot be used.
    """
    with ExitStack() as claims:
        missing = []
        for each in fields:
            if each.writer.is_done(shard, retry_skipped):
                each.writer.tidy(shard)
            else:
                claims.enter_context(each.writer.claim(shard))
                # Another job may have finished it while this one was on its way.
                if not each.writer.is_done(shard, retry_skipped):
                    missing.append(each)
        if missing:
            _make(missing, shard, manifest, problems, batch_seconds, num_workers, description)
    return len(missing)


def _make(
    fields: list[FieldInMaking],
    shard: int,
    manifest: Manifest,
    problems: Problems,
    batch_seconds: float,
    num_workers: int,
    description: str,
) -> None:
    facts = [each.writer.facts for each in fields]
    positions = fields[0].writer.plan.positions(shard)
    # Sorted by length: a batch is padded little, and cuts of a batch are decoded together.
    groups = [
        [positions[row] for row in group]
        for group in length_batches(
            manifest.durations[positions.start : positions.stop].tolist(), batch_seconds
        )
    ]
    cuts = {}
    codes: list[dict[int, np.ndarray]] = [{} for _ in fields]
    skipped: list[dict[str, str]] = [{} for _ in fields]
    groups_of_audio = decode_ahead(manifest, groups, num_workers, facts[0].channels)
    for decoded in progress(groups_of_audio, len(groups), description, "batches"):
        cuts.update(decoded.cuts)
        for kind, count in decoded.notes.items():
            problems.note(kind, count)
        for position, (kind, message) in decoded.errors.items():
            problems.bad(kind, message)
            for each in skipped:
                each[decoded.cuts[position].id] = f"{kind}: {message}"
        for position, samples in decoded.audio.items():
            cut_id = decoded.cuts[position].id
            too_short = f"{TOO_SHORT}: {cut_id}, {len(samples) / SAMPLE_RATE:.4f} s"
            for number, each in enumerate(fields):
                count = each.teacher.num_frames(len(samples))
                codes[number][position] = np.empty((count, facts[number].num_codebooks), facts[number].dtype)
                if count == 0:
                    skipped[number][cut_id] = too_short
        damaged = _tokens_of(fields, decoded.audio, codes, batch_seconds)
        for position, numbers in damaged.items():
            cut = decoded.cuts[position]
            for number in numbers:
                codes[number][position] = np.empty((0, facts[number].num_codebooks), facts[number].dtype)
                skipped[number][cut.id] = f"{NOT_FINITE}: {cut.id} ({source_of(cut)})"
        for position in decoded.audio:
            cut_id = decoded.cuts[position].id
            why = next((each[cut_id] for each in skipped if cut_id in each), None)
            if why is None:
                problems.good()
            else:
                problems.bad(why.partition(":")[0], why.partition(": ")[2])
    for number, each in enumerate(fields):
        nothing = np.empty((0, facts[number].num_codebooks), facts[number].dtype)
        in_order = [codes[number].get(position, nothing) for position in positions]
        each.writer.write_shard(shard, [cuts[position] for position in positions], in_order, skipped[number])


def _tokens_of(
    fields: list[FieldInMaking],
    audio: dict[int, np.ndarray],
    codes: list[dict[int, np.ndarray]],
    batch_seconds: float,
) -> dict[int, set[int]]:
    """Fill ``codes`` for these recordings; each teacher runs once, for all of its quantisers.

    Returns:
      position of each recording whose embeddings are not finite -> numbers of the fields that have no tokens
      of it.
    """
    damaged: dict[int, set[int]] = {}
    by_teacher: dict[int, list[int]] = {}
    for number, each in enumerate(fields):
        by_teacher.setdefault(id(each.teacher), []).append(number)
    for numbers in by_teacher.values():
        for pieces in embed_batches(fields[numbers[0]].teacher, audio, batch_seconds):
            wrong = not_finite(pieces)
            for position in wrong:
                damaged.setdefault(position, set()).update(numbers)
            pieces = [piece for piece in pieces if piece.position not in wrong]
            if not pieces:
                continue
            embeddings = torch.cat([piece.embeddings for piece in pieces])
            for number in numbers:
                refine_iters = fields[number].writer.facts.refine_iters
                tokens = fields[number].quantizer.encode(embeddings, refine_iters).cpu().numpy()
                begin = 0
                for piece in pieces:
                    count = len(piece.embeddings)
                    end = piece.first_frame + count
                    codes[number][piece.position][piece.first_frame : end] = tokens[begin : begin + count]
                    begin += count
    return damaged
