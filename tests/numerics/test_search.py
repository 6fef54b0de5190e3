"""Searches: greedy equals beam 1, merging by hand, brute force over all paths, batch independence."""

import itertools
import math

import pytest
import torch
from torch import nn

from spear_lib.asr.arpa import load_ngram_model
from spear_lib.asr.model import AsrModel, TransducerConfig
from spear_lib.asr.ngram_training import train_ngram
from spear_lib.asr.search import greedy_search_batch, modified_beam_search
from spear_lib.asr.units import CharacterUnits
from spear_lib.asr.word_scores import WordScoreConfig, WordScorer


class TableModel(nn.Module):
    """A transducer whose logits are a table: (T, V) plus a term for the last unit (V, V)."""

    blank_id = 0

    def __init__(self, by_last: torch.Tensor):
        super().__init__()
        self.by_last = by_last
        self.decoder = self._Decoder()
        self.joiner = self._Joiner(by_last)

    class _Decoder(nn.Module):
        context_size = 2

        def forward(self, context, pad):
            assert not pad and context.shape[1] == 2
            return context[:, -1:, None].float()  # (N, 1, 1): the last unit

    class _Joiner(nn.Module):
        def __init__(self, by_last):
            super().__init__()
            self.by_last = by_last
            self.encoder_proj = self.decoder_proj = nn.Identity()

        def forward(self, frames, decoded, project_input):
            assert not project_input
            return frames + self.by_last[decoded[..., 0].long()]


