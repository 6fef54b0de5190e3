"""Resemblyzer's speaker encoder as a teacher: a small LSTM of real weights that a package ships (ours).

GE2E (Wan et al. 2018) trained it to tell speakers apart. A layer's output, 256 channels every 10 ms, holds
voice and sounds of speech. The package resemblyzer 0.1.4 brings the weights; the front end here is made after
its description (librosa 0.11's mel spectrogram, tested to 1e-5 relative).
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spear_lib.encoders.weights import load_strictly, read_weights
from spear_lib.features.fbank import SAMPLE_RATE
from spear_lib.teachers.base import Teacher, weights_hash
from spear_lib.teachers.packaged import packaged_file

_INSTALL = (
    "pip install --no-deps resemblyzer==0.1.4, and give package:resemblyzer (or the path of its "
    "pretrained.pt)"
)
_WINDOW, _HOP, _NUM_MELS, _WIDTH, _LAYERS = 400, 160, 40, 256, 3
# quieter recordings are raised to this level, dB re full scale (the package's preprocessing)
_LEVEL_DB = -30.0


class ResemblyzerTeacher(Teacher):
    """The output of a layer of the speaker encoder.

    Args:
      path: package:resemblyzer, its pretrained.pt, or the folder of that file.
      layer: 1 to 3.

    Raises:
      RuntimeError: no weights; says what to install.
      ValueError: no such layer, or weights that do not fit.
    """

    name = "resemblyzer"
    needs = "the weights of Resemblyzer: " + _INSTALL
    dtypes = ("float32",)
    frame_rate = 100.0
    embedding_dim = _WIDTH
    first_frame_center_ms = 0.0
    normalisation = "recordings under -30 dB are raised to it"

    def __init__(self, path: str | Path, layer: int = 2) -> None:
        super().__init__()
        if not 1 <= layer <= _LAYERS:
            raise ValueError(f"layer is {layer}: Resemblyzer's LSTM has layers 1 to {_LAYERS}")
        self.lstm = nn.LSTM(_NUM_MELS, _WIDTH, layer, batch_first=True)
        file = packaged_file(path, "resemblyzer", "pretrained.pt", _INSTALL)
        state = read_weights(file, "model_state").get("model_state", {})
        state = {name.removeprefix("lstm."): tensor for name, tensor in state.items()}
        wanted = {name: state[name] for name in self.lstm.state_dict() if name in state}
        load_strictly(self.lstm, wanted, file, f"first {layer} layers of Resemblyzer's LSTM")
        self.layer = f"{layer} of {_LAYERS}"
        self.field_prefix = f"resemblyzer_l{layer}"
        self.weights = weights_hash(self.lstm)
        self.register_buffer("window", torch.hann_window(_WINDOW), persistent=False)
        self.register_buffer("filters", mel_filters(), persistent=False)

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "weights": self.weights}

    def num_frames(self, num_samples: int) -> int:
        return num_samples // _HOP + 1

    def frames(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        inside = torch.arange(waveforms.shape[1], device=waveforms.device) < lengths.unsqueeze(1)
        audio = raised(waveforms * inside, lengths)
        # Looks forward only, so frames behind an utterance's end change nothing before it.
        return self.lstm(self.mel(audio))[0], lengths // _HOP + 1

    def mel(self, audio: Tensor) -> Tensor:
        """(B, N) -> mel power spectrogram (B, T, 40), T = N // 160 + 1, zeros assumed around the audio."""
        spectrum = torch.stft(
            audio, _WINDOW, _HOP, window=self.window, pad_mode="constant", return_complex=True
        )
        return spectrum.abs().square().transpose(1, 2) @ self.filters


def raised(audio: Tensor, lengths: Tensor) -> Tensor:
    """(B, N), zero behind its ``lengths``: what is quieter than -30 dB (mean square) is raised to it."""
    power = audio.square().sum(1) / lengths.clamp(min=1)
    gain = (10 ** (_LEVEL_DB / 10) / power.clamp(min=1e-10)).sqrt().clamp(min=1.0)
    return audio * torch.where(power > 0, gain, torch.ones_like(gain)).unsqueeze(1)


def mel_filters() -> Tensor:
    """(201, 40) triangles of Slaney's scale (linear below 1 kHz), each of unit area, 0 to 8 kHz; float32."""
    top = 15 + 27 * math.log(SAMPLE_RATE / 2 / 1000) / math.log(6.4)
    mels = torch.linspace(0.0, top, _NUM_MELS + 2, dtype=torch.float64)
    log_part = 1000 * torch.exp(math.log(6.4) / 27 * (mels - 15))
    corners = torch.where(mels < 15, 200 / 3 * mels, log_part)
    bins = torch.linspace(0.0, SAMPLE_RATE / 2, _WINDOW // 2 + 1, dtype=torch.float64).unsqueeze(1)
    rising = (bins - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - bins) / (corners[2:] - corners[1:-1])
    triangles = torch.minimum(rising, falling).clamp(min=0.0)
    return (triangles * 2 / (corners[2:] - corners[:-2])).float()
