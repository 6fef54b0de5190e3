"""What a quantiser is worth: errors, use of its codes, overlap of its codebooks, as numbers and as a
picture."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spear_lib.quantization.embeddings import StoredFrames
from spear_lib.quantization.kmeans import KMeans
from spear_lib.quantization.quantizer import Quantizer
from spear_lib.quantization.trainer import CHECKPOINT
from spear_lib.runtime.files import atomic_path, write_json

REFINEMENTS = (0, 1, 2, 5)


def gaussian_bound(covariance: Tensor, bits: float) -> float:
    """Least relative error that any code of ``bits`` per frame can reach on a Gaussian of this covariance (D,
    D).

    Reverse water-filling: sum of min(lambda, theta) over sum of lambda, with theta such that
    sum of 1/2 log2(lambda / theta) over lambda > theta equals ``bits``. A yardstick, not a limit: speech is
    not Gaussian and can be coded better.
    """
    values = torch.linalg.eigvalsh(covariance.double()).clamp(min=0)
    total = float(values.sum())
    if total <= 0:
        return 0.0
    values = values[values > 1e-12 * values.max()].flip(0)
    logs = values.log2()
    for count in range(len(values), 0, -1):
        # With the ``count`` largest above the water: log2 theta = mean log2 lambda - 2 bits / count.
        log_theta = float(logs[:count].mean()) - 2 * bits / count
        if count == 1 or float(logs[count - 1]) >= log_theta:
            return (count * 2**log_theta + float(values[count:].sum())) / total
    return 0.0


def code_usage(codes: Tensor, codebook_size: int) -> dict[str, list[float]]:
    """Per codebook of codes (F, N): entropy (bits), perplexity, share of entries that occur."""
    entropies, used = [], []
    for codebook in range(codes.shape[1]):
        counts = torch.bincount(codes[:, codebook].long(), minlength=codebook_size).double()
        share = counts[counts > 0] / counts.sum()
        entropies.append(float(-(share * share.log2()).sum()))
        used.append(float((counts > 0).double().mean()))
    return {
        "entropy_bits": entropies,
        "perplexity": [2**entropy for entropy in entropies],
        "used_share": used,
    }


@torch.no_grad()
def make_report(
    quantizer: Quantizer | KMeans,
    held_out: Tensor,
    train: Tensor,
    max_train: int = 20000,
    refinements: Sequence[int] = REFINEMENTS,
) -> dict[str, Any]:
    """Measure a quantiser.

    Args:
      held_out: (F, D) embeddings not trained on: errors and channels.
      train: (F, D) training embeddings: use of the codes (a dead code needs many frames to show) and
        covariance.
      refinements: the error is measured after each of these numbers of refinements.
    """
    x = quantizer.normalise(held_out)
    spread = float((x - quantizer.data_mean()).square().sum())
    errors, codes = {}, None
    for count in refinements:
        codes = quantizer.encode(x, count, normalised=True)
        residual = quantizer.decode(codes, normalised=True) - x
        errors[str(count)] = float(residual.square().sum()) / spread
    channel_error = residual.square().sum(dim=0) / (x - x.mean(dim=0)).square().sum(dim=0).clamp(min=1e-12)
    step = max(1, len(train) // max_train)
    sample = quantizer.normalise(train[::step])
    train_codes = quantizer.encode(sample, 2, normalised=True)
    usage = code_usage(train_codes, quantizer.codebook_size)
    bits = quantizer.num_codebooks * math.log2(quantizer.codebook_size)
    dead = round(sum(1 - share for share in usage["used_share"]) * quantizer.codebook_size)
    without = [
        float((residual - quantizer.effective_centers()[n][codes[:, n].long()]).square().sum()) / spread
        for n in range(quantizer.num_codebooks)
    ]
    return {
        "relative_error": errors,
        "gaussian_bound": gaussian_bound(torch.cov(sample.T), bits),
        "bits_per_frame": bits,
        "entropy_bits_per_frame": sum(usage["entropy_bits"]),
        **usage,
        "num_dead_codes": dead,
        "usage_frames": len(sample),
        "codebook_correlations": quantizer.codebook_correlations().tolist(),
        "relative_error_without_codebook": without,
        "channel_error": channel_error.tolist(),
        "num_held_out_frames": len(held_out),
        "num_train_frames": len(train),
    }


def finish(
    tokeniser: Quantizer | KMeans,
    report: dict[str, Any],
    history: list[dict[str, float]],
    stored: StoredFrames,
    training: Any,
    seed: int,
    run_id: str,
    folder: Path,
) -> None:
    """End of stage 4: write report.json, report.png and, last, the trained tokeniser to ``folder``.

    Args:
      report: what ``make_report`` measured.
      history: what every pass or round of the training measured.
      training: its options, a dataclass.
      run_id: identity of the training (``StoredFrames.measure``).
    """
    tokeniser.provenance = {
        "teacher": stored.summary["teacher"],
        "recipe": stored.summary["recipe"],
        "training": asdict(training),
        "seed": seed,
        "run_id": run_id,
        "relative_error": report["relative_error"],
    }
    report = {"quantizer_id": tokeniser.id, **report, "history": history, "provenance": tokeniser.provenance}
    plot_report(report, folder / "report.png")
    write_json(folder / "report.json", report, compact=True)
    # Last: its presence says that the stage is done.
    tokeniser.save(folder)
    (folder / CHECKPOINT).unlink(missing_ok=True)


def plot_report(report: dict[str, Any], path: Path) -> None:
    """Four panels: error per refinement, use of the codes, overlap of the codebooks, error per channel."""
    from matplotlib.figure import Figure

    figure = Figure((11, 8), layout="constrained")
    panels = figure.subplots(2, 2)
    figure.suptitle(
        f"Quantiser {report['quantizer_id']}: {len(report['perplexity'])} codebooks, "
        f"{report['bits_per_frame']:g} bits per frame"
    )
    errors = report["relative_error"]
    panel = panels[0, 0]
    panel.plot([int(count) for count in errors], list(errors.values()), "o-", label="held-out frames")
    panel.axhline(
        report["gaussian_bound"],
        color="gray",
        linestyle="--",
        label="bound for a Gaussian of this covariance\n(other data can do better)",
    )
    for count, error in errors.items():
        panel.annotate(f"{error:.3f}", (int(count), error), (0, 6), textcoords="offset points", ha="center")
    panel.set(xlabel="refinements of the search", ylabel="relative squared error", title="Reconstruction")
    panel.set_ylim(0, 1.15 * max(*errors.values(), report["gaussian_bound"]))
    panel.legend()

    panel, names = panels[0, 1], list(range(len(report["perplexity"])))
    panel.bar(names, report["perplexity"])
    size = round(2 ** (report["bits_per_frame"] / len(names)))
    panel.axhline(size, color="gray", linestyle="--", label=f"all {size} entries equally often")
    panel.set_ylim(0, 1.2 * size)
    panel.legend(loc="upper right")
    panel.set(xlabel="codebook", ylabel="perplexity (entries used equally often)")
    panel.set_title(f"Use of the codes ({report['num_dead_codes']} entries never used)")
    panel.set_xticks(names[:: max(1, len(names) // 16)])

    panel = panels[1, 0]
    image = panel.imshow(report["codebook_correlations"], vmin=0, vmax=1, cmap="viridis")
    panel.set(xlabel="codebook", ylabel="codebook", title="Overlap of the codebooks (0: orthogonal)")
    panel.set_xticks(names[:: max(1, len(names) // 16)])
    panel.set_yticks(names[:: max(1, len(names) // 16)])
    figure.colorbar(image, ax=panel, label="correlation of scatter")

    panel = panels[1, 1]
    panel.plot(report["channel_error"], linewidth=1)
    panel.set(xlabel="embedding channel", ylabel="relative squared error", title="Error per channel")
    panel.set_ylim(bottom=0)
    with atomic_path(path) as aside:
        figure.savefig(aside, format="png", dpi=110, metadata={"Software": None})
