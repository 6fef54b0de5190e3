"""Manifests of cuts: bytes, access by position, and what is said about files that cannot be used."""

import errno
import gzip
import os
import pickle
import resource
import time

import numpy as np
import pytest
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource

from spear_lib.data.manifests import Manifest, save_cuts
from spear_lib.runtime.files import atomic_file


def make_cuts(count: int, prefix: str = "cut") -> list[MonoCut]:
    cuts = []
    for number in range(count):
        name, seconds = f"{prefix}-{number:03d}", 1.0 + number / 8
        source = AudioSource(type="file", channels=[0], source=f"audio/{name}.flac")
        num_samples = round(seconds * 16000)
        recording = Recording(name, [source], 16000, num_samples, seconds)
        text = SupervisionSegment(name, name, 0.0, seconds, text=f"WÖRTER {number}", speaker="7")
        cuts.append(
            MonoCut(
                name, 0.0, seconds, 0, [text], recording=recording, custom={"kind": "speech", "rank": number}
            )
        )
    return cuts


@pytest.mark.parametrize("name", ["cuts.jsonl", "cuts.jsonl.gz"])
def test_round_trip(tmp_path, name):
    cuts = make_cuts(5)
    assert save_cuts(cuts, tmp_path / "deep" / name) == 5
    manifest = Manifest(tmp_path / "deep" / name)
    assert len(manifest) == 5 and manifest.ids == [cut.id for cut in cuts]
    np.testing.assert_array_equal(manifest.durations, [cut.duration for cut in cuts])
    assert [manifest[position].to_dict() for position in range(5)] == [cut.to_dict() for cut in cuts]
    assert manifest[-1].id == cuts[-1].id
    assert [cut.id for cut in manifest] == manifest.ids
    assert manifest.position("cut-003") == 3 and "cut-003" in manifest and "other" not in manifest
    assert manifest.hours == pytest.approx(sum(cut.duration for cut in cuts) / 3600)


def test_lhotse_reads_what_is_written(tmp_path):
    cuts = make_cuts(3)
    save_cuts(cuts, tmp_path / "cuts.jsonl.gz")
    assert list(CutSet.from_file(tmp_path / "cuts.jsonl.gz")) == cuts


def test_what_lhotse_writes_is_read(tmp_path):
    cuts = make_cuts(3)
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl.gz")
    assert list(Manifest(tmp_path / "cuts.jsonl.gz")) == cuts


def test_same_cuts_same_bytes_whatever_the_time_and_the_name(tmp_path, monkeypatch):
    save_cuts(make_cuts(20), tmp_path / "first.jsonl.gz")
    monkeypatch.setattr(time, "time", lambda: 2_000_000_000.0)
    save_cuts(make_cuts(20), tmp_path / "second.jsonl.gz")
    assert (tmp_path / "first.jsonl.gz").read_bytes() == (tmp_path / "second.jsonl.gz").read_bytes()


def test_several_files_follow_each_other(tmp_path):
    paths = [tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl"]
    save_cuts(make_cuts(2, "a"), paths[0])
    save_cuts(make_cuts(3, "b"), paths[1])
    manifest = Manifest(paths)
    assert manifest.ids == ["a-000", "a-001", "b-000", "b-001", "b-002"]
    assert manifest[3].id == "b-001"


def test_pickled_for_a_spawned_worker(tmp_path):
    save_cuts(make_cuts(3), tmp_path / "cuts.jsonl")
    copy = pickle.loads(pickle.dumps(Manifest(tmp_path / "cuts.jsonl")))
    assert copy[2].id == "cut-002"


def test_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.jsonl\.gz does not exist.*stage 1"):
        Manifest(tmp_path / "nothing.jsonl.gz")


def test_no_path():
    with pytest.raises(ValueError, match="no manifest is given"):
        Manifest([])


def test_empty_file(tmp_path):
    save_cuts([], tmp_path / "cuts.jsonl.gz")
    with pytest.raises(ValueError, match="holds no cuts"):
        Manifest(tmp_path / "cuts.jsonl.gz")
    assert len(Manifest(tmp_path / "cuts.jsonl.gz", allow_empty=True)) == 0


def test_truncated_gz(tmp_path):
    path = tmp_path / "cuts.jsonl.gz"
    save_cuts(make_cuts(200), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cuts\.jsonl\.gz is truncated or not gzip"):
        Manifest(path)


def test_plain_text_named_gz(tmp_path):
    path = tmp_path / "cuts.jsonl.gz"
    path.write_text("not gzip\n")
    with pytest.raises(ValueError, match="truncated or not gzip"):
        Manifest(path)


def test_damaged_line_is_numbered(tmp_path):
    path = tmp_path / "cuts.jsonl"
    save_cuts(make_cuts(2), path)
    path.write_bytes(path.read_bytes()[:-30] + b"\n")
    with pytest.raises(ValueError, match=r"cuts\.jsonl, line 2, is not JSON"):
        Manifest(path)


def test_manifest_of_recordings_is_refused(tmp_path):
    path = tmp_path / "recordings.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write('{"id": "a", "sources": [], "sampling_rate": 16000, "num_samples": 1, "duration": 1}\n')
    with pytest.raises(ValueError, match=r"line 1, is not a cut \(it has the fields id, sources.*recordings"):
        Manifest(path)


def test_duplicate_id_is_named(tmp_path):
    save_cuts([*make_cuts(3), *make_cuts(2)[1:]], tmp_path / "cuts.jsonl.gz")
    with pytest.raises(ValueError, match="cut id 'cut-001' more than once"):
        Manifest(tmp_path / "cuts.jsonl.gz")


def test_cut_of_another_corpus(tmp_path):
    save_cuts(make_cuts(2), tmp_path / "cuts.jsonl.gz")
    manifest = Manifest(tmp_path / "cuts.jsonl.gz")
    with pytest.raises(ValueError, match="no cut 'other-1': is it a manifest of another corpus"):
        manifest.position("other-1")
    with pytest.raises(IndexError, match="no cut 2: it holds 2"):
        manifest[2]


def test_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "cuts.jsonl"
    save_cuts(make_cuts(1), path)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match=r"cannot write .*cuts\.jsonl.*free some space") as error:
            save_cuts(make_cuts(1000), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.errno == errno.EFBIG
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["cuts.jsonl"]


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write .*cuts.jsonl"):
        save_cuts(make_cuts(1), tmp_path / "file" / "cuts.jsonl")


def test_error_of_the_writer_goes_through_and_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="the caller's own"), atomic_file(tmp_path / "x") as file:
        file.write(b"half")
        raise FileNotFoundError("the caller's own")
    assert os.listdir(tmp_path) == []