def _model(vocab_size=12, seed=0):
    torch.manual_seed(seed)
    model = AsrModel(None, TransducerConfig(decoder_dim=16, joiner_dim=16), vocab_size, encoder_dim=8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # so that several paths compete
    return model.eval()


def _batch(lengths, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(lengths), max(lengths), 8, generator=generator) * 2, torch.tensor(lengths)


def test_merging_on_three_frames_by_hand():
    """Two frames, units {blank, 1}, both equally likely: "1" has two paths of 1/4 each, "" and "1 1" one."""
    model = TableModel(torch.zeros(2, 2))
    found = modified_beam_search(model, torch.zeros(1, 2, 2), torch.tensor([2]), beam=4)[0]
    scores = {tuple(h.ids): h.score for h in found.nbest}
    assert scores == {
        (1,): pytest.approx(math.log(0.5)),
        (): pytest.approx(math.log(0.25)),
        (1, 1): pytest.approx(math.log(0.25)),
    }
    assert found.nbest[0].ids == [1]
    # Chosen by score / (units + 2): log(1/2)/3 > log(1/4)/4 > log(1/4)/2.
    assert found.ids == [1] and found.score == pytest.approx(math.log(0.5))
    # Three frames: three paths of 1/8 to "1" and to "1 1".
    found = modified_beam_search(model, torch.zeros(1, 3, 2), torch.tensor([3]), beam=8)[0]
    scores = {len(h.ids): h.score for h in found.nbest}
    assert [round(8 * math.exp(scores[n]), 4) for n in range(4)] == [1, 3, 3, 1]


def test_wide_beam_is_the_sum_over_all_paths():
    generator = torch.Generator().manual_seed(5)
    by_last = torch.randn(3, 3, generator=generator)
    frames = torch.randn(1, 4, 3, generator=generator)
    found = modified_beam_search(TableModel(by_last), frames, torch.tensor([4]), beam=100)[0]
    totals: dict[tuple, list[float]] = {}
    for path in itertools.product(range(3), repeat=4):
        last, score = 0, 0.0
        for t, unit in enumerate(path):
            score += float((frames[0, t] + by_last[last]).log_softmax(0)[unit])
            last = unit or last
        totals.setdefault(tuple(u for u in path if u), []).append(score)
    expected = {ids: float(torch.tensor(scores).logsumexp(0)) for ids, scores in totals.items()}
    assert {tuple(h.ids): h.score for h in found.nbest} == {
        ids: pytest.approx(score, abs=1e-5) for ids, score in expected.items()
    }
    assert sum(math.exp(h.score) for h in found.nbest) == pytest.approx(1.0, abs=1e-5)
    assert tuple(found.ids) == max(expected, key=lambda ids: expected[ids] / (len(ids) + 2))


@pytest.mark.parametrize("blank_penalty", [0.0, 2.0])
def test_beam_of_one_is_greedy(blank_penalty):
    model = _model()
    encoder_out, lengths = _batch([30, 7, 21, 1])
    greedy = greedy_search_batch(model, encoder_out, lengths, blank_penalty)
    beam = modified_beam_search(model, encoder_out, lengths, 1, blank_penalty)
    assert sum(len(h.ids) for h in greedy) > 20
    for first, second in zip(greedy, beam):
        assert first.ids == second.ids and first.timestamps == second.timestamps
        assert first.score == pytest.approx(second.score, abs=1e-4)
        assert first.timestamps == sorted(set(first.timestamps))  # at most one unit per frame


@pytest.mark.parametrize("search", [greedy_search_batch, modified_beam_search])
def test_batch_order_and_padding_change_nothing(search):
    model = _model(seed=2)
    encoder_out, lengths = _batch([12, 25, 3, 0, 18])
    together = search(model, encoder_out, lengths)
    assert together[3].ids == [] and together[3].score == 0.0
    noisy = encoder_out.clone()
    for row, length in enumerate(lengths.tolist()):
        noisy[row, length:] = 100.0
        (alone,) = search(model, encoder_out[row : row + 1, :length], lengths[row : row + 1])
        assert alone.ids == together[row].ids and alone.timestamps == together[row].timestamps
        assert alone.score == pytest.approx(together[row].score, abs=1e-4)
        assert all(time < length for time in alone.timestamps)
    order = [4, 2, 0, 3, 1]
    for row, hypothesis in zip(order, search(model, noisy[order], lengths[order])):
        assert hypothesis.ids == together[row].ids
    assert search(model, encoder_out[:0], lengths[:0]) == []


def test_probability_of_the_beam_never_exceeds_one():
    model = _model(seed=3)
    encoder_out, lengths = _batch([40, 22])
    previous = None
    for beam in (2, 4, 16):
        found = modified_beam_search(model, encoder_out, lengths, beam)
        for hypothesis in found:
            scores = [h.score for h in hypothesis.nbest]
            assert scores == sorted(scores, reverse=True) and len(scores) <= beam
            assert sum(map(math.exp, scores)) <= 1.0 + 1e-5
            assert len({tuple(h.ids) for h in hypothesis.nbest}) == len(scores)  # merged
        mass = [sum(math.exp(entry.score) for entry in h.nbest) for h in found]
        assert previous is None or all(m >= p - 1e-9 for m, p in zip(mass, previous))
        previous = mass


def test_unk_emits_nothing_and_symbols_per_frame():
    by_last = torch.zeros(4, 4)
    frames = torch.full((1, 3, 4), -5.0)
    frames[0, :, 2] = 5.0  # unk everywhere
    model, lengths = TableModel(by_last), torch.tensor([3])
    assert greedy_search_batch(model, frames, lengths)[0].ids == [2, 2, 2]
    assert greedy_search_batch(model, frames, lengths, unk_id=2)[0].ids == []
    assert modified_beam_search(model, frames, lengths, unk_id=2)[0].ids == []
    several = greedy_search_batch(model, frames, lengths, max_symbols_per_frame=2)[0]
    assert several.ids == [2] * 6 and several.timestamps == [0, 0, 1, 1, 2, 2]
    assert greedy_search_batch(model, frames, lengths, max_symbols_per_frame=0)[0].ids == []


def test_errors():
    model = _model()
    encoder_out, lengths = _batch([5, 4])
    with pytest.raises(ValueError, match=r"lengths 4..6 do not fit into 5 frames"):
        greedy_search_batch(model, encoder_out, torch.tensor([6, 4]))
    with pytest.raises(ValueError, match=r"expected \(B, T, E\) and \(B,\)"):
        modified_beam_search(model, encoder_out, lengths[:1])
    with pytest.raises(ValueError, match="beam is 0"):
        modified_beam_search(model, encoder_out, lengths, beam=0)


@pytest.mark.parametrize("weights", [(1.0, 0.0, 2.0), (0.6, 1.2, -1.0)], ids=["open", "closed"])
def test_shallow_fusion_is_the_sum_over_all_paths_with_equation_11(tmp_path, weights):
    units = CharacterUnits(" AB")
    train_ngram(
        [sentence.split() for sentence in ("A B", "B A B", "AA", "A A", "BA B")], 3, tmp_path / "lm.arpa"
    )
    lm, config = load_ngram_model(tmp_path / "lm.arpa"), WordScoreConfig(*weights)
    generator = torch.Generator().manual_seed(6)
    by_last = torch.randn(4, 4, generator=generator)
    frames = torch.randn(1, 5, 4, generator=generator)
    scorer = WordScorer(lm, units, config)
    found = modified_beam_search(TableModel(by_last), frames, torch.tensor([5]), beam=2000, scorer=scorer)[0]
    totals: dict[tuple, list[float]] = {}
    for path in itertools.product(range(4), repeat=5):
        last, score = 0, 0.0
        for t, unit in enumerate(path):
            score += float((frames[0, t] + by_last[last]).log_softmax(0)[unit])
            last = unit or last
        totals.setdefault(tuple(u for u in path if u), []).append(score)
    expected = {}
    for ids, scores in totals.items():
        words = "".join(units.unit(unit) for unit in ids).split(" ")
        words = words[:-1] if words[-1] == "" else words  # a space at the end
        unknown = sum(word not in lm.word_ids for word in words)
        if "" in words or (unknown and config.unknown_penalty < 0):
            continue
        score = float(torch.tensor(scores, dtype=torch.float64).logsumexp(0)) + config.weight * lm.log_prob(
            words
        )
        expected[ids] = score + config.word_score * len(words) - config.unknown_penalty * unknown
    assert {tuple(h.ids): h.score for h in found.nbest} == pytest.approx(expected, abs=1e-3)
    assert tuple(found.ids) == max(expected, key=expected.get)


def test_broken_numbers_are_refused():
    model = _model()
    encoder_out, lengths = _batch([5, 4])
    encoder_out[1, 2, 3] = math.nan
    for search in (greedy_search_batch, modified_beam_search):
        with pytest.raises(ValueError, match="holds NaN: the model or its input is broken"):
            search(model, encoder_out, lengths)
