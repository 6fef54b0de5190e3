"""What is called "paper" stands in the paper: configurations, docstrings, comments and docs/paper.md.

docs/paper_values.csv is the witness: a line per value with the table or section (``where``), row, column, the
value as printed and, where it sets an option of ours, that option with its value.
"""

import csv
import re
from pathlib import Path

import pytest
import yaml
from toy_recipe import REPOSITORY

from spear_lib.runtime.overlays import flatten, read_overlays, read_yaml

EGS, DOCS = REPOSITORY / "egs", REPOSITORY / "docs"
VALUES = list(csv.DictReader((DOCS / "paper_values.csv").open(encoding="utf-8")))
CLAIMS = yaml.safe_load((DOCS / "paper_configurations.yaml").read_text(encoding="utf-8"))
KINDS = ("pretrain", "finetune", "quantizer", "decode", "probe", "evaluation")
CONFIGURATIONS = sorted(EGS.glob("*/conf/**/*.yaml"))
PUBLISHED = [
    path
    for path in CONFIGURATIONS
    if re.match(r"(base|large|xlarge)", path.stem) and "shared" not in path.parts
]

# Places that exist in the paper: sections, appendices, equations, tables and figures.
SECTIONS = {"1", "2", "3", "3.1", "3.2", "3.2.1", "3.2.2", "3.2.3", "4", "5", "5.1", "5.2", "5.3", "5.4", "6"}
APPENDICES = {"A", "A.1", "A.2", "B", "B.1", "B.2", "B.3", "C", "D", "E", "F", "F.1", "F.1.1", "F.1.2"}
APPENDICES |= {"F.2", "F.3", "F.4", "F.4.1", "F.4.2", "F.5", "F.6", "G"}
PLACE = r"(?:Table \d+|Tables \d+|Figure \d+|Eq\. \d+|§\d[\d.]*\d|§\d|(?:appendix )?[A-G](?:\.\d)*)"


def exists(place: str) -> bool:
    place = place.removeprefix("appendix ")
    kind, _, number = place.partition(" ")
    if kind in ("Table", "Tables"):
        return 1 <= int(number) <= 26
    if kind in ("Figure", "Eq."):
        return 1 <= int(number) <= {"Figure": 4, "Eq.": 11}[kind]
    return place.removeprefix("§") in (SECTIONS if place.startswith("§") else APPENDICES)


def kind_of(path: Path) -> str:
    """Of a configuration: its folder, or for a shared one what its name starts with."""
    for part in (*path.relative_to(EGS).parts, path.stem):
        for kind in KINDS:
            if part == kind or part.startswith(f"{kind}_"):
                return kind
    shared = {"base_encoder": "pretrain", "large_encoder": "pretrain", "token_mixing": "pretrain"}
    return (shared | {"large_transducer": "finetune"}).get(path.stem, "other")


def lines_of(path: Path) -> list[tuple[str, str, object]]:
    """(option, comment, value) of each line of a configuration that sets a value."""
    values, found, groups = flatten(read_yaml(path)), [], []
    for line in path.read_text(encoding="utf-8").splitlines():
        match = re.match(r"( *)([\w]+):(.*)$", line)
        if not match:
            continue
        depth = len(match[1]) // 2
        groups = [*groups[:depth], match[2]]
        option = ".".join(groups)
        if option in values and option != "extends":
            found.append((option, line.partition("#")[2].strip(), values[option]))
    return found


def settings(kind: str, option: str) -> list[dict]:
    return [each for each in VALUES if each["option"] == f"{kind}:{option}"]


def wrong_attributions(path: Path) -> list[str]:
    found = []
    for option, comment, value in lines_of(path):
        match = re.match(rf"paper ({PLACE})(?!\w)", comment)
        if comment.startswith("paper") and not match:
            found.append(f"{option}: '# {comment}' names no table or section")
        if match:
            there = [each for each in settings(kind_of(path), option) if each["where"] == match[1]]
            if value not in [yaml.safe_load(each["setting"]) for each in there]:
                stated = ", ".join(f"{each['row']}: {each['setting']}" for each in there) or "nothing"
                found.append(f"{option}: {value} is not in {match[1]}, which states {stated}")
    return found


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: str(path.relative_to(EGS)))
def test_what_a_configuration_calls_paper_stands_there(path):
    assert wrong_attributions(path) == []


def test_a_wrong_attribution_is_found(tmp_path, monkeypatch):
    folder = tmp_path / "conf" / "pretrain"
    folder.mkdir(parents=True)
    monkeypatch.setattr("test_paper_values.EGS", tmp_path)
    path = folder / "base.yaml"
    path.write_text(
        "training:\n  max_steps: 400000 # paper Table 9\n  learning_rate: 0.045 # paper Table 8\n"
        "data:\n  batch_seconds: 6401 # paper Table 9\n  max_duration: 30 # paper\n"
    )
    assert [line.split(":")[0] for line in wrong_attributions(path)] == [
        "training.learning_rate",
        "data.batch_seconds",
        "data.max_duration",
    ]


def undeclared(path: Path, claim: dict, values: dict) -> list[str]:
    """Options whose value is not what the claimed rows state, nor declared; and idle declarations."""
    stated: dict[str, object] = {}
    kind = kind_of(path)
    for row in ["all", *claim["rows"]]:
        for each in VALUES:
            if each["row"] == row and each["option"].startswith(f"{kind}:"):
                stated[each["option"].partition(":")[2]] = yaml.safe_load(each["setting"])
    differing = {option for option, value in stated.items() if values.get(option) != value}
    declared = set(claim.get("differences", {}))
    return sorted(differing ^ declared)


