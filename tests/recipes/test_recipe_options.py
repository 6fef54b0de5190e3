"""The option parser of the recipe scripts: what it accepts, and that refusals say what to type."""

import re
import subprocess

import pytest
from toy_recipe import REPOSITORY, ToyRecipe


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return ToyRecipe(tmp_path_factory.mktemp("options"))


@pytest.mark.parametrize("script", ["prepare.sh", "run.sh"])
def test_help_of_the_recipes_lists_every_declared_option_with_its_default(script):
    path = REPOSITORY / "egs" / "librispeech" / script
    text = (REPOSITORY / "egs" / "common" / script).read_text(encoding="utf-8")
    declared = re.findall(r"^option (\w+) (\"[^\"]*\"|\S+) ", text, re.MULTILINE)
    assert len(declared) > 8
    result = subprocess.run([str(path), "--help"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "Examples:\n  ./" in result.stdout and "shellcheck" not in result.stdout
    for name, default in declared:
        # A default that is a fact of the corpus is a variable in the script.
        shown = r"\w+" if default.startswith('"$') else re.escape(default)
        assert re.search(rf"^  --{name.replace('_', '-')} +{shown} ", result.stdout, re.MULTILINE), name


@pytest.mark.parametrize("arguments", [["--word", "bye", "--count", "-3"], ["--word=bye", "--count=-3"]])
def test_both_spellings(toy, arguments):
    output = toy.succeed("--data-dir", "data-" + str(len(arguments)), *arguments, "--stop_stage=0")
    assert "all-done" in output
    assert (toy.recipe / f"data-{len(arguments)}" / "words.txt").read_text() == "bye\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["hello"], "positional argument 'hello'"),
        (["--wrod", "x"], "unknown option --wrod; did you mean --word?"),
        (["--stop-stag=1"], "did you mean --stop-stage?"),
        (["--word"], "--word needs a value"),
        (["--word", "--count", "3"], "--word needs a value"),
        (["--count", "many"], "--count takes a whole number, got 'many'"),
        (["--polite", "yes"], "--polite takes true or false, got 'yes'"),
        (["--size", "huge"], "--size takes one of small, large, got 'huge'"),
        (["--size", ""], "--size takes one of small, large, got ''"),
        (["--word", "a", "--word=b"], "--word is given twice (a, then b)"),
        (["--stage", "9"], "there is no stage 9 here"),
        (["--stage", "2", "--stop-stage", "1"], "--stage 2 is after --stop-stage 1"),
        (["--a;b", "x"], "unknown option --a;b"),
    ],
)
def test_refusals(toy, arguments, expected):
    assert expected in toy.refuse(*arguments, "--data-dir", "refused")
    assert not (toy.recipe / "refused").exists()


@pytest.mark.parametrize("script", ["prepare.sh", "run.sh"])
def test_stage_9_names_the_valid_stages(script):
    path = REPOSITORY / "egs" / "librispeech" / script
    result = subprocess.run([str(path), "--stage", "9"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert "no stage 9" in result.stderr and "prepare.sh 0 to 7, run.sh 10 to 15" in result.stderr


def test_the_environment_sets_no_option(toy):
    toy.succeed("--data-dir", "environment", "--stop-stage", "0", word="from-the-environment")
    assert (toy.recipe / "environment" / "words.txt").read_text() == "hello\n"


def test_relative_paths_are_those_of_the_caller(toy, tmp_path):
    toy.succeed("--data-dir", "here", "--stop-stage", "0", cwd=tmp_path)
    assert (tmp_path / "here" / "words.txt").exists()


def test_a_name_on_the_hub_is_no_relative_path(toy, tmp_path):
    toy.succeed("--data-dir", "hub:owner/name", "--stop-stage", "0", cwd=tmp_path)
    assert (toy.recipe / "hub:owner" / "name" / "words.txt").exists()
