"""What the README files say can be typed: commands and options exist, links lead somewhere, code runs."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy_recipe import REPOSITORY

READMES = [
    REPOSITORY / "README.md",
    *sorted(REPOSITORY.glob("docs/*.md")),
    *sorted(REPOSITORY.glob("egs/*/README.md")),
]
SCRIPTS = {"prepare.sh", "run.sh"}


def modules() -> list[str]:
    folder = REPOSITORY / "spear_lib" / "bin"
    return sorted(
        path.stem for path in folder.glob("*.py") if path.stem not in ("__init__", "common", "spear")
    )


def table_of_commands() -> list[str]:
    text = (REPOSITORY / "docs" / "commands.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)


def test_the_table_of_commands_is_complete():
    assert sorted(table_of_commands()) == modules()


# The packages that commands share are imported once; every command then starts in a process of its own.
HELP_OF_ALL = """
import os, runpy, sys
import jsonargparse, lhotse, torch
for name in sys.argv[1:]:
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        sys.argv = [name, "--help"]
        print("#", name, flush=True)
        runpy.run_module(f"spear_lib.bin.{name}", run_name="__main__", alter_sys=True)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(f"status {status}", flush=True)
"""


def test_every_command_has_a_help():
    names = modules()
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", HELP_OF_ALL, *names],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    helps = dict(re.findall(r"^# (\w+)\n(.*?^status -?\d+)$", result.stdout, re.MULTILINE | re.DOTALL))
    assert list(helps) == names, result.stdout[-2000:]
    for name, text in helps.items():
        assert text.endswith("status 0"), f"{name}: {text}"
        assert f"python -m spear_lib.bin.{name}" in text, f"{name}: {text}"


def recipe_commands() -> list[tuple[Path, str]]:
    """(README, command line) of every call of a recipe script, continued lines joined."""
    found = []
    for path in READMES:
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"^ {4}(\./.*)$", text, re.MULTILINE):
            found += [(path, command.strip()) for command in line.split("#")[0].split("&&")]
        found += [(path, command) for command in re.findall(r"`(\./(?:prepare|run)\.sh [^`]*)`", text)]
    return found


@pytest.mark.parametrize(("readme", "command"), recipe_commands())
def test_options_of_recipe_commands_are_known(readme, command):
    folder = readme.parent if readme.parent.parent.name == "egs" else REPOSITORY / "egs" / "librispeech"
    if "--group " in command:  # an option of egs/mixed alone
        folder = REPOSITORY / "egs" / "mixed"
    for placeholder, value in {"$SLURM_ARRAY_TASK_ID": "1", " STRATEGY": " joint", "...": ""}.items():
        command = command.replace(placeholder, value)
    words = shlex.split(command)
    script = folder / words[0]
    assert script.name in SCRIPTS and os.access(script, os.X_OK)
    # Options before --help are checked by the parser; nothing runs.
    arguments = ["1" if word == "N" else word for word in words[1:]]
    result = subprocess.run([str(script), *arguments, "--help"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, f"{command}: {result.stderr}"


@pytest.mark.parametrize("readme", READMES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_links_and_named_files_exist(readme):
    text = readme.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert (readme.parent / target).exists(), target
    for target in re.findall(r"(?<![\w/])(?:tools|tests|egs/common)/[\w/.]+\w", text):
        assert (REPOSITORY / target).exists(), target


def test_the_two_commands_are_there_and_executable():
    text = READMES[0].read_text(encoding="utf-8")
    for command in ("tools/quickstart.sh", "tools/check.sh"):
        assert f"\n    {command}\n" in text
        assert os.access(REPOSITORY / command, os.X_OK)
    assert os.access(REPOSITORY / ".ci" / "run", os.X_OK)


def test_the_readme_is_short():
    assert len(READMES[0].read_text(encoding="utf-8").splitlines()) <= 150


def test_the_teacher_of_the_guide_works():
    text = (REPOSITORY / "docs" / "adding.md").read_text(encoding="utf-8")
    names: dict = {}
    exec(re.search(r"```python\n(.*?class LoudnessTeacher.*?)```", text, re.DOTALL).group(1), names)
    teacher = names["LoudnessTeacher"]().eval()
    waveforms = torch.randn(2, 16000, generator=torch.Generator().manual_seed(0)) * 0.1
    embeddings, lengths = teacher.embed(waveforms, torch.tensor([16000, 8010]))
    alone, _ = teacher.embed(waveforms[1:, :8010], torch.tensor([8010]))
    assert embeddings.shape == (2, 50, 2) and lengths.tolist() == [50, 25]
    assert [teacher.num_frames(n) for n in (16000, 8010)] == lengths.tolist()
    assert torch.equal(embeddings[1, :25], alone[0]) and not embeddings[1, 25:].any()


def test_the_example_of_the_encoder_runs(tmp_path):
    from spear_lib.encoders import save_encoder
    from spear_lib.encoders.zipformer import SpearEncoder, ZipformerConfig

    config = ZipformerConfig.mini(encoder_dim=(32,), feedforward_dim=(64,), encoder_unmasked_dim=(32,))
    torch.manual_seed(0)
    save_encoder(SpearEncoder(config), tmp_path / "encoder", {"source": "test"})
    code = re.search(r"```python\n(.*?)```", READMES[0].read_text(encoding="utf-8"), re.DOTALL).group(1)
    path = "egs/librispeech/exp/pretrain/encoder"
    assert path in code
    names: dict = {}
    exec(code.replace(path, str(tmp_path / "encoder")), names)
    output = names["output"]
    assert output.encoder_out.shape[0] == 2 and output.encoder_out.shape[2] == 32
    assert output.lengths.tolist() == [96, 71]
    assert len(output.hidden_states) == sum(config.num_encoder_layers)
