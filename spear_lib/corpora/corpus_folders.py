"""What stage 0 of every recipe does: the corpus in its place, linked or synthesised (ours)."""

import argparse
import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from spear_lib.corpora.musan import RIR_FOLDER, find_noises

logger = logging.getLogger(__name__)

SYNTHESIS_TOOL = Path(__file__).resolve().parents[2] / "tools" / "synthesize_corpus.py"


def synthesise(kind: str, folder: Path, options: list[str]) -> None:
    """Runs tools/synthesize_corpus.py, which does nothing where its work is done.

    Args:
      kind: speech, noise or events.

    Raises:
      RuntimeError: it failed; its own message stands above. Or it is not there: it comes with the repository.
    """
    if not SYNTHESIS_TOOL.is_file():
        raise RuntimeError(
            f"--mini true needs {SYNTHESIS_TOOL.name} of the repository, and the installed package has none: "
            "run the recipe in a checkout, or give --corpus-dir"
        )
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


def stage_0_parser(description: str, corpus_help: str, sizes: Iterable[str]) -> argparse.ArgumentParser:
    """The command line of a recipe's stage 0 that can synthesise its corpus.

    Args:
      corpus_help: what --corpus-dir names.
      sizes: names of the sizes of the synthesised corpus, "default" among them.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--mini", choices=("true", "false"), default="false", help="synthesise a small corpus"
    )
    parser.add_argument("--corpus-dir", default="", help=corpus_help)
    parser.add_argument(
        "--noise-dir",
        default="",
        help="real noises: MUSAN (music, noise, speech), or the folders noise and rir",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    parser.add_argument("--seed", type=int, default=0, help="of the synthesis")
    parser.add_argument("--num-jobs", type=int, default=2, help="processes of the synthesis")
    parser.add_argument("--size", choices=list(sizes), default="default", help="of the synthesised corpus")
    return parser


def prepare_corpus(
    arguments: argparse.Namespace,
    name: str,
    kind: str,
    synthetic: str,
    options: list[str],
    noise_options: list[str],
    find: Callable[[str], Path],
) -> None:
    """Stage 0: OUTPUT/NAME and OUTPUT/musan, synthesised (--mini true) or linked to real ones.

    Args:
      arguments: what ``stage_0_parser`` parsed.
      name: the corpus's own name of its folder, for example LibriSpeech.
      kind: what tools/synthesize_corpus.py calls it: speech or events.
      synthetic: folder in OUTPUT for what it makes.
      options, noise_options: of the synthesis, for the corpus and for the noise.
      find: --corpus-dir -> the folder to link; ValueError with the expected layout if it is none.
    """
    output, mini = arguments.output, arguments.mini == "true"
    if mini and arguments.corpus_dir:
        raise ValueError(
            "--mini true synthesises the corpus, --corpus-dir names a real one: give one of them"
        )
    common = ["--seed", str(arguments.seed), "--num-processes", str(arguments.num_jobs)]
    noises = find_noises(arguments.noise_dir) if arguments.noise_dir else None
    if mini and kind == "speech" and noises and (noises / RIR_FOLDER).is_dir():
        options = [*options, "--rooms", str((noises / RIR_FOLDER).resolve())]
    if mini:
        synthesise(kind, output / synthetic, [*common, *options])
        link(output / name, output / synthetic / name)
    else:
        link(output / name, find(arguments.corpus_dir))
    if noises:
        link(output / "musan", noises)
    elif mini:
        synthesise("noise", output / "synthetic_noise", [*common, *noise_options])
        link(output / "musan", output / "synthetic_noise" / "musan")
    else:
        logger.info("no --noise-dir: the recipe will run without noise augmentation")
    logger.info("corpus: %s is %s", output / name, (output / name).resolve())
