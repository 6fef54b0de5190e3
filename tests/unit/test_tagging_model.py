"""The head of the tagging model: pooling, dropout, events."""

import numpy as np
import pytest
import torch
from torch import nn

from spear_lib.tagging.events import EventConfig, find_events
from spear_lib.tagging.inference import Tags, join_windows
from spear_lib.tagging.model import TaggingConfig, TaggingModel, pool


class Encoder(nn.Module):
    output_dim = 6


def test_linear_softmax_is_the_formula():
    torch.manual_seed(0)
    frames, lengths = 4 * torch.randn(3, 9, 5, dtype=torch.float64), torch.tensor([9, 4, 1])
    result = pool(frames, lengths, "linear_softmax").sigmoid()
    for row, length in enumerate(lengths.tolist()):
        probability = frames[row, :length].sigmoid()
        expected = (probability**2).sum(0) / probability.sum(0)
        torch.testing.assert_close(result[row], expected, rtol=1e-12, atol=1e-12)


def test_mean_is_over_valid_frames():
    torch.manual_seed(0)
    frames, lengths = torch.randn(2, 7, 3), torch.tensor([7, 2])
    result = pool(frames, lengths, "mean")
    torch.testing.assert_close(result, torch.stack([frames[0].mean(0), frames[1, :2].mean(0)]))


@pytest.mark.parametrize("pooling", ["mean", "linear_softmax"])
def test_padding_has_no_influence_and_no_gradient(pooling):
    frames = torch.randn(2, 6, 3, requires_grad=True)
    lengths = torch.tensor([6, 2])
    pool(frames, lengths, pooling).sum().backward()
    assert (frames.grad[1, 2:] == 0).all() and (frames.grad[0] != 0).all()
    damaged = frames.detach().clone()
    damaged[1, 2:] = 1e9
    torch.testing.assert_close(pool(damaged, lengths, pooling), pool(frames.detach(), lengths, pooling))


@pytest.mark.parametrize("value", [-200.0, 200.0])
def test_linear_softmax_survives_extreme_logits(value):
    frames = torch.full((1, 4, 1), value, requires_grad=True)
    result = pool(frames, torch.tensor([4]), "linear_softmax")
    result.sum().backward()
    assert result.item() == pytest.approx(value) and torch.isfinite(frames.grad).all()


def test_dropout_belongs_to_the_clip():
    torch.manual_seed(0)
    model = TaggingModel(Encoder(), TaggingConfig(dropout=0.4), 3).train()
    output, keys = torch.randn(2, 5, 6), torch.tensor([11, 12])
    both = model.frame_logits(output, keys)
    torch.testing.assert_close(model.frame_logits(output[1:], keys[1:]), both[1:])
    assert not torch.equal(model.frame_logits(output, keys + 5), both)
    assert torch.equal(model.eval().frame_logits(output, keys), model.train().frame_logits(output))


def test_dropout_keeps_the_mean():
    """What is kept is divided by the share that is kept: 0 or x / (1 - p)."""
    model = TaggingModel(Encoder(), TaggingConfig(dropout=0.4), 6).train()
    nn.init.eye_(model.audio_tagging_proj.weight)
    nn.init.zeros_(model.audio_tagging_proj.bias)
    logits = model.frame_logits(torch.full((500, 4, 6), 3.0), torch.arange(500))
    assert ((logits == 0) | torch.isclose(logits, torch.tensor(5.0))).all()
    assert logits.mean().item() == pytest.approx(3.0, abs=0.1)


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match="model.pooling is 'max': use mean or linear_softmax"):
        TaggingConfig(pooling="max")
    with pytest.raises(ValueError, match=r"model.dropout is 1.0"):
        TaggingConfig(dropout=1.0)
    with pytest.raises(ValueError, match="num_classes is 0"):
        TaggingModel(Encoder(), TaggingConfig(), 0)
    with pytest.raises(ValueError, match="events.threshold is 1.0"):
        EventConfig(threshold=1.0)
    with pytest.raises(ValueError, match="events.median_seconds is -1.0"):
        EventConfig(median_seconds=-1.0)


def tags_of(probabilities: list[float], step: float = 0.1) -> Tags:
    frames = np.array(probabilities)[:, None]
    return Tags(frames.max(0), frames, 0.05 + step * np.arange(len(frames)))


def test_events_are_runs_of_frames():
    events = find_events(
        tags_of([0.1, 0.9, 0.8, 0.2, 0.6, 0.1, 0.9]), EventConfig(median_seconds=0, min_seconds=0.15)
    )
    assert [(event.start, event.end) for event in events] == [(pytest.approx(0.1), pytest.approx(0.3))]
    assert events[0].probability == 0.9
    events = find_events(tags_of([0.1, 0.9, 0.8, 0.2, 0.6]), EventConfig(median_seconds=0, min_seconds=0))
    assert [round(event.end - event.start, 6) for event in events] == [0.2, 0.1]


def test_the_median_filter_closes_gaps():
    heard = tags_of([0.1, 0.1, 0.9, 0.9, 0.2, 0.9, 0.9, 0.1, 0.1])
    (event,) = find_events(heard, EventConfig(median_seconds=0.3))
    assert (event.start, event.end) == (pytest.approx(0.2), pytest.approx(0.7))
    assert not find_events(tags_of([0.1, 0.1, 0.9, 0.1]), EventConfig(median_seconds=0.3))
    assert not find_events(Tags(np.zeros(2), np.zeros((0, 2)), np.zeros(0)), EventConfig())


def test_windows_join_at_the_middle_of_their_overlap():
    parts = [tags_of([0.1] * 10), tags_of([0.9] * 10)]
    joined = join_windows(parts, [(0.0, 1.0), (0.6, 1.6)])
    assert joined.clip.tolist() == [0.9]
    np.testing.assert_allclose(np.diff(joined.times), 0.1, atol=1e-9)
    assert joined.frames[:, 0].tolist() == [0.1] * 8 + [0.9] * 8
