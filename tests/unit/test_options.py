"""Options: YAML, overrides, and errors that name the nearest key."""

from dataclasses import dataclass, field

import pytest

from spear_lib.config import load, parse, positional, save, to_dict


@dataclass(frozen=True)
class Inner:
    width: int = 3
    """Width of the layer (ours)."""
    rates: tuple[float, ...] = (1.0, 2.0)
    """Rates in Hz (ours)."""


@dataclass(frozen=True)
class Example:
    name: str
    """Name of the run."""
    cuts: list[str] = field(default_factory=list)
    """Cut manifests."""
    inner: Inner = field(default_factory=Inner)
    """The layer."""


def test_yaml_then_overrides(tmp_path):
    path = tmp_path / "conf.yaml"
    path.write_text("name: a\ninner:\n  width: 5\n")
    options = parse(Example, ["--config", str(path), "--inner.rates", "[4, 5.5]", "--cuts=[x,y]"])
    assert options == Example(name="a", cuts=["x", "y"], inner=Inner(width=5, rates=(4.0, 5.5)))


def test_dashes_are_underscores():
    @dataclass(frozen=True)
    class Dashed:
        batch_seconds: float = 1.0
        """Seconds."""

    assert parse(Dashed, ["--batch-seconds", "7"]).batch_seconds == 7.0


def test_round_trip(tmp_path):
    options = Example(name="b", cuts=["z"], inner=Inner(width=9, rates=(0.5,)))
    save(options, tmp_path / "saved.yaml")
    assert load(Example, tmp_path / "saved.yaml") == options
    assert load(Example, to_dict(options)) == options


@pytest.mark.parametrize(
    "argv, expected",
    [
        (["--name", "a", "--iner.width", "4"], "nearest known option is 'inner.width'"),
        (["--name", "a", "--inner.width", "wide"], "inner.width"),
        ([], "required: name"),
        (["--name", "a", "--config", "missing.yaml"], "missing.yaml does not exist"),
        (["--name", "a", "stray"], "stray"),
    ],
)
def test_mistakes_end_with_one_clear_line(argv, expected, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(Example, argv, prog="example")
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and expected in error and "--help" in error


def test_typo_in_yaml_names_file_and_nearest_key(tmp_path):
    path = tmp_path / "typo.yaml"
    path.write_text("name: a\ninner:\n  widht: 5\n")
    with pytest.raises(ValueError, match=r"inner.widht.*typo.yaml.*inner.width"):
        load(Example, path)


def test_help_shows_every_option_with_its_docstring(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(Example, ["--help"], prog="example")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "Width of the layer" in text and "default: 3" in text and "Cut manifests." in text


@dataclass(frozen=True)
class Command:
    audio: list[str] = positional("Files to read.")
    """Files to read."""
    rate: float = 1.0
    """Rate in Hz (ours)."""


@pytest.mark.parametrize("argv", [["a", "b", "--rate", "2"], ["--rate=2", "a", "b"]])
def test_positional_words(argv, tmp_path):
    options = parse(Command, argv)
    assert options == Command(["a", "b"], 2.0)
    save(options, tmp_path / "saved.yaml")
    assert load(Command, tmp_path / "saved.yaml") == options


def test_positional_words_are_required_and_explained(capsys):
    with pytest.raises(SystemExit) as end:
        parse(Command, ["--rate", "2"])
    assert end.value.code == 2 and "required: audio" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse(Command, ["--help"])
    assert "Files to read." in capsys.readouterr().out
