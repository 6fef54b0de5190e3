"""The table of tools/mutants.py fits the code: a change that cannot be made would count as nothing."""

import importlib.util
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def load_tool():
    spec = importlib.util.spec_from_file_location("mutants", REPOSITORY / "tools" / "mutants.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutants"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


MUTANTS = load_tool().read_mutants()


def test_every_change_can_be_made_in_one_place_and_has_tests():
    wrong = []
    for mutant in MUTANTS:
        count = (REPOSITORY / mutant.file).read_text(encoding="utf-8").count(mutant.old)
        if count != 1:
            wrong.append(f"{mutant.file}: {mutant.name}: {mutant.old!r} stands there {count} times")
        missing = [test for test in mutant.tests if not (REPOSITORY / test).is_file()]
        if missing or not mutant.tests or mutant.old == mutant.new:
            wrong.append(f"{mutant.file}: {mutant.name}: tests {missing or mutant.tests}")
    assert not wrong, "\n".join(wrong)


def test_names_are_unique_and_there_are_a_hundred():
    names = [(mutant.file, mutant.name) for mutant in MUTANTS]
    assert len(set(names)) == len(names) >= 100
