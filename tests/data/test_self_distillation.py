"""The command self_distill on a tiny corpus: repeatable, killed, two processes, what a checkpoint holds."""

import shutil
import signal
import subprocess
import time

import pytest
import torch
import yaml
from pretraining_fixtures import environment, make_corpus, run
from self_distillation_fixtures import command, reported, state, write_config

from spear_lib import load_encoder
from spear_lib.bin import average_checkpoints, self_distill
from spear_lib.config import load
from spear_lib.encoders.kinds import build_encoder
from spear_lib.self_distillation.options import SelfDistillOptions
from spear_lib.self_distillation.published import published_state
from spear_lib.self_distillation.task import SelfDistillationModel


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    return folder, make_corpus(folder, 14), make_corpus(folder, 4, "dev")


@pytest.fixture(scope="module")
def config(corpus):
    return write_config(*corpus)


@pytest.fixture(scope="module")
def unbroken(corpus, config):
    folder = corpus[0] / "unbroken"
    return folder, run(command(config, folder))


def train(config, folder, *more):
    self_distill.main(["--config", str(config), "--experiment_dir", str(folder), *more])


def same_tensors(one, two):
    assert one.keys() == two.keys()
    different = [name for name in one if not torch.equal(one[name], two[name])]
    assert not different, different[:5]


def test_first_screen_and_log(unbroken):
    folder, log = unbroken
    assert "2 of 8 codes (layer_02, layer_03); guessing costs ln 8 = 2.079 nats" in log
    assert "teacher" in log and "spans of 200 ms" in log and "codes active" in log
    values = reported(folder)
    assert {("train", step) for step in range(1, 9)} <= values.keys()
    last = (
        values["valid/tiny_cuts_dev", 8] if ("valid/tiny_cuts_dev", 8) in values else values["valid/dev", 8]
    )
    names = {"loss", "loss_layer_02", "target_perplexity", "prediction_perplexity_layer_03", "dead_codes"}
    assert names <= last.keys() and last["chance"] == pytest.approx(2.0794, abs=1e-4)
    assert 0.3 < last["masked_share"] < 0.8


def test_what_stopped_training_stood_still_and_the_rest_went_on(unbroken):
    steps = {step: state(unbroken[0], f"step-{step:08d}.pt")["model"] for step in (2, 4, 8)}
    for name in steps[4]:
        moved = not torch.equal(steps[4][name], steps[8][name])
        if name.startswith(("encoder.feature_", "encoder.student.layers.2.final_layer_norm")):
            assert not moved, name
        elif name.startswith(("encoder.student", "encoder.heads", "encoder.mask")):
            assert moved, name
    extractor = "encoder.feature_extractor.conv_layers.0.conv.weight"
    assert not torch.equal(steps[2][extractor], steps[4][extractor])


def test_a_checkpoint_holds_teacher_and_codebooks_and_the_average_does_not(unbroken, tmp_path):
    last = state(unbroken[0])
    assert {"teacher.layers.0.attention.qkv.weight", "codebooks.1.counts"} <= last["model"].keys()
    averaged = {name.split(".")[0] for name in last["model_average"]["state"]}
    assert averaged == {"encoder"}
    for method in ("range", "none"):
        average_checkpoints.main(
            ["--experiment_dir", str(unbroken[0]), "--output", str(tmp_path / method), "--method", method]
        )
        encoder = load_encoder(tmp_path / method)
        assert encoder.encoder_type == "spidr" and not hasattr(encoder, "teacher")
    trained = last["model"]["encoder.heads.1.0.weight"]
    assert torch.equal(encoder.heads[1][0].weight, trained)
    assert load_encoder(unbroken[0] / "checkpoints" / "last.pt").config == encoder.config


@pytest.mark.parametrize("step", [1, 4, 5, 6])
def test_resumed_at_any_step_equals_unbroken(unbroken, config, corpus, step):
    """Step 4 is the last in which the extractor trains: the reference cannot resume there."""
    folder = corpus[0] / f"resumed-{step}"
    train(config, folder, "--training.max_steps", str(step))
    train(config, folder)
    expected = reported(unbroken[0])
    for key, values in reported(folder).items():
        if key[0] == "train":
            assert values == expected[key], key
    same_tensors(state(folder)["model"], state(unbroken[0])["model"])
    shutil.rmtree(folder)


def test_killed_and_rerun_equals_unbroken(unbroken, config, corpus):
    folder = corpus[0] / "killed"
    with subprocess.Popen(command(config, folder), env=environment(), stderr=subprocess.DEVNULL) as process:
        metrics, end = folder / "metrics.jsonl", time.monotonic() + 120
        while time.monotonic() < end and process.poll() is None:
            if metrics.exists() and metrics.read_text().count("\n") >= 5:
                break
            time.sleep(0.002)
        process.kill()
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    assert "going on from" in run(command(config, folder))
    assert reported(folder) == reported(unbroken[0])
    same_tensors(state(folder)["model"], state(unbroken[0])["model"])


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("plain", {"training": {"accumulate_batches": 2, "max_steps": 6}}),
        ("start", {"objective": {"codebook_start": "data", "revive_after": 2}, "training": {"max_steps": 6}}),
    ],
)
def test_two_processes_have_the_codebooks_of_one(corpus, name, changes):
    config = write_config(*corpus, name=f"ranks-{name}", **changes)
    states, values = [], []
    for processes in (1, 2):
        folder = corpus[0] / f"ranks-{name}-{processes}"
        run(command(config, folder, processes=processes))
        states.append(state(folder)["model"])
        values.append(reported(folder))
    for key, one in values[0].items():
        assert values[1][key]["loss"] == pytest.approx(one["loss"], rel=2e-5), key
    for key in states[0]:
        assert torch.allclose(states[0][key].double(), states[1][key].double(), rtol=2e-4, atol=2e-4), key
        if key.endswith("counts"):
            assert torch.allclose(states[0][key], states[1][key], rtol=1e-5)


