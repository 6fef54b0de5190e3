"""The pretrain command on speech and audio cuts with two teachers, and the data's part in the strategies."""

import pytest
import yaml
from dataset_fixtures import FIELD as PLAIN
from dataset_fixtures import make_cuts, with_tokens
from pretraining_fixtures import AUDIO_FIELD, FIELD, make_corpus, write_config, write_two_domain_config

from spear_lib.bin import pretrain
from spear_lib.config import load
from spear_lib.data.domains import domain_of
from spear_lib.data.manifests import Manifest, save_cuts
from spear_lib.data.mixing import MixingConfig
from spear_lib.pretraining import ObjectiveConfig
from spear_lib.pretraining.data import PretrainingData, PretrainingDataConfig
from spear_lib.pretraining.options import PretrainOptions
from spear_lib.runtime.metrics_log import read_metrics

BOTH = [FIELD, AUDIO_FIELD]


def call(config, folder, *more) -> list[dict]:
    pretrain.main(["--config", str(config), "--experiment_dir", str(folder), *more])
    return read_metrics(folder / "metrics.jsonl")


@pytest.mark.parametrize("strategy, factor", [("asymmetrical", 1), ("joint", 2), ("disjoint", 1)])
def test_a_tiny_run_predicts_both_teachers(strategy, factor, tmp_path):
    config = write_two_domain_config(tmp_path, strategy, max_steps=4)
    options = ["--encoder.output_downsampling_factor", str(factor)]
    lines = call(config, tmp_path / "exp", *options)
    train = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in train] == [1, 2, 3, 4]
    on_speech = {f"{name}/speech/masked_loss" for name in BOTH if strategy == "joint" or name == FIELD}
    on_audio = {f"{name}/audio/masked_loss" for name in BOTH if strategy != "disjoint" or name == AUDIO_FIELD}
    seen = {name for line in train for name in line if name.endswith(("h/masked_loss", "o/masked_loss"))}
    assert seen == on_speech | on_audio
    valid = {line["kind"]: line for line in lines if line["kind"].startswith("valid/")}
    assert set(valid) == {"valid/speech-dev", "valid/audio-dev"}
    assert on_speech <= set(valid["valid/speech-dev"]) and on_audio <= set(valid["valid/audio-dev"])
    assert not on_audio & set(valid["valid/speech-dev"])
    assert f"{FIELD}/unigram_entropy" in valid["valid/speech-dev"]


def data_of(path, objective, **options) -> PretrainingData:
    defaults = {
        "train_cuts": path,
        "token_fields": BOTH,
        "num_workers": 0,
        "mixing": MixingConfig(enabled=False),
    }
    config = PretrainingDataConfig(**{**defaults, **options})
    return PretrainingData(config, needed_fields=objective.fields_by_domain(config.token_fields))


def test_batches_carry_what_the_strategy_needs(tmp_path):
    speech = make_corpus(tmp_path, 2, "speech", fields=(FIELD, AUDIO_FIELD))
    audio = make_corpus(tmp_path, 2, "audio", audio=True, fields=(FIELD, AUDIO_FIELD))
    (batch,) = data_of([str(speech), str(audio)], ObjectiveConfig("asymmetrical")).epoch_batches(0)
    assert batch.audio.tolist() == [name.startswith("audio") for name in batch.ids] and len(batch) == 4
    scored = {name: (tokens >= 0).flatten(1).any(1).tolist() for name, tokens in batch.tokens.items()}
    assert scored == {FIELD: [True] * 4, AUDIO_FIELD: batch.audio.tolist()}
    (batch,) = data_of([str(speech)], ObjectiveConfig("asymmetrical")).epoch_batches(0)
    assert list(batch.tokens) == [FIELD]  # and PretrainingTask takes a field that is not there as no target


