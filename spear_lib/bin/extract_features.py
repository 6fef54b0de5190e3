"""Features of audio files or manifests to disk: any layer or all of them, one file per recording.

    python -m spear_lib.bin.extract_features recordings/ more.flac --encoder exp/pretrain/encoder \\
        --layers all --output_dir features
    python -m spear_lib.bin.extract_features cuts.jsonl.gz --encoder exp/pretrain/encoder --format lhotse \\
        --output_dir features

ceil(duration x rate) frames per recording; features.json says rate, channels and where frame 0 is centred.
Run the same command again to go on; with --num_splits N --split i a part is made, for batch jobs.
"""

import logging
from dataclasses import dataclass

from spear_lib.bin.common import run
from spear_lib.config import parse, positional
from spear_lib.data.problems import Problems
from spear_lib.interfaces.aligned import AlignedEncoder
from spear_lib.interfaces.extraction import FORMATS, FeatureFolder, extract, find_recordings
from spear_lib.interfaces.upstreams import load_upstream
from spear_lib.runtime.log import first_screen
from spear_lib.runtime.world import choose_device

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExtractOptions:
    """Audio, encoder, layers and where the features go."""

    audio: list[str] = positional("Audio files, folders of them, and manifests of cuts (.jsonl, .jsonl.gz).")
    """Audio files, folders of them, and manifests of cuts."""
    encoder: str
    """Folder or checkpoint that load_encoder reads, a folder of transformers (WavLM, HuBERT, wav2vec 2.0),
    log-mel, or random:PATH."""
    output_dir: str
    """Receives the features and features.json."""
    layers: str = "output"
    """output, the number of a layer (negative from the last), several "3,6,9", all, or concat."""
    format: str = "npy"
    """npy, safetensors (a tensor per layer), or lhotse (npy files and a manifest of cuts that load them)."""
    dtype: str = "float32"
    """float32 or float16."""
    field: str = "features"
    """lhotse: name of the field on the cuts; of several layers field_layer_03."""
    batch_seconds: float = 60.0
    """Padded audio of a batch, s."""
    max_bad_fraction: float = 0.0
    """Share of the recordings that may be unreadable; they are counted and left out."""
    num_splits: int = 1
    """Parts of the work,"""
    split: int = 0
    """and which one this command does, 0..num_splits-1."""
    device: str = "auto"
    """cpu, cuda or auto."""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("format", self.format, FORMATS),
            ("dtype", self.dtype, ("float32", "float16")),
        ):
            if value not in known:
                raise ValueError(f"{name} is {value!r}: use {', '.join(known)}")
        if not 0 <= self.split < self.num_splits:
            raise ValueError(f"split is {self.split} of num_splits {self.num_splits}: use 0..num_splits-1")
        if self.format == "lhotse" and not self.field.isidentifier():
            raise ValueError(f"field is {self.field!r}: use a name of letters, digits and underscores")


def main(argv: list[str] | None = None) -> None:
    options = parse(
        ExtractOptions, argv, prog="python -m spear_lib.bin.extract_features", description=__doc__
    )
    device = choose_device(options.device)
    encoder = AlignedEncoder(load_upstream(options.encoder), options.layers).to(device)
    if encoder.layers == "weighted":
        raise ValueError("layers is 'weighted': those weights are learned by a client; use all or concat")
    recordings = find_recordings(options.audio)
    mine = recordings[options.split :: options.num_splits]
    folder = FeatureFolder(options.output_dir, encoder, options.format, options.dtype)
    done = sum(folder.is_done(recording.name) for recording in mine)
    first_screen(
        "Extracting features",
        {
            "encoder": options.encoder,
            "states": ", ".join(
                f"{name} ({dim})" for name, dim in zip(encoder.state_names, encoder.state_dims)
            ),
            "frames": f"{encoder.frame_rate} per second, frame 0 centred at {encoder.first_center_ms:g} ms",
            "recordings": f"{len(mine)} of {len(recordings)}, {done} done before",
            "result": options.output_dir,
        },
    )
    problems = Problems(options.max_bad_fraction, total=len(mine))
    made = extract(mine, encoder, folder, options.batch_seconds, problems)
    problems.log()
    logger.info("%d recordings, %d of them now", problems.num_good, made)
    if options.format == "lhotse":
        logger.info("cuts with features: %s", folder.save_manifest(recordings, options.field))


if __name__ == "__main__":
    run(main)
