"""A local page to try a model: record or drop a file; its waveform, words, sounds and layers."""

from spear_lib.bin.common import one_line, run
from spear_lib.config import parse
from spear_lib.demo.listening import Listener
from spear_lib.demo.models import DemoOptions, open_models
from spear_lib.demo.page import build_page, import_gradio
from spear_lib.demo.serving import serve
from spear_lib.runtime.log import first_screen
from spear_lib.runtime.world import choose_device


def main(argv: list[str] | None = None) -> None:
    options = parse(DemoOptions, argv, prog="python -m spear_lib.bin.demo", description=__doc__)
    import_gradio()  # what is missing is said before minutes of loading
    models, facts = open_models(options, choose_device(options.device))
    parts = (options.limits, options.windows, options.tag_windows, options.events, options.top)
    listener = Listener(models, *parts)
    limits = f"{options.limits.seconds:g} s, {options.limits.megabytes:g} MB"
    first_screen("A page to try a model", {**facts, "limits": limits})
    title = "Try a model"
    serve(
        lambda: build_page(listener, title, facts, one_line),
        options.host,
        options.port,
        options.limits.bytes,
    )


if __name__ == "__main__":
    run(main)
