"""The file of results, and which encoders a command measures."""

import json

import pytest
from phone_corpus import write_encoder
from teacher_fixtures import tiny_checkpoint

from spear_lib.evaluation.measured import MeasureOptions, Results, finite, mean_and_deviation


def options(*encoders: str, **more) -> MeasureOptions:
    return MeasureOptions(encoders=list(encoders), output_dir="x", **more)


def test_baselines_stand_beside_the_first_encoder_of_ours(tmp_path):
    ours, peer = (
        str(write_encoder(tmp_path / "ours")),
        str(tiny_checkpoint(tmp_path / "peer", "hubert", "base")),
    )
    named = options(f"peer={peer}", f"ours={ours}").named()
    assert named == {"peer": peer, "ours": ours, "random weights": f"random:{ours}", "log-mel": "log-mel"}
    assert list(options(ours, baselines=False).named()) == [ours]
    assert list(options(peer).named()) == [peer, "log-mel"]
    assert list(options("log-mel", f"random:{ours}").named()) == ["log-mel", f"random:{ours}"]
    with pytest.raises(ValueError, match="'a' twice"):
        options("a=x", "a=y").named()
    with pytest.raises(ValueError, match="encoders is empty"):
        options()


def test_encoders_are_loaded_with_their_layers(tmp_path):
    ours, peer = (
        str(write_encoder(tmp_path / "ours")),
        str(tiny_checkpoint(tmp_path / "peer", "wavlm", "large")),
    )
    loaded = dict(options(f"ours={ours}", f"peer={peer}", device="cpu").load("concat"))
    assert {name: encoder.output_dim for name, encoder in loaded.items()} == {
        "ours": 160,
        "peer": 128,
        "random weights": 160,
        "log-mel": 128,
    }
    assert len({encoder.identity() for encoder in loaded.values()}) == 4


def test_two_commands_write_to_one_file(tmp_path):
    one, two = (Results(tmp_path, "hear", f"command {number}") for number in (1, 2))
    one.measure("a", "t1", {"x": 1}, lambda: {"mean": 1.0})
    two.measure("a", "t2", {"x": 1}, lambda: {"mean": float("nan")})
    content = json.loads((tmp_path / "results.json").read_text())
    assert set(content["results"]["a"]) == {"t1", "t2"} and content["command"] == "command 2"
    assert content["results"]["a"]["t2"]["mean"] is None
    fresh = Results(tmp_path, "hear", "command 3")
    assert fresh.measure("a", "t1", {"x": 1}, lambda: pytest.fail("measured again"))["mean"] == 1.0
    assert fresh.measure("a", "t1", {"x": 2}, lambda: {"mean": 3.0})["mean"] == 3.0


def test_numbers():
    assert finite({"a": [1.0, float("inf")], "b": "x"}) == {"a": [1.0, None], "b": "x"}
    assert mean_and_deviation([1.0, 3.0]) == {"mean": 2.0, "std": 1.0, "values": [1.0, 3.0]}
    assert mean_and_deviation([2.0])["std"] == 0.0
