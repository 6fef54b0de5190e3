"""Resuming exactly or with a new data order: what may change, what is refused, and what goes on."""

from dataclasses import dataclass, field, replace

import pytest
import torch
from toy_task import BATCH_SECONDS, ToyData, ToyTask, losses, toy_config

from spear_lib.asr.options import FinetuneOptions
from spear_lib.config import MAY_CHANGE, RESEED_MAY_CHANGE, to_dict
from spear_lib.pretraining.options import PretrainOptions
from spear_lib.runtime.metrics_log import read_metrics
from spear_lib.tagging.options import FinetuneTaggingOptions
from spear_lib.training.loop import train
from spear_lib.training.resuming import AudioClock, check_same_options, data_state, go_on_with_data


@dataclass(frozen=True)
class DataOptions:
    batch_seconds: float = 60.0
    num_workers: int = field(default=2, metadata=MAY_CHANGE)


@dataclass(frozen=True)
class ModelOptions:
    learning_rate: float = 0.1


@dataclass(frozen=True)
class Options:
    """Of a command: a group whose values may change with reseed, one that never may, one that always may."""

    data: DataOptions = field(default_factory=DataOptions, metadata=RESEED_MAY_CHANGE)
    model: ModelOptions = field(default_factory=ModelOptions)
    probe: ModelOptions = field(default_factory=ModelOptions, metadata=MAY_CHANGE)


class NamedData(ToyData):
    """Toy data that say what they are."""

    def __init__(self, size: int = 20, fingerprint: str = "a") -> None:
        super().__init__(size)
        self.fingerprint = fingerprint


def run(folder, data=None, seconds=BATCH_SECONDS, options=None, **changes):
    task = ToyTask()
    config = toy_config(**changes)
    train(task, data or NamedData(), {}, config, folder, batch_seconds=seconds, options=options or config)
    return task


def test_changed_manifests_are_refused_and_the_message_names_reseed(tmp_path):
    run(tmp_path, max_steps=7)
    with pytest.raises(ValueError, match="made on other data: .* had a, .*--training.resume reseed"):
        run(tmp_path, NamedData(fingerprint="b"))
    run(tmp_path)  # the same data go on exactly
    run(tmp_path / "whole")
    assert losses(tmp_path) == losses(tmp_path / "whole")


def test_changed_targets_are_refused_where_the_checkpoint_knows_its_own(tmp_path):
    def data(targets):
        named = NamedData()
        named.targets_fingerprint = targets
        return named

    run(tmp_path, data("x"), max_steps=7)
    with pytest.raises(
        ValueError, match="other targets: .*transcripts, labels or tokens.* y and had x.*reseed"
    ):
        run(tmp_path, data("y"))
    path = tmp_path / "checkpoints" / "last.pt"
    state = torch.load(path, weights_only=True)
    assert state["data"].pop("targets") == "x"  # as checkpoints were before
    torch.save(state, path)
    run(tmp_path, data("y"), max_steps=9)
    run(tmp_path, data("z"), resume="reseed", max_steps=10)


def test_reseed_goes_on_with_other_data_from_the_next_epoch(tmp_path, caplog):
    first = run(tmp_path, max_steps=7)
    data = NamedData(size=28, fingerprint="b")
    with caplog.at_level("INFO"):
        second = run(tmp_path, data, resume="reseed", max_steps=12)
    assert data.seen[0] == (2, 0) and first.clocks[-1].step == 7 and second.clocks[0].step == 8
    assert "weights, optimiser and schedules go on; the data begin epoch 2 in a new order" in caplog.text
    assert sorted(losses(tmp_path)) == list(range(1, 13))
    # Killed and resumed exactly from there: the same as without.
    unbroken = losses(tmp_path)
    run(tmp_path / "b", max_steps=7)
    run(tmp_path / "b", NamedData(size=28, fingerprint="b"), resume="reseed", max_steps=9)
    run(tmp_path / "b", NamedData(size=28, fingerprint="b"), max_steps=12)
    assert losses(tmp_path / "b") == unbroken


