"""The ASR model: an encoder with a pruned RNN-T head, a CTC head or both (spec rnnt §6).

Legend: B utterances, T encoder frames, S labels, E encoder channels, V units (blank 0 included).
"""

import logging
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spear_lib.config import MAY_CHANGE
from spear_lib.runtime import keyed_random
from spear_lib.transducer import (
    Joiner,
    StatelessDecoder,
    do_rnnt_pruning,
    get_rnnt_prune_ranges,
    select_backend,
)

logger = logging.getLogger(__name__)

# Which draw of keyed_random the CTC dropout is (any number that no other module uses).
_CTC_DROPOUT_SITE = 0x435443


@dataclass(frozen=True)
class TransducerConfig:
    """Sizes of the heads and the weights of their losses; a head whose loss weighs 0 does not exist."""

    transducer_loss_scale: float = 1.0
    """Weight of the transducer loss; 0 = no transducer: with ctc_loss_scale 1 a pure CTC model
    (paper C)."""
    ctc_loss_scale: float = 0.0
    """Weight of the CTC loss; 0 = no CTC head (icefall: 0.2 beside a transducer, where used)."""
    decoder_dim: int = 512
    """Channels of the prediction network (ours; 768 here and in the joiner give the 3 million parameters of
    paper §5.1 beside Large)."""
    joiner_dim: int = 512
    """Channels of the joiner (ours)."""
    context_size: int = 2
    """Labels that the prediction network sees (icefall)."""
    rnnt_type: str = "regular"
    """"regular", "modified" or "constrained" (reference: regular)."""
    backend: str = field(default="auto", metadata=MAY_CHANGE)
    """What computes the transducer losses: "torch" (needs nothing), "triton" (kernels on CUDA), "k2", or
    "auto" (triton on CUDA where it is installed, else torch). All give the same numbers, so a run may go on
    with another one."""
    prune_range: int = 5
    """Lattice states kept per frame in the pruned loss (reference: 5)."""
    lm_scale: float = 0.25
    """Weight of the prediction-network-only term of the smoothed simple loss (icefall)."""
    am_scale: float = 0.0
    """Weight of the encoder-only term of the smoothed simple loss (icefall)."""
    simple_loss_scale: float = 0.5
    """Final weight of the simple loss (icefall)."""
    warm_step: int = 2000
    """Steps over which the weights move from the simple to the pruned loss (icefall)."""
    delay_penalty: float = 0.0
    """Nats per frame by which late labels are punished (Kang et al. 2022); 0 = off."""
    ctc_dropout: float = 0.1
    """Dropout before the CTC output layer (icefall)."""

    def __post_init__(self) -> None:
        scales = self.transducer_loss_scale, self.ctc_loss_scale
        if min(scales) < 0 or max(scales) == 0:
            raise ValueError(
                f"transducer_loss_scale is {scales[0]:g} and ctc_loss_scale {scales[1]:g}: neither may be "
                "negative, and one must be positive"
            )


