"""What stage 0 of every recipe does: the corpus in its place, linked or synthesised (ours)."""

import logging
import os
import shlex
import subprocess
import sys
from pathlib import Path

logger = logging.getLogger(__name__)

SYNTHESIS_TOOL = Path(__file__).resolve().parents[2] / "tools" / "synthesize_corpus.py"


def synthesise(kind: str, folder: Path, options: list[str]) -> None:
    """Runs tools/synthesize_corpus.py, which does nothing where its work is done.

    Args:
      kind: speech, noise or events.

    Raises:
      RuntimeError: it failed; its own message stands above.
    """
    command = [sys.executable, str(SYNTHESIS_TOOL), kind, "--output", str(folder), *options]
    logger.info("%s", shlex.join(command[1:]))
    # The tool is no stage of its own: its cost is counted with this process, which waits for it.
    environment = {name: value for name, value in os.environ.items() if name != "SPEAR_STAGE_METRICS"}
    status = subprocess.run(command, env=environment, check=False).returncode
    if status != 0:
        raise RuntimeError(f"synthesising {kind} failed with status {status}, see the message above")


def link(folder: Path, target: Path) -> None:
    """Makes the symbolic link ``folder`` -> ``target``; ValueError if something else is there."""
    if folder.is_symlink() or folder.exists():
        if folder.resolve() == target.resolve():
            return
        raise ValueError(
            f"{folder} is there already and is {folder.resolve()}, not {target.resolve()}: delete the data "
            "folder to prepare another corpus, or choose another one (--data-dir)"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Links inside data/ are relative, so that the folder can be moved; a real corpus stays where it is.
    inside = target.resolve().is_relative_to(folder.parent.resolve())
    folder.symlink_to(os.path.relpath(target, folder.parent) if inside else target.resolve())
