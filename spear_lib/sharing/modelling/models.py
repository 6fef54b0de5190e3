"""The models: features of audio, text by CTC, tags.

Shapes: B utterances, N samples (16 kHz), T frames at 50 Hz, T' output frames, D channels, K classes.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Pipeline, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput, SequenceClassifierOutput
from transformers.utils import ModelOutput

from spear_lib.sharing.modelling.configuration import SpearConfig, numbers
from spear_lib.sharing.modelling.features import MIN_SAMPLES, Fbank
from spear_lib.sharing.modelling.layers import (
    Bypass,
    Downsample,
    FrontEnd,
    Layer,
    positional_table,
    upsample,
)

MASKED_SCORE = -1000.0  # of attention; finite, so that a row without any source stays finite
HEADS = ("ctc_output.", "audio_tagging_proj.")  # what a folder may lack: layers for a new task

# Output (B, T', D), its lengths (B,), outputs of all layers (B, T, D).
Encoded = tuple[Tensor, Tensor, tuple[Tensor, ...] | None]


@dataclass
class SpearOutput(ModelOutput):
    """Frames at and beyond an utterance's length are undefined."""

    last_hidden_state: Tensor | None = None
    """encoder_out under transformers' name."""
    hidden_states: tuple[Tensor, ...] | None = None
    """One (B, T, D) for each layer, always at 50 Hz."""
    encoder_out: Tensor | None = None
    """(B, T', D) at ``config.frame_rate``."""
    encoder_out_lens: Tensor | None = None
    """(B,) valid frames of encoder_out."""


