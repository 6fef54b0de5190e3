"""One thread per test process and per process that a test starts: the tensors are tiny, and the suite then
does not slow down on machines whose cores are busy with something else."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch reads it

import torch

torch.set_num_threads(1)
