"""The layout of the library: imports only go down, no file imports itself in a circle, no file is long.

The floors stand in one table. A part that is added gets a line here, where its room is; a part that imports
from above, a circle or a file over the limit fails.
"""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
LONGEST_FILE = 400  # lines
LARGEST_FOLDER = 4000  # lines

# It also predicts the tokens of pretraining, where both are asked for.
COMBINING = "self_distillation"
# The folders of tasks: those that describe themselves for the report.
TASKS = sorted(path.parent.name for path in (REPOSITORY / "spear_lib").glob("*/description.py"))
TASKS.remove(COMBINING)

# Lowest first: a part imports from the floors below its own, and from itself. Parts of one floor do not know
# each other.
FLOORS = [
    ["runtime"],
    ["config"],
    ["kernels"],
    ["features"],
    ["optim", "transducer", "quantization"],
    ["encoders"],
    ["zipformer"],  # the short name of encoders.zipformer
    ["teachers"],
    ["data"],
    ["corpora"],
    ["tokens"],
    ["training"],
    ["interfaces"],
    ["evaluation"],
    TASKS,
    [COMBINING],
    ["report", "sharing"],
    ["demo"],
    ["bin"],
]


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, modules: set[str]) -> set[str]:
    """Modules of the library that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in modules else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            raise AssertionError(f"{path} line {node.lineno}: a relative import; write the whole name")
    return found & modules


def import_graph(root: Path, package: str = "spear_lib") -> dict[str, set[str]]:
    files = {module_name(path, root): path for path in sorted((root / package).rglob("*.py"))}
    return {name: imports_of(path, set(files)) - {name} for name, path in files.items()}


def upward_imports(graph: dict[str, set[str]], floors: list[list[str]]) -> list[str]:
    level = {part: number for number, parts in enumerate(floors) for part in parts}
    wrong = []
    for module, targets in graph.items():
        part = module.split(".")[1] if "." in module else ""
        if not part:
            continue  # the package's face: load_encoder, imported on first use
        if part not in level:
            wrong.append(f"{module}: the part {part!r} has no floor in {Path(__file__).name}")
            continue
        for target in sorted(targets):
            other = target.split(".")[1] if "." in target else ""
            if other == part or not other:
                continue
            if other not in level or level[other] >= level[part]:
                wrong.append(f"{module} imports {target}, which is not below it")
    return wrong


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other (strongly connected components of more than one)."""
    numbers: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        numbers[module] = lowest[module] = len(numbers)
        stack.append(module)
        for target in graph[module]:
            if target not in numbers:
                visit(target)
                lowest[module] = min(lowest[module], lowest[target])
            elif target in stack:
                lowest[module] = min(lowest[module], numbers[target])
        if lowest[module] == numbers[module]:
            group = [stack.pop()]
            while group[-1] != module:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for module in graph:
        if module not in numbers:
            visit(module)
    return found


def long_files(root: Path, folders: list[str]) -> list[str]:
    paths = [path for folder in folders for path in sorted((root / folder).rglob("*.py"))]
    counts = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    return [f"{path.relative_to(root)}: {n} lines" for path, n in counts.items() if n > LONGEST_FILE]


def test_imports_only_go_down():
    assert not upward_imports(import_graph(REPOSITORY), FLOORS)


def test_no_circles():
    assert not circles(import_graph(REPOSITORY))


def test_no_long_files():
    assert not long_files(REPOSITORY, ["spear_lib", "egs", "tools", "tests"])


def test_no_large_folder():
    folders = {path.parent for path in (REPOSITORY / "spear_lib").rglob("*.py")}
    for folder in folders:
        lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in folder.glob("*.py"))
        assert lines < LARGEST_FOLDER, f"{folder} has {lines} lines: split it by concept"


@pytest.fixture
def house(tmp_path):
    """A library of two parts in which everything is as it should be."""
    for part, text in {"low": "x = 1\n", "high": "from lib.low import tool\n"}.items():
        (tmp_path / "lib" / part).mkdir(parents=True)
        (tmp_path / "lib" / part / "__init__.py").write_text("")
        (tmp_path / "lib" / part / "tool.py").write_text(text)
    (tmp_path / "lib" / "__init__.py").write_text("")
    return tmp_path


def test_an_import_upward_is_found(house):
    floors = [["low"], ["high"]]
    assert not upward_imports(import_graph(house, "lib"), floors)
    (house / "lib" / "low" / "tool.py").write_text("def f():\n    import lib.high.tool\n")
    assert upward_imports(import_graph(house, "lib"), floors) == [
        "lib.low.tool imports lib.high.tool, which is not below it"
    ]


def test_a_part_without_a_floor_and_a_neighbour_are_found(house):
    assert "no floor" in upward_imports(import_graph(house, "lib"), [["low"]])[0]
    assert upward_imports(import_graph(house, "lib"), [["low", "high"]]) == [
        "lib.high.tool imports lib.low.tool, which is not below it"
    ]


def test_a_circle_is_found(house):
    assert not circles(import_graph(house, "lib"))
    (house / "lib" / "low" / "other.py").write_text("from lib.low import tool\n")
    (house / "lib" / "low" / "tool.py").write_text("from lib.low.other import x\n")
    assert circles(import_graph(house, "lib")) == [["lib.low.other", "lib.low.tool"]]


def test_a_long_file_is_found(house):
    (house / "lib" / "low" / "long.py").write_text("x = 1\n" * (LONGEST_FILE + 1))
    assert long_files(house, ["lib"]) == [f"lib/low/long.py: {LONGEST_FILE + 1} lines"]