@pytest.mark.parametrize("name", CLAIMS)
def test_every_value_that_the_paper_states_is_used_or_the_difference_is_declared(name):
    path, claim = EGS / name, CLAIMS[name]
    rows = {each["row"] for each in VALUES if each["option"].startswith(f"{kind_of(path)}:")}
    assert set(claim["rows"]) & rows, "no row of the claim states an option"
    assert undeclared(path, claim, flatten(read_overlays(path))) == []
    assert all(str(reason).strip() for reason in claim.get("differences", {}).values())


def test_a_difference_that_is_not_declared_is_found():
    path = EGS / "librispeech" / "conf" / "pretrain" / "base.yaml"
    claim, values = CLAIMS["librispeech/conf/pretrain/base.yaml"], flatten(read_overlays(path))
    assert undeclared(path, claim, values | {"data.batch_seconds": 6400}) == ["data.batch_seconds"]
    assert undeclared(path, {**claim, "differences": {"objective.alpha": "no"}}, values) == [
        "objective.alpha"
    ]


def test_every_published_configuration_makes_a_claim():
    kinds = {"pretrain", "finetune", "quantizer"}
    needed = {str(path.relative_to(EGS)) for path in PUBLISHED if kind_of(path) in kinds}
    assert needed - set(CLAIMS) == set()
    assert {name for name in CLAIMS if not (EGS / name).is_file()} == set()


# ---- docstrings and comments

SOURCES = [
    path
    for folder in ("spear_lib", "egs", "tools")
    for path in sorted((REPOSITORY / folder).rglob("*"))
    if path.suffix in (".py", ".sh") and path.is_file()
]
# "(paper", "paper:" and "# paper" mark a source; other sentences speak about the paper.
MARK = re.compile(r"(?:\(paper|paper:|# paper|[;,] paper (?=Table|§|[A-G]\b))[^)\n]*")


def bad_marks(text: str) -> list[str]:
    found = []
    for match in MARK.finditer(text):
        mark = match[0].lstrip("(#;, ")
        places = re.match(rf"paper ({PLACE})(?!\w)", mark)
        if not places or not exists(places[1]):
            found.append(mark)
            continue
        numbers = re.match(rf"paper {PLACE}: ([^;,]*)", mark)
        if numbers and not stands_in(places[1].removeprefix("appendix "), numbers[1]):
            found.append(mark)
    return found


def stands_in(where: str, text: str) -> bool:
    """Every number of ``text`` stands in a value of that place."""
    there = " ".join(f"{each['value']} {each['setting']}" for each in VALUES if each["where"] == where)
    printed = {plain(number) for number in re.findall(r"\d[\d,.]*k?", there)}
    return all(plain(number) in printed for number in re.findall(r"\d[\d,.]*k?", text))


def plain(number: str) -> float:
    number = (
        number.rstrip(".,").replace(",", "")
        if not re.match(r"\d(,\d)+$", number)
        else number.replace(",", "")
    )
    return float(number[:-1]) * 1000 if number.endswith("k") else float(number)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_what_the_sources_call_paper_names_a_place_and_its_value(path):
    assert bad_marks(path.read_text(encoding="utf-8")) == []


def test_a_wrong_mark_is_found():
    assert bad_marks("batch (paper: 1024)") and bad_marks("x (paper Table 27)") and bad_marks("(paper §4.1)")
    assert bad_marks("steps (paper Table 9: 401k)") and bad_marks("codes (paper A.1: 255)")
    assert not bad_marks("steps (paper Table 9: 400k), codes (paper A.1: 256; one byte), a paper about it")


# ---- the reproduction map

MAP = DOCS / "paper.md"


def rows_of_the_map() -> list[list[str]]:
    lines = MAP.read_text(encoding="utf-8").splitlines()
    cells = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")
    ]
    return [row for row in cells if re.match(r"(Table|Figure) \d+", row[0])]


def test_the_map_has_every_table_and_figure():
    named = {match for row in rows_of_the_map() for match in re.findall(r"(?:Table|Figure) \d+", row[0])}
    expected = {f"Table {number}" for number in range(1, 27)} | {f"Figure {number}" for number in range(2, 5)}
    assert expected - named == set()


@pytest.mark.parametrize("row", rows_of_the_map(), ids=lambda row: row[0])
def test_numbers_of_the_map_are_the_papers(row):
    """Cells: place, what, commands, the paper's numbers, ours, needs."""
    assert len(row) == 6, row
    place = re.match(r"(?:Table|Figure) \d+", row[0])[0]
    assert re.search(r"`[^`]+`|missing|^as Tables? \d+", row[2]), "no command, and not 'missing'"
    if place.startswith("Table"):
        # Names as LS-100 and 4-gram, and remarks in brackets, are no values.
        numbers = re.sub(r"\([^)]*\)|[A-Za-z]+-\d+k?|\d-gram|F\.\d|Tables? \d+", "", row[3])
        assert stands_in(place, numbers), f"{row[3]!r} is not in {place}"


def test_configurations_and_files_that_the_map_names_are_there():
    text = MAP.read_text(encoding="utf-8")
    names = set(re.findall(r"--(pretrain|finetune|quantizer)-conf ([\w.-]+)", text))
    for kind, name in names:
        assert list(EGS.glob(f"*/conf/{kind}/{name}.yaml")), f"conf/{kind}/{name}.yaml"
    for path in re.findall(r"(?:egs|tools|docs|spear_lib)/[\w./-]+\.\w+", text):
        assert (REPOSITORY / path).exists(), path
