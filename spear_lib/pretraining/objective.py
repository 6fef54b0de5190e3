"""What pre-training minimises: the paper's Eq. 1 for one teacher, and its sum over two.

S and A are the losses on the tokens of the speech and of the audio teacher, lambda is ``audio_weight``:

    strategy        on a speech cut     on an audio cut
    single          S                   S              one token field, whatever its teacher
    joint           S + lambda A        S + lambda A
    disjoint        S                   lambda A
    asymmetrical    S                   S + lambda A

So the strategy only says on which cuts a teacher's tokens are predicted; the weights never change.
The three are defined in §3.2.2 of the paper, asymmetrical as L_dual; a disjoint audio cut keeps the factor
lambda there too (ours: so the two teachers weigh the same in all three). A token-mixed cut is scored on the
speech teacher's tokens alone, under joint too: the paper mixes those (B.2), and the audio tokens of the
mixture are not known (ours).

Within S and A the paper writes alpha * masked + (1 - alpha) * unmasked with alpha = 0.5 (Eq. 1 to 3); the
reference adds both with weight 1 (spec augment_and_mask §4). Here the weights are 2 alpha and 2 (1 - alpha):
Eq. 1 scaled by 2, so that alpha = 0.5 is the plain sum that clipping and logs were tuned for (ours).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from spear_lib.data.domains import AUDIO, DOMAINS, SPEECH
from spear_lib.training.task import Stats

# Strategy -> domains in which each token field is predicted, the speech teacher's first.
_DOMAINS_OF_FIELDS = {
    "single": [(SPEECH, AUDIO)],
    "joint": [(SPEECH, AUDIO), (SPEECH, AUDIO)],
    "disjoint": [(SPEECH,), (AUDIO,)],
    "asymmetrical": [(SPEECH, AUDIO), (AUDIO,)],
}


class Term(NamedTuple):
    """One teacher's part of the loss."""

    field: str
    weight: float
    """1, or lambda."""
    domains: tuple[str, ...]
    """Cuts of these domains are scored."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is predicted, and how the parts of the loss are weighted."""

    strategy: str = "single"
    """Which teachers a cut is trained on (paper §3.2): single (one token field), joint, disjoint or
    asymmetrical (two: the speech teacher's first)."""
    alpha: float = 0.5
    """Share of the masked frames in the loss; the unmasked ones get 1 - alpha (paper Table 9: 0.5)."""
    audio_weight: float = 0.1
    """lambda, weight of the audio teacher's loss beside the speech teacher's (paper F.6: 0.2 and
    0.3 beside 0.1, which is the best of them); a single teacher has weight 1."""
    align: str = "center"
    """center: teacher frames nearest in time; index: same position, as the published models (spec teachers
    §7)."""

    def __post_init__(self) -> None:
        if self.strategy not in _DOMAINS_OF_FIELDS:
            raise ValueError(f"strategy {self.strategy!r} is not known: use {', '.join(_DOMAINS_OF_FIELDS)}")
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha must be between 0 and 1, it is {self.alpha}")
        if not 0.0 < self.audio_weight < float("inf"):
            raise ValueError(
                f"audio_weight must be above 0, it is {self.audio_weight}: with 0 the audio cuts would train "
                "nothing. To leave the audio teacher out, use strategy single with the speech teacher's field"
            )
        if self.align not in ("center", "index"):
            raise ValueError(f"align must be 'center' or 'index', it is {self.align!r}")

    def terms(self, fields: Sequence[str]) -> list[Term]:
        """The parts of the loss, one per token field.

        Args:
          fields: names of the token fields; with two teachers the speech teacher's, then the audio teacher's.
        """
        domains = _DOMAINS_OF_FIELDS[self.strategy]
        if len(fields) != len(domains) or len(set(fields)) != len(fields):
            wanted = "one token field" if len(domains) == 1 else "two: the speech teacher's, then the audio's"
            raise ValueError(
                f"strategy {self.strategy} predicts {wanted}; data.token_fields is {list(fields)}. Change "
                "token_fields or objective.strategy"
            )
        weights = [1.0, self.audio_weight][: len(fields)]
        return [Term(*term) for term in zip(fields, weights, domains)]

    def fields_by_domain(self, fields: Sequence[str]) -> dict[str, list[str]]:
        """Domain -> token fields that its cuts must carry."""
        terms = self.terms(fields)
        return {domain: [term.field for term in terms if domain in term.domains] for domain in DOMAINS}


def frame_weights(masked: Tensor, alpha: float, num_codebooks: int) -> Tensor:
    """(F,) what the cross-entropies of a frame, summed over its codebooks, count in Eq. 1.

    Args:
      masked: (F,) bool, whether the student saw mask_emb in most of the frame.
      num_codebooks: N; a frame counts once, whatever the number of codebooks.
    """
    return torch.where(masked, 2 * alpha, 2 * (1 - alpha)) / num_codebooks


def masked_prediction_stats(loss: Tensor, correct: Tensor, targets: Tensor, masked: Tensor) -> Stats:
    """What to report of one token field, in nats per codebook and frame.

    Args:
      loss: (F, N) nats, 0 where there is no target.
      correct: (F, N) bool.
      targets: (F, N), -100 where there is none; rows that are all -100 count nowhere.
      masked: (F,) bool.
    """
    nats, right, count = loss.sum(1), correct.sum(1), (targets >= 0).sum(1)
    stats: Stats = {}
    for name, frames in (("masked", masked), ("unmasked", ~masked)):
        seen = (count * frames).sum()
        stats[f"{name}_loss"] = ((nats * frames).sum(), seen)
        stats[f"{name}_accuracy"] = ((right * frames).sum(), seen)
    return stats
