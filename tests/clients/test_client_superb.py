"""s3prl itself: the upstream in both featurizers, a SUPERB task above chance through evaluate_superb, and its
losses and scores beside those of our own heads."""

import importlib.util
import json
import math

import numpy as np
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


def test_our_diarization_is_that_of_s3prl():
    from s3prl.metric.diarization import calc_diarization_error
    from s3prl.nn.pit import get_label_perm, pit_loss

    from spear_lib.evaluation.downstream.diarization import diarization_errors, permutation_free_loss

    torch.manual_seed(0)
    logits = torch.randn(5, 40, 3)
    labels = (torch.rand(5, 40, 3) < 0.4).float()
    lengths = torch.tensor([40, 31, 17, 40, 5])
    theirs, index, orders = pit_loss(logits, labels, lengths)
    assert permutation_free_loss(logits, labels, lengths).item() == pytest.approx(theirs.item(), abs=1e-6)
    # Theirs takes the order of the loss, ours the best one: equal where outputs are mostly right.
    labels = (torch.rand(5, 40, 3) < 0.3).float()
    flipped = torch.where(torch.rand(5, 40, 3) < 0.1, 1 - labels, labels)
    logits = 8 * flipped[:, :, [2, 0, 1]] - 4
    _, index, orders = pit_loss(logits, labels, lengths)
    _, _, _, _, _, scored, missed, false, confused = calc_diarization_error(
        logits, get_label_perm(labels, index, orders), lengths
    )
    ours = [
        diarization_errors((logits[row, :size] > 0).numpy(), labels[row, :size].bool().numpy())
        for row, size in enumerate(lengths)
    ]
    total = sum(ours[1:], ours[0])
    assert [total.speech, total.missed, total.false_alarm, total.confused] == [
        scored,
        missed,
        false,
        confused,
    ]


def test_our_scores_are_those_of_s3prl():
    from s3prl.metric import slot_filling
    from s3prl.metric.common import compute_eer
    from s3prl.nn.speaker_loss import amsoftmax

    from spear_lib.evaluation.downstream import transcription
    from spear_lib.evaluation.downstream.heads import MarginSoftmax
    from spear_lib.evaluation.downstream.verification import equal_error_rate

    random = np.random.default_rng(0)
    same = random.random(500) < 0.3
    scores = random.standard_normal(500) + same
    assert equal_error_rate(scores, same) == pytest.approx(compute_eer(same, scores)[0], abs=1e-6)
    words = ["A", "BC", "DEF", "B-x", "E-x", "B-y", "E-y"]
    refs = ["PLAY B-x TOM E-x BY B-y RUSH E-y", "B-x ONE E-x AND B-x TWO E-x", "NOTHING HERE"]
    for _ in range(200):
        refs.append(f"A B-x {'BCD'[: 1 + int(random.integers(3))]} E-x")
    hyps = [" ".join(random.choice(words, int(random.integers(1, 9)))) for _ in refs]
    ours, theirs = transcription.slot_type_f1(hyps, refs), slot_filling.slot_type_f1(hyps, refs)
    assert ours == pytest.approx(theirs)
    ours, theirs = transcription.slot_value_cer(hyps, refs), slot_filling.slot_value_cer(hyps, refs)
    assert ours == pytest.approx(theirs)
    theirs, ours = amsoftmax(8, 5, margin=0.4, scale=30), MarginSoftmax(8, 5)
    with torch.no_grad():
        ours.classes.copy_(theirs.W.T)
    vectors, labels = torch.randn(6, 8), torch.tensor([0, 1, 2, 3, 4, 0])
    assert ours(vectors, labels).item() == pytest.approx(theirs(vectors, labels)[0].item(), abs=1e-5)


def test_our_paths_are_those_of_dtw_python():
    dtw = pytest.importorskip("dtw").dtw
    from spear_lib.evaluation.downstream.spoken_terms import path_costs

    random = np.random.default_rng(0)
    for query, document in ((5, 9), (30, 100), (20, 12)):
        distances = random.random((query, document))
        found = dtw(x=distances, step_pattern="asymmetric", open_begin=True, open_end=True)
        assert path_costs(distances[None])[0] == pytest.approx(found.normalizedDistance, abs=1e-9)


def test_our_measures_of_quality_fall_with_noise():
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")
    from spear_lib.evaluation.downstream.separation import quality

    # Speech-like: a voice of 120 Hz in syllables of 0.25 s, with pauses.
    time = np.arange(3 * 16000) / 16000
    voice = sum(np.sin(2 * np.pi * 120 * order * time) / order for order in range(1, 20))
    clean = 0.1 * voice * (np.sin(2 * np.pi * 2 * time) > -0.3)
    noise = np.random.default_rng(0).standard_normal(len(time))
    values = [
        [quality(name, clean + level * noise, clean) for level in (0.0, 0.01, 0.1)]
        for name in ("pesq", "stoi")
    ]
    assert values[0][0] > 4.5 and values[1][0] > 99.9
    assert all(of_name == sorted(of_name, reverse=True) for of_name in values)
    assert quality("pesq", 0 * clean, clean) == 1.0
