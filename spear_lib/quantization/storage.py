"""Quantiser files: our safetensors layout, the reference's torch layout, and byte packing of small codes."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from spear_lib.quantization.tokeniser import Tokeniser
from spear_lib.runtime.files import atomic_path

FILE_NAME = "quantizer.safetensors"
FORMAT = "spear_lib.quantizer.1"


def quantizer_file(path: str | Path) -> Path:
    """The file that ``path`` (a file or a folder holding quantizer.safetensors) means."""
    path = Path(path)
    return path if path.suffix == ".safetensors" else path / FILE_NAME


def content_id(facts: list[Any], state: dict[str, Tensor]) -> str:
    """16 hex digits of a hash over ``facts`` and all tensors: the same id means the same tokens."""
    digest = hashlib.sha256(json.dumps(facts).encode())
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().to(torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def write_quantizer(quantizer: Tokeniser, path: str | Path) -> Path:
    """Write tensors and facts to one file, aside and renamed. The same quantiser gives the same bytes."""
    target = quantizer_file(path)
    facts = {
        "format": FORMAT,
        "kind": quantizer.kind,
        "dim": quantizer.dim,
        "num_codebooks": quantizer.num_codebooks,
        "codebook_size": quantizer.codebook_size,
        "id": quantizer.id,
        "provenance": quantizer.provenance,
    }
    if getattr(quantizer, "search", "reference") != "reference":
        facts["search"] = quantizer.search
    state = {
        name: value.detach().cpu().contiguous() for name, value in sorted(quantizer.state_dict().items())
    }
    # One metadata entry: safetensors does not keep the order of several, and bytes must be reproducible.
    with atomic_path(target) as aside:
        save_file(state, aside, metadata={"quantizer": json.dumps(facts, sort_keys=True)})
    return target


def read_quantizer(path: str | Path, kind: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State dict and facts of a file that ``write_quantizer`` made; of another kind than ``kind``: an
    error."""
    source = quantizer_file(path)
    if not source.is_file():
        raise ValueError(f"no quantiser at {source}; train one with python -m spear_lib.bin.train_quantizer")
    try:
        with safe_open(source, framework="pt") as file:
            metadata = file.metadata() or {}
            names = list(file.keys())
            state = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(
            f"{source} is not a readable safetensors file ({error}); train the quantiser again"
        ) from error
    facts = json.loads(metadata.get("quantizer", "{}"))
    if facts.get("format") != FORMAT:
        raise ValueError(
            f"{source} is not a quantiser of this library (format {facts.get('format')!r}, expected "
            f"{FORMAT!r}); files of the multi_quantization package are read by Quantizer.from_reference"
        )
    facts.setdefault("kind", "mvq")  # files from before there was another
    if kind and facts["kind"] != kind:
        raise ValueError(
            f"{source} holds a tokeniser of kind {facts['kind']!r}, and {kind!r} is wanted here: give the "
            "other folder, or read it with spear_lib.quantization.load_tokeniser"
        )
    return state, facts


def read_reference(
    source: str | Path | dict[str, Any],
) -> tuple[dict[str, Tensor], Tensor, Tensor, str]:
    """State, mean (D,), std (D,) and the 8-digit id of a reference quantiser (bare or wrapped state dict)."""
    if isinstance(source, str | Path):
        if not Path(source).is_file():
            raise ValueError(f"no reference quantiser at {source}")
        source = torch.load(source, map_location="cpu", weights_only=True)
    wrapped = source if "quantizer" in source else {"quantizer": source}
    state = {name: value for name, value in wrapped["quantizer"].items() if name != "id_buf"}
    wanted = {"centers", "centers_scale", "to_logits.weight", "to_logits.bias", "logits_scale"}
    if set(state) != wanted:
        raise ValueError(
            f"not a reference quantiser: it has {sorted(state)}, expected {sorted(wanted)} (and id_buf); "
            "give the state dict of multi_quantization.Quantizer, alone or under the key 'quantizer'"
        )
    dim = state["centers"].shape[2]
    mean, std = wrapped.get("mean"), wrapped.get("std")
    mean = torch.zeros(dim) if mean is None else mean.float().reshape(dim)
    std = torch.ones(dim) if std is None else std.float().reshape(dim)
    if not bool((std > 0).all()):
        raise ValueError(
            f"the reference std has {int((std <= 0).sum())} channels that are not positive; it cannot be used"
        )
    id_buf = wrapped["quantizer"].get("id_buf")
    reference_id = "" if id_buf is None else bytes(id_buf.tolist()).decode("ascii", errors="replace")
    return {name: value.float() for name, value in state.items()}, mean, std, reference_id


def pack_codes(codes: Tensor, codebook_size: int) -> Tensor:
    """Codes (..., N) of at most 16 entries into bytes, as the reference does: the even codebook is the low
    digit.

    Pairs are joined while two digits still fit in one byte; larger codebooks come back as uint8 unchanged.
    """
    packed, size = codes.long(), codebook_size
    while size * size <= 256 and packed.shape[-1] % 2 == 0:
        packed = packed[..., 0::2] + size * packed[..., 1::2]
        size *= size
    return packed.to(torch.uint8)


def unpack_codes(packed: Tensor, codebook_size: int, num_codebooks: int) -> Tensor:
    """Undo ``pack_codes``: (..., bytes) uint8 -> (..., num_codebooks) int64."""
    codes = packed.long()
    sizes, width, size = [], num_codebooks, codebook_size
    while size * size <= 256 and width % 2 == 0:
        sizes.append(size)
        size, width = size * size, width // 2
    if codes.shape[-1] != width:
        raise ValueError(f"packed codes have {codes.shape[-1]} bytes per frame, expected {width}")
    for size in reversed(sizes):
        codes = torch.stack([codes % size, codes // size], dim=-1).flatten(-2)
    return codes
