"""The stage contract: skipped, refused, repeated or continued, by what made the stage (DESIGN section 3)."""

import importlib.util
import json
import os
import signal
import subprocess
import time

import pytest
from toy_recipe import REPOSITORY, ToyRecipe


@pytest.fixture
def toy(tmp_path):
    return ToyRecipe(tmp_path)


def test_a_marker_says_what_made_the_stage_and_what_it_cost(toy):
    toy.succeed("--word", "bye")
    marker = json.loads((toy.done / "stage-0.json").read_text())
    assert marker["stage"] == 0
    assert marker["options"] == {"word": "bye"}
    assert marker["identities"] == {"words": "words-of-bye"}
    assert marker["peak_memory_mb"] == 40.0
    assert 0 <= marker["wall_seconds"] < 60
    assert marker["command"].endswith("prepare.sh --word bye")
    assert {"commit", "finished"} <= marker.keys()
    second = json.loads((toy.done / "stage-1.json").read_text())
    assert second["inputs"] == {"0": marker["id"]}
    assert second["configs"] == {"conf/plain.yaml": {"grammar.tense": "past", "voice": "active"}}
    assert sorted(path.name for path in toy.done.glob("*.json*")) == [f"stage-{n}.json" for n in range(3)]


def test_a_stage_sees_the_variables_of_its_recipe(toy):
    toy.succeed()
    assert (toy.recipe / "data" / "variables.txt").read_text().split() == ["mine"] * 6


def test_the_same_command_skips_with_one_line_each(toy):
    toy.succeed()
    output = toy.succeed()
    assert [line.endswith("skipped") for line in output.splitlines() if line.startswith("stage")] == [
        True
    ] * 3
    assert (toy.recipe / "data" / "runs.txt").read_text() == "ran\n"


def test_only_the_options_of_a_stage_count(toy):
    toy.succeed()
    toy.succeed("--size", "large", "--stop-stage", "1")
    assert "letters of local/corpus.sh: was a b, now a b c" in toy.refuse("--size", "large")
    error = toy.refuse("--count", "3")
    assert "stage 1 (sentence) was made with other options:\n  --count: was 2, now 3\n" in error


def test_other_options_stop_and_the_advice_works(toy):
    toy.succeed()
    error = toy.refuse("--word", "bye")
    assert "--word: was hello, now bye" in error
    advice = next(line for line in error.splitlines() if "rm -rf" in line)
    assert "data/words.txt" in advice and "stage-0.json" in advice
    subprocess.run(advice.split(": ", 1)[1], shell=True, check=True, cwd=toy.recipe)
    error = toy.refuse("--word", "bye")
    assert "stage 1 (sentence) is out of date: stage 0 was made again with other options" in error
    # Stage 2 alone must not run on the stale stage 1 either.
    (toy.done / "stage-2.json").unlink()
    assert "stage 1 (sentence) is out of date" in toy.refuse("--word", "bye", "--stage", "2")


def test_a_stage_made_again_with_the_same_options_leaves_the_rest_valid(toy):
    toy.succeed()
    (toy.done / "stage-0.json").unlink()
    assert "stage 1: sentence: done" in toy.succeed()


def test_changed_configuration_is_named_by_key(toy):
    toy.succeed()
    toy.write_conf("plain", "grammar:\n  tense: future\nvoice: active\n")
    assert "conf/plain.yaml: grammar.tense was past, now future" in toy.refuse()
    toy.write_conf("other", "grammar:\n  tense: past\nvoice: passive\n")
    error = toy.refuse("--conf", "conf/other.yaml")
    assert "conf/plain.yaml -> conf/other.yaml: voice was active, now passive" in error
    assert "no configuration conf/none.yaml; there are: other, plain" in toy.refuse(
        "--conf", "conf/none.yaml"
    )


def test_a_copy_of_the_configuration_under_another_name_is_the_same(toy):
    toy.succeed()
    toy.write_conf("copy", "voice: active\ngrammar:\n  tense: past\n")
    assert "stage 1: sentence: done" in toy.succeed("--conf", "conf/copy.yaml")


def test_a_configuration_that_extends_another_counts_with_all_its_values(toy):
    toy.succeed()
    identity = json.loads((toy.done / "stage-1.json").read_text())["id"]
    # The same values in two files: older markers stay valid, and the id stays.
    toy.write_conf("low", "grammar:\n  tense: past\nvoice: passive\n")
    toy.write_conf("plain", "extends: low.yaml\nvoice: active\n")
    assert "stage 1: sentence: done" in toy.succeed()
    (toy.done / "stage-1.json").unlink()
    assert "stage 1: sentence, conf/plain.yaml" in toy.succeed()
    marker = json.loads((toy.done / "stage-1.json").read_text())
    assert marker["id"] == identity
    assert marker["configs"] == {"conf/plain.yaml": {"grammar.tense": "past", "voice": "active"}}
    toy.write_conf("low", "grammar:\n  tense: future\nvoice: passive\n")
    assert "conf/plain.yaml: grammar.tense was past, now future" in toy.refuse()
    toy.write_conf("plain", "extends: gone.yaml\n")
    assert "error: configuration file conf/gone.yaml does not exist." in toy.refuse()


