"""Self-distillation and masked prediction of teacher tokens, on one forward of one encoder (ours).

loss of a batch = distillation_weight * (sum over masked frames of SpidR's loss)
                + weight * (sum over frames of SPEAR's)
"""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from spear_lib.data.batch import Batch
from spear_lib.encoders.kinds import Encoder
from spear_lib.pretraining import ObjectiveConfig as TokenObjective
from spear_lib.pretraining import PretrainingTask, TokenField
from spear_lib.pretraining.task import prediction_heads
from spear_lib.self_distillation.objective import ObjectiveConfig
from spear_lib.self_distillation.task import SelfDistillationModel, SelfDistillationTask
from spear_lib.self_distillation.views import Seen
from spear_lib.training.task import Stats, StepResult

_PREFIX = "tokens/"


@dataclass(frozen=True)
class TokenTermConfig:
    """What the two objectives count."""

    weight: float = 1.0
    """Of the token loss, per frame (ours)."""
    distillation_weight: float = 1.0
    """Of the loss of self-distillation, per masked frame (ours)."""
    objective: TokenObjective = field(default_factory=TokenObjective)
    """Which teachers, masked and unmasked frames, alignment: as in pre-training."""

    def __post_init__(self) -> None:
        for name in ("weight", "distillation_weight"):
            if not getattr(self, name) > 0.0:
                raise ValueError(
                    f"tokens.{name} is {getattr(self, name)}: both weights are above 0. For one objective "
                    "alone leave data.token_fields empty, or use the command pretrain"
                )


class TokenDistillationModel(SelfDistillationModel):
    """As ``SelfDistillationModel``, with a prediction head per token field under ``token_heads.``."""

    def __init__(self, encoder: Encoder, objective: ObjectiveConfig, fields: list[TokenField]) -> None:
        super().__init__(encoder, objective)
        self.token_heads = prediction_heads(encoder, fields)
        for parameter in self.view.untrained():  # the token heads read the encoder's output
            parameter.requires_grad_(True)


class _TokenPart:
    """The same model as ``PretrainingTask`` wants to see it."""

    def __init__(self, model: TokenDistillationModel) -> None:
        self._model = model
        self.encoder: nn.Module = model.encoder
        self.heads: nn.ModuleDict = model.token_heads

    @property
    def training(self) -> bool:
        return self._model.training


class TokenDistillationTask(SelfDistillationTask):
    """Both objectives; what is reported of the tokens has the prefix ``tokens/``.

    Args:
      model: TokenDistillationModel of the same objective and fields.
      fields: the tokens to predict; of two teachers the speech teacher's first.
      terms: weights, and the objective of the tokens.
    """

    def __init__(
        self,
        model: TokenDistillationModel,
        objective: ObjectiveConfig,
        fields: list[TokenField],
        terms: TokenTermConfig,
    ) -> None:
        super().__init__(model, objective)
        self.terms = terms
        self.tokens = PretrainingTask(_TokenPart(model), fields, terms.objective)

    def losses(self, seen: Seen, batch: Batch) -> StepResult:
        distilled = super().losses(seen, batch)
        predicted = self.tokens.losses(seen.encoder_out.float(), seen.lengths, batch)
        terms = self.terms
        loss: Tensor = terms.distillation_weight * distilled.loss_sum + terms.weight * predicted.loss_sum
        stats = {**distilled.stats, **{_PREFIX + name: pair for name, pair in predicted.stats.items()}}
        stats["weighted"] = (loss.detach(), predicted.num_frames)
        return StepResult(loss, predicted.num_frames, stats)

    def summarise(self, totals: Stats) -> dict[str, float]:
        tokens = {name.removeprefix(_PREFIX): t for name, t in totals.items() if name.startswith(_PREFIX)}
        own = {name: pair for name, pair in totals.items() if not name.startswith(_PREFIX)}
        of_tokens = {_PREFIX + name: value for name, value in self.tokens.summarise(tokens).items()}
        return {**super().summarise(own), **of_tokens}

    def describe(self, values: dict[str, float]) -> str:
        tokens = {name.removeprefix(_PREFIX): v for name, v in values.items() if name.startswith(_PREFIX)}
        return f"{super().describe(values)}; tokens: {self.tokens.describe(tokens)}"

    def facts(self) -> dict[str, object]:
        terms = self.terms
        named = {name: fact for name, fact in self.tokens.facts().items() if name.startswith("tokens ")}
        weights = f"{terms.distillation_weight:g} x self-distillation + {terms.weight:g} x tokens"
        return {**super().facts(), **named, "loss": weights}

    def identity(self) -> dict[str, Any]:
        return {**self.tokens.identity(), **super().identity()}


def new_task(
    encoder: Encoder, objective: ObjectiveConfig, fields: list[TokenField], terms: TokenTermConfig
) -> SelfDistillationTask:
    """The task of a run: both objectives where there are token fields, else self-distillation alone."""
    if fields:
        return TokenDistillationTask(
            TokenDistillationModel(encoder, objective, fields), objective, fields, terms
        )
    return SelfDistillationTask(SelfDistillationModel(encoder, objective), objective)
