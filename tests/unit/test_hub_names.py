"""Encoders by name: the hub's cache laid out by hand, no network, no package."""

import json
import os
import subprocess
import sys

import pytest
from safetensors.torch import save_file
from zipformer_fixtures import tiny

from spear_lib import load_encoder
from spear_lib.encoders import encoder_id
from spear_lib.runtime.hub import is_hub_name

COMMIT, OLDER = "a" * 40, "b" * 40


@pytest.fixture
def cache(tmp_path):
    """HF_HOME with owner/spear.tiny-v2: two commits, main and v1, and code that must not run."""
    place = tmp_path / "home" / "hub" / "models--owner--spear.tiny-v2"
    encoders = {COMMIT: tiny(), OLDER: tiny(output_downsampling_factor=2)}
    for commit, encoder in encoders.items():
        folder = place / "snapshots" / commit
        folder.mkdir(parents=True)
        state = {f"model.model.{name}": value for name, value in encoder.state_dict().items()}
        save_file(state, folder / "model.safetensors")
        settings = {"model_type": "spear", "auto_map": {"AutoModel": "modeling.Model"}, "causal": False}
        (folder / "config.json").write_text(json.dumps(settings))
        (folder / "modeling.py").write_text("raise SystemExit('remote code ran')")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)
    (place / "refs" / "v1").write_text(OLDER)
    broken = tmp_path / "home" / "hub" / "models--owner--half" / "snapshots" / COMMIT
    broken.mkdir(parents=True)
    (broken / "config.json").write_text("{}")
    (broken.parents[1] / "refs").mkdir()
    (broken.parents[1] / "refs" / "main").write_text(COMMIT)
    return tmp_path / "home", {commit: encoder_id(encoder) for commit, encoder in encoders.items()}


def test_names_are_read_from_the_cache(cache, tmp_path):
    home, identities = cache
    code = """
import json, sys
from spear_lib import load_encoder
from spear_lib.encoders import encoder_id
found = {}
for name in sys.argv[1:]:
    try:
        encoder = load_encoder(name)
        found[name] = [encoder_id(encoder), encoder.provenance["source"], encoder.frame_rate]
    except Exception as error:
        found[name] = [type(error).__name__, str(error)]
print(json.dumps(found))
"""
    good = {
        "owner/spear.tiny-v2": COMMIT,
        "hub:owner/spear.tiny-v2": COMMIT,
        "owner/spear.tiny-v2@v1": OLDER,
        f"hub:owner/spear.tiny-v2@{OLDER}": OLDER,
    }
    bad = ["owner/spear.tiny-v2@v9", "owner/nothing", "owner/half", "hub:no-owner", "hub:../x/y"]
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    environment["PYTHONPATH"] = os.getcwd()
    done = subprocess.run(
        [sys.executable, "-c", code, *good, *bad],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for name, commit in good.items():
        rate = 50 if commit == COMMIT else 25
        assert found[name] == [identities[commit], f"hub:owner/spear.tiny-v2@{commit}", rate]
    for name in bad:
        kind, words = found[name]
        assert kind in ("FileNotFoundError", "ValueError") and name in words and "\n" not in words
    assert "has no model.safetensors; go online once, or download" in found["owner/half"][1]
    assert "https://huggingface.co/owner/nothing" in found["owner/nothing"][1]
    assert "write hub:OWNER/NAME" in found["hub:no-owner"][1]


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(RuntimeError, match="needs a package: pip install huggingface_hub; or download"):
        load_encoder("hub:a/b")


def test_paths_are_no_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exp").mkdir()
    assert is_hub_name("owner/name") and is_hub_name("owner/name@v1.0") and is_hub_name("hub:x")
    for path in ("exp/encoder", "encoder", "a/b/c", "/a/b", "./a", "../a", "a/b c"):
        assert not is_hub_name(path), path
    with pytest.raises(FileNotFoundError, match="no encoder at exp/encoder: give a folder"):
        load_encoder("exp/encoder")
