#!/usr/bin/env python3
"""Stage 2: cuts of at most 10 s of MUSAN's noise, music and speech, to be mixed into the training audio."""

from spear_lib.bin.common import run
from spear_lib.corpora.musan import main

if __name__ == "__main__":
    run(main)
