"""What tokens keep of a speaker: all codebooks, single ones and k-means, numbers and pictures (paper F.4.2).

    python -m spear_lib.bin.analyse_tokens --cuts data/manifests/librispeech_cuts_dev.jsonl.gz \\
        --tokenisers '[data/quantizers/spectral, exp/kmeans/spectral]' --output_dir exp/tokens
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from spear_lib.bin.common import run
from spear_lib.config import parse, to_dict
from spear_lib.data.manifests import Manifest
from spear_lib.quantization import load_tokeniser
from spear_lib.runtime.files import write_json
from spear_lib.runtime.log import commit, first_screen
from spear_lib.runtime.world import choose_device
from spear_lib.teachers.embedding import resolve_manifests
from spear_lib.tokens.analysis import (
    choose_utterances,
    drawn,
    named,
    separability,
    two_dimensions,
    utterance_vectors,
)
from spear_lib.tokens.analysis_plot import plot_numbers, plot_speakers
from spear_lib.tokens.making import load_teacher

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """Options of analyse_tokens."""

    cuts: str | list[str]
    """Manifest(s) of cuts with speakers."""
    tokenisers: list[str]
    """Folders of quantisers and k-means, all of the same teacher."""
    output_dir: str
    """Receives analysis.json, speakers.png and numbers.png."""
    teacher_path: str = ""
    """Where the teacher's weights lie now; default: where they lay when the quantisers were trained."""
    num_speakers: int = 10
    """Random speakers; 0: all (paper F.4.2: 10)."""
    utterances_per_speaker: int = 25
    """Random utterances of each (paper F.4.2: 25)."""
    codebook: int = 0
    """The single codebook to draw, from 1 (paper F.4.2: 12); 0: the one with the median 1-NN accuracy."""
    pooling: str = "mean"
    """mean of the frames (paper F.4.2), or mean_std: mean and standard deviation."""
    batch_seconds: float = 120.0
    """Audio per teacher call, s."""
    device: str = "auto"
    """cpu, cuda or auto."""
    seed: int = 42
    """Of the choice of speakers and of the picture (reference: 42)."""


def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv, prog="python -m spear_lib.bin.analyse_tokens", description=__doc__)
    tokenisers = named({path: load_tokeniser(path) for path in options.tokenisers})
    teachers = {each.provenance["teacher"]["teacher_id"] for each in tokenisers.values()}
    if len(teachers) > 1:
        raise ValueError(
            f"the tokenisers belong to {len(teachers)} teachers, {sorted(teachers)}: give one's only"
        )
    device = choose_device(options.device)
    first = next(iter(tokenisers.values()))
    teacher = load_teacher(first, options.tokenisers[0], options.teacher_path).to(device)
    for each in tokenisers.values():
        each.to(device)
    manifests = [Manifest(path) for path in resolve_manifests(options.cuts)]
    chosen = choose_utterances(manifests, options.num_speakers, options.utterances_per_speaker, options.seed)
    first_screen(
        "what tokens keep of a speaker",
        {
            "utterances": f"{len(chosen.speakers)} of {len(set(chosen.speakers))} speakers",
            "teacher": f"{teacher.id}, {teacher.embedding_dim} channels",
            "tokenisers": ", ".join(f"{name} ({each.id})" for name, each in tokenisers.items()),
            "pooling": options.pooling,
        },
    )
    found = utterance_vectors(
        teacher, tokenisers, manifests, chosen.positions, options.pooling, options.batch_seconds
    )
    numbers = {name: separability(vectors, chosen.speakers) for name, vectors in found.vectors.items()}
    for name, values in numbers.items():
        values["relative_error"] = found.relative_error[name]
        logger.info(
            "%-24s silhouette %6.3f, nearest neighbour %5.1f %%, linear probe %5.1f %%, frame error %.3f",
            name,
            values["silhouette"],
            values["nearest_neighbour"],
            values["linear_probe"],
            values["relative_error"],
        )
    shown = drawn(numbers, list(tokenisers), options.codebook)
    panels = {name: two_dimensions(found.vectors[name], options.seed) for name in shown}
    folder = Path(options.output_dir)
    plot_speakers(panels, numbers, chosen.speakers, folder / "speakers.png")
    plot_numbers(numbers, folder / "numbers.png")
    write_json(
        folder / "analysis.json",
        {
            "numbers": numbers,
            "speakers": sorted(set(chosen.speakers)),
            "utterances": [m.ids[p] for m, rows in zip(manifests, chosen.positions) for p in rows],
            "teacher_id": teacher.id,
            "tokenisers": {name: each.id for name, each in tokenisers.items()},
            "method": "t-SNE",
            "options": to_dict(options),
            "code": commit(),
        },
    )
    logger.info("numbers and pictures are in %s", folder)


if __name__ == "__main__":
    run(main)
