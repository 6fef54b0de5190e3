"""The one training loop of the product: pre-training and fine-tuning differ in their task alone (DESIGN §4;
ours).

Order within a step, as in the reference (spec optim §2.2): the step counter goes up; every micro-batch sets
the schedule clock, runs forward and backward; the task may change the gradients of the global batch; the
learning rate is set from (step, hours); the optimiser moves, and then what the task moves; the model average,
the log, the validation and the checkpoint follow. Nothing waits for the device except when logging.

The gradient is that of the SUM of the loss over the global batch (of its mean over frames with AdamW): DDP
averages over ranks, so each rank's loss is multiplied by the number of ranks.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from spear_lib.config import save as save_options
from spear_lib.config import to_dict
from spear_lib.runtime import keyed_random
from spear_lib.runtime.metrics_log import MetricsLog, log_file
from spear_lib.runtime.task_file import write_task
from spear_lib.runtime.world import World, choose_device
from spear_lib.training import distributed, health
from spear_lib.training.averaging import ModelAverage
from spear_lib.training.checkpoint import CheckpointFolder, load, lock
from spear_lib.training.cpu_memory import keep_freed_memory
from spear_lib.training.freezing import finish, freeze, thaw
from spear_lib.training.interfaces import TrainingBatch, TrainingData, ValidationData, ends_batch
from spear_lib.training.metrics import Totals, time_left
from spear_lib.training.optimisers import mean_gradients, new_optimizer, new_scheduler
from spear_lib.training.options import TrainingConfig
from spear_lib.training.precision import Precision
from spear_lib.training.resuming import (
    RESEED,
    AudioClock,
    Position,
    check_same_identity,
    check_same_options,
    data_state,
    go_on_with_data,
    log_resumed,
)
from spear_lib.training.task import StepClock, Task
from spear_lib.training.validation import Probe, ProbeReports, validate
from spear_lib.training.worst_batch import scan_memory, wanted

logger = logging.getLogger(__name__)


def train(
    task: Task,
    train_data: TrainingData,
    valid_data: dict[str, ValidationData],
    config: TrainingConfig,
    experiment_dir: str | Path,
    *,
    batch_seconds: float,
    world: World | None = None,
    options: object = None,
    probe: Probe | None = None,
) -> dict[str, dict[str, float]]:
    """Trains until a limit of ``config`` is reached; goes on by itself from
    ``experiment_dir/checkpoints/last.pt``.

    Args:
      task: model and objective.
      train_data, valid_data: what is trained on, and set name -> what is validated on.
      batch_seconds: audio of one global batch in seconds (all ranks), the unit of the schedules.
      options: the options dataclass of the command (``config`` by default); saved, and compared when
        resuming, except for what its fields say may change.
      probe: looked at with the validation, to see whether the features improve.

    Returns:
      Set name -> values of the last validation.

    Raises:
      RuntimeError: non-finite loss (before the optimiser step), or gradients that stay non-finite.
      SystemExit: status 75 after SIGTERM or SIGUSR1, with everything saved.
    """
    world = world or World(device=choose_device(config.device))
    if world.device.type == "cpu":
        keep_freed_memory()
    main = world.is_main
    with lock(experiment_dir, main), log_file(experiment_dir, main), health.stop_on_signal() as stop:
        trainer = Trainer(
            task, train_data, valid_data, config, Path(experiment_dir), batch_seconds, world, options, probe
        )
        return trainer.run(stop)


class Trainer:
    """State of one run; use ``train``."""

    def __init__(
        self,
        task: Task,
        train_data: TrainingData,
        valid_data: dict[str, ValidationData],
        config: TrainingConfig,
        experiment_dir: Path,
        batch_seconds: float,
        world: World,
        options: object,
        probe: Probe | None = None,
    ) -> None:
        self.task, self.config, self.experiment_dir = task, config, experiment_dir
        self.train_data, self.valid_data = train_data, valid_data
        self.world = world
        self.options = options if options is not None else config
        self.clock = AudioClock(batch_seconds * config.accumulate_batches)
        self.position = Position()
        self.totals, self.valid_values = Totals(), {}
        self.last_log_step, self.last_log_seconds, self.stopped_by_time = 0, 0.0, False
        self.mark: float | None = None
        experiment_dir.mkdir(parents=True, exist_ok=True)
        self.checkpoints = CheckpointFolder(experiment_dir / "checkpoints", config.keep_checkpoints)
        self.precision = Precision(config.precision, self.world.device)
        self.guard = health.LossGuard(experiment_dir, self.world.rank)
        self.skipped = health.SkippedSteps(config.max_skipped_steps)

        task.model.to(self.world.device)
        self.frozen = freeze(task.model, config.freeze) if config.freeze_steps else []
        self.optimizer = new_optimizer(task.model, config)
        self.scheduler = new_scheduler(self.optimizer, config)
        self.average = None
        if config.average_period and self.world.is_main:
            self.average = ModelAverage(task.model, config.average_period, task.own_state)
        self._resume()
        finish(task.model, config, self.position.step)
        if self.world.is_main:
            write_task(experiment_dir, task.description)
        self._scan_memory()
        self.module = distributed.wrap(task, self.world)
        at = self.position
        self.metrics = MetricsLog(experiment_dir, at.step, world.is_main, at.validated)
        self.probes = ProbeReports(probe, self.metrics, world)

    # ------------------------------------------------------------------ the loop

    def run(self, stop: health.StopRequest) -> dict[str, dict[str, float]]:
        config, position = self.config, self.position
        self.stop = stop
        if self._finished() and position.validated == position.step:
            logger.info("nothing left to do: step %d of %d is already saved", position.step, config.max_steps)
            return {}
        try:
            return self._run()
        except health.Stopped:
            stop.exit(position.step)  # validations come after saving

    def _run(self) -> dict[str, dict[str, float]]:
        config, position, stop = self.config, self.position, self.stop
        if position.step == 0 and self.probes.due(0):
            self.probes.report(0, 0, 0.0, self._between_batches)
        batches = self._batches()
        self.mark = time.monotonic()
        if self._validation_due() and position.validated < position.step:
            self._validate()  # it was interrupted
        while not self._finished():
            if not self._step(batches):
                break  # the last epoch ended
            step = position.step
            if step == 1 or step % config.log_interval == 0:
                self._log()
            keep = step % config.save_interval == 0 and not self._finished()
            validates = self._validation_due()
            if keep or validates:
                self._save(keep_step=keep)  # before validating, which can fail and can take long
            if validates:
                self._validate()
            if self.world.any(bool(stop)):
                self._save(keep_step=False)
                stop.exit(step)
        if position.step > self.last_log_step:
            self._log()
        self._save(keep_step=False)
        self._validate(last=True)
        self._save(keep_step=True)
        self.metrics.close()
        return self.valid_values

    def _validation_due(self) -> bool:
        interval = self.config.valid_interval
        return interval > 0 and self.position.step % interval == 0 and not self._finished()

    def _between_batches(self) -> None:
        """Ends a validation on every rank when a signal came to any."""
        if self.world.any(bool(self.stop)):
            raise health.Stopped

    def _step(self, batches: Iterator[TrainingBatch]) -> bool:
        """One optimiser step; False if the data ended before it."""
        config, position, world = self.config, self.position, self.world
        if self.frozen and position.step == config.freeze_steps:
            self._thaw()
            self.module = distributed.wrap(self.task, world)  # DDP looks at requires_grad when it is built
        if position.step == config.finish_steps and finish(self.task.model, config, position.step):
            self.module = distributed.wrap(self.task, world)
        self.task.model.train()
        distributed.clear_gradients(self.module, self.optimizer)
        num_frames, micro, passes = 0.0, 0, 0
        while micro < config.accumulate_batches:
            batch = next(batches, None)
            if batch is None:
                return False
            batch = batch.to(world.device)
            self.task.begin_step(batch, replace(self._step_clock(micro), micro_batch=passes))
            micro, passes = micro + ends_batch(batch), passes + 1
            with distributed.no_gradient_sync(self.module, micro < config.accumulate_batches):
                with self.precision.autocast():
                    result = self.module(batch)
                self.guard.watch(result.loss_sum, batch)
                self.precision.backward(result.loss_sum * (world.world_size if batch.counts else 0.0))
            self.totals.add({"data/audio_seconds": (batch.audio_seconds * batch.counts, 1.0)})
            if not batch.counts:
                continue
            num_frames = num_frames + result.num_frames
            self.totals.add(result.stats)
            self.totals.add({f"data/{name}": pair for name, pair in batch.statistics.items()})
        self.guard.check(position.step + 1)
        if config.optimizer == "adamw":
            mean_gradients(self.task.model.parameters(), num_frames, world.total)
        self.task.after_backward()

        position.step += 1
        self.scheduler.step_batch(position.step)
        self.scheduler.step_epoch(self.clock.seconds(position.step) / 3600)
        if self.precision.step(self.optimizer):
            self.task.after_step(position.step, world.total)
        self.precision.after_step(position.step)
        if self.average is not None:
            self.average.update(self.task.model, position.step)
        return True

    def _step_clock(self, micro: int) -> StepClock:
        """Where the next step is, for its batch number ``micro``; all shares of it have its draws."""
        config, step, seconds = self.config, self.position.step, self.clock.seconds(self.position.step)
        return StepClock(
            step=step + 1,
            batch_count=seconds / config.schedule_reference_seconds + config.schedule_offset_batches,
            hours=seconds / 3600,
            step_key=keyed_random.key("step", config.seed, step + 1, micro),
            micro_batch=micro,
            gradient_scale=self.world.world_size,
        )

    def _scan_memory(self) -> None:
        """Tries the largest batch, unless nothing is left to train."""
        if wanted(self.config.memory_scan, self.world.device) and not self._finished():
            epoch, clock = self.position.epoch, self._step_clock(0)
            batch = self.train_data.largest_batch(epoch)
            scan_memory(self.task, batch, epoch, self.precision, self.world, clock, self.optimizer)

    def _batches(self) -> Iterator[TrainingBatch]:
        """Batches from the saved position on, epoch after epoch; the position is that after the batch."""
        position = self.position
        while not (self.config.max_epochs and position.epoch >= self.config.max_epochs):
            first = position.batch
            for batch in self.train_data.epoch_batches(position.epoch, position.batch):
                position.batch += ends_batch(batch)
                if len(batch):
                    yield batch
            if first == 0 and position.batch == 0:
                raise ValueError("the training data gave no batch: see the cuts and the duration limits")
            position.epoch, position.batch = position.epoch + 1, 0

    def _finished(self) -> bool:
        config, position = self.config, self.position
        if config.max_minutes and not self.stopped_by_time:
            late = position.seconds + self._seconds_since_mark() > 60 * config.max_minutes
            self.stopped_by_time = self.world.any(late)  # the clocks of ranks differ: agree
        return self.stopped_by_time or bool(config.max_steps and position.step >= config.max_steps)

    # ------------------------------------------------------------------ reports

    def _log(self) -> None:
        position = self.position
        totals = self.totals.collect(self.world)
        self.totals.clear()
        data = {name: totals.pop(name) for name in list(totals) if name.startswith("data/")}
        audio_seconds = float(data.pop("data/audio_seconds")[0])
        position.audio_hours += audio_seconds / 3600
        self._take_seconds()
        elapsed, steps = position.seconds - self.last_log_seconds, position.step - self.last_log_step
        self.skipped.update(self.optimizer.num_skipped, steps, position.step)
        values = self.task.summarise(totals)
        rate = self.optimizer.param_groups[0]["lr"]
        report = {
            **values,
            **{name: float(total) / float(count) for name, (total, count) in data.items() if count > 0},
            "learning_rate": rate,
            "audio_seconds_per_second": audio_seconds / max(elapsed, 1e-9),
            "audio_hours": position.audio_hours,
            "seconds": position.seconds,
        }
        self.metrics.write(position.step, position.epoch, "train", report)
        if self.world.is_main:
            limit = f"/{self.config.max_steps}" if self.config.max_steps else ""
            logger.info(
                "step %d%s, epoch %d: %s, lr %.3g, %.3g audio-s/s%s",
                position.step,
                limit,
                position.epoch,
                self.task.describe(values),
                rate,
                report["audio_seconds_per_second"],
                time_left(self.config, position, self.train_data, elapsed / max(steps, 1)),
            )
        self.last_log_step, self.last_log_seconds = position.step, position.seconds

    def _validate(self, last: bool = False) -> None:
        """Validation sets, and the probe where it is due; their time does not count as training."""
        self._take_seconds()
        position = self.position
        self.valid_values = validate(self.task, self.valid_data, self.world, self._between_batches)
        for name, values in self.valid_values.items():
            self.metrics.write(position.step, position.epoch, f"valid/{name}", values)
            if self.world.is_main:
                logger.info("step %d, valid %s: %s", position.step, name, self.task.describe(values))
        if last or self.probes.due(position.step // self.config.valid_interval):
            self.probes.report(position.step, position.epoch, position.seconds, self._between_batches)
        position.validated = position.step
        self.mark = time.monotonic()

    def _seconds_since_mark(self) -> float:
        return 0.0 if self.mark is None else time.monotonic() - self.mark

    def _take_seconds(self) -> None:
        """Adds the training time since the last call to the position (validation and saving do not count)."""
        self.position.seconds += self._seconds_since_mark()
        self.mark = time.monotonic()

    # ------------------------------------------------------------------ state

    def _thaw(self) -> None:
        """Gives the frozen parameters to the optimiser with a fresh state (spec optim §5, "ours")."""
        thaw(self.frozen, self.task.model, self.optimizer, self.config)
        self.frozen = []
        self.scheduler = new_scheduler(self.optimizer, self.config)
        logger.info("step %d: %s now trains too", self.position.step, ", ".join(self.config.freeze))

    def _save(self, keep_step: bool) -> None:
        self._take_seconds()
        totals = self.totals.collect(self.world)
        if self.world.is_main:
            position = self.position
            path = self.checkpoints.save(
                {
                    "kind": self.task.kind,
                    "config": to_dict(self.options),
                    "model": self.task.model.state_dict(),
                    "model_average": self.average.state_dict() if self.average is not None else None,
                    "optimizer": self.optimizer.state_dict(),
                    "scheduler": self.scheduler.state_dict(),
                    "precision": self.precision.state_dict(),
                    **position.state_dict(),
                    "data": data_state(self.train_data, position.epoch, self.world.world_size),
                    "hours": self.clock.seconds(position.step) / 3600,
                    "audio_clock": self.clock.state_dict(),
                    "last_log": {"step": self.last_log_step, "seconds": self.last_log_seconds},
                    "totals": {name: list(pair) for name, pair in totals.items()},
                    **self.task.identity(),
                },
                keep_step,
            )
            logger.info("step %d: saved %s", position.step, path)
        self.world.barrier()
        self.mark = time.monotonic()

    def _resume(self) -> None:
        path = self.checkpoints.last
        if not path.exists():
            if self.world.is_main:
                save_options(self.options, self.experiment_dir / "config.yaml")
            return
        state = load(path, self.task.kind)
        reseed = self.config.resume == RESEED
        differ = check_same_options(state["config"], self.options, self.config.resume, path)
        check_same_identity(state, self.task.identity(), path)
        self.task.model.load_state_dict(state["model"])
        self.position = Position.of_state(state)
        self.clock = self.clock.continued(state.get("audio_clock", {}), self.position.step, reseed)
        if reseed:
            self.position.epoch, self.position.batch = self.position.epoch + 1, 0
        else:
            go_on_with_data(self.train_data, state, self.position.epoch, self.world.world_size, path)
        if self.frozen and self.position.step > self.config.freeze_steps:
            self._thaw()
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.precision.load_state_dict(state["precision"])
        if self.average is not None:
            self.average.load_state_dict(state["model_average"])
        self.totals.load(state["totals"], self.world)
        self.last_log_step, self.last_log_seconds = state["last_log"]["step"], state["last_log"]["seconds"]
        log_resumed(path, self.position, differ if reseed and self.world.is_main else None)
        if reseed and self.world.is_main:
            save_options(self.options, self.experiment_dir / "config.yaml")
