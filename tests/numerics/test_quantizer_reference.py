"""The reference's training schedule, step by step against its stored trace."""

from pathlib import Path

import pytest
import torch
from quantizer_fixtures import stream
from safetensors.torch import load_file

from spear_lib.quantization import Quantizer, reference_trainer
from spear_lib.quantization.options import QuantizerTrainingOptions
from spear_lib.quantization.reference_trainer import ReferenceTrainer, train_reference

GOLDEN = Path(__file__).parents[1] / "golden" / "mvq.safetensors"


def test_trace_is_the_references():
    golden = {n[6:]: v for n, v in load_file(GOLDEN).items() if n.startswith("train.")}

    def state(prefix: str) -> dict[str, torch.Tensor]:
        return {n[len(prefix) :]: v for n, v in golden.items() if n.startswith(prefix) and "id_buf" not in n}

    trainer = ReferenceTrainer(Quantizer.from_reference(state("init.")), 12, 12)
    assert trainer.num_steps == len(golden["x"]) == 25
    for step in range(25):
        assert trainer.learning_rate() == pytest.approx(float(golden["lr"][step]), rel=1e-6)
        losses = trainer.step(golden["x"][step], int(golden["refine_iters"][step]))
        expected = golden["losses"][step]
        torch.testing.assert_close(torch.stack(list(losses)).detach(), expected, atol=1e-4, rtol=1e-4)
        if step == 12:
            for name, value in state("after_phase1.").items():
                torch.testing.assert_close(trainer.quantizer.state_dict()[name], value, atol=1e-4, rtol=1e-4)
    for name, value in state("final.").items():
        torch.testing.assert_close(trainer.quantizer.state_dict()[name], value, atol=1e-4, rtol=1e-4)


def test_stopped_in_either_phase_ends_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(reference_trainer, "_SAVE_EVERY", 3)
    frames = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)).half()
    data = stream(tmp_path / "e", frames, normalisation="none")
    options = QuantizerTrainingOptions(
        method="reference", num_codebooks=2, phase_one_steps=4, phase_two_steps=5, batch_frames=32
    )
    whole, history = train_reference(data, options, 0, tmp_path / "whole", "run")
    save, count = reference_trainer.save_state, [0]

    def save_and_stop(state, path):
        save(state, path)
        count[0] += 1
        if count[0] <= 2:  # after step 3 (phase one) and step 6 (phase two)
            raise KeyboardInterrupt

    monkeypatch.setattr(reference_trainer, "save_state", save_and_stop)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train_reference(data, options, 0, tmp_path / "stopped", "run")
    again, again_history = train_reference(data, options, 0, tmp_path / "stopped", "run")
    assert count == [3] and again.id == whole.id and again_history == history
    assert (whole.num_codebooks, whole.codebook_size) == (2, 256)
    other = train_reference(data, options, 1, tmp_path / "other", "run")[0]
    assert other.id != whole.id


def test_messages(tmp_path):
    data = stream(tmp_path / "e", torch.randn(60, 3), normalisation="none")
    options = QuantizerTrainingOptions(method="reference", codebook_size=16)
    with pytest.raises(ValueError, match="codebook_size is 16: the reference method makes codebooks of 256"):
        train_reference(data, options, 0, tmp_path, "run")
    with pytest.raises(ValueError, match="phases of 3 and 9 steps are too short"):
        ReferenceTrainer(Quantizer(3, 2, 16), 3, 9)
    with pytest.raises(ValueError, match="method is 'adam': use least_squares or reference"):
        QuantizerTrainingOptions(method="adam")
