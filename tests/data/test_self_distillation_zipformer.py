"""SpidR's objective on the Zipformer, alone and beside SPEAR's token loss; and how its data are read."""

from collections import Counter

import pytest
import torch
import yaml
from pretraining_fixtures import FIELD, make_corpus
from self_distillation_fixtures import reported, state, write_config

from spear_lib import load_encoder
from spear_lib.bin import pretrain, self_distill
from spear_lib.config import load
from spear_lib.encoders.kinds import build_encoder
from spear_lib.encoders.zipformer import SpearEncoder, ZipformerConfig
from spear_lib.pretraining import token_fields
from spear_lib.self_distillation.data import SelfDistillationData
from spear_lib.self_distillation.objective import ObjectiveConfig
from spear_lib.self_distillation.options import SelfDistillOptions
from spear_lib.self_distillation.task import SelfDistillationModel, SelfDistillationTask
from spear_lib.self_distillation.views import view_of
from spear_lib.self_distillation.with_tokens import new_task
from spear_lib.training.task import StepClock

ZIPFORMER = {
    "frontend_channels": [2, 4, 4],
    "downsampling_factor": [1, 2, 4],
    "num_encoder_layers": [1, 2, 1],
    "encoder_dim": [24, 32, 24],
    "feedforward_dim": [32],
    "encoder_unmasked_dim": [16],
    "num_heads": [2],
    "query_head_dim": [8],
    "value_head_dim": [6],
    "pos_dim": 8,
    "cnn_module_kernel": [7],
    "balancer": False,
    "whiten": False,
}
SCALED_ADAM = {"optimizer": "scaled_adam", "learning_rate": 0.03, "finish": [], "finish_steps": 0}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    return folder, make_corpus(folder, 12), make_corpus(folder, 4, "dev")


def configuration(corpus, name, **changes):
    training = {**SCALED_ADAM, "max_steps": 6, "valid_interval": 3, "save_interval": 3}
    training |= changes.pop("training", {})
    return write_config(
        *corpus, name=name, encoder_type="zipformer", encoder=ZIPFORMER, training=training, **changes
    )


def train(config, folder, *more):
    self_distill.main(["--config", str(config), "--experiment_dir", str(folder), *more])


def test_stacks_at_their_own_rates(corpus):
    config = configuration(corpus, "z", objective={"stacks": [2, 3]})
    folder = corpus[0] / "z"
    train(config, folder, "--training.max_steps", "3")
    train(config, folder)
    whole = corpus[0] / "z-whole"
    train(config, whole)
    values, expected = reported(folder), reported(whole)
    assert {key: v for key, v in values.items() if key[0] == "train"} == {
        key: v for key, v in expected.items() if key[0] == "train"
    }
    last = expected["train", 6]
    assert {"loss_stack_2", "loss_stack_3", "target_perplexity_stack_3"} <= last.keys()
    model = state(whole)["model"]
    assert model["codebooks.0.codebook"].shape == (8, 32) and model["heads.1.weight"].shape == (8, 24)
    assert all(torch.equal(value, state(folder)["model"][name]) for name, value in model.items())
    first = state(whole, "step-00000003.pt")["model"]
    moved = "teacher.encoder.encoders.0.layers.0.norm.bias"
    assert not torch.equal(first[moved], model[moved]), "the teacher follows"
    assert load_encoder(folder / "checkpoints" / "last.pt").encoder_type == "zipformer"


def toy(stacks, **changes):
    torch.manual_seed(0)
    settings = {**ZIPFORMER, "stochastic": False, "limit_gradients": False}
    encoder = SpearEncoder(ZipformerConfig(**settings))
    objective = ObjectiveConfig(codebook_size=8, stacks=stacks, **changes)
    return SelfDistillationTask(SelfDistillationModel(encoder, objective), objective)


def batches(corpus):
    config = load(SelfDistillOptions, {"experiment_dir": "x", "data": {"train_cuts": [str(corpus[1])]}}).data
    return SelfDistillationData(config, "fbank")


