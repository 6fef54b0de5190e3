"""``spear VERB ...``: every command of this folder, as ``python -m spear_lib.bin.VERB ...`` runs it.

The folder is the table of verbs: what is added to it is a verb, and its help is the first line of its text.
"""

import ast
import sys
from importlib import import_module
from pathlib import Path

from spear_lib import __version__
from spear_lib.bin.common import run

_NO_VERBS = ("__init__", "common", "spear")


def verbs() -> dict[str, str]:
    """Verb -> what it does, in the order of the alphabet; nothing is imported."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem not in _NO_VERBS:
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            found[path.stem] = text.split("\n")[0]
    return found


def help_text() -> str:
    """What ``spear --help`` prints."""
    table = verbs()
    width = max(map(len, table))
    lines = [f"  {verb:<{width}}  {text}" for verb, text in table.items()]
    return "\n".join(["usage: spear VERB [options]    (spear VERB --help: the options of one)", "", *lines])


def main() -> None:
    """The console entry ``spear``."""
    verb, rest = (sys.argv[1].replace("-", "_"), sys.argv[2:]) if len(sys.argv) > 1 else ("__help", [])
    if verb in ("__help", "_h", "help"):
        print(help_text())
    elif verb in ("__version", "version"):
        print(f"spear_lib {__version__}")
    elif verb in verbs():
        sys.argv = [f"spear {verb}", *rest]
        run(import_module(f"spear_lib.bin.{verb}").main)
    else:
        print(f"error: spear has no verb {sys.argv[1]!r}; it has {', '.join(verbs())}", file=sys.stderr)
        raise SystemExit(2)


if __name__ == "__main__":
    main()