def test_a_cut_without_the_tokens_of_its_teacher_is_named(tmp_path):
    speech = make_corpus(tmp_path, 3, "speech", fields=(FIELD,))
    audio = make_corpus(tmp_path, 3, "audio", audio=True, fields=(AUDIO_FIELD,))
    paths = [str(speech), str(audio)]
    assert data_of(paths, ObjectiveConfig("disjoint")).num_cuts == 6
    with pytest.raises(
        ValueError, match=f"cut audio-000 has no tokens '{FIELD}', which every audio cut needs"
    ):
        data_of(paths, ObjectiveConfig("asymmetrical"))
    with pytest.raises(
        ValueError, match=f"cut speech-000 has no tokens '{AUDIO_FIELD}', which every speech cut"
    ):
        data_of(paths, ObjectiveConfig("joint"))


def test_a_strategy_of_two_teachers_needs_both_domains(tmp_path):
    speech = make_corpus(tmp_path, 3, "speech")
    config = write_config(tmp_path, speech, speech)
    fields = ["--data.token_fields", f"[{FIELD}, {AUDIO_FIELD}]", "--objective.strategy", "disjoint"]
    with pytest.raises(
        ValueError, match=f"hold no audio cuts, so nothing is trained on the tokens '{AUDIO_FIELD}'"
    ):
        call(config, tmp_path / "exp", *fields)
    with pytest.raises(ValueError, match="single predicts one token field"):
        call(config, tmp_path / "exp", *fields[:2])


def test_partners_without_speech_tokens_are_not_token_mixed(tmp_path):
    """Disjoint: audio cuts need no speech tokens, and may not have them."""
    speech = make_corpus(tmp_path, 1, "speech", fields=(FIELD,))
    bare = make_corpus(tmp_path, 1, "bare", audio=True, fields=(AUDIO_FIELD,))
    mixing = MixingConfig(noise_probability=0.0, token_probability=1.0)
    kinds = {}
    for name, partner in (("bare", bare), ("rich", None)):
        partner = partner or make_corpus(tmp_path, 1, "rich", audio=True, fields=(FIELD, AUDIO_FIELD))
        data = data_of([str(speech), str(partner)], ObjectiveConfig("disjoint"), mixing=mixing)
        (batch,) = data.epoch_batches(0)
        kinds[name] = dict(zip(batch.ids, batch.mixed))
    assert kinds == {
        "bare": {"speech-000": "none", "bare-000": "none"},
        "rich": {"speech-000": "tokens", "rich-000": "none"},
    }
    with pytest.raises(ValueError, match=f"mixes the tokens '{AUDIO_FIELD}', on which speech cuts are not"):
        data_of([str(speech)], ObjectiveConfig("disjoint"), mixing=mixing, mixed_token_field=AUDIO_FIELD)


def test_domain_of_a_cut(tmp_path):
    cuts = with_tokens(make_cuts(tmp_path / "wav", 3), tmp_path / "tokens")
    cuts[1].custom["domain"], cuts[2].custom["domain"] = "audio", "broadcast"
    save_cuts(cuts, tmp_path / "cuts.jsonl.gz")
    assert [domain_of(cut) for cut in Manifest([tmp_path / "cuts.jsonl.gz"])] == ["speech", "audio", "speech"]
    assert domain_of(make_cuts(tmp_path / "bare", 1)[0]) == "speech"
    data = data_of([str(tmp_path / "cuts.jsonl.gz")], ObjectiveConfig(), token_fields=[PLAIN])
    assert data.needed_fields == {"speech": [PLAIN], "audio": [PLAIN]}


def test_options_that_leave_no_loss_are_refused(tmp_path):
    values = {"experiment_dir": "a", "objective": {"alpha": 1.0}}
    for masking in ({"enabled": False}, {"time_probability": 0.0}):
        with pytest.raises(
            ValueError, match="alpha is 1, so only masked frames count, and no frame is masked"
        ):
            load(PretrainOptions, {**values, "data": {"masking": masking}})
    corpus = make_corpus(tmp_path, 2)
    config = write_config(tmp_path, corpus, corpus)
    options = yaml.safe_load(config.read_text())
    options["data"]["min_duration"] = 0.05
    config.write_text(yaml.safe_dump(options))
    with pytest.raises(
        ValueError, match=r"min_duration is 0.05 s, but audio shorter than 0.085 s .* no frame"
    ):
        call(config, tmp_path / "exp")
