"""A checkout with a toy recipe, and jobs of tools/slurm in it under the real Slurm."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))
from cluster import Slurm
from pretraining_fixtures import make_corpus, write_config
from test_slurm_templates import RUN, TIMES

REPOSITORY = Path(__file__).resolve().parents[2]
MAX_STEPS = 60
TEMPLATES = REPOSITORY / "tools" / "slurm"


class Checkout:
    """A checkout with a toy recipe around real pre-training."""

    def __init__(self, folder: Path, slurm: Slurm, prepare: str = "exit 0\n") -> None:
        self.folder, self.slurm = folder, slurm
        self.recipe = folder / "egs" / "toy"
        data = self.recipe / "data"
        data.mkdir(parents=True)
        for name in ("tools", "spear_lib", "egs/common"):
            (folder / name).symlink_to(REPOSITORY / name)
        here = '#!/usr/bin/env bash\nhere=$(dirname "$0")\n'
        for name, text in (("run.sh", RUN), ("prepare.sh", here + prepare)):
            (self.recipe / name).write_text(text, encoding="utf-8")
            (self.recipe / name).chmod(0o755)

    def corpus(self, max_steps: int = MAX_STEPS) -> "Checkout":
        data = self.recipe / "data"
        train, valid = make_corpus(data, 12), make_corpus(data, 3, "dev")
        write_config(data, train, valid, max_steps=max_steps, save_interval=10, valid_interval=0)
        return self

    def submit(self, template: str, *options: str, words: tuple[str, ...] = (), **variables: str) -> str:
        """Number of the job; its log is job.log."""
        environment = {
            **self.slurm.environment,
            "PYTHON": sys.executable,
            "OMP_NUM_THREADS": "1",
            **variables,
        }
        command = ["sbatch", "--parsable", "--cpus-per-task=2", "--time=60"]
        command += [f"--output={self.folder}/job.log", *options, str(TEMPLATES / template), "egs/toy", *words]
        before, self.slurm.environment = self.slurm.environment, environment
        try:
            return self.slurm(*command, cwd=self.folder).strip()
        finally:
            self.slurm.environment = before

    @property
    def log(self) -> str:
        path = self.folder / "job.log"
        return path.read_text() if path.exists() else ""

    def saved(self, step: int = 10) -> bool:
        return (self.recipe / f"exp/pretrain/checkpoints/step-{step:08d}.pt").exists()

    def until(self, condition, seconds: float = 150) -> None:
        try:
            self.slurm.wait(condition, seconds, "such a moment")
        except TimeoutError as error:
            raise AssertionError(self.log[-4000:]) from error

    def losses(self) -> list[dict]:
        lines = (self.recipe / "exp/pretrain/metrics.jsonl").read_text().splitlines()
        return [
            {key: value for key, value in json.loads(line).items() if not any(time in key for time in TIMES)}
            for line in lines
        ]

    def complete(self, job: str) -> None:
        assert self.slurm.finish(job) == "COMPLETED", self.log[-4000:]
        assert (self.recipe / "exp/.done/stage-10.json").exists()