def test_schedules_go_on_from_the_audio_seen_when_the_batch_changes(tmp_path):
    run(tmp_path, max_steps=6, options=Options())
    changed = Options(DataOptions(batch_seconds=240.0))
    with pytest.raises(ValueError, match="batch_seconds was 60.0 and is now 240.0.*--training.resume reseed"):
        run(tmp_path, max_steps=9, options=changed, seconds=240.0)
    task = run(tmp_path, max_steps=9, options=changed, seconds=240.0, resume="reseed")
    assert [clock.hours * 3600 for clock in task.clocks] == pytest.approx([360.0, 600.0, 840.0])
    # Exactly resumed, the clock keeps its bend.
    task = run(tmp_path, max_steps=10, options=changed, seconds=240.0)
    assert task.clocks[0].hours * 3600 == pytest.approx(360 + 3 * 240)
    rates = {line["step"]: line["learning_rate"] for line in read_metrics(tmp_path / "metrics.jsonl")}
    assert rates[9] > rates[10]


def test_reseed_does_not_let_the_model_change(tmp_path):
    before = to_dict(Options(DataOptions(6)))
    after = Options(DataOptions(7), ModelOptions(0.2))
    with pytest.raises(
        ValueError, match="learning_rate was 0.1 and is now 0.2. Give the old values"
    ) as error:
        check_same_options(before, after, "reseed", tmp_path)
    assert "batch_seconds" not in str(error.value) and "--training.resume" not in str(error.value)
    same = replace(after, model=ModelOptions())
    assert check_same_options(before, same, "reseed", tmp_path) == ["data.batch_seconds was 6 and is now 7"]
    with pytest.raises(ValueError, match="batch_seconds was 6 and is now 7. .*--training.resume reseed"):
        check_same_options(before, same, "exact", tmp_path)


def test_what_the_options_call_free_may_change_and_so_may_all_below_it(tmp_path):
    before = to_dict(Options())
    free = Options(DataOptions(num_workers=0), probe=ModelOptions(0.9))
    assert check_same_options(before, free, "exact", tmp_path) == []
    # The mark belongs to that field, not to every field of its name.
    with pytest.raises(ValueError, match="model.learning_rate was 0.1 and is now 0.9"):
        check_same_options(before, replace(free, model=ModelOptions(0.9)), "exact", tmp_path)
    with pytest.raises(ValueError, match=r"data.old was 1 and is now \(not set\)"):
        check_same_options(before | {"data": before["data"] | {"old": 1}}, free, "exact", tmp_path)


def test_options_that_a_checkpoint_does_not_know_had_their_defaults(tmp_path):
    """Otherwise a new option would end every run that is under way."""
    before = to_dict(Options())
    del before["probe"], before["data"]["batch_seconds"]
    assert check_same_options(before, Options(), "exact", tmp_path) == []
    with pytest.raises(ValueError, match="data.batch_seconds was 60.0 and is now 7"):
        check_same_options(before, Options(DataOptions(7)), "exact", tmp_path)

    @dataclass(frozen=True)
    class Changed(Options):
        data: DataOptions = field(default_factory=lambda: DataOptions(batch_seconds=9.0))

    assert check_same_options({"data": {}, "model": {}}, Changed(), "exact", tmp_path) == []


ASR = FinetuneOptions(experiment_dir="a", encoder="e", units="u", dev_cuts=["dev"])
TAGGING = FinetuneTaggingOptions(experiment_dir="a", encoder="e", classes="c", dev_cuts=["dev"])
PRETRAINING = PretrainOptions(experiment_dir="a", valid_cuts=["dev"])


def changed(options, **values):
    """``options`` with other values, "group__name" for those of a group."""
    for name, value in values.items():
        group, _, inner = name.rpartition("__")
        value = replace(getattr(options, group), **{inner: value}) if group else value
        options = replace(options, **{group or name: value})
    return options


@pytest.mark.parametrize(
    "options, values",
    [
        (ASR, {"dev_cuts": ["other"], "valid_wer": False, "experiment_dir": "b", "model__backend": "torch"}),
        (TAGGING, {"dev_cuts": ["other"], "experiment_dir": "b", "data__max_bad_fraction": 0.5}),
        (PRETRAINING, {"valid_cuts": [], "dry_run": True, "probe__every": 3, "data__num_workers": 0}),
        (PRETRAINING, {"training__max_steps": 7, "training__device": "cpu", "training__resume": "reseed"}),
    ],
)
def test_what_changes_no_weight_may_change(options, values, tmp_path):
    assert changed(options, **values) != options
    assert check_same_options(to_dict(options), changed(options, **values), "exact", tmp_path) == []


