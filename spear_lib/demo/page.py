"""The page itself, on gradio: an input, and a section for each part of what is shown (ours)."""

import html
import io
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spear_lib.demo.listening import Listener, Shown
from spear_lib.runtime.progress import format_seconds

logger = logging.getLogger(__name__)

INSTALL = "pip install 'spear_lib[demo]', or pip install gradio"
FAILED = "error: "
"""How the line under the recording begins when nothing could be made of it."""
_ABOUT_LAYERS = (
    "A strip for each layer: frames of like colour have like features. Red, green and blue are the three "
    "directions in which the layer's frames differ most, so colours of two layers do not compare; on the "
    "right, the share of the variance that they hold."
)
STYLE = """
.gradio-container {max-width: 1120px !important; margin: 0 auto !important}
#facts p {margin: 0}
#facts .failed {color: #b3261e; font-weight: 600}
.dark #facts .failed {color: #ff8a80}
#text textarea {font-size: 1.1em; line-height: 1.5}
"""


def import_gradio(uploads: str | os.PathLike | None = None) -> Any:
    """gradio, with all that leaves the machine switched off.

    Args:
      uploads: where it keeps files while it runs.

    Raises:
      RuntimeError: it is not installed.
    """
    # Read when it is imported.
    os.environ |= {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "GRADIO_SHARE": "False",
    }
    if uploads is not None:
        os.environ["GRADIO_TEMP_DIR"] = os.fspath(uploads)
    try:
        import gradio
    except ImportError as error:
        raise RuntimeError(f"the page needs gradio ({error}): {INSTALL}") from error
    return gradio


def build_page(listener: Listener, title: str, model_facts: dict[str, str], say: Callable[[Exception], str]):
    """The page as gradio's ``Blocks``.

    Args:
      listener: what listens.
      title: heading.
      model_facts: what is tried, a line each.
      say: an error in one line, for people.
    """
    gradio = import_gradio()
    models, limits = listener.models, listener.limits
    parts: dict[str, Any] = {}
    sections: dict[str, Any] = {}
    picture = {
        "format": "png",
        "show_label": False,
        "container": False,
        "buttons": ["download", "fullscreen"],
    }

    @contextmanager
    def section(name: str, heading: str) -> Iterator[None]:
        """Seen when the part ``name`` is there."""
        with gradio.Column(visible=False, elem_id=f"section-{name}") as sections[name]:
            gradio.Markdown(f"### {heading}")
            yield

    def table(name: str, heading: str, headers: list[str]) -> None:
        with gradio.Accordion(heading, open=False):
            parts[name] = gradio.Dataframe(
                headers=headers, interactive=False, max_height=320, show_label=False, elem_id=name
            )

    with gradio.Blocks(title=f"SPEAR: {title}", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gradio.HTML(_heading(title, model_facts), padding=False)
        audio = gradio.Audio(
            sources=["upload", "microphone"],
            type="filepath",
            label=f"Drop a recording here, or use the microphone (at most {format_seconds(limits.seconds)} "
            f"and {limits.megabytes:g} MB; the scissors cut a part out)",
            buttons=[],
            elem_id="audio",
        )
        with gradio.Row():
            button = gradio.Button("Listen", variant="primary", elem_id="listen", scale=3)
            other = gradio.UploadButton("Another kind of file", elem_id="other")
        parts["facts"] = gradio.HTML(elem_id="facts", padding=False)
        heading = "Waveform, and words where they were emitted" if models.recogniser else "Waveform"
        with section("waveform", heading):
            parts["waveform"] = gradio.Image(elem_id="waveform", **picture)
        if models.recogniser is not None:
            with section("text", "Transcript"):
                parts["text"] = gradio.Textbox(
                    show_label=False, container=False, interactive=False, buttons=["copy"], elem_id="text"
                )
                table("words", "Words with times", ["word", "start (s)", "end (s)", "confidence"])
        if models.tagger is not None:
            with section("tags", "Sounds over time"):
                parts["tags"] = gradio.Image(elem_id="tags", **picture)
                heading = f"Events (frames of {listener.events.threshold:g} or more)"
                table("events", heading, ["start (s)", "end (s)", "class", "probability"])
        if listener.layers is not None:
            with section("layers", f"Layers of the encoder (the first {limits.layer_seconds:g} s)"):
                parts["layers"] = gradio.Image(elem_id="layers", **picture)
                gradio.Markdown(_ABOUT_LAYERS)

        def updates(values: dict[str, Any]) -> list:
            seen = [gradio.update(visible=values[name] is not None) for name in sections]
            return [*(values[name] for name in parts), *seen]

        def answer(path: str | None) -> Iterator[list]:
            for values in answers(listener, path, say):
                yield updates(values)

        outputs = [*parts.values(), *sections.values()]
        # One recording at a time, whatever it came through.
        common = {"outputs": outputs, "show_progress_on": parts["facts"], "concurrency_id": "models"}
        gradio.on([audio.upload, audio.stop_recording, button.click], answer, audio, **common)
        other.upload(answer, other, **common)
        audio.clear(lambda: updates(component_values(Shown(), "")), None, outputs)
    return page


def answers(
    listener: Listener, path: str | os.PathLike | None, say: Callable[[Exception], str]
) -> Iterator[dict[str, Any]]:
    """Values of the page's parts, more each time; of a recording that cannot be used only the line that says
    why, as the commands say it."""
    if path is None:
        yield component_values(Shown(), "no recording yet: drop a file, or use the microphone")
        return
    shown = Shown()
    try:
        for shown in listener.listen(path):
            yield component_values(shown, "")
    except Exception as error:  # whatever it is, the page stays and the reader learns of it
        # The folder of uploads says nothing to somebody who has dropped a file.
        reason = say(error).replace(str(path), Path(path).name)
        logger.warning("%s", reason)
        yield component_values(Shown(), reason)


def component_values(shown: Shown, error: str) -> dict[str, Any]:
    """What the parts of the page hold."""
    state = f'<p class="failed">{FAILED}{html.escape(error)}</p>' if error else ""
    return {
        "facts": state or (f"<p>{html.escape(shown.facts)}</p>" if shown.facts else ""),
        "waveform": _image(shown.waveform),
        "text": shown.text,  # empty where nothing is said
        "words": [[w.text, f"{w.start:.2f}", f"{w.end:.2f}", f"{w.confidence:.2f}"] for w in shown.words],
        "tags": _image(shown.tags),
        "events": [[f"{a:.2f}", f"{b:.2f}", name, f"{p:.2f}"] for a, b, name, p in shown.events],
        "layers": _image(shown.layers),
    }


def _heading(title: str, model_facts: dict[str, str]) -> str:
    lines = (f"<b>{html.escape(name)}</b> {html.escape(value)}" for name, value in model_facts.items())
    return f"<h1>{html.escape(title)}</h1><p>{'<br>'.join(lines)}</p>"


def _image(png: bytes) -> Any:
    if not png:
        return None
    from PIL import Image

    return Image.open(io.BytesIO(png))