def test_dinosr_trains(corpus):
    changes = {"spidr": {"heads_on": "output", "layerdrop": 0.05}, "training": {"max_steps": 3}}
    changes["objective"] = {"teacher": {"schedule": "linear", "ramp_steps": 5}}
    folder = corpus[0] / "dinosr"
    train(write_config(*corpus, name="dinosr", **changes), folder)
    norm = state(folder)["model"]["encoder.student.layers.2.final_layer_norm.weight"]
    assert (norm != 1.0).any(), "the heads read what is behind it"
    assert load_encoder(folder / "checkpoints" / "last.pt").config.heads_on == "output"


def test_the_memory_scan_leaves_nothing(corpus, config, unbroken):
    folder = corpus[0] / "scanned"
    train(config, folder, "--training.memory_scan", "always", "--training.max_steps", "4")
    wanted = state(unbroken[0], "step-00000004.pt")["model"]
    same_tensors(state(folder)["model"], wanted)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--encoder_type", "transformer", "use spidr or zipformer"),
        ("--objective.codebook_size", "16", "set both to the same number"),
        ("--objective.stacks", "[1]", "is for a Zipformer"),
        ("--data.mixing.enabled", "true", "mixes nothing in"),
        ("--data.min_duration", "0.01", "gives the encoder no frame"),
        ("--training.finish", "[encoder.extractor]", "finish names 'encoder.extractor'"),
        ("--training.optimizer", "scaled_adam", "finish needs optimizer adamw"),
        ("--start", "nowhere.pt", "nowhere.pt"),
    ],
)
def test_wrong_options_are_refused_in_one_line(corpus, config, capfd, option, value, message):
    with pytest.raises((SystemExit, ValueError, RuntimeError, OSError)) as raised:
        train(config, corpus[0] / "refused", option, value)
    text = capfd.readouterr().err if isinstance(raised.value, SystemExit) else str(raised.value)
    assert message in text
    assert not (corpus[0] / "refused" / "checkpoints").exists()


def test_other_codes_are_refused_on_resume(corpus, config, unbroken):
    with pytest.raises(ValueError, match="objective.codebook_decay was 0.9 and is now 0.5"):
        train(config, unbroken[0], "--objective.codebook_decay", "0.5", "--training.max_steps", "9")


def test_starting_from_a_published_checkpoint(corpus, unbroken, tmp_path):
    """Student, teacher and codebooks go on; without steps they are those of the file."""
    config = write_config(*corpus, name="started")
    options = load(SelfDistillOptions, {**yaml.safe_load(config.read_text()), "experiment_dir": "x"})
    model = SelfDistillationModel(build_encoder(options.spidr), options.objective)
    model.load_state_dict(state(unbroken[0])["model"])
    published = published_state(model, 8)
    torch.save({"model": published}, tmp_path / "spidr.pt")
    folder, path = corpus[0] / "started", str(tmp_path / "spidr.pt")
    still = ("--training.learning_rate", "1e-30", "--training.adamw.weight_decay", "0")
    train(config, folder, "--start", path, "--training.max_steps", "1", *still)
    after = state(folder)["model"]
    for name in ("encoder.heads.0.0.weight", "encoder.student.layers.1.attention.qkv.weight"):
        assert torch.allclose(after[name], published[name.removeprefix("encoder.")])
    moved = after["codebooks.0.codebook"] - published["codebooks.0.codebook"]
    assert 0 < moved.norm() < published["codebooks.0.codebook"].norm()
    with pytest.raises(SystemExit):
        train(config, folder, "--start", path, "--objective.codebook_start", "data")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_transformers_train_as_the_plain_ones(unbroken, config, corpus):
    from torch._dynamo.utils import counters

    folder = corpus[0] / "compiled"
    counters.clear()
    train(config, folder, "--compile", "true")
    assert "blocks by torch.compile" in (folder / "log.txt").read_text()
    # Of the student in training and in validation, and of the teacher: of many lengths, one each.
    assert counters["stats"]["unique_graphs"] == 3
    expected, found = reported(unbroken[0]), reported(folder)
    assert found.keys() == expected.keys()
    for key, values in found.items():
        for name in ("loss", "loss_layer_03", "target_perplexity"):
            assert values.get(name) == pytest.approx(expected[key].get(name), rel=1e-4), (key, name)
    # The saved names are those of the plain modules: the run goes on without torch.compile.
    train(config, folder, "--training.max_steps", "9")
    assert load_encoder(folder / "checkpoints" / "last.pt").encoder_type == "spidr"
