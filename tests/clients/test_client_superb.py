"""s3prl itself: the upstream in both featurizers, and a SUPERB task above chance through evaluate_superb."""

import importlib.util
import json
import math

import pytest
import torch

from spear_lib.interfaces import s3prl_upstream, torchaudio_stand_in

if importlib.util.find_spec("s3prl") is None:
    pytest.skip("s3prl is not installed: tools/clients.sh superb runs this", allow_module_level=True)
torchaudio_stand_in.install()

from client_fixtures import write_encoder, write_tones  # noqa: E402

from spear_lib.bin import evaluate_superb  # noqa: E402


@pytest.fixture(scope="module", params=[1, 2], ids=["50 Hz", "25 Hz"])
def folder(request, tmp_path_factory):
    s3prl_upstream.register()
    return write_encoder(tmp_path_factory.mktemp("encoder"), request.param)


def test_the_upstream_of_the_nn_api_and_its_featurizer(folder):
    from s3prl.nn import Featurizer, S3PRLUpstream

    upstream = S3PRLUpstream("spear_local", path_or_url=str(folder)).eval()
    sizes = [1, 800, 2880, 16000, 50017]
    wavs = torch.zeros(len(sizes), max(sizes), 1)
    for row, size in enumerate(sizes):
        wavs[row, :size, 0] = 0.1 * torch.randn(size)
    with torch.no_grad():
        states, lengths = upstream(wavs, torch.tensor(sizes))
        features, counts = Featurizer(upstream)(states, lengths)
    assert upstream.num_layers == len(states) and set(upstream.downsample_rates) == {320}
    assert features.shape[:2] == (len(sizes), math.ceil(max(sizes) / 320))
    assert counts.tolist() == [math.ceil(size / 320) for size in sizes]
    assert torch.isfinite(features).all()


def test_the_featurizer_of_the_older_api(folder):
    from s3prl.upstream.interfaces import Featurizer

    expert = s3prl_upstream.spear_local(str(folder))
    featurizer = Featurizer(expert, "hidden_states", upstream_device="cpu")
    wavs = [0.1 * torch.randn(size) for size in (16000, 50017, 9999)]
    features = featurizer(wavs, expert(wavs))
    assert [len(one) for one in features] == [round(len(wav) / 320) for wav in wavs]
    assert featurizer.downsample_rate == 320


def test_a_task_above_chance(folder, tmp_path):
    tables = {
        part: write_tones(tmp_path, part, count)
        for part, count in (("train", 30), ("valid", 9), ("test", 12))
    }
    evaluate_superb.main(
        [f"--encoders=[ours={folder}]", "--baselines=false", "--task=sid", "--device=cpu"]
        + [f"--{part}=[{path}]" for part, path in tables.items()]
        + ["--learning_rates=[1e-4, 1e-2]", "--superb.total_steps=40", "--superb.eval_step=20"]
        + ["--superb.gradient_accumulate=1", "--superb.num_workers=0", f"--output_dir={tmp_path / 'out'}"]
    )
    result = json.loads((tmp_path / "out" / "results.json").read_text())["results"]["ours"]["sid"]
    assert result["mean"] > 60.0 and result["learning_rate"] == 1e-2  # chance is 33
    assert len(result["runs"]) == 2 and result["counts"] == {"train": 30, "valid": 9, "test": 12}
