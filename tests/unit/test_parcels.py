"""Arrays through shared memory: the same values, memory that lives as long as they do, nothing left open."""

import multiprocessing
import os
import pickle
from multiprocessing.connection import Connection

import numpy as np
import pytest

from spear_lib.data import parcels
from spear_lib.data.parcels import Parcel, Sender, has_shared_memory, unpack

VALUE = {
    "waveforms": np.arange(30000, dtype=np.float32).reshape(3, 10000),
    "tokens": {"a": np.arange(7, dtype=np.uint8), "empty": np.zeros((2, 0))},
    "strided": np.arange(20)[::3],
    "text": ["one", "two"],
}


def assert_same(left, right):
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for name in left:
            assert_same(left[name], right[name])
    elif isinstance(left, np.ndarray):
        assert left.dtype == right.dtype and left.shape == right.shape and (left == right).all()
    else:
        assert left == right


def work(pipe: Connection, count: int, keep: int) -> None:
    sender = Sender(keep)
    for number in range(count):
        pipe.send(sender.pack({**VALUE, "number": np.full(1000, number)}))
    pipe.recv()  # lives on until the parent has mapped what it kept


@pytest.fixture
def needs_shared_memory():
    assert has_shared_memory(), (
        "these tests are for Linux, which the product's continuous integration runs on"
    )


def test_from_process_to_process(needs_shared_memory):
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=work, args=(theirs, 3, 3), daemon=True)
    process.start()
    messages = [ours.recv() for _ in range(3)]
    assert all(isinstance(message, Parcel) for message in messages)
    assert len(pickle.dumps(messages[0])) < 3000  # the arrays are not in the message
    opened = len(os.listdir("/proc/self/fd"))
    values = [unpack(message) for message in messages]
    assert len(os.listdir("/proc/self/fd")) == opened
    ours.send("done")
    process.join()
    for number, value in enumerate(values):  # the worker is gone, the arrays are not
        assert (value.pop("number") == number).all()
        assert_same(value, VALUE)
        value["waveforms"][0, 0] = 5.0  # and they may be written to
    assert values[0]["waveforms"][0, 0] == 5.0


def test_only_the_newest_parcels_are_kept(needs_shared_memory):
    opened = len(os.listdir("/proc/self/fd"))
    sender = Sender(keep=2)
    messages = [sender.pack(VALUE) for _ in range(5)]
    assert len(os.listdir("/proc/self/fd")) == opened + 2
    assert_same(unpack(messages[-1]), VALUE)
    assert messages[0].size >= VALUE["waveforms"].nbytes
    assert all(begin % 64 == 0 for begin, _ in messages[0].places)


def test_without_shared_memory_values_travel_as_they_are(monkeypatch):
    monkeypatch.setattr(parcels, "has_shared_memory", lambda: False)
    packed = Sender(keep=2).pack(VALUE)
    assert packed is VALUE and unpack(packed) is VALUE
