"""Say what is heard in audio files: the most probable classes, and when."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from spear_lib.bin.common import command_line, run
from spear_lib.config import parse, positional
from spear_lib.data.audio_files import find_audio, result_names
from spear_lib.data.audio_windows import WindowConfig
from spear_lib.runtime.files import atomic_file, write_text
from spear_lib.runtime.log import commit, first_screen
from spear_lib.runtime.progress import RealTime, format_seconds, progress
from spear_lib.runtime.world import choose_device
from spear_lib.tagging.events import EventConfig
from spear_lib.tagging.inference import load_tagger, tag_file
from spear_lib.tagging.tag_files import FORMATS, results

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TagOptions:
    """What is tagged, by which model, and where the results go."""

    audio: list[str] = positional("Audio files, folders of them, patterns, manifests of cuts, or - (stdin).")
    """Audio files, folders of them, patterns, manifests of cuts, or - (stdin)."""
    experiment_dir: str
    """Folder of finetune_tagging."""
    average: int = 1
    """Average the model over the last so many save intervals; 0: the last weights as they are."""
    top: int = 10
    """How many classes are shown."""
    output_dir: str = ""
    """Receives a file of each format for each recording, and <file>.png (time by class); empty: only the
    classes are printed."""
    format: str = "json"
    """Of json (all of what is shown, and the events), csv (the events), audacity (the events as labels:
    <file>.labels.txt); with commas."""
    device: str = "auto"
    """cpu, cuda or auto."""
    windows: WindowConfig = field(default_factory=lambda: WindowConfig(10.0, 2.0, 100.0))
    """How long recordings are cut; 10 s is the length of AudioSet's clips."""
    events: EventConfig = field(default_factory=EventConfig)
    """How frames become events."""

    def __post_init__(self) -> None:
        if self.top < 1:
            raise ValueError(f"top is {self.top}: at least one class must be shown")
        if not self.formats or set(self.formats) - set(FORMATS):
            raise ValueError(f"format is {self.format!r}: use {', '.join(FORMATS)}, with commas")

    @property
    def formats(self) -> list[str]:
        """The names in ``format``."""
        return [name.strip() for name in self.format.split(",") if name.strip()]


def main(argv: list[str] | None = None) -> None:
    options = parse(
        TagOptions,
        argv,
        prog="python -m spear_lib.bin.tag",
        description="Say what is heard in audio files: any rate, length and channels (their mean).",
    )
    files = find_audio(options.audio)
    names = result_names(files, options.audio) if options.output_dir else []
    tagger = load_tagger(options.experiment_dir, options.average, choose_device(options.device))
    facts = {
        **tagger.provenance,
        "code": commit(),
        "command": command_line("spear_lib.bin.tag", argv),
    }
    first_screen(
        "Tagging",
        {
            "model": options.experiment_dir,
            "weights": f"{tagger.provenance['weights']} (hash {tagger.provenance['weights_hash']})",
            "classes": len(tagger.classes),
            "files": len(files),
            "results": options.output_dir or "standard output",
        },
    )
    bad, clock = [], RealTime()
    shown = progress(files, description="tagging", unit="files", note=lambda: str(clock))
    for number, path in enumerate(shown):
        file = tag_file(tagger, path, options.windows)
        if file.error is not None:
            logger.warning("skipped: %s", file.error)
            bad.append(str(path))
            continue
        clock.audio_seconds += file.seconds
        if file.silent:
            logger.warning("%s is silent: every sample is zero", path)
        content = results(tagger, file, options.top, options.events)
        print(f"{path} ({format_seconds(file.seconds)})")
        for each in content["classes"]:
            print(f"  {each['probability']:.3f}  {each['name']}", flush=True)
        if options.output_dir:
            from spear_lib.tagging.picture import time_by_class

            place = Path(options.output_dir) / names[number]
            for name in options.formats:
                ending, form = FORMATS[name]
                write_text(f"{place}{ending}", form(content, facts))
            with atomic_file(f"{place}.png") as picture:
                picture.write(time_by_class(file.tags, list(tagger.classes.values()), options.top, path.name))
    good, length = len(files) - len(bad), format_seconds(clock.audio_seconds)
    logger.info("%d of %d files, %s of audio, %s", good, len(files), length, clock)
    if bad:
        named = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        raise RuntimeError(f"{len(bad)} of {len(files)} files could not be tagged (see above): {named}")


if __name__ == "__main__":
    run(main)
