"""Parameters that do not move during the first steps of fine-tuning (spec optim §5; the thaw is ours), or
that stand still after some steps (spec spidr §7).

The reference keeps frozen parameters in the optimiser, whose statistics then count 2000 steps of zero
gradient, so that the first real updates come out up to seven times too large. Here they join the optimiser
when they thaw, with a state that starts then.
"""

from torch import nn

from spear_lib.optim import parameter_groups
from spear_lib.training.options import TrainingConfig


def freeze(model: nn.Module, paths: list[str]) -> list[nn.Parameter]:
    """Switches gradients off for the parameters under the module paths; returns those that were on.

    Raises:
      ValueError: a path that names no parameter (``encoder`` does not mean ``encoder_embed``).
    """
    frozen = [p for path in paths for p in _parameters_below(model, path, "freeze") if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"freeze {paths} leaves nothing to train: name fewer modules")
    return frozen


def finish(model: nn.Module, config: TrainingConfig, step: int) -> bool:
    """Ends the training of ``config.finish`` where ``step`` steps are done and it is due; whether something
    stands still that did not before. The optimiser keeps the parameters, and leaves them alone as they have
    no gradient.

    Raises:
      ValueError: a path that names no parameter, whether it is due or not.
    """
    found = [p for path in config.finish for p in _parameters_below(model, path, "finish")]
    if step < config.finish_steps:
        return False
    stopped = [parameter for parameter in found if parameter.requires_grad]
    for parameter in stopped:
        parameter.requires_grad_(False)
        parameter.grad = None
    return bool(stopped)


def _parameters_below(model: nn.Module, path: str, option: str) -> list[nn.Parameter]:
    found = [p for name, p in model.named_parameters() if name == path or name.startswith(path + ".")]
    if not found:
        children = ", ".join(name for name, _ in model.named_children())
        raise ValueError(f"{option} names {path!r}, and the model has no parameters there; it has {children}")
    return found


def thaw(frozen: list[nn.Parameter], model: nn.Module, optimizer, config: TrainingConfig) -> None:
    """Switches gradients on again and adds the parameters to the optimiser as groups of their own."""
    wanted = {id(parameter) for parameter in frozen}
    for parameter in frozen:
        parameter.requires_grad_(True)
    for group in parameter_groups(model, config.learning_rate, config.lr_scales):
        chosen = [index for index, parameter in enumerate(group["params"]) if id(parameter) in wanted]
        if chosen:
            new = {**group, "params": [group["params"][index] for index in chosen]}
            if "names" in group:
                new["names"] = [group["names"][index] for index in chosen]
            optimizer.add_param_group(new)
