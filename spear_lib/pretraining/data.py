"""Data of pre-training: waveforms with the teachers' tokens, mixed and masked."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch

from spear_lib.data.batch import PADDING, Batch
from spear_lib.data.datasets import CutData, LoadingConfig, open_sources
from spear_lib.data.domains import DOMAINS, SPEECH, domain_of
from spear_lib.data.examples import LOAD_ERRORS, Example, Examples, Making
from spear_lib.data.mixing import MixingConfig, Mixture, draw_token_mixture, mix_utterance
from spear_lib.features.fbank import SAMPLE_RATE, fbank_length
from spear_lib.features.masking import MaskingConfig, channel_mask, time_mask


@dataclass(frozen=True)
class PretrainingDataConfig(LoadingConfig):
    """Data of masked prediction of tokens."""

    token_fields: list[str] = field(default_factory=list)
    """Token fields to predict, for example [wavlm_large_l21_cb16]; of two, the speech teacher's first."""
    quantizer_ids: list[str] = field(default_factory=list)
    """Expected quantiser of each token field; none: not checked."""
    mixed_token_field: str = ""
    """Field that token mixing mixes (spec §5.1: the speech teacher's); default: the first."""
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    fbank_backend: str = "torch"
    """What computes the fbank on the training device: torch, or the package kaldifeat, which refuses 128 bins
    (ours)."""


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
                "one id per field, or none"
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

    def check(self, manifest, cut_numbers: np.ndarray) -> None:
        super().check(manifest, cut_numbers)
        kinds = {facts.get("channels", "mean") for facts in self.token_facts.values()}
        if len(kinds) > 1:
            raise ValueError(
                f"the tokens {', '.join(self.token_facts)} were made of different channels "
                f"({', '.join(sorted(kinds))}): run dump_tokens with the same --channels for all of them"
            )
        if kinds:
            self.channels = kinds.pop()

    def check_cut(self, cut) -> None:
        from spear_lib.tokens.fields import token_facts

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

    def archives_of(self, cut) -> list[str]:
        from spear_lib.tokens.fields import token_files

        return [*super().archives_of(cut), *token_files(cut, self.token_fields)]

    def load(self, number: int) -> Example:
        cut = self.manifest[number]
        waveform = self.load_waveform(cut)
        return Example(str(cut.id), waveform, self.load_tokens(cut), speech=domain_of(cut) == SPEECH)

    def load_tokens(self, cut) -> dict[str, np.ndarray]:
        """Field -> tokens (T, N) of a cut, of those fields that are read for it."""
        from spear_lib.tokens.fields import load_tokens

        needed = self.needed_fields[domain_of(cut)]
        # What token mixing mixes is also read where the cut itself is not trained on it: it may be a partner.
        names = [
            name
            for name in self.token_fields
            if name in needed or (name == self.mixed_field and cut.has_custom(name))
        ]
        return {name: np.asarray(load_tokens(cut, name)) for name in names}

    def augment(self, example: Example, number: int, making: Making) -> Example:
        if not self.mixing.enabled:
            return example
        random = self.random("mixing", making.epoch, example)
        kind = self.mixing.draw_kind(random, example.speech)
        if kind == "noise" and self.noise is None:
            kind = "none"
        for each in ("noise", "utterance", "tokens"):
            making.count(f"mixed_{each}", float(kind == each))
        if kind == "none":
            return example
        mixture = self._mixture(kind, example, number, making, random)
        making.count("mixing_skipped", float(mixture is None))
        if mixture is None:
            making.count(f"mixed_{kind}", -1.0, 0)
            return example
        making.count("mixing_overlap", mixture.overlap)
        tokens = example.tokens
        if kind == "tokens":
            making.count("mixing_beta", mixture.beta)
            making.count("mixing_replaced_tokens", mixture.replaced)
            # The other teachers' targets describe the clean primary alone: a mixed sample is scored on one
            # (spec §5.1).
            tokens = {name: np.full(array.shape, PADDING, dtype=np.int64) for name, array in tokens.items()}
            tokens[self.mixed_field] = mixture.tokens
        return replace(example, waveform=mixture.waveform, tokens=tokens, mixed=kind)

    def _mixture(
        self, kind: str, example: Example, number: int, making: Making, random: np.random.Generator
    ) -> Mixture | None:
        if kind == "noise":
            return self._noise(example, random)
        partner = making.partner(number, random)
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
        from spear_lib.tokens.fields import collate_tokens

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


class PretrainingData(CutData):
    """Batches with tokens and masks for pre-training.

    Args:
      config: what to load.
      seed, rank, world_size: of the run, this process, and the number of processes.
      training: False for validation: fixed order, no mixing, masks keyed by the cut alone (switch
        masking.enabled off for an unmasked validation).
      cuts: manifests to use instead of ``config.train_cuts``, for validation sets.
      needed_fields: domain ("speech", "audio") -> the token fields that its cuts must carry; all of them by
        default.

    Raises:
      ValueError: empty or missing manifests, cuts without tokens, tokens of another quantiser.
    """

    def __init__(
        self,
        config: PretrainingDataConfig,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        training: bool = True,
        cuts: list[str] | None = None,
        needed_fields: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        manifest, noise, mixing = open_sources(config, training, cuts)
        examples = PretrainingExamples(
            manifest=manifest,
            noise=noise,
            seed=seed,
            training=training,
            mixing=mixing,
            masking=config.masking,
            token_fields=list(config.token_fields),
            quantizer_ids=list(config.quantizer_ids),
            mixed_token_field=config.mixed_token_field,
            needed_fields=needed_fields,
        )
        super().__init__(manifest, examples, config, seed, rank, world_size, training)
        self.config = config

    @property
    def token_facts(self) -> dict[str, dict]:
        """Token field -> what its manifest and store say (quantizer_id, frame_rate, num_codebooks, ...); only
        fields that a cut of this data needs."""
        return self.examples.token_facts

    @cached_property
    def targets_fingerprint(self) -> str:
        """Of the tokens of up to 1000 cuts, spread over the manifests: a store that was made again with
        other results is noticed wherever its files lie, a change of single cuts of a large one may not be."""
        digest = hashlib.blake2b(digest_size=8)
        for number in self.examples.spread(self.cut_numbers):
            try:
                for name, tokens in self.examples.load_tokens(self.manifest[number]).items():
                    digest.update(f"{name} {tokens.shape} {tokens.dtype}".encode())
                    digest.update(np.ascontiguousarray(tokens).data)
            except LOAD_ERRORS as error:  # counted when the cut is drawn
                digest.update(type(error).__name__.encode())
        return digest.hexdigest()

    @property
    def needed_fields(self) -> Mapping[str, Sequence[str]]:
        """Domain -> token fields that its cuts must carry."""
        return self.examples.needed_fields
