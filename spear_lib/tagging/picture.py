"""Which class is heard when: a picture of a recording, time by class."""

import io

import numpy as np

from spear_lib.tagging.inference import Tags

_COLUMNS = 1600  # more frames than that are drawn as the highest of their neighbours
_FAINTEST = 0.1  # the brightest colour is the highest probability of the picture, but no less than this


def time_by_class(tags: Tags, names: list[str], top: int, title: str) -> bytes:
    """PNG with one row per class, those of highest probability first, and the colour of each frame's
    probability.

    Args:
      tags: of the recording.
      names: of the K classes.
      top: how many classes.
      title: above the picture, for example the file's name.
    """
    from matplotlib.figure import Figure

    order = np.argsort(-tags.clip, kind="stable")[:top]
    frames = tags.frames[:, order].T
    step = float(np.diff(tags.times).mean()) if len(tags.times) > 1 else 0.02
    begin, end = float(tags.times[0]) - step / 2, float(tags.times[-1]) + step / 2
    if frames.shape[1] > _COLUMNS:
        edges = np.linspace(0, frames.shape[1], _COLUMNS, endpoint=False).astype(np.int64)
        frames = np.maximum.reduceat(frames, edges, axis=1)
    minutes = end > 300.0
    scale = 60.0 if minutes else 1.0
    figure = Figure((9.0, 1.5 + 0.3 * len(order)), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(
        frames,
        aspect="auto",
        interpolation="nearest",
        cmap="magma",
        vmin=0.0,
        vmax=min(1.0, max(float(frames.max(initial=0.0)), _FAINTEST)),
        extent=(begin / scale, end / scale, len(order) - 0.5, -0.5),
    )
    axis.set_yticks(range(len(order)), [f"{names[i]}  {tags.clip[i]:.2f}" for i in order], fontsize=9)
    axis.set_xlim(0.0, end / scale)
    axis.set_xlabel(f"time ({'min' if minutes else 's'})", fontsize=9)
    axis.set_ylabel("class and its probability\nin the whole recording", fontsize=9)
    axis.set_title(title, fontsize=10)
    axis.tick_params(axis="x", labelsize=9)
    figure.colorbar(image, ax=axis, label="probability in the frame", pad=0.01)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()
