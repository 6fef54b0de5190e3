"""Whatever can be measured, behind the interface of an encoder: ours, log-mels, random weights, and models of
the wav2vec 2.0 family from folders of transformers, so that a peer stands in the same table.

Legend: B utterances, N samples (16 kHz), T frames at 50 Hz, D channels.
"""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from spear_lib.encoders import encoder_id, load_encoder
from spear_lib.encoders.base import EncoderOutput
from spear_lib.encoders.kinds import Encoder
from spear_lib.features.fbank import FbankExtractor, fbank_length
from spear_lib.runtime import keyed_random
from spear_lib.teachers.huggingface import PEERS, TransformersTeacher

LOG_MEL, RANDOM = "log-mel", "random:"


class LogMel(nn.Module):
    """128 log-mels at 50 Hz, the mean of two frames of 10 ms: what an encoder must beat."""

    frame_rate = 50
    output_dim = 128
    first_frame_center_ms = hidden_first_center_ms = 10.0
    min_samples = 240
    grouped_frames = 1
    ends_with_hidden_state = True

    def __init__(self) -> None:
        super().__init__()
        self.hidden_dims, self.hidden_frame_rates = [128], [50]
        self.fbank = FbankExtractor()

    def extract(self, waveforms: Tensor, lengths: Tensor) -> EncoderOutput:
        """waveforms (B, N), lengths (B,) in samples -> one state (B, T, 128)."""
        frames, counts = self.fbank(waveforms, lengths)
        pairs = frames[:, : frames.shape[1] // 2 * 2].unflatten(1, (-1, 2)).mean(2)
        return EncoderOutput(pairs, counts // 2, [pairs])

    def hidden_length(self, num_samples: int) -> int:
        """Frames of so many samples."""
        return fbank_length(num_samples) // 2

    output_length = hidden_length

    def identity(self) -> str:
        return "log_mel_128"


class TransformersPeer(nn.Module):
    """WavLM, HuBERT or wav2vec 2.0 from a folder of transformers, all layers.

    States are those that transformers and s3prl call hidden_states: the input of the first block, then the
    output of every block, of the last one after the final norm where the model has one.
    """

    grouped_frames = 1
    ends_with_hidden_state = True

    def __init__(self, teacher: TransformersTeacher) -> None:
        super().__init__()
        self.teacher = teacher
        self.frame_rate = round(teacher.frame_rate)
        self.first_frame_center_ms = self.hidden_first_center_ms = teacher.first_frame_center_ms
        self.output_dim = teacher.embedding_dim
        self.min_samples = teacher.min_samples
        self.hidden_dims = [teacher.embedding_dim] * (len(teacher.model.encoder.layers) + 1)
        self.hidden_frame_rates = [self.frame_rate] * len(self.hidden_dims)

    def extract(self, waveforms: Tensor, lengths: Tensor) -> EncoderOutput:
        """waveforms (B, N), lengths (B,) in samples -> states (B, T, D)."""
        states, counts = self.teacher.all_layers(waveforms, lengths)
        return EncoderOutput(states[-1], counts, states)

    def hidden_length(self, num_samples: int) -> int:
        """Frames of so many samples."""
        return self.teacher.num_frames(num_samples)

    output_length = hidden_length

    def identity(self) -> str:
        return f"{self.teacher.name}_{self.teacher.weights}"


def upstream_id(encoder: nn.Module) -> str:
    """What tells the weights of one from those of another; letters, digits and underscores."""
    return encoder.identity() if hasattr(encoder, "identity") else encoder_id(encoder)


def random_encoder(encoder: Encoder, seed: int) -> Encoder:
    """The same shape with untrained weights."""
    torch.manual_seed(keyed_random.key("random encoder", seed))
    return load_encoder(encoder.config)


def is_ours(name: str | Path) -> bool:
    """Whether ``name`` stands for an encoder of ours, which can be made with random weights as well."""
    name = str(name)
    return name != LOG_MEL and not name.startswith(RANDOM) and _model_type(Path(name)) not in PEERS


def load_upstream(name: str | Path | nn.Module, seed: int = 0) -> nn.Module:
    """What ``name`` stands for, in evaluation mode.

    Args:
      name: ``log-mel``; ``random:FOLDER``, the shape of an encoder with random weights; a folder of
        transformers with WavLM, HuBERT or wav2vec 2.0; whatever ``load_encoder`` reads; or an encoder itself.
      seed: of random weights.

    Raises:
      FileNotFoundError, ValueError: nothing there, or no encoder.
    """
    if isinstance(name, nn.Module):
        return name.eval()
    name = str(name)
    if name == LOG_MEL:
        return LogMel().eval()
    if name.startswith(RANDOM):
        encoder = load_upstream(name.removeprefix(RANDOM))
        if not hasattr(encoder, "config"):
            raise ValueError(f"{name}: random weights are made of our own encoders alone; give one of those")
        return random_encoder(encoder, seed)
    peer = PEERS.get(_model_type(Path(name)))
    return TransformersPeer(peer(name, -1)).eval() if peer else load_encoder(name)


def _model_type(folder: Path) -> str | None:
    """What the config.json of a folder of transformers says it is."""
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return settings.get("model_type") if isinstance(settings, dict) else None
