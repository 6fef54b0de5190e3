"""Average the last checkpoints of a run and write the encoder as a folder for load_encoder (spec optim §3).

    python -m spear_lib.bin.average_checkpoints --experiment_dir exp/pretrain --output exp/pretrain/encoder
    --last 4

``range`` gives the mean over every step of the last intervals, from the running averages in the checkpoints;
``plain`` the mean of the checkpoints' own weights.
"""

import logging
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from spear_lib.bin.common import run
from spear_lib.config import parse
from spear_lib.encoders import load_encoder, save_encoder
from spear_lib.runtime.log import commit, first_screen
from spear_lib.training.checkpoint_average import average_checkpoints

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AverageOptions:
    """Which checkpoints to average, and where the encoder goes."""

    experiment_dir: str
    """Folder of a run of pretrain or finetune_asr."""
    output: str
    """Folder for config.json and model.safetensors."""
    last: int = 4
    """How many save intervals the average covers (reference: 4 intervals of 4000 steps); 0: the whole run."""
    step: int = 0
    """Average up to this checkpoint (0: the newest)."""
    method: str = "range"
    """range: over every averaged step of the intervals; plain: over the checkpoints; none: the newest
    weights."""


def main(argv: list[str] | None = None) -> None:
    options = parse(
        AverageOptions, argv, prog="python -m spear_lib.bin.average_checkpoints", description=__doc__
    )
    first_screen(
        "Averaging checkpoints",
        {"of": options.experiment_dir, "method": options.method, "writes to": options.output},
    )
    state, provenance, encoder_config = average(options)
    encoder = load_encoder(encoder_config)
    prefix = "encoder."
    own = encoder.state_dict()
    part = {
        name: state[prefix + name].to(value.dtype) for name, value in own.items() if prefix + name in state
    }
    if set(part) != set(own):
        raise ValueError(
            f"the checkpoint lacks {sorted(set(own) - set(part))[:5]} of the encoder: was it written by "
            "another model?"
        )
    encoder.load_state_dict(part)
    save_encoder(encoder, options.output, provenance)
    logger.info("wrote %s: %s", options.output, provenance["average"])


def average(options: AverageOptions) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Averaged state of the whole model, where it comes from, and the encoder's configuration."""
    averaged = average_checkpoints(
        options.experiment_dir, options.last, options.method, options.step, fewer=True
    )
    end = averaged.checkpoint
    provenance = {
        "source": str(averaged.path),
        "kind": end["kind"],
        "step": end["step"],
        "hours": end["hours"],
        "average": averaged.words,
        "quantizer_ids": end.get("quantizer_ids", {}),
        "code": commit(),
    }
    return averaged.state, provenance, end["encoder_config"]


if __name__ == "__main__":
    run(main)
