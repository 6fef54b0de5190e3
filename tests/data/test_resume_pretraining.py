"""The pretrain command on a tiny corpus: repeatable, killed with -9 and rerun, interrupted, refused."""

import json
import re
import signal
import subprocess
import time

import pytest
from pretraining_fixtures import FIELD, command, environment, make_corpus, run, write_config

from spear_lib.runtime.metrics_log import read_metrics


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    train, valid = make_corpus(folder, 14), make_corpus(folder, 4, "dev")
    return folder, write_config(folder, train, valid, max_steps=8)


@pytest.fixture(scope="module")
def unbroken(corpus):
    folder, config = corpus
    return folder / "unbroken", run(command(config, folder / "unbroken"))


def reported(experiment_dir):
    """(kind, step) -> what must repeat exactly: everything but times."""
    lines = read_metrics(experiment_dir / "metrics.jsonl")
    timing = {"seconds", "audio_seconds_per_second"}
    values = {
        (line["kind"], line["step"]): {name: line[name] for name in line.keys() - timing} for line in lines
    }
    assert len(values) == len(lines), "a line was written twice"
    return values


def test_first_screen_and_log(unbroken):
    experiment_dir, log = unbroken
    assert "guessing costs ln 6 = 1.792 nats" in log and re.search(r"batch +8 s of audio", log)
    assert "(chance 1.792, unigram 1." in log
    assert "Pre-training" in (experiment_dir / "log.txt").read_text()
    last = [line for line in read_metrics(experiment_dir / "metrics.jsonl") if line["kind"] == "valid/dev"][
        -1
    ]
    assert {"masked_loss", "unmasked_loss", "masked_accuracy", "unigram_entropy"} <= last.keys()
    assert last["frames_without_target"] == 0


def test_same_command_twice(corpus, unbroken):
    folder, config = corpus
    run(command(config, folder / "again"))
    assert reported(folder / "again") == reported(unbroken[0])


def test_killed_and_rerun_equals_unbroken(corpus, unbroken):
    folder, config = corpus
    experiment_dir = folder / "killed"
    with subprocess.Popen(
        command(config, experiment_dir), env=environment(), stderr=subprocess.DEVNULL
    ) as process:
        metrics = experiment_dir / "metrics.jsonl"
        end = time.monotonic() + 120
        while time.monotonic() < end and process.poll() is None:
            if metrics.exists() and metrics.read_text().count("\n") >= 5:
                break
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    log = run(command(config, experiment_dir))
    assert "going on from" in log
    assert reported(experiment_dir) == reported(unbroken[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signal_saves_and_exits_with_75(corpus, unbroken, number):
    folder, config = corpus
    experiment_dir = folder / f"interrupted-{number.name}"
    arguments = command(config, experiment_dir, "--training.save_interval", "1000")
    with subprocess.Popen(arguments, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if " step 2/8" in line:
                process.send_signal(number)
                break
        rest = process.stderr.read()
    assert process.returncode == 75 and f"{number.name}: saved step" in rest
    run(command(config, experiment_dir))
    assert reported(experiment_dir) == reported(unbroken[0])


def test_changed_manifest_is_refused_and_reseed_goes_on(corpus):
    folder, config = corpus
    experiment_dir = folder / "changed"
    cuts = make_corpus(folder, 14, "growing")
    options = ("--data.train_cuts", f"[{cuts}]")
    run(command(config, experiment_dir, *options, "--training.max_steps", "3"))
    make_corpus(folder, 18, "growing")  # the same path, more cuts
    log = run(command(config, experiment_dir, *options), expected_status=1)
    assert "error: " in log and "was made on other data" in log and "--training.resume reseed" in log
    log = run(command(config, experiment_dir, *options, "--training.resume", "reseed"))
    assert "resume reseed: weights, optimiser and schedules go on" in log
    lines = reported(experiment_dir)
    assert lines["train", 4]["epoch"] == lines["train", 3]["epoch"] + 1 and ("train", 8) in lines


def test_resume_with_other_options_is_refused(corpus, unbroken):
    folder, config = corpus
    log = run(command(config, unbroken[0], "--objective.alpha", "0.7"), expected_status=1)
    assert "error: " in log and "objective.alpha was 0.5 and is now 0.7" in log


def test_validation_tokens_of_another_quantiser_are_refused(corpus):
    folder, config = corpus
    other = make_corpus(folder, 3, "other", quantizer_id="tones-2")
    arguments = command(config, folder / "refused", "--valid_cuts", f"[{other}]")
    log = run(arguments, expected_status=1)
    assert "the tokens of validation set other are" in log and "tones-2" in log


def test_misspelt_option(corpus):
    folder, config = corpus
    log = run(command(config, folder / "typo", "--training.max_step", "3"), expected_status=2)
    assert "unknown option 'training.max_step'" in log and "'training.max_steps'" in log


def test_average_checkpoints_writes_an_encoder(corpus, unbroken):
    import torch

    from spear_lib.bin.average_checkpoints import AverageOptions, average
    from spear_lib.encoders import load_encoder

    folder, _ = corpus
    arguments = command(corpus[1], unbroken[0])[:2] + ["spear_lib.bin.average_checkpoints"]
    output = folder / "encoder"
    run([*arguments, "--experiment_dir", str(unbroken[0]), "--output", str(output), "--last", "1"])
    provenance = json.loads((output / "config.json").read_text())["provenance"]
    assert provenance["average"] == "mean over steps 7 to 8"
    assert provenance["quantizer_ids"] == {FIELD: "tones-1"}
    encoder = load_encoder(output)
    checkpoints = unbroken[0] / "checkpoints"
    assert sorted(path.name for path in checkpoints.glob("step-*")) == [
        f"step-{step:08d}.pt" for step in (3, 6, 8)
    ]
    # The range average is the mean of the snapshots of steps 7 and 8; that of step 8 alone is known.
    state, _, _ = average(AverageOptions(str(unbroken[0]), "", last=2, method="plain"))
    saved = [
        torch.load(checkpoints / f"step-{step:08d}.pt", weights_only=True)["model"]["encoder.mask_emb"]
        for step in (6, 8)
    ]
    torch.testing.assert_close(state["encoder.mask_emb"], (saved[0] + saved[1]) / 2)
    running = {
        step: torch.load(checkpoints / f"step-{step:08d}.pt", weights_only=True)["model_average"]["state"]
        for step in (6, 8)
    }
    expected = (8 * running[8]["encoder.mask_emb"] - 6 * running[6]["encoder.mask_emb"]) / 2
    torch.testing.assert_close(encoder.mask_emb.double(), expected, atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match="there is no checkpoint of step 5; the nearest before is 3"):
        average(AverageOptions(str(unbroken[0]), "", step=5))
