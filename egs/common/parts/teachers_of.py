#!/usr/bin/env python3
"""Stages 5 and 6: the teachers, by their domains, whose tokens a strategy wants on cuts of a domain."""

import argparse

from spear_lib.bin.common import run
from spear_lib.pretraining import ObjectiveConfig

TEACHERS = ["speech", "audio"]


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--strategy", required=True, help="asymmetrical, joint or disjoint")
    parser.add_argument("--domain", required=True, choices=TEACHERS, help="domain of the cuts")
    arguments = parser.parse_args(argv)
    print(*ObjectiveConfig(strategy=arguments.strategy).fields_by_domain(TEACHERS)[arguments.domain])


if __name__ == "__main__":
    run(main)
