"""Pictures of the report, as PNG bytes (matplotlib without a display). Axes carry names and units."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from spear_lib.runtime.task_file import Bars, ItemScores

# A palette that stays apart in grey print and for colour-blind readers (Okabe & Ito).
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
_PART_COLOURS = ["#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7"]

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


@dataclass
class LevelLine:
    """A horizontal line across a panel, with its name to the right of it."""

    value: float
    words: str
    measured: bool = False
    """Dotted with its words below; else dashed with its words above, as chance is above what is measured."""


@dataclass
class LinePanel:
    """Curves over the optimiser steps."""

    title: str
    axis: str
    """Name and unit of the vertical axis."""
    curves: dict[str, Curve]
    logarithmic: bool = False
    """Where values differ by more than a factor of 10."""
    levels: Sequence[LevelLine] = ()


def _draw_levels(axis: Axes, levels: Sequence[LevelLine]) -> None:
    """With the words outside, where no curve crosses them."""
    grey = "#555555"
    for level in levels:
        axis.axhline(level.value, color=grey, linestyle=":" if level.measured else "--", linewidth=1.2)
        axis.annotate(
            level.words,
            (1.01, level.value),
            xycoords=("axes fraction", "data"),
            va="top" if level.measured else "bottom",
            fontsize=7,
            color=grey,
            linespacing=1.0,
        )
    if levels:
        highest = max(level.value for level in levels)
        axis.set_ylim(top=max(axis.get_ylim()[1], 1.06 * highest))


def lines(panels: Sequence[LinePanel]) -> bytes:
    """Panels side by side; a name has one colour in all of them."""
    figure, axes = _figure(len(panels))
    plot_curves([(axis, panel.curves) for axis, panel in zip(axes, panels)])
    for axis, panel in zip(axes, panels):
        axis.set(title=panel.title, xlabel="optimiser step", ylabel=panel.axis)
        lowest = min(min(values) for _, values in panel.curves.values())
        highest = max(max(values) for _, values in panel.curves.values())
        if panel.logarithmic and 0 < 10 * lowest < highest:
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter("{x:g}")
        elif lowest >= 0 and not panel.levels:
            axis.set_ylim(0, 1.04 * axis.get_ylim()[1])
        _draw_levels(axis, panel.levels)
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


def result_bars(results: Sequence[dict], measure: str, bars: Bars) -> bytes:
    """A bar per (test set, arm): its value, and the parts, the interval and the chance level that ``bars``
    names.

    Args:
      results: contents of result files with "set" and "arm".
      measure: key of the value.
    """
    height = 1.1 + 0.42 * len(results)
    figure, (axis,) = _figure(height=height)
    figure.set_size_inches(7.6, height)
    arms = list(dict.fromkeys(item["arm"] for item in results))
    ends = []
    for row, item in enumerate(results):
        value = item[measure]
        if bars.parts:
            left = 0.0
            for part, colour in zip(bars.parts, _PART_COLOURS):
                share = 100.0 * item[part] / max(item[bars.parts_of], 1)
                axis.barh(row, share, left=left, color=colour, height=0.62, label=part if row == 0 else None)
                left += share
        else:
            axis.barh(row, value, color=COLOURS[arms.index(item["arm"]) % len(COLOURS)], height=0.62)
        ends.append(value)
        if bars.interval:
            low, high = item[bars.interval]
            axis.plot([low, high], [row, row], color="black", linewidth=1.2, marker="|", markersize=8)
            ends[-1] = max(value, high)
        if bars.chance:
            chance = item[bars.chance]
            axis.plot([chance] * 2, [row - 0.31, row + 0.31], color="black", linewidth=1.6)
            ends[-1] = max(ends[-1], chance)
        place = (ends[-1], row)
        axis.annotate(
            f"{value:.2f}", place, xytext=(5, 0), textcoords="offset points", va="center", fontsize=9
        )
    axis.set_yticks(range(len(results)), [f"{item['set']}, {item['arm']}" for item in results])
    axis.invert_yaxis()
    right = max(ends) * 1.12 + 1
    axis.set_xlim(0, right if bars.highest is None else min(1.09 * bars.highest, right))
    axis.set(xlabel=bars.axis)
    axis.grid(False, axis="y")
    if bars.parts:
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


_NAMED_ITEMS = 60  # more of them do not fit one below the other


def item_scores(arms: dict[str, Sequence[dict]], shown: ItemScores) -> bytes:
    """Score of each item (class): a row per item with a point per arm, or, for more items than can be named,
    points over their sizes.

    Args:
      arms: arm -> the items, the largest first.
      shown: the keys of an item, and the words of the axes.
    """
    first = next(iter(arms.values()))
    named = len(first) <= _NAMED_ITEMS
    height = 1.2 + 0.2 * len(first) if named else 3.6
    figure, (axis,) = _figure(height=height)
    figure.set_size_inches(7.6, height)
    rows = {each[shown.id]: row for row, each in enumerate(first)}
    for position, (arm, items) in enumerate(arms.items()):
        places = [rows[each[shown.id]] if named else each[shown.size] for each in items]
        values = [100.0 * each[shown.score] for each in items]
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
            values = [100.0 * items[row][shown.score] for items in arms.values()]
            axis.plot([min(values), max(values)], [row, row], color="#bbbbbb", linewidth=1, zorder=0)
        names = [f"{each[shown.item]} ({each[shown.size]})" for each in first]
        axis.set_yticks(range(len(first)), names, fontsize=8)
        axis.set_ylim(len(first) - 0.4, -0.6)
        axis.set(xlabel=shown.score_axis, ylabel=shown.item_axis, xlim=(0, 102))
    else:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(LogFormatter())
        axis.xaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False))  # labels where they fit
        axis.set(xlabel=shown.size_axis, ylabel=shown.score_axis, ylim=(0, 102))
    _legend(figure, [axis])
    return _png(figure)


BENCHMARK_PANELS = 6
"""Tasks in one picture."""


@dataclass
class BenchmarkPanel:
    """One task: values measured here, and those of the paper beside them."""

    title: str
    metric: str
    values: dict[str, tuple[float, float]]
    """Encoder -> mean, standard deviation."""
    published: dict[str, float]
    """Model of the paper -> value; may be empty."""


def benchmarks(panels: Sequence[BenchmarkPanel]) -> bytes:
    """Horizontal bars, up to three tasks in a row; an encoder has one colour, the paper's models are grey."""
    columns, lines_ = min(3, len(panels)), -(-len(panels) // 3)
    tallest = max(len(panel.values) + len(panel.published) for panel in panels)
    figure = Figure((4.2 * columns, lines_ * (0.9 + 0.27 * tallest)), layout="constrained")
    axes = figure.subplots(lines_, columns, squeeze=False).flatten()
    encoders = list(dict.fromkeys(name for panel in panels for name in panel.values))
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, panel in zip(axes, panels):
        names = [*panel.values, *panel.published]
        means = [*(mean for mean, _ in panel.values.values()), *panel.published.values()]
        errors = [*(deviation for _, deviation in panel.values.values()), *(0.0 for _ in panel.published)]
        colours = [COLOURS[encoders.index(name) % len(COLOURS)] for name in panel.values]
        axis.barh(range(len(names)), means, 0.7, color=[*colours, *("#c8c8c8" for _ in panel.published)])
        for row, (mean, error) in enumerate(zip(means, errors)):
            if error:
                axis.plot([mean - error, mean + error], [row, row], color="black", linewidth=1)
            place = (max(mean + error, 0.0), row)
            axis.annotate(f"{mean:.3g}", place, (4, 0), textcoords="offset points", va="center", fontsize=8)
        labels = [*panel.values, *(f"{name}, the paper" for name in panel.published)]
        axis.set_yticks(range(len(names)), labels, fontsize=8)
        axis.set_ylim(len(names) - 0.4, -0.6)
        low, high = min([*means, 0.0]), max([*means, 0.0])
        axis.set_xlim(1.1 * low, high + 0.2 * (high - low or 1.0))
        axis.set_title(panel.title, fontsize=9)
        axis.set_xlabel(panel.metric, fontsize=8)
        axis.tick_params(axis="x", labelsize=8)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    return _png(figure)
