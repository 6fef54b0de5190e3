"""Reading files of weights, ours and foreign ones: tensors only, and every name must fit."""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def read_weights(path: Path, entry: str = "model") -> dict[str, Any]:
    """The content of a .safetensors or PyTorch file, on the CPU; code in it is never run.

    Args:
      entry: where such PyTorch files keep their tensors; only for the advice in the message.

    Raises:
      ValueError: damaged, or holding other things than plain values and tensors.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}); copy or download it again") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds Python objects besides tensors, which are not loaded for safety. Where you trust "
            "it, reduce it first: "
            f"torch.save({{'{entry}': torch.load(path, weights_only=False)['{entry}']}}, new_path). "
            f"({str(error).splitlines()[0]})"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} is not a whole PyTorch file ({error}); copy or download it again"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


def load_strictly(module: nn.Module, state: dict[str, Tensor], path: Path, what: str) -> None:
    """Load ``state`` into ``module``, every name and shape as it is; a module on the meta device takes the
    tensors themselves, with their number format.

    Raises:
      ValueError: lists every missing, unexpected and wrongly shaped tensor; ``what`` names the module.
    """
    own = module.state_dict()
    missing = sorted(set(own) - set(state))
    unexpected = sorted(set(state) - set(own))
    wrong = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in sorted(set(own) & set(state))
        if own[name].shape != state[name].shape
    ]
    if missing or unexpected or wrong:
        raise ValueError(
            f"{path} does not fit the {what}.\n"
            f"missing ({len(missing)}): {', '.join(missing) or 'none'}\n"
            f"unexpected ({len(unexpected)}): {', '.join(unexpected) or 'none'}\n"
            f"wrong shape ({len(wrong)}): {', '.join(wrong) or 'none'}"
        )
    module.load_state_dict(state, assign=any(parameter.is_meta for parameter in module.parameters()))
