"""N-gram models: probabilities against kenlm's, sums to 1, counts and discounts by hand, damaged files."""

import gzip
import json
import math
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from spear_lib.asr.arpa import load_ngram_model, read_arpa
from spear_lib.asr.ngram_training import adjusted_counts, train_ngram

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "kenlm.json").read_text())
TEXT = [sentence.split() for sentence in GOLDEN["text"]]


@pytest.fixture(params=sorted(GOLDEN["models"]))
def witness(request, tmp_path):
    """(model read from kenlm's ARPA file, kenlm's numbers)."""
    facts = GOLDEN["models"][request.param]
    path = tmp_path / "lm.arpa"
    path.write_text(facts["arpa"])
    return load_ngram_model(path), facts


def test_every_word_has_the_probability_of_kenlm(witness):
    model, facts = witness
    assert model.order == facts["order"]
    for sentence, expected in facts["words"]:
        state = torch.tensor(model.begin_state)
        words = [*sentence.split(), "</s>"]
        assert len(words) == len(expected)
        for word, (log10, _) in zip(words, expected):
            gain, state = model.score(state, torch.tensor(model.word_id(word)))
            assert float(gain) == pytest.approx(log10 * math.log(10), abs=2e-5), (sentence, word)
    for sentence, perplexity in facts["perplexity"]:
        assert model.perplexity([sentence.split()]) == pytest.approx(perplexity, rel=1e-4)


def test_contexts_in_a_batch_are_those_one_by_one(witness):
    model, _ = witness
    states = torch.arange(model.num_contexts)[:, None].expand(-1, model.num_words)
    words = torch.arange(model.num_words).expand(model.num_contexts, -1)
    together, following = model.score(states, words)
    for node in range(0, model.num_contexts, 3):
        for word in range(model.num_words):
            alone, state = model.score(torch.tensor(node), torch.tensor(word))
            assert float(alone) == float(together[node, word]) and int(state) == int(following[node, word])
    assert int(following.max()) < model.num_contexts


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_probabilities_after_every_context_sum_to_one(order, tmp_path):
    sizes = train_ngram(TEXT, order, tmp_path / "lm.arpa.gz")
    model = load_ngram_model(tmp_path / "lm.arpa.gz")
    assert model.order == order == len(sizes) and sizes[0] == model.num_words
    assert sum(sizes) == len(model.keys)
    contexts = torch.arange(model.num_contexts)
    log_probs, _ = model.score(contexts[:, None], torch.arange(model.num_words)[None])
    log_probs[:, model.word_ids["<s>"]] = -math.inf  # never predicted
    torch.testing.assert_close(log_probs.exp().sum(1), torch.ones(len(contexts)), rtol=0, atol=2e-6)


def test_trained_file_is_what_kenlm_was_given(tmp_path):
    for order in (2, 3, 4):
        train_ngram(TEXT, order, tmp_path / "lm.arpa")
        assert (tmp_path / "lm.arpa").read_text() == GOLDEN["models"][f"trained {order}"]["arpa"]


def test_counts_by_hand():
    one, two = adjusted_counts([["A", "B"], ["B", "A", "B"], []], 2)
    assert two == {("<s>", "A"): 1, ("A", "B"): 2, ("B", "</s>"): 2, ("<s>", "B"): 1, ("B", "A"): 1}
    # Different words before: A after <s>, B; B after A, <s>; </s> after B.
    assert one == {("A",): 2, ("B",): 2, ("</s>",): 1}
    three = adjusted_counts([["A", "B"], ["B", "A", "B"]], 3)
    # At the sentence start nothing comes before: plain counts.
    assert three[1] == {("<s>", "A"): 1, ("<s>", "B"): 1, ("A", "B"): 2, ("B", "</s>"): 1, ("B", "A"): 1}


def test_probabilities_by_hand(tmp_path):
    """Too little text for discounts of its own: 0.5, 1 and 1.5 are taken from counts of 1, 2 and more."""
    train_ngram([["A", "B"], ["B", "A", "B"]], 2, tmp_path / "lm.arpa")
    model = read_arpa(tmp_path / "lm.arpa")
    left = Fraction(5, 2) / 5  # of 5 1-gram counts: 1 + 1 + 0.5
    uniform = left / 4  # A, B, </s>, <unk>
    unigrams = {
        "A": Fraction(1, 5) + uniform,
        "B": Fraction(1, 5) + uniform,
        "</s>": Fraction(1, 10) + uniform,
    }
    assert sum(unigrams.values()) + uniform == 1
    for context, word, expected in [
        ("<s>", "A", Fraction(1, 4) + Fraction(1, 2) * unigrams["A"]),
        ("A", "B", Fraction(1, 2) + Fraction(1, 2) * unigrams["B"]),
        ("A", "</s>", Fraction(1, 2) * unigrams["</s>"]),
        ("B", "</s>", Fraction(1, 3) + Fraction(1, 2) * unigrams["</s>"]),
    ]:
        found, _ = model.score(torch.tensor(model.word_ids[context] + 1), torch.tensor(model.word_id(word)))
        assert math.exp(float(found)) == pytest.approx(float(expected), rel=1e-5), (context, word)
    assert model.word_id("NEVER") == model.word_ids["<unk>"]


