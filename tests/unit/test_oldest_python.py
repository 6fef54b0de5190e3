"""The library, the recipes and the tools run on the oldest Python of setup.py, whichever tests them."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
OLDEST = (3, 10)
NEWER = {
    *("hashlib.file_digest", "datetime.UTC", "enum.StrEnum", "enum.verify", "contextlib.chdir", "math.cbrt"),
    *("math.exp2", "operator.call", "asyncio.TaskGroup", "asyncio.timeout", "typing.Self", "typing.Never"),
    *(
        "typing.LiteralString",
        "typing.Unpack",
        "typing.assert_never",
        "typing.assert_type",
        "typing.NotRequired",
    ),
    *("typing.Required", "typing.TypeVarTuple", "typing.dataclass_transform", "typing.reveal_type"),
    *("typing.override", "itertools.batched", "math.sumprod", "sys.monitoring", "os.process_cpu_count"),
    *(
        "warnings.deprecated",
        "copy.replace",
        "tomllib",
        "builtins.ExceptionGroup",
        "builtins.BaseExceptionGroup",
    ),
}
"""Members of the standard library that came after 3.10 (its documents: "New in version 3.11", 3.12, 3.13)."""


def newer_members(text: str) -> list[str]:
    """Those of ``NEWER`` that a file uses; SyntaxError where the oldest Python cannot parse it."""
    tree = ast.parse(text, feature_version=OLDEST)
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.add(f"{node.value.id}.{node.attr}")
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Name):
            found.add(f"builtins.{node.id}")
    return sorted(found & NEWER)


@pytest.mark.parametrize("folder", ["spear_lib", "egs", "tools"])
def test_nothing_is_newer_than_the_oldest_python(folder):
    wrong = {path: newer_members(path.read_text("utf-8")) for path in (REPOSITORY / folder).rglob("*.py")}
    assert not {str(path): members for path, members in wrong.items() if members}


@pytest.mark.parametrize(
    "text, members",
    [
        ("import hashlib\nhashlib.file_digest(f, 'sha256')", ["hashlib.file_digest"]),
        ("from datetime import UTC, date", ["datetime.UTC"]),
        ("import tomllib", ["tomllib"]),
        ("raise ExceptionGroup('a', [])", ["builtins.ExceptionGroup"]),
        ("import hashlib\nhashlib.sha256()", []),
    ],
)
def test_what_is_newer_is_found(text, members):
    assert newer_members(text) == members


def test_syntax_that_is_newer_is_found():
    with pytest.raises(SyntaxError):
        newer_members("try:\n    pass\nexcept* ValueError:\n    pass\n")