class FrameMasks:
    """Which frames are seen, at every rate."""

    def __init__(self, config: SpearConfig, lengths: Tensor, frames: int):
        self.lengths, self.frames, self.exact = lengths, frames, config.padding == "exact"
        index = torch.arange(frames, device=lengths.device)
        self.valid = index < lengths.unsqueeze(1)
        self.chunk_size = numbers(config.chunk_size)[0] if config.causal else -1
        self.chunks = None
        if self.chunk_size > 0:
            left = numbers(config.left_context_frames)[0]
            before = 1_000_000 if left < 0 else max(1, left // self.chunk_size)
            chunk = torch.div(index, self.chunk_size, rounding_mode="floor")
            ahead = chunk.unsqueeze(0) - chunk.unsqueeze(1)
            self.chunks = (ahead > 0) | (ahead < -before)

    def attention(self, factor: int) -> Tensor:
        """What is added to scores at ``factor``."""
        unseen = ~self.valid[:, None, None, ::factor]
        if self.chunks is not None:
            unseen = unseen | self.chunks[None, None, ::factor, ::factor]
        return unseen.to(torch.float32) * MASKED_SCORE

    def chunk(self, factor: int) -> int | Tensor:
        """Frames of a chunk of causal convolutions; (B,) where each utterance is one chunk."""
        low_frames = -(-self.frames // factor)
        if self.chunk_size > 0:
            size = self.chunk_size // factor
            return size if self.exact else min(size, low_frames)
        if not self.exact:
            return low_frames
        return torch.div(self.lengths + factor - 1, factor, rounding_mode="floor")


class Stack(nn.Module):
    def __init__(self, config: SpearConfig, index: int):
        super().__init__()
        self.pos_dim = config.pos_dim
        count = config.per_stack("num_encoder_layers")[index]
        self.layers = nn.ModuleList([Layer(config, index) for _ in range(count)])

    def forward(self, x: Tensor, masks: FrameMasks, factor: int, states: list) -> Tensor:
        table = positional_table(x.shape[1], self.pos_dim, x.device)
        shared = (masks.attention(factor), masks.valid[:, ::factor].unsqueeze(2), masks.chunk(factor))
        for layer in self.layers:
            x = layer(x, table, *shared)
            states.append((x, factor))
        return x


class DownsampledStack(nn.Module):
    """A stack at a lower rate, combined with its input."""

    def __init__(self, config: SpearConfig, index: int, factor: int):
        super().__init__()
        self.downsample, self.encoder = Downsample(factor), Stack(config, index)
        self.out_combiner = Bypass(config.per_stack("encoder_dim")[index])

    def forward(self, x: Tensor, masks: FrameMasks, factor: int, states: list) -> Tensor:
        low = self.downsample(x, masks.lengths if masks.exact else None)
        low = self.encoder(low, masks, factor, states)
        return self.out_combiner(x, upsample(low, factor, x.shape[1]))


class Zipformer(nn.Module):
    def __init__(self, config: SpearConfig):
        super().__init__()
        self.config, self.factors = config, numbers(config.downsampling_factor)
        self.encoders = nn.ModuleList(
            Stack(config, index) if factor == 1 else DownsampledStack(config, index, factor)
            for index, factor in enumerate(self.factors)
        )
        if config.output_downsampling_factor == 2:
            self.downsample_output = Downsample(2)

    def forward(self, x: Tensor, lengths: Tensor, layers: bool) -> Encoded:
        frames = x.shape[1]
        masks = FrameMasks(self.config, lengths, frames)
        states: list[tuple[Tensor, int]] = []
        outputs: list[Tensor] = []
        for stack, factor, dim in zip(self.encoders, self.factors, self.config.per_stack("encoder_dim")):
            x = x[..., :dim] if x.shape[2] >= dim else F.pad(x, (0, dim - x.shape[2]))
            x = stack(x, masks, factor, states)
            outputs.append(x)
        for output in reversed(outputs[:-1]):  # channels that only earlier, wider stacks have
            x = torch.cat([x, output[..., x.shape[2] :]], dim=2) if output.shape[2] > x.shape[2] else x
        if self.config.output_downsampling_factor == 2:
            x = self.downsample_output(x, masks.lengths if masks.exact else None)
            lengths = torch.div(lengths + 1, 2, rounding_mode="floor")
        return x, lengths, tuple(upsample(low, f, frames) for low, f in states) if layers else None


class SpearEncoder(nn.Module):
    def __init__(self, config: SpearConfig):
        super().__init__()
        self.config = config
        self.encoder_embed, self.encoder = FrontEnd(config), Zipformer(config)
        self.mask_emb = nn.Parameter(torch.empty(config.num_mel_bins))  # of pre-training; unused here
        self.tables: dict[torch.device, Fbank] = {}

    def reset_parameters(self) -> None:
        nn.init.normal_(self.mask_emb)

    def forward(self, audio: Tensor, lengths: Tensor, layers: bool) -> Encoded:
        """audio (B, N) float32, lengths (B,) samples -> output (B, T', D), its lengths, outputs of layers."""
        if audio.device not in self.tables:  # made when first needed: models may be born without memory
            self.tables[audio.device] = Fbank(self.config.num_mel_bins, audio.device)
        with torch.no_grad(), torch.autocast(audio.device.type, enabled=False):
            fbank, lengths = self.tables[audio.device](audio, lengths)
        x, lengths = self.encoder_embed(fbank.to(self.mask_emb.dtype), lengths)
        return self.encoder(x, lengths, layers)


class Holder(nn.Module):
    """The level between a model and its encoder that the names of published tensors have."""

    def __init__(self, config: SpearConfig):
        super().__init__()
        self.model = SpearEncoder(config)


class SpearPreTrainedModel(PreTrainedModel):
    """What all models share. Training mode has no dropout: the same outputs, with gradients."""

    config_class = SpearConfig
    main_input_name = "input_values"

    def __init__(self, config: SpearConfig):
        super().__init__(config)
        self.model = Holder(config)

    def _init_weights(self, module: nn.Module) -> None:
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        missing = sorted(name for name in info["missing_keys"] if not name.startswith(HEADS))
        if missing:
            raise ValueError(
                f"{args[0] if args else 'the folder'} lacks {len(missing)} tensors of the encoder, which "
                f"would be random: {', '.join(missing[:5])}; download or export it again"
            )
        return (model, info) if output_loading_info else model

    def output_length(self, num_samples: int | Tensor) -> int | Tensor:
        """Frames of encoder_out for so many samples (int or integer tensor) at 16 kHz."""
        samples = torch.as_tensor(num_samples).clamp(min=MIN_SAMPLES)
        hidden = torch.div(torch.div(samples + 80, 160, rounding_mode="floor") - 7, 2, rounding_mode="floor")
        factor = self.config.output_downsampling_factor
        frames = torch.div(hidden + factor - 1, factor, rounding_mode="floor")
        return frames if isinstance(num_samples, Tensor) else int(frames)

    def encode(self, audio: Tensor, where: Tensor | None, layers: bool = False) -> Encoded:
        """audio (B, N), (B, 1, N) or (N,); where: (B,) samples, or (B, N) mask, 1 = audio; all if None."""
        if not torch.is_tensor(audio) or not audio.is_floating_point():
            raise ValueError("audio must be a float tensor (B, N) at 16 kHz; divide 16-bit integers by 32768")
        audio = audio.squeeze(1) if audio.dim() == 3 and audio.shape[1] == 1 else audio
        audio = audio.unsqueeze(0) if audio.dim() == 1 else audio
        if audio.dim() != 2 or audio.numel() == 0:
            raise ValueError(f"audio must be (B, N) of one channel, got shape {tuple(audio.shape)}")
        batch, width = audio.shape
        where = torch.full((batch,), width) if where is None else torch.as_tensor(where)
        where = where.to(audio.device)
        if where.numel() == batch * width and where.shape[-1] == width and width > 1:  # a mask
            mask = where.reshape(batch, width).to(torch.int64)
            where = mask.sum(-1)
            if not torch.equal(mask, (torch.arange(width, device=mask.device) < where[:, None]).to(mask)):
                raise ValueError("attention_mask has a gap or padding on the left; pad on the right")
        lengths = where.reshape(-1).to(torch.int64)
        if len(lengths) != batch or int(lengths.min()) < 1 or int(lengths.max()) > width:
            raise ValueError(f"{batch} lengths in 1..{width} samples are needed, got {lengths.tolist()}")
        audio = audio.to(torch.float32)
        audio = audio * (torch.arange(width, device=audio.device) < lengths.unsqueeze(1))
        audio = F.pad(audio, (0, max(0, MIN_SAMPLES - width)))
        return self.model.model(audio, lengths.clamp(min=MIN_SAMPLES), layers)


class SpearModel(SpearPreTrainedModel):
    """The encoder: ``model(audio, lengths)`` or ``model(**feature_extractor(...))``."""

    def __init__(self, config: SpearConfig):
        super().__init__(config)
        self.post_init()

    def forward(
        self,
        audio: Tensor | None = None,
        audio_lens: Tensor | None = None,
        return_middle_layers: bool = True,
        input_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **unused: Any,
    ) -> Any:
        """Encode waveforms.

        Args:
          audio or input_values: (B, N) float in [-1, 1] at 16 kHz.
          audio_lens or attention_mask: (B,) valid samples, or a mask (B, N), 1 = audio.
          return_middle_layers, output_hidden_states: False = without hidden_states.
        """
        audio = input_values if audio is None else audio
        where = attention_mask if audio_lens is None else audio_lens
        layers = return_middle_layers if output_hidden_states is None else output_hidden_states
        x, lengths, hidden = self.encode(audio, where, layers)
        output = SpearOutput(
            last_hidden_state=x, hidden_states=hidden, encoder_out=x, encoder_out_lens=lengths
        )
        return output.to_tuple() if return_dict is False else output


class SpearForCTC(SpearPreTrainedModel):
    """Text by CTC; ``config.pad_token_id`` is the blank."""

    def __init__(self, config: SpearConfig):
        super().__init__(config)
        self.ctc_output = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **unused: Any,
    ) -> Any:
        """As SpearModel's input_values and attention_mask; labels (B, S), below 0 = none.

        Returns logits (B, T', V), the blank's where an utterance has ended; with labels the CTC loss, summed
        over units and averaged over the batch as ``config.ctc_loss_reduction`` says.
        """
        x, lengths, hidden = self.encode(input_values, attention_mask, bool(output_hidden_states))
        logits, blank = self.ctc_output(x), self.config.pad_token_id
        loss = None
        if labels is not None:
            with torch.autocast(logits.device.type, enabled=False):
                scores = logits.float().log_softmax(-1).transpose(0, 1)
                sizes = (labels >= 0).sum(-1)
                how = getattr(self.config, "ctc_loss_reduction", "sum")
                loss = F.ctc_loss(scores, labels.clamp(min=0), lengths, sizes, blank, how, zero_infinity=True)
        ended = (torch.arange(x.shape[1], device=x.device) >= lengths.unsqueeze(1)).unsqueeze(2)
        silence = F.one_hot(torch.tensor(blank, device=x.device), logits.shape[2]).to(logits.dtype) * 100.0
        output = CausalLMOutput(loss=loss, logits=torch.where(ended, silence, logits), hidden_states=hidden)
        return output.to_tuple() if return_dict is False else output


class SpearForAudioClassification(SpearPreTrainedModel):
    """Logits of classes; their sigmoid is the probability (problem_type multi_label_classification)."""

    def __init__(self, config: SpearConfig):
        super().__init__(config)
        self.audio_tagging_proj = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **unused: Any,
    ) -> Any:
        """As SpearModel's input_values and attention_mask; labels (B, K) of 0 and 1, or (B,) classes."""
        x, lengths, hidden = self.encode(input_values, attention_mask, bool(output_hidden_states))
        logits = pool(self.audio_tagging_proj(x).float(), lengths, self.config.pooling)
        loss = None
        if labels is not None:
            several = labels.dim() == 2
            loss = (F.binary_cross_entropy_with_logits if several else F.cross_entropy)(
                logits, labels.to(logits.dtype) if several else labels
            )
        output = SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=hidden)
        return output.to_tuple() if return_dict is False else output


