"""Options: YAML, overrides, and errors that name the nearest key."""

from dataclasses import dataclass, field

import pytest

from spear_lib.bin import pretrain
from spear_lib.config import load, parse, positional, save, to_dict
from spear_lib.training.metrics import describe_batch, describe_length
from spear_lib.training.options import TrainingConfig


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


def test_the_length_of_a_run_in_steps_and_epochs():
    def described(per_epoch: int, **given) -> str:
        return describe_length(TrainingConfig(**{"max_steps": 0, **given}), per_epoch)

    assert described(180, max_epochs=90) == "90 epochs of 180 steps: about 16,200 steps"
    assert described(180, max_epochs=90, accumulate_batches=2) == "90 epochs of 90 steps: about 8,100 steps"
    assert described(200, max_steps=300) == "300 steps, 1.5 epochs of 200"
    assert described(10, max_steps=30, max_epochs=5) == (
        "5 epochs of 10 steps: about 50 steps; or, if that is sooner, 30 steps, 3.0 epochs of 10"
    )
    assert describe_batch(4800.0, 8) == "4800 s of audio, 600 s on each of 8 processes"
    assert describe_batch(12.0, 1) == "12 s of audio"


def test_a_value_that_fits_none_of_several_types_is_one_plain_line(capsys):
    with pytest.raises(SystemExit):
        pretrain.main(["--experiment_dir", "never", "--data.max_cuts", "a"])
    assert "option data.max_cuts: a is none of these: int, null" in capsys.readouterr().err
