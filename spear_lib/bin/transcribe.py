"""Write down what is said in audio files: any rate, any number of channels, any length."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from spear_lib.asr.searcher import SearchConfig
from spear_lib.asr.transcript_files import FORMATS
from spear_lib.asr.transcription import Recogniser, transcribe
from spear_lib.bin.common import command_line, run
from spear_lib.config import parse, positional
from spear_lib.data.audio_files import find_audio, result_names
from spear_lib.data.audio_windows import WindowConfig
from spear_lib.runtime.files import write_text
from spear_lib.runtime.log import commit, first_screen
from spear_lib.runtime.progress import RealTime, format_seconds, progress
from spear_lib.runtime.world import choose_device
from spear_lib.sharing.recogniser import open_searcher

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TranscribeOptions:
    """What is transcribed, by which model, and where the text goes."""

    audio: list[str] = positional("Audio files, folders of them, patterns, manifests of cuts, or - (stdin).")
    """Audio files, folders of them, patterns, manifests of cuts, or - (stdin)."""
    experiment_dir: str
    """Folder of finetune_asr, or of export_onnx."""
    units: str = ""
    """The text units of its training: bpe.model, its folder, or "characters"; empty: those that the
    experiment's config.yaml names."""
    average: int = 1
    """Average the model over the last so many save intervals; 0: the last weights as they are."""
    output_dir: str = ""
    """Receives a file of each format for each recording; empty: the text goes to standard output only."""
    format: str = "txt,json"
    """Of txt, json (words with times and confidences), srt, vtt (subtitles), ctm (sclite); with commas. One
    without output_dir goes to standard output."""
    device: str = "auto"
    """cpu, cuda or auto."""
    windows: WindowConfig = field(default_factory=WindowConfig)
    """How long recordings are cut."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """Search; the same values as in decode give the same text."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.formats if name not in FORMATS]
        if unknown or not self.formats:
            raise ValueError(
                f"format is {self.format!r}: use {', '.join(FORMATS)}, with commas between several"
            )

    @property
    def formats(self) -> list[str]:
        """The names in ``format``."""
        return [name.strip() for name in self.format.split(",") if name.strip()]


def main(argv: list[str] | None = None) -> None:
    options = parse(
        TranscribeOptions,
        argv,
        prog="python -m spear_lib.bin.transcribe",
        description="Write down what is said in audio files: any rate, length and channels (their mean).",
    )
    files = find_audio(options.audio)
    names = result_names(files, options.audio) if options.output_dir else []
    printed = options.formats[0] if not options.output_dir and len(options.formats) == 1 else "txt"
    if printed in ("srt", "vtt") and len(files) > 1:
        raise ValueError(f"{len(files)} recordings as {printed} on standard output: give output_dir")
    searcher, provenance, device = open_searcher(
        options.experiment_dir, options.units, options.average, options.search, choose_device(options.device)
    )
    windows = options.windows
    first_screen(
        "Transcribing",
        {
            "model": options.experiment_dir,
            "weights": f"{provenance.get('weights')} (hash {provenance.get('weights_hash')})",
            "search": f"{options.search} ({searcher.head})",
            "files": len(files),
            "windows": f"{windows.window_seconds:g} s, overlapping by {windows.overlap_seconds:g} s",
            "results": options.output_dir or "standard output",
        },
    )
    facts = {
        **provenance,
        "code": commit(),
        "command": command_line("spear_lib.bin.transcribe", argv),
    }
    transcripts = transcribe(Recogniser(searcher, device), files, windows)
    bad, clock = [], RealTime()
    shown = progress(transcripts, len(files), "transcribing", "files", lambda: str(clock))
    for number, transcript in enumerate(shown):
        clock.audio_seconds += transcript.seconds
        if transcript.error is not None:
            logger.warning("skipped: %s", transcript.error)
            bad.append(str(transcript.path))
            continue
        if transcript.silent:
            logger.warning("%s is silent: every sample is zero", transcript.path)
        if printed == "txt" and len(files) > 1:
            print(f"{transcript.path}\t{transcript.text}", flush=True)
        else:
            print(FORMATS[printed](transcript, facts), end="", flush=True)
        for name in options.formats if options.output_dir else []:
            place = Path(options.output_dir) / f"{names[number]}.{name}"
            write_text(place, FORMATS[name](transcript, facts))
    good, length = len(files) - len(bad), format_seconds(clock.audio_seconds)
    logger.info("%d of %d files, %s of audio, %s", good, len(files), length, clock)
    if bad:
        named = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        raise RuntimeError(f"{len(bad)} of {len(files)} files could not be transcribed (see above): {named}")


if __name__ == "__main__":
    run(main)
