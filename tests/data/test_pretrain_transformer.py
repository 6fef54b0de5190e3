"""The pretrain command with the Transformer encoder: it runs, resumes, averages and loads; bad options."""

from pathlib import Path

import pytest
import torch
import yaml
from pretraining_fixtures import make_corpus, write_config

from spear_lib import load_encoder
from spear_lib.bin import average_checkpoints, pretrain
from spear_lib.config import load, parse
from spear_lib.encoders.transformer import TransformerConfig, TransformerEncoder
from spear_lib.pretraining.options import PretrainOptions
from spear_lib.runtime.metrics_log import read_metrics


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transformer")
    path = write_config(folder, make_corpus(folder, 10), make_corpus(folder, 3, "dev"), max_steps=4)
    options = yaml.safe_load(path.read_text())
    del options["encoder"]
    options["encoder_type"] = "transformer"
    options["transformer"] = {
        "conv_channels": 8,
        "hidden_dim": 24,
        "num_layers": 2,
        "num_heads": 2,
        "feedforward_dim": 32,
        "position_kernel": 8,
        "position_groups": 2,
    }
    options["data"]["masking"] = {"channel_probability": 0.0}
    path.write_text(yaml.safe_dump(options))
    return path


def _call(main, *arguments: str) -> None:
    main(list(arguments))


def test_pretraining_resumes_and_gives_an_encoder(config):
    unbroken, broken = config.parent / "unbroken", config.parent / "broken"
    options = ["--config", str(config), "--experiment_dir"]
    _call(pretrain.main, *options, str(unbroken))
    _call(pretrain.main, *options, str(broken), "--training.max_steps", "3")
    _call(pretrain.main, *options, str(broken))

    def losses(folder):
        lines = read_metrics(folder / "metrics.jsonl")
        return {line["step"]: line["masked_loss"] for line in lines if line["kind"] == "train"}

    assert losses(broken) == losses(unbroken) and len(losses(unbroken)) == 4
    folders = ["--experiment_dir", str(unbroken), "--output", str(config.parent / "encoder")]
    _call(average_checkpoints.main, *folders, "--last", "0")
    encoder = load_encoder(config.parent / "encoder")
    assert isinstance(encoder, TransformerEncoder) and encoder.config.num_layers == 2
    assert load_encoder(unbroken / "checkpoints" / "last.pt").config == encoder.config
    with torch.no_grad():
        output = encoder.extract(torch.randn(1, 8000), torch.tensor([8000]))
    assert output.encoder_out.shape == (1, encoder.output_length(8000), 24)


def test_base_configuration_with_a_transformer_needs_two_options():
    """The ablation of paper F.3: the same recipe, the other encoder."""
    path = Path(__file__).parents[2] / "egs" / "librispeech" / "conf" / "pretrain" / "base.yaml"
    arguments = ["--config", str(path), "--experiment_dir", "a", "--encoder_type", "transformer"]
    options = parse(PretrainOptions, [*arguments, "--data.masking.channel_probability", "0"])
    assert options.transformer == TransformerConfig.base() and options.training.max_steps == 400_000


def test_options_that_do_not_fit_are_refused(config):
    values = {**yaml.safe_load(config.read_text()), "experiment_dir": "a"}
    with pytest.raises(ValueError, match="set data.masking.channel_probability to 0"):
        load(PretrainOptions, {**values, "data": {"masking": {"channel_probability": 0.25}}})
    with pytest.raises(ValueError, match="encoder_type is 'wavlm'; use zipformer or transformer"):
        load(PretrainOptions, {**values, "encoder_type": "wavlm"})
