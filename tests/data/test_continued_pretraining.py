"""pretrain --init_encoder: its weights, final schedules, other data; resuming; what does not fit."""

import pytest
import torch
import yaml
from pretraining_fixtures import make_corpus, write_config

from spear_lib.bin import average_checkpoints, pretrain
from spear_lib.config import load
from spear_lib.encoders import encoder_id, load_encoder, save_encoder
from spear_lib.encoders.transformer import TransformerConfig
from spear_lib.pretraining.initial import continued_config
from spear_lib.pretraining.options import PretrainOptions
from spear_lib.runtime.metrics_log import read_metrics


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A configuration, and beside it the encoder of a short run."""
    folder = tmp_path_factory.mktemp("continued")
    path = write_config(folder, make_corpus(folder, 10), make_corpus(folder, 3, "dev"), max_steps=3)
    pretrain.main(["--config", str(path), "--experiment_dir", str(folder / "first")])
    average_checkpoints.main(
        ["--experiment_dir", str(folder / "first"), "--output", str(folder / "encoder"), "--last", "0"]
    )
    return path


def run(config, name, *more, encoder="encoder"):
    folder = config.parent / name
    given = ["--config", str(config), "--experiment_dir", str(folder)]
    pretrain.main([*given, "--init_encoder", str(config.parent / encoder), *more])
    return folder


def losses(folder):
    lines = read_metrics(folder / "metrics.jsonl")
    return {line["step"]: line["masked_loss"] for line in lines if line["kind"] == "train"}


def test_it_starts_from_the_weights(config, capsys):
    start = load_encoder(config.parent / "encoder")
    folder = run(config, "still", "--training.learning_rate", "1e-12", "--training.max_steps", "1")
    found = load_encoder(folder / "checkpoints" / "last.pt")
    for name, value in start.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, atol=1e-6, rtol=1e-6)
    log = (folder / "log.txt").read_text()
    assert f"encoder ({encoder_id(start)}); new prediction heads" in log
    assert "learning rate 1e-12 at its peak after 4 steps" in log and "at batch 100000" in log
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["training"]["schedule_offset_batches"] == 100_000.0


def test_a_run_from_random_weights_says_so(config):
    log = (config.parent / "first" / "log.txt").read_text()
    assert "starts from" in log and "random weights" in log
    saved = yaml.safe_load((config.parent / "first" / "config.yaml").read_text())
    assert saved["training"]["schedule_offset_batches"] == 0.0 and saved["init_encoder"] == ""


def test_resuming_is_the_unbroken_run(config):
    unbroken = run(config, "unbroken", "--training.max_steps", "5")
    broken = run(config, "broken", "--training.max_steps", "3")
    # The encoder is read at the first step only: another one of its shape changes nothing.
    torch.manual_seed(7)
    other = load_encoder(load_encoder(config.parent / "encoder").config)
    save_encoder(other, config.parent / "other", {})
    run(config, "broken", "--training.max_steps", "5", encoder="other")
    assert losses(broken) == losses(unbroken) and len(losses(unbroken)) == 5
    with pytest.raises(ValueError, match=r"schedule_offset_batches was 100000\.0 and is now 0\.0"):
        pretrain.main(["--config", str(config), "--experiment_dir", str(broken)])


def test_a_clock_that_is_asked_for_is_kept(config):
    folder = run(config, "clock", "--training.max_steps", "1", "--training.schedule_offset_batches", "1")
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["training"]["schedule_offset_batches"] == 1.0


def test_shape_of_the_encoder_and_training_of_the_options(config):
    own = load_encoder(config.parent / "encoder").config
    options = load(
        PretrainOptions,
        {
            "experiment_dir": "x",
            "init_encoder": str(config.parent / "encoder"),
            "encoder": {"stochastic": False, "checkpoint_activations": [True]},
        },
    )
    assert options.encoder_config.encoder_dim == own.encoder_dim == (24,)
    assert options.encoder_config.stochastic is False
    assert options.encoder_config.checkpoint_activations == (True,)
    assert options.encoder_config.balancer is True and own.balancer is False


def test_what_does_not_fit_is_refused(config, tmp_path):
    with pytest.raises(ValueError, match=r"encoder_dim is \(32,\), but init_encoder .* has \(24,\)"):
        run(config, "wide", "--encoder.encoder_dim", "[32]")
    with pytest.raises(ValueError, match=r"is a zipformer, but encoder_type is transformer"):
        run(
            config,
            "kind",
            *("--encoder_type", "transformer", "--data.masking.channel_probability", "0"),
        )
    with pytest.raises(FileNotFoundError, match="no encoder at"):
        run(config, "missing", encoder="nothing")
    base, wide = TransformerConfig.mini(), TransformerConfig.mini(num_layers=6)
    with pytest.raises(ValueError, match="num_layers is 6"):
        continued_config(wide, base, "there")
    assert continued_config(TransformerConfig(dropout=0.0), base, "there").dropout == 0.0
