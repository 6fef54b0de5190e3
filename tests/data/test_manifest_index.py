"""The index of large manifests: kept beside them, made anew when they change, shared, and small in memory."""

import errno
import fcntl
import gzip
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading

import pytest
from test_manifests import make_cuts

from spear_lib.data import manifest_index
from spear_lib.data.manifest_index import open_index
from spear_lib.data.manifests import Manifest, save_cuts
from spear_lib.runtime.locks import exclusive


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch):
    monkeypatch.setattr(manifest_index, "MEMORY_LIMIT", 0)
    monkeypatch.setattr(manifest_index, "_ROWS", 3)


@pytest.mark.parametrize("name", ["cuts.jsonl", "cuts.jsonl.gz"])
def test_index_on_disk_gives_the_same_cuts(tmp_path, name):
    cuts = make_cuts(8)
    save_cuts(cuts, tmp_path / name)
    manifest = Manifest(tmp_path / name)
    assert (tmp_path / ".index" / name / "durations").stat().st_size == 8 * 8
    assert list(manifest) == cuts and manifest.ids == [cut.id for cut in cuts]
    assert manifest.ids[2:5] == [cut.id for cut in cuts[2:5]] and manifest.ids[-1] == "cut-007"
    assert [manifest.position(cut.id) for cut in cuts] == list(range(8)) and "other" not in manifest
    assert pickle.loads(pickle.dumps(manifest))[6] == cuts[6]


