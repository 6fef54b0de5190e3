"""The page on a port of this machine, and nothing beyond (ours).

It talks to nobody but its own server: no analytics, no share link, no history of runs, no font or script from
elsewhere, and a header forbids the browser to ask any other host. A page of this machine answers only to this
machine's names, so that a page of another site cannot reach it by a name of its own (DNS rebinding). What is
uploaded lies in a folder that is removed in the end.
"""

import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from spear_lib.demo.page import STYLE, import_gradio

logger = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "localhost")
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self' data: blob:; form-action 'self'; base-uri 'self'"
)


class _Policy:
    """Puts the policy on every answer."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: dict) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", _POLICY.encode())
                message = {**message, "headers": [*message["headers"], policy]}
            await send(message)

        await self.app(scope, receive, send_with_policy)


def free_port(host: str, port: int) -> int:
    """``port`` where it is free, any free one for 0.

    Raises:
      RuntimeError: it is taken, or ``host`` is no address of this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return probe.getsockname()[1]
    except OSError as error:
        raise RuntimeError(
            f"the page cannot be served at {host}:{port} ({error.strerror}): give another port (0: any free "
            "one), or host 127.0.0.1"
        ) from error


def serve(build: Callable[[], Any], host: str, port: int, max_bytes: int) -> None:
    """Serve a page until Ctrl-C or SIGTERM.

    Args:
      build: makes it.
      host: address to bind to.
      port: 0: any free one.
      max_bytes: of an upload.

    Raises:
      RuntimeError: gradio is missing, or the port is taken.
    """
    port = free_port(host, port)
    with tempfile.TemporaryDirectory(prefix="spear-demo-") as uploads:
        gradio = import_gradio(uploads)
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware

        local = host in LOOPBACK
        names = [*LOOPBACK] if local else ["*"]
        if not local:
            logger.warning("the page is open to all who reach port %d of %s: it has no password", port, host)
        # gradio asks its own server whether it is there; a proxy would not know.
        os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join(
            filter(None, [os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), *LOOPBACK])
        )
        logging.getLogger("httpx").setLevel(logging.WARNING)
        page = build()
        font = ["system-ui", "sans-serif"]
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            run_history=False,
            footer_links=[],
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            max_file_size=max_bytes,
            theme=gradio.themes.Default(font=font, font_mono=["ui-monospace", "monospace"]),
            css=STYLE,
            app_kwargs={
                "middleware": [Middleware(_Policy), Middleware(TrustedHostMiddleware, allowed_hosts=names)]
            },
        )
        logger.info("the page is at http://%s:%d (Ctrl-C ends it)", host, port)
        try:
            _wait()
        finally:
            page.close(verbose=False)
    logger.info("the page is closed, its uploads are removed")


def _wait() -> None:
    """Until Ctrl-C or SIGTERM, which are how a page ends."""
    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    ended.wait()
