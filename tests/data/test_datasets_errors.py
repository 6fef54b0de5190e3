"""Bad input: what stops at the start, what is skipped and counted, and workers that fail, die or hang."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dataset_fixtures import FIELD, QUANTIZER_ID, make_cuts, with_tokens

from spear_lib.asr.data import AsrData, AsrDataConfig, SpeedConfig
from spear_lib.data.loading import load_ahead
from spear_lib.data.manifests import save_cuts
from spear_lib.data.mixing import MixingConfig
from spear_lib.pretraining.data import PretrainingData, PretrainingDataConfig


@pytest.fixture
def cuts(tmp_path):
    return with_tokens(make_cuts(tmp_path / "wav", 12), tmp_path / "tokens")


def data_of(cuts, tmp_path, **options) -> PretrainingData:
    path = tmp_path / "cuts.jsonl.gz"
    save_cuts(cuts, path)
    defaults = {"train_cuts": [str(path)], "token_fields": [FIELD], "batch_seconds": 10.0, "num_workers": 0}
    return PretrainingData(
        PretrainingDataConfig(**{**defaults, "mixing": MixingConfig(enabled=False), **options})
    )


def test_no_manifest():
    with pytest.raises(ValueError, match="set train_cuts to one or more"):
        PretrainingData(PretrainingDataConfig(token_fields=[FIELD]))


def test_missing_manifest(tmp_path):
    with pytest.raises(ValueError, match="nowhere.jsonl.gz does not exist"):
        AsrData(AsrDataConfig(train_cuts=[str(tmp_path / "nowhere.jsonl.gz")]))


def test_no_token_field(cuts, tmp_path):
    with pytest.raises(ValueError, match="token_fields is empty"):
        data_of(cuts, tmp_path, token_fields=[])


def test_cut_without_tokens_stops_at_the_start(cuts, tmp_path):
    del cuts[7].custom[FIELD]
    with pytest.raises(ValueError, match=f"cut cut07 has no tokens '{FIELD}'"):
        data_of(cuts, tmp_path)


def test_tokens_of_another_quantiser_stop_at_the_start(cuts, tmp_path):
    data_of(cuts, tmp_path, quantizer_ids=[QUANTIZER_ID])
    with pytest.raises(
        ValueError, match=f"cut00 were made by quantiser {QUANTIZER_ID}, expected quantiser-b"
    ):
        data_of(cuts, tmp_path, quantizer_ids=["quantiser-b"])
    cuts[5].custom[f"{FIELD}_quantizer_id"] = "quantiser-b"
    with pytest.raises(
        ValueError, match=f"cut05 were made by quantiser quantiser-b, expected {QUANTIZER_ID}"
    ):
        data_of(cuts, tmp_path)
    with pytest.raises(ValueError, match="quantizer_ids has 2 entries for 1 token_fields"):
        data_of(cuts, tmp_path, quantizer_ids=["a", "b"])


def test_unknown_mixed_field(cuts, tmp_path):
    with pytest.raises(ValueError, match="mixed_token_field is 'other', which is none of"):
        data_of(cuts, tmp_path, mixed_token_field="other")


def test_no_cut_in_the_range_of_durations(cuts, tmp_path):
    with pytest.raises(
        ValueError, match=r"none of 12 cuts lasts between 5.0 and 30.0 s \(they last 1\.\d\d to 2\.\d\d"
    ):
        data_of(cuts, tmp_path, min_duration=5.0)
    assert data_of(cuts, tmp_path, max_duration=2.0).num_cuts < 12


def test_cut_without_transcript(cuts, tmp_path):
    cuts[3].supervisions = []
    save_cuts(cuts, tmp_path / "cuts.jsonl.gz")
    with pytest.raises(ValueError, match="cut cut03 has no transcript"):
        AsrData(AsrDataConfig(train_cuts=[str(tmp_path / "cuts.jsonl.gz")]))


def test_fine_tuning_cannot_mix_tokens(cuts, tmp_path):
    save_cuts(cuts, tmp_path / "cuts.jsonl.gz")
    with pytest.raises(ValueError, match="fine-tuning has no tokens to mix"):
        AsrData(AsrDataConfig(train_cuts=[str(tmp_path / "cuts.jsonl.gz")], mixing=MixingConfig()))
    with pytest.raises(ValueError, match="speed.factors holds 3.0"):
        SpeedConfig(factors=[3.0])
    with pytest.raises(ValueError, match="speed.factors is empty"):
        SpeedConfig(factors=[])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_missing_audio_is_skipped_up_to_the_limit(cuts, tmp_path, num_workers, caplog):
    (tmp_path / "wav" / "cut04.wav").unlink()
    data = data_of(cuts, tmp_path, num_workers=num_workers, max_bad_fraction=0.1)
    for epoch in (0, 1):  # a bad cut counts once, however often it comes
        names = [name for batch in data.epoch_batches(epoch) for name in batch.ids]
        assert sorted(names) == sorted(cut.id for cut in cuts if cut.id != "cut04")
    assert list(data.problems) == ["cut04"]
    assert caplog.text.count("cut cut04 is skipped") == 1
    assert "cut04.wav" in data.problems["cut04"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_too_many_bad_cuts_stop_training_and_are_named(cuts, tmp_path, num_workers):
    (tmp_path / "wav" / "cut04.wav").write_bytes(b"not a wave file")
    data = data_of(cuts, tmp_path, num_workers=num_workers)
    with pytest.raises(
        RuntimeError, match=r"1 of 12 cuts cannot be used, more than the 0 .*max_bad_fraction = 0.001.*cut04"
    ):
        list(data.epoch_batches(0))


def test_missing_tokens_are_counted(cuts, tmp_path):
    shard = next((tmp_path / "tokens").glob("*/shard-00000.bin"))
    data = data_of(cuts, tmp_path, max_bad_fraction=1.0)
    shard.unlink()
    with pytest.raises(RuntimeError, match="every cut of batch .* is unusable"):
        list(data.epoch_batches(0))


def test_bad_partner_and_bad_noise_leave_the_sample_clean(cuts, tmp_path, caplog):
    noise = make_cuts(tmp_path / "noise", 1, prefix="noise")
    save_cuts(noise, tmp_path / "noise.jsonl.gz")
    (tmp_path / "noise" / "noise00.wav").unlink()
    data = data_of(
        cuts,
        tmp_path,
        noise_cuts=[str(tmp_path / "noise.jsonl.gz")],
        mixing=MixingConfig(noise_probability=1.0, token_probability=0.0),
    )
    batch = next(data.epoch_batches(0))
    assert set(batch.mixed) == {"none"}
    assert batch.statistics["mixing_skipped"] == (len(batch), len(batch))
    assert "noise cut noise00 is not mixed" in caplog.text


def raising(work):
    raise ValueError(f"batch {work[1]} is wrong")


def buggy(work):
    return {}[work[1]]


def dying(work):
    os.kill(os.getpid(), signal.SIGKILL)


def hanging(work):
    time.sleep(60)


WORKS = [(0, index, [0], [0]) for index in range(4)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_errors_of_a_worker_arrive_as_they_are(num_workers):
    with pytest.raises(ValueError, match=r"^batch 0 is wrong$"):
        list(load_ahead(raising, WORKS, num_workers))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_bugs_keep_their_traceback(num_workers):
    with pytest.raises(KeyError):
        list(load_ahead(buggy, WORKS, num_workers))


def test_a_killed_worker_is_an_error_and_no_wait():
    start = time.monotonic()
    with pytest.raises(
        RuntimeError, match="a data worker ended or got stuck.*lower num_workers or batch_seconds"
    ):
        list(load_ahead(dying, WORKS, 1))
    assert time.monotonic() - start < 50


def test_a_stuck_worker_is_an_error():
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="a data worker ended or got stuck"):
        list(load_ahead(hanging, WORKS, 1, timeout=1))
    assert time.monotonic() - start < 50


def test_workers_leave_signals_to_the_main_process(cuts, tmp_path):
    data = data_of(cuts, tmp_path, num_workers=1, prefetch_batches=1)
    batches = data.epoch_batches(0)
    names = list(next(batches).ids)
    children = _children()
    assert children
    for child in children:
        os.kill(child, signal.SIGTERM)
    names += [name for batch in batches for name in batch.ids]
    assert len(names) == 12


def test_an_abandoned_epoch_does_not_keep_the_program_from_ending(cuts, tmp_path):
    """A traceback or a global may hold an unfinished epoch when the interpreter exits."""
    save_cuts(cuts, tmp_path / "cuts.jsonl.gz")
    program = (
        "from spear_lib.asr.data import *\n"
        f"cuts = [{str(tmp_path / 'cuts.jsonl.gz')!r}]\n"
        "config = AsrDataConfig(train_cuts=cuts, batch_seconds=4.0, num_workers=2)\n"
        "batches = AsrData(config).epoch_batches(0)\n"
        "print(len(next(batches)))\n"
        "raise KeyboardInterrupt\n"
    )
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, timeout=300, check=False
    )
    assert int(run.stdout) > 0 and b"KeyboardInterrupt" in run.stderr


def _children() -> list[int]:
    with open(f"/proc/{os.getpid()}/task/{os.getpid()}/children") as file:
        return [int(number) for number in file.read().split()]


def test_tests_use_a_manifest_of_cuts(cuts, tmp_path):
    path = tmp_path / "recordings.jsonl"
    path.write_text(json.dumps({"id": "a", "sources": []}) + "\n")
    with pytest.raises(ValueError, match="is not a cut"):
        AsrData(AsrDataConfig(train_cuts=[str(path)]))
