"""Multi-codebook vector quantiser: frame embeddings to tokens and back (Guo et al. 2023; SPEAR Appendix A).

Legend: B frames, N codebooks, K entries each, D channels. A frame is decoded as the sum of one code vector
per codebook, without any order among the codebooks. Parameter names are those of the reference state dict, so
that reference quantisers load directly.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spear_lib.quantization import search
from spear_lib.quantization.code_table import CodeTable
from spear_lib.quantization.storage import content_id, read_quantizer, read_reference, write_quantizer

# Parameters of the scales move ten times faster than their raw value (reference "scale_speed").
SCALE_SPEED = 10.0
NORMALISATION_EPS = 1e-5
SEARCHES = ("best", "reference")


class QuantizerLosses(NamedTuple):
    """The training losses of one batch, scalars (spec of the reference; paper Eq. 9 and 10)."""

    reconstruction: Tensor
    """Squared error relative to the spread around the mean code: trains the code vectors only."""
    prediction: Tensor
    """Cross-entropy (nats per codebook) of the classifiers against the found codes: trains the classifiers
    only."""
    logits_entropy: Tensor
    """1 - entropy of the mean classifier output / log K, in [0, 1]."""
    index_entropy: Tensor
    """The same for the histogram of the found codes; no gradient."""

    @property
    def total(self) -> Tensor:
        """The training objective."""
        return self.reconstruction + self.prediction + 0.01 * self.logits_entropy


class Quantizer(nn.Module):
    """N codebooks of K entries over D channels.

    Attributes:
      mean, std: (D,) float32 buffers. ``encode`` normalises by them and ``decode`` undoes it, so callers
        never normalise themselves. 0 and 1 where no normalisation is wanted.
      search: reference keeps the codes of the last round of refinement, as the reference does; best keeps
        those of the best round, the first guess included. Part of the identity, since it decides tokens.
      provenance: free JSON-able facts that travel with the file (teacher id, layer, training report, ...).
    """

    kind = "mvq"

    def __init__(self, dim: int, num_codebooks: int, codebook_size: int = 256, search: str = "reference"):
        super().__init__()
        if search not in SEARCHES:
            raise ValueError(f"search is {search!r}: use one of {', '.join(SEARCHES)}")
        self.search = search
        if dim < 1:
            raise ValueError(f"dim is {dim}: a quantiser needs at least 1 channel")
        if not 1 <= num_codebooks <= 64:
            raise ValueError(f"num_codebooks is {num_codebooks}: it must be in 1..64")
        if not 2 <= codebook_size <= 256:
            raise ValueError(
                f"codebook_size is {codebook_size}: it must be in 2..256 so that a code fits in one byte"
            )
        self.dim, self.num_codebooks, self.codebook_size = dim, num_codebooks, codebook_size
        self.to_logits = nn.Linear(dim, num_codebooks * codebook_size)
        self.logits_scale = nn.Parameter(torch.zeros(()))
        self.centers = nn.Parameter(
            self.to_logits.weight.detach().clone().view(num_codebooks, codebook_size, dim)
        )
        self.centers_scale = nn.Parameter(torch.zeros(()))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        self.provenance: dict[str, Any] = {}
        self._table: tuple[tuple[int | str, ...], CodeTable] | None = None

    # Identity and storage ---------------------------------------------------------------------------------

    @property
    def field_suffix(self) -> str:
        """End of the token field's name on a cut: ``wavlm_large_l21_cb16``."""
        return f"cb{self.num_codebooks}"

    @property
    def id(self) -> str:
        """16 hex digits of a hash over sizes and all tensors: two quantisers with one id give the same
        tokens."""
        facts = [self.dim, self.num_codebooks, self.codebook_size]
        # The reference's search is not named, so that ids from before there was another stay.
        return content_id(facts if self.search == "reference" else [*facts, self.search], self.state_dict())

    def save(self, path: str | Path) -> Path:
        """Write ``path`` (a folder: its quantizer.safetensors) aside and rename it. Returns the file's
        path."""
        return write_quantizer(self, path)

    @classmethod
    def load(cls, path: str | Path) -> "Quantizer":
        """Read what ``save`` wrote; a folder means its quantizer.safetensors. The content hash is
        verified."""
        state, facts = read_quantizer(path, cls.kind)
        search_name = facts.get("search", "reference")  # files from before there was another
        quantizer = cls(facts["dim"], facts["num_codebooks"], facts["codebook_size"], search_name)
        quantizer.load_state_dict(state)
        quantizer.provenance = facts["provenance"]
        if quantizer.id != facts["id"]:
            raise ValueError(
                f"{path}: the tensors hash to {quantizer.id} but the file says id {facts['id']}; the file "
                "was changed or damaged, restore it or train the quantiser again"
            )
        return quantizer

    @classmethod
    def from_reference(cls, source: str | Path | dict[str, Any]) -> "Quantizer":
        """A quantiser of the public ``multi_quantization`` package or of the SPEAR authors' scripts.

        Args:
          source: path of the torch file or the loaded object: either a bare state dict or
            ``{"quantizer": state, "mean": (D,) or None, "std": (D,) or None}`` (float16 statistics accepted).
        """
        state, mean, std, reference_id = read_reference(source)
        num_codebooks, codebook_size, dim = state["centers"].shape
        quantizer = cls(dim, num_codebooks, codebook_size)
        quantizer.load_state_dict({**state, "mean": mean, "std": std})
        quantizer.provenance = {"origin": "reference", "reference_id": reference_id}
        return quantizer

    def to_reference(self) -> dict[str, Any]:
        """The layout that the SPEAR authors' scripts read (the 8-digit id is cut from ours)."""
        state = {
            name: value.clone() for name, value in self.state_dict().items() if name not in ("mean", "std")
        }
        state["id_buf"] = torch.tensor(list(self.id[:8].encode()), dtype=torch.uint8)
        return {"quantizer": state, "mean": self.mean.clone(), "std": self.std.clone()}

    def set_normalisation(self, mean: Tensor, std: Tensor) -> None:
        """Channel statistics (D,) of the embeddings; ``std`` gets 1e-5 added once so that a dead channel is
        harmless."""
        if mean.shape != (self.dim,) or std.shape != (self.dim,):
            raise ValueError(
                f"mean {tuple(mean.shape)} and std {tuple(std.shape)} must both be ({self.dim},)"
            )
        with torch.no_grad():
            self.mean.copy_(mean)
            self.std.copy_(std + NORMALISATION_EPS)

    # Encoding ---------------------------------------------------------------------------------------------

    def effective_centers(self) -> Tensor:
        """(N, K, D) code vectors with their common scale applied, in normalised space."""
        return (SCALE_SPEED * self.centers_scale).exp() * self.centers

    def logits(self, x: Tensor) -> Tensor:
        """Classifier outputs (..., N, K) of normalised frames x (..., D)."""
        # The scale behind the product: its gradient then needs no product of its own.
        scores = F.linear(x, self.to_logits.weight) * (SCALE_SPEED * self.logits_scale).exp()
        return (scores + self.to_logits.bias).view(*x.shape[:-1], self.num_codebooks, self.codebook_size)

    def normalise(self, x: Tensor) -> Tensor:
        """(x - mean) / std per channel, float32."""
        return (x.float() - self.mean) / self.std

    def code_table(self) -> CodeTable:
        """The Gram matrix and friends of the present code vectors (cached until they change)."""
        where = (self.centers.data_ptr(), str(self.centers.device))
        versions = (self.centers._version, self.centers_scale._version, *where)
        if self._table is None or self._table[0] != versions:
            with torch.no_grad():
                self._table = (versions, CodeTable(self.effective_centers()))
        return self._table[1]

    @torch.no_grad()
    def encode(
        self,
        x: Tensor,
        refine_iters: int = 5,
        *,
        normalised: bool = False,
        memory_budget_mb: int | None = None,
    ) -> Tensor:
        """Tokens of frames; a frame's tokens do not depend on the other frames.

        Args:
          x: (..., D) float embeddings of the teacher (any float dtype; worked on in float32).
          refine_iters: rounds of the refinement search after the classifiers' first guess (paper A.1: 5).
          normalised: x is already (x - mean) / std.
          memory_budget_mb: working memory; frames are worked on in chunks that fit (``search.chunk_of``).

        Returns:
          (..., N) uint8.
        """
        if x.shape[-1] != self.dim:
            raise ValueError(
                f"embeddings have {x.shape[-1]} channels but the quantiser was trained for {self.dim}"
            )
        if refine_iters < 0:
            raise ValueError(f"refine_iters is {refine_iters}: it must be 0 or more")
        flat = x.reshape(-1, self.dim)
        if not torch.isfinite(flat).all():
            raise ValueError(
                "embeddings contain NaN or infinity; find the recording that made them and drop it"
            )
        table = self.code_table()
        chunk = search.chunk_of(table, memory_budget_mb)
        codes = torch.empty(flat.shape[0], self.num_codebooks, dtype=torch.uint8, device=x.device)
        for begin in range(0, flat.shape[0], chunk):
            part = flat[begin : begin + chunk].float()
            part = part if normalised else self.normalise(part)
            found = self.logits(part).argmax(dim=-1)
            if refine_iters > 0:
                found = search.refine(table, table.project(part), found, refine_iters, self.search == "best")
            codes[begin : begin + chunk] = found.to(torch.uint8)
        return codes.view(*x.shape[:-1], self.num_codebooks)

    @torch.no_grad()
    def _search(self, x: Tensor, logits: Tensor, refine_iters: int) -> Tensor:
        """Codes (B, N) int64 of normalised frames, by the reference's search from the classifiers' guess."""
        table, guess = self.code_table(), logits.argmax(dim=-1)
        chunk = search.chunk_of(table)
        pairs = zip(x.split(chunk), guess.split(chunk))
        return torch.cat([search.refine(table, table.project(a), b, refine_iters) for a, b in pairs])

    def decode(self, codes: Tensor, *, normalised: bool = False) -> Tensor:
        """(..., N) integer codes -> (..., D) float32: the sum of the code vectors, in the embeddings' own
        scale.

        ``normalised=True`` leaves the result in normalised space.
        """
        if codes.shape[-1] != self.num_codebooks:
            raise ValueError(
                f"codes have {codes.shape[-1]} codebooks but the quantiser has {self.num_codebooks}"
            )
        rows = codes.long() + torch.arange(self.num_codebooks, device=codes.device) * self.codebook_size
        flat = rows.reshape(-1, self.num_codebooks)
        vectors = F.embedding_bag(flat, self.effective_centers().view(-1, self.dim), mode="sum")
        vectors = vectors if normalised else vectors * self.std + self.mean
        return vectors.view(*codes.shape[:-1], self.dim)

    # Training ---------------------------------------------------------------------------------------------

    def loss(
        self,
        x: Tensor,
        refine_iters: int = 1,
        *,
        normalised: bool = False,
        add_up: Callable[[Tensor], Tensor] = lambda total: total,
    ) -> QuantizerLosses:
        """The losses of a batch of frames x (..., D), codes found with ``refine_iters`` rounds and held
        fixed.

        Args:
          add_up: makes of a sum over these frames the sum over the frames of all ranks, with a gradient.
        """
        flat = x.reshape(-1, self.dim)
        flat = flat if normalised else self.normalise(flat)
        logits = self.logits(flat)
        codes = self._search(flat, logits.detach(), refine_iters)
        centers = self.effective_centers()
        mean_code = centers.mean(dim=1).sum(dim=0).detach()
        decoded = self.decode(codes, normalised=True)
        log_probs = logits.log_softmax(dim=-1)  # (B, N, K)
        rows = (codes + torch.arange(self.num_codebooks, device=codes.device) * self.codebook_size).flatten()
        histogram = torch.bincount(rows, minlength=self.num_codebooks * self.codebook_size)
        num_frames = add_up(torch.tensor(float(len(flat)), device=flat.device))
        error = add_up((decoded - flat).square().sum())
        spread = add_up((flat - mean_code).square().sum())
        chosen = add_up(log_probs.gather(2, codes.unsqueeze(2)).sum())
        return QuantizerLosses(
            reconstruction=error / (spread + 1e-20),
            prediction=-chosen / (num_frames * self.num_codebooks),
            logits_entropy=_missing_entropy(add_up(log_probs.exp().sum(dim=0)) / num_frames),
            index_entropy=_missing_entropy(
                add_up(histogram.float()).view(self.num_codebooks, -1) / num_frames
            ),
        )

    @torch.no_grad()
    def data_mean(self) -> Tensor:
        """(D,) mean of the decoded frames if all codes were used equally, in normalised space."""
        return self.effective_centers().mean(dim=1).sum(dim=0)

    @torch.no_grad()
    def codebook_correlations(self) -> Tensor:
        """(N, N): overlap of the codebooks' scatter, 1 on the diagonal, near 0 for orthogonal subspaces.

        tr(S_i S_j) = |C_i C_j^T|_F^2 for centred codebooks, so no D x D matrix is built.
        """
        centers = self.effective_centers()
        rows = (centers - centers.mean(dim=1, keepdim=True)).reshape(-1, self.dim)
        squares = (rows @ rows.T).square()
        shape = (self.num_codebooks, self.codebook_size, self.num_codebooks, self.codebook_size)
        overlap = squares.view(shape).sum(dim=(1, 3))
        spread = overlap.diagonal().sqrt().clamp(min=1e-20)
        return overlap / (spread[:, None] * spread[None, :])

    @torch.no_grad()
    def product(self) -> "Quantizer":
        """The quantiser of N/2 codebooks of K^2 entries that pairs codebooks (0,1), (2,3), ...: (k1, k2) ->
        k1*K + k2.

        Same decoded vectors and same logits (as sums); the reference's step from phase one to phase two.
        """
        if self.num_codebooks % 2 or self.codebook_size**2 > 256:
            raise ValueError(
                f"a product quantiser needs an even number of codebooks and at most 16 entries each; this "
                f"one has {self.num_codebooks} of {self.codebook_size}"
            )
        size = self.codebook_size
        result = Quantizer(self.dim, self.num_codebooks // 2, size**2)
        pairs = self.centers.view(-1, 2, size, self.dim)
        result.centers.copy_((pairs[:, 0, :, None] + pairs[:, 1, None, :]).reshape(result.centers.shape))
        weight = self.to_logits.weight.view(-1, 2, size, self.dim)
        result.to_logits.weight.copy_((weight[:, 0, :, None] + weight[:, 1, None, :]).reshape(-1, self.dim))
        bias = self.to_logits.bias.view(-1, 2, size)
        result.to_logits.bias.copy_((bias[:, 0, :, None] + bias[:, 1, None, :]).reshape(-1))
        for name in ("centers_scale", "logits_scale", "mean", "std"):
            getattr(result, name).copy_(getattr(self, name))
        return result


def _missing_entropy(probabilities: Tensor) -> Tensor:
    """1 - H / log K averaged over codebooks, of distributions (N, K)."""
    entropy = -(probabilities * (probabilities + 1e-20).log()).sum(dim=-1).mean()
    log_size = math.log(probabilities.shape[-1])
    return (log_size - entropy) / log_size
