"""Stage 5: tokens of every cut. Streaming; an interrupted job goes on with the first missing shard.

One pass over the audio serves several quantisers: give lists to --quantizer and --output_dir. Batch jobs run
--num_splits N --split 1 ... N; under torchrun the ranks divide the work as well.
"""

import logging
import os
from dataclasses import dataclass

import torch

from spear_lib.bin.common import as_list, run
from spear_lib.config import parse
from spear_lib.data.manifests import Manifest
from spear_lib.data.problems import Problems
from spear_lib.quantization import load_tokeniser
from spear_lib.runtime.log import first_screen
from spear_lib.runtime.world import choose_device
from spear_lib.teachers.embedding import resolve_manifests
from spear_lib.tokens.making import FieldInMaking, facts_of, load_teacher, log_agreement, make_shard
from spear_lib.tokens.plan import SHARD_SECONDS, ShardPlan, cuts_hash, refuse_same_audio
from spear_lib.tokens.store import TokenStoreWriter

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """Options of dump_tokens."""

    cuts: str | list[str]
    """Manifest(s) of the cuts to tokenise."""
    quantizer: str | list[str]
    """Folder (or file) of the quantiser, or several; it also says which teacher."""
    output_dir: str | list[str]
    """Folder of the token store, one for each quantiser."""
    teacher_path: str | list[str] = ""
    """Where the teacher's weights lie now, one for each quantiser; default: where they lay in stage 3."""
    teacher_dtype: str = ""
    """Number format of the teacher's blocks: float32 or bfloat16; default: the one of stage 3."""
    num_splits: int = 1
    """Number of parts for batch jobs; run one job per part."""
    split: int = 0
    """Which part, 1 to num_splits; 0: all parts, one after the other."""
    shard_hours: float = 0.0
    """Audio per shard at most, h: what is lost when a job is killed. 0: 22.2 (64 MB
    of 16 codebooks at 50 Hz), less where the parts would be empty. A store that was begun keeps its
    shards."""
    batch_seconds: float = 120.0
    """Audio per teacher call, s."""
    num_workers: int = 4
    """Threads that decode audio while the teacher computes."""
    channels: str = "mean"
    """What to make of cuts with several channels: mean (as every other command does), or first; pre-training
    then reads the audio as its tokens were made."""
    refine_iters: int = 5
    """Refinements of the quantiser's search (paper A.1: 5)."""
    max_bad_fraction: float = 0.001
    """Share of all cuts that may be skipped because they cannot be read or are too short."""
    retry_skipped: bool = False
    """Make those shards again in which cuts were skipped, after their audio was repaired."""

    def __post_init__(self) -> None:
        if self.num_splits < 1 or not 0 <= self.split <= self.num_splits:
            raise ValueError(
                f"split is {self.split} of num_splits {self.num_splits}: use 1..num_splits, or 0 for all "
                "parts"
            )
        if self.shard_hours < 0:
            raise ValueError(
                f"shard_hours is {self.shard_hours:g}: it must be positive, or 0 for the default"
            )
        if len(as_list(self.output_dir)) != len(as_list(self.quantizer)):
            raise ValueError(
                f"{len(as_list(self.quantizer))} quantizer(s) but {len(as_list(self.output_dir))} "
                "output_dir(s): give one folder for each"
            )


def open_fields(
    options: Options, manifest: Manifest, device: torch.device, num_parts: int
) -> list[FieldInMaking]:
    """What is to be made: one field per quantiser; quantisers of the same teacher share it."""
    names = as_list(options.quantizer)
    paths = as_list(options.teacher_path)
    paths = paths * len(names) if len(paths) == 1 else paths
    if len(paths) != len(names):
        raise ValueError(
            f"{len(names)} quantizer(s) but {len(paths)} teacher_path(s): give one for each, or one"
        )
    longest = options.shard_hours * 3600 or min(SHARD_SECONDS, float(manifest.durations.sum()) / num_parts)
    plan = ShardPlan.over(manifest.durations, longest)
    cuts_id, teachers, fields = cuts_hash(manifest.audio_keys), {}, []
    for name, path, store in zip(names, paths, as_list(options.output_dir)):
        quantizer = load_tokeniser(name).eval().to(device)
        teacher = load_teacher(quantizer, name, path, options.teacher_dtype)
        teacher = teachers.setdefault((teacher.id, teacher.dtype), teacher).to(device)
        facts = facts_of(teacher, quantizer, cuts_id, options.refine_iters, options.channels)
        fields.append(FieldInMaking(teacher, quantizer, TokenStoreWriter(store, facts, plan)))
    if any(field.writer.plan != fields[0].writer.plan for field in fields):
        raise ValueError(
            "these stores were begun with different shards, so they cannot go on in one pass: run "
            "dump_tokens once for each"
        )
    return fields


def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv, prog="python -m spear_lib.bin.dump_tokens", description=__doc__)
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = choose_device("auto", int(os.environ.get("LOCAL_RANK", "0")))
    manifest = Manifest(resolve_manifests(options.cuts))
    refuse_same_audio(manifest)
    # Parts of all jobs and ranks; without --split, the ranks alone.
    num_parts = world_size * (options.num_splits if options.split else 1)
    part = max(0, options.split - 1) * world_size + rank + 1
    fields = open_fields(options, manifest, device, world_size * options.num_splits)
    plan = fields[0].writer.plan
    shards = plan.share(part, num_parts)
    lines = {"cuts": f"{len(manifest)} of {manifest.describe()}, {manifest.hours:.2f} h"}
    for field in fields:
        facts = field.writer.facts
        num_bytes = manifest.hours * 3600 * facts.bytes_per_second
        lines[f"field {facts.field}"] = (
            f"teacher {facts.teacher_id} ({facts.teacher_dtype}), quantiser {facts.quantizer_id}, about "
            f"{num_bytes / 1e6:.1f} MB in {field.writer.store}"
        )
    lines["part"] = f"{part} of {num_parts}: {len(shards)} of {len(plan)} shards"
    first_screen("tokens", lines)
    if shards:
        log_agreement(fields, manifest, shards[0])
    problems = Problems(options.max_bad_fraction, "cuts", total=len(manifest))
    made = 0
    for number, shard in enumerate(shards, start=1):
        name = f"part {part} of {num_parts}, shard {number} of {len(shards)}"
        settings = (options.batch_seconds, options.num_workers, name, options.retry_skipped)
        made += make_shard(fields, shard, manifest, problems, *settings) > 0
    problems.log()
    skipped = {cut for shard in shards for field in fields for cut in field.writer.skipped(shard)}
    counts = f"{made} shards written now; {len(skipped)} cuts without tokens"
    stores = ", ".join(as_list(options.output_dir))
    logger.info("part %d of %d is complete: %s; tokens are in %s", part, num_parts, counts, stores)


if __name__ == "__main__":
    run(main)
