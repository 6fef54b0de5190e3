"""Shar archives of tokens: what is read back is what load_tokens gave, truncated cuts included."""

import warnings

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, Recording
from lhotse.shar import SharWriter
from test_token_stages import call
from token_fixtures import FACTS, codes_of

from spear_lib.bin import export_shar as export_command
from spear_lib.data.manifests import save_cuts
from spear_lib.tokens.fields import attach_tokens, load_tokens, quantizer_id, write_store
from spear_lib.tokens.shar import export_shar

FIELD = FACTS.field


@pytest.fixture
def cuts(tmp_path):
    """A whole cut, one from the middle of a recording, and awkward windows of both; 20 ms frames."""
    whole = []
    for number, seconds in enumerate([2.0, 1.513]):
        samples = np.random.default_rng(number).normal(0, 0.1, round(seconds * 16000))
        soundfile.write(tmp_path / f"r{number}.wav", samples, 16000)
        whole.append(Recording.from_file(tmp_path / f"r{number}.wav").to_cut())
    whole.append(whole[0].truncate(offset=0.5, duration=1.2).with_id("middle"))
    codes = [codes_of(round(cut.duration * 50), number) for number, cut in enumerate(whole)]
    write_store(tmp_path / "store", FACTS, whole, codes)
    attached = list(attach_tokens(whole, tmp_path / "store"))
    windows = [
        attached[0].truncate(offset=0.993, duration=0.505).with_id("window-a"),
        attached[1].truncate(offset=1.0).with_id("window-b"),
        attached[2].truncate(offset=0.3, duration=0.51).with_id("window-c"),
    ]
    return [*attached, *windows]


def read(folder) -> list:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(CutSet.from_shar(in_dir=folder))


@pytest.mark.parametrize("audio", ["", "flac"])
def test_every_cut_reads_its_own_tokens(cuts, tmp_path, audio):
    assert export_shar(cuts, tmp_path / "shar", [FIELD], audio, shard_cuts=4) == len(cuts)
    back = read(tmp_path / "shar")
    assert [cut.id for cut in back] == [cut.id for cut in cuts]
    for before, after in zip(cuts, back):
        assert np.array_equal(load_tokens(after, FIELD), load_tokens(before, FIELD)), before.id
        assert after.custom[FIELD].shape == list(load_tokens(before, FIELD).shape)
        assert quantizer_id(after, FIELD) == "q1"
        assert after.load_audio().shape == before.load_audio().shape
        np.testing.assert_allclose(after.load_audio(), before.load_audio(), atol=1e-4)
        # And a window of what was read is the same as a window of what was written.
        part = {"offset": 0.2, "duration": 0.2}
        assert np.array_equal(
            load_tokens(after.truncate(**part), FIELD), load_tokens(before.truncate(**part), FIELD)
        )


def test_lhotses_own_writer_gets_truncated_cuts_wrong(cuts, tmp_path):
    """Why export_shar exists. If this fails, lhotse has mended it, and export_shar may use SharWriter."""
    (tmp_path / "naive").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with SharWriter(tmp_path / "naive", fields={FIELD: "numpy"}, shard_size=None) as writer:
            for cut in cuts:
                writer.write(cut)
    wrong = []
    for before, after in zip(cuts, read(tmp_path / "naive")):
        try:
            same = np.array_equal(load_tokens(after, FIELD), load_tokens(before, FIELD))
            same &= np.array_equal(after.load_audio(), before.load_audio())
        except ValueError:
            same = False
        if not same:
            wrong.append(before.id)
    assert "window-a" in wrong and "middle" in wrong


def test_what_cannot_be_exported_is_refused(cuts, tmp_path):
    with pytest.raises(ValueError, match="audio is 'mp3': use flac or wav"):
        export_shar(cuts, tmp_path / "shar", [FIELD], "mp3")
    with pytest.raises(ValueError, match="no tokens 'other'"):
        export_shar(cuts, tmp_path / "a", ["other"])
    export_shar(cuts, tmp_path / "shar", [FIELD])
    with pytest.raises(ValueError, match="holds archives already"):
        export_shar(cuts, tmp_path / "shar", [FIELD])


def test_command(cuts, tmp_path):
    save_cuts(cuts, tmp_path / "cuts.jsonl.gz")
    call(export_command, "--cuts", tmp_path / "cuts.jsonl.gz", "--output_dir", tmp_path / "shar")
    for before, after in zip(cuts, read(tmp_path / "shar")):
        assert np.array_equal(load_tokens(after, FIELD), load_tokens(before, FIELD))
    for cut in cuts:
        cut.custom = None
    save_cuts(cuts, tmp_path / "bare.jsonl.gz")
    with pytest.raises(ValueError, match="has no token fields: give it cuts of stage 6"):
        call(export_command, "--cuts", tmp_path / "bare.jsonl.gz", "--output_dir", tmp_path / "x")
