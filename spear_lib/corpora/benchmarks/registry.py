"""Which benchmark corpora can be read, and manifests of them."""

import logging
from collections.abc import Callable
from pathlib import Path

from lhotse.cut import Cut

from spear_lib.corpora.benchmarks import small_corpora, superb_corpora
from spear_lib.corpora.benchmarks.common import PARTS, Labelled, Read
from spear_lib.data.manifests import save_cuts
from spear_lib.runtime.files import write_json, write_text

logger = logging.getLogger(__name__)

CORPORA: dict[str, Callable[[Path, Read], Labelled]] = {
    "voxceleb1-sid": superb_corpora.voxceleb1_sid,
    "voxceleb1-asv": superb_corpora.voxceleb1_asv,
    "speech-commands-v1": superb_corpora.speech_commands_v1,
    "fluent": superb_corpora.fluent,
    "iemocap": superb_corpora.iemocap,
    "librimix-sd": superb_corpora.librimix_sd,
    "librimix-ss": superb_corpora.librimix_ss,
    "librimix-se": superb_corpora.librimix_se,
    "voicebank-demand": superb_corpora.voicebank_demand,
    "snips": superb_corpora.snips,
    "quesst14": superb_corpora.quesst14,
    "an4-asr": small_corpora.an4_asr,
    "an4-sid": small_corpora.an4_sid,
    "an4-asv": small_corpora.an4_asv,
    "timit-qbe": small_corpora.timit_qbe,
    "timit-pr": small_corpora.timit_pr,
    "ami-excerpts": small_corpora.ami_excerpts,
}
"""Corpus and task -> its reader."""


def write_manifests(name: str, folder: str | Path, output: str | Path, fold: int = 1) -> dict[str, int]:
    """train.jsonl.gz, valid.jsonl.gz and test.jsonl.gz in ``output``, and what else the task needs.

    Args:
      name: one of CORPORA. folder: the corpus's own.
      fold: of a corpus of folds, the one that is tested, from 1.

    Returns:
      Cuts of each part.

    Raises:
      ValueError: an unknown name, a folder of another layout, or a part without cuts.
    """
    if name not in CORPORA:
        raise ValueError(f"no benchmark corpus is called {name!r}: there are {', '.join(CORPORA)}")
    folder, output = Path(folder), Path(output)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give the one that holds {name}")
    parts: dict[str, list[Cut]] = {part: [] for part in PARTS}
    read = Read(fold)
    for part, cut in CORPORA[name](folder, read):
        parts[part].append(cut)
    empty = [part for part, cuts in parts.items() if not cuts]
    if empty:
        raise ValueError(f"{folder} ({name}) has no {empty[0]} part: is the corpus complete?")
    for part, cuts in parts.items():
        save_cuts(cuts, output / f"{part}.jsonl.gz")
    for file, content in read.files.items():
        write_text(output / file, content)
    counts = {part: len(cuts) for part, cuts in parts.items()}
    write_json(output / "counts.json", {"corpus": name, "fold": fold, "cuts": counts})
    return counts
