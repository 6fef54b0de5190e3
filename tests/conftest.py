"""One thread per test process and per process that a test starts: the tensors are tiny, and the suite then
does not slow down on machines whose cores are busy with something else."""

import logging
import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch reads it

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def commands_log_only_while_their_test_runs():
    """A command that a test calls logs to that test's standard error, which is closed after it: what later
    tests log would bury their own failures under complaints of the closed file."""
    yield
    root = logging.getLogger()
    for handler in [each for each in root.handlers if type(each) is logging.StreamHandler]:
        root.removeHandler(handler)
