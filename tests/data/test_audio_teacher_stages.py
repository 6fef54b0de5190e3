"""Stages 3 to 6 as commands with Dasheng and ATST-Frame checkpoints, long and silent recordings included."""

import numpy as np
import pytest
import soundfile
import torch
from audio_teacher_fixtures import save_atst_checkpoint, save_dasheng_checkpoint
from lhotse import Recording

from spear_lib.bin import check_tokens, dump_tokens, extract_embeddings, train_quantizer
from spear_lib.data.manifests import Manifest, save_cuts
from spear_lib.quantization import Quantizer
from spear_lib.teachers import create_teacher
from spear_lib.tokens.fields import load_tokens, token_facts

RECIPE = """
sampling: {num_frames: 400, frames_per_cut: 60, shard_frames: 240}
training: {num_codebooks: 3, codebook_size: 16, rounds: 3, frames_per_round: 300, init_frames: 300,
           init_iterations: 2, classifier_frames: 300, classifier_steps: 3, held_out_fraction: 0.2}
"""
SECONDS = (1.0, 1.3, 0.9999375, 2.0, 1.52, 0.8, 10.0, 13.07, 1.0)  # the last one is silent


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    random, cuts = np.random.default_rng(0), []
    for number, seconds in enumerate(SECONDS):
        samples = round(16000 * seconds)
        path = folder / f"r{number}.wav"
        sound = 0.002 * random.standard_normal(samples).cumsum() * (number < len(SECONDS) - 1)
        soundfile.write(path, sound - sound.mean(), 16000, subtype="FLOAT")
        cuts.append(Recording.from_file(path).to_cut())
    save_cuts(cuts, folder / "cuts.jsonl.gz")
    (folder / "quantizer.yaml").write_text(RECIPE)
    return folder


def call(module, **options) -> None:
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    module.main(list(arguments))


@pytest.mark.parametrize(
    "name, save, prefix",
    [
        ("dasheng", save_dasheng_checkpoint, "dasheng_d32_l2"),
        ("atst_frame", save_atst_checkpoint, "atst_frame_l2"),
    ],
)
def test_stages_3_to_6(corpus, tmp_path, name, save, prefix):
    checkpoint = save(tmp_path / "weights.pt")
    cuts, config = corpus / "cuts.jsonl.gz", corpus / "quantizer.yaml"
    embeddings, quantizer, store = tmp_path / "embeddings", tmp_path / "quantizer", tmp_path / "tokens"
    options = {"teacher": name, "teacher_path": checkpoint}
    call(extract_embeddings, config=config, cuts=cuts, output_dir=embeddings, **options)
    call(train_quantizer, config=config, embeddings=embeddings, output_dir=quantizer)
    call(dump_tokens, cuts=cuts, quantizer=quantizer, output_dir=store)
    attached = tmp_path / "cuts" / "cuts.jsonl.gz"
    call(check_tokens, cuts=cuts, quantizer=quantizer, store=store, output_cuts=attached)
    codes, teacher = Quantizer.load(quantizer), create_teacher(name, checkpoint)
    equal, changed = [], 0.0
    for cut, seconds in zip(Manifest(attached), SECONDS):
        facts = token_facts(cut, f"{prefix}_cb3")
        assert facts["teacher_id"] == teacher.id
        assert (facts["frame_rate"], facts["first_frame_center_ms"]) == (25.0, 15.0)
        audio = torch.from_numpy(cut.load_audio())
        alone = codes.encode(teacher.embed(audio, torch.tensor([audio.shape[1]]))[0][0]).numpy()
        found = load_tokens(cut, f"{prefix}_cb3")
        assert found.shape == alone.shape == (teacher.num_frames(round(16000 * seconds)), 3)
        if seconds <= 10:
            equal.append(found == alone)
        else:
            # Overlapping windows instead of chunks side by side: other context, the same place.
            changed = float((found != alone).mean())
            assert (found[1:] == alone[:-1]).mean() < (found == alone).mean()
    assert np.concatenate(equal).mean() >= 0.999
    assert 0 < changed < 0.9
