"""The scores of SUPERB's tasks: cases by hand, brute force and scikit-learn (s3prl itself: tests/clients)."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from lhotse import SupervisionSegment
from lhotse.testing.dummies import dummy_cut

from spear_lib.evaluation.clip_sets import Clip
from spear_lib.evaluation.downstream import diarization, separation, spoken_terms, transcription, verification
from spear_lib.evaluation.downstream.heads import MarginSoftmax, XVector

# ---- SD


def frames(text: str) -> np.ndarray:
    """ "a.b" -> (T, 2): who is active; "x" is both."""
    return np.array([[c in "ax", c in "bx"] for c in text])


def test_activity_is_rounded_to_frames_of_20_ms():
    cut = dummy_cut(0, duration=0.2)
    cut.supervisions = [
        SupervisionSegment("1", cut.recording_id, 0.031, 0.06, speaker="b"),  # 1.55 to 4.55: frames 2, 3, 4
        SupervisionSegment("2", cut.recording_id, -0.1, 0.14, speaker="a"),  # to 2: frames 0, 1
    ]
    assert (diarization.activity(cut, 8) == frames("aabbb...")).all()
    cut.supervisions[0].speaker = None
    with pytest.raises(ValueError, match="supervision 1 of cut .* has no speaker"):
        diarization.activity(cut, 8)


def test_diarization_errors_by_hand():
    """With the outputs' names exchanged: 2 frames right, 1 missed, 1 false, overlap right, 1 confused, 1
    false, 1 right."""
    found = diarization.diarization_errors(frames("bb.bxbba"), frames("aaa.xb.b"))
    assert (found.missed, found.false_alarm, found.confused, found.speech) == (1, 2, 1, 7)
    assert found.rate == pytest.approx(4 / 7)
    double = found + found
    assert double.speech == 14 and double.rate == pytest.approx(4 / 7)


def test_a_collar_leaves_out_borders_of_the_reference():
    reference, predicted = frames("....aaaa...."), frames("...aaaaa....")
    assert diarization.diarization_errors(predicted, reference).false_alarm == 1
    assert diarization.diarization_errors(predicted, reference, collar=0.02).false_alarm == 0
    assert diarization.diarization_errors(predicted, reference, collar=0.02).speech == 2


def test_more_outputs_or_more_speakers_than_the_other():
    three = np.eye(3, dtype=bool)[[0, 1, 2]]
    assert diarization.diarization_errors(three[:, :1], three).missed == 2
    assert diarization.diarization_errors(three, np.zeros((3, 0), dtype=bool)).rate == float("inf")


def test_the_loss_takes_the_best_order_of_each_recording():
    logits = torch.tensor([[[9.0, -9.0]], [[9.0, -9.0]]])
    targets = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    assert diarization.permutation_free_loss(logits, targets, torch.tensor([1, 1])) < 1e-3
    both = torch.tensor([[[1.0, 1.0]], [[0.0, 1.0]]])
    assert diarization.permutation_free_loss(logits, both, torch.tensor([1, 1])) == pytest.approx(
        2.25, abs=0.01
    )


# ---- SV


def test_equal_error_rate_by_hand_and_against_scikit_learn():
    same = np.array([1, 1, 0, 1, 0, 0], dtype=bool)
    assert verification.equal_error_rate(np.array([6, 5, 4, 3, 2, 1.0]), same) == pytest.approx(1 / 3)
    assert verification.equal_error_rate(np.arange(6.0), np.arange(6) > 2) == 0.0
    assert verification.equal_error_rate(-np.arange(6.0), np.arange(6) > 2) == 1.0
    assert verification.equal_error_rate(np.zeros(6), same) == 0.5
    from scipy.interpolate import interp1d
    from scipy.optimize import brentq
    from sklearn.metrics import roc_curve

    random = np.random.default_rng(0)
    for size in (5, 40, 300):
        labels = random.random(size) < 0.4
        labels[:2] = True, False
        scores = np.round(random.standard_normal(size) + labels, 1)  # with ties
        false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
        curve = interp1d(false, true)
        expected = brentq(lambda x: 1.0 - x - curve(x), 0.0, 1.0)  # noqa: B023
        assert verification.equal_error_rate(scores, labels) == pytest.approx(expected, abs=1e-9)
    with pytest.raises(ValueError, match="2 of 2 trials are of one speaker: an error rate needs both kinds"):
        verification.equal_error_rate(np.arange(2.0), np.ones(2))


def test_pairs_of_many_clips_are_a_sample(monkeypatch):
    clips = [Clip(Path(f"{n}.wav"), (f"s{n % 5}",), "test") for n in range(20)]
    every = verification.all_pairs(clips)
    assert len(every) == 190 and sum(same for same, _, _ in every) == 30
    monkeypatch.setattr(verification, "MAX_PAIRS", 100)
    some = verification.all_pairs(clips)
    assert len(set(some)) == 100 and sum(same for same, _, _ in some) == 30 and set(some) <= set(every)
    assert some == verification.all_pairs(clips)


def test_margin_softmax_by_hand():
    loss = MarginSoftmax(2, 2, margin=0.4, scale=2.0)
    with torch.no_grad():
        loss.classes.copy_(torch.tensor([[3.0, 0.0], [0.0, 0.5]]))
    # Cosines 0.6 and 0.8; of class 0 the margin is taken away: logits 0.4 and 1.6.
    expected = np.log(1 + np.exp(1.6 - 0.4))
    assert loss(torch.tensor([[3.0, 4.0]]), torch.tensor([0])).item() == pytest.approx(expected, abs=1e-6)


def test_an_x_vector_does_not_see_padding_and_takes_short_utterances():
    torch.manual_seed(0)
    model = XVector(6, 8, 12).eval()
    features = torch.randn(2, 30, 6)
    alone = model(features[:1, :20], torch.tensor([20]))
    padded = model(features, torch.tensor([20, 30]))
    assert torch.allclose(alone[0], padded[0], atol=1e-5)
    short = model(features[:, :30], torch.tensor([3, 30]))
    assert short.shape == (2, 8) and torch.isfinite(short).all()


# ---- QbE


def test_the_cheapest_path_by_brute_force():
    random = np.random.default_rng(1)
    for queries, documents in ((1, 4), (3, 5), (4, 3)):
        distances = random.random((queries, documents))
        paths = itertools.product(range(documents), repeat=queries)
        legal = (p for p in paths if all(0 <= b - a <= 2 for a, b in zip(p, p[1:])))
        best = min(sum(distances[row, column] for row, column in enumerate(path)) for path in legal)
        padded = np.concatenate([distances, np.full((queries, 3), np.inf)], axis=1)
        costs = spoken_terms.path_costs(np.stack([padded, padded[:, ::-1]]))
        assert costs[0] == pytest.approx(best / queries)


def test_a_query_is_found_where_it_is():
    random = np.random.default_rng(2)
    query = random.standard_normal((12, 8))
    documents = [random.standard_normal((60, 8)) for _ in range(6)]
    documents[3][20:32] = query
    scores = spoken_terms.detection_scores([query, query[:4]], documents)
    assert scores[0].argmax() == 3 and abs(scores[0].mean()) < 1e-9 and scores[0].std() == pytest.approx(1)
    assert (scores[1] == 0).all()  # below 5 frames


def test_term_weighted_value_by_hand():
    assert pytest.approx(12.49) == spoken_terms.BETA
    scores = np.array([[3.0, 1.0, 0.0], [2.0, 0.5, 0.4]])
    relevant = np.array([[True, False, False], [True, True, False]])
    # At 2.0: query 0 finds its one, query 1 one of two, nothing false: 1 - (0 + 0.5) / 2.
    assert spoken_terms.mtwv(scores, relevant) == (pytest.approx(0.75), 2.0)
    assert spoken_terms.term_weighted_value(scores, relevant, 2.0) == pytest.approx(0.75)
    # With errors that cost 0.1: at 0.5 query 1 finds both, query 0 has one of two false.
    assert spoken_terms.mtwv(scores, relevant, beta=0.1) == (pytest.approx(1 - 0.05 / 2), 0.5)
    assert spoken_terms.mtwv(-scores, relevant)[0] == 0.0  # nothing accepted is best
    with pytest.raises(ValueError, match="no query is in any document"):
        spoken_terms.mtwv(scores, np.zeros_like(relevant))


# ---- SF, PR, ASR

SAID = "PLAY B-track TOM SAWYER E-track BY B-artist RUSH E-artist"


def test_slots_and_their_scores_by_hand():
    assert transcription.slots_of(SAID) == {"track": ["TOM SAWYER"], "artist": ["RUSH"]}
    assert transcription.slots_of("B-track TOM SAWYER E-artist") == {}
    nested = "B-track TOM B-artist X E-artist SAWYER E-track"
    assert transcription.slots_of(nested)["track"] == ["TOM X SAWYER"]
    heard = "PLAY B-track TOM SAWER E-track BY RUSH"
    # Types: {track} against {track, artist}: precision 1, recall 1/2. Values: 1 edit and 4 missing of 14.
    assert transcription.slot_type_f1([heard], [SAID]) == pytest.approx(2 / 3)
    assert transcription.slot_type_f1([heard, "A"], [SAID, "A"]) == pytest.approx(5 / 6)
    assert transcription.slot_value_cer([heard], [SAID]) == pytest.approx(5 / 14)
    with pytest.raises(ValueError, match="no reference has a slot"):
        transcription.slot_value_cer(["A"], ["A"])


def test_units_of_a_text():
    assert transcription.units_of("A B-x CD E-x", "sf") == ["A", " ", "B-x", " ", "C", "D", " ", "E-x"]
    assert transcription.units_of("AB C", "asr") == ["A", "B", " ", "C"]
    assert transcription.units_of("sh iy", "pr") == ["sh", "iy"]
    assert transcription.error_rate([["a", "b"]], [["a", "c", "d"]]) == pytest.approx(2 / 3)


# ---- SE, SS


def test_si_sdr_by_hand_and_without_scale():
    time = np.arange(1600) / 16000
    source, noise = np.sin(2 * np.pi * 100 * time), np.sin(2 * np.pi * 300 * time)
    assert separation.si_sdr(3.0 * source + 0.3 * noise + 7.0, source) == pytest.approx(20.0, abs=1e-6)
    assert separation.si_sdr(source + noise, source) == pytest.approx(0.0, abs=1e-6)
    value, order = separation.best_order(np.stack([noise, source + 0.1 * noise]), np.stack([source, noise]))
    assert order == [1, 0] and value > 50
    with pytest.raises(ValueError, match="a source is silent"):
        separation.si_sdr(source, np.zeros(1600))


def test_spectrograms_come_back_and_masks_of_the_truth_cost_nothing():
    torch.manual_seed(0)
    samples = torch.randn(2, 3333)
    spectra = separation.spectrogram(samples)
    assert spectra.shape == (2, 3333 // 320 + 1, 257)
    assert torch.allclose(separation.waveform(spectra, 3333)[:, :3000], samples[:, :3000], atol=1e-4)
    # Sources in different bins: the mask of each is 0 or 1, in any order.
    mixture = torch.ones(1, 4, 6, dtype=torch.complex64) * 1j
    one = mixture * torch.tensor([1.0, 1, 1, 0, 0, 0])
    sources = torch.stack([one, mixture - one], dim=1)
    masks = torch.stack([(mixture - one).abs(), one.abs()], dim=1)
    lengths = torch.tensor([4])
    assert separation.mask_loss(masks, mixture, sources, lengths) == 0.0
    # All zero: 6 bins of energy 1 in every frame, over 2 sources.
    assert separation.mask_loss(0 * masks, mixture, sources, lengths) == pytest.approx(3.0)
    # A source of opposite phase cannot be masked out: its target is 0.
    assert separation.mask_loss(0 * masks, -mixture, sources, lengths) == 0.0


def test_a_measure_whose_package_is_missing_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pesq", None)
    with pytest.raises(RuntimeError, match=r"pip install 'spear_lib\[enhancement\]'"):
        separation.quality("pesq", np.zeros(16000), np.zeros(16000))
