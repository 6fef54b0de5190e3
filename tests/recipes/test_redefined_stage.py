"""local/stages.sh: a recipe defines a stage of egs/common again; and json_value.py, which stages.sh calls."""

import importlib.util
import json
import shutil

import pytest
from toy_recipe import REPOSITORY, ToyRecipe

STAGES = """
stage_0() {
  mkdir -p "$data_dir/corpus"
  printf '%s\\n' "$my_words" >"$data_dir/corpus/words.txt"
}
"""


@pytest.fixture
def recipe(tmp_path) -> ToyRecipe:
    """A copy of egs/librispeech with a stage 0 of its own, which reads a fact of its own."""
    recipe = ToyRecipe(tmp_path)
    shutil.rmtree(recipe.recipe)
    shutil.copytree(
        REPOSITORY / "egs" / "librispeech", recipe.recipe, ignore=shutil.ignore_patterns("data", "exp")
    )
    (recipe.recipe / "local" / "stages.sh").write_text(STAGES, encoding="utf-8")
    add_facts(recipe, 'my_words="one two"\nstage_facts=([0]="my_words")\n')
    return recipe


def add_facts(recipe: ToyRecipe, text: str) -> None:
    with (recipe.recipe / "local" / "corpus.sh").open("a", encoding="utf-8") as file:
        file.write(text)


def test_a_recipe_defines_a_stage_again(recipe):
    recipe.succeed("--stop-stage", "0")
    assert (recipe.recipe / "data" / "corpus" / "words.txt").read_text() == "one two\n"
    assert "stage 0: corpus: done" in recipe.succeed("--stop-stage", "0")
    # The facts of stage_facts count as the options of the stage do.
    add_facts(recipe, 'my_words="three"\n')
    assert "my_words of local/corpus.sh: was one two, now three" in recipe.refuse("--stop-stage", "0")


def test_a_folder_is_relative_to_where_the_command_was_typed(recipe, tmp_path):
    recipe.succeed("--stop-stage", "0", "--data-dir", "here", cwd=tmp_path)
    assert (tmp_path / "here" / "corpus" / "words.txt").is_file()


def test_json_value(tmp_path, capsys):
    path = REPOSITORY / "egs" / "common" / "json_value.py"
    spec = importlib.util.spec_from_file_location("json_value", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    file = tmp_path / "store.json"
    file.write_text(json.dumps({"field": "spectral_cb4", "frames": 3}))
    assert module.main([str(file), "field"]) == 0 and capsys.readouterr().out == "spectral_cb4\n"
    assert module.main([str(file), "none"]) == 1
    assert "does not say its none; it has field, frames" in capsys.readouterr().err
    assert module.main([str(tmp_path / "gone.json"), "field"]) == 1
    assert "gone.json is not there: run the stage that makes it" in capsys.readouterr().err
