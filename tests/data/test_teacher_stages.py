"""Stages 3 to 6 as commands with WavLM and HuBERT checkpoints: tokens of each recording's own audio, and the
report of what bfloat16 changes."""

import logging

import numpy as np
import pytest
import soundfile
import torch
from lhotse import Recording
from teacher_fixtures import tiny_checkpoint

from spear_lib.bin import check_tokens, dump_tokens, extract_embeddings, train_quantizer
from spear_lib.data.manifests import Manifest, save_cuts
from spear_lib.quantization import Quantizer
from spear_lib.teachers import create_teacher
from spear_lib.tokens.fields import load_tokens, token_facts

RECIPE = """
sampling: {num_frames: 600, frames_per_cut: 60, shard_frames: 240}
training: {num_codebooks: 3, codebook_size: 16, rounds: 3, frames_per_round: 400, init_frames: 300,
           init_iterations: 2, classifier_frames: 300, classifier_steps: 3, held_out_fraction: 0.2}
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Nine recordings of 0.5 to 1.3 s and one of 4.5 s, and the recipe of the quantiser."""
    folder = tmp_path_factory.mktemp("corpus")
    random, cuts = np.random.default_rng(0), []
    for number in range(10):
        samples = 72000 if number == 9 else 8000 + 1601 * number
        path = folder / f"r{number}.wav"
        soundfile.write(path, 0.1 * random.standard_normal(samples) * (1 + number % 3), 16000)
        cuts.append(Recording.from_file(path).to_cut())
    save_cuts(cuts, folder / "cuts.jsonl.gz")
    (folder / "quantizer.yaml").write_text(RECIPE)
    return folder


def call(module, **options) -> None:
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    module.main(list(arguments))


@pytest.mark.parametrize("family, size", [("wavlm", "large"), ("wavlm", "base"), ("hubert", "base")])
def test_stages_3_to_6(corpus, tmp_path, caplog, family, size):
    checkpoint = tiny_checkpoint(tmp_path / "old", family, size)
    cuts = corpus / "cuts.jsonl.gz"
    config, embeddings, quantizer = corpus / "quantizer.yaml", tmp_path / "embeddings", tmp_path / "quantizer"
    call(
        extract_embeddings,
        config=config,
        cuts=cuts,
        output_dir=embeddings,
        teacher=family,
        teacher_path=checkpoint,
        teacher_layer=2,
        teacher_window=2,
        teacher_overlap=1,
    )
    call(train_quantizer, config=config, embeddings=embeddings, output_dir=quantizer)
    # The weights moved since; a number format of its own.
    moved = checkpoint.rename(tmp_path / "new")
    both = {"cuts": cuts, "quantizer": quantizer}
    caplog.set_level(logging.INFO)
    call(dump_tokens, **both, output_dir=tmp_path / "tokens", teacher_path=moved)
    assert "bfloat16" not in caplog.text
    attached = tmp_path / "cuts" / "cuts.jsonl.gz"
    call(check_tokens, **both, store=tmp_path / "tokens", output_cuts=attached)
    field, codes = f"{family}_l2_cb3", Quantizer.load(quantizer)
    teacher = create_teacher(family, moved, layer=2, window_seconds=2.0, overlap_seconds=1.0)
    whole = create_teacher(family, moved, layer=2)
    assert codes.provenance["teacher"]["teacher_id"] == teacher.id != whole.id
    equal = []
    for cut in Manifest(attached):
        facts = token_facts(cut, field)
        assert (facts["teacher_id"], facts["teacher_dtype"]) == (teacher.id, "float32")
        assert (facts["frame_rate"], facts["first_frame_center_ms"]) == (50.0, 12.5)
        audio = torch.from_numpy(cut.load_audio())
        expected = codes.encode(whole.embed(audio, torch.tensor([audio.shape[1]]))[0][0]).numpy()
        found = load_tokens(cut, field)
        assert found.shape == expected.shape
        if cut.duration <= 2:
            equal.append(found == expected)
        else:
            # Windows change the context of attention, not which frame is where.
            assert 0.5 < (found == expected).mean() < 1
            assert (found[1:] == expected[:-1]).mean() < (found == expected).mean()
    assert np.concatenate(equal).mean() >= 0.999

    call(
        dump_tokens,
        **both,
        output_dir=tmp_path / "half",
        teacher_path=moved,
        teacher_dtype="bfloat16",
    )
    assert f"{field}: bfloat16 against float32, " in caplog.text
    with pytest.raises(ValueError, match="teacher_dtype"):
        call(dump_tokens, **both, output_dir=tmp_path / "half", teacher_path=moved)
