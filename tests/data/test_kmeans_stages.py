"""k-means tokens through the commands: training (killed and not), tokens in uint16, cuts, pre-training."""

import json

import numpy as np
import pytest
import torch
from pretraining_fixtures import command, write_config
from pretraining_fixtures import run as run_command
from test_token_stages import RECIPE, call, call_killed, make_cuts

from spear_lib.bin import check_tokens, dump_tokens, extract_embeddings, train_quantizer
from spear_lib.data.manifests import Manifest
from spear_lib.quantization import KMeans, Quantizer, load_tokeniser
from spear_lib.tokens.fields import load_tokens, store_facts
from spear_lib.tokens.making import load_teacher

CLUSTERS = 300
FIELD = f"spectral_km{CLUSTERS}"
KMEANS = ("--kind", "kmeans", "--kmeans.num_clusters", CLUSTERS, "--kmeans.init_frames", 400)
KMEANS = (*KMEANS, "--kmeans.init_iterations", 2, "--kmeans.passes", 2, "--kmeans.held_out_fraction", 0.2)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder in which stages 3 to 6 ran with k-means."""
    folder = tmp_path_factory.mktemp("kmeans")
    cuts = make_cuts(folder / "audio")
    (folder / "recipe.yaml").write_text(RECIPE)
    extract = ("--config", folder / "recipe.yaml", "--cuts", cuts, "--output_dir", folder / "embeddings")
    call(extract_embeddings, *extract)
    train = ("--embeddings", folder / "embeddings", "--output_dir", folder / "kmeans", *KMEANS)
    call(train_quantizer, *train)
    dump = ("--cuts", cuts, "--quantizer", folder / "kmeans", "--output_dir", folder / "tokens")
    call(dump_tokens, *dump)
    check = ("--cuts", cuts, "--store", folder / "tokens", "--quantizer", folder / "kmeans")
    call(check_tokens, *check, "--output_cuts", folder / "cuts.jsonl.gz")
    return folder


def test_tokens_above_255_reach_the_cuts(made):
    tokeniser = load_tokeniser(made / "kmeans")
    teacher = load_teacher(tokeniser, "kmeans")
    facts = store_facts(made / "tokens")
    assert (facts["field"], facts["dtype"]) == (FIELD, "uint16")
    assert (facts["num_codebooks"], facts["codebook_size"]) == (1, CLUSTERS)
    assert facts["quantizer_id"] == tokeniser.id
    tokens = []
    for cut in Manifest(made / "cuts.jsonl.gz"):
        audio = torch.from_numpy(cut.load_audio())
        embeddings, _ = teacher.embed(audio, torch.tensor([audio.shape[1]]))
        found = load_tokens(cut, FIELD)
        distance = torch.cdist(embeddings[0].double(), tokeniser.centers.double())
        assert found.dtype == np.uint16
        assert (found[:, 0] == distance.argmin(1).numpy()).mean() > 0.995
        tokens.append(found)
    assert np.concatenate(tokens).max() > 255


def test_three_steps_of_pretraining_predict_all_clusters(made):
    cuts = made / "cuts.jsonl.gz"
    config = write_config(made, cuts, cuts, max_steps=3, valid_interval=3)
    log = run_command(command(config, made / "pretrain", "--data.token_fields", f"[{FIELD}]"))
    assert f"1 codebooks x {CLUSTERS} at 50 Hz" in log and "ln 300 = 5.704 nats" in log
    lines = [json.loads(line) for line in (made / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    assert len(steps) == 3 and all(np.isfinite(line["loss"]) for line in steps)
    checkpoint = torch.load(made / "pretrain" / "checkpoints" / "last.pt", weights_only=True)
    assert checkpoint["model"][f"heads.{FIELD}.weight"].shape == (1, CLUSTERS, 24)


def test_report_says_what_the_clusters_are_worth(made):
    report = json.loads((made / "kmeans" / "report.json").read_text())
    assert list(report["relative_error"]) == ["0"] and 0 < report["relative_error"]["0"] < 0.7
    errors = [line["squared_error_per_frame"] for line in report["history"]]
    assert len(errors) == 3 and errors == sorted(errors, reverse=True)
    assert report["quantizer_id"] == load_tokeniser(made / "kmeans").id
    assert (made / "kmeans" / "report.png").stat().st_size > 10000
    assert not (made / "kmeans" / "training_state.pt").exists()


def test_killed_training_ends_with_the_same_bytes(made, tmp_path):
    train = ("--embeddings", made / "embeddings", "--output_dir", tmp_path, *KMEANS)
    call_killed(train_quantizer, 2, *train)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".tmp"] == ["training_state.pt"]
    call(train_quantizer, *train)
    for name in ("quantizer.safetensors", "report.json"):
        assert (tmp_path / name).read_bytes() == (made / "kmeans" / name).read_bytes()


def test_another_kind_or_id_is_refused(made, tmp_path):
    with pytest.raises(ValueError, match="of kind 'kmeans', and 'mvq' is wanted here"):
        Quantizer.load(made / "kmeans")
    other = load_tokeniser(made / "kmeans")
    other.centers[0] += 1
    other.save(tmp_path)
    check = ("--cuts", made / "audio" / "cuts.jsonl.gz", "--store", made / "tokens", "--quantizer", tmp_path)
    with pytest.raises(ValueError, match=f"but .* is {other.id}"):
        call(check_tokens, *check, "--output_cuts", tmp_path / "cuts.jsonl.gz")
    assert KMeans.load(tmp_path).id == other.id


def test_more_clusters_than_frames_is_explained(made, tmp_path):
    train = ("--embeddings", made / "embeddings", "--output_dir", tmp_path)
    train = (*train, "--kind", "kmeans", "--kmeans.num_clusters", 2000)
    with pytest.raises(ValueError, match="training frames, fewer than the 2000 clusters: lower num_clusters"):
        call(train_quantizer, *train)
    with pytest.raises(SystemExit):
        call(train_quantizer, *train, "--kmeans.init_frames", 1000)


def test_an_unknown_kind_is_explained(made, tmp_path, capsys):
    with pytest.raises(SystemExit):
        call(train_quantizer, "--kind", "vq", "--embeddings", made, "--output_dir", tmp_path)
    assert "kind is 'vq': use one of mvq, kmeans" in capsys.readouterr().err
