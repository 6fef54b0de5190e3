"""Searches: greedy equals beam 1, merging by hand, brute force over all paths, batch independence."""

import itertools
import math

import pytest
import torch
from torch import nn

from spear_lib.asr.arpa import load_ngram_model
from spear_lib.asr.lattice_search import lattice_beam_search
from spear_lib.asr.model import AsrModel, TransducerConfig
from spear_lib.asr.ngram_training import train_ngram
from spear_lib.asr.search import greedy_search_batch, modified_beam_search
from spear_lib.asr.searcher import SearchConfig, Searcher
from spear_lib.asr.tuning import TuneConfig, grid
from spear_lib.asr.units import CharacterUnits
from spear_lib.asr.word_scores import WordScoreConfig, WordScorer
from spear_lib.transducer import rnnt_loss


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


@pytest.mark.parametrize("search", [greedy_search_batch, modified_beam_search, lattice_beam_search])
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
    with pytest.raises(ValueError, match="max_units_per_frame 0; both must be positive"):
        lattice_beam_search(model, encoder_out, lengths, max_units_per_frame=0)


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


def lattice_paths(vocab_size, num_frames, max_units):
    """Every way through the lattice: per frame its units, then blank."""
    of_frame = [
        units
        for count in range(max_units + 1)
        for units in itertools.product(range(1, vocab_size), repeat=count)
    ]
    return itertools.product(of_frame, repeat=num_frames)


def lattice_totals(frames, by_last, max_units):
    """Units -> log-probability, all ways through the lattice summed."""
    totals: dict[tuple, list[float]] = {}
    for path in lattice_paths(len(by_last), len(frames), max_units):
        last, score = 0, 0.0
        for frame, units in zip(frames, path):
            for unit in (*units, 0):
                score += float((frame + by_last[last]).log_softmax(0)[unit])
                last = unit or last
        totals.setdefault(tuple(unit for units in path for unit in units), []).append(score)
    return {ids: float(torch.tensor(scores).double().logsumexp(0)) for ids, scores in totals.items()}


@pytest.mark.parametrize("max_units", [1, 2, 3])
def test_a_wide_lattice_beam_is_the_sum_over_the_lattice(max_units):
    generator = torch.Generator().manual_seed(7)
    by_last, frames = torch.randn(3, 3, generator=generator), torch.randn(1, 3, 3, generator=generator)
    model, lengths = TableModel(by_last), torch.tensor([3])
    beam = 2 ** (3 * max_units + 1)  # room for every sequence of two kinds of units
    found = lattice_beam_search(model, frames, lengths, beam, max_units)[0]
    expected = lattice_totals(frames[0], by_last, max_units)
    assert {tuple(h.ids): h.score for h in found.nbest} == pytest.approx(expected, abs=1e-4)
    assert len(expected) > 10 and tuple(found.ids) == max(expected, key=expected.get)
    assert len(found.timestamps) == len(found.ids) and found.timestamps == sorted(found.timestamps)
    assert max(map(found.timestamps.count, found.timestamps), default=0) <= max_units
    # A penalty on blank is taken before the softmax.
    cheaper = frames.clone()
    cheaper[..., 0] -= 1.5
    penalised = lattice_beam_search(model, frames, lengths, beam, max_units, blank_penalty=1.5)[0]
    assert penalised.score == pytest.approx(
        lattice_beam_search(model, cheaper, lengths, beam, max_units)[0].score, abs=1e-5
    )


def test_a_lattice_beam_scores_transcripts_as_the_training_loss_does():
    model = _model(5)
    encoder_out, lengths = _batch([4, 3])
    found = lattice_beam_search(model, encoder_out, lengths, beam=900, max_units_per_frame=2)
    for row, length in enumerate(lengths.tolist()):
        # Nothing was left out of those whose units all fit into one frame.
        short = [h for h in found[row].nbest if len(h.ids) <= 2]
        assert len(short) == 1 + 4 + 16
        for hypothesis in short:
            labels = torch.tensor([hypothesis.ids], dtype=torch.int64).reshape(1, -1)
            decoder_out = model.decoder(torch.cat([torch.zeros(1, 1, dtype=torch.int64), labels], 1))
            logits = model.joiner(encoder_out[row, None, :length, None], decoder_out[:, None])
            boundary = torch.tensor([[0, 0, labels.shape[1], length]])
            loss = rnnt_loss(logits, labels, 0, boundary=boundary, reduction="none")
            assert hypothesis.score == pytest.approx(-loss.item(), abs=1e-4)


def test_a_frame_of_several_units_is_what_the_modified_search_cannot_write():
    frames = torch.full((1, 2, 3), -5.0)
    by_last = torch.full((3, 3), -5.0)
    by_last[0, 1] = by_last[1, 2] = by_last[2, 0] = 5.0  # 1, then 2, then nothing more
    model, lengths = TableModel(by_last), torch.tensor([1])
    assert modified_beam_search(model, frames, lengths)[0].ids == [1]
    found = lattice_beam_search(model, frames, lengths, max_units_per_frame=2)[0]
    assert found.ids == [1, 2] and found.timestamps == [0, 0]