class AsrModel(nn.Module):
    """Encoder and heads: stateless decoder, joiner and simple heads; a linear layer for CTC.

    State-dict names are the reference's.

    Args:
      encoder: anything with ``output_dim``; may be None where only the head is wanted (tests).
      config: sizes and loss weights.
      vocab_size: V, number of units with blank (id 0).
    """

    blank_id = 0

    def __init__(
        self, encoder: nn.Module | None, config: TransducerConfig, vocab_size: int, encoder_dim: int = 0
    ):
        super().__init__()
        if vocab_size < 2:
            raise ValueError(f"vocab_size is {vocab_size}; there must be blank and at least one unit.")
        self.config = config
        self.vocab_size = vocab_size
        if encoder is not None:
            self.encoder = encoder
            encoder_dim = encoder.output_dim
        if encoder_dim < 1:
            raise ValueError("AsrModel needs an encoder, or encoder_dim to build the head alone.")
        if "transducer" in self.heads:
            self.decoder = StatelessDecoder(
                vocab_size, config.decoder_dim, config.context_size, self.blank_id
            )
            self.joiner = Joiner(encoder_dim, config.decoder_dim, config.joiner_dim, vocab_size)
            self.simple_am_proj = nn.Linear(encoder_dim, vocab_size)
            self.simple_lm_proj = nn.Linear(config.decoder_dim, vocab_size)
        if "ctc" in self.heads:
            self.ctc_output = nn.Linear(encoder_dim, vocab_size)

    @property
    def heads(self) -> list[str]:
        """ "transducer", "ctc" or both."""
        scales = {"transducer": self.config.transducer_loss_scale, "ctc": self.config.ctc_loss_scale}
        return [head for head, scale in scales.items() if scale > 0]

    def loss_scales(self, step: int) -> tuple[float, float]:
        """(simple, pruned) weights at ``step``: the simple loss leads until the pruning can be trusted."""
        config = self.config
        if step >= config.warm_step:
            return config.simple_loss_scale, 1.0
        done = step / config.warm_step
        return 1.0 - done * (1.0 - config.simple_loss_scale), 0.1 + 0.9 * done

    def losses(
        self,
        encoder_out: Tensor,
        encoder_lengths: Tensor,
        targets: list[list[int]],
        step: int,
        utterance_keys: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Training losses, summed over the batch, in nats; computed in float32 outside autocast.

        Args:
          encoder_out: (B, T, E).
          encoder_lengths: (B,) int64 valid frames.
          targets: unit ids of each utterance, without blank.
          step: training step, for the weights (from 0).
          utterance_keys: (B,) int64 keys of the CTC dropout; without them there is none.

        Returns:
          loss_sum (the weighted total) and num_frames (int64, valid frames), scalar; of the transducer
          simple_loss, pruned_loss and num_dropped, of CTC ctc_loss and num_ctc_dropped: utterances without
          any path (no frames; more labels than frames unless "regular"; too short for CTC) add 0 and are
          counted.
        """
        device = encoder_out.device
        with torch.autocast(device.type, enabled=False):
            encoder_out = encoder_out.float()
            lengths = encoder_lengths.to(device=device, dtype=torch.int64)
            labels, num_labels = self._pad_targets(targets, encoder_out)
            total = encoder_out.new_zeros(())
            results: dict[str, Tensor] = {"num_frames": lengths.sum()}
            if "transducer" in self.heads:
                simple, pruned, dropped = self._transducer_losses(encoder_out, lengths, labels, num_labels)
                simple_scale, pruned_scale = self.loss_scales(step)
                transducer = simple_scale * simple + pruned_scale * pruned
                total = total + self.config.transducer_loss_scale * transducer
                results |= {"simple_loss": simple.detach(), "pruned_loss": pruned.detach()}
                results["num_dropped"] = dropped
            if "ctc" in self.heads:
                ctc, dropped = self._ctc_loss(encoder_out, lengths, labels, num_labels, utterance_keys)
                total = total + self.config.ctc_loss_scale * ctc
                results |= {"ctc_loss": ctc.detach(), "num_ctc_dropped": dropped}
        return {"loss_sum": total, **results}

    def _pad_targets(self, targets: list[list[int]], encoder_out: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S) int64 padded with blank and (B,) lengths, on the encoder's device."""
        if len(targets) != encoder_out.shape[0]:
            raise ValueError(f"{len(targets)} targets for a batch of {encoder_out.shape[0]} utterances.")
        longest = max((len(target) for target in targets), default=0)
        labels = torch.full((len(targets), longest), self.blank_id, dtype=torch.int64)
        for row, target in enumerate(targets):
            labels[row, : len(target)] = torch.as_tensor(target, dtype=torch.int64)
            if target and (min(target) < 1 or max(target) >= self.vocab_size):
                raise ValueError(
                    f"target {row} holds unit ids {min(target)}..{max(target)}; they must lie "
                    f"in 1..{self.vocab_size - 1} (0 is blank). Are these the units of this model?"
                )
        num_labels = torch.tensor([len(target) for target in targets], dtype=torch.int64)
        return labels.to(encoder_out.device), num_labels.to(encoder_out.device)

    def _transducer_losses(
        self, encoder_out: Tensor, lengths: Tensor, labels: Tensor, num_labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        config = self.config
        # Looked up here, not kept: a checkpoint may be read where the library it was trained with is missing.
        backend = select_backend(config.backend, encoder_out.device)
        needed = num_labels.clamp(max=1) if config.rnnt_type == "regular" else num_labels
        valid = lengths >= needed
        decoder_out = self.decoder(F.pad(labels, (1, 0), value=self.blank_id))
        boundary = torch.zeros((len(labels), 4), dtype=torch.int64, device=labels.device)
        boundary[:, 2], boundary[:, 3] = num_labels, lengths
        common = {
            "boundary": boundary,
            "rnnt_type": config.rnnt_type,
            "delay_penalty": config.delay_penalty,
            "reduction": "none",
        }
        simple, occupation = backend.rnnt_loss_smoothed(
            self.simple_lm_proj(decoder_out),
            self.simple_am_proj(encoder_out),
            labels,
            self.blank_id,
            lm_only_scale=config.lm_scale,
            am_only_scale=config.am_scale,
            return_grad=True,
            **common,
        )
        ranges = get_rnnt_prune_ranges(*occupation, boundary, config.prune_range)
        # Both projections are linear: project first, then prune (saves R times the work).
        encoder_part, decoder_part = do_rnnt_pruning(
            self.joiner.encoder_proj(encoder_out), self.joiner.decoder_proj(decoder_out), ranges
        )
        logits = self.joiner(encoder_part, decoder_part, project_input=False)
        pruned = backend.rnnt_loss_pruned(logits, labels, ranges, self.blank_id, **common)
        # Only losses that are infinite by construction are dropped (and counted): a NaN stays visible.
        simple = torch.where(valid, simple, 0.0).sum()
        pruned = torch.where(valid, pruned, 0.0).sum()
        return simple, pruned, (~valid).sum()

    def _ctc_loss(
        self,
        encoder_out: Tensor,
        lengths: Tensor,
        labels: Tensor,
        num_labels: Tensor,
        utterance_keys: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        probability = self.config.ctc_dropout
        if self.training and utterance_keys is not None and probability > 0:
            batch, frames, channels = encoder_out.shape
            draws = keyed_random.uniform(utterance_keys, _CTC_DROPOUT_SITE, frames * channels)
            keep = (draws >= probability).reshape(batch, frames, channels)
            encoder_out = encoder_out * keep / (1.0 - probability)
        position = torch.arange(1, max(labels.shape[1], 1), device=labels.device)
        repeats = ((labels[:, 1:] == labels[:, :-1]) & (position < num_labels[:, None])).sum(1)
        valid = lengths >= num_labels + repeats
        losses = F.ctc_loss(
            self.ctc_log_probs(encoder_out).transpose(0, 1),
            labels,
            lengths,
            num_labels,
            blank=self.blank_id,
            reduction="none",
            zero_infinity=True,
        )
        return torch.where(valid, losses, 0.0).sum(), (~valid).sum()

    def ctc_log_probs(self, encoder_out: Tensor) -> Tensor:
        """(B, T, E) -> (B, T, V) log-probabilities of the CTC head, float32."""
        if "ctc" not in self.heads:
            raise RuntimeError("this model has no CTC head: it was built with ctc_loss_scale 0.")
        return torch.log_softmax(self.ctc_output(encoder_out).float(), dim=-1)
