"""What an encoder sees of a waveform: log-mel features and their backends, masking, SpecAugment."""
