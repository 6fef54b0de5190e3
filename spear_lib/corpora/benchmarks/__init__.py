"""Readers of the corpora that benchmarks are measured on, each in its published layout."""
