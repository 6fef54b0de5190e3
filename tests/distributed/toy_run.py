"""One rank of a toy training run, started by torchrun: toy_run.py EXPERIMENT_DIR JSON_OF_OPTIONS
[SIGNAL_AT_STEP]."""

import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from toy_task import BATCH_SECONDS, ToyData, ToyTask, toy_config

from spear_lib.runtime.world import world
from spear_lib.training.loop import train


class SignalledTask(ToyTask):
    """Rank 1 alone is asked to stop, in the middle of a step."""

    signal_at = -1

    def compute(self, batch):
        if os.environ.get("RANK") == "1" and self.clocks and self.clocks[-1].step == self.signal_at:
            os.kill(os.getpid(), signal.SIGUSR1)
        return super().compute(batch)


def main() -> None:
    experiment_dir, options = sys.argv[1], json.loads(sys.argv[2])
    task = SignalledTask()
    task.signal_at = int(sys.argv[3]) if len(sys.argv) > 3 else -1
    with world("cpu") as processes:
        data = ToyData(22, processes.rank, processes.world_size)
        valid = {"dev": ToyData(10, processes.rank, processes.world_size)}
        train(
            task,
            data,
            valid,
            toy_config(**options),
            experiment_dir,
            batch_seconds=BATCH_SECONDS,
            world=processes,
        )


if __name__ == "__main__":
    main()
