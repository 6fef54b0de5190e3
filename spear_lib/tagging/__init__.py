"""Audio tagging: data, model, task, options, evaluation, and tagging of recordings."""