def test_frames_of_slower_stacks_and_independence_of_the_batch(corpus):
    task = toy([])
    batch = next(batches(corpus).epoch_batches(0))
    task.model.train()

    def pairs_of(part):
        task.begin_step(part, StepClock(1, 1.0, 0.0, 1))
        return task.model.view.forward(task.model.teacher, part).pairs

    together = pairs_of(batch)
    lengths = task.model.encoder.hidden_length(batch.num_samples)
    for factor, pair in zip((1, 2, 4), together):
        assert pair.duration == factor
        assert pair.valid.sum(1).tolist() == [-(-int(n) // factor) for n in lengths]
        assert not (pair.masked & ~pair.valid).any()
        share = (pair.masked.sum() / pair.valid.sum()).item()
        assert 0.35 < share < 0.75
    part = type(batch)(batch.ids[1:2], batch.keys[1:2], batch.waveforms[1:2], batch.num_samples[1:2])
    part.time_mask = batch.time_mask[1:2]
    alone = pairs_of(part)
    for one, many in zip(alone, together):
        frames = int(one.valid.sum())
        assert torch.equal(one.masked[0, :frames], many.masked[1, :frames])
        for first, second in ((one.teacher, many.teacher), (one.student, many.student)):
            assert torch.allclose(first[0, :frames], second[1, :frames], atol=2e-5)


def test_every_parameter_gets_a_gradient_whatever_the_stacks(corpus):
    batch = next(batches(corpus).epoch_batches(0))
    for stacks in ([1], [2], []):
        task = toy(stacks)
        task.model.train()
        task.begin_step(batch, StepClock(1, 1.0, 0.0, 1))
        task.compute(batch).loss_sum.backward()
        missing = [n for n, p in task.model.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing, (stacks, missing)


def test_the_loss_of_slower_stacks_counts_by_duration(corpus):
    batch = next(batches(corpus).epoch_batches(0))
    task = toy([1, 3])
    task.model.eval()
    result = task.compute(batch)
    values = task.summarise(result.stats)
    pairs = task.model.view.forward(task.model.teacher, batch).pairs
    seconds = [int(pair.masked.sum()) * pair.duration for pair in pairs]
    expected = (values["loss_stack_1"] * seconds[0] + values["loss_stack_3"] * seconds[1]) / sum(seconds)
    assert values["loss"] == pytest.approx(expected, rel=1e-5)
    assert result.num_frames == pytest.approx(sum(seconds) / 2)


@pytest.mark.parametrize("stacks", [[4], [0], [1, 1]])
def test_stacks_that_are_not_there_are_refused(stacks):
    with pytest.raises(ValueError, match="from 1 to 3"):
        view_of(SpearEncoder(ZipformerConfig(**ZIPFORMER)), stacks)


def with_tokens(corpus, name, **changes):
    data = {"token_fields": [FIELD], **changes.pop("data", {})}
    return configuration(corpus, name, data=data, **changes)


def test_with_spear_s_tokens(corpus):
    config = with_tokens(corpus, "both", tokens={"weight": 0.5, "distillation_weight": 2.0})
    folder, whole = corpus[0] / "both", corpus[0] / "both-whole"
    train(config, folder, "--training.max_steps", "3")
    train(config, folder)
    train(config, whole)
    values, expected = reported(folder), reported(whole)
    assert all(values[key] == expected[key] for key in expected if key[0] == "train")
    last = expected["train", 6]
    assert {"tokens/masked_loss", "tokens/unmasked_loss", "loss_stack_1"} <= last.keys()
    assert last["weighted"] > 0.5 * last["tokens/loss"]
    checkpoint = state(whole)
    assert f"token_heads.{FIELD}.weight" in checkpoint["model"]
    assert checkpoint["quantizer_ids"] == {FIELD: "tones-1"}


def test_both_losses_are_those_of_each_alone(corpus):
    """The sum of the weighted parts, and the token part is pre-training's own."""
    config = with_tokens(corpus, "parts", tokens={"weight": 0.25, "distillation_weight": 3.0})
    options = load(SelfDistillOptions, {**_content(config), "experiment_dir": "x"})
    fields = options.tokens.objective.fields_by_domain(options.data.token_fields)
    data = SelfDistillationData(
        options.data, "fbank", needed_fields=fields, training=False, cuts=[str(corpus[2])]
    )
    training_data = SelfDistillationData(options.data, "fbank", needed_fields=fields)
    torch.manual_seed(0)
    task = new_task(
        build_encoder(options.encoder_config),
        options.objective,
        token_fields(training_data, {}),
        options.tokens,
    )
    task.model.eval()
    batch = next(data.epoch_batches(0))
    both = task.compute(batch)
    seen = task.model.view.forward(task.model.teacher, batch)
    distilled = SelfDistillationTask.losses(task, seen, batch)
    predicted = task.tokens.losses(seen.encoder_out.float(), seen.lengths, batch)
    expected = 3.0 * distilled.loss_sum + 0.25 * predicted.loss_sum
    assert both.loss_sum.item() == pytest.approx(expected.item(), rel=1e-6)
    assert both.num_frames == int(seen.lengths.sum())


def _content(path):
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--tokens.weight", "0", "both weights are above 0"),
        ("--data.token_fields", "[other]", "has no tokens 'other'"),
        ("--data.quantizer_ids", "[another]", "expected another"),
        ("--start", "spidr.pt", "start is for encoder_type spidr"),
    ],
)
def test_wrong_token_options_are_refused(corpus, capfd, option, value, message):
    config = with_tokens(corpus, "refused")
    with pytest.raises((SystemExit, ValueError)) as raised:
        train(config, corpus[0] / "refused", option, value)
    text = capfd.readouterr().err if isinstance(raised.value, SystemExit) else str(raised.value)
    assert message in text


def test_a_run_of_another_kind_is_not_gone_on_with(corpus):
    config = configuration(corpus, "kind")
    folder = corpus[0] / "kind"
    train(config, folder, "--training.max_steps", "1")
    other = {"experiment_dir": str(folder), "encoder": ZIPFORMER, "valid_cuts": [str(corpus[2])]}
    other["data"] = {"train_cuts": [str(corpus[1])], "token_fields": [FIELD], "num_workers": 0}
    path = corpus[0] / "pretrain.yaml"
    path.write_text(yaml.safe_dump(other))
    with pytest.raises(ValueError, match="checkpoint of 'self_distillation', expected 'pretraining'"):
        pretrain.main(["--config", str(path), "--training.device", "cpu", "--probe.every", "0"])


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_epoch_takes_every_cut_once(corpus, ranks):
    """The reference repeats a round of batches where their number is a multiple of the ranks (fault 5)."""
    config = load(
        SelfDistillOptions,
        {
            "experiment_dir": "x",
            "data": {"train_cuts": [str(corpus[1])], "batch_seconds": 4.0, "num_workers": 0},
        },
    ).data
    for training in (True, False):
        seen = Counter()
        for rank in range(ranks):
            data = SelfDistillationData(config, "waveform", rank=rank, world_size=ranks, training=training)
            for batch in data.epoch_batches(0):
                seen.update(batch.ids)
        assert len(seen) == 12 and set(seen.values()) == {1}


def test_masks_belong_to_cut_and_epoch_alone(corpus):
    options = {"experiment_dir": "x", "data": {"train_cuts": [str(corpus[1])], "num_workers": 0}}
    masks = []
    for epoch, seconds, size in ((0, 4.0, 1), (0, 30.0, 2), (1, 30.0, 1)):
        options["data"]["batch_seconds"] = seconds
        data = SelfDistillationData(load(SelfDistillOptions, options).data, "waveform", world_size=size)
        found = {}
        for batch in data.epoch_batches(epoch):
            for name, length, mask in zip(batch.ids, batch.num_samples, batch.time_mask):
                found[name] = mask[: int(length) // 160].tolist()
        masks.append(found)
    common = masks[0].keys() & masks[1].keys()
    assert len(common) >= 5 and all(masks[0][name] == masks[1][name] for name in common)
    assert sum(masks[0][name] != masks[2][name] for name in common) >= len(common) - 1


def test_torch_compile_is_for_spidr_alone():
    with pytest.raises(ValueError, match="compile is for encoder_type spidr"):
        SelfDistillOptions(experiment_dir="exp", encoder_type="zipformer", compile=True)
