"""Joint, disjoint and asymmetrical pre-training against the paper's formulas in float64, with gradients."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from spear_lib.data.batch import Batch
from spear_lib.features.masking import student_mask
from spear_lib.pretraining import ObjectiveConfig, PretrainingModel, PretrainingTask, TokenField
from spear_lib.runtime import keyed_random

FIELDS = [
    TokenField("wavlm_cb16", 16, 6, 50.0, 12.5, "quantiser-s", "teacher-s"),
    TokenField("dasheng_cb8", 8, 5, 25.0, 16.0, "quantiser-a", "teacher-a"),
]
NAMES = [field.name for field in FIELDS]
LENGTHS, AUDIO = [23, 14, 19], [False, True, True]
WIDTH = 4


class Frames(nn.Module):
    """An encoder whose output is a leaf, so that the loss's gradient can be read off it."""

    output_dim = WIDTH

    def __init__(self, factor: int = 1) -> None:
        super().__init__()
        self.frame_rate, self.first_frame_center_ms = 50 // factor, {1: 45.0, 2: 55.0}[factor]
        self.lengths = torch.tensor(LENGTHS)
        self.output = nn.Parameter(torch.randn(len(LENGTHS), max(LENGTHS), WIDTH))

    def extract(self, waveforms, lengths, time_mask, channel_mask):
        return SimpleNamespace(encoder_out=self.output, lengths=self.lengths)

    def masked_frames(self, time_mask, num_frames):
        return student_mask(time_mask, num_frames, self.frame_rate)


def make(strategy="joint", factor=1, **options) -> PretrainingTask:
    torch.manual_seed(3)
    model = PretrainingModel(Frames(factor), FIELDS)
    return PretrainingTask(model, FIELDS, ObjectiveConfig(strategy, **options))


def make_batch(factor=1, audio=AUDIO) -> Batch:
    """Tokens of both teachers on every cut: the strategy has to leave out what it does not want."""
    torch.manual_seed(5)
    ids = [f"cut-{index}" for index in range(len(LENGTHS))]
    batch = Batch(ids, keyed_random.keys("strategies", ids=ids), torch.zeros(3, 1), torch.tensor(LENGTHS))
    for field in FIELDS:
        size = round(max(LENGTHS) * factor * field.frame_rate / 50)
        tokens = torch.randint(field.codebook_size, (len(ids), size, field.num_codebooks))
        for row, length in enumerate(LENGTHS):
            tokens[row, round(length * factor * field.frame_rate / 50) :] = -100
        batch.tokens[field.name] = tokens
    batch.time_mask = torch.rand(len(ids), max(LENGTHS) * 2 * factor + 7) < 0.5
    batch.audio = torch.tensor(audio)
    return batch


def expected_loss(task: PretrainingTask, batch: Batch, factor: int, objective: ObjectiveConfig):
    """The paper's sums, cut by cut and frame by frame, in float64; differentiable in encoder and heads."""
    encoder = task.model.encoder
    hidden = encoder.output.double()
    masked = encoder.masked_frames(batch.time_mask, hidden.shape[1])

    def single_teacher(field: TokenField, cut: int):
        head, tokens = task.model.heads[field.name], batch.tokens[field.name][cut]
        weight, bias = head.weight.double(), head.bias.double()
        hop, joined = 1000 / field.frame_rate, max(1, round(field.frame_rate / encoder.frame_rate))
        total = hidden.new_zeros(())
        for frame in range(LENGTHS[cut]):
            center = encoder.first_frame_center_ms + frame * 1000 / encoder.frame_rate
            starts = range(-4, len(tokens) + 4)
            middle = [hop * (s + (joined - 1) / 2) + field.first_frame_center_ms for s in starts]
            first = min(starts, key=lambda s: (abs(middle[s + 4] - center), -s))
            share = 2 * objective.alpha if masked[cut, frame] else 2 * (1 - objective.alpha)
            for part in range(joined):
                for codebook in range(field.num_codebooks):
                    index = first + part
                    if not 0 <= index < len(tokens) or tokens[index, codebook] < 0:
                        continue
                    row = part * field.num_codebooks + codebook
                    logits = weight[row] @ hidden[cut, frame] + bias[row]
                    nats = -logits.log_softmax(0)[tokens[index, codebook]]
                    total = total + share * nats / (joined * field.num_codebooks)
        return total

    total = hidden.new_zeros(())
    for cut, audio in enumerate(batch.audio.tolist()):
        speech_loss, audio_loss = (single_teacher(field, cut) for field in FIELDS)
        scaled = objective.audio_weight * audio_loss
        if objective.strategy == "joint":
            total = total + speech_loss + scaled
        elif objective.strategy == "disjoint":
            total = total + (scaled if audio else speech_loss)
        else:
            total = total + (speech_loss + scaled if audio else speech_loss)
    return total


def gradients(task: PretrainingTask, loss) -> dict[str, torch.Tensor]:
    task.model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in task.model.named_parameters()}


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("strategy", ["joint", "disjoint", "asymmetrical"])
def test_loss_and_gradients_are_those_of_the_paper(strategy, factor):
    task, batch = make(strategy, factor, alpha=0.3, audio_weight=0.2), make_batch(factor)
    result = task.compute(batch)
    expected = expected_loss(task, batch, factor, task.objective)
    assert result.loss_sum.item() == pytest.approx(expected.item(), rel=1e-5)
    ours, theirs = gradients(task, result.loss_sum), gradients(task, expected)
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], atol=2e-5, rtol=2e-5, msg=name)


