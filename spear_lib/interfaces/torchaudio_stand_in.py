"""The little of torchaudio that s3prl and xares use, on soundfile and scipy, where torchaudio is missing: its
last release cannot be imported beside the pinned torch. s3prl's training loss with it equals that with the
real one to 3e-6 (spec evaluation_clients, a).

Whatever is not here (sox effects, Kaldi features, mel transforms of old upstreams) can be imported, and says
so when it is used.
"""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from math import gcd
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class AudioInfo:
    """What ``info`` returns."""

    sample_rate: int
    num_frames: int
    num_channels: int


def info(path: str | Path, *_: Any, **__: Any) -> AudioInfo:
    """Of a file that soundfile reads."""
    import soundfile

    found = soundfile.info(path)
    return AudioInfo(found.samplerate, found.frames, found.channels)


def load(
    path: str | Path, frame_offset: int = 0, num_frames: int = -1, *_: Any, **__: Any
) -> tuple[Tensor, int]:
    """Samples (channels, N) float32 and their rate."""
    import soundfile

    samples, rate = soundfile.read(path, num_frames, frame_offset, dtype="float32", always_2d=True)
    return torch.from_numpy(samples.T.copy()), rate


def save(path: str | Path, waveform: Tensor, sample_rate: int, *_: Any, **__: Any) -> None:
    """Write (channels, N)."""
    import soundfile

    soundfile.write(path, waveform.detach().cpu().numpy().T, sample_rate)


def resample(waveform: Tensor, orig_freq: int, new_freq: int, *_: Any, **__: Any) -> Tensor:
    """(..., N) at another rate."""
    from scipy.signal import resample_poly

    if orig_freq == new_freq:
        return waveform
    common = gcd(int(orig_freq), int(new_freq))
    changed = resample_poly(
        waveform.cpu().numpy(), int(new_freq) // common, int(orig_freq) // common, axis=-1
    )
    return torch.from_numpy(changed).to(waveform)


class Resample(nn.Module):
    """``resample`` as a module."""

    def __init__(self, orig_freq: int = 16000, new_freq: int = 16000, *_: Any, **__: Any) -> None:
        super().__init__()
        self.rates = orig_freq, new_freq

    def forward(self, waveform: Tensor) -> Tensor:
        """(..., N) -> (..., N')."""
        return resample(waveform, *self.rates)


def _absent(name: str) -> Callable[..., Any]:
    def raise_error(*_: Any, **__: Any) -> Any:
        raise RuntimeError(
            f"{name} is not in the stand-in for torchaudio: use an environment with torch 2.8 and torchaudio "
            "2.8 for it (docs/evaluation.md)"
        )

    return raise_error


class _Module(ModuleType):
    """A module in which every other name exists, and complains when it is called."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self.__path__ = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _absent(f"{self.__name__}.{name}")


def install() -> bool:
    """Put the stand-in in the place of torchaudio, where that is not installed; whether it was."""
    if "torchaudio" in sys.modules or importlib.util.find_spec("torchaudio") is not None:
        return False
    top = _Module("torchaudio")
    parts = {
        "functional": {"resample": resample},
        "transforms": {"Resample": Resample},
        "sox_effects": {},
        "compliance": {},
        "compliance.kaldi": {},
    }
    top.__dict__.update(
        info=info, load=load, save=save, set_audio_backend=lambda name: None, __version__="2.0.0"
    )
    sys.modules["torchaudio"] = top
    for name, content in parts.items():
        module = _Module(f"torchaudio.{name}")
        module.__dict__.update(content)
        sys.modules[f"torchaudio.{name}"] = module
        parent, _, leaf = f"torchaudio.{name}".rpartition(".")
        setattr(sys.modules[parent], leaf, module)
    return True
