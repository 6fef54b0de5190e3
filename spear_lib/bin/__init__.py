"""Commands: ``python -m spear_lib.bin.<verb>``. Each parses its options, calls the library, verifies, reports."""
