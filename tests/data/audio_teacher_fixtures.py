"""Small random checkpoints of the audio teachers in their official formats, written tensor by tensor so that
they do not lean on the code under test."""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

NUM_MELS = 64


def _random(generator: torch.Generator, *shape: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    return shift + scale * torch.randn(*shape, generator=generator)


def _linear(
    state: dict[str, Tensor], name: str, rows: int, columns: int, generator, bias: bool = True
) -> None:
    state[f"{name}.weight"] = _random(generator, rows, columns, scale=columns**-0.5)
    if bias:
        state[f"{name}.bias"] = _random(generator, rows, scale=0.1)


def _norm(state: dict[str, Tensor], name: str, width: int, generator) -> None:
    state[f"{name}.weight"] = _random(generator, width, scale=0.1, shift=1.0)
    state[f"{name}.bias"] = _random(generator, width, scale=0.1)


def _blocks(state: dict[str, Tensor], depth: int, dim: int, qkv_bias: bool, generator) -> None:
    for index in range(depth):
        block = f"blocks.{index}"
        _norm(state, f"{block}.norm1", dim, generator)
        _linear(state, f"{block}.attn.qkv", 3 * dim, dim, generator, bias=qkv_bias)
        _linear(state, f"{block}.attn.proj", dim, dim, generator)
        _norm(state, f"{block}.norm2", dim, generator)
        _linear(state, f"{block}.mlp.fc1", 4 * dim, dim, generator)
        _linear(state, f"{block}.mlp.fc2", dim, 4 * dim, generator)


def mel_triangles(num_bins: int, f_min: float, f_max: float) -> Tensor:
    """(num_bins, 64) HTK triangles over 0..8000 Hz in float64, filter after filter from their corners."""
    low, high = (2595.0 * math.log10(1.0 + edge / 700.0) for edge in (f_min, f_max))
    corners = [
        700.0 * (10.0 ** ((low + step * (high - low) / (NUM_MELS + 1)) / 2595.0) - 1.0)
        for step in range(NUM_MELS + 2)
    ]
    filters = torch.zeros(num_bins, NUM_MELS, dtype=torch.float64)
    for mel, (left, centre, right) in enumerate(zip(corners, corners[1:], corners[2:])):
        for number in range(num_bins):
            frequency = 8000.0 * number / (num_bins - 1)
            if left < frequency <= centre:
                filters[number, mel] = (frequency - left) / (centre - left)
            elif centre < frequency < right:
                filters[number, mel] = (right - frequency) / (right - centre)
    return filters


def dasheng_state(embed_dim: int = 32, depth: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """The official state dict of a Dasheng encoder with random weights."""
    generator = torch.Generator().manual_seed(seed)
    state = {
        "time_pos_embed": _random(generator, 1, embed_dim, 1, 252, scale=0.2),
        "freq_pos_embed": _random(generator, 1, embed_dim, 1, 1, scale=0.2),
        "front_end.0.spectrogram.window": torch.hann_window(512),
        "front_end.0.mel_scale.fb": mel_triangles(257, 0.0, 8000.0).float(),
        "init_bn.1.running_mean": _random(generator, NUM_MELS, scale=3.0, shift=-10.0),
        "init_bn.1.running_var": 300.0 + 50.0 * torch.rand(NUM_MELS, generator=generator),
        "init_bn.1.num_batches_tracked": torch.tensor(1000),
        "patch_embed.proj.weight": _random(generator, embed_dim, 1, NUM_MELS, 4, scale=1 / 16),
        "patch_embed.proj.bias": _random(generator, embed_dim, scale=0.1),
    }
    _norm(state, "init_bn.1", NUM_MELS, generator)
    _blocks(state, depth, embed_dim, True, generator)
    _norm(state, "norm", embed_dim, generator)
    return state


def save_dasheng_checkpoint(
    path: Path, embed_dim: int = 32, depth: int = 2, num_heads: int = 2, seed: int = 0
) -> Path:
    """A .pt file as on Zenodo: "model" and "config"."""
    config = {"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads, "patch_size": [64, 4]}
    config |= {"patch_stride": [64, 4], "target_length": 1008, "n_mels": NUM_MELS}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": dasheng_state(embed_dim, depth, seed), "config": config}, path)
    return path


def save_dasheng_folder(
    folder: Path, embed_dim: int = 32, depth: int = 2, num_heads: int = 2, seed: int = 0
) -> Path:
    """A folder as on Hugging Face: names under "encoder.", no front end, a classifier beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        f"encoder.{name}": value.contiguous()
        for name, value in dasheng_state(embed_dim, depth, seed).items()
        if not name.startswith("front_end.")
    }
    state |= {"outputlayer.0.weight": torch.ones(embed_dim), "outputlayer.0.bias": torch.zeros(embed_dim)}
    save_file(state, folder / "model.safetensors")
    sizes = {"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads, "target_length": 1008}
    config = {"model_type": "dasheng", "architectures": ["DashengModel"], "encoder_kwargs": sizes}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def atst_state(embed_dim: int = 128, depth: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """The official state dict of an ATST-Frame encoder with random weights; heads are 64 wide."""
    generator = torch.Generator().manual_seed(seed)
    state = {
        "mask_embed": _random(generator, 1, 1, embed_dim),
        "pos_embed": _random(generator, 1, 251, embed_dim, scale=0.2),
    }
    _linear(state, "patch_embed.patch_embed", embed_dim, 256, generator)
    _blocks(state, depth, embed_dim, False, generator)
    _norm(state, "norm_frame", embed_dim, generator)
    return state


def save_atst_checkpoint(path: Path, embed_dim: int = 128, depth: int = 2, seed: int = 0) -> Path:
    """A Lightning file: teacher and student encoders, projections, hyper-parameters and optimiser state."""
    teacher, student = atst_state(embed_dim, depth, seed), atst_state(embed_dim, depth, seed + 1)
    state = {f"model.teacher.encoder.{name}": value for name, value in teacher.items()}
    state |= {f"model.student.encoder.{name}": value for name, value in student.items()}
    state["model.teacher.projector.0.weight"] = torch.zeros(4, embed_dim)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "epoch": 3,
        "global_step": 100,
        "pytorch-lightning_version": "1.5.10",
        "state_dict": state,
        "hyper_parameters": {"arch": "base", "patch_h": 64, "patch_w": 4, "pos_type": "cut"},
        "optimizer_states": [],
    }
    torch.save(content, path)
    return path
