"""Frozen features measured: probes of a finished encoder, and of one that is being trained."""
