"""File systems without locks: said as it is, and reading a manifest needs none."""

import errno
import fcntl
import tempfile

import pytest
from toy_task import BATCH_SECONDS, ToyData, ToyTask, toy_config

from spear_lib.runtime.locks import NoLocksError, exclusive, try_lock
from spear_lib.training.loop import train


@pytest.fixture(params=[errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def no_locks(request, monkeypatch):
    """Lustre without -o flock, some FUSE and NFS."""

    def refuse(*_):
        raise OSError(request.param, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_a_run_says_that_there_are_no_locks(no_locks, tmp_path):
    with pytest.raises(RuntimeError, match="this file system has no locks.*use a folder on another one"):
        train(ToyTask(), ToyData(), {}, toy_config(), tmp_path, batch_seconds=BATCH_SECONDS)
    with pytest.raises(NoLocksError), exclusive(tmp_path / "lock", "the store"):
        pass


def test_a_full_disk_names_the_lock(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(OSError, match=r"cannot write .*lock \(No space left on device\): free some"):  # noqa: SIM117
        with exclusive(tmp_path / "lock", "the store"):
            pass


def test_a_lock_that_is_held_is_another_thing(tmp_path):
    with (tmp_path / "lock").open("w") as one, (tmp_path / "lock").open("w") as two:
        assert try_lock(one, "lock") and not try_lock(two, "lock")


def test_large_manifests_are_read_without_locks(no_locks, tmp_path, monkeypatch):
    from lhotse import CutSet
    from lhotse.testing.dummies import DummyManifest

    from spear_lib.data import manifest_index
    from spear_lib.data.manifests import Manifest, save_cuts

    monkeypatch.setattr(manifest_index, "MEMORY_LIMIT", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    cuts = list(DummyManifest(CutSet, begin_id=0, end_id=3))
    for cut in cuts:
        cut.features, cut.custom = None, None
    save_cuts(cuts, tmp_path / "cuts.jsonl.gz")
    manifest = Manifest(tmp_path / "cuts.jsonl.gz")
    assert manifest.ids == [cut.id for cut in cuts] and manifest[2].id == cuts[2].id
    made = list((tmp_path / "temporary").rglob("identity.json"))
    assert len(made) == 1  # for this process alone
