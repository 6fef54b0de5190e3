"""A folder of a group (setgid, umask 002) that two users work on: each replaces what the other left."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
GROUP, ONE, TWO = 41000, 41001, 41002


@pytest.fixture
def shared():
    """Not in pytest's folder, which is for its owner alone."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        folder = Path(name) / "shared"
        folder.mkdir()
        os.chown(folder, 0, GROUP)
        folder.chmod(0o2775)
        yield folder


WORK = r"""
import os, sys
from pathlib import Path
import torch
from spear_lib.quantization import Quantizer, load_tokeniser
from spear_lib.runtime.files import write_json
from spear_lib.runtime.locks import exclusive

folder, seed, user, group = Path(sys.argv[1]), *map(int, sys.argv[2:])
# After the imports: this Python may lie where only root reads.
os.setgroups([])
os.setgid(group)
os.setuid(user)
os.umask(0o002)
torch.manual_seed(seed)
with exclusive(folder / "locked" / "lock", "the folder"):
    if seed > 1:
        load_tokeniser(folder / "quantizer")
    Quantizer(8, 2, 4).save(folder / "quantizer")
    write_json(folder / "facts.json", {"seed": seed})
# Killed half-way: an unfinished file and a lock are left.
(folder / "facts.json.tmp").write_text("half")
(folder / "locked" / "left.lock").write_text("")
with exclusive(folder / "locked" / "other", "another"):
    pass
print("fine")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_two_users_of_a_group_replace_each_others_results(shared):
    for seed, user in enumerate((ONE, TWO, ONE), start=1):
        done = subprocess.run(
            [sys.executable, "-c", WORK, str(shared), str(seed), str(user), str(GROUP)],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0 and "fine" in done.stdout, done.stderr[-2000:]
        assert (shared / "quantizer" / "quantizer.safetensors").stat().st_uid == user
