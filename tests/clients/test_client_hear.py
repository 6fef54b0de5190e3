"""hearvalidator itself, with TensorFlow replaced by the two names that it asks for."""

import importlib.util
import sys
from types import ModuleType

import pytest
import torch

if importlib.util.find_spec("hearvalidator") is None:
    pytest.skip("hearvalidator is not installed: tools/clients.sh hear runs this", allow_module_level=True)

from client_fixtures import write_encoder


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("layers", ["output", "concat"])
def test_the_validator(tmp_path, monkeypatch, recwarn, factor, layers):
    tensorflow = ModuleType("tensorflow")
    tensorflow.Module = type("Module", (), {})
    tensorflow.Tensor = type("Tensor", (), {})
    monkeypatch.setitem(sys.modules, "tensorflow", tensorflow)
    from hearvalidator.validate import ValidateModel

    from spear_lib.interfaces import hear

    if layers == "concat":
        monkeypatch.setattr(hear, "load_model", lambda path, load=hear.load_model: load(path, layers=layers))
    torch.manual_seed(0)
    folder = write_encoder(tmp_path, factor)
    ValidateModel("spear_lib.interfaces.hear", str(folder), device="cpu")()
    told = [str(warning.message) for warning in recwarn if "hearvalidator" in str(warning.filename)]
    # What it tells everyone: its sounds are too short to see times drift.
    assert not [text for text in told if "IMPORTANT: A common bug" not in text]