def test_the_strategies_differ():
    losses = {s: make(s).compute(make_batch()).loss_sum.item() for s in ("joint", "disjoint", "asymmetrical")}
    assert losses["joint"] > losses["asymmetrical"] > losses["disjoint"] > 0


def test_gradients_come_from_the_intended_terms_alone():
    task = make("disjoint")
    got = gradients(task, task.compute(make_batch(audio=[False, False, False])).loss_sum)
    assert got["heads.dasheng_cb8.weight"].abs().sum() == 0 < got["heads.wavlm_cb16.weight"].abs().sum()
    batch = make_batch()
    both = gradients(task, task.compute(batch).loss_sum)["encoder.output"]
    with torch.no_grad():
        task.model.heads["dasheng_cb8"].weight.zero_()  # a flat audio head gives the encoder no gradient
    flat = gradients(task, task.compute(batch).loss_sum)["encoder.output"]
    assert torch.equal(both[0], flat[0]) and flat[0].abs().sum() > 0
    assert flat[1:].abs().sum() == 0 < both[1:].abs().sum()


@pytest.mark.parametrize("strategy", ["joint", "disjoint", "asymmetrical"])
@pytest.mark.parametrize("domain", [False, True])
def test_a_batch_of_one_domain_gives_every_head_a_gradient(strategy, domain):
    """What DDP needs without find_unused_parameters; the loader leaves out a field that no cut has."""
    task, batch = make(strategy), make_batch(audio=[domain] * 3)
    for term in task.terms:
        if ("audio" if domain else "speech") not in term.domains:
            del batch.tokens[term.field]
    got = gradients(task, task.compute(batch).loss_sum)
    for term in task.terms:
        scored = ("audio" if domain else "speech") in term.domains
        assert (got[f"heads.{term.field}.weight"].abs().sum() > 0) == scored, term


def test_statistics_by_teacher_and_domain_add_up():
    task, batch = make("asymmetrical"), make_batch()
    result = task.compute(batch)
    stats = result.stats
    assert float(stats["loss"][0]) == result.loss_sum.item() and int(stats["loss"][1]) == sum(LENGTHS)
    for field in NAMES:
        for name in ("masked_loss", "unmasked_loss", "masked_accuracy", "unmasked_accuracy"):
            whole, speech, audio = (stats[f"{field}/{part}{name}"] for part in ("", "speech/", "audio/"))
            assert float(whole[0]) == pytest.approx(float(speech[0] + audio[0]), rel=1e-5)
            assert int(whole[1]) == int(speech[1] + audio[1]) and int(audio[1]) > 0
            assert (int(speech[1]) > 0) == (field == NAMES[0])
    values = task.summarise(stats)
    assert "dasheng_cb8/audio/masked_loss" in values and "dasheng_cb8/speech/masked_loss" not in values
    line = task.describe(values)
    assert line.startswith(f"loss {values['loss']:.3f} per frame; wavlm_cb16/masked_loss ")
    assert f"(chance {math.log(6):.3f})" in line and f"(chance {math.log(5):.3f})" in line


def test_reported_loss_per_frame_is_that_of_eq_1():
    """Reweighting by alpha and lambda shows in the reported loss: it is what is minimised."""
    batch = make_batch()
    for options in ({"alpha": 1.0}, {"alpha": 0.0}, {"audio_weight": 3.0}):
        task = make("joint", **options)
        expected = expected_loss(task, batch, 1, task.objective)
        values = task.summarise(task.compute(batch).stats)
        assert values["loss"] == pytest.approx(expected.item() / sum(LENGTHS), rel=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_all_frames_masked_or_none(alpha):
    """An empty part of Eq. 1 is zero, not NaN, and is left out of the report."""
    for share in (0.0, 1.0):
        task, batch = make("joint", alpha=alpha), make_batch()
        batch.time_mask = torch.full_like(batch.time_mask, bool(share))
        result = task.compute(batch)
        got = gradients(task, result.loss_sum)
        assert all(gradient.isfinite().all() for gradient in got.values())
        counted = alpha if share else 1 - alpha
        assert (result.loss_sum.item() > 0) == (counted > 0)
        absent = "unmasked_loss" if share else "masked_loss"
        assert f"wavlm_cb16/{absent}" not in task.summarise(result.stats)


def test_a_token_mixed_cut_is_no_gap_in_the_other_teachers_tokens():
    task, batch = make("joint"), make_batch()
    batch.tokens[NAMES[1]][0] = -100  # what the loader does to the fields that are not mixed
    stats = task.compute(batch).stats
    assert int(stats[f"{NAMES[1]}/frames_without_target"][1]) <= LENGTHS[1] + LENGTHS[2]
    assert int(stats[f"{NAMES[1]}/speech/masked_loss"][1]) == 0


def test_which_cuts_need_which_tokens():
    needs = {
        s: ObjectiveConfig(s).fields_by_domain(["a", "b"]) for s in ("joint", "disjoint", "asymmetrical")
    }
    assert needs["joint"] == {"speech": ["a", "b"], "audio": ["a", "b"]}
    assert needs["disjoint"] == {"speech": ["a"], "audio": ["b"]}
    assert needs["asymmetrical"] == {"speech": ["a"], "audio": ["a", "b"]}
    assert ObjectiveConfig().fields_by_domain(["a"]) == {"speech": ["a"], "audio": ["a"]}
    with pytest.raises(ValueError, match=r"token_fields is \['a', 'a'\]"):
        ObjectiveConfig("joint").terms(["a", "a"])
