"""Parameter groups by learning-rate scale (spec optim §2.3)."""

from typing import Any

from torch import nn


def _covers(prefix: str, name: str) -> bool:
    """Whether ``prefix`` is a module on the dotted path of ``name`` ("encoder" covers "encoder.x", not
    "encoder_embed.x"; "" covers all)."""
    return prefix == "" or name == prefix or name.startswith(prefix + ".")


def parameter_groups(
    model: nn.Module, lr: float, lr_scales: dict[str, float] | None = None
) -> list[dict[str, Any]]:
    """Groups for the optimiser: parameters with the same learning rate, in order of first appearance.

    Args:
      model: parameters with ``requires_grad`` False are left out.
      lr: base learning rate.
      lr_scales: dotted module (or parameter) path -> factor; the factors of all paths that cover a
        parameter are multiplied, e.g. {"encoder": 0.1} for fine-tuning.

    Returns:
      Dictionaries with ``params``, ``names`` (as in ``model.named_parameters()``), ``lr`` and ``lr_scale``.

    Raises:
      ValueError: a path that covers no parameter, a factor that is not positive, or nothing to train.
    """
    lr_scales = lr_scales or {}
    names = [name for name, _ in model.named_parameters()]
    for prefix, scale in lr_scales.items():
        if not any(_covers(prefix, name) for name in names):
            known = sorted({name.split(".", 1)[0] for name in names})
            raise ValueError(
                f"lr_scales: no parameter lies under {prefix!r}; the model has {', '.join(known)}."
            )
        if not scale > 0:
            raise ValueError(
                f"lr_scales: {prefix!r} has the factor {scale}; it must be positive (to freeze a "
                "module, switch off requires_grad)."
            )
    groups: dict[float, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = 1.0
        for prefix, factor in lr_scales.items():
            if _covers(prefix, name):
                scale *= factor
        group = groups.setdefault(scale, {"params": [], "names": [], "lr": lr * scale, "lr_scale": scale})
        group["params"].append(parameter)
        group["names"].append(name)
    if not groups:
        raise ValueError("the model has no trainable parameter: every one of them is frozen.")
    return list(groups.values())
