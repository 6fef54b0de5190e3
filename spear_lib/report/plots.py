"""Pictures of the report, as PNG bytes (matplotlib without a display). Axes carry names and units."""

import io
import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

# A palette that stays apart in grey print and for colour-blind readers (Okabe & Ito).
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
_ERROR_COLOURS = {"substitutions": "#0072B2", "insertions": "#E69F00", "deletions": "#D55E00"}

Curve = tuple[Sequence[float], Sequence[float]]
"""Steps and values of one line."""


def _figure(num_panels: int = 1, height: float = 3.2) -> tuple[Figure, list[Axes]]:
    size = (4.5 * num_panels if num_panels > 1 else 6.4, height)
    figure = Figure(size, layout="constrained")
    axes = figure.subplots(1, num_panels, squeeze=False)
    for axis in axes[0]:
        axis.tick_params(labelsize=9)
        for text in (axis.xaxis.label, axis.yaxis.label):
            text.set_fontsize(9)
        axis.title.set_fontsize(10)
        axis.grid(True, color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    return figure, list(axes[0])


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # No date or version in the file: the same numbers give the same bytes.
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()


def plot_curves(panels: Sequence[tuple[Axes, dict[str, Curve]]]) -> None:
    """Draw the curves of each panel; a name has one colour in all of them, for they share a legend."""
    names = list(dict.fromkeys(name for _, curves in panels for name in curves))
    for axis, curves in panels:
        for name, (steps, values) in curves.items():
            colour = COLOURS[names.index(name) % len(COLOURS)]
            # Few points are measurements, not a curve: show where they are.
            style = "o-" if len(steps) <= 20 else "-"
            axis.plot(steps, values, style, color=colour, label=name, markersize=3.5, linewidth=1.4)


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend below all panels, where it hides nothing."""
    entries = {}
    for axis in axes:
        entries.update(zip(*axis.get_legend_handles_labels()[::-1]))
    if len(entries) > 1:
        figure.legend(
            entries.values(), entries.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=8
        )


def _level(axis: Axes, value: float, style: str, words: str, vertical: str) -> None:
    """A horizontal line across the panel, with its name to the right of it."""
    grey = "#555555"
    axis.axhline(value, color=grey, linestyle=style, linewidth=1.2)
    place = (1.01, value)
    axis.annotate(
        words, place, xycoords=("axes fraction", "data"), va=vertical, fontsize=7, color=grey, linespacing=1.0
    )


def pretraining_loss(
    panels: Sequence[tuple[str, dict[str, Curve], dict[str, float], Sequence[int]]],
) -> bytes:
    """Token cross-entropy against the two baselines, one panel for training and one for each validation set.

    Args:
      panels: title, line name (e.g. "masked frames") -> (steps, nats per codebook and frame), token field
        ("" where there is one) -> cross-entropy of the best constant guess, in nats, and numbers of codes per
        codebook, whose logarithms are the chance levels.
    """
    figure, axes = _figure(max(len(panels), 1))
    plot_curves([(axis, curves) for axis, (_, curves, _, _) in zip(axes, panels)])
    for axis, (name, _, entropies, sizes) in zip(axes, panels):
        # Outside, where no curve crosses the words; chance is never below the frequencies.
        for size in sizes:
            _level(axis, math.log(size), "--", f"chance {math.log(size):.2f}\n(ln {size})", "bottom")
        for field, entropy in entropies.items():
            lines = f"unigram {entropy:.2f}" + (f"\n({field})" if field else "")
            _level(axis, entropy, ":", lines, "top")
        axis.set_ylim(top=max([axis.get_ylim()[1], *(1.06 * math.log(size) for size in sizes)]))
        axis.set(title=name, xlabel="optimiser step", ylabel="loss (nats per codebook and frame)")
    _legend(figure, axes)
    return _png(figure)


def lines(
    panels: Sequence[tuple[str, str, dict[str, Curve]]],
    x_label: str = "optimiser step",
    logarithmic: Sequence[str] = (),
) -> bytes:
    """Panels side by side: (title, name and unit of the vertical axis, curves).

    Args:
      logarithmic: names of vertical axes whose scale is, where values differ by more than a factor of 10.
    """
    figure, axes = _figure(len(panels))
    plot_curves([(axis, curves) for axis, (_, _, curves) in zip(axes, panels)])
    for axis, (title, y_label, curves) in zip(axes, panels):
        axis.set(title=title, xlabel=x_label, ylabel=y_label)
        lowest = min(min(values) for _, values in curves.values())
        highest = max(max(values) for _, values in curves.values())
        if y_label in logarithmic and 0 < 10 * lowest < highest:
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter("{x:g}")
        elif lowest >= 0:
            axis.set_ylim(0, 1.04 * axis.get_ylim()[1])
    _legend(figure, axes)
    return _png(figure)


def code_usage(usage: dict[str, Sequence[float]]) -> bytes:
    """How many of each codebook's codes are in effective use, in percent, per token store."""
    figure, (axis,) = _figure()
    width = 0.8 / max(len(usage), 1)
    for position, (name, values) in enumerate(usage.items()):
        places = [index + (position - (len(usage) - 1) / 2) * width for index in range(len(values))]
        axis.bar(places, values, width, color=COLOURS[position % 7], label=name)
    axis.set_xticks(range(max(len(values) for values in usage.values())))
    axis.set(xlabel="codebook (number)", ylabel="codes in effective use (% of all)", ylim=(0, 108))
    axis.axhline(100, color="#555555", linestyle="--", linewidth=1)
    _legend(figure, [axis])
    return _png(figure)


def word_error_rates(results: Sequence[dict]) -> bytes:
    """Stacked substitutions, insertions and deletions per (test set, arm), with the 95 % interval.

    Args:
      results: {"set", "arm", "wer", "interval_95", "substitutions", ..., "num_words"} each.
    """
    figure, (axis,) = _figure(height=1.1 + 0.42 * len(results))
    figure.set_size_inches(7.6, 1.1 + 0.42 * len(results))
    names = [f"{item['set']}, {item['arm']}" for item in results]
    for row, item in enumerate(results):
        left = 0.0
        for kind, colour in _ERROR_COLOURS.items():
            share = 100.0 * item[kind] / max(item["num_words"], 1)
            axis.barh(row, share, left=left, color=colour, height=0.62, label=kind if row == 0 else None)
            left += share
        low, high = item["interval_95"]
        axis.plot([low, high], [row, row], color="black", linewidth=1.2, marker="|", markersize=8)
        axis.annotate(
            f"{item['wer']:.2f}",
            (high, row),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xlim(0, max(item["interval_95"][1] for item in results) * 1.12 + 1)
    axis.set(xlabel="word error rate (% of reference words; whisker: 95 % interval)")
    axis.grid(False, axis="y")
    axis.legend(frameon=False, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return _png(figure)


def probes(results: dict[str, dict[str, dict]]) -> bytes:
    """Bars per probe: task -> features -> {"mean", "std", "metric"} (percent, higher is better)."""
    figure, axes = _figure(len(results), height=3.0)
    for axis, (task, features) in zip(axes, results.items()):
        names = list(features)
        for position, name in enumerate(names):
            item = features[name]
            colour = COLOURS[position % len(COLOURS)]
            axis.bar(position, item["mean"], 0.65, yerr=item["std"], capsize=3, color=colour)
            axis.annotate(
                f"{item['mean']:.1f}",
                (position, item["mean"] + item["std"]),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=9,
            )
        axis.set_xticks(range(len(names)), [name.replace(" ", "\n", 1) for name in names], fontsize=8)
        metric = next(iter(features.values()))["metric"] if features else ""
        axis.set(title=task, ylabel=f"{metric} (%)")
        axis.set_ylim(0, max([item["mean"] + item["std"] for item in features.values()] + [1.0]) * 1.15)
        axis.grid(False, axis="x")
    return _png(figure)


def mean_average_precisions(results: Sequence[dict]) -> bytes:
    """Bars per (set, arm), a line at the chance level of each.

    Args:
      results: {"set", "arm", "map", "chance_map"} each, in percent.
    """
    height = 0.9 + 0.42 * len(results)
    figure, (axis,) = _figure(height=height)
    figure.set_size_inches(7.6, height)
    arms = list(dict.fromkeys(item["arm"] for item in results))
    for row, item in enumerate(results):
        axis.barh(row, item["map"], color=COLOURS[arms.index(item["arm"]) % len(COLOURS)], height=0.62)
        axis.plot([item["chance_map"]] * 2, [row - 0.31, row + 0.31], color="black", linewidth=1.6)
        axis.annotate(
            f"{item['map']:.1f}",
            (max(item["map"], item["chance_map"]), row),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axis.set_yticks(range(len(results)), [f"{item['set']}, {item['arm']}" for item in results])
    axis.invert_yaxis()
    axis.set_xlim(0, min(109.0, max(item["map"] for item in results) * 1.12 + 1))
    axis.set(xlabel="mean average precision (%; line: chance)")
    axis.grid(False, axis="y")
    return _png(figure)


_NAMED_CLASSES = 60  # more of them do not fit one below the other


def class_precisions(arms: dict[str, Sequence[dict]]) -> bytes:
    """Average precision of each class: a row per class with a point per arm, or, for more classes than can be
    named, points over the number of clips.

    Args:
      arms: arm -> {"label", "name", "support", "average_precision" (0..1)} of each class, most support first.
    """
    first = next(iter(arms.values()))
    named = len(first) <= _NAMED_CLASSES
    height = 1.2 + 0.2 * len(first) if named else 3.6
    figure, (axis,) = _figure(height=height)
    figure.set_size_inches(7.6, height)
    rows = {each["label"]: row for row, each in enumerate(first)}
    for position, (arm, classes) in enumerate(arms.items()):
        places = [rows[each["label"]] if named else each["support"] for each in classes]
        values = [100.0 * each["average_precision"] for each in classes]
        points = (values, places) if named else (places, values)
        axis.plot(
            *points,
            "o",
            color=COLOURS[position % len(COLOURS)],
            label=arm,
            markersize=5 if named else 3,
            alpha=0.8,
        )
    if named:
        for row in rows.values():
            values = [100.0 * classes[row]["average_precision"] for classes in arms.values()]
            axis.plot([min(values), max(values)], [row, row], color="#bbbbbb", linewidth=1, zorder=0)
        axis.set_yticks(
            range(len(first)), [f"{each['name']} ({each['support']})" for each in first], fontsize=8
        )
        axis.set_ylim(len(first) - 0.4, -0.6)
        axis.set(xlabel="average precision (%)", ylabel="class (clips that have it)", xlim=(0, 102))
    else:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(LogFormatter())
        axis.xaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False))  # labels where they fit
        axis.set(xlabel="clips that have the class", ylabel="average precision (%)", ylim=(0, 102))
    _legend(figure, [axis])
    return _png(figure)