def test_blank_lines_do_not_shift_a_plain_file(tmp_path):
    save_cuts(make_cuts(3), tmp_path / "cuts.jsonl")
    lines = (tmp_path / "cuts.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "cuts.jsonl").write_bytes(b"\n" + lines[0] + b"  \n\n" + lines[1] + lines[2])
    assert list(Manifest(tmp_path / "cuts.jsonl")) == make_cuts(3)


def test_index_is_made_once_and_anew_for_another_file(tmp_path):
    path = tmp_path / "cuts.jsonl.gz"
    save_cuts(make_cuts(4), path)
    Manifest(path)
    made = (tmp_path / ".index" / path.name / "identity.json").stat().st_mtime_ns
    old = Manifest(path)
    assert (tmp_path / ".index" / path.name / "identity.json").stat().st_mtime_ns == made
    save_cuts(make_cuts(6, "new"), path)
    assert Manifest(path).ids == [cut.id for cut in make_cuts(6, "new")]
    assert old[3].id == "cut-003"  # whoever has it open keeps what was there
    assert sorted(os.listdir(tmp_path / ".index")) == [path.name]


def test_an_index_that_was_not_finished_is_made_again(tmp_path):
    path = tmp_path / "cuts.jsonl.gz"
    save_cuts(make_cuts(4), path)
    half = tmp_path / ".index" / (path.name + ".tmp")
    half.mkdir(parents=True)
    (half / "durations").write_bytes(b"half")
    damaged = tmp_path / ".index" / path.name
    damaged.mkdir()
    (damaged / "identity.json").write_text("{")
    assert len(Manifest(path)) == 4 and not half.exists()


def test_processes_that_start_together_make_one_index(tmp_path):
    path = tmp_path / "cuts.jsonl.gz"
    save_cuts(make_cuts(5), path)
    results = []
    lock = tmp_path / ".index" / (path.name + ".lock")
    with exclusive(lock, "test"):
        thread = threading.Thread(target=lambda: results.append(len(Manifest(path))))
        thread.start()
        thread.join(0.2)
        assert thread.is_alive() and not results  # it waits
    thread.join(20)
    assert results == [5] and not lock.exists()


def test_folder_that_cannot_be_written_uses_the_temporary_one(tmp_path, monkeypatch):
    path = tmp_path / "corpus" / "cuts.jsonl.gz"
    save_cuts(make_cuts(3), path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(manifest_index.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    assert len(Manifest(path)) == 3
    assert os.listdir(path.parent) == [path.name] and list((tmp_path / "temporary").rglob("durations"))


def test_duplicates_within_and_across_files_are_named(tmp_path):
    save_cuts([*make_cuts(3), *make_cuts(2)[1:]], tmp_path / "a.jsonl.gz")
    with pytest.raises(ValueError, match="cut id 'cut-001' more than once"):
        Manifest(tmp_path / "a.jsonl.gz")
    save_cuts(make_cuts(2), tmp_path / "b.jsonl.gz")
    save_cuts([*make_cuts(2, "x"), *make_cuts(2)[1:]], tmp_path / "c.jsonl.gz")
    with pytest.raises(ValueError, match=r"c\.jsonl\.gz holds the cut id 'cut-001' more than once"):
        Manifest([tmp_path / "b.jsonl.gz", tmp_path / "c.jsonl.gz"])


def test_audio_keys_stand_for_the_audio_not_for_the_name(tmp_path):
    one, other = make_cuts(2)
    renamed, later = one.with_id("renamed"), one.truncate(offset=0.5).with_id("later")
    save_cuts([one, renamed, later, other], tmp_path / "cuts.jsonl")
    manifest = Manifest(tmp_path / "cuts.jsonl")
    keys = manifest.audio_keys.tolist()
    assert keys[0] == keys[1] and len(set(keys)) == 3
    recordings = manifest.recording_keys.tolist()
    assert recordings[0] == recordings[2] != recordings[3]


def test_lines_are_not_held(tmp_path):
    """The arrays in memory or mapped: about 80 bytes per cut, whatever the length of its line."""
    path = tmp_path / "cuts.jsonl.gz"
    line = {
        "id": "",
        "start": 0.0,
        "duration": 1.0,
        "channel": 0,
        "type": "MonoCut",
        "custom": {"x": "y" * 2000},
    }
    with gzip.open(path, "wt") as file:
        for number in range(2000):
            file.write(json.dumps({**line, "id": f"c{number}"}) + "\n")
    index = open_index(path)
    assert len(index) == 2000 and len(pickle.dumps(index)) < 1000
    folder = tmp_path / ".index" / path.name
    arrays = sum(file.stat().st_size for file in folder.iterdir() if file.name != "lines")
    assert arrays < 100 * 2000 and (folder / "lines").stat().st_size > 2000 * 2000


def test_full_disk_names_the_index(tmp_path, monkeypatch):
    save_cuts(make_cuts(3), tmp_path / "cuts.jsonl.gz")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(OSError, match=r"cannot write .*\.index.*free some space"):
        Manifest(tmp_path / "cuts.jsonl.gz")
    assert os.listdir(tmp_path / ".index") == []


def test_lock_names_its_holder_and_survives_its_death(tmp_path, caplog):
    path = tmp_path / "lock"
    with (
        exclusive(path, "the thing"),
        pytest.raises(
            RuntimeError, match=rf"the thing is being written by process {os.getpid()} on .*two jobs"
        ),
        exclusive(path, "the thing"),
    ):
        raise AssertionError("both hold it")
    assert not path.exists()
    path.write_text(
        '{"host": "node7", "pid": 1, "since": 0}'
    )  # left by a killed holder: its lock died with it
    with caplog.at_level("INFO"), exclusive(path, "the thing"):
        assert "taken over from process 1 on node7" in caplog.text


def test_a_killed_holder_does_not_block(tmp_path, caplog):
    script = """
import os, signal, sys
from spear_lib.runtime.locks import exclusive
with exclusive(sys.argv[1], "the thing"):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    path = tmp_path / "lock"
    done = subprocess.run([sys.executable, "-c", script, str(path)])
    assert done.returncode == -signal.SIGKILL
    holder = path.read_text()
    with caplog.at_level("INFO"), exclusive(path, "the thing"):
        assert f"taken over from process {json.loads(holder)['pid']}" in caplog.text
    assert not path.exists()


def test_a_file_system_without_locks_is_explained(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(RuntimeError, match="cannot lock .*Function not implemented.*has no locks"),
        exclusive(tmp_path / "lock", "the thing"),
    ):
        raise AssertionError("held without a lock")


def count_up(folder, times: int) -> None:
    for _ in range(times):
        with exclusive(folder / "lock", "the counter", wait=True):
            number = int((folder / "counter").read_text())
            (folder / "counter").write_text(str(number + 1))


def test_many_waiting_processes_take_turns(tmp_path):
    (tmp_path / "counter").write_text("0")
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=count_up, args=(tmp_path, 50)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert (tmp_path / "counter").read_text() == "200" and not (tmp_path / "lock").exists()
