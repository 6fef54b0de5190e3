"""Fine-tuning, its checkpoints and decoding, through the commands, on a toy corpus."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
import yaml
from asr_fixtures import TINY_ENCODER, make_cuts

from spear_lib.asr.data import AsrData, AsrDataConfig
from spear_lib.asr.decoding import build_model, load_weights, recognise
from spear_lib.asr.model import AsrModel, TransducerConfig
from spear_lib.asr.searcher import SearchConfig, Searcher
from spear_lib.asr.task import AsrTask, usable_lengths
from spear_lib.asr.units import TextUnits, character_units
from spear_lib.bin import decode, finetune_asr, train_units
from spear_lib.data.manifests import Manifest, save_cuts
from spear_lib.encoders import load_encoder, save_encoder
from spear_lib.training.finetuning import build_encoder, training_config
from spear_lib.training.task import StepClock


def call(module, *arguments: str) -> None:
    module.main(list(arguments))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("toy")
    paths = {
        "train": make_cuts(folder, "train", 24, [0, 1]),
        "dev": make_cuts(folder, "dev", 6, [2]),
        "units": folder / "units",
        "encoder": folder / "encoder",
    }
    arguments = ("--cuts", f"[{paths['train']}]", "--output_dir", str(paths["units"]), "--vocab_size", "20")
    call(train_units, *arguments)
    torch.manual_seed(0)
    save_encoder(load_encoder(TINY_ENCODER), paths["encoder"], {"made": "for a test"})
    return paths


CONFIG = {
    "data": {
        "batch_seconds": 16.0,
        "num_workers": 0,
        "speed": {"enabled": False},
        "mixing": {"enabled": False},
        "spec_augment": {"enabled": False},
    },
    "model": {"decoder_dim": 32, "joiner_dim": 32, "warm_step": 10},
    "training": {
        "max_steps": 6,
        "average_period": 1,
        "save_interval": 2,
        "valid_interval": 3,
        "log_interval": 1,
        "warmup_batches": 2.0,
        "device": "cpu",
    },
    "freeze_encoder_steps": 2,
}


def finetune(corpus, folder: Path, *arguments: str, **changes) -> list[dict]:
    folder.mkdir(parents=True, exist_ok=True)
    config = {**CONFIG, "training": {**CONFIG["training"], **changes}}
    path = folder.parent / f"{folder.name}.yaml"
    path.write_text(yaml.safe_dump(config))
    common = ["--config", str(path), "--experiment_dir", str(folder), "--units", str(corpus["units"])]
    common += ["--dev_cuts", f"[{corpus['dev']}]", "--data.train_cuts", f"[{corpus['train']}]"]
    call(finetune_asr, *common, *arguments)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(records: list[dict]) -> list[float]:
    return [record["loss"] for record in records if record["kind"] == "train"]


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp("finetune") / "run"
    records = finetune(corpus, folder, "--encoder", str(corpus["encoder"]))
    return folder, records


def test_units_file_writes_every_transcript_back(corpus):
    units = TextUnits(corpus["units"])
    facts = json.loads((corpus["units"] / "units.json").read_text())
    assert facts["id"] == units.id and facts["vocab_size"] == 20 == units.vocab_size
    assert len((corpus["units"] / "units.txt").read_text().splitlines()) == 20
    assert len((corpus["units"] / "characters.txt").read_text().splitlines()) == character_units().vocab_size


def test_units_larger_than_the_text_allows_say_how_many(corpus, tmp_path):
    arguments = ("--cuts", f"[{corpus['train']}]", "--output_dir", str(tmp_path), "--vocab_size", "500")
    with pytest.raises(ValueError, match="at most"):
        call(train_units, *arguments)


def test_run_leaves_metrics_and_checkpoint_facts(trained, corpus):
    folder, records = trained
    assert [r["step"] for r in records if r["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    valid = [r for r in records if r["kind"] == "valid/dev"]
    assert [r["step"] for r in valid] == [3, 6] and all(r["wer"] >= 0 for r in valid)
    state = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
    assert state["kind"] == "asr" and state["vocab_size"] == 20
    assert state["units_id"] == TextUnits(corpus["units"]).id
    assert state["transducer_config"]["decoder_dim"] == 32


def test_pretrained_encoder_is_loaded_frozen_then_trained(trained, corpus):
    folder, _ = trained
    start = load_encoder(corpus["encoder"]).state_dict()
    name = "encoder.encoders.0.layers.0.feed_forward2.in_proj.weight"
    at = {
        step: torch.load(folder / "checkpoints" / f"step-{step:08d}.pt", weights_only=True)["model"]
        for step in (2, 6)
    }
    assert torch.equal(at[2][f"encoder.{name}"], start[name])
    assert not torch.equal(at[6][f"encoder.{name}"], start[name])


def test_same_run_twice_and_resumed_run_are_equal(trained, corpus, tmp_path):
    _, records = trained
    arguments = ("--encoder", str(corpus["encoder"]))
    first = finetune(corpus, tmp_path / "resumed", *arguments, max_steps=3)
    assert losses(first) == losses(records)[:3]
    resumed = finetune(corpus, tmp_path / "resumed", *arguments, max_steps=6)
    assert losses(resumed) == losses(records)


def test_scratch_has_the_shape_but_not_the_weights(corpus):
    options = finetune_asr.FinetuneOptions(
        experiment_dir="", units="", dev_cuts=[], encoder=str(corpus["encoder"]), scratch=True
    )
    encoder, original = build_encoder(options), load_encoder(corpus["encoder"])
    again = build_encoder(options)
    name = "encoder.encoders.0.layers.0.feed_forward2.in_proj.weight"
    assert encoder.config == original.config
    assert not torch.equal(encoder.state_dict()[name], original.state_dict()[name])
    assert torch.equal(encoder.state_dict()[name], again.state_dict()[name])


def test_scratch_trains_like_the_head():
    common = {"experiment_dir": "", "units": "", "dev_cuts": [], "freeze_encoder_steps": 7}
    scratch = training_config(finetune_asr.FinetuneOptions(**common, scratch=True))
    assert (scratch.lr_scales, scratch.freeze, scratch.schedule_offset_batches) == ({}, [], 0.0)
    tuned = training_config(finetune_asr.FinetuneOptions(**common, encoder="x"))
    assert tuned.lr_scales == {"encoder": 0.1} and tuned.freeze == ["encoder"] and tuned.freeze_steps == 7
    assert tuned.schedule_offset_batches == 100_000.0


def test_without_encoder_or_scratch_there_is_an_explanation():
    options = finetune_asr.FinetuneOptions(experiment_dir="", units="", dev_cuts=[])
    with pytest.raises(ValueError, match="scratch to true"):
        build_encoder(options)


def make_task(vocab_size: int = 29, **config) -> AsrTask:
    torch.manual_seed(1)
    model = AsrModel(load_encoder(TINY_ENCODER), TransducerConfig(32, 32, **config), vocab_size)
    return AsrTask(model, character_units())


def test_vocabulary_of_another_size_is_refused():
    with pytest.raises(ValueError, match="31 output units.*29"):
        make_task(31)


def test_transcript_longer_than_the_audio_is_dropped_and_counted(corpus):
    task = make_task()
    data = AsrData(
        AsrDataConfig(train_cuts=[str(corpus["train"])], num_workers=0, batch_seconds=4.0), training=False
    )
    batch = next(iter(data.epoch_batches(0, 0)))
    task.model.eval()
    clean = task.compute(batch)
    assert float(clean.stats["dropped"][0]) == 0
    batch.texts[0] = "A" * 90
    task.model.train()
    task.begin_step(batch, StepClock(1, 0.0, 0.0, 5))
    result = task.compute(batch)
    result.loss_sum.backward()
    assert float(result.stats["dropped"][0]) == 1
    assert float(result.num_frames) < float(clean.num_frames)
    assert math.isfinite(float(result.loss_sum.detach()))
    gradients = [p.grad for p in task.model.parameters() if p.grad is not None]
    assert gradients and all(torch.isfinite(g).all() for g in gradients)


def test_an_encoder_that_reads_waveforms_is_fine_tuned_and_decoded(corpus, tmp_path):
    settings = {"conv_channels": 8, "hidden_dim": 24, "num_layers": 1, "num_heads": 2, "feedforward_dim": 32}
    encoder = load_encoder({"type": "transformer", **settings, "position_kernel": 8, "position_groups": 2})
    save_encoder(encoder, tmp_path / "encoder", {})
    arguments = ["--encoder", str(tmp_path / "encoder"), "--data.spec_augment.enabled", "true"]
    records = finetune(corpus, tmp_path / "run", *arguments, max_steps=3)
    assert len(losses(records)) == 3 and all(math.isfinite(loss) for loss in losses(records))
    weights = load_weights(tmp_path / "run", 1)
    model = build_model(weights, TextUnits(corpus["units"]))
    assert model.encoder.encoder_type == "transformer"
    searcher = Searcher(model, TextUnits(corpus["units"]), SearchConfig("greedy"))
    found = recognise(searcher, Manifest(corpus["dev"]))
    assert len(found) == 6


def test_usable_lengths_keeps_equal_counts_and_empty_transcripts():
    lengths = torch.tensor([3, 3, 0, 2])
    assert usable_lengths(lengths, [[1] * 3, [1] * 4, [], [1]]).tolist() == [3, 0, 0, 2]


def test_decode_writes_scored_results(trained, corpus, tmp_path):
    arguments = ["--experiment_dir", str(trained[0]), "--units", str(corpus["units"]), "--average", "2"]
    arguments += ["--cuts", f"[{corpus['dev']},again={corpus['dev']}]", "--output_dir", str(tmp_path)]
    call(decode, *arguments, "--search.method", "greedy", "--device", "cpu")
    result = json.loads((tmp_path / "wer-dev.json").read_text())
    assert result["set"] == "dev" and result["num_utterances"] == 6 and result["method"] == "greedy"
    assert result["weights"] == "mean over steps 3 to 6"
    assert result["wer"] == json.loads((tmp_path / "wer-again.json").read_text())["wer"]
    lines = [json.loads(line) for line in (tmp_path / "recogs-dev.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == list(Manifest(corpus["dev"]).ids)
    assert all(len(line["units"]) == len(line["times"]) for line in lines)
    assert "WER" in (tmp_path / "errs-dev.txt").read_text()
    assert not list(tmp_path.glob("*.tmp"))


def test_references_that_the_units_cannot_write_are_said_before_and_beside_the_rate(
    trained, corpus, tmp_path, caplog
):
    cuts = list(Manifest(corpus["dev"]))
    for cut in cuts[:2]:
        cut.supervisions[0].text = cut.supervisions[0].text.lower() + "."
    save_cuts(cuts, tmp_path / "x_cuts_other.jsonl.gz")
    arguments = ["--experiment_dir", str(trained[0]), "--units", str(corpus["units"])]
    arguments += [
        "--cuts",
        f"[{corpus['dev']},{tmp_path}/x_cuts_other.jsonl.gz]",
        "--search.method",
        "greedy",
    ]
    with caplog.at_level("INFO"):
        call(decode, *arguments, "--output_dir", str(tmp_path), "--device", "cpu")
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    (line,) = [line for line in warned if "references" in line]
    assert line.startswith(f"other: 2 of {len(cuts)} references hold what the units cannot write")
    assert "change the case of the text" in line and "take the punctuation out of the text" in line
    rates = [r.getMessage() for r in caplog.records if ": WER " in r.getMessage()]
    assert ["2 references cannot be written" in rate for rate in rates] == [False, True]
    counts = [
        json.loads((tmp_path / f"wer-{name}.json").read_text())["unwritable_references"]
        for name in ("dev", "other")
    ]
    assert counts == [0, 2]


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_recognition_does_not_depend_on_batch_mates(corpus, method):
    torch.manual_seed(2)
    units = character_units()
    model = AsrModel(load_encoder(TINY_ENCODER), TransducerConfig(32, 32), units.vocab_size).eval()
    model.joiner.output_linear.bias.data[0] -= 0.4  # a random model that also writes something
    manifest = Manifest(corpus["dev"])
    alone, together = (
        recognise(Searcher(model, units, SearchConfig(method)), manifest, seconds)
        for seconds in (0.1, 1000.0)
    )
    assert list(alone) == list(manifest.ids)
    assert any(result["text"] for result in alone.values())
    for id in alone:
        assert alone[id]["units"] == together[id]["units"] and alone[id]["times"] == together[id]["times"]
        assert alone[id]["score"] == pytest.approx(together[id]["score"], abs=2e-3)


def test_averages_of_checkpoints(trained):
    folder, _ = trained
    name = "joiner.encoder_proj.weight"
    state = {
        step: torch.load(folder / "checkpoints" / f"step-{step:08d}.pt", weights_only=True)
        for step in (2, 4, 6)
    }
    assert torch.equal(load_weights(folder, 0).state[name], state[6]["model"][name])
    # Snapshots of every step: the mean over steps 5 and 6 from the two running means.
    means = {step: state[step]["model_average"]["state"][name] for step in state}
    expected = (6 * means[6] - 4 * means[4]) / 2
    torch.testing.assert_close(load_weights(folder, 1).state[name].double(), expected, rtol=0, atol=1e-6)
    whole = load_weights(folder, 3)
    torch.testing.assert_close(whole.state[name].double(), means[6], rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="holds 3 checkpoints and the average is over 4: use at most 3"):
        load_weights(folder, 4)
    assert whole.provenance["weights_hash"] != load_weights(folder, 0).provenance["weights_hash"]


def test_units_of_another_model_are_refused(trained, corpus, tmp_path):
    weights = load_weights(trained[0], 0)
    with pytest.raises(ValueError, match="20 output units"):
        build_model(weights, character_units())
    text = make_cuts(tmp_path, "other", 12, [0], seed=9)
    arguments = ("--cuts", f"[{text}]", "--output_dir", str(tmp_path / "units"), "--vocab_size", "20")
    call(train_units, *arguments)
    with pytest.raises(ValueError, match="of the same size but with other pieces"):
        build_model(weights, TextUnits(tmp_path / "units"))


def test_missing_run_and_double_set_names_are_explained(tmp_path):
    with pytest.raises(ValueError, match="stage 12"):
        load_weights(tmp_path, 1)
    with pytest.raises(ValueError, match="two sets are called 'dev'"):
        decode.named_sets(["a_cuts_dev.jsonl.gz", "dev=b.jsonl.gz"])
    assert decode.named_sets(["x=y.jsonl.gz", "d/l_cuts_test-clean.jsonl.gz"]) == {
        "x": Path("y.jsonl.gz"),
        "test-clean": Path("d/l_cuts_test-clean.jsonl.gz"),
    }


@pytest.mark.parametrize(
    ("name", "length"),
    [
        ("base", "90 epochs of "),
        ("base-ls960", "90 epochs of "),
        ("base-ls10", "6,000 steps, "),
        ("base-ls100-ctc", "90 epochs of "),
        ("large-ls960-ctc", "90 epochs of "),
    ],
)
def test_published_configurations_dry_run(corpus, tmp_path, caplog, name, length):
    """What a full-size fine-tuning would take is said without training: batch, epochs, steps, memory."""
    caplog.set_level("INFO")
    path = Path(__file__).parents[2] / "egs" / "librispeech" / "conf" / "finetune" / f"{name}.yaml"
    units = "characters" if name.endswith("ctc") else str(corpus["units"])
    finetune_asr.main(
        ["--config", str(path), "--experiment_dir", str(tmp_path), "--units", units, "--dry_run", "true"]
        + ["--encoder", str(corpus["encoder"]), "--data.train_cuts", f"[{corpus['train']}]"]
        + ["--dev_cuts", f"[{corpus['dev']}]"]
    )
    assert re.search(rf"length +{length}", caplog.text) and re.search(r"batch +\d+ s of audio", caplog.text)
    assert "losses by triton (planned)" in caplog.text or name.endswith("ctc")
    assert "GB at the highest" in caplog.text or "MB at the highest" in caplog.text
    assert re.search(r"validation +\d+\.\d min in 6 cuts", caplog.text)
    assert "GPU-hours" in caplog.text and not list(tmp_path.iterdir())


def test_the_ctc_heads_weight_is_chosen_on_dev(trained_toy, tmp_path):
    arguments = ["--experiment_dir", str(trained_toy["experiment"]), "--average", "0", "--device", "cpu"]
    arguments += ["--cuts", f"[dev={trained_toy['cuts']}]", "--search.max_units_per_frame", "3"]
    call(
        decode,
        *arguments,
        "--output_dir",
        str(tmp_path),
        "--tune.dev_set",
        "dev",
        "--tune.ctc_weights",
        "[0, 1]",
    )
    tuning = json.loads((tmp_path / "tuning.json").read_text())
    assert [entry["ctc_weight"] for entry in tuning["tried"]] == [0, 1]
    result = json.loads((tmp_path / "wer-dev.json").read_text())
    assert result["wer"] == min(entry["wer"] for entry in tuning["tried"])
    assert result["search"]["max_units_per_frame"] == 3 and "3 units per frame" in result["method"]
