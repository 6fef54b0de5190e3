"""What the benchmark and the profile run: our encoders, the reference's and WavLM, with their steps."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from reference_encoder import ReferenceEncoder
from torch import Tensor, nn

from spear_lib.encoders.zipformer import SpearEncoder, ZipformerConfig
from spear_lib.features.fbank import SAMPLE_RATE, FbankExtractor
from spear_lib.runtime import keyed_random
from spear_lib.runtime.world import choose_device

_SIZES = ("mini", "base", "large", "xlarge")


@dataclass(frozen=True)
class Options:
    """Options of the benchmark; the defaults are the measurement that RESULTS.md reports."""

    subjects: tuple[str, ...] = ("wavlm", "base")
    """What to measure; ratios are relative to the first."""
    utterances: int = 4
    """Utterances in the batch."""
    seconds: float = 10.0
    """Length of the longest utterance in seconds."""
    shortest: float = 1.0
    """Length of the shortest utterance as a share of the longest; the others lie evenly between."""
    batch_count: float = 10000.0
    """Schedule clock: what the regularisers do. 0 = start of training, the most costly point."""
    rounds: int = 5
    """Rounds; each has one step of every subject."""
    threads: int = 2
    """CPU threads of each process."""
    device: str = "auto"
    """cpu, cuda, or auto = cuda where there is one."""
    precision: str = "fp32"
    """fp32 or bf16 (autocast)."""
    memory: bool = True
    """Measure peak memory as well."""
    compiled: bool = False
    """Compile every layer of our encoders with torch.compile."""

    def __post_init__(self):
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision is {self.precision!r}; use fp32 or bf16")
        if not 0.0 < self.shortest <= 1.0:
            raise ValueError(f"shortest is {self.shortest}; use a share in (0, 1]")
        if self.rounds < 1 or self.utterances < 1:
            raise ValueError(f"rounds {self.rounds} and utterances {self.utterances} must be at least 1")

    @property
    def resolved_device(self) -> torch.device:
        """The device measured on."""
        return choose_device(self.device)

    def num_samples(self) -> list[int]:
        """Samples of each utterance, longest first."""
        longest = int(self.seconds * SAMPLE_RATE)
        step = (1.0 - self.shortest) / max(1, self.utterances - 1)
        return [int(longest * (1.0 - step * index)) for index in range(self.utterances)]


class Subject:
    """One encoder, its input, and its step.

    ``step(backward)`` runs a forward pass, with a backward pass of a random linear loss if asked.
    """

    def __init__(self, name: str, options: Options):
        torch.manual_seed(0)
        self.device = options.resolved_device
        self.options = options
        lengths = torch.tensor(options.num_samples())
        waveforms = torch.randn(options.utterances, int(lengths.max()), device=self.device) * 0.1
        self.lengths = lengths if self.device.type == "cpu" else lengths.to(self.device)
        self.waveforms = waveforms
        self.step_number = 0
        self.weights: Tensor | None = None
        self.note = ""
        if name.startswith("wavlm"):
            self.model, self.encode = self._wavlm(name)
        elif name.startswith("reference-"):
            self.model, self.encode = self._reference(name.removeprefix("reference-"))
        else:
            self.model, self.encode = self._spear(name)
        self.model.train().to(self.device)

    def _wavlm(self, name: str) -> tuple[nn.Module, Callable[[], Tensor]]:
        import transformers
        from transformers import WavLMConfig, WavLMModel

        if name not in ("wavlm", "wavlm-eager"):
            raise ValueError(f"subject {name!r} is not known: use wavlm, wavlm-eager or a size of ours")
        config = WavLMConfig(layerdrop=0.0, apply_spec_augment=False, mask_time_prob=0.0)
        model = WavLMModel(config)
        if name == "wavlm":
            without_attention_weights(model)
        attention = "scaled_dot_product_attention" if name == "wavlm" else "eager, as transformers does"
        self.note = f"transformers {transformers.__version__}, attention: {attention}"
        mask = torch.arange(self.waveforms.shape[1], device=self.device) < self.lengths.unsqueeze(1)
        mask = None if bool(mask.all()) else mask.long()
        return model, lambda: model(self.waveforms, attention_mask=mask).last_hidden_state

    def _spear(self, name: str) -> tuple[nn.Module, Callable[[], Tensor]]:
        encoder = SpearEncoder(parse_size(name))
        if self.options.compiled:
            for stack in encoder.encoder.encoders:
                for layer in getattr(stack, "encoder", stack).layers:
                    layer.compile()
        started = time.process_time()
        self.fbank, self.frames = FbankExtractor().to(self.device)(self.waveforms, self.lengths)
        self.note = f"features: {time.process_time() - started:.2f} s of CPU time, not counted below"
        keys = keyed_random.keys("benchmark", ids=[str(n) for n in range(self.options.utterances)])

        def encode() -> Tensor:
            encoder.begin_step(self.options.batch_count, self.step_number, keys)
            return encoder(self.fbank, self.frames).encoder_out

        return encoder, encode

    def _reference(self, size: str) -> tuple[nn.Module, Callable[[], Tensor]]:
        encoder = ReferenceEncoder(SpearEncoder(parse_size(size)))
        encoder.batch_count = self.options.batch_count
        self.fbank, self.frames = FbankExtractor().to(self.device)(self.waveforms, self.lengths)
        self.note = "the reference's sequence of operations, from the specification; Swoosh by PyTorch"
        return encoder, lambda: encoder(self.fbank, self.frames)

    def step(self, backward: bool) -> None:
        """One forward pass, or forward and backward."""
        self.step_number += 1
        autocast = torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.options.precision == "bf16"
        )
        with torch.set_grad_enabled(backward), autocast:
            output = self.encode()
        if backward:
            if self.weights is None:
                self.weights = torch.randn(output.shape, device=self.device)
            output.backward(self.weights.to(output.dtype))
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def parse_size(subject: str) -> ZipformerConfig:
    """The configuration of e.g. ``base,padding=reference,balancer=false``."""
    size, *changes = subject.split(",")
    if size not in _SIZES:
        raise ValueError(
            f"subject {size!r} is not known: use wavlm, wavlm-eager, mini, base, large or xlarge"
        )
    values = {}
    for change in changes:
        field, _, value = change.partition("=")
        if field not in {each.name for each in dataclasses.fields(ZipformerConfig)}:
            raise ValueError(f"{field!r} in subject {subject!r} is no field of ZipformerConfig")
        values[field] = {"true": True, "false": False}.get(value, int(value) if value.isdigit() else value)
    return getattr(ZipformerConfig, size)(**values)


def without_attention_weights(model: nn.Module) -> None:
    """Let WavLM's attention use scaled_dot_product_attention: the same output, no averaged weights."""
    from transformers.models.wavlm import modeling_wavlm

    class Functional:
        def __getattr__(self, name: str):
            return getattr(torch.nn.functional, name)

        @staticmethod
        def multi_head_attention_forward(*args, **kwargs):
            return torch.nn.functional.multi_head_attention_forward(
                *args, **{**kwargs, "need_weights": False}
            )

    modeling_wavlm.F = Functional()
