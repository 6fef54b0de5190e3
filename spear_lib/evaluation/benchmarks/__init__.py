"""Suites of benchmarks: which tasks on which data, and data that is synthesised for them."""
