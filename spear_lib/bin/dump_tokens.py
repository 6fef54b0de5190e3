"""Stage 5: tokens of every cut. Streaming; an interrupted job goes on with the first missing shard."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from spear_lib.bin.common import first_screen, run
from spear_lib.config import parse
from spear_lib.data.manifests import Manifest
from spear_lib.data.tokens import TokenFacts, TokenStoreWriter
from spear_lib.quantization import Quantizer
from spear_lib.teachers import Teacher
from spear_lib.teachers.embedding import count_frames, count_windows, embed_pieces, resolve_manifests
from spear_lib.teachers.options import TeacherOptions
from spear_lib.training.progress import progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """Options of dump_tokens."""

    cuts: str | list[str]
    """Manifest(s) of the cuts to tokenise."""
    quantizer: str
    """Folder (or file) of the quantiser; it also says which teacher."""
    output_dir: str
    """Folder of the token store."""
    teacher_path: str = ""
    """Where the teacher's weights lie now; default: where they lay when the quantiser was trained."""
    teacher_dtype: str = ""
    """Number format of the teacher's blocks: float32 or bfloat16; default: the one of stage 3."""
    num_splits: int = 1
    """Number of parts for batch jobs; run one job per part."""
    split: int = 0
    """Which part, 1 to num_splits; 0: all parts, one after the other."""
    shard_cuts: int = 1000
    """Cuts per shard: what is lost at most when a job is killed."""
    batch_seconds: float = 120.0
    """Audio per teacher call, s."""
    refine_iters: int = 5
    """Refinements of the quantiser's search (paper: 5)."""


def load_teacher(quantizer: Quantizer, options: Options) -> Teacher:
    """The very teacher whose embeddings the quantiser was trained on, or an error."""
    provenance = quantizer.provenance
    if "recipe" not in provenance:
        raise ValueError(
            f"{options.quantizer} does not say which teacher it belongs to; train it with train_quantizer"
        )
    recipe = TeacherOptions.from_recipe(provenance["recipe"], options.teacher_path, options.teacher_dtype)
    teacher = recipe.create()
    if teacher.id != provenance["teacher"]["teacher_id"]:
        raise ValueError(
            f"the quantiser was trained on embeddings of teacher {provenance['teacher']['teacher_id']}, but "
            f"this "
            f"teacher is {teacher.id}: its weights or the code changed; train the quantiser again (stages 3 "
            f"and 4)"
        )
    return teacher


def cuts_hash(manifest: Manifest) -> str:
    """Identity of the corpus: ids and durations, in order."""
    digest = hashlib.sha256("\n".join(manifest.ids).encode())
    digest.update(manifest.durations.round(3).tobytes())
    return digest.hexdigest()[:16]


def split_range(total: int, split: int, num_splits: int) -> range:
    """Positions of part ``split`` (from 1): consecutive, sizes differ by one at most."""
    return range(total * (split - 1) // num_splits, total * split // num_splits)


def dump_split(
    manifest: Manifest,
    teacher: Teacher,
    quantizer: Quantizer,
    facts: TokenFacts,
    options: Options,
    split: int,
) -> int:
    """Write the missing shards of one split; returns how many were written."""
    positions = split_range(len(manifest), split, options.num_splits)
    blocks = [
        positions[begin : begin + options.shard_cuts]
        for begin in range(0, len(positions), options.shard_cuts)
    ]
    written = 0
    with TokenStoreWriter(options.output_dir, facts, split, options.num_splits) as writer:
        for shard, block in enumerate(blocks):
            if writer.is_done(shard, [manifest.ids[position] for position in block]):
                continue
            cuts = [manifest[position] for position in block]
            counts = [count_frames(teacher, cut) for cut in cuts]
            codes = [np.empty((count, facts.num_codebooks), dtype=np.uint8) for count in counts]
            pieces = embed_pieces(teacher, cuts, options.batch_seconds)
            name = f"split {split} of {options.num_splits}, shard {shard + 1} of {len(blocks)}"
            for piece in progress(pieces, count_windows(teacher, cuts), name, "windows"):
                tokens = quantizer.encode(piece.embeddings, options.refine_iters).cpu().numpy()
                codes[piece.position][piece.first_frame : piece.first_frame + len(tokens)] = tokens
            entries = [(cut.id, cut.start, cut.duration, each) for cut, each in zip(cuts, codes)]
            writer.write_shard(shard, entries)
            written += 1
        writer.finish(len(blocks))
    return written


def main() -> None:
    options = parse(Options, prog="python -m spear_lib.bin.dump_tokens", description=__doc__)
    if options.num_splits < 1 or not 0 <= options.split <= options.num_splits:
        raise ValueError(
            f"split is {options.split} of num_splits {options.num_splits}: use 1..num_splits, or 0 for all "
            f"parts"
        )
    if options.shard_cuts < 1:
        raise ValueError(f"shard_cuts is {options.shard_cuts}: it must be at least 1")
    manifest = Manifest(resolve_manifests(options.cuts))
    quantizer = Quantizer.load(options.quantizer).eval()
    teacher = load_teacher(quantizer, options)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    quantizer.to(device), teacher.to(device)
    facts = TokenFacts(
        field=f"{teacher.field_prefix}_cb{quantizer.num_codebooks}",
        teacher_id=teacher.id,
        quantizer_id=quantizer.id,
        frame_rate=teacher.frame_rate,
        first_frame_center_ms=teacher.first_frame_center_ms,
        num_codebooks=quantizer.num_codebooks,
        codebook_size=quantizer.codebook_size,
        cuts_id=cuts_hash(manifest),
    )
    num_bytes = float(manifest.durations.sum()) * teacher.frame_rate * quantizer.num_codebooks
    first_screen(
        "tokens",
        {
            "cuts": f"{len(manifest)} of {manifest.describe()}, {manifest.hours:.2f} h",
            "teacher": teacher.id,
            "quantiser": f"{quantizer.id}, field {facts.field}",
            "estimate": f"{num_bytes / 1e6:.1f} MB in {options.num_splits} split(s)",
        },
    )
    splits = [options.split] if options.split else range(1, options.num_splits + 1)
    for split in splits:
        written = dump_split(manifest, teacher, quantizer, facts, options, split)
        logger.info("split %d of %d is complete: %d shards written now", split, options.num_splits, written)
    logger.info("tokens are in %s", Path(options.output_dir))


if __name__ == "__main__":
    run(main)
