"""Features on disk: formats, layers, files and manifests, resuming, what is refused."""

import json
import logging
import math

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet
from safetensors.numpy import load_file
from zipformer_fixtures import TINY

from spear_lib.bin import extract_features
from spear_lib.data.audio_files import open_audio
from spear_lib.data.manifests import save_cuts
from spear_lib.encoders import load_encoder, save_encoder
from spear_lib.encoders.zipformer import ZipformerConfig
from spear_lib.interfaces import AlignedEncoder, load_upstream

SIZES = {"a/one": 16000, "a/two": 20001, "b/one": 700}


@pytest.fixture
def corpus(tmp_path):
    torch.manual_seed(0)
    save_encoder(load_encoder(ZipformerConfig(**TINY)), tmp_path / "encoder", {})
    random = np.random.default_rng(0)
    for name, size in SIZES.items():
        path = tmp_path / "audio" / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.1 * random.standard_normal(size), 16000, subtype="FLOAT")
    return tmp_path


def run(corpus, *more, audio="audio", output="out"):
    extract_features.main(
        [str(corpus / audio), f"--encoder={corpus / 'encoder'}", f"--output_dir={corpus / output}"]
        + ["--device=cpu", *more]
    )
    return corpus / output


def expected(corpus, name, layers="output"):
    samples, _ = soundfile.read(corpus / "audio" / f"{name}.wav", dtype="float32")
    with torch.no_grad():
        states = AlignedEncoder(load_upstream(corpus / "encoder"), layers)(torch.from_numpy(samples)).states
    return [state[0].numpy() for state in states]


def test_npy(corpus):
    output = run(corpus)
    for name, size in SIZES.items():
        found = np.load(output / f"{name}.npy")
        assert found.dtype == np.float32 and found.shape == (math.ceil(size / 320), 32)
        np.testing.assert_allclose(found, expected(corpus, name)[0], atol=1e-4)
    facts = json.loads((output / "features.json").read_text())
    assert facts["frame_rate"] == 50 and facts["first_frame_center_ms"] == 5.0
    assert facts["states"] == ["output"] and facts["channels"] == [32]


def test_all_layers_in_safetensors(corpus):
    output = run(corpus, "--layers=all", "--format=safetensors", "--dtype=float16")
    states = load_file(output / "a/one.safetensors")
    assert sorted(states) == ["layer_00", "layer_01", "layer_02", "layer_03", "output"]
    for found, right in zip((states[name] for name in sorted(states)), expected(corpus, "a/one", "all")):
        assert found.dtype == np.float16
        np.testing.assert_allclose(found, right, atol=0.02)


def test_some_layers_of_a_manifest_for_lhotse(corpus):
    cuts = []
    for name in SIZES:
        cut = open_audio(corpus / "audio" / f"{name}.wav")
        cut.id = name.replace("/", "-")
        cuts.append(cut)
    save_cuts(cuts, corpus / "cuts.jsonl.gz")
    output = run(corpus, "--layers=0,-1", "--format=lhotse", "--field=spear", audio="cuts.jsonl.gz")
    found = CutSet.from_file(output / "cuts.jsonl.gz")
    assert [cut.id for cut in found] == [cut.id for cut in cuts]
    for cut, name in zip(found, SIZES):
        for field, right in zip(("spear_layer_00", "spear_output"), expected(corpus, name, [0, 4])):
            array = getattr(cut, f"load_{field}")()
            assert abs(len(array) - len(right)) <= 1 and len(array) >= 1  # lhotse rounds the duration
            np.testing.assert_allclose(array, right[: len(array)], atol=1e-4)
    part = found[1].truncate(offset=0.2, duration=0.4)
    np.testing.assert_allclose(part.load_spear_output(), expected(corpus, "a/two")[0][10:30], atol=1e-4)


def test_going_on_makes_what_is_missing_and_nothing_else(corpus, caplog):
    caplog.set_level(logging.INFO)
    output = run(corpus)
    times = {path: path.stat().st_mtime_ns for path in output.rglob("*.npy")}
    (output / "a/two.npy").unlink()
    run(corpus)
    assert "3 recordings, 1 of them now" in caplog.text
    for path, time in times.items():
        assert path.exists() and (path.stat().st_mtime_ns == time) == (path.name != "two.npy")


def test_parts_make_the_whole(corpus):
    run(corpus, "--num_splits=2", "--split=1")
    assert sorted(path.name for path in (corpus / "out").rglob("*.npy")) == ["two.npy"]
    run(corpus, "--num_splits=2", "--split=0")
    assert len(list((corpus / "out").rglob("*.npy"))) == 3


def test_other_features_are_refused(corpus):
    run(corpus)
    for more, name in (
        ("--layers=0", "features"),
        ("--dtype=float16", "dtype"),
        ("--format=safetensors", "format"),
    ):
        with pytest.raises(ValueError, match=f"holds features with {name} = "):
            run(corpus, more)
    torch.manual_seed(1)
    save_encoder(load_encoder(ZipformerConfig(**TINY)), corpus / "encoder", {})
    with pytest.raises(ValueError, match="holds features with features = "):
        run(corpus)


def test_bad_audio_is_counted_and_limited(corpus):
    (corpus / "audio/a/bad.wav").write_text("no audio")
    with pytest.raises(ValueError, match=r"1 of 4 recordings cannot be used.*raise max_bad_fraction"):
        run(corpus)
    output = run(corpus, "--max_bad_fraction=0.3")
    assert len(list(output.rglob("*.npy"))) == 3


def test_options(corpus):
    for wrong in ("--format=hdf5", "--dtype=int8", "--split=3"):
        with pytest.raises(SystemExit):
            run(corpus, wrong)
    for wrong, message in (
        ("--layers=9", "layers is 9"),
        ("--layers=1,x", "numbers of layers"),
        ("--layers=weighted", "learned"),
    ):
        with pytest.raises(ValueError, match=message):
            run(corpus, wrong)
