"""The reference's own training of the quantiser, for comparison: Adam in two phases (Guo et al. 2023; paper
App. A).

Phase one trains 2N codebooks of 16 entries, phase two their product: N codebooks of 256. Code vectors and
classifiers are trained together on ``Quantizer.loss``. The default method (trainer.py) needs a fraction of
the time.
"""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spear_lib.quantization.embeddings import FrameStream, add_up_gradients, add_up_with_gradient, read_share
from spear_lib.quantization.options import QuantizerTrainingOptions
from spear_lib.quantization.quantizer import Quantizer, QuantizerLosses
from spear_lib.quantization.trainer import CHECKPOINT, load_state, save_state
from spear_lib.runtime import keyed_random
from spear_lib.runtime.metrics_log import MetricsLog
from spear_lib.runtime.progress import progress
from spear_lib.runtime.world import World

logger = logging.getLogger(__name__)

LEARNING_RATE = 0.005
_SAVE_EVERY = 500  # steps
_LOG_EVERY = 200  # steps


class ReferenceTrainer:
    """Steps of the reference schedule: phase one has ``phase_one_steps`` + 1 steps, phase two
    ``phase_two_steps``.

    Args:
      quantizer: 2N codebooks of 16 entries, at its initial values.
      world: the ranks that share every batch.
    """

    def __init__(
        self, quantizer: Quantizer, phase_one_steps: int, phase_two_steps: int, world: World | None = None
    ):
        if min(phase_one_steps, phase_two_steps) < 4:
            raise ValueError(
                f"phases of {phase_one_steps} and {phase_two_steps} steps are too short: the learning rate "
                "falls in four parts, so each phase needs at least 4"
            )
        self.quantizer, self.world = quantizer, world or World()
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
        """One update on this rank's part (B, D) of the normalised frames; the losses of all before it."""
        self.optimizer.param_groups[0]["lr"] = self.learning_rate()
        together = partial(add_up_with_gradient, world=self.world)
        losses = self.quantizer.loss(x, refine_iters, normalised=True, add_up=together)
        self.optimizer.zero_grad()
        losses.total.backward()
        add_up_gradients(list(self.quantizer.parameters()), self.world)
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
    frames: FrameStream,
    options: QuantizerTrainingOptions,
    seed: int,
    folder: Path,
    run_id: str,
    world: World | None = None,
) -> tuple[Quantizer, list[dict[str, float]]]:
    """Arguments and results as those of ``trainer.train_quantizer``; a killed training goes on, bit for
    bit."""
    if options.codebook_size != 256:
        raise ValueError(
            f"codebook_size is {options.codebook_size}: the reference method makes codebooks of 256"
        )
    world = world or World()
    small = Quantizer(frames.dim, 2 * options.num_codebooks, 16)
    with torch.no_grad():
        draw = keyed_random.generator("reference quantizer", seed)
        bound = frames.dim**-0.5
        for parameter in (small.to_logits.weight, small.to_logits.bias):
            parameter.copy_(torch.from_numpy(draw.uniform(-bound, bound, tuple(parameter.shape))))
        small.centers.copy_(small.to_logits.weight.view(small.centers.shape))
        small.mean.copy_(frames.mean)
        small.std.copy_(frames.std)
    trainer = ReferenceTrainer(
        small.to(world.device), options.phase_one_steps, options.phase_two_steps, world
    )
    folder.mkdir(parents=True, exist_ok=True)
    path, history = folder / CHECKPOINT, []
    state = load_state(path, run_id)
    if state is not None:
        trainer.load_state_dict(state["trainer"])
        history = state["history"]
        logger.info("goes on after step %d of %d", trainer.step_index, trainer.num_steps)
    curves = MetricsLog(folder, trainer.step_index, active=world.is_main)
    steps = range(trainer.step_index, trainer.num_steps)
    for step in progress(steps, total=len(steps), description="quantiser", unit="steps"):
        refine_iters = 1 + int(keyed_random.generator("reference refinements", seed, step).integers(2))
        batch = torch.cat(
            list(
                read_share(
                    frames, step * options.batch_frames, options.batch_frames, world, options.batch_frames
                )
            )
        )
        losses = trainer.step(batch, refine_iters)
        if step % _LOG_EVERY == 0 or step + 1 == trainer.num_steps:
            values = {name: float(value.detach()) for name, value in losses._asdict().items()}
            history.append({"step": step, **values})
            curves.write(step + 1, 0, "reference", values)
        if (step + 1) % _SAVE_EVERY == 0:
            if world.is_main:
                save_state({"run_id": run_id, "trainer": trainer.state_dict(), "history": history}, path)
            world.barrier()
    curves.close()
    result = Quantizer(frames.dim, options.num_codebooks, 256, options.search)
    result.load_state_dict(trainer.quantizer.state_dict())
    return result, history
