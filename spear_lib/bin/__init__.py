"""Commands: ``python -m spear_lib.bin.<verb>``: parse the options, call the library, verify, report."""
