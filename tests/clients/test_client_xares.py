"""xares itself: its checker, its nearest neighbours, and two encoders that never share cached features."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from spear_lib.interfaces import torchaudio_stand_in
from spear_lib.interfaces.xares_encoder import encoder_class

if importlib.util.find_spec("xares") is None:
    pytest.skip("xares is not installed: tools/clients.sh xares runs this", allow_module_level=True)
torchaudio_stand_in.install()

from client_fixtures import write_encoder  # noqa: E402


@pytest.mark.parametrize("factor", [1, 2])
def test_the_checker(tmp_path, factor):
    from xares.audio_encoder_checker import check_audio_encoder

    assert check_audio_encoder(encoder_class(write_encoder(tmp_path, factor))()) is True


def test_the_file_that_xares_is_given(tmp_path, monkeypatch):
    from xares.utils import attr_from_py_path

    folder = write_encoder(tmp_path / "encoder")
    path = tmp_path / "spear_encoder.py"
    path.write_text(
        "from spear_lib.interfaces.xares_encoder import encoder_class\n"
        f"SpearEncoder = encoder_class({str(folder)!r})\n"
    )
    monkeypatch.chdir(tmp_path)  # xares wants a path relative to where it runs
    monkeypatch.syspath_prepend(tmp_path)
    encoder = attr_from_py_path(path.name, endswith="Encoder")()
    assert encoder(torch.randn(1, 16000)).shape[:2] == (1, 50)


def test_two_encoders_have_two_folders_of_features(tmp_path):
    from xares.task import TaskConfig, XaresTask

    def folder_of(seed: int) -> Path:
        encoder = encoder_class(write_encoder(tmp_path / str(seed), seed=seed))()
        config = TaskConfig(
            name="t", encoder=encoder, private=True, env_root=str(tmp_path / "env"), output_dim=2
        )
        return Path(XaresTask(config=config).encoded_tar_dir)

    assert folder_of(0) != folder_of(1)


def test_our_neighbours_are_theirs():
    from xares.trainer import KNN

    golden = json.loads((Path(__file__).parents[1] / "golden" / "xares_knn.json").read_text(encoding="utf-8"))
    from spear_lib.evaluation.xares import knn_scores

    train, labels = torch.tensor(golden["train"]), torch.tensor(golden["train_labels"])
    test = torch.tensor(golden["test"])
    theirs = KNN(train, labels, nb_knn=10, T=0.07, num_classes=6)(test)
    theirs = next(iter(theirs.values())) if isinstance(theirs, dict) else theirs
    torch.testing.assert_close(knn_scores(train, labels, test, 6), theirs, atol=1e-5, rtol=0)
