"""Export an encoder, a CTC recogniser or a tagger as a folder that transformers loads; verified."""

import logging

from spear_lib.bin.common import command_line, run
from spear_lib.config import parse
from spear_lib.runtime.log import first_screen
from spear_lib.sharing.collecting import ExportOptions, collect
from spear_lib.sharing.huggingface import export_huggingface

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> None:
    options = parse(
        ExportOptions, argv, prog="python -m spear_lib.bin.export_huggingface", description=__doc__
    )
    if bool(options.experiment_dir) == bool(options.encoder):
        raise ValueError("give either encoder (an encoder alone) or experiment_dir (a fine-tuned model)")
    first_screen(
        "Exporting for transformers",
        {"of": options.experiment_dir or options.encoder, "writes to": options.output_dir},
    )
    exported = collect(options, command_line("spear_lib.bin.export_huggingface", argv))
    difference = export_huggingface(exported, options.output_dir)
    logger.info("%s: differs from this library by at most %.2g", options.output_dir, difference)


if __name__ == "__main__":
    run(main)
