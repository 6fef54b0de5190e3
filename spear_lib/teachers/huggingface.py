"""WavLM and HuBERT of any size, from a folder in the format of Hugging Face transformers.

Legend: B utterances, N samples (16 kHz), T frames (20 ms), C convolution channels, D hidden size, L
transformer blocks.

Layer k is the output of block k (1-based), the residual stream before any layer norm that follows the blocks:
transformers' hidden_states[k] for k < L. Layer 0 is the input of block 1. Layer L of a model whose blocks
normalise first ("Large") is taken before the final layer norm as well, so every layer means the same thing in
every version of transformers (spec teachers §2.2). Only the blocks up to the layer are loaded and run.

An utterance's embeddings do not depend on its batch mates or on padding: waveforms are normalised over their
own samples, the group norm over time of Base models sees the utterance's own frames alone, and frames behind
the end are zero before the positional convolution and masked in attention.
"""

import math
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spear_lib.runtime.files import read_json
from spear_lib.runtime.hub import HUB_PREFIX, download
from spear_lib.teachers.base import Teacher, weights_hash

_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# Layer 21 of 24 (paper §4); 9 of 12 is what clusters of HuBERT Base are made of (paper F.4.2).
_DEFAULT_LAYERS = {24: 21, 12: 9}


class TransformersTeacher(Teacher):
    """Hidden states of a model of the wav2vec 2.0 family.

    Args:
      path: folder with config.json, model.safetensors or pytorch_model.bin, and preprocessor_config.json; or
        hub:OWNER/NAME, which is fetched once where a network is there.
      layer: 0..L as above, negative counts from the last; default: 21 of 24, 9 of 12, else 7/8 of L.
    """

    published: str
    """Name on the hub of the checkpoint that the paper uses."""

    def __init__(self, path: str | Path, layer: int | None = None) -> None:
        super().__init__()
        folder = fetch(str(path), self.name, self.published)
        config = self._read_config(folder)
        depth = config.num_hidden_layers
        index = default_layer(depth) if layer is None else layer + depth + 1 if layer < 0 else layer
        if not 0 <= index <= depth:
            raise ValueError(f"layer is {layer}: the {self.name} model in {folder} has layers 0..{depth}")
        config.num_hidden_layers = index
        config.mask_time_prob = config.mask_feature_prob = 0.0  # a weight that only training needs
        self.model = _load_model(self.name, folder, config)
        self.weights = weights_hash(self.model)
        self._final_norm: nn.Module = nn.Identity()
        if config.do_stable_layer_norm:
            self._final_norm = self.model.encoder.layer_norm
            self.model.encoder.layer_norm = nn.Identity()
        self._group_norm: GroupNormOverOwnFrames | None = None
        if config.feat_extract_norm == "group":
            first = self.model.feature_extractor.conv_layers[0]
            self._group_norm = first.layer_norm = GroupNormOverOwnFrames(first.layer_norm)
        self.do_normalize = self._read_normalisation(folder, config)
        self.convolutions = list(zip(config.conv_kernel, config.conv_stride))
        hop = math.prod(config.conv_stride)
        field = 1  # samples that one frame sees
        for kernel, stride in reversed(self.convolutions):
            field = (field - 1) * stride + kernel
        self.min_samples = field
        self.frame_rate = self.sample_rate / hop
        self.first_frame_center_ms = 1000 * field / 2 / self.sample_rate
        self.embedding_dim = config.hidden_size
        self.layer = (
            f"output of block {index} of {depth}, no layer norm after it" if index else "input of block 1"
        )
        self.field_prefix = f"{self.name}_l{index}"
        self.normalisation = "waveform mean 0, variance 1 per utterance" if self.do_normalize else "none"

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "weights": self.weights}

    def describe(self) -> dict[str, Any]:
        import transformers

        return {**super().describe(), "library": f"transformers {transformers.__version__}"}

    def num_frames(self, num_samples: int) -> int:
        for kernel, stride in self.convolutions:
            num_samples = max(0, (num_samples - kernel) // stride + 1)
        return num_samples

    def all_layers(self, waveforms: Tensor, lengths: Tensor) -> tuple[list[Tensor], Tensor]:
        """The input of the first block and the output of every one, (B, T, D) each, the last after the final
        norm that "Large" models have; and lengths (B,). For measuring a peer, not for tokens."""
        states: list[Tensor] = []

        def keep_input(_: nn.Module, arguments: tuple, named: dict) -> None:
            states.append(arguments[0] if arguments else named["hidden_states"])

        def keep_output(_: nn.Module, __: tuple, output: Any) -> None:
            states.append(output[0] if isinstance(output, tuple) else output)

        blocks = self.model.encoder.layers
        hooks = [blocks[0].register_forward_pre_hook(keep_input, with_kwargs=True)]
        hooks += [block.register_forward_hook(keep_output) for block in blocks]
        try:
            _, counts = self.frames(waveforms, lengths)
        finally:
            for hook in hooks:
                hook.remove()
        return [*states[:-1], self._final_norm(states[-1])], counts

    def frames(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        sizes = lengths.tolist()
        waveforms = self._prepare(waveforms, sizes)
        if self._group_norm is not None:
            kernel, stride = self.convolutions[0]
            self._group_norm.num_frames = [max(0, (size - kernel) // stride + 1) for size in sizes]
        features = self.model.feature_extractor(waveforms).transpose(1, 2)  # (B, T, C)
        counts = torch.tensor([self.num_frames(size) for size in sizes], device=features.device)
        hidden = self.model.feature_projection(features)  # (B, T, D); WavLM returns its input as well
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        # An utterance without frames attends to its first one, which nobody reads; a softmax over nothing
        # would be NaN.
        valid = torch.arange(hidden.shape[1], device=hidden.device) < counts.clamp(min=1).unsqueeze(1)
        with self.precision():
            hidden = self.model.encoder(hidden, attention_mask=valid).last_hidden_state
        return hidden, counts

    def _prepare(self, waveforms: Tensor, sizes: list[int]) -> Tensor:
        """Normalised copies, zero behind an utterance's end, at least one frame long."""
        result = waveforms.new_zeros(len(sizes), max(self.min_samples, waveforms.shape[1]))
        # One by one: sums over padded rows would depend on the padded length in their last bits.
        for row, size in enumerate(sizes):
            samples = waveforms[row, :size]
            if self.do_normalize and size:
                variance, mean = torch.var_mean(samples, correction=0)
                samples = (samples - mean) / torch.sqrt(variance + 1e-7)  # transformers' epsilon
            result[row, :size] = samples
        return result

    def _read_config(self, folder: Path) -> Any:
        config_class, _ = _classes(self.name)
        found = read_json(folder / "config.json").get("model_type")
        if found != self.name:
            raise ValueError(f"{folder} holds a {found} model, not {self.name}: use the teacher of that name")
        config = config_class.from_pretrained(folder)
        if getattr(config, "conv_pos_batch_norm", False):
            raise ValueError(
                f"{folder}: models with a batch norm before the positional convolution (conv_pos_batch_norm) "
                "are not supported: padding would change their embeddings"
            )
        return config

    def _read_normalisation(self, folder: Path, config: Any) -> bool:
        """Whether the model wants normalised waveforms: as its preprocessor_config.json says; without one, as
        the published checkpoints of this kind (all but Base sizes of WavLM)."""
        path = folder / "preprocessor_config.json"
        if not path.exists():
            return not (self.name == "wavlm" and config.feat_extract_norm == "group")
        settings = read_json(path)
        rate = settings.get("sampling_rate", self.sample_rate)
        if rate != self.sample_rate:
            raise ValueError(
                f"{path}: the model wants {rate} samples per second; teachers here get {self.sample_rate}"
            )
        return bool(settings.get("do_normalize", True))


def _needs(published: str) -> str:
    return (
        f"a folder with config.json, preprocessor_config.json and model.safetensors or pytorch_model.bin, "
        f"for example those of https://huggingface.co/{published}; or, where a network is there, "
        f"{HUB_PREFIX}{published}"
    )


class WavLMTeacher(TransformersTeacher):
    """WavLM; the paper's speech teacher is layer 21 of WavLM Large (§4)."""

    name = "wavlm"
    published = "microsoft/wavlm-large"
    needs = _needs(published)

    def __init__(self, path: str | Path, layer: int | None = None) -> None:
        super().__init__(path, layer)
        for block in self.model.encoder.layers:
            block.attention.torch_multi_head_self_attention = MethodType(_fused_attention, block.attention)


def _fused_attention(
    attention: nn.Module, hidden: Tensor, valid: Tensor | None, position_bias: Tensor, *_: Any
) -> tuple[Tensor, None]:
    """WavLM's attention without the weights that transformers computes and nobody here reads: half the time.

    Args:
      hidden: (B, T, D); valid: (B, T) bool; position_bias: (B * heads, T, T), gated.
    """
    shape = (*hidden.shape[:2], attention.num_heads, -1)
    query, key, value = (
        project(hidden).view(shape).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )  # each (B, heads, T, D / heads)
    bias = position_bias.view(*query.shape[:3], -1).to(query.dtype)
    if valid is not None:
        bias = bias.masked_fill(~valid[:, None, None, :], -math.inf)
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    return attention.out_proj(output.transpose(1, 2).flatten(2)), None


class HubertTeacher(TransformersTeacher):
    """HuBERT; the paper compares layer 21 of HuBERT Large."""

    name = "hubert"
    published = "facebook/hubert-large-ll60k"
    needs = _needs(published)


class Wav2Vec2Peer(TransformersTeacher):
    """wav2vec 2.0, to be measured beside encoders of ours; the paper takes no tokens of it."""

    name = "wav2vec2"
    published = "facebook/wav2vec2-large-lv60"
    needs = _needs(published)


PEERS: dict[str | None, type[TransformersTeacher]] = {
    each.name: each for each in (WavLMTeacher, HubertTeacher, Wav2Vec2Peer)
}
"""model_type of a folder -> what reads it, for evaluation."""


class GroupNormOverOwnFrames(nn.Module):
    """Group norm over time, (B, C, T), with the statistics of each utterance's own frames.

    Set ``num_frames``, one number per utterance, before every call. Behind an utterance's end the result is
    zero.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm
        self.num_frames: list[int] = []

    def forward(self, hidden: Tensor) -> Tensor:
        result = torch.zeros_like(hidden)
        for row, count in enumerate(self.num_frames):
            if count:
                result[row, :, :count] = self.norm(hidden[row : row + 1, :, :count])[0]
        return result


def default_layer(depth: int) -> int:
    """The layer that is taken of a model of ``depth`` blocks where none is asked for."""
    return _DEFAULT_LAYERS.get(depth, math.floor(depth * 21 / 24 + 0.5))


def fetch(path: str, name: str, published: str) -> Path:
    """The folder that ``path`` (a folder or hub:OWNER/NAME) stands for, complete.

    Raises:
      RuntimeError: the hub cannot be reached; says what to download where.
      ValueError: no such folder, or a file is missing in it.
    """
    on_hub = path.startswith(HUB_PREFIX)
    repository = path.removeprefix(HUB_PREFIX) if on_hub else published
    advice = (
        f"download config.json, preprocessor_config.json and model.safetensors or pytorch_model.bin of "
        f"https://huggingface.co/{repository} into a folder and pass that as --teacher_path"
    )
    if on_hub:
        folder = download(repository, advice)
    else:
        folder = Path(path)
        if not folder.is_dir():
            raise ValueError(f"no folder {path} with the weights of the {name} teacher: {advice}")
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder} has no config.json: {advice}")
    if not any((folder / weights).exists() for weights in _WEIGHT_FILES):
        raise ValueError(f"{folder} has neither model.safetensors nor pytorch_model.bin: {advice}")
    return folder


def _classes(name: str) -> tuple[Any, Any]:
    """Configuration and model class of transformers."""
    try:
        import transformers
    except ImportError as error:
        raise RuntimeError(
            f"the {name} teacher needs the package transformers: pip install 'transformers>=4.45'"
        ) from error
    return {
        "wavlm": (transformers.WavLMConfig, transformers.WavLMModel),
        "hubert": (transformers.HubertConfig, transformers.HubertModel),
        "wav2vec2": (transformers.Wav2Vec2Config, transformers.Wav2Vec2Model),
    }[name]


def _load_model(name: str, folder: Path, config: Any) -> nn.Module:
    """The model in float32, without gradients; every weight it uses is in the files.

    Raises:
      ValueError: damaged files, or weights that are missing or of another shape.
    """
    _, model_class = _classes(name)
    try:
        with _quiet():
            # What does not fit is reported, so that the error below can name it.
            model, report = model_class.from_pretrained(
                folder,
                config=config,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                local_files_only=True,
                weights_only=True,
            )
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"the weights in {folder} cannot be read ({reason}): download them again") from error
    missing = sorted(map(str, report["missing_keys"]))
    # Names, or names with shapes, by the version of transformers.
    wrong = sorted(each if isinstance(each, str) else str(each[0]) for each in report["mismatched_keys"])
    if missing or wrong:
        some = ", ".join([*missing, *wrong][:5])
        raise ValueError(
            f"{folder} does not fit its config.json: {len(missing)} weights are missing and {len(wrong)} "
            f"have another shape, for example {some}; download the files again, all from one place"
        )
    return model.float().eval().requires_grad_(False)


@contextmanager
def _quiet():
    """transformers without its progress bar and its table of unused weights (the blocks above the layer)."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
