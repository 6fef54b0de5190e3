"""Data of ASR fine-tuning: waveforms with transcripts, perturbed in speed and mixed."""

from dataclasses import dataclass, field, replace
from typing import Any

from spear_lib.data.batch import Batch
from spear_lib.data.datasets import CutData, LoadingConfig, open_sources
from spear_lib.data.examples import Example, Examples, Making
from spear_lib.data.mixing import FINETUNING_MIXING, MixingConfig, mix_utterance
from spear_lib.data.references import transcript, transcript_in
from spear_lib.features.spec_augment import SpecAugmentConfig, perturb_speed


@dataclass(frozen=True)
class SpeedConfig:
    """Speed perturbation of fine-tuning."""

    factors: list[float] = field(default_factory=lambda: [0.9, 1.0, 1.1])
    """Factors of which one is drawn per utterance and epoch (icefall's ASR recipes)."""
    enabled: bool = True
    """False: no perturbation."""

    def __post_init__(self) -> None:
        for factor in self.factors:
            if not 0.5 <= factor <= 2.0:
                raise ValueError(f"speed.factors holds {factor}, expected factors between 0.5 and 2")
        if not self.factors:
            raise ValueError(
                "speed.factors is empty: give at least one factor, or set speed.enabled to false"
            )


@dataclass(frozen=True)
class AsrDataConfig(LoadingConfig):
    """Data of ASR fine-tuning."""

    speed: SpeedConfig = field(default_factory=SpeedConfig)
    mixing: MixingConfig = FINETUNING_MIXING
    spec_augment: SpecAugmentConfig = field(default_factory=SpecAugmentConfig)
    """Applied by the task to the features, on the device."""


class AsrExamples(Examples):
    """Waveforms with transcripts; speed perturbation, then noise or utterance mixing."""

    def __init__(
        self,
        manifest,
        noise,
        seed: int,
        training: bool,
        mixing: MixingConfig,
        speed: SpeedConfig,
        units: Any = None,
    ) -> None:
        super().__init__(manifest, noise, seed, training, mixing)
        if mixing.enabled and mixing.token_probability > 0.0:
            raise ValueError(
                f"mixing.token_probability is {mixing.token_probability}, but fine-tuning has no tokens to "
                f"mix: set it to 0"
            )
        self.speed, self.units = speed, units

    def unusable(self, manifest, cut_numbers) -> dict[int, str]:
        """Cuts without a transcript, and those whose transcript the units cannot write."""
        wanted, bad = set(cut_numbers.tolist()), {}
        for number, fields in enumerate(manifest.fields()):
            if number not in wanted:
                continue
            try:
                check_text(transcript_in(fields), fields["id"], self.units)
            except ValueError as error:
                bad[number] = str(error)
        return bad

    def check_cut(self, cut) -> None:
        """Transcripts are read of all cuts before (``unusable``)."""

    def load(self, number: int) -> Example:
        cut = self.manifest[number]
        text = transcript(cut)
        if not text:
            raise ValueError("no transcript")
        return Example(str(cut.id), self.load_waveform(cut), {}, text=text)

    def augment(self, example: Example, number: int, making: Making) -> Example:
        if not self.training:
            return example
        random = self.random("asr", making.epoch, example)
        factors = self.speed.factors
        speed = float(factors[int(random.integers(len(factors)))]) if self.speed.enabled else 1.0
        changed = replace(example, waveform=perturb_speed(example.waveform, speed), speed=speed)
        kind = self.mixing.draw_kind(random)
        if kind == "noise" and self.noise is None:
            kind = "none"
        mixture = None
        if kind == "noise":
            mixture = self._noise(changed, random)
        elif kind == "utterance":
            partner = making.partner(number, random)
            if partner is not None:
                mixture = mix_utterance(changed.waveform, partner.waveform, self.mixing, random)
        if kind != "none":
            making.count("mixing_skipped", float(mixture is None))
        for each in ("noise", "utterance"):
            making.count(f"mixed_{each}", float(kind == each and mixture is not None))
        if mixture is not None:
            changed.waveform, changed.mixed = mixture.waveform, kind
        return changed

    def collate(self, examples: list[Example], epoch: int) -> Batch:
        batch = super().collate(examples, epoch)
        batch.texts = [example.text for example in examples]
        batch.speeds = [example.speed for example in examples]
        return batch


def check_text(text: str, cut: str, units: Any) -> None:
    """ValueError if a transcript cannot be learnt: it is empty, or the units (None: any) cannot write it."""
    if not text:
        raise ValueError(
            f"cut {cut} has no transcript: fine-tuning needs cuts with text; give the labelled manifest"
        )
    if units is not None:
        units.check(text)


class AsrData(CutData):
    """Batches with transcripts for fine-tuning; SpecAugment is left to the task (``config.spec_augment``).

    Arguments and errors as ``PretrainingData``; with ``training`` False nothing is perturbed or mixed. With
    ``units``, cuts whose transcripts they cannot write are counted like unreadable ones, before any step.
    Batches are planned by the cuts' own durations, so a speed factor of 0.9 makes a batch up to 11 % longer
    than batch_seconds.
    """

    def __init__(
        self,
        config: AsrDataConfig,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        training: bool = True,
        cuts: list[str] | None = None,
        units: Any = None,
    ) -> None:
        manifest, noise, mixing = open_sources(config, training, cuts)
        examples = AsrExamples(
            manifest=manifest,
            noise=noise,
            seed=seed,
            training=training,
            mixing=mixing,
            speed=config.speed,
            units=units,
        )
        super().__init__(manifest, examples, config, seed, rank, world_size, training)
        self.config = config
