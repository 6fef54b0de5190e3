"""The package without its repository: the command ``spear``, and a wheel installed elsewhere."""

import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import spear_lib
from spear_lib.bin import spear

REPOSITORY = Path(__file__).parents[2]


def call(capsys, monkeypatch, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["spear", *arguments])
    status = 0
    try:
        spear.main()
    except SystemExit as stop:
        status = stop.code or 0
    return (status, *capsys.readouterr())


def test_every_command_is_a_verb_with_a_line_of_help(capsys, monkeypatch):
    table = spear.verbs()
    assert {"pretrain", "transcribe", "tag", "export_huggingface", "report"} <= set(table)
    assert "common" not in table and "spear" not in table
    for verb, text in table.items():
        assert callable(import_module(f"spear_lib.bin.{verb}").main) and len(text) > 10, verb
    for arguments in ([], ["--help"], ["help"]):
        status, out, _ = call(capsys, monkeypatch, *arguments)
        assert status == 0 and all(f"  {verb} " in out for verb in table)
    assert call(capsys, monkeypatch, "--version")[1] == f"spear_lib {spear_lib.__version__}\n"


def test_verbs_run_their_command(capsys, monkeypatch):
    for verb in ("export_huggingface", "export-huggingface"):
        status, _, err = call(capsys, monkeypatch, verb, "--output_dir", "x")
        assert status == 1 and "give either encoder" in err
    status, _, err = call(capsys, monkeypatch, "transcibe")
    assert status == 2 and "no verb 'transcibe'; it has" in err and err.count("\n") == 1


@pytest.mark.slow
def test_a_wheel_works_without_the_repository(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "spear_lib", source / "spear_lib", ignore=ignore)
    pip = [sys.executable, "-m", "pip", "-q"]
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    build = ["wheel", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(source)]
    subprocess.run([*pip, *build], check=True, timeout=300)
    shutil.rmtree(source)
    (wheel,) = wheels.iterdir()
    assert wheel.name.startswith(f"spear_lib-{spear_lib.__version__}-py3")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True, timeout=300)
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}

    def run(*command: str) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout + done.stderr

    here = run(sys.executable, "-c", "import spear_lib; print(spear_lib.__file__)")
    assert here.strip() == str(site / "spear_lib" / "__init__.py")
    entry = str(site / "bin" / "spear")
    assert run(entry, "--version") == f"spear_lib {spear_lib.__version__}\n"
    # Every part is in the wheel and none needs what lies beside it.
    every = (
        "import pkgutil, importlib, spear_lib\n"
        "for each in pkgutil.walk_packages(spear_lib.__path__, 'spear_lib.'):\n"
        "    if 'kernels' not in each.name: importlib.import_module(each.name)\n"
    )
    run(sys.executable, "-c", every)
    make = "from spear_lib.encoders import *; from spear_lib.encoders.zipformer import ZipformerConfig as Z\n"
    make += "save_encoder(load_encoder(Z.mini()), 'encoder', {})"
    run(sys.executable, "-c", make)
    run(entry, "export_huggingface", "--encoder", "encoder", "--output_dir", "out")
    assert (tmp_path / "out" / "modeling_spear.py").is_file()
