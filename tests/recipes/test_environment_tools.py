"""What quickstart.sh and check.sh say when something is missing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from toy_recipe import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "tools"))
import check_environment


@pytest.mark.parametrize("version", [(3, 9), (3, 10), (3, 14), (2, 7)])
def test_an_unsupported_python_is_refused(version):
    message = check_environment.python_problem(version)
    assert f"Python {version[0]}.{version[1]} is not supported: install Python 3.11, 3.12 or 3.13" in message


def test_supported_pythons():
    for minor in (11, 12, 13):
        assert check_environment.python_problem((3, minor)) is None


def test_too_little_disk():
    message = check_environment.disk_problem(int(1.25e9), Path("/somewhere"))
    assert message.startswith("/somewhere has 1.2 GB free and 4 GB are needed")
    assert check_environment.disk_problem(int(4.1e9), Path("/somewhere")) is None


def test_packages_are_compared_with_their_pins():
    import numpy

    good = f"numpy=={numpy.__version__}  # comment\n# other==1\n"
    assert check_environment.package_problems(good) == []
    found = check_environment.package_problems("numpy==0.1\nno-such-package-here[extra]==1.0\n")
    assert found[0].startswith(f"numpy is {numpy.__version__}, tested is 0.1")
    assert found[1].startswith("no-such-package-here is not installed")


@pytest.fixture
def clone(tmp_path):
    """The tools alone, as in a clean clone."""
    shutil.copytree(REPOSITORY / "tools", tmp_path / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("requirements.txt", "setup.py"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    return tmp_path


def fake(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/bash\n" + text)
    path.chmod(0o755)
    return str(path)


def call(clone: Path, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    # The clone makes its own environment, whatever the tests themselves run in.
    outside = {name: value for name, value in os.environ.items() if name != "SPEAR_VENV"}
    result = subprocess.run(
        [str(clone / "tools" / script), *arguments],
        env={**outside, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode != 0
    return result


@pytest.mark.parametrize("script", ["quickstart.sh", "check.sh", "check_full.sh"])
def test_wrong_python_is_one_line(clone, script):
    result = call(clone, script, PYTHON=fake(clone / "python3.9", "exit 1\n"))
    assert result.stderr.startswith("error: no Python 3.11, 3.12 or 3.13 found at PYTHON=")
    assert len(result.stderr.splitlines()) == 1
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("ERROR: Could not find a version; No matching distribution found for torch", "could not be fetched"),
        ("Failed to establish a new connection: Name or service not known", "could not be fetched"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("error: subprocess-exited-with-error", "the reason is at the end of"),
    ],
)
def test_failed_installation_says_why(clone, log, expected):
    # An environment whose pip fails as it does without a network or a disk.
    pip = f'if [[ "$*" == *pip* ]]; then printf "%s\\n" "{log}"; exit 1; fi\nexit 0\n'
    fake(clone / ".venv" / "bin" / "python", pip)
    result = call(clone, "quickstart.sh")
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ") and expected in last
    assert not (clone / ".venv" / ".requirements.stamp").exists()


@pytest.mark.parametrize("script", ["quickstart.sh", "check.sh", "check_full.sh"])
def test_arguments_are_refused(clone, script):
    assert "unexpected argument '--fast'" in call(clone, script, "--fast").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--corpus",), "--corpus needs a value: --corpus DIR, the folder of CMU AN4"),
        (("--corpus=",), "--corpus needs a value"),
        (("--corpus", "/nowhere/an4"), "--corpus /nowhere/an4 is not a folder: give that of CMU AN4"),
        (("--corpus", "/", "--fast"), "unexpected argument '--fast'"),
    ],
)
def test_a_corpus_that_is_none_is_refused_before_anything_is_installed(clone, arguments, message):
    result = call(clone, "quickstart.sh", *arguments)
    assert result.returncode == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize("corpus", [False, True])
def test_the_quickstart_runs_the_recipe_of_its_corpus(clone, corpus):
    """With recipes that only say how they are called, and an environment that is there already."""
    wanted = "".join((clone / name).read_text() for name in ("requirements.txt", "setup.py"))
    stamp = subprocess.run(["cksum"], input=wanted, capture_output=True, text=True, check=True).stdout
    fake(clone / ".venv" / "bin" / "python", "exit 0\n")
    (clone / ".venv" / ".requirements.stamp").write_text(stamp)
    for recipe in ("librispeech", "an4"):
        for script in ("prepare.sh", "run.sh"):
            fake(clone / "egs" / recipe / script, f'echo "{recipe}/{script} $*"\n')
    folder = clone / "my corpora"
    folder.mkdir()
    done = subprocess.run(
        [str(clone / "tools" / "quickstart.sh"), *(["--corpus", "my corpora"] if corpus else [])],
        cwd=clone,
        env={key: value for key, value in os.environ.items() if key != "SPEAR_VENV"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    expected = ["librispeech/prepare.sh --mini true", "librispeech/run.sh --mini true"]
    if corpus:
        expected = [
            f"an4/prepare.sh --conf mini --corpus-dir {folder}",
            "an4/run.sh --conf mini --compare-scratch true --decode-lm true",
        ]
    assert done.stdout.splitlines() == expected
