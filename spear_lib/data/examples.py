"""From cut numbers to a batch: what a data worker does (load, mix or perturb, collate, draw masks)."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from spear_lib.data.augmentation import perturb_speed
from spear_lib.data.batch import Batch, pad_waveforms
from spear_lib.data.domains import DOMAINS, SPEECH, domain_of
from spear_lib.data.features import SAMPLE_RATE, fbank_length
from spear_lib.data.loading import Work
from spear_lib.data.masking import MaskingConfig, channel_mask, time_mask
from spear_lib.data.mixing import (
    IGNORE,
    MixingConfig,
    Mixture,
    draw_token_mixture,
    mix_noise,
    mix_utterance,
)
from spear_lib.keyed_random import generator
from spear_lib.keyed_random import keys as make_keys

logger = logging.getLogger(__name__)

_CHECKED_CUTS = 1000  # cuts looked at before training starts, spread over the manifest
_LOAD_ERRORS = (OSError, ValueError, RuntimeError, EOFError)


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


@dataclass
class Example:
    """One utterance: clean audio (N,) and tokens (T, C) per field, later the augmented ones."""

    cut_id: str
    waveform: np.ndarray
    tokens: dict[str, np.ndarray]
    text: str = ""
    speech: bool = True
    mixed: str = "none"
    speed: float = 1.0


class Examples:
    """Shared part: loading with counted problems, noise, collation. Instances travel to worker processes."""

    def __init__(self, manifest, noise, seed: int, training: bool, mixing: MixingConfig) -> None:
        self.manifest, self.noise = manifest, noise
        self.seed, self.training, self.mixing = seed, training, mixing
        if noise is None and mixing.enabled and mixing.noise_probability > 0.0:
            logger.info("no noise_cuts given: noise mixing is off")

    def check(self, manifest, cut_numbers: np.ndarray) -> None:
        """Looks at cuts spread over the manifest before training starts. Raises ValueError naming a bad
        cut."""
        picked = np.unique(np.linspace(0, len(cut_numbers) - 1, _CHECKED_CUTS).astype(np.int64))
        for number in cut_numbers[picked]:
            self.check_cut(manifest[int(number)])

    def check_cut(self, cut) -> None:
        raise TypeError("subclasses define what a usable cut is")

    def load(self, number: int) -> Example:
        raise TypeError("subclasses define what is loaded")

    def make(self, work: Work) -> Batch:
        """The batch of a work item: this rank's cuts of a global batch."""
        epoch, index, share, global_batch = work
        draw_epoch = epoch if self.training else 0
        statistics: dict[str, tuple[float, int]] = {}
        problems: dict[str, str] = {}
        clean: dict[int, Example] = {}
        for number in share:
            self._load(number, clean, problems)
        examples = [
            self.augment(clean, number, draw_epoch, global_batch, statistics, problems)
            for number in share
            if number in clean
        ]
        if not examples:
            return Batch([], torch.zeros(0, dtype=torch.int64), torch.zeros(0, 0), torch.zeros(0), epoch,
            index,
                         problems=problems)  # fmt: skip
        batch = self.collate(examples, draw_epoch)
        batch.epoch, batch.index = epoch, index
        batch.statistics, batch.problems = statistics, problems
        return batch

    def _load(self, number: int, loaded: dict[int, Example], problems: dict[str, str]) -> Example | None:
        if number not in loaded:
            try:
                loaded[number] = self.load(number)
            except _LOAD_ERRORS as error:
                problems[str(self.manifest[number].id)] = str(error)
        return loaded.get(number)

    def load_waveform(self, cut) -> np.ndarray:
        from spear_lib.data.audio import load_audio

        waveform = np.asarray(load_audio(cut, sample_rate=SAMPLE_RATE), dtype=np.float32)
        if fbank_length(len(waveform)) == 0:
            raise ValueError(f"the audio has {len(waveform)} samples, too few for one frame")
        if not np.isfinite(waveform).all():
            raise ValueError("the audio holds values that are not finite")
        return waveform

    def augment(
        self,
        clean: dict[int, Example],
        number: int,
        epoch: int,
        global_batch: list[int],
        statistics: dict[str, tuple[float, int]],
        problems: dict[str, str],
    ) -> Example:
        """The augmented copy of a clean example; ``clean`` grows by partners loaded from other ranks'
        shares."""
        raise TypeError("subclasses define their augmentation")

    def _noise(self, example: Example, random: np.random.Generator) -> Mixture | None:
        """None: silent or unreadable noise; the caller counts it."""
        if self.noise is None:
            return None
        number = int(random.integers(len(self.noise)))
        try:
            noise = self.load_waveform(self.noise[number])
        except _LOAD_ERRORS as error:
            logger.warning("noise cut %s is not mixed: %s", self.noise.ids[number], error)
            return None
        return mix_noise(example.waveform, noise, self.mixing, random)

    def collate(self, examples: list[Example], epoch: int) -> Batch:
        """Pads examples to a batch."""
        waveforms, num_samples = pad_waveforms([example.waveform for example in examples])
        ids = [example.cut_id for example in examples]
        return Batch(
            ids=ids,
            keys=make_keys("utterance", self.seed, epoch, ids=ids),
            waveforms=waveforms,
            num_samples=num_samples,
            mixed=[example.mixed for example in examples],
            audio_seconds=float(num_samples.sum()) / SAMPLE_RATE,
            padded_seconds=waveforms.numel() / SAMPLE_RATE,
        )