@pytest.mark.parametrize("options", [ASR, TAGGING, PRETRAINING])
def test_what_changes_the_batches_needs_reseed(options, tmp_path):
    other = changed(options, data__batch_seconds=7.0, training__seed=5, training__accumulate_batches=2)
    with pytest.raises(ValueError, match="data.batch_seconds was 200.0 and is now 7.0.*resume reseed"):
        check_same_options(to_dict(options), other, "exact", tmp_path)
    assert len(check_same_options(to_dict(options), other, "reseed", tmp_path)) == 3


@pytest.mark.parametrize(
    "options, values",
    [
        (ASR, {"units": "v"}),
        (ASR, {"encoder_lr_scale": 0.2}),
        (TAGGING, {"classes": "d"}),
        (TAGGING, {"training__learning_rate": 0.1}),
        (PRETRAINING, {"objective__align": "index"}),
    ],
)
def test_what_changes_the_model_may_never_change(options, values, tmp_path):
    for policy in ("exact", "reseed"):
        with pytest.raises(ValueError, match="Give the old values to go on with that run, or another"):
            check_same_options(to_dict(options), changed(options, **values), policy, tmp_path)


def test_other_batches_of_the_same_cuts_are_refused(tmp_path):
    class Divided(NamedData):
        """The same cuts, of which more processes make larger batches."""

        division = "5 batches, abc"

        def batching(self, epoch):
            return self.division

    larger = Divided()
    larger.division = "4 batches, def"
    run(tmp_path, Divided(), max_steps=7)
    with pytest.raises(ValueError, match="on 1 processes .4 batches, def. than on 1 .5 batches, abc.*reseed"):
        run(tmp_path, larger)
    run(tmp_path, Divided())


def test_unknown_policy_is_explained():
    with pytest.raises(ValueError, match="resume must be exact or reseed, it is 'anyhow'"):
        toy_config(resume="anyhow")


def test_clock_without_change_is_plain_multiplication():
    clock = AudioClock(0.1)
    assert [clock.seconds(step) for step in (3, 7)] == [3 * 0.1, 7 * 0.1]
    assert clock.continued(replace(clock).state_dict(), 7, reseed=False) == clock


class DividedData(NamedData):
    """Batches of 3 cuts or more; more processes than that need others."""

    def __init__(self, processes: int) -> None:
        super().__init__()
        self.divide(processes, processes)

    def divide(self, shares: int, planned_for: int) -> None:
        self.shares, self.planned_for = shares, planned_for

    def division(self) -> dict[str, int]:
        return {"shares": self.shares, "planned_for": self.planned_for}

    def batching(self, epoch: int) -> str:
        return f"at least {max(3, self.planned_for)} cuts"

    def smallest_batch(self, epoch: int) -> int:
        return max(3, self.planned_for)


@pytest.mark.parametrize(
    "saved, processes, division, said",
    [
        ((4, 4), 4, (4, 4), ""),
        ((4, 4), 2, (4, 4), "the same 4 shares of each batch, 2 in turn by each process, so the same losses"),
        ((4, 4), 3, (4, 4), "the same 4 shares of each batch, 1 or 2 in turn by each"),
        ((1, 1), 3, (3, 1), "the same batches, but what each process measures by itself"),
        ((3, 1), 1, (3, 1), "the same 3 shares of each batch, 3 in turn"),
        ((1, 1), 4, None, "on 4 processes .* than on 1 .* Use 1 to 3 processes to go on exactly, or give"),
        ((5, 5), 6, None, "on 6 processes .* than on 5 .* Use 1 to 5 processes to go on exactly, or give"),
    ],
)
def test_another_number_of_processes(tmp_path, caplog, saved, processes, division, said):
    first = DividedData(saved[0])
    first.divide(*saved)
    state = {"data": data_state(first, 0, saved[0])}
    data = DividedData(processes)
    if division is None:
        with pytest.raises(ValueError, match=said):
            go_on_with_data(data, state, 0, processes, tmp_path)
        return
    with caplog.at_level("INFO"):
        go_on_with_data(data, state, 0, processes, tmp_path)
    assert data.division() == {"shares": division[0], "planned_for": division[1]}
    assert said in caplog.text and bool(said) == bool(caplog.text)


def test_a_checkpoint_of_before_there_were_shares_has_one_for_each_process(tmp_path):
    state = {"data": data_state(DividedData(4), 0, 4)}
    del state["data"]["division"]
    data = DividedData(2)
    go_on_with_data(data, state, 0, 2, tmp_path)
    assert data.division() == {"shares": 4, "planned_for": 4}
