"""What every process needs, whatever it does: files, locks, devices, ranks, randomness, progress, logs."""
