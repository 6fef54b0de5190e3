"""From manifests to batches: indices, audio, sampling, loading, mixing; packed arrays on cuts."""
