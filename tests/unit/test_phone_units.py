"""The study of what units say about phones: its numbers by hand, and a run on a made-up corpus."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from spear_lib.encoders import save_encoder
from spear_lib.encoders.spidr import SpidrConfig, SpidrEncoder

TOOL = Path(__file__).parents[2] / "tools" / "studies" / "phone_units.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("phone_units", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_scores_by_hand(tool):
    phones = np.array([0, 0, 1, 1, 2, 2])
    same = tool.phone_scores(phones, np.array([5, 5, 3, 3, 1, 1]))
    assert same["pnmi"] == pytest.approx(1.0) and same["phone_purity"] == same["cluster_purity"] == 1.0
    assert same["perplexity"] == pytest.approx(3.0) and same["active"] == 3
    nothing = tool.phone_scores(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]))
    assert nothing["pnmi"] == pytest.approx(0.0, abs=1e-12) and nothing["phone_purity"] == 0.5
    # One unit for two of three equally frequent phones: I = H(phone) - 2/3 ln 2.
    merged = tool.phone_scores(phones, np.array([0, 0, 0, 0, 1, 1]))
    assert merged["pnmi"] == pytest.approx(1 - (2 / 3) * np.log(2) / np.log(3))
    assert merged["phone_purity"] == pytest.approx(4 / 6) and merged["cluster_purity"] == 1.0


def test_a_run_on_a_made_up_corpus(tool, tmp_path, monkeypatch, capsys):
    random = np.random.default_rng(0)
    (tmp_path / "audio").mkdir()
    utterances, phones = ["utt\tpath"], ["utt\tstart_sample\tend_sample\tphone"]
    for number in range(3):
        path = f"audio/u{number}.wav"
        soundfile.write(tmp_path / path, 0.1 * random.standard_normal(16000), 16000)
        utterances.append(f"u{number}\t{path}")
        phones += [f"u{number}\t{a}\t{a + 4000}\t{p}" for a, p in ((0, "a"), (4000, "b"), (8000, "a"))]
    (tmp_path / "utterances.tsv").write_text("\n".join(utterances) + "\n")
    (tmp_path / "phones.tsv").write_text("\n".join(phones) + "\n")
    torch.manual_seed(0)
    save_encoder(SpidrEncoder(SpidrConfig.mini(num_layers=3)), tmp_path / "encoder", {})
    output = tmp_path / "units.json"
    arguments = ["--encoder", str(tmp_path / "encoder"), "--phones", str(tmp_path), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["phone_units.py", *arguments])
    tool.main()
    result = json.loads(output.read_text())
    assert {"log-mel, k-means", "trained, codebook of layer 2", "random weights, k-means of layer 3"} <= set(
        result
    )
    assert all(0 <= scores["pnmi"] <= 1 for scores in result.values())
    monkeypatch.setattr(
        sys, "argv", ["phone_units.py", *arguments[:3], str(tmp_path / "nowhere"), *arguments[4:]]
    )
    with pytest.raises(SystemExit, match="there is no .*utterances.tsv"):
        tool.main()
