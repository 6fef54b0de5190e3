"""Plans of fine-tuning and self-distillation: on tensors without data they count what a real step takes."""

import dataclasses

import pytest
import torch
from tiny_encoder import TINY

from spear_lib.asr.model import AsrModel, TransducerConfig
from spear_lib.asr.task import AsrTask
from spear_lib.asr.units import load_units
from spear_lib.data.batch import Batch
from spear_lib.encoders.kinds import build_encoder
from spear_lib.encoders.spidr import SpidrConfig
from spear_lib.runtime.devices import plan_for_accelerator
from spear_lib.self_distillation.data import hide_frames
from spear_lib.self_distillation.masking import FrameMaskingConfig
from spear_lib.self_distillation.objective import ObjectiveConfig
from spear_lib.self_distillation.options import SelfDistillOptions
from spear_lib.self_distillation.plan import plan_lines
from spear_lib.self_distillation.task import SelfDistillationModel, SelfDistillationTask
from spear_lib.tagging.model import TaggingConfig, TaggingModel
from spear_lib.tagging.task import TaggingTask
from spear_lib.training.options import TrainingConfig
from spear_lib.training.planning.machines import PlanConfig
from spear_lib.training.planning.memory import Pretence
from spear_lib.training.planning.step import count_task
from spear_lib.transducer import select_backend
from spear_lib.transducer.pretended import PRETENDED
from spear_lib.transducer.recursions import TORCH

UNITS = load_units("characters")
EIGHT_CODES = ObjectiveConfig(codebook_size=8)
CLASSES = {str(number): f"class {number}" for number in range(7)}


def batch_of(**fields) -> Batch:
    generator = torch.Generator().manual_seed(0)
    waveforms = 0.1 * torch.randn(3, 16000, generator=generator)
    counts = [16000, 15000, 12000]
    return Batch(list("abc"), torch.arange(3), waveforms, torch.tensor(counts), counts, **fields)


def asr(encoder) -> AsrTask:
    config = TransducerConfig(ctc_loss_scale=0.2, decoder_dim=16, joiner_dim=16)
    return AsrTask(AsrModel(encoder, config, UNITS.vocab_size), UNITS)


def distillation_batch(kind: str) -> Batch:
    batch = batch_of()
    hide_frames(batch, FrameMaskingConfig(), kind)
    return batch


TASKS = {
    "asr": (asr, batch_of(texts=["ONE TWO THREE", "FOUR", "FIVE SIX"])),
    "tagging": (
        lambda e: TaggingTask(TaggingModel(e, TaggingConfig(), 7), CLASSES),
        batch_of(labels=torch.rand(3, 7)),
    ),
    "self-distillation": (
        lambda encoder: SelfDistillationTask(
            SelfDistillationModel(encoder, ObjectiveConfig(codebook_size=8))
        ),
        distillation_batch("fbank"),
    ),
}


@pytest.mark.parametrize("name", TASKS)
def test_tensors_without_data_take_what_real_ones_take(name):
    """The witness is the same step with data, of which storages and operators are counted alike."""
    make_task, batch = TASKS[name]
    pretence = Pretence()
    pretended = dataclasses.replace(batch, waveforms=pretence.empty(*batch.waveforms.shape))
    training = TrainingConfig()
    torch.manual_seed(0)
    arguments = (training, "fp32", 1, False)
    planned = count_task(pretence.task(lambda: make_task(build_encoder(TINY))), pretended, *arguments)
    real = count_task(make_task(build_encoder(TINY)), batch, *arguments)
    assert planned.weights == real.weights and planned.gradients == real.gradients
    # With numbers at hand a CPU's ScaledAdam also keeps what it last reported about.
    assert 0 <= real.optimizer - planned.optimizer <= real.gradients
    assert planned.flops == pytest.approx(real.flops, rel=0.02)
    for part in ("kept", "forward", "backward"):
        assert getattr(planned, part) == pytest.approx(getattr(real, part), rel=0.1), part


def test_spidr_by_hand():
    """Weights, teacher and AdamW in closed form; the plan's words."""
    config = SpidrConfig.mini(codebook_size=256)
    options = SelfDistillOptions(experiment_dir="never", spidr=config, plan=PlanConfig(gpus=2))
    options = dataclasses.replace(
        options,
        data=dataclasses.replace(options.data, batch_seconds=12.0, max_duration=3.0),
        training=TrainingConfig(optimizer="adamw", max_steps=100),
    )
    model = SelfDistillationModel(build_encoder(config), options.objective)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    everything = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    lines = plan_lines(options)
    assert lines["worst batch"] == "2 cuts of 3 s on one GPU, bf16"
    assert lines["memory, weights"] == f"{everything / 1e6:.1f} MB"
    assert lines["memory, gradients"] == f"{4 * trained / 1e6:.1f} MB, kept in DDP's buckets"
    assert lines["memory, AdamW"].startswith(f"{8 * trained / 1e6:.1f} MB; its update reaches")
    assert "PyTorch's" in lines["work"] and lines["length"] == "100 steps, 0.3 hours of audio"
    assert "checkpoint_activations" not in " ".join(lines) and "at the highest" in lines["memory"]


def test_the_teacher_and_the_codes_move_in_a_planned_step():
    """The update of a step: the optimiser's operators, then one `lerp` over the teacher's tensors."""
    make_task, batch = TASKS["self-distillation"]
    pretence = Pretence()
    batch = dataclasses.replace(batch, waveforms=pretence.empty(*batch.waveforms.shape))
    task = pretence.task(lambda: make_task(build_encoder(TINY)))
    memory = count_task(task, batch, TrainingConfig(), "fp32", 1)
    followed = [work for work in memory.work if "lerp" in work.name]
    teacher = sum(p.numel() for p in task.model.teacher.parameters())
    assert sum(work.bytes for work in followed) >= 3 * 4 * teacher  # both are read, one is written


@pytest.mark.parametrize("regular", [True, False])
def test_recursions_of_a_plan_have_the_shapes_of_the_losses(regular):
    """As plain torch gives them; and a plan takes them, whatever is installed."""
    px, py = torch.randn(2, 3, 6 if regular else 5), torch.randn(2, 4, 5)
    lengths = torch.tensor([3, 2]), torch.tensor([5, 4])
    start = torch.zeros(2, 5, dtype=torch.int64)
    band = torch.randn(2, 5, 3)
    for name, arguments in (("lattice", (px, py)), ("band", (band, band, start))):
        ours, theirs = (
            getattr(each, name)(*arguments, *lengths, regular, True) for each in (PRETENDED, TORCH)
        )
        assert [(each.shape, each.dtype) for each in ours] == [(each.shape, each.dtype) for each in theirs]
    assert str(select_backend("auto", "cpu")).startswith("torch")
    with plan_for_accelerator():
        assert str(select_backend("auto", "cpu")) == "triton (planned)"
        assert str(select_backend("torch", "cpu")) == "torch (as asked for)"
