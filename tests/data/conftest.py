"""What several test files of this folder share and is too dear to make twice."""

from pathlib import Path

import pytest
import yaml
from asr_fixtures import TINY_ENCODER, make_cuts
from token_fixtures import cut_of, make_store

from spear_lib.bin import finetune_asr
from spear_lib.tokens.fields import attach_tokens


@pytest.fixture(scope="session")
def trained_toy(tmp_path_factory) -> dict[str, Path]:
    """A small model that has learnt the toy corpus (without errors, nearly): "experiment", its folder of
    fine-tuning, "cuts", sentences that it has not seen of a speaker that it knows, and "folder", their audio.
    """
    folder = tmp_path_factory.mktemp("trained_toy")
    train, cuts = make_cuts(folder, "train", 64, [0, 1, 2]), make_cuts(folder / "audio", "dev", 12, [2])
    quiet = {"balancer": False, "whiten": False, "stochastic": False, "limit_gradients": False}
    wide = {"encoder_dim": [64], "encoder_unmasked_dim": [64], "feedforward_dim": [96]}
    config = {
        "scratch": True,
        "experiment_dir": str(folder / "experiment"),
        "units": "characters",
        "dev_cuts": [str(cuts)],
        "encoder_config": {**TINY_ENCODER, **wide, **quiet},
        "valid_wer": False,
        "data": {
            "train_cuts": [str(train)],
            "batch_seconds": 4.0,
            "num_workers": 0,
            "speed": {"enabled": False},
            "mixing": {"enabled": False},
            "spec_augment": {"enabled": False},
        },
        "model": {"decoder_dim": 32, "joiner_dim": 64, "warm_step": 20, "ctc_loss_scale": 1.0},
        "training": {
            "max_steps": 140,
            "average_period": 0,
            "save_interval": 1000,
            "valid_interval": 1000,
            "log_interval": 50,
            "warmup_batches": 10.0,
            "device": "cpu",
            "learning_rate": 0.1,
            "lr_batches": 500,
        },
    }
    path = folder / "finetune.yaml"
    path.write_text(yaml.safe_dump(config))
    finetune_asr.main(["--config", str(path)])
    return {"experiment": folder / "experiment", "cuts": cuts, "folder": folder / "audio"}


@pytest.fixture
def store(tmp_path):
    """Folder of a token store, its three cuts with the tokens attached, and the codes of each by name."""
    cuts = [cut_of("a", 1.0), cut_of("b", 0.5), cut_of("c", 2.0, start=1.0, recording_duration=4.0)]
    codes = make_store(tmp_path / "store", cuts)
    return tmp_path / "store", list(attach_tokens(cuts, tmp_path / "store")), codes
