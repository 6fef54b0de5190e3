"""ScaledAdam: Adam whose step is proportional to the RMS of the parameter tensor, plus a slowly learned
log-scale per tensor (Zipformer, Yao et al. 2024; spec optim §1).

Tensors of equal shape are worked on as one stack (n, ...), so the number of kernel launches follows the
number of different shapes. Two variants: "spear" trained the released models, "master" is newer.

Where we differ from the reference (ours, spec optim §1.4 and §5):
* a non-finite gradient norm skips the whole step and is counted (the reference aborts or is poisoned);
* no threshold yet means factor 1 (the reference multiplies by 20 when training starts with frozen groups);
* a group's step counter starts at its first non-zero gradient, so a group that is un-frozen late gets
  its bias correction and its clipping history like any other.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from spear_lib.optim.joint_step import JointStacks
from spear_lib.optim.reports import report_clipping, report_explosion, report_skip
from spear_lib.optim.stacks import Stack

VARIANTS = ("spear", "master")
# "master" sets first, generous thresholds early.
_EARLY_THRESHOLDS = (10, 20, 40)
# A step whose gradients are clipped to less than this names the tensor that is to blame.
_REPORTED_FACTOR = 0.1


def _apart(stacks: list[Stack], joint: JointStacks | None) -> list[Stack]:
    """Those of ``stacks`` that are not worked on together."""
    return stacks if joint is None else [stack for stack in stacks if stack not in joint.stacks]


class ScaledAdam(torch.optim.Optimizer):
    """See the module. No weight decay, no bias correction of the momentum.

    Args:
      params: parameters or groups (``parameter_groups`` makes them); ``names`` of a group are kept and used
        in messages. Clipping statistics are per group.
      lr: learning rate, roughly the relative change per step (paper Table 9: 0.045).
      clipping_scale: gradients are limited to this times the median norm of the last
        ``clipping_update_period`` steps; None = no clipping.
      betas: decay of momentum and of the squared gradient.
      scalar_lr_scale: learning rate of the log-scales and of one-element parameters, relative.
      eps: added to the root of the squared gradient.
      param_min_rms, param_max_rms: bounds of the tensors' RMS.
      scalar_max: largest magnitude of one-element parameters.
      size_update_period: steps between updates of the log-scales.
      clipping_update_period: steps between new clipping thresholds.
      variant: "spear" or "master" (spec optim §1.6).

    Attributes:
      num_skipped: steps skipped because a group's gradient norm was not finite (saved with the state).
      last_clip_factors: per group, what the last step multiplied the gradients by (0-dim tensor or 1.0).
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.045,
        clipping_scale: float | None = 2.0,
        betas: tuple[float, float] = (0.9, 0.98),
        scalar_lr_scale: float = 0.1,
        eps: float = 1e-8,
        param_min_rms: float = 1e-5,
        param_max_rms: float = 3.0,
        scalar_max: float = 10.0,
        size_update_period: int = 4,
        clipping_update_period: int = 100,
        variant: str = "spear",
    ):
        if variant not in VARIANTS:
            raise ValueError(f"variant is {variant!r}; choose one of {', '.join(VARIANTS)}.")
        if not 0 < lr < 1:
            raise ValueError(f"lr is {lr}; ScaledAdam's step is relative to the parameters, use e.g. 0.045.")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas are {betas}; both must lie in [0, 1).")
        if clipping_scale is not None and clipping_scale <= 0:
            raise ValueError(f"clipping_scale is {clipping_scale}; it must be positive, or None for none.")
        if size_update_period < 1 or clipping_update_period < 2:
            raise ValueError(
                f"size_update_period {size_update_period} must be at least 1 and clipping_update_period "
                f"{clipping_update_period} at least 2."
            )
        defaults = {
            "lr": lr,
            "clipping_scale": clipping_scale,
            "betas": tuple(betas),
            "scalar_lr_scale": scalar_lr_scale,
            "eps": eps,
            "param_min_rms": param_min_rms,
            "param_max_rms": param_max_rms,
            "scalar_max": scalar_max,
            "size_update_period": size_update_period,
            "clipping_update_period": clipping_update_period,
        }
        super().__init__(params, defaults)
        self.variant = variant
        self.num_skipped = 0
        self.last_clip_factors: list[Tensor | float] = []
        self._stacks_of_group: dict[int, list[Stack]] = {}
        self._joint_of_group: dict[int, JointStacks | None] = {}

    # ------------------------------------------------------------------------------------ step
    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One update from the gradients; returns the closure's loss, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = []
        # Groups may have been added since the last step (thawed modules).
        self.last_clip_factors = [1.0] * len(self.param_groups)
        for index, group in enumerate(self.param_groups):
            if all(p.grad is None for p in group["params"]) and not self._started(group):
                continue
            stacks = self._stacks(index, group)
            joint = self._joint(index, group, stacks)
            for stack in _apart(stacks, joint):
                stack.gather()
                self._create_state(group, stack)
            work.append((index, group, stacks, self._squared_norm(group, stacks, joint)))
        if not work:
            return loss
        # The one host read of the step, for all groups together.
        thresholds = [self._threshold(stacks[0], square) for _, _, stacks, square in work]
        host = torch.stack([square for *_, square in work] + thresholds).tolist()
        squares, limits = host[: len(work)], host[len(work) :]
        if not all(map(math.isfinite, squares)):
            self.num_skipped += 1
            groups = [group for (_, group, _, _), value in zip(work, squares) if not math.isfinite(value)]
            report_skip(groups, self.num_skipped)
            return loss
        for (index, group, stacks, square), value, limit in zip(work, squares, limits):
            joint = self._joint_of_group[index]
            if value == 0.0 and not self._started(group):
                continue
            if 0.0 < limit < _REPORTED_FACTOR * math.sqrt(value):
                report_explosion(group, self._squares_by_tensor(group, stacks, joint), limit)
            factor = self._clip_factor(group, stacks[0], square, value)
            self.last_clip_factors[index] = factor
            if joint is not None:
                self._step_joint(group, joint, factor)
            for stack in _apart(stacks, joint):
                if stack.scalar:
                    self._step_scalars(group, stack, stack.scaled_grads(factor))
                else:
                    self._step_tensors(group, stack, stack.scaled_grads(factor))
                stack.scatter()
            for stack in stacks:
                self.state[stack.first]["step"] += 1
        return loss

    def _started(self, group: dict[str, Any]) -> bool:
        """Whether the group has ever had a gradient other than zero."""
        return any(self.state[p].get("step", 0) > 0 for p in group["params"] if p in self.state)

    def _stacks(self, index: int, group: dict[str, Any]) -> list[Stack]:
        """Stacks ordered by dtype and shape; inside a stack the order of registration."""
        stacks = self._stacks_of_group.get(index)
        if stacks is None or sum(len(stack.tensors) for stack in stacks) != len(group["params"]):
            by_shape: dict[tuple[str, tuple[int, ...]], list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                by_shape[(str(parameter.dtype), tuple(parameter.shape))].append(parameter)
            stacks = self._stacks_of_group[index] = [Stack(by_shape[shape]) for shape in sorted(by_shape)]
        return stacks

    def _joint(self, index: int, group: dict[str, Any], stacks: list[Stack]) -> JointStacks | None:
        """Those of ``stacks`` that fused kernels work on, if there are any, with this step's sums."""
        joining = [stack for stack in stacks if stack.joins()]
        joint = self._joint_of_group.get(index)
        if joint is None or joint.stacks != joining:
            for stack in joining:
                stack.gather()
                self._create_state(group, stack)
                stack.release()
            states = [self.state[stack.first] for stack in joining]
            joint = self._joint_of_group[index] = JointStacks(joining, states) if joining else None
        if joint is not None:
            joint.measure()
        return joint

    def _create_state(self, group: dict[str, Any], stack: Stack) -> None:
        state = self.state[stack.first]
        if state:
            return
        state["step"] = 0
        state["delta"] = torch.zeros_like(stack.params)
        state["exp_avg_sq"] = torch.zeros_like(stack.params)
        if not stack.scalar:
            rms = stack.rms()
            state["param_rms"] = rms
            state["scale_exp_avg_sq"] = torch.zeros_like(rms)
            state["scale_grads"] = rms.new_zeros((group["size_update_period"], *rms.shape))

    # -------------------------------------------------------------------------------- clipping
    def _squares_by_tensor(
        self, group: dict[str, Any], stacks: list[Stack], joint: JointStacks | None
    ) -> list[tuple[Stack, Tensor]]:
        """(n,) of every stack: squared norms of the gradients, each weighted by its tensor's RMS."""
        scalar_weight = group["scalar_lr_scale"] if self.variant == "master" else 1.0
        parts = [] if joint is None else joint.weighted_squares()
        for stack in _apart(stacks, joint):
            if stack.scalar:
                weighted = stack.grads * scalar_weight
            else:
                weighted = stack.norm(stack.grads) * self.state[stack.first]["param_rms"]
            parts.append((stack, weighted.square().flatten()))
        return parts

    def _squared_norm(self, group: dict[str, Any], stacks: list[Stack], joint: JointStacks | None) -> Tensor:
        """S: the sum over all tensors of the group."""
        squares = [squares for _, squares in self._squares_by_tensor(group, stacks, joint)]
        if joint is not None:
            return torch.cat(squares).sum()
        return torch.stack([each.sum() for each in squares]).sum()

    def _threshold(self, first: Stack, square: Tensor) -> Tensor:
        """The norm above which the group is clipped now, 0 where there is none; dtype of ``square``."""
        threshold = self.state[first.first].get("model_norm_threshold")
        return torch.zeros_like(square) if threshold is None else threshold.to(square.dtype)

    def _clip_factor(
        self, group: dict[str, Any], first: Stack, square: Tensor, value: float
    ) -> Tensor | float:
        """Factor for all gradients of the group; history and threshold live in the first stack's state."""
        scale, period = group["clipping_scale"], group["clipping_update_period"]
        state = self.state[first.first]
        step = state["step"]
        if scale is None or step == 0 or (value == 0.0 and self.variant == "spear"):
            return 1.0
        if "model_norms" not in state:
            state["model_norms"] = square.new_zeros(period)
            state["model_norm_threshold"] = square.new_zeros(())
            state["num_clipped"] = torch.zeros((), dtype=torch.int64, device=square.device)
            state["has_threshold"] = False
        norm = square.sqrt()
        norms = state["model_norms"]
        norms[step % period] = norm
        early = self.variant == "master" and step in _EARLY_THRESHOLDS and step < period
        if step % period == 0 or early:
            ordered = norms.sort().values
            if early:
                ordered = ordered[-step:]
            median = ordered[ordered.numel() // 4 * 2]
            median = torch.where(median > 0, median, ordered[-1])
            state["model_norm_threshold"] = scale * median * (2.0 if early else 1.0)
            state["has_threshold"] = True
            if step % period == 0:
                report_clipping(group, state, ordered)
                state["num_clipped"].zero_()
        if not state["has_threshold"]:
            return 1.0
        factor = (state["model_norm_threshold"] / (norm + 1e-20)).clamp(max=1.0)
        state["num_clipped"] += factor < 1.0
        return factor

    # --------------------------------------------------------------------------------- updates
    def _step_scalars(self, group: dict[str, Any], stack: Stack, grads: Tensor) -> None:
        """One-element parameters: plain Adam with the scaled-down rate and a bound on the value."""
        state = self.state[stack.first]
        beta1, beta2 = group["betas"]
        delta, squares = state["delta"], state["exp_avg_sq"]
        delta.mul_(beta1)
        squares.mul_(beta2).addcmul_(grads, grads, value=1 - beta2)
        correction = 1 - beta2 ** (state["step"] + 1)
        if self.variant == "master" and correction >= 0.99:
            correction = 1.0
        denominator = (squares / correction).sqrt_().add_(group["eps"])
        delta.addcdiv_(grads, denominator, value=-(1 - beta1) * group["lr"] * group["scalar_lr_scale"])
        bound = group["scalar_max"]
        if self.variant == "spear":
            stack.params.clamp_(-bound, bound).add_(delta)
        else:
            stack.params.add_(delta).clamp_(-bound, bound)

    def _step_tensors(self, group: dict[str, Any], stack: Stack, grads: Tensor) -> None:
        state, params = self.state[stack.first], stack.params
        beta1, beta2 = group["betas"]
        delta, squares, step = state["delta"], state["exp_avg_sq"], state["step"]
        delta.mul_(beta1)
        scale_grads = (params * grads).sum(dim=stack.dims, keepdim=True)
        size_step = self._size_step(group, state, step, stack.rms, scale_grads)
        if size_step is not None:
            delta.addcmul_(params, size_step, value=1 - beta1)
        squares.mul_(beta2).addcmul_(grads, grads, value=1 - beta2)
        correction = 1 - beta2 ** (step + 1)
        denominator = squares.sqrt()
        if correction < 0.99:
            denominator.mul_(correction**-0.5)
        denominator.add_(group["eps"])
        rate = self._rate(group, stack)
        delta.addcmul_(torch.div(grads, denominator, out=denominator), rate)
        params.add_(delta)

    def _step_joint(self, group: dict[str, Any], joint: JointStacks, factor: Tensor | float) -> None:
        """``_step_tensors`` of many stacks, on the gradients times ``factor``."""
        step, (beta1, beta2) = self.state[joint.stacks[0].first]["step"], group["betas"]
        factor = factor if isinstance(factor, Tensor) else joint.totals.new_full((), factor)
        gradients = joint.totals[1] * factor
        size_step = self._size_step(group, joint.state, step, joint.rms, gradients)
        correction = 1 - beta2 ** (step + 1)
        correction = correction**-0.5 if correction < 0.99 else 1.0
        numbers = [beta1, beta2, correction, group["eps"], group["param_min_rms"], -(1 - beta1) * group["lr"]]
        joint.update(factor, size_step, numbers)

    def _rate(self, group: dict[str, Any], stack: Stack) -> Tensor:
        """(n, 1, ...): what the normalised gradient is multiplied by."""
        state = self.state[stack.first]
        rate = state["param_rms"].clamp(min=group["param_min_rms"])
        return rate.mul_(-(1 - group["betas"][0]) * group["lr"])

    def _size_step(
        self,
        group: dict[str, Any],
        state: dict[str, Any],
        step: int,
        measured_rms: Callable[[], Tensor],
        new_scale_grads: Tensor,
    ) -> Tensor | None:
        """(n, 1, ...): every few steps, scale the whole tensor along the summed gradient of its log-scale."""
        period = group["size_update_period"]
        state["scale_grads"][step % period] = new_scale_grads
        if step % period != period - 1:
            return None
        state["param_rms"].copy_(measured_rms())
        beta2 = group["betas"][1]
        beta2_period = beta2**period
        rms, scale_grads, squares = state["param_rms"], state["scale_grads"], state["scale_exp_avg_sq"]
        squares.mul_(beta2_period).add_(scale_grads.square().mean(dim=0), alpha=1 - beta2_period)
        correction = 1 - beta2_period ** ((step + 1) // period)
        rate = -group["lr"] * group["scalar_lr_scale"] * math.sqrt(correction)
        size_step = scale_grads.sum(dim=0).mul_(rate).div_(squares.sqrt().add_(group["eps"]))
        if self.variant == "master":
            size_step.clamp_(-0.1, 0.1)
        size_step.masked_fill_(rms < group["param_min_rms"], 0.0)
        # The minimum comes last: a tensor above param_max_rms shrinks whatever its gradient says.
        return torch.minimum(size_step, (group["param_max_rms"] - rms) / rms)

    # ----------------------------------------------------------------------------------- state
    def state_dict(self) -> dict[str, Any]:
        """The usual optimiser state and ``num_skipped``; loading it continues bit-exactly."""
        return {**super().state_dict(), "num_skipped": self.num_skipped, "variant": self.variant}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        variant = state_dict.get("variant", self.variant)
        if variant != self.variant:
            raise ValueError(
                f"the saved optimiser is ScaledAdam variant {variant!r}, this one is {self.variant!r}: "
                "set the same variant to continue this run."
            )
        self._joint_of_group = {}
        super().load_state_dict({k: v for k, v in state_dict.items() if k in ("state", "param_groups")})
        self.num_skipped = int(state_dict.get("num_skipped", 0))
        for state in self.state.values():
            if "model_norms" in state:
                norms = state["model_norms"]
                state["num_clipped"] = torch.as_tensor(
                    state["num_clipped"], dtype=torch.int64, device=norms.device
                )
                threshold = state["model_norm_threshold"]
                state["model_norm_threshold"] = torch.as_tensor(
                    threshold, dtype=norms.dtype, device=norms.device
                )
                # The reference stores no flag: there a threshold of 0 means none.
                state.setdefault("has_threshold", bool(state["model_norm_threshold"] > 0))
