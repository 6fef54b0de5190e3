"""Character CTC through the commands: fine-tuning, language model, weights chosen on dev, labelled sets."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from asr_fixtures import TINY_ENCODER, make_cuts

from spear_lib.asr.arpa import load_ngram_model
from spear_lib.asr.model import AsrModel, TransducerConfig
from spear_lib.asr.searcher import SearchConfig, Searcher
from spear_lib.asr.tuning import TuneConfig, grid
from spear_lib.asr.units import character_units
from spear_lib.bin import decode, finetune_asr, select_cuts, train_lm
from spear_lib.corpora.cut_subsets import select_hours, select_ids
from spear_lib.data.manifests import Manifest
from spear_lib.data.references import speaker
from spear_lib.encoders import load_encoder
from spear_lib.training.finetuning import layer_lr_scales, training_config

CONFIG = {
    "units": "characters",
    "data": {
        "batch_seconds": 16.0,
        "num_workers": 0,
        "speed": {"enabled": False},
        "mixing": {"enabled": False},
        "spec_augment": {"enabled": False},
    },
    "model": {"transducer_loss_scale": 0.0, "ctc_loss_scale": 1.0},
    "training": {"max_steps": 3, "save_interval": 3, "valid_interval": 3, "log_interval": 1, "device": "cpu"},
}


def call(module, *arguments: str) -> None:
    module.main(list(arguments))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("ctc")
    paths = {
        "train": make_cuts(folder, "train", 16, [0, 1, 2]),
        "dev": make_cuts(folder, "dev", 4, [3]),
        "run": folder / "run",
        "lm": folder / "lm",
    }
    (folder / "shape.yaml").write_text(yaml.safe_dump({**CONFIG, "encoder_config": TINY_ENCODER}))
    arguments = [
        "--config",
        str(folder / "shape.yaml"),
        "--scratch",
        "true",
        "--dev_cuts",
        f"[{paths['dev']}]",
    ]
    arguments += ["--experiment_dir", str(paths["run"]), "--data.train_cuts", f"[{paths['train']}]"]
    # The recipe names BPE units first; the configuration of CTC replaces them.
    call(finetune_asr, "--units", "elsewhere", *arguments)
    arguments = ["--cuts", f"[{paths['train']}]", "--test_cuts", f"[{paths['dev']}]"]
    call(train_lm, *arguments, "--output_dir", str(paths["lm"]), "--order", "2")
    return paths


def test_a_pure_ctc_model_has_no_transducer(trained):
    state = torch.load(trained["run"] / "checkpoints" / "last.pt", weights_only=True)
    heads = {name.split(".")[0] for name in state["model"]}
    assert heads == {"encoder", "ctc_output"}
    assert state["model"]["ctc_output.weight"].shape == (29, 32)
    records = [json.loads(line) for line in (trained["run"] / "metrics.jsonl").read_text().splitlines()]
    assert all("ctc_loss" in r and "simple_loss" not in r for r in records if r["kind"] == "train")
    assert any(r["kind"] == "valid/dev" and r["wer"] >= 0 for r in records)


def test_decoding_chooses_weights_on_dev_and_keeps_the_n_best(trained, tmp_path, caplog):
    caplog.set_level("INFO")
    arguments = ["--experiment_dir", str(trained["run"]), "--average", "0", "--device", "cpu"]
    arguments += ["--units", "elsewhere"]
    arguments += ["--cuts", f"[dev={trained['dev']},other={trained['dev']}]", "--output_dir", str(tmp_path)]
    arguments += ["--search.lm", str(trained["lm"] / "lm.npz"), "--search.beam", "5", "--num_best", "3"]
    grid_options = ["--tune.dev_set", "dev", "--tune.weights", "[0, 1]", "--tune.word_scores", "[0, 6]"]
    call(decode, *arguments, *grid_options)
    tuning = json.loads((tmp_path / "tuning.json").read_text())
    assert [(t["weight"], t["word_score"]) for t in tuning["tried"]] == [(0, 0), (0, 6), (1, 0), (1, 6)]
    lowest = min(tuning["tried"], key=lambda t: t["wer"])
    assert ("word_score 6 is at the edge" in caplog.text) == (lowest["word_score"] == 6)
    assert "chosen on dev: beam 5" in caplog.text
    assert tuning["search"]["lm_scores"]["weight"] == lowest["weight"]
    for name in ("dev", "other"):
        result = json.loads((tmp_path / f"wer-{name}.json").read_text())
        assert result["wer"] == lowest["wer"] and result["head"] == "ctc"
        assert result["search"] == tuning["search"] and len(result["interval_95"]) == 2
    for line in map(json.loads, (tmp_path / "recogs-dev.jsonl").read_text().splitlines()):
        scores = [entry["score"] for entry in line["nbest"]]
        assert 1 <= len(scores) <= 3 and scores == sorted(scores, reverse=True)
        assert line["nbest"][0]["text"] == line["hypothesis"] and scores[0] == line["score"]
        assert " ".join(word["word"] for word in line["words"]) == line["hypothesis"]
        assert len(line["times"]) == len(line["units"]) and line["times"] == sorted(line["times"])
        assert all(word["start"] < word["end"] for word in line["words"])
    with pytest.raises(ValueError, match="tune.dev_set is 'x', which is none of the sets dev, other"):
        call(decode, *arguments, "--tune.dev_set", "x")


def test_grid_and_its_limits():
    plain = grid(SearchConfig(), TuneConfig("dev", blank_penalties=[0.0, 1.0]), ctc_may_vote=True)
    assert [config.blank_penalty for config in plain] == [0.0, 1.0]  # without a model no weights to choose
    assert len(grid(SearchConfig(lm="lm.npz"), TuneConfig("dev"), ctc_may_vote=True)) == 28
    with pytest.raises(ValueError, match="'test-clean': what is chosen on a test set"):
        TuneConfig("test-clean")
    with pytest.raises(ValueError, match="need one value each"):
        TuneConfig("dev", weights=[])


def test_what_a_search_cannot_do_is_said(trained):
    units = character_units()
    model = AsrModel(None, TransducerConfig(transducer_loss_scale=0, ctc_loss_scale=1), 29, encoder_dim=8)
    with pytest.raises(ValueError, match="search.head is transducer, but this model was trained with: ctc"):
        Searcher(model, units, SearchConfig(head="transducer"))
    with pytest.raises(ValueError, match="does not exist: train a language model"):
        Searcher(model, units, SearchConfig(lm="nowhere.npz"))
    with pytest.raises(ValueError, match="greedy search cannot use a language model"):
        SearchConfig("greedy", lm="lm.npz")
    with pytest.raises(ValueError, match="search.head must be"):
        SearchConfig(head="attention")
    with pytest.raises(ValueError, match="neither may be negative, and one must be positive"):
        TransducerConfig(transducer_loss_scale=0.0)
    assert str(SearchConfig(head="ctc", lm="x.npz")) == "beam 4, ctc, x.npz x 1, word score 0"


def test_language_model_files(trained, tmp_path):
    facts = json.loads((trained["lm"] / "lm.json").read_text())
    model = load_ngram_model(trained["lm"] / "lm.npz")
    assert facts["order"] == 2 == model.order and facts["words"] == model.num_words == 9
    assert 1 < facts["perplexity"] < 12 and facts["unknown_words"].startswith("0 of ")
    call(train_lm, "--arpa", str(trained["lm"] / "lm.arpa.gz"), "--output_dir", str(tmp_path))
    again = load_ngram_model(tmp_path / "lm.npz")
    assert torch.equal(again.keys, model.keys) and not (tmp_path / "lm.arpa.gz").exists()
    (tmp_path / "text").write_text("ONE TWO\n\nTWO ONE\n")
    call(train_lm, "--text", f"[{tmp_path / 'text'}]", "--output_dir", str(tmp_path / "text_lm"))
    assert load_ngram_model(tmp_path / "text_lm" / "lm.npz").num_words == 5
    with pytest.raises(SystemExit):
        call(train_lm, "--output_dir", str(tmp_path))


def test_a_subset_takes_equally_from_every_speaker(trained, tmp_path):
    manifest = Manifest(trained["train"])
    hours = 0.5 * float(manifest.durations.sum()) / 3600
    chosen = select_hours(manifest, hours, seed=1)
    seconds: dict[str, float] = {}
    for cut in chosen:
        seconds[speaker(cut)] = seconds.get(speaker(cut), 0.0) + cut.duration
    assert len(seconds) == 3 and max(seconds.values()) - min(seconds.values()) <= 1.3
    assert 3600 * hours - 1.3 < sum(seconds.values()) <= 3600 * hours
    assert [cut.id for cut in select_hours(manifest, hours, seed=1)] == [cut.id for cut in chosen]
    assert [cut.id for cut in select_hours(manifest, hours, seed=2)] != [cut.id for cut in chosen]
    output = tmp_path / "part.jsonl.gz"
    arguments = ("--cuts", str(trained["train"]), "--output_cuts", str(output))
    call(select_cuts, *arguments, "--hours", str(hours), "--seed", "1")
    assert list(Manifest(output).ids) == [cut.id for cut in chosen]
    (tmp_path / "ids.txt").write_text("train-003 x\ntrain-001\n")
    call(select_cuts, *arguments, "--ids", str(tmp_path / "ids.txt"))
    assert list(Manifest(output).ids) == ["train-001", "train-003"]
    (tmp_path / "1h" / "a").mkdir(parents=True)
    (tmp_path / "1h" / "a" / "train-002.flac").touch()
    assert [cut.id for cut in select_ids(manifest, str(tmp_path / "1h"))] == ["train-002"]
    (tmp_path / "ids.txt").write_text("train-003\nother\n")
    with pytest.raises(ValueError, match="1 of the 2 utterances .* are not in the set, for example other"):
        select_ids(manifest, str(tmp_path / "ids.txt"))
    with pytest.raises(ValueError, match="is wanted|are wanted, and the set has"):
        select_hours(manifest, 1000.0)
    with pytest.raises(ValueError, match="less than one cut"):
        select_hours(manifest, 1e-5)


def test_lower_layers_learn_more_slowly():
    scales = layer_lr_scales(load_encoder(TINY_ENCODER), 0.5)
    assert sorted(scales.values()) == [0.25, 0.5]  # two layers: the last one keeps its rate
    assert scales["encoder.encoder_embed"] == 0.25
    options = finetune_asr.FinetuneOptions(
        experiment_dir="", units="", dev_cuts=[], encoder="x", encoder_layer_decay=0.5
    )
    training = training_config(options, load_encoder(TINY_ENCODER))
    assert training.lr_scales == {"encoder": 0.1, **scales}
    with pytest.raises(ValueError, match="encoder_layer_decay is 1.5"):
        layer_lr_scales(load_encoder(TINY_ENCODER), 1.5)
    with pytest.raises(ValueError, match="no layers by that name"):
        layer_lr_scales(torch.nn.Linear(2, 2), 0.9)
