"""tools/clients.sh: what it says where something is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(REPOSITORY / "tools" / "clients.sh"), *arguments],
        env={**os.environ, "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which client? superb, xares or hear"),
        (["marble"], "unexpected argument 'marble'"),
        (["hear", "xares"], "one client at a time: hear or xares"),
        (["hear", "--folder"], "--folder needs a folder"),
    ],
)
def test_wrong_arguments(arguments, message):
    result = run(*arguments)
    assert result.returncode == 2 and message in result.stderr


def test_help():
    result = run("--help")
    assert result.returncode == 0 and "superb|xares|hear" in result.stdout and "--borrow" in result.stdout


@pytest.mark.slow
def test_a_registry_without_the_package(tmp_path):
    """Status 3 and the name of what is missing; the next call would try again."""
    result = run("hear", "--folder", str(tmp_path / "env"), "--borrow", sys.prefix, PIP_NO_INDEX="1")
    assert result.returncode == 3
    assert "the registry did not give: --no-deps" in result.stderr and "hearvalidator==" in result.stderr
    assert not (tmp_path / "env" / "made").exists()