def test_a_failing_command_ends_the_stage_there(toy):
    result = toy.run("--trouble", "fail")
    assert result.returncode == 1
    assert "stage 0 (words) failed with status 1" in result.stderr
    assert not (toy.recipe / "data" / "after-failure").exists()
    assert not (toy.done / "stage-0.json").exists()
    # Nothing was left behind, so another option may be tried at once.
    toy.succeed("--word", "bye")


def test_run_stage_in_a_condition_is_refused(toy):
    assert "called inside if, && or ||" in toy.refuse("--trouble", "conditional")


def test_killed_leaves_no_marker_and_runs_again(toy):
    result = toy.run("--trouble", "die")
    assert result.returncode == -signal.SIGKILL
    assert not (toy.done / "stage-1.json").exists()
    # What it left was begun with these options and must not be continued with others.
    error = toy.refuse("--count", "5")
    assert "stage 1 (sentence) was begun with other options:\n  --count: was 2, now 5\n" in error
    toy.succeed()
    assert (toy.recipe / "data" / "sentence.txt").read_text() == "hello\n"
    assert not list(toy.done.glob("*.started.json"))


def test_preemption_passes_the_status_on(toy):
    result = toy.run("--trouble", "preempted")
    assert result.returncode == 75
    assert "saved its state; the same command goes on from there" in result.stderr
    assert not (toy.done / "stage-1.json").exists()


def test_a_missing_input_stage_is_named(toy):
    error = toy.refuse("--stage", "1")
    assert "stage 1 (sentence) reads what stage 0 makes" in error
    assert "./prepare.sh --stage 0 --stop-stage 0" in error


def test_an_empty_result_is_no_result(toy):
    result = toy.run("--trouble", "empty")
    assert result.returncode == 1
    assert "ended without an error but left no data/sentence.txt" in result.stderr
    assert not (toy.done / "stage-1.json").exists()


def test_a_vanished_result_is_noticed(toy):
    toy.succeed()
    (toy.recipe / "data" / "sentence.txt").unlink()
    assert "marked as done, but data/sentence.txt is gone" in toy.refuse()


def test_a_damaged_marker_is_noticed(toy):
    toy.succeed()
    (toy.done / "stage-1.json").write_text("{")
    assert "stage-1.json is not valid JSON" in toy.refuse()


def test_parts_leave_no_marker_until_the_stage_is_closed(toy):
    output = toy.succeed("--stop-stage", "1", "--part", "1/2")
    assert "part 1/2 is done" in output and not (toy.done / "stage-1.json").exists()
    toy.succeed("--stop-stage", "1")
    assert (toy.done / "stage-1.json").exists()


def test_two_runs_of_one_stage_exclude_each_other(toy):
    common = toy.recipe.parent / "common" / "stages.sh"
    common.write_text(common.read_text().replace("flock -w 20", "flock -w 0"))
    first = subprocess.Popen(
        [str(toy.script), "--trouble", "wait"], cwd=toy.recipe, env=toy.environment(), start_new_session=True
    )
    try:
        deadline = time.monotonic() + 20
        while not (toy.recipe / "data" / "waiting").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert "stage 1 is already running" in toy.refuse()
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    # The lock went with its holder.
    toy.succeed()


def test_a_file_system_without_locks_is_told_from_another_run(toy, tmp_path):
    # What flock says on Lustre without -o flock: EX_UNAVAILABLE, not the status of a lock that is held.
    fake = tmp_path / "bin" / "flock"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\nexit 69\n")
    fake.chmod(0o755)
    error = toy.refuse(PATH=f"{fake.parent}:{os.environ['PATH']}")
    assert "its file system has no locks" in error and "already running" not in error


@pytest.mark.parametrize("words", [["a b", "a,b: [c] #d"], ['quo"te', "back\\slash\\"], []])
def test_lists_for_options_are_quoted(words):
    stages = REPOSITORY / "egs" / "common" / "stages.sh"
    call = ["bash", "-c", 'source "$1"; shift; list_of "$@"', "bash", str(stages), *words]
    output = subprocess.run(call, capture_output=True, text=True, check=True).stdout
    assert json.loads(output) == words


@pytest.mark.parametrize("data_dir", ["with space", "quo'te", "a,b: [c] #d", 'quo"te'])
def test_folders_with_odd_names(toy, data_dir):
    toy.succeed("--data-dir", data_dir)
    error = toy.refuse("--data-dir", data_dir, "--word", "bye")
    advice = next(line for line in error.splitlines() if "rm -rf" in line)
    subprocess.run(advice.split(": ", 1)[1], shell=True, check=True, cwd=toy.recipe)
    assert not (toy.recipe / data_dir / "words.txt").exists()


def test_no_python_says_what_to_run(toy):
    assert "no Python at '/nowhere/python': run tools/quickstart.sh" in toy.refuse(PYTHON="/nowhere/python")


def test_an_option_that_was_not_there_yet_and_is_empty_is_no_difference():
    spec = importlib.util.spec_from_file_location("marker", REPOSITORY / "egs" / "common" / "marker.py")
    marker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(marker)
    old, new = ({"options": options, "configs": {}} for options in ({"word": "a"}, {"word": "a", "more": ""}))
    assert marker.differences(old, new, []) == [] == marker.differences(new, old, [])
    new["options"]["more"] = "b"
    assert marker.differences(old, new, ["more"]) == ["  more of local/corpus.sh: was not set, now b"]
