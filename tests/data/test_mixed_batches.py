"""Edges of batches from two domains: whose tokens are mixed in, one domain alone, everything masked, no
frame."""

import math

import numpy as np
import pytest
import soundfile
from lhotse import Recording
from pretraining_fixtures import AUDIO_FIELD, FIELD, make_corpus, write_config, write_two_domain_config

from spear_lib.bin import pretrain
from spear_lib.data.manifests import Manifest, save_cuts
from spear_lib.data.mixing import MixingConfig
from spear_lib.pretraining import ObjectiveConfig
from spear_lib.pretraining.data import PretrainingData, PretrainingDataConfig
from spear_lib.runtime.metrics_log import read_metrics
from spear_lib.tokens.fields import load_tokens

BOTH = [FIELD, AUDIO_FIELD]
ONLY_TOKENS = MixingConfig(noise_probability=0.0, token_probability=1.0)


def data_of(paths, **options) -> PretrainingData:
    options = {"num_workers": 0, "mixing": ONLY_TOKENS, "token_fields": BOTH, **options}
    config = PretrainingDataConfig(train_cuts=[str(path) for path in paths], **options)
    return PretrainingData(
        config, needed_fields=ObjectiveConfig("asymmetrical").fields_by_domain(config.token_fields)
    )


def train(config, folder, *more) -> list[dict]:
    pretrain.main(["--config", str(config), "--experiment_dir", str(folder), *more])
    return [line for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == "train"]


def test_speech_takes_the_speech_tokens_of_its_audio_partner(tmp_path):
    """One speech and one audio cut, so the partner is known; where its tokens enter is found by their
    values."""
    speech = make_corpus(tmp_path, 1, "speech", fields=(FIELD,))
    audio = make_corpus(tmp_path, 1, "audio", audio=True, fields=BOTH)
    own, theirs = (load_tokens(Manifest(path)[0], FIELD).astype(int) for path in (speech, audio))
    data = data_of([speech, audio])
    replaced, expected, variance = 0.0, 0.0, 0.0
    for epoch in range(60):
        (batch,) = data.epoch_batches(epoch)
        place = batch.ids.index("speech-000")
        assert [batch.mixed[place], batch.mixed[1 - place]] == ["tokens", "none"]
        found = batch.tokens[FIELD][place, : len(own)].numpy()
        assert (batch.tokens[AUDIO_FIELD][place] == -100).all()  # scored on the mixed teacher alone
        assert np.array_equal(batch.tokens[FIELD][1 - place, : len(theirs)].numpy(), theirs)
        # Some shift of the partner explains every changed token; "contain" leaves few of them.
        changed = found != own
        shifts = range(min(0, len(own) - len(theirs)) - 1, max(0, len(own) - len(theirs)) + 2)
        partner_at = {shift: np.full(own.shape, -1) for shift in shifts}
        for shift, shifted in partner_at.items():
            for frame in range(len(own)):
                if 0 <= frame - shift < len(theirs):
                    shifted[frame] = theirs[frame - shift]
        assert any((found[changed] == shifted[changed]).all() for shifted in partner_at.values())
        beta = batch.statistics["mixing_beta"][0]
        reached = min(len(own), len(theirs)) * own.shape[1]
        replaced += batch.statistics["mixing_replaced_tokens"][0] * own.size
        expected += beta * reached
        variance += beta * (1 - beta) * reached
    assert abs(replaced - expected) < 3 * math.sqrt(variance)


@pytest.mark.parametrize("domain", ["speech", "audio"])
def test_batches_of_one_domain_train(tmp_path, domain):
    """Two cuts per batch, unmixed: some batches hold one domain, whose other teacher then has no frames."""
    config = write_two_domain_config(tmp_path, "disjoint", max_steps=6, valid_interval=100)
    weights = "[1, 0.25]" if domain == "speech" else "[0.25, 1]"
    options = ["--data.max_cuts", "2", "--data.mix_domains", "false", "--data.train_weights", weights]
    lines = train(config, tmp_path / "exp", *options)
    assert len(lines) == 6 and all(math.isfinite(line["loss"]) for line in lines)
    fields = [{name for name in BOTH if f"{name}/masked_loss" in line} for line in lines]
    assert {FIELD} in fields or {AUDIO_FIELD} in fields


def test_everything_masked_trains(tmp_path):
    corpus = make_corpus(tmp_path, 4)
    config = write_config(tmp_path, corpus, corpus, max_steps=2, valid_interval=100)
    options = ["--data.masking.time_probability", "1.0", "--data.masking.time_span", "1"]
    lines = train(config, tmp_path / "exp", *options, "--data.masking.time_min_spans", "100000")
    assert all(math.isfinite(line["loss"]) and line["masked_loss"] > 0 for line in lines)
    assert not any("unmasked_loss" in line for line in lines)  # no student frame is left to see


def test_audio_without_a_frame_is_counted_and_named(tmp_path):
    """79 samples give no fbank frame: such a cut is skipped within the limit, and named above it."""
    cuts = list(Manifest(make_corpus(tmp_path, 3)))
    soundfile.write(tmp_path / "short.wav", np.full(79, 0.1), 16000)
    short = Recording.from_file(tmp_path / "short.wav").to_cut()
    short.custom = dict(cuts[0].custom)
    save_cuts([*cuts, short], tmp_path / "cuts.jsonl.gz")
    options = {"token_fields": [FIELD], "min_duration": 0.0, "mixing": MixingConfig(enabled=False)}
    config = PretrainingDataConfig(
        train_cuts=[str(tmp_path / "cuts.jsonl.gz")], num_workers=0, max_bad_fraction=0.3, **options
    )
    names = [name for batch in PretrainingData(config).epoch_batches(0) for name in batch.ids]
    assert sorted(names) == sorted(cut.id for cut in cuts)
    strict = PretrainingDataConfig(train_cuts=config.train_cuts, num_workers=0, **options)
    with pytest.raises(RuntimeError, match=r"short: the audio has 79 samples, too few for one frame"):
        list(PretrainingData(strict).epoch_batches(0))
