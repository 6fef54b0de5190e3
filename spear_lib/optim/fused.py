"""What ScaledAdam's fused kernels are compared on before they run (ours)."""

import torch
from torch import Tensor

from spear_lib.kernels import Kernel
from spear_lib.optim.scaled_adam import ScaledAdam

_SHAPES = [(70, 40), (70, 40), (33,), (33,), (9001,), ()]  # stacks, parts, a scalar
_STEPS = 5


def _sample(device: torch.device, values: torch.dtype, computed: torch.dtype) -> list[Tensor]:
    """Moments and the parameters' changes after some steps: clipped ones, and two with a change of size."""
    generator = torch.Generator().manual_seed(1)

    def random(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator).to(values).to(device, computed)

    starts = [random(shape) for shape in _SHAPES]
    params = [torch.nn.Parameter(start.clone()) for start in starts]
    optimizer = ScaledAdam(params, lr=0.045, size_update_period=2, clipping_update_period=2)
    for step in range(_STEPS):
        for param in params:
            param.grad = random(tuple(param.shape)) * (4.0 if step == _STEPS - 1 else 1.0)
        optimizer.step()
    states = [optimizer.state[param] for param in params if param in optimizer.state]
    moments = [state[name] for state in states for name in ("delta", "exp_avg_sq")]
    scales = [state["scale_grads"] for state in states if "scale_grads" in state]
    return [*moments, *scales, *(param.detach() - start for param, start in zip(params, starts))]


# Parameters and moments are float32 in every run.
SCALED_ADAM = Kernel("scaled_adam", _sample, torch.float32)
