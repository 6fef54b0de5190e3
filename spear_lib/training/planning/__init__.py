"""What a training run will take, before it is started: memory, kernels, hours (ours)."""
