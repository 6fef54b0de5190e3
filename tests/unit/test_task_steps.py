"""What the tasks do around a step: the clock of the loss weights, and the limiter of gradients."""

from types import SimpleNamespace

import pytest
import torch

from spear_lib.asr.model import AsrModel, TransducerConfig
from spear_lib.asr.task import AsrTask
from spear_lib.asr.units import character_units
from spear_lib.data.batch import Batch
from spear_lib.pretraining.task import PretrainingTask
from spear_lib.tagging.task import TaggingTask
from spear_lib.training.task import StepClock


class Encoder(torch.nn.Module):
    """Its frames are its audio, eight samples each; notes what it is asked to do."""

    output_dim, frame_rate, config = 8, 50.0, None

    def __init__(self) -> None:
        super().__init__()
        self.limited = 0

    def begin_step(self, *_) -> None:
        pass

    def output_length(self, num_samples: int) -> int:
        return num_samples // 8

    def limit_gradients(self) -> None:
        self.limited += 1


@pytest.mark.parametrize("kind", [AsrTask, PretrainingTask, TaggingTask])
def test_every_task_limits_the_gradients_of_its_encoder_after_backward(kind):
    task, encoder = kind.__new__(kind), Encoder()
    task.model = SimpleNamespace(encoder=encoder)
    task.after_backward()
    assert encoder.limited == 1


def test_the_weights_of_the_transducer_losses_count_steps_from_0():
    units = character_units()
    config = TransducerConfig(decoder_dim=8, joiner_dim=8, warm_step=10)
    model = AsrModel(Encoder(), config, units.vocab_size, encoder_dim=8)
    task = AsrTask(model, units, valid_wer=False)
    output = SimpleNamespace(
        encoder_out=torch.randn(2, 12, 8, generator=torch.Generator().manual_seed(0)),
        lengths=torch.tensor([12, 12]),
    )
    task.augmented = lambda *_: output
    batch = Batch(
        ids=["a", "b"],
        keys=torch.tensor([1, 2]),
        waveforms=torch.zeros(2, 96),
        num_samples=torch.tensor([96, 96]),
        texts=["A", "BC"],
    )
    for step, (simple, pruned) in {1: (1.0, 0.1), 6: (0.75, 0.55), 11: (0.5, 1.0), 50: (0.5, 1.0)}.items():
        task.begin_step(batch, StepClock(step, 0.0, 0.0, 0, 1))
        result = task.compute(batch)
        expected = simple * result.stats["simple_loss"][0] + pruned * result.stats["pruned_loss"][0]
        torch.testing.assert_close(result.loss_sum.detach(), expected, msg=str(step))
