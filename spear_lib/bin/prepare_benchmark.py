"""Manifests of a benchmark corpus in its published layout, for evaluate_superb and the like.

    python -m spear_lib.bin.prepare_benchmark --corpus voxceleb1-sid --folder /corpora/VoxCeleb1 \\
        --output_dir data/superb/sid

Leaves train.jsonl.gz, valid.jsonl.gz and test.jsonl.gz (of qbe documents, development queries, queries),
and where the task has them trials.txt or relevance.tsv. Corpora: voxceleb1-sid, voxceleb1-asv,
speech-commands-v1, fluent, iemocap, librimix-sd, librimix-ss, librimix-se, voicebank-demand, snips, quesst14;
small ones: an4-asr, an4-sid, an4-asv, timit-qbe, timit-pr, ami-excerpts.
"""

import logging
from dataclasses import dataclass

from spear_lib.bin.common import run
from spear_lib.config import parse
from spear_lib.corpora.benchmarks.registry import CORPORA, write_manifests
from spear_lib.runtime.log import first_screen

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """Which corpus, where."""

    corpus: str
    """Corpus and task, see above."""
    folder: str
    """The corpus's own folder."""
    output_dir: str
    """Receives the manifests."""
    fold: int = 1
    """Corpora of folds (iemocap: sessions 1 to 5): the one that is tested."""

    def __post_init__(self) -> None:
        if self.corpus not in CORPORA:
            raise ValueError(f"corpus is {self.corpus!r}: use {', '.join(CORPORA)}")


def main(argv: list[str] | None = None) -> None:
    name = "python -m spear_lib.bin.prepare_benchmark"
    options = parse(PrepareOptions, argv, prog=name, description=__doc__)
    first_screen("Manifests of a benchmark", {"corpus": options.corpus, "folder": options.folder})
    counts = write_manifests(options.corpus, options.folder, options.output_dir, options.fold)
    logger.info("%s: %s", options.output_dir, ", ".join(f"{count} {part}" for part, count in counts.items()))


if __name__ == "__main__":
    run(main)
