"""The probe command on the toy corpus: results, choice of cuts, refusal of common speakers."""

import json

import pytest
import torch
from asr_fixtures import TINY_ENCODER, make_cuts

from spear_lib.bin import probe
from spear_lib.encoders import load_encoder, save_encoder
from spear_lib.evaluation.probe_cuts import read_cuts
from spear_lib.evaluation.probe_features import encoder_features


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe")
    torch.manual_seed(0)
    save_encoder(load_encoder(TINY_ENCODER), folder / "encoder", {})
    sets = {"train": (24, [0, 1]), "dev": (16, [2, 3]), "test": (16, [4, 5])}
    paths = {name: make_cuts(folder, name, count, speakers) for name, (count, speakers) in sets.items()}
    return {**paths, "encoder": folder / "encoder"}


def call(corpus, output, **changes) -> None:
    values = {f"{name}_cuts": f"[{corpus[name]}]" for name in ("train", "dev", "test")}
    values |= {"encoder": str(corpus["encoder"]), "output_dir": str(output), "min_word_count": "5"}
    values |= {"device": "cpu", **changes}
    arguments = [item for name, value in values.items() for item in (f"--{name}", value)]
    probe.main(arguments)


def test_probe_compares_three_kinds_of_features(corpus, tmp_path):
    call(corpus, tmp_path)
    result = json.loads((tmp_path / "probes.json").read_text())
    assert set(result["tasks"]) == {"words", "speaker"}
    for task in result["tasks"].values():
        assert list(task) == ["pre-trained", "random weights", "log-mel"]
        assert all(0 < value["mean"] <= 100 and len(value["values"]) == 3 for value in task.values())
    # Every word has tones of its own, so the spectrum tells the words.
    assert result["tasks"]["words"]["log-mel"]["mean"] > 65  # chance is 45
    assert result["num_cuts"] == [24, 16, 16]
    assert "2 speakers, new to the encoder" in result["description"]["speaker"]
    again = tmp_path / "again"
    call(corpus, again)
    assert json.loads((again / "probes.json").read_text())["tasks"] == result["tasks"]


def test_speakers_of_the_training_set_are_refused_in_the_test_set(corpus, tmp_path):
    with pytest.raises(ValueError, match="2 speakers of train_cuts .* 'speaker-0'"):
        call({**corpus, "test": corpus["train"]}, tmp_path)


def test_too_rare_words_are_explained(corpus, tmp_path):
    with pytest.raises(ValueError, match="lower min_word_count"):
        call(corpus, tmp_path, min_word_count="500")


def test_cuts_are_chosen_in_turns_of_speakers(corpus):
    few = read_cuts([str(corpus["train"]), str(corpus["dev"])], 8, seed=0)
    assert sorted(few.speakers) == sorted(2 * [f"speaker-{n}" for n in range(4)])
    assert [len(rows) for _, rows in few.manifests] == [4, 4]
    manifest, rows = few.manifests[1]
    assert [manifest.ids[row] for row in rows] == few.ids[4:]
    other = read_cuts([str(corpus["train"]), str(corpus["dev"])], 8, seed=1)
    assert other.ids != few.ids


def test_features_do_not_depend_on_batch_mates(corpus):
    part = read_cuts([str(corpus["dev"])], 6, seed=0)
    encoder = load_encoder(corpus["encoder"])
    alone, together = (encoder_features(encoder, part.manifests, seconds) for seconds in (0.1, 1000.0))
    assert len(alone) == len(together) == 3  # two layers and the output
    for one, other in zip(alone, together):
        torch.testing.assert_close(torch.tensor(one), torch.tensor(other), rtol=1e-4, atol=1e-4)
