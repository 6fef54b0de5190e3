"""The reference's own training of the quantiser, for comparison: Adam in two phases (Guo et al. 2023; paper
App. A).

Phase one trains 2N codebooks of 16 entries, phase two their product: N codebooks of 256. Code vectors and
classifiers are trained together on ``Quantizer.loss``. The default method (trainer.py) needs a fraction of
the time.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spear_lib import keyed_random
from spear_lib.quantization.embeddings import FrameMatrix
from spear_lib.quantization.options import QuantizerTrainingOptions
from spear_lib.quantization.quantizer import Quantizer, QuantizerLosses
from spear_lib.quantization.trainer import CHECKPOINT, load_state, save_state
from spear_lib.training.progress import progress

logger = logging.getLogger(__name__)

LEARNING_RATE = 0.005
_SAVE_EVERY = 500  # steps
_LOG_EVERY = 200  # steps


class ReferenceTrainer:
    """Steps of the reference schedule: phase one has ``phase_one_steps`` + 1 steps, phase two
    ``phase_two_steps``.

    Args:
      quantizer: 2N codebooks of 16 entries, at its initial values.
    """

    def __init__(self, quantizer: Quantizer, phase_one_steps: int, phase_two_steps: int):
        if min(phase_one_steps, phase_two_steps) < 4:
            raise ValueError(
                f"phases of {phase_one_steps} and {phase_two_steps} steps are too short: the learning rate "
                f"falls in "
                "four parts, so each phase needs at least 4"
            )
        self.quantizer = quantizer
        self.phase_steps = (phase_one_steps, phase_two_steps)
        self.num_steps = phase_one_steps + phase_two_steps + 1
        self.step_index = 0
        self._new_optimizer()

    def _new_optimizer(self) -> None:
        self.optimizer = torch.optim.Adam(
            self.quantizer.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), eps=1e-9, weight_decay=1e-6
        )

    def learning_rate(self) -> float:
        """Rate of the next step: halved every quarter of a phase; phase two starts at half."""
        first, second = self.phase_steps
        if self.step_index <= first:
            return LEARNING_RATE * 0.5 ** (self.step_index // (first // 4))
        return LEARNING_RATE / 2 * 0.5 ** ((self.step_index - first - 1) // (second // 4))

    def step(self, x: Tensor, refine_iters: int) -> QuantizerLosses:
        """One update on normalised frames x (B, D); the losses before it."""
        self.optimizer.param_groups[0]["lr"] = self.learning_rate()
        losses = self.quantizer.loss(x, refine_iters, normalised=True)
        self.optimizer.zero_grad()
        losses.total.backward()
        self.optimizer.step()
        if self.step_index == self.phase_steps[0]:
            self.quantizer = self.quantizer.product().to(x.device)
            self._new_optimizer()
        self.step_index += 1
        return losses

    def state_dict(self) -> dict[str, Any]:
        """All that a later process needs to go on."""
        return {
            "step": self.step_index,
            "num_codebooks": self.quantizer.num_codebooks,
            "quantizer": self.quantizer.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step_index = state["step"]
        if state["num_codebooks"] != self.quantizer.num_codebooks:
            self.quantizer = self.quantizer.product().to(self.quantizer.mean.device)
        self.quantizer.load_state_dict(state["quantizer"])
        self._new_optimizer()
        self.optimizer.load_state_dict(state["optimizer"])


def train_reference(
    data: FrameMatrix,
    options: QuantizerTrainingOptions,
    seed: int,
    checkpoint_folder: Path,
    run_id: str,
    device: torch.device | str = "cpu",
) -> tuple[Quantizer, list[dict[str, float]]]:
    """Arguments and results as those of ``trainer.train_quantizer``; a killed training goes on, bit for
    bit."""
    if options.codebook_size != 256:
        raise ValueError(
            f"codebook_size is {options.codebook_size}: the reference method makes codebooks of 256"
        )
    small = Quantizer(data.frames.shape[1], 2 * options.num_codebooks, 16)
    with torch.no_grad():
        draw = keyed_random.generator("reference quantizer", seed)
        bound = data.frames.shape[1] ** -0.5
        for parameter in (small.to_logits.weight, small.to_logits.bias):
            parameter.copy_(torch.from_numpy(draw.uniform(-bound, bound, tuple(parameter.shape))))
        small.centers.copy_(small.to_logits.weight.view(small.centers.shape))
        small.mean.copy_(data.mean)
        small.std.copy_(data.std)
    trainer = ReferenceTrainer(small.to(device), options.phase_one_steps, options.phase_two_steps)
    path, history = checkpoint_folder / CHECKPOINT, []
    state = load_state(path, run_id)
    if state is not None:
        trainer.load_state_dict(state["trainer"])
        history = state["history"]
        logger.info("goes on after step %d of %d", trainer.step_index, trainer.num_steps)
    order = torch.from_numpy(keyed_random.generator("reference order", seed).permutation(len(data)))
    steps = range(trainer.step_index, trainer.num_steps)
    for step in progress(steps, total=len(steps), description="quantiser", unit="steps"):
        position = torch.arange(step * options.batch_frames, (step + 1) * options.batch_frames) % len(data)
        refine_iters = 1 + int(keyed_random.generator("reference refinements", seed, step).integers(2))
        losses = trainer.step(data.rows(order[position]).to(device), refine_iters)
        if step % _LOG_EVERY == 0 or step + 1 == trainer.num_steps:
            values = {name: float(value.detach()) for name, value in losses._asdict().items()}
            history.append({"step": step, **values})
        if (step + 1) % _SAVE_EVERY == 0:
            save_state({"run_id": run_id, "trainer": trainer.state_dict(), "history": history}, path)
    return trainer.quantizer.cpu(), history
