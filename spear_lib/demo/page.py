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

logger = logging.getLogger(__name__)

INSTALL = "pip install 'spear_lib[demo]', or pip install gradio"
FAILED = "error: "
"""How the line under the recording begins when nothing could be made of it."""
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
    with gradio.Blocks(title=f"SPEAR: {title}", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gradio.HTML(_heading(title, model_facts), padding=False)
        audio = gradio.Audio(
            sources=["upload", "microphone"],
            type="filepath",
            label=f"A recording: drop a file, or use the microphone (at most {limits.seconds:g} s, "
            f"{limits.megabytes:g} MB; scissors cut a part out)",
            buttons=[],
            elem_id="audio",
        )
        button = gradio.Button("Listen", variant="primary", elem_id="listen")
        parts = {"facts": gradio.HTML(elem_id="facts", padding=False)}
        picture = {"format": "png", "show_label": False, "buttons": ["download", "fullscreen"]}
        title_of_wave = "Waveform, and words where they were emitted" if models.recogniser else "Waveform"
        with _section(gradio, title_of_wave):
            parts["waveform"] = gradio.Image(elem_id="waveform", **picture)
        if models.recogniser is not None:
            with _section(gradio, "Transcript"):
                parts["text"] = gradio.Textbox(
                    show_label=False, interactive=False, buttons=["copy"], elem_id="text", lines=2
                )
                with gradio.Accordion("Words with times", open=False):
                    parts["words"] = _table(gradio, ["word", "start (s)", "end (s)", "confidence"], "words")
        if models.tagger is not None:
            with _section(gradio, "Sounds over time"):
                parts["tags"] = gradio.Image(elem_id="tags", **picture)
                heading = f"Events (probability of {listener.events.threshold:g} or more)"
                with gradio.Accordion(heading, open=False):
                    columns = ["start (s)", "end (s)", "class", "probability"]
                    parts["events"] = _table(gradio, columns, "events")
        if listener.layers is not None:
            with _section(gradio, f"Layers of the encoder (the first {limits.layer_seconds:g} s)"):
                parts["layers"] = gradio.Image(elem_id="layers", **picture)
                gradio.Markdown(
                    "A strip for each layer: frames of like colour have like features. Red, green and blue "
                    "are the three directions in which the layer's frames differ most, so colours of two "
                    "layers do not compare; on the right, the share of the variance that they hold."
                )

        def answer(path: str | None) -> Iterator[list]:
            for values in answers(listener, path, say):
                yield [values[name] for name in parts]

        gradio.on(
            [audio.upload, audio.stop_recording, button.click],
            answer,
            inputs=audio,
            outputs=list(parts.values()),
            show_progress_on=parts["facts"],
            trigger_mode="once",
            api_name="listen",
        )
        audio.clear(lambda: list(component_values(Shown(), "").values()), None, list(parts.values()))
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
        "text": shown.text,
        "words": [[w.text, f"{w.start:.2f}", f"{w.end:.2f}", f"{w.confidence:.2f}"] for w in shown.words],
        "tags": _image(shown.tags),
        "events": [[f"{a:.2f}", f"{b:.2f}", name, f"{p:.2f}"] for a, b, name, p in shown.events],
        "layers": _image(shown.layers),
    }


def _heading(title: str, model_facts: dict[str, str]) -> str:
    lines = (f"<b>{html.escape(name)}</b> {html.escape(value)}" for name, value in model_facts.items())
    return f"<h1>{html.escape(title)}</h1><p>{'<br>'.join(lines)}</p>"


@contextmanager
def _section(gradio: Any, title: str) -> Iterator[None]:
    with gradio.Group():
        gradio.Markdown(f"### {title}", padding=True)
        yield


def _table(gradio: Any, headers: list[str], name: str) -> Any:
    return gradio.Dataframe(
        headers=headers, datatype="str", interactive=False, max_height=320, show_label=False, elem_id=name
    )


def _image(png: bytes) -> Any:
    if not png:
        return None
    from PIL import Image

    return Image.open(io.BytesIO(png))
