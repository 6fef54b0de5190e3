"""What every search returns."""

from dataclasses import dataclass, field


@dataclass
class Hypothesis:
    """One recognised utterance."""

    ids: list[int]
    """Unit ids, without blank."""
    timestamps: list[int]
    """Encoder frame at which each unit was emitted."""
    score: float
    """What the search maximises, in nats: log-probability of the path (greedy) or of the merged paths (beam
    search), with the weighted terms of a language model where there is one."""
    nbest: list["Hypothesis"] = field(default_factory=list)
    """All hypotheses of the final beam by falling score, the best one among them; empty for greedy."""