def pool(frame_logits: Tensor, lengths: Tensor, pooling: str) -> Tensor:
    """Logits of clips (B, K) from those of their frames (B, T', K): their mean, or the linear softmax."""
    frames = torch.arange(frame_logits.shape[1], device=frame_logits.device)
    valid = (frames < lengths.unsqueeze(1)).unsqueeze(2)
    if pooling == "mean":
        return torch.where(valid, frame_logits, 0.0).sum(1) / lengths.unsqueeze(1)
    log_yes, log_no = F.logsigmoid(frame_logits), F.logsigmoid(-frame_logits)
    outside = torch.finfo(frame_logits.dtype).min
    yes = torch.where(valid, 2.0 * log_yes, outside).logsumexp(1)
    return yes - torch.where(valid, log_yes + log_no, outside).logsumexp(1)


class SpearFeaturePipeline(Pipeline):
    """``pipeline("feature-extraction", model=FOLDER, trust_remote_code=True)`` for audio.

    Takes an array at 16 kHz, a dict of "raw" or "array" and "sampling_rate", or several; gives lists
    (1, T', D), or with return_tensors=True tensors.
    """

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = True
    _load_tokenizer = False

    def _sanitize_parameters(self, return_tensors: bool = False, **unused: Any) -> tuple[dict, dict, dict]:
        return {}, {}, {"return_tensors": return_tensors}

    def preprocess(self, inputs: Any) -> dict[str, Tensor]:
        rate = self.feature_extractor.sampling_rate
        if isinstance(inputs, dict):
            rate = inputs.get("sampling_rate", rate)
            inputs = inputs["raw"] if "raw" in inputs else inputs["array"]
        return self.feature_extractor(inputs, sampling_rate=rate, return_tensors="pt")

    def _forward(self, model_inputs: dict[str, Tensor]) -> Any:
        return self.model(**model_inputs)

    def postprocess(self, model_outputs: Any, return_tensors: bool = False) -> Any:
        return model_outputs[0] if return_tensors else model_outputs[0].tolist()
