"""CTC searches against a sum over all alignments, with and without a language model."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch

from spear_lib.asr.arpa import load_ngram_model
from spear_lib.asr.ctc_search import ctc_alignment, ctc_greedy_search, ctc_prefix_beam_search
from spear_lib.asr.ngram_training import train_ngram
from spear_lib.asr.units import CharacterUnits
from spear_lib.asr.word_scores import WordScoreConfig, WordScorer

EXACT = {"beam": 2000, "beam_threshold": 1e4}


class PieceUnits:
    """Units as BPE writes them: a piece that starts with "▁" begins a word."""

    pieces = ("<blk>", "▁A", "▁B", "A")
    vocab_size, id = 4, "pieces"

    def encode(self, text: str) -> list[int]:
        spellings = {"A": [1], "B": [2], "AA": [1, 3], "BA": [2, 3]}
        return [unit for word in text.split() for unit in spellings[word]]

    def unit(self, unit: int) -> str:
        return self.pieces[unit]

    def words(self, ids) -> list[str]:
        groups: list[list[int]] = []
        for unit in ids:
            if not groups or self.pieces[unit].startswith("▁"):
                groups.append([])
            groups[-1].append(unit)
        # A word in another spelling than the units' own is an unknown one.
        known = {tuple(self.encode(word)): word for word in ("A", "B", "AA", "BA")}
        return [known.get(tuple(group), "?") for group in groups]


class LetterUnits(CharacterUnits):
    """Space, A, B."""

    def __init__(self):
        super().__init__(" AB")

    def words(self, ids) -> list[str]:
        return "".join(self.characters[unit - 1] for unit in ids).split(" ")


def random_log_probs(frames: int, vocab_size: int, seed: int, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(batch, frames, vocab_size, generator=generator)).log_softmax(-1)


def all_sequences(log_probs: torch.Tensor) -> dict[tuple[int, ...], float]:
    """Unit sequence -> log of the sum over all its alignments, for (T, V) log-probabilities."""
    frames, vocab_size = log_probs.shape
    totals: dict[tuple[int, ...], float] = {}
    table = log_probs.double()
    for path in itertools.product(range(vocab_size), repeat=frames):
        probability = math.exp(sum(float(table[t, unit]) for t, unit in enumerate(path)))
        units = tuple(unit for unit, _ in itertools.groupby(path) if unit)
        totals[units] = totals.get(units, 0.0) + probability
    return {units: math.log(total) for units, total in totals.items()}


@pytest.mark.parametrize(("frames", "vocab_size", "seed"), [(1, 3, 0), (4, 4, 1), (6, 3, 2), (6, 4, 3)])
def test_a_wide_beam_is_the_sum_over_all_alignments(frames, vocab_size, seed):
    log_probs = random_log_probs(frames, vocab_size, seed)
    found = ctc_prefix_beam_search(log_probs, torch.tensor([frames]), **EXACT)[0]
    expected = all_sequences(log_probs[0])
    assert {tuple(h.ids): h.score for h in found.nbest} == pytest.approx(expected, abs=1e-4)
    assert len(found.nbest) == len(expected)
    assert tuple(found.ids) == max(expected, key=expected.get)
    assert sum(math.exp(h.score) for h in found.nbest) == pytest.approx(1.0, abs=1e-4)


@pytest.fixture(scope="module")
def word_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("lm") / "lm.arpa"
    text = ["A B", "B A B", "AA", "A A", "BA B", "B", "AA B A"]
    train_ngram([sentence.split() for sentence in text], 3, path)
    return load_ngram_model(path)


def eq_11(units, ids, log_prob, model, config) -> float | None:
    """log p_CTC + w1 log p_LM + w2 |y|, or None for a sequence that may not be written."""
    words = units.words(ids) if ids else []
    if words and words[-1] == "":
        words.pop()  # a space at the end
    if "" in words:
        return None
    total = log_prob + config.weight * model.log_prob(words) + config.word_score * len(words)
    unknown = sum(word not in model.word_ids for word in words)
    if unknown and config.unknown_penalty < 0:
        return None
    return total - unknown * config.unknown_penalty


@pytest.mark.parametrize("units", [LetterUnits(), PieceUnits()], ids=["letters", "pieces"])
@pytest.mark.parametrize(
    "weights", [(1.0, 0.0, 2.0), (0.7, 1.5, 0.5), (2.0, -0.4, -1.0)], ids=["plain", "weighted", "closed"]
)
@pytest.mark.parametrize(("frames", "seed"), [(3, 4), (6, 5)])
def test_with_a_language_model_it_is_equation_11(word_model, units, weights, frames, seed):
    config = WordScoreConfig(*weights)
    log_probs = random_log_probs(frames, units.vocab_size, seed)
    scorer = WordScorer(word_model, units, config)
    found = ctc_prefix_beam_search(log_probs, torch.tensor([frames]), scorer=scorer, **EXACT)[0]
    expected = {}
    for ids, log_prob in all_sequences(log_probs[0]).items():
        score = eq_11(units, ids, log_prob, word_model, config)
        if score is not None:
            expected[ids] = score
    assert {tuple(h.ids): h.score for h in found.nbest} == pytest.approx(expected, abs=2e-3)
    assert tuple(found.ids) == max(expected, key=expected.get)


def test_a_language_model_of_weight_0_changes_nothing(word_model):
    units = LetterUnits()
    log_probs = random_log_probs(6, 4, 7)
    scorer = WordScorer(word_model, units, WordScoreConfig(0.0, 0.0, 0.0))
    with_lm = ctc_prefix_beam_search(log_probs, torch.tensor([6]), scorer=scorer, **EXACT)[0]
    without = {
        tuple(h.ids): h.score for h in ctc_prefix_beam_search(log_probs, torch.tensor([6]), **EXACT)[0].nbest
    }
    for hypothesis in with_lm.nbest:
        assert hypothesis.score == pytest.approx(without[tuple(hypothesis.ids)], abs=1e-4)


def test_a_narrow_beam_finds_what_a_wide_one_finds_on_clear_input(word_model):
    log_probs = (4 * random_log_probs(40, 4, 8, batch=3)).log_softmax(-1)
    lengths = torch.tensor([40, 11, 27])
    scorer = WordScorer(word_model, LetterUnits(), WordScoreConfig(0.5))
    for lm in (None, scorer):
        narrow = ctc_prefix_beam_search(log_probs, lengths, 30, lm)
        wide = ctc_prefix_beam_search(log_probs, lengths, 300, lm)
        assert [h.ids for h in narrow] == [h.ids for h in wide]


@pytest.mark.parametrize("with_lm", [False, True])
def test_batch_order_and_padding_change_nothing(word_model, with_lm):
    log_probs = random_log_probs(20, 4, 9, batch=5)
    lengths = torch.tensor([12, 20, 3, 0, 18])
    scorer = WordScorer(word_model, LetterUnits(), WordScoreConfig(0.5)) if with_lm else None
    together = ctc_prefix_beam_search(log_probs, lengths, 20, scorer)
    assert together[3].ids == []
    order = [4, 2, 0, 3, 1]
    for row, other in zip(order, ctc_prefix_beam_search(log_probs[order], lengths[order], 20, scorer)):
        (alone,) = ctc_prefix_beam_search(
            log_probs[row : row + 1, : lengths[row]], lengths[row : row + 1], 20, scorer
        )
        for hypothesis in (alone, other):
            assert hypothesis.ids == together[row].ids
            assert hypothesis.timestamps == together[row].timestamps
            assert hypothesis.score == pytest.approx(together[row].score, abs=1e-4)


def test_greedy_by_hand():
    table = torch.full((2, 7, 3), 0.1)
    for t, unit in enumerate([1, 1, 0, 1, 2, 2, 0]):
        table[0, t, unit] = 0.8
    table[1, :, 2] = 0.8
    first, second = ctc_greedy_search(table.log(), torch.tensor([7, 2]))
    assert (first.ids, first.timestamps) == ([1, 1, 2], [0, 3, 4])
    assert first.score == pytest.approx(7 * math.log(0.8))
    assert (second.ids, second.timestamps, second.score) == ([2], [0], pytest.approx(2 * math.log(0.8)))
    # A penalty on blank above the gap of 2.08 nats writes a unit in the third frame.
    assert len(ctc_greedy_search(table.log(), torch.tensor([7, 2]), blank_penalty=2.5)[0].ids) >= 3
    assert ctc_greedy_search(table.log()[:, :, :], torch.tensor([0, 0]))[0].ids == []


def test_times_are_those_of_the_best_alignment():
    log_probs = random_log_probs(6, 4, 11, batch=4)
    lengths = torch.tensor([6, 5, 6, 3])
    targets = [[1, 1, 3], [2], [], [3, 2, 1]]
    found = ctc_alignment(log_probs, lengths, targets)
    for row, (target, length) in enumerate(zip(targets, lengths.tolist())):
        best, times = -math.inf, []
        for path in itertools.product(range(4), repeat=length):
            runs = [
                (unit, [t for t, _ in group])
                for unit, group in itertools.groupby(enumerate(path), lambda x: x[1])
            ]
            if [unit for unit, _ in runs if unit] == target:
                score = sum(float(log_probs[row, t, unit]) for t, unit in enumerate(path))
                if score > best:
                    best, times = score, [frames[0] for unit, frames in runs if unit]
        assert found[row] == times
    with pytest.raises(ValueError, match="3 units need 4 frames of CTC, and there are 3"):
        ctc_alignment(log_probs[:1], torch.tensor([3]), [[1, 1, 2]])


def test_wrong_input():
    log_probs = random_log_probs(4, 3, 0)
    with pytest.raises(ValueError, match="beam is 0"):
        ctc_prefix_beam_search(log_probs, torch.tensor([4]), beam=0)
    with pytest.raises(ValueError, match="do not fit into 4 frames"):
        ctc_greedy_search(log_probs, torch.tensor([5]))
    log_probs[0, 1, 1] = math.nan
    for search in (ctc_greedy_search, ctc_prefix_beam_search):
        with pytest.raises(ValueError, match="hold NaN"):
            search(log_probs, torch.tensor([4]))


def test_a_language_model_without_the_letters_is_refused(tmp_path):
    train_ngram([["the", "cat"], ["a", "cat"]], 2, tmp_path / "lm.arpa")
    model = load_ngram_model(tmp_path / "lm.arpa")
    with pytest.raises(ValueError, match=r"none of the 3 words .* can be written.*upper case"):
        WordScorer(model, CharacterUnits(), WordScoreConfig())


def test_words_that_cannot_be_written_are_counted(tmp_path, caplog):
    train_ngram([["AB", "C3PO"], ["B", "A"]], 2, tmp_path / "lm.arpa")
    scorer = WordScorer(load_ngram_model(tmp_path / "lm.arpa"), LetterUnits(), WordScoreConfig())
    assert "1 of 7 words" in caplog.text and "C3PO" in caplog.text
    assert scorer.node_words.shape[0] == 1 + 3 + 1  # root, A, AB, B, and the outside: AB shares A's node


def test_equation_11_is_what_flashlight_computes(tmp_path):
    """flashlight-text's lexicon decoder ends every word by a space and gives further spaces for nothing."""
    golden = json.loads((Path(__file__).parents[1] / "golden" / "flashlight.json").read_text())
    (tmp_path / "lm.arpa").write_text(golden["arpa"])
    model, units = load_ngram_model(tmp_path / "lm.arpa"), LetterUnits()
    config = WordScoreConfig(golden["lm_weight"], golden["word_score"], -1.0)
    for case in golden["cases"]:
        log_probs = torch.tensor(case["log_probs"])
        totals: dict[str, list[float]] = {}
        for ids, log_prob in all_sequences(log_probs).items():
            words = units.decode(ids).split()
            if not ids or ids[-1] == 1:
                score = eq_11(units, tuple(units.encode(" ".join(words))), log_prob, model, config)
                if score is not None:
                    totals.setdefault(" ".join(words), []).append(score)
        sums = {text: float(torch.tensor(scores).logsumexp(0)) for text, scores in totals.items()}
        assert sums == pytest.approx(case["scores"], abs=2e-4)
