"""Going on from a checkpoint: with the same data exactly, or with other data in a new order (ours).

``training.resume`` is ``exact`` or ``reseed``.

* exact: the same batches and losses as the unbroken run, because batches are global and every draw is keyed.
  On another number of processes too, as far as docs/elastic.md says. Data that would give other batches are
  refused.
* reseed: weights, optimiser and schedules go on; the data begin a new epoch, which has an order and draws of
  its own. Manifests, batch size and other options of the data may have changed. Every resumption with it
  begins another epoch, so set it back to exact once the change is made.

Which options may change the fields of the options say themselves (``config.MAY_CHANGE``).
"""

import logging
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from spear_lib.config import MAY_CHANGE, RESEED_MAY_CHANGE, may_change, to_dict
from spear_lib.training.interfaces import DivisibleData, TrainingData

logger = logging.getLogger(__name__)

EXACT, RESEED = "exact", "reseed"


@dataclass
class Position:
    """Where the run is; saved in every checkpoint."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    """Global batches of the epoch that are used up."""
    seconds: float = 0.0
    """Time spent training, resumes included."""
    audio_hours: float = 0.0
    """Audio seen, as measured (the schedules use nominal hours)."""
    validated: int = 0
    """Step of the last validation that came to its end."""

    def state_dict(self) -> dict[str, Any]:
        """As the fields of a checkpoint."""
        fields = asdict(self)
        return {"sampler": {"epoch": fields.pop("epoch"), "batch": fields.pop("batch")}, **fields}

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> "Position":
        """From the fields of a checkpoint; before there was ``validated``, the last one had been."""
        names = ("step", "seconds", "audio_hours")
        validated = state.get("validated", state["step"])
        return cls(**state["sampler"], **{name: state[name] for name in names}, validated=validated)


@dataclass
class AudioClock:
    """Nominal audio of the run in seconds, what the schedules go by: steps times the audio of a step. Where
    that changes (reseed), it goes on from what was seen."""

    step_seconds: float
    """Audio of one optimiser step over all ranks."""
    base_step: int = 0
    base_seconds: float = 0.0

    def seconds(self, step: int) -> float:
        """Nominal seconds before step number ``step`` + 1."""
        return self.base_seconds + (step - self.base_step) * self.step_seconds

    def continued(self, saved: dict[str, Any], step: int, reseed: bool) -> "AudioClock":
        """This clock as it stands at ``step`` of the run with the saved one."""
        before = AudioClock(**saved) if saved else AudioClock(self.step_seconds)
        if not reseed:
            return before
        return AudioClock(self.step_seconds, step, before.seconds(step))

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)


def data_state(data: TrainingData, epoch: int, world_size: int) -> dict[str, Any]:
    """What must be equal in ``epoch`` for the batches after a resumption to be the same (plain values), and
    how batches are divided."""
    divisible = issubclass(type(data), DivisibleData)
    return {
        "fingerprint": data.fingerprint,
        "targets": data.targets_fingerprint,
        "batching": data.batching(epoch),
        "world_size": world_size,
        "division": data.division() if divisible else {"shares": world_size, "planned_for": world_size},
    }


def go_on_with_data(
    data: TrainingData, state: dict[str, Any], epoch: int, world_size: int, path: Path
) -> None:
    """Divides the batches of ``data`` as the run of the checkpoint ``state`` did (docs/elastic.md).

    Up to as many processes as batches have shares take the same shares, some of them several in turn. More
    processes take one share each of the same batches, where these have a cut for each process.

    Raises:
      ValueError: other data, or more processes than a batch of ``epoch`` has cuts.
    """
    saved = state.get("data", {})
    if not saved:
        return
    if not issubclass(type(data), DivisibleData):
        check_same_data(saved, data_state(data, epoch, world_size), epoch, path)
        return
    before = saved.get("world_size", world_size)  # a checkpoint of before there were shares
    division = saved.get("division", {"shares": before, "planned_for": before})
    more = world_size > division["shares"]
    if more:
        data.divide(world_size, world_size)
    else:
        data.divide(**division)
    now = data_state(data, epoch, world_size)
    data.divide(max(world_size, division["shares"]), division["planned_for"])
    fitting = data.smallest_batch(epoch) if more and now["batching"] != saved["batching"] else 0
    check_same_data(saved, now, epoch, path, fitting)


def check_same_data(
    saved: dict[str, Any], now: dict[str, Any], epoch: int, path: Path, fitting: int = 0
) -> None:
    """Refuses to resume exactly on other data.

    Args:
      fitting: where batches differ by the number of processes alone: the largest number that does.

    Raises:
      ValueError: the manifests hold other cuts, the cuts other targets, or the batches are others.
    """
    if not saved:
        return
    if saved["fingerprint"] != now["fingerprint"]:
        raise ValueError(
            f"{path} was made on other data: the training manifests have the fingerprint "
            f"{now['fingerprint']} and had {saved['fingerprint']}, so their cuts or their noise changed. Put "
            f"the old manifests back to go on exactly, or give --training.resume {RESEED} to go on from "
            "these weights with the new ones in a new order"
        )
    # Checkpoints made before this was saved have none.
    if saved.get("targets", now["targets"]) != now["targets"]:
        raise ValueError(
            f"{path} was made on other targets: the cuts are the same, but their transcripts, labels or "
            f"tokens have the fingerprint {now['targets']} and had {saved['targets']}. Put the old ones back "
            f"to go on exactly, or give --training.resume {RESEED} to go on from these weights with the new"
        )
    if saved["batching"] != now["batching"]:
        numbers = "the old number of processes"
        if fitting:
            numbers = f"1 to {fitting} processes" if fitting > 1 else "one process"
        raise ValueError(
            f"epoch {epoch} is divided into other batches on {now['world_size']} processes "
            f"({now['batching']}) than on {saved['world_size']} ({saved['batching']}) when {path} was made: "
            "every process needs a cut of each batch, and batch_seconds is too small for that. Use "
            f"{numbers} to go on exactly, or give --training.resume {RESEED} to go on from these "
            "weights in a new order"
        )
    _say_what_differs(saved, now)


def _say_what_differs(saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Logs what another number of processes means."""
    before, processes = saved.get("world_size", now["world_size"]), now["world_size"]
    if before == processes:
        return
    shares = now.get("division", {}).get("shares", processes)
    if shares == saved.get("division", {}).get("shares", before):
        turns = sorted({shares // processes, -(-shares // processes)})
        logger.info(
            "saved on %d processes, going on with %d: the same %d shares of each batch, %s in turn by each "
            "process, so the same losses",
            before,
            processes,
            shares,
            " or ".join(map(str, turns)),
        )
        return
    logger.info(
        "saved on %d processes, going on with %d: the same batches, but what each process measures by "
        "itself (Balancer, Whiten) changes, and with it the losses, slightly",
        before,
        processes,
    )


def check_same_identity(state: dict[str, Any], identity: dict[str, Any], path: Path) -> None:
    """Refuses to resume with other data or another model: ValueError, naming what differs."""
    for name, value in identity.items():
        if state.get(name) != value:
            raise ValueError(
                f"{path} was made with {name} {state.get(name)} and this run has {value}: the data or the "
                "model changed since. Go back to the old ones, or start a new experiment_dir"
            )


def options_that_differ(saved: dict[str, Any], now: dict[str, Any], may_change: list[str]) -> list[str]:
    """``"objective.alpha was 0.5 and is now 0.7"`` for every option that is neither in ``may_change`` nor
    below a name of it."""
    before, after = _flatten(saved), _flatten(now)
    missing = "(not set)"
    return [
        f"{name} was {before.get(name, missing)} and is now {after.get(name, missing)}"
        for name in sorted(set(before) | set(after))
        if before.get(name, missing) != after.get(name, missing)
        and not any(f"{name}.".startswith(f"{free}.") for free in may_change)
    ]


def check_same_options(saved: dict[str, Any], options: Any, policy: str, path: Path) -> list[str]:
    """Refuses to resume under options that change the run.

    Args:
      saved: the options that the checkpoint was made with; those that it does not know, because they came
        later, had their defaults.
      options: those of now, a dataclass whose fields say what may change (``config.MAY_CHANGE``).
      policy: exact or reseed.
      path: of the checkpoint, for the message.

    Returns:
      What differs and may, because of ``reseed``.

    Raises:
      ValueError: naming the first options that differ and must not.
    """
    now, free = to_dict(options), may_change(options, MAY_CHANGE)
    saved = _with_defaults(saved, options)
    differ = options_that_differ(saved, now, free)
    fatal = options_that_differ(saved, now, free + may_change(options, RESEED_MAY_CHANGE))
    if not differ or (policy == RESEED and not fatal):
        return differ
    shown = fatal if policy == RESEED else differ
    more = f" (and {len(shown) - 3} more)" if len(shown) > 3 else ""
    instead = "" if fatal else f", --training.resume {RESEED} to go on from its weights with these data"
    raise ValueError(
        f"{path} was made with other options: {'; '.join(shown[:3])}{more}. Give the old values to go on "
        f"with that run{instead}, or another experiment_dir (or delete this one) to start a new one"
    )


def log_resumed(path: Path, position: Position, reseeded: list[str] | None) -> None:
    """Says where a run goes on; with ``reseed`` also what changed (``reseeded``, None: exact)."""
    logger.info("going on from %s: step %d, epoch %d", path, position.step, position.epoch)
    if reseeded is not None:
        logger.info(
            "resume reseed: weights, optimiser and schedules go on; the data begin epoch %d in a new order%s",
            position.epoch,
            f" ({'; '.join(reseeded)})" if reseeded else "",
        )


def _with_defaults(saved: dict[str, Any], options: Any) -> dict[str, Any]:
    """``saved`` with the default of every field of the dataclass ``options`` that it lacks."""
    filled = dict(saved)
    for each in fields(options):
        if each.default is not MISSING:
            default = each.default
        elif each.default_factory is not MISSING:
            default = each.default_factory()
        else:
            continue
        filled[each.name] = _filled(saved[each.name], default) if each.name in saved else to_dict(default)
    return filled


def _filled(saved: Any, default: Any) -> Any:
    """A saved value; of a group of options with the values of ``default`` that it lacks."""
    if not is_dataclass(default) or not isinstance(saved, dict):
        return saved
    values = {each.name: getattr(default, each.name) for each in fields(default)}
    lacking = {name: to_dict(value) for name, value in values.items() if name not in saved}
    return {**{name: _filled(value, values.get(name)) for name, value in saved.items()}, **lacking}


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return flat