def _add(statistics: dict[str, tuple[float, int]], name: str, value: float, count: int = 1) -> None:
    total, number = statistics.get(name, (0.0, 0))
    statistics[name] = (total + value, number + count)


class PretrainingExamples(Examples):
    """Waveforms with tokens and masks; noise, utterance or token mixing."""

    def __init__(
        self,
        manifest,
        noise,
        seed: int,
        training: bool,
        mixing: MixingConfig,
        masking: MaskingConfig,
        token_fields: list[str],
        quantizer_ids: list[str],
        mixed_token_field: str,
        needed_fields: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        super().__init__(manifest, noise, seed, training, mixing)
        if not token_fields:
            raise ValueError(
                "token_fields is empty: name the token fields of the cuts, for example [spectral_cb8]"
            )
        if quantizer_ids and len(quantizer_ids) != len(token_fields):
            raise ValueError(
                f"quantizer_ids has {len(quantizer_ids)} entries for {len(token_fields)} token_fields: give "
                f"one id "
                "per field, or none"
            )
        self.masking = masking
        self.token_fields, self.quantizer_ids = token_fields, quantizer_ids
        self.mixed_field = mixed_token_field or token_fields[0]
        if self.mixed_field not in token_fields:
            raise ValueError(f"mixed_token_field is {self.mixed_field!r}, which is none of {token_fields}")
        self.needed_fields = needed_fields or dict.fromkeys(DOMAINS, token_fields)
        mixes_tokens = mixing.enabled and mixing.token_probability > 0.0
        if mixes_tokens and self.mixed_field not in self.needed_fields[SPEECH]:
            raise ValueError(
                f"token mixing mixes the tokens {self.mixed_field!r}, on which speech cuts are not trained: "
                f"set mixed_token_field to one of {list(self.needed_fields[SPEECH])}"
            )
        self.token_facts: dict[str, dict] = {}

    def check_cut(self, cut) -> None:
        from spear_lib.data.tokens import token_facts

        domain = domain_of(cut)
        for position, name in enumerate(self.token_fields):
            if name not in self.needed_fields[domain]:
                continue
            if not cut.has_custom(name):
                raise ValueError(
                    f"cut {cut.id} has no tokens {name!r}, which every {domain} cut needs here: make them "
                    "(prepare.sh stages 5 and 6 for its manifest), or choose an objective.strategy that does "
                    f"without them on {domain} cuts"
                )
            facts = token_facts(cut, name)
            first = self.token_facts.setdefault(name, facts)
            found = facts["quantizer_id"]
            expected = self.quantizer_ids[position] if self.quantizer_ids else first["quantizer_id"]
            if found != expected:
                raise ValueError(
                    f"tokens {name!r} of cut {cut.id} were made by quantiser {found}, expected {expected}: "
                    "use cuts whose tokens that quantiser made, or run the token stages for this manifest"
                )
            rate = facts["frame_rate"]
            if abs(SAMPLE_RATE / rate - round(SAMPLE_RATE / rate)) > 1e-6:
                raise ValueError(
                    f"tokens {name!r} have {rate} frames per second: no whole number of samples each"
                )

    def load(self, number: int) -> Example:
        from spear_lib.data.tokens import load_tokens

        cut = self.manifest[number]
        waveform = self.load_waveform(cut)
        domain = domain_of(cut)
        # What token mixing mixes is also read where the cut itself is not trained on it: it may be a partner.
        names = [
            name
            for name in self.token_fields
            if name in self.needed_fields[domain] or (name == self.mixed_field and cut.has_custom(name))
        ]
        tokens = {name: np.asarray(load_tokens(cut, name)) for name in names}
        return Example(str(cut.id), waveform, tokens, speech=domain == SPEECH)

    def augment(self, clean, number, epoch, global_batch, statistics, problems) -> Example:
        example = clean[number]
        if not self.mixing.enabled:
            return example
        random = generator("mixing", self.seed, epoch, example.cut_id)
        kind = self.mixing.draw_kind(random, example.speech)
        if kind == "noise" and self.noise is None:
            kind = "none"
        for each in ("noise", "utterance", "tokens"):
            _add(statistics, f"mixed_{each}", float(kind == each))
        if kind == "none":
            return example
        mixture = self._mixture(kind, clean, number, global_batch, random, problems)
        _add(statistics, "mixing_skipped", float(mixture is None))
        if mixture is None:
            _add(statistics, f"mixed_{kind}", -1.0, 0)
            return example
        _add(statistics, "mixing_overlap", mixture.overlap)
        tokens = example.tokens
        if kind == "tokens":
            _add(statistics, "mixing_beta", mixture.beta)
            _add(statistics, "mixing_replaced_tokens", mixture.replaced)
            # The other teachers' targets describe the clean primary alone: a mixed sample is scored on one
            # (spec §5.1).
            tokens = {name: np.full(array.shape, IGNORE, dtype=np.int64) for name, array in tokens.items()}
            tokens[self.mixed_field] = mixture.tokens
        return Example(example.cut_id, mixture.waveform, tokens, speech=example.speech, mixed=kind)

    def _mixture(self, kind, clean, number, global_batch, random, problems) -> Mixture | None:
        example = clean[number]
        if kind == "noise":
            return self._noise(example, random)
        others = [other for other in global_batch if other != number]
        if not others:
            return None
        partner = self._load(others[int(random.integers(len(others)))], clean, problems)
        if partner is None or (kind == "tokens" and self.mixed_field not in partner.tokens):
            return None
        if kind == "utterance":
            return mix_utterance(example.waveform, partner.waveform, self.mixing, random)
        return draw_token_mixture(
            example.waveform,
            example.tokens[self.mixed_field],
            partner.waveform,
            partner.tokens[self.mixed_field],
            self.mixing,
            random,
            round(SAMPLE_RATE / self.token_facts[self.mixed_field]["frame_rate"]),
        )

    def collate(self, examples: list[Example], epoch: int) -> Batch:
        from spear_lib.data.tokens import collate_tokens

        batch = super().collate(examples, epoch)
        for name in self.token_fields:
            arrays = [example.tokens.get(name) for example in examples]
            there = [array for array in arrays if array is not None]
            if there:
                nothing = there[0][:0]
                batch.tokens[name] = collate_tokens([nothing if a is None else a for a in arrays])
        batch.audio = torch.tensor([not example.speech for example in examples])
        masking = self.masking
        if masking.enabled:
            batch.time_mask = time_mask(
                fbank_length(batch.num_samples),
                batch.keys,
                masking.time_probability,
                masking.time_span,
                masking.time_min_spans,
                max_frames=fbank_length(batch.waveforms.shape[1]),
            )
            batch.channel_mask = channel_mask(batch.keys, masking.channel_probability, masking.channel_span)
        return batch


class AsrExamples(Examples):
    """Waveforms with transcripts; speed perturbation, then noise or utterance mixing."""

    def __init__(
        self, manifest, noise, seed: int, training: bool, mixing: MixingConfig, speed: SpeedConfig
    ) -> None:
        super().__init__(manifest, noise, seed, training, mixing)
        if mixing.enabled and mixing.token_probability > 0.0:
            raise ValueError(
                f"mixing.token_probability is {mixing.token_probability}, but fine-tuning has no tokens to "
                f"mix: set it to 0"
            )
        self.speed = speed

    def check_cut(self, cut) -> None:
        if not _text(cut):
            raise ValueError(
                f"cut {cut.id} has no transcript: fine-tuning needs cuts with text; give the labelled "
                f"manifest"
            )

    def load(self, number: int) -> Example:
        cut = self.manifest[number]
        text = _text(cut)
        if not text:
            raise ValueError("no transcript")
        return Example(str(cut.id), self.load_waveform(cut), {}, text=text)

    def augment(self, clean, number, epoch, global_batch, statistics, problems) -> Example:
        example = clean[number]
        if not self.training:
            return example
        random = generator("asr", self.seed, epoch, example.cut_id)
        factors = self.speed.factors
        speed = float(factors[int(random.integers(len(factors)))]) if self.speed.enabled else 1.0
        changed = Example(
            example.cut_id, perturb_speed(example.waveform, speed), {}, text=example.text, speed=speed
        )
        kind = self.mixing.draw_kind(random)
        if kind == "noise" and self.noise is None:
            kind = "none"
        mixture = None
        if kind == "noise":
            mixture = self._noise(changed, random)
        elif kind == "utterance":
            others = [other for other in global_batch if other != number]
            partner = (
                self._load(others[int(random.integers(len(others)))], clean, problems) if others else None
            )
            if partner is not None:
                mixture = mix_utterance(changed.waveform, partner.waveform, self.mixing, random)
        if kind != "none":
            _add(statistics, "mixing_skipped", float(mixture is None))
        for each in ("noise", "utterance"):
            _add(statistics, f"mixed_{each}", float(kind == each and mixture is not None))
        if mixture is not None:
            changed.waveform, changed.mixed = mixture.waveform, kind
        return changed

    def collate(self, examples: list[Example], epoch: int) -> Batch:
        batch = super().collate(examples, epoch)
        batch.texts = [example.text for example in examples]
        batch.speeds = [example.speed for example in examples]
        return batch


def _text(cut) -> str:
    return " ".join(supervision.text for supervision in cut.supervisions if supervision.text).strip()
