"""Pictures of a recording: its waveform with the words on it, and what each layer makes of it (ours).

Legend: T frames, D channels, M mel bins.
"""

import io
from dataclasses import dataclass

import numpy as np

from spear_lib.asr.words import Word

_INK, _WAVE = "#26324a", "#7d9cc4"
_ROW_SECONDS, _MOST_ROWS = 12.0, 6
_POINTS = 1100
"""Of a row of the waveform; each is the lowest and the highest sample of its stretch."""
_HEIGHTS = (1.12, 1.42, 1.72)
"""Where words stand above a waveform of height 1, so that neighbours do not cover each other."""
_CHARACTER_INCHES = 0.085  # about the width of a letter in the size below
_WIDTH_INCHES = 11.0


@dataclass(frozen=True)
class Envelope:
    """A waveform as it is drawn."""

    low: np.ndarray
    """(P,) lowest sample of each stretch."""
    high: np.ndarray
    """(P,) highest."""
    seconds: float
    """Length of the recording."""


def envelope_of(samples: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest sample of each of at most ``points`` stretches of ``samples`` (N,), N > 0."""
    edges = np.linspace(0, len(samples), min(points, len(samples)), endpoint=False).astype(np.int64)
    return np.minimum.reduceat(samples, edges), np.maximum.reduceat(samples, edges)


def points_of(seconds: float, of_seconds: float) -> int:
    """How many points ``seconds`` of a recording of ``of_seconds`` take."""
    rows = number_of_rows(of_seconds)
    return max(1, round(_POINTS * rows * seconds / max(of_seconds, 1e-3)))


def number_of_rows(seconds: float) -> int:
    """Rows of the waveform's picture: of 12 s at most, but no more than six."""
    return int(min(_MOST_ROWS, max(1, np.ceil(seconds / _ROW_SECONDS - 1e-6))))


def waveform_picture(envelope: Envelope, words: list[Word]) -> bytes:
    """PNG: the waveform in rows, each word above where it was emitted; a word without room is left out (the
    table has it)."""
    rows = number_of_rows(envelope.seconds)
    length = max(envelope.seconds / rows, 0.01)
    figure = _figure(0.55 + rows * (1.35 if words else 0.9))
    axes = figure.subplots(rows, 1, squeeze=False)[:, 0]
    step = envelope.seconds / len(envelope.low)
    times = (np.arange(len(envelope.low)) + 0.5) * step
    loudest = max(float(np.abs(envelope.low).max()), float(np.abs(envelope.high).max()), 1e-4)
    for row, axis in enumerate(axes):
        begin, end = row * length, (row + 1) * length
        inside = (times >= begin - step) & (times <= end + step)
        low, high = envelope.low[inside] / loudest, envelope.high[inside] / loudest
        # A constant stretch would have no height and not be seen.
        axis.fill_between(times[inside], low - 0.01, high + 0.01, color=_WAVE, linewidth=0)
        reached = [-np.inf] * len(_HEIGHTS)
        for word in words:
            if begin <= word.start < end:
                _write_word(axis, word, reached, length)
        axis.set_xlim(begin, end)
        axis.set_ylim(-1.08, _HEIGHTS[-1] + 0.3 if words else 1.08)
        axis.set_yticks([])
        axis.tick_params(axis="x", labelsize=8, colors=_INK)
        for side in ("top", "left", "right"):
            axis.spines[side].set_visible(False)
    axes[-1].set_xlabel("time (s)", fontsize=9, color=_INK)
    return _png(figure)


def _write_word(axis, word: Word, reached: list[float], row_seconds: float) -> None:
    """On the lowest height that is free; ``reached``: how far each one is taken, in s."""
    seconds = (len(word.text) + 1) * _CHARACTER_INCHES * row_seconds / _WIDTH_INCHES
    level = next((n for n, end in enumerate(reached) if word.start >= end), None)
    if level is None:
        return
    reached[level] = word.start + seconds
    height = _HEIGHTS[level]
    axis.plot([word.start] * 2, [0.0, height], color=_INK, linewidth=0.5, alpha=0.35)
    text = {"fontsize": 8.5, "color": _INK, "va": "bottom", "clip_on": False}
    # A doubtful word is paler.
    axis.text(word.start, height, word.text, alpha=0.45 + 0.55 * word.confidence, **text)


def principal_colours(frames: np.ndarray) -> tuple[np.ndarray, float]:
    """The three directions in which frames differ most, as red, green and blue.

    Args:
      frames: (T, D).

    Returns:
      (T, 3) in [0, 1], each from the 2nd to the 98th percentile of its direction (a half where nothing
      varies), and the share of the variance that the three hold.
    """
    centred = frames.astype(np.float64) - frames.mean(axis=0, dtype=np.float64)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    three = vectors[:, ::-1][:, :3]
    # The sign of a direction is arbitrary: the largest weight is positive, so that a picture can be repeated.
    three = three * np.sign(three[np.abs(three).argmax(axis=0), np.arange(three.shape[1])])
    placed = centred @ three
    low, high = np.percentile(placed, [2, 98], axis=0)
    varies = high - low > 1e-9
    colours = np.where(varies, (placed - low) / np.where(varies, high - low, 1.0), 0.5).clip(0.0, 1.0)
    colours = np.pad(colours, ((0, 0), (0, 3 - colours.shape[1])), constant_values=0.5)
    total = values.clip(min=0.0).sum()
    return colours, float(values[::-1][:3].clip(min=0.0).sum() / total) if total > 0 else 1.0


def layers_picture(log_mel: np.ndarray, states: list[np.ndarray], names: list[str], rate: float) -> bytes:
    """PNG: the log-mel spectrogram, and below it a strip of ``principal_colours`` for each layer.

    Args:
      log_mel: (T, M).
      states: (T, D) of each layer, at the same frames.
      names: of the layers.
      rate: frames per second.
    """
    mel_inches, strip_inches = 1.3, 0.32
    figure = _figure(0.6 + mel_inches + strip_inches * len(states))
    heights = [mel_inches, *[strip_inches] * len(states)]
    axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    extent = (0.0, len(log_mel) / rate, 0.0, 1.0)
    low, high = np.percentile(log_mel, [5, 99.5])
    drawn = {"aspect": "auto", "interpolation": "nearest", "extent": extent}
    axes[0].imshow(log_mel.T, origin="lower", cmap="magma", vmin=low, vmax=max(high, low + 1e-3), **drawn)
    shares = []
    for axis, state in zip(axes[1:], states):
        colours, share = principal_colours(state)
        axis.imshow(colours[None], **drawn)
        shares.append(f"{100 * share:.0f} %")
    sides = [f"{name}\n{state.shape[1]} channels" for name, state in zip(names, states)]
    for axis, label, share in zip(axes, ["log-mel", *sides], ["", *shares]):
        axis.set_yticks([])
        axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8, color=_INK)
        axis.text(1.005, 0.5, share, transform=axis.transAxes, fontsize=8, va="center", color=_INK)
        axis.tick_params(axis="x", labelsize=8, colors=_INK)
    axes[-1].set_xlabel("time (s)", fontsize=9, color=_INK)
    return _png(figure)


def _figure(height: float):
    from matplotlib.figure import Figure

    return Figure((_WIDTH_INCHES, height), layout="constrained")


def _png(figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