def test_fusion_in_the_lattice_is_the_sum_with_equation_11(tmp_path):
    units = CharacterUnits(" AB")
    train_ngram([sentence.split() for sentence in ("A B", "B A B", "AA")], 2, tmp_path / "lm.arpa")
    lm, config = load_ngram_model(tmp_path / "lm.arpa"), WordScoreConfig(0.6, 1.2, -1.0)
    generator = torch.Generator().manual_seed(8)
    by_last, frames = torch.randn(4, 4, generator=generator), torch.randn(1, 2, 4, generator=generator)
    found = lattice_beam_search(
        TableModel(by_last), frames, torch.tensor([2]), 130, 2, scorer=WordScorer(lm, units, config)
    )[0]
    expected = {}
    for ids, score in lattice_totals(frames[0], by_last, 2).items():
        words = "".join(units.unit(unit) for unit in ids).split(" ")
        words = words[:-1] if words[-1] == "" else words  # a space at the end
        if "" not in words and all(word in lm.word_ids for word in words):
            expected[ids] = score + 0.6 * lm.log_prob(words) + 1.2 * len(words)
    assert len(expected) > 3 and tuple(found.ids) == max(expected, key=expected.get)
    scores = {tuple(h.ids): h.score for h in found.nbest}
    assert {ids: scores[ids] for ids in expected} == pytest.approx(expected, abs=1e-3)


def two_heads(seed=4):
    torch.manual_seed(seed)
    config = TransducerConfig(decoder_dim=16, joiner_dim=16, ctc_loss_scale=1.0)
    model = AsrModel(None, config, 4, encoder_dim=8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model.eval()


@pytest.mark.parametrize("max_units", [1, 2])
def test_the_ctc_head_chooses_from_the_final_beam(max_units):
    model, units = two_heads(), CharacterUnits(" AB")
    encoder_out, lengths = _batch([4, 3])
    plain = SearchConfig(beam=30, max_units_per_frame=max_units)
    without = Searcher(model, units, plain)(encoder_out, lengths)
    found = Searcher(model, units, SearchConfig(beam=30, max_units_per_frame=max_units, ctc_weight=0.7))(
        encoder_out, lengths
    )
    log_probs = model.ctc_log_probs(encoder_out).double()
    for row, length in enumerate(lengths.tolist()):
        of_ctc: dict[tuple, list[float]] = {}
        for path in itertools.product(range(4), repeat=length):
            ids = tuple(unit for unit, _ in itertools.groupby(path) if unit)
            of_ctc.setdefault(ids, []).append(sum(log_probs[row, t, u].item() for t, u in enumerate(path)))
        expected = {
            tuple(h.ids): h.score + 0.7 * float(torch.tensor(of_ctc[tuple(h.ids)]).logsumexp(0))
            for h in without[row].nbest
            if tuple(h.ids) in of_ctc
        }
        scores = {tuple(h.ids): h.score for h in found[row].nbest}
        assert {ids: scores[ids] for ids in expected} == pytest.approx(expected, abs=1e-3)
        # CTC cannot write more units than frames.
        assert all(scores[ids] == -math.inf for ids in scores.keys() - expected.keys())
        assert tuple(found[row].ids) == max(expected, key=expected.get)


def test_what_does_not_go_together_is_said():
    units = CharacterUnits(" AB")
    with pytest.raises(ValueError, match=r"trained with one head: transducer"):
        Searcher(_model(4), units, SearchConfig(ctc_weight=0.5))
    with pytest.raises(ValueError, match=r"search.head is ctc"):
        Searcher(two_heads(), units, SearchConfig(head="ctc", ctc_weight=0.5))
    with pytest.raises(ValueError, match=r"max_units_per_frame must be at least 1, it is 0"):
        SearchConfig(max_units_per_frame=0)
    with pytest.raises(ValueError, match=r"ctc_weight must not be negative, it is -1"):
        SearchConfig(ctc_weight=-1.0)
    with pytest.raises(ValueError, match=r"greedy search cannot use search.ctc_weight"):
        SearchConfig("greedy", ctc_weight=1.0)


def test_broken_numbers_are_refused():
    model = _model()
    encoder_out, lengths = _batch([5, 4])
    encoder_out[1, 2, 3] = math.nan
    for search in (greedy_search_batch, modified_beam_search, lattice_beam_search):
        with pytest.raises(ValueError, match="holds NaN: the model or its input is broken"):
            search(model, encoder_out, lengths)


@pytest.mark.parametrize(
    ("heads", "options", "votes", "words"),
    [
        ("both", {}, True, "beam 4, 3 units per frame"),
        ("both", {"head": "ctc"}, False, "beam 4, ctc"),
        ("both", {"method": "greedy"}, False, "greedy, 3 units per frame"),
        ("transducer", {}, False, "beam 4, 3 units per frame"),
        ("ctc", {}, False, "beam 4"),
    ],
)
def test_one_configuration_of_search_and_tuning_serves_every_model(heads, options, votes, words):
    losses = {"both": {"ctc_loss_scale": 1.0}, "ctc": {"ctc_loss_scale": 1.0, "transducer_loss_scale": 0.0}}
    config = TransducerConfig(decoder_dim=16, joiner_dim=16, **losses.get(heads, {}))
    model = AsrModel(None, config, 4, encoder_dim=8).eval()
    searcher = Searcher(model, CharacterUnits(" AB"), SearchConfig(max_units_per_frame=3, **options))
    assert searcher.ctc_may_vote is votes and str(searcher.config) == words
    tried = grid(searcher.config, TuneConfig("dev", ctc_weights=[0.0, 0.5]), searcher.ctc_may_vote)
    assert [candidate.ctc_weight for candidate in tried] == ([0.0, 0.5] if votes else [0.0])
    for candidate in tried:
        Searcher(model, CharacterUnits(" AB"), candidate)(*_batch([4, 3]))
