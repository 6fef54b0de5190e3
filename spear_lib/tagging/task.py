"""Fine-tuning for audio tagging as a task of the one training loop (paper §5.1; spec evaluation §6).

Legend: B clips, N samples of audio, T encoder frames, K classes.
"""

from typing import Any

import torch
import torch.nn.functional as F

from spear_lib.config import to_dict
from spear_lib.data.batch import Batch
from spear_lib.features.spec_augment import SpecAugmentConfig
from spear_lib.tagging.description import DESCRIPTION
from spear_lib.tagging.metrics import ScoreCounts
from spear_lib.tagging.model import TaggingModel
from spear_lib.training.augmented_encoder import AugmentedEncoder
from spear_lib.training.task import Stats, StepClock, StepResult, Task

_SCORES = "scores"  # the name of the counts that mAP is made of, in the statistics of validation


class TaggingTask(Task[Batch]):
    """Binary cross-entropy of every class, summed over classes and clips (reference).

    In training the features are augmented (SpecAugment, on the device) and labels may be mixtures; in
    validation nothing is augmented, and the mean average precision of the set is reported.

    Args:
      model: encoder and linear layer.
      classes: {label: name} in the order of the model's outputs.
      spec_augment_config: SpecAugment of training.

    Raises:
      ValueError: the model has another number of classes.
    """

    description = DESCRIPTION

    def __init__(
        self,
        model: TaggingModel,
        classes: dict[str, str],
        spec_augment_config: SpecAugmentConfig | None = None,
    ) -> None:
        if model.num_classes != len(classes):
            raise ValueError(
                f"the model has {model.num_classes} outputs and the class list {len(classes)} classes: "
                "give the class list that the model was trained with"
            )
        self.model, self.classes = model, classes
        self.augmented = AugmentedEncoder(spec_augment_config)

    def begin_step(self, batch: Batch, clock: StepClock) -> None:
        self.model.encoder.begin_step(clock.batch_count, clock.step_key, batch.keys, clock.gradient_scale)

    def after_backward(self) -> None:
        self.model.encoder.limit_gradients()

    def compute(self, batch: Batch) -> StepResult:
        model = self.model
        if batch.labels is None:
            raise ValueError("the batch has no labels; tagging needs cuts with labels (TaggingData)")
        output = self.augmented(model.encoder, batch, model.training)
        with torch.autocast(batch.waveforms.device.type, enabled=False):
            frames = model.frame_logits(output.encoder_out, batch.keys)
            logits = model.clip_logits(frames, output.lengths)
            loss = F.binary_cross_entropy_with_logits(logits, batch.labels, reduction="sum")
        decisions = float(batch.labels.numel())
        stats: Stats = {"loss": (loss.detach(), decisions)}
        if not model.training:
            stats[_SCORES] = ScoreCounts.of(logits, batch.labels)
        return StepResult(loss, decisions, stats)

    def summarise(self, totals: Stats) -> dict[str, float]:
        totals = dict(totals)
        scores = totals.pop(_SCORES, None)
        values = super().summarise(totals)
        if scores is not None:
            values["map"] = ScoreCounts.mean_average_precision(*scores)
        return values

    def describe(self, values: dict[str, float]) -> str:
        parts = [f"loss {values['loss']:.5f} (nats per clip and class)"]
        if "map" in values:
            parts.append(f"mAP {values['map']:.2f} %")
        return ", ".join(parts)

    def facts(self) -> dict[str, object]:
        model = self.model
        encoder = sum(parameter.numel() for parameter in model.encoder.parameters())
        head = sum(parameter.numel() for parameter in model.audio_tagging_proj.parameters())
        return {
            "encoder": f"{encoder:,} parameters, one frame every {1000 / model.encoder.frame_rate:g} ms",
            "head": f"{head:,} parameters: {model.num_classes} classes, pooling {model.config.pooling}",
        }

    def identity(self) -> dict[str, Any]:
        return {
            "encoder_config": to_dict(self.model.encoder.config),
            "tagging_config": to_dict(self.model.config),
            "classes": dict(self.classes),
        }