def test_more_words_of_context_fit_the_text_better(tmp_path):
    perplexities = []
    for order in (1, 2, 3):
        train_ngram(TEXT, order, tmp_path / "lm.arpa")
        perplexities.append(read_arpa(tmp_path / "lm.arpa").perplexity(TEXT))
    assert perplexities[0] > perplexities[1] > perplexities[2] > 1


def test_compiled_and_compressed_models_are_the_same(tmp_path):
    train_ngram(TEXT, 3, tmp_path / "lm.arpa")
    plain = load_ngram_model(tmp_path / "lm.arpa")
    train_ngram(TEXT, 3, tmp_path / "lm.arpa.gz")
    assert gzip.decompress((tmp_path / "lm.arpa.gz").read_bytes()) == (tmp_path / "lm.arpa").read_bytes()
    plain.save(tmp_path / "lm.npz")
    again = load_ngram_model(tmp_path / "lm.npz")
    assert again.words == plain.words and again.num_contexts == plain.num_contexts
    assert again.log_prob(TEXT[0]) == plain.log_prob(TEXT[0])
    for broken in ("lm.npz", "lm.arpa.gz"):
        content = (tmp_path / broken).read_bytes()
        (tmp_path / broken).write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match="damaged"):
            load_ngram_model(tmp_path / broken)


def test_wrong_text(tmp_path):
    with pytest.raises(ValueError, match="no text to train"):
        train_ngram([[], []], 2, tmp_path / "lm.arpa")
    with pytest.raises(ValueError, match="contains the word '</s>'"):
        train_ngram([["A", "</s>"]], 2, tmp_path / "lm.arpa")
    with pytest.raises(ValueError, match="order of the language model is 0"):
        train_ngram(TEXT, 0, tmp_path / "lm.arpa")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="lm.arpa does not exist: train a language model"):
        load_ngram_model(tmp_path / "lm.arpa")


GOOD = GOLDEN["models"]["hand"]["arpa"]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("\\data\\", "data", r"ends here|no \\data\\"),
        ("ngram 2=4", "ngram 3=4", "'ngram 2=COUNT' was expected"),
        ("ngram 2=4", "ngram 2=5", r"line 20: .*is no 2-gram"),
        ("ngram 2=4", "ngram 2=3", r"line 18: .*'\\\\3-grams:' was expected"),
        ("-0.4\tB </s>", "-0.4\tB", r"line 17: .*is no 2-gram"),
        ("-0.6\tA B", "no\tA B", r"line 16: 'no A B -0.33' is no 2-gram"),
        ("-0.6\tA B", "0.6\tA B", "a probability is at most 0"),
        ("-0.6\tA B", "nan\tA B", "finite"),
        ("-0.6\tA B", "-0.6\tA X", "the word 'X' is in no 1-gram"),
        ("-0.6\tA B", "-0.6\tA C", "the 3-gram 'A B C' is there, but the 2-gram before"),
        ("-0.35\tB C", "-0.35\tA B", "the 2-gram 'A B' is there twice"),
        ("-1.1\tC", "-1.1\tB", "the word 'B' is there twice"),
        ("-99\t<s>", "-99\t<t>", "is in no 1-gram|has no 1-gram <s>"),
        ("\\end\\", "", "it ends here"),
    ],
)
def test_damaged_files_say_where(tmp_path, before, after, message):
    assert before in GOOD
    path = tmp_path / "lm.arpa"
    path.write_text(GOOD.replace(before, after, 1))
    with pytest.raises(ValueError, match=message):
        read_arpa(path)


def test_unknown_words_without_an_entry(tmp_path):
    """As kenlm: log10 p = -100. The files of openslr 11 write the entry as <UNK>."""
    path = tmp_path / "lm.arpa"
    path.write_text(GOOD.replace("-1.2\t<unk>\n", "").replace("ngram 1=6", "ngram 1=5"))
    model = read_arpa(path)
    gain, state = model.score(torch.tensor(0), torch.tensor(model.word_id("X")))
    assert (
        float(gain) == pytest.approx(-100 * math.log(10), rel=1e-6) and int(state) == model.word_id("X") + 1
    )
    path.write_text(GOOD.replace("<unk>", "<UNK>"))
    assert read_arpa(path).words[0] == "<unk>"
