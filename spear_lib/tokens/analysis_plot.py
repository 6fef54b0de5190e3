"""Pictures of the token analysis: speakers in two dimensions, and their separability in numbers."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from spear_lib.runtime.files import atomic_path

MARKERS = "osD^vP"


def plot_speakers(
    panels: dict[str, np.ndarray],
    numbers: dict[str, dict[str, float]],
    speakers: Sequence[str],
    path: str | Path,
) -> None:
    """One panel per representation: every utterance a point, every speaker a colour and a marker.

    Args:
      panels: name -> (U, 2).
      numbers: name -> what ``separability`` found in the full space.
    """
    names = sorted(set(speakers))
    colours = matplotlib.colormaps["tab10" if len(names) <= 10 else "gist_rainbow"]
    columns = math.ceil(math.sqrt(len(panels)))
    rows = math.ceil(len(panels) / columns)
    figure = Figure((4.2 * columns, 4.2 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (name, points) in zip(axes.flat, panels.items()):
        axis.set_axis_on()
        for index, who in enumerate(names):
            rows_of = np.array([each == who for each in speakers])
            colour = colours(index % 10) if len(names) <= 10 else colours(index / (len(names) - 1))
            marker = MARKERS[index % len(MARKERS)]
            axis.scatter(*points[rows_of].T, s=16, color=colour, marker=marker, linewidths=0, label=who)
        found = numbers[name]
        axis.set_title(
            f"{name}\nsilhouette {found['silhouette']:.2f}, 1-NN {found['nearest_neighbour']:.0f} %",
            fontsize=10,
        )
        axis.set(xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2")
    if len(names) <= 30:
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=10,
            fontsize=8,
            title="speaker",
            markerscale=1.3,
        )
    _save(figure, path)


def plot_numbers(numbers: dict[str, dict[str, float]], path: str | Path) -> None:
    """Bars: nearest-neighbour and linear-probe accuracy of every representation, with chance."""
    names = list(numbers)
    figure = Figure((9, 1.6 + 0.3 * len(names)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    rows = np.arange(len(names))
    for offset, (key, label, colour) in enumerate(
        [("nearest_neighbour", "nearest neighbour", "#0072B2"), ("linear_probe", "linear probe", "#E69F00")]
    ):
        values = [numbers[name][key] for name in names]
        axes[0].barh(rows + 0.4 * offset - 0.2, values, height=0.38, color=colour, label=label)
    axes[0].axvline(numbers[names[0]]["chance"], color="black", linestyle="--", linewidth=1, label="chance")
    axes[0].set(xlabel="speaker accuracy (%)", xlim=(0, 100), yticks=rows, yticklabels=names)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=8)
    axes[0].invert_yaxis()
    axes[1].barh(rows, [numbers[name]["silhouette"] for name in names], height=0.6, color="#009E73")
    axes[1].axvline(0, color="black", linewidth=0.8)
    axes[1].set(xlabel="silhouette by speaker")
    _save(figure, path)


def _save(figure: Figure, path: str | Path) -> None:
    with atomic_path(path) as aside:
        figure.savefig(aside, format="png", dpi=110, metadata={"Software": None})
