"""The one place where commands are run: whatever happens, a user reads one line."""

import subprocess
import sys

import pytest

from spear_lib.bin.common import run


def ends_with(capsys, error: BaseException) -> tuple[int, str]:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as stop:
        run(main)
    return stop.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    "error, words",
    [
        (ValueError("the file\n is bad"), "error: the file is bad"),
        (OSError(28, "cannot write x (no space)"), "error: cannot write x (no space)"),
        (FileNotFoundError(2, "No such file", "x.txt"), "x.txt"),
        (MemoryError(), "error: out of memory: "),
        (ValueError(), "error: ValueError"),
    ],
)
def test_what_was_foreseen_is_said_as_it_is(capsys, error, words):
    status, err = ends_with(capsys, error)
    assert status == 1 and words in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "error", [KeyError("id"), AssertionError(), TypeError("a\nb"), StopIteration(), RecursionError()]
)
def test_what_was_not_foreseen_is_one_line_with_its_place(capsys, error, monkeypatch):
    monkeypatch.delenv("SPEAR_DEBUG", raising=False)
    status, err = ends_with(capsys, error)
    assert status == 1 and err.count("\n") == 1 and "Traceback" not in err
    assert f"error: unexpected {type(error).__name__} in test_commands.py, line " in err
    assert "SPEAR_DEBUG=1" in err


def test_the_trace_is_there_for_who_asks(capsys, monkeypatch):
    monkeypatch.setenv("SPEAR_DEBUG", "1")
    assert "Traceback" in ends_with(capsys, KeyError("id"))[1]


def test_the_keyboard_stops_without_a_trace(capsys):
    assert ends_with(capsys, KeyboardInterrupt()) == (130, "error: stopped by the keyboard (Ctrl-C)\n")


def test_a_measurement_that_cannot_be_written_hides_nothing(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("SPEAR_STAGE_METRICS", str(tmp_path / "gone" / "metrics.jsonl"))
    run(lambda: None)
    assert "is not noted in" in capsys.readouterr().err
    status, err = ends_with(capsys, ValueError("the cause"))
    assert status == 1 and "error: the cause" in err


def python(code: str, **options) -> subprocess.Popen:
    code = f"from spear_lib.bin.common import run\n{code}"
    return subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, **options)


def test_names_that_the_terminal_cannot_print_do_not_end_a_command():
    import os

    code = "run(lambda: print('na\\xefve_\\u65e5', 'a\\udcff'))"
    command = python(code, env={**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"})
    out, err = command.communicate(timeout=120)
    assert command.returncode == 0, err
    assert out == b"na\xefve_\\u65e5 a\\udcff\n"


def test_a_reader_that_has_enough_ends_a_command_quietly():
    command = python("run(lambda: [print('x' * 1000) for _ in range(10000)])")
    command.stdout.read(10)
    command.stdout.close()
    err = command.stderr.read()
    command.wait(timeout=120)
    assert command.returncode == 1 and err == b""
