"""Options of the quantiser's recipe: one file (conf/quantizer/*.yaml) for extract_embeddings and
train_quantizer."""

from dataclasses import dataclass


@dataclass(frozen=True)
class QuantizerTrainingOptions:
    """The quantiser and how it is trained (method: ours, see trainer.py)."""

    num_codebooks: int = 8
    """Codebooks N (paper §4: 16 for WavLM Large, 8 for Dasheng)."""
    codebook_size: int = 256
    """Entries per codebook K (paper A.1: 256, one byte per code)."""
    normalisation: str = "channel"
    """channel: zero mean, unit variance per channel (reference, speech teacher); global: zero mean per
    channel and one scale for all; none (reference, audio teacher)."""
    held_out_fraction: float = 0.05
    """Share of the recordings kept for the report (reference: 5 % of the frames)."""
    max_held_out_frames: int = 10000
    """At most this many frames in the report (reference: 10 000)."""
    method: str = "least_squares"
    """least_squares: rounds of search and closed-form update (ours, fast); reference: Adam in two phases
    (Guo et al. 2023)."""
    search: str = "best"
    """best: tokens are the codes of the best round of the search (ours); reference: those of the last."""
    shuffle_frames: int = 200000
    """Frames in memory at a time: the buffer in which the stream from disk is shuffled (ours)."""
    init_frames: int = 20000
    """Frames per pass of the k-means that initialises the codebooks, new ones each time, and of the principal
    axes before it (ours)."""
    init_iterations: int = 8
    """Passes of that k-means (ours)."""
    rounds: int = 10
    """Rounds of search and closed-form update of all code vectors (ours)."""
    frames_per_round: int = 20000
    """Frames per round, new ones each time (ours)."""
    training_refinements: int = 3
    """Refinements of the search in a round, after a greedy first guess (ours)."""
    statistics_decay: float = 0.9
    """Weight of the earlier rounds' statistics in the update; 0 forgets them (ours)."""
    search_noise: float = 0.1
    """Noise on the code vectors in the first search, relative to their spread; falls to 0 (ours; 0: off)."""
    ridge: float = 1.0
    """Pull of a code vector towards its last value, in frames (ours)."""
    classifier_frames: int = 20000
    """Frames that train the classifiers of the first guess (ours)."""
    classifier_steps: int = 100
    """Adam steps of the classifiers after their closed-form start (ours)."""
    classifier_batch: int = 1024
    """Frames per Adam step (reference: 1024)."""
    classifier_learning_rate: float = 0.0025
    """Adam's rate, falling linearly to 0 (reference, phase two)."""
    phase_one_steps: int = 35000
    """Method reference: Adam steps with 2N codebooks of 16 (SPEAR's scripts)."""
    phase_two_steps: int = 35000
    """Method reference: Adam steps with N codebooks of 256 (SPEAR's scripts)."""
    batch_frames: int = 1024
    """Method reference: frames per step (SPEAR's scripts)."""

    def __post_init__(self) -> None:
        if self.method not in ("least_squares", "reference"):
            raise ValueError(f"method is {self.method!r}: use least_squares or reference")
        if self.normalisation not in ("channel", "half", "global", "none"):
            raise ValueError(f"normalisation is {self.normalisation!r}: use channel, half, global or none")
        if not 0 < self.held_out_fraction < 0.5:
            raise ValueError(f"held_out_fraction is {self.held_out_fraction}: it must be in (0, 0.5)")
        if not 0 <= self.search_noise < 1:
            raise ValueError(
                f"search_noise is {self.search_noise}: it must be in [0, 1), "
                "a share of the code vectors' spread"
            )
        if self.search not in ("best", "reference"):
            raise ValueError(f"search is {self.search!r}: use best or reference")
        for name in (
            "rounds",
            "shuffle_frames",
            "training_refinements",
            "classifier_batch",
            "frames_per_round",
            "init_frames",
            "classifier_frames",
            "max_held_out_frames",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
