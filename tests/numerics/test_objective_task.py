"""The pre-training task: what is scored, and that nothing depends on batch mates or padding."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from spear_lib.data.batch import Batch
from spear_lib.encoders.zipformer import SpearEncoder, ZipformerConfig
from spear_lib.features.fbank import fbank_length
from spear_lib.features.masking import channel_mask, student_mask, time_mask
from spear_lib.pretraining import ObjectiveConfig, PretrainingModel, PretrainingTask, TokenField
from spear_lib.runtime import keyed_random
from spear_lib.training.task import StepClock

FIELD = TokenField("tones", 3, 7, 50.0, 12.5, "quantiser", "teacher")
SLOW = TokenField("slow", 2, 5, 25.0, 15.0, "quantiser-2", "teacher-2")


def tiny_encoder(**changes) -> SpearEncoder:
    torch.manual_seed(0)
    config = ZipformerConfig(
        frontend_channels=(2, 4, 4), downsampling_factor=(1, 2), num_encoder_layers=1, encoder_dim=16,
        feedforward_dim=24, encoder_unmasked_dim=12, num_heads=2, query_head_dim=4, value_head_dim=4,
        pos_dim=8, cnn_module_kernel=5, **changes,
    )  # fmt: skip
    return SpearEncoder(config)


def make_task(fields=(FIELD,), **options) -> PretrainingTask:
    encoder = tiny_encoder(**options.pop("encoder", {}))
    return PretrainingTask(PretrainingModel(encoder, list(fields)), list(fields), ObjectiveConfig(**options))


def make_batch(num_samples: list[int], masked: bool = True) -> Batch:
    ids = [f"utterance-{size}" for size in num_samples]
    sizes = torch.tensor(num_samples)
    keys = keyed_random.keys("batch", ids=ids)
    waveforms = torch.zeros(len(ids), max(num_samples))
    tokens = torch.full((len(ids), (max(num_samples) - 400) // 320 + 1, 3), -100)
    for row, size in enumerate(num_samples):
        waveforms[row, :size] = keyed_random.uniform(keys[row], 1, size) - 0.5
        frames = (size - 400) // 320 + 1
        tokens[row, :frames] = (keyed_random.uniform(keys[row], 2, frames * 3) * 7).long().view(frames, 3)
    batch = Batch(ids, keys, waveforms, sizes, tokens={"tones": tokens, "slow": tokens[:, ::2, :2] % 5})
    if masked:
        lengths = fbank_length(sizes)
        batch.time_mask = time_mask(lengths, keys, 0.5, 10, 2, max_frames=int(lengths.max()))
        batch.channel_mask = channel_mask(keys, 0.25, 15)
    return batch


def test_sum_over_a_batch_is_the_sum_over_its_utterances():
    task = make_task()
    task.model.eval()
    sizes = [16000, 9000, 5000]
    with torch.no_grad():
        together = task.compute(make_batch(sizes))
        alone = [task.compute(make_batch([size])) for size in sizes]
    assert float(together.loss_sum) == pytest.approx(sum(float(r.loss_sum) for r in alone), rel=1e-5)
    for name, (_, count) in together.stats.items():
        if not name.endswith(("unigram_entropy", "_codebook")):
            assert float(count) == sum(float(r.stats[name][1]) for r in alone), name


def test_every_valid_frame_is_scored_once_and_no_padding():
    task = make_task()
    sizes = [16000, 5000]
    frames = sum(task.model.encoder.output_length(size) for size in sizes)
    task.model.eval()
    with torch.no_grad():
        stats = task.compute(make_batch(sizes)).stats
    assert int(stats["loss"][1]) == frames
    assert int(stats["masked_loss"][1]) + int(stats["unmasked_loss"][1]) == 3 * frames
    assert 0.2 < float(stats["masked_loss"][1]) / (3 * frames) < 0.7
    assert float(stats["frames_without_target"][0]) == 0


def test_validation_of_both_domains_tells_them_apart():
    task = make_task()
    task.model.eval()
    sizes = [16000, 9000, 5000]
    batch = make_batch(sizes)
    batch.audio = torch.tensor([False, True, False])
    names = {f"{which}_{what}" for which in ("masked", "unmasked") for what in ("loss", "accuracy")}
    names |= {f"{name}_codebook_{index:02d}" for name in names for index in range(3)}
    names |= {"unigram_entropy", "chance", *(f"unigram_entropy_codebook_{index:02d}" for index in range(3))}
    with torch.no_grad():
        values = task.summarise(task.compute(batch).stats)
        for domain, row in (("audio", slice(1, 2)), ("speech", slice(0, 3, 2))):
            alone = task.summarise(task.compute(make_batch(sizes[row])).stats)
            assert names <= set(alone) and not any("/" in name for name in alone)
            for name in names:
                assert values[f"{domain}/{name}"] == pytest.approx(alone[name], abs=1e-5), (domain, name)
    for name in ("masked_loss", "unmasked_accuracy", "unigram_entropy"):  # the mean of the codebooks
        per_codebook = [values[f"{name}_codebook_{index:02d}"] for index in range(3)]
        assert values[name] == pytest.approx(sum(per_codebook) / 3, abs=1e-5)
    assert values["chance"] == pytest.approx(math.log(7))
    line = task.describe(values)
    assert line.count("(chance 1.946, unigram ") == 3 and "; speech/masked_loss " in line


def test_training_counts_no_codebooks():
    task = make_task()
    task.begin_step(make_batch([8000]), StepClock(1, 100.0, 0.0, 7))
    stats = task.compute(make_batch([8000])).stats
    assert not any("codebook" in name or "/" in name or "unigram" in name for name in stats)


def test_without_masks_nothing_counts_as_masked():
    task = make_task()
    task.model.eval()
    with torch.no_grad():
        result = task.compute(make_batch([8000], masked=False))
    assert float(result.stats["masked_loss"][1]) == 0
    assert "masked_loss" not in task.summarise(result.stats)
    assert task.summarise(result.stats)["unmasked_loss"] > 0


@pytest.mark.parametrize("alpha, trains", [(0.5, True), (1.0, True), (0.0, False)])
def test_all_frames_masked(alpha, trains):
    """Nothing of the input is left: the loss is that of guessing from nothing, its gradient finite."""
    task = make_task(alpha=alpha)
    batch = make_batch([8000, 5000])
    batch.time_mask = torch.ones_like(batch.time_mask)
    task.begin_step(batch, StepClock(1, 100.0, 0.0, 7))
    result = task.compute(batch)
    result.loss_sum.backward()
    values = task.summarise(result.stats)
    assert values["masked_loss"] > 0 and "unmasked_loss" not in values
    gradients = [p.grad for p in task.model.parameters() if p.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert (float(result.loss_sum.detach()) > 0) == trains
    assert any(gradient.any() for gradient in gradients) == trains


def test_masked_frames_are_those_of_the_student_mask_and_their_targets_those_in_time():
    class Stub(nn.Module):
        """Tells frame numbers, so that the head sees which frame it is asked about."""

        output_dim, frame_rate, first_frame_center_ms = 1, 50, 45.0
        config = ZipformerConfig()

        def extract(self, waveforms, lengths, time_mask, channel_mask):
            frames = (fbank_length(waveforms.shape[1]) - 7) // 2
            out = torch.arange(frames, dtype=torch.float32).expand(len(waveforms), frames).unsqueeze(-1)
            lengths = (fbank_length(lengths) - 7) // 2
            return SimpleNamespace(encoder_out=out, lengths=lengths, hidden_states=[])

        def masked_frames(self, time_mask, num_frames):
            return student_mask(time_mask, num_frames, self.frame_rate)

    seen = {}
    task = PretrainingTask(PretrainingModel(Stub(), [FIELD]), [FIELD])
    head = task.model.heads["tones"]

    def record(module, inputs, output):
        seen["frames"], seen["targets"] = inputs[0][:, 0].long(), inputs[1]

    head.register_forward_hook(record)
    batch = make_batch([16000])
    batch.time_mask = torch.zeros(1, 100, dtype=torch.bool)
    batch.time_mask[0, 20:30] = True  # covers at least 5 of 9 frames of student frames 8..12
    task.model.eval()
    stats = task.compute(batch).stats
    assert seen["frames"].tolist() == list(range(46))
    assert torch.equal(seen["targets"], batch.tokens["tones"][0, 2:48])
    assert int(stats["masked_loss"][1]) == 3 * 5


def test_25_hz_student_predicts_two_teacher_frames():
    task = make_task(encoder={"output_downsampling_factor": 2})
    assert task.model.heads["tones"].num_codebooks == 6
    task.model.eval()
    with torch.no_grad():
        stats = task.compute(make_batch([16000])).stats
    assert int(stats["unmasked_loss"][1] + stats["masked_loss"][1]) in (
        6 * 23,
        6 * 23 - 3,
    )  # the second half of the last pair may be missing


def test_repeats_of_the_slow_teacher_and_no_missing_frames():
    task = make_task(fields=[SLOW])
    task.model.eval()
    with torch.no_grad():
        stats = task.compute(make_batch([16000, 7000])).stats
    assert float(stats["frames_without_target"][0]) == 0


def test_training_draws_repeat_and_every_parameter_gets_a_gradient():
    batch = make_batch([16000, 9000])
    gradients = []
    for _ in range(2):
        task = make_task()
        task.model.train()
        task.begin_step(batch, StepClock(1, 100.0, 0.0, 7))
        task.compute(batch).loss_sum.backward()
        gradients.append(
            {name: p.grad.clone() for name, p in task.model.named_parameters() if p.requires_grad}
        )
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_wrong_fields_are_explained():
    model = PretrainingModel(tiny_encoder(), [FIELD, SLOW])
    with pytest.raises(ValueError, match=r"single predicts one token field; .* is \['tones', 'slow'\]"):
        PretrainingTask(model, [FIELD, SLOW])
    with pytest.raises(ValueError, match="joint predicts two: the speech teacher's, then the audio's"):
        PretrainingTask(model, [FIELD], ObjectiveConfig("joint"))
    with pytest.raises(ValueError, match="needs at least one token field"):
        PretrainingModel(tiny_encoder(), [])


def test_log_line_and_identity():
    task = make_task()
    line = task.describe(
        {"masked_loss": 1.5, "unmasked_loss": 1.2, "unigram_entropy": 1.8, "masked_accuracy": 0.25}
    )
    assert (
        line == "masked_loss 1.500, unmasked_loss 1.200 (chance 1.946, unigram 1.800), masked accuracy 25.0 %"
    )
    assert task.identity()["quantizer_ids"] == {"tones": "quantiser"}
    assert task.identity()["encoder_config"]["encoder_dim"] == [16]
