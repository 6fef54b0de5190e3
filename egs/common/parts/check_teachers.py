#!/usr/bin/env python3
"""Stage 4: the two quantisers must belong to different teachers, and their tokens to different fields."""

import argparse
import logging

from spear_lib.bin.common import run
from spear_lib.quantization import load_tokeniser

logger = logging.getLogger("check_teachers")


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--speech", required=True, help="quantiser of the speech teacher")
    parser.add_argument("--audio", required=True, help="quantiser of the audio teacher")
    arguments = vars(parser.parse_args(argv))
    teachers, fields = {}, {}
    for domain, path in arguments.items():
        quantizer = load_tokeniser(path)
        facts = quantizer.provenance["teacher"]
        teachers[domain] = facts["teacher_id"]
        fields[domain] = f"{facts['field_prefix']}_{quantizer.field_suffix}"
        logger.info("%s: teacher %s, quantiser %s", domain, teachers[domain], quantizer.id)
    if teachers["speech"] == teachers["audio"]:
        raise ValueError(
            f"the speech and the audio teacher are the same, {teachers['speech']}: its tokens would be "
            "predicted twice. Name different ones with --speech-teacher and --audio-teacher (or two other "
            "quantisers), or change the options of one in conf/quantizer"
        )
    if fields["speech"] == fields["audio"]:
        raise ValueError(
            f"the tokens of both teachers would be the field {fields['speech']} of a cut, which it has once: "
            "choose another layer, frame rate or number of codebooks for one of them"
        )


if __name__ == "__main__":
    run(main)
