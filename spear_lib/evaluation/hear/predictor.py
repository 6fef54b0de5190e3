"""HEAR's predictor: a small network on frozen embeddings, with early stopping, a grid and folds.

As heareval 2021.1.3 (spec evaluation §2.3, golden/hear): embeddings are not normalised, training data are
not shuffled between epochs, validation every few epochs, strictly better is better, the first best is kept.
Unlike it, an event score of nothing predicted is 0 and does not end the training.

Legend: N rows (clips or frames), D channels, K classes.
"""

import itertools
import math
import random
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spear_lib.evaluation.hear.events import find_events
from spear_lib.evaluation.hear.scores import CLIP_SCORES, EVENT_SCORES, Events, primary
from spear_lib.evaluation.hear.tasks import EVENT, MULTICLASS, Embedded, HearTask

HIDDEN_DIM = 1024
DROPOUT = 0.1
BATCH_SIZE = 1024


@dataclass(frozen=True)
class PredictorConfig:
    """How the predictor is chosen and trained; defaults as heareval."""

    grid_points: int = 8
    """Of 16 settings (layers 1 or 2; learning rate 3.2e-3, 1e-3, 3.2e-4, 1e-4; two initialisations), so many
    are tried on validation, in an order that the seed decides."""
    max_epochs: int = 500
    """Most epochs."""
    check_every: int = 3
    """Validate after every n-th epoch; DCASE 2016 task 2 takes 10."""
    patience: int = 20
    """Validations without a better score that end the training."""

    def __post_init__(self) -> None:
        for name in ("grid_points", "max_epochs", "check_every", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"predictor.{name} is {getattr(self, name)}: use 1 or more")


@dataclass(frozen=True)
class Setting:
    """One point of the grid."""

    hidden_layers: int = 1
    learning_rate: float = 1e-3
    initialisation: str = "uniform"
    """Of the weights: xavier, uniform or normal."""


def grid(config: PredictorConfig, seed: int) -> list[Setting]:
    """The settings that are tried."""
    settings = [
        Setting(*point)
        for point in itertools.product((1, 2), (3.2e-3, 1e-3, 3.2e-4, 1e-4), ("uniform", "normal"))
    ]
    random.Random(seed).shuffle(settings)
    return settings[: config.grid_points]


class Predictor(nn.Sequential):
    """Per hidden layer linear, batch norm, dropout, ReLU; then a linear layer: (N, D) -> logits (N, K)."""

    def __init__(self, num_inputs: int, num_classes: int, setting: Setting) -> None:
        widths = [num_inputs] + [HIDDEN_DIM] * setting.hidden_layers
        initialise = {"uniform": nn.init.xavier_uniform_, "normal": nn.init.xavier_normal_}
        layers: list[nn.Module] = []
        for index, (inputs, outputs) in enumerate(zip(widths, [*widths[1:], num_classes])):
            linear = nn.Linear(inputs, outputs)
            initialise[setting.initialisation](linear.weight, gain=1.0 if index == 0 else math.sqrt(2.0))
            layers.append(linear)
            if index < setting.hidden_layers:
                layers += [nn.BatchNorm1d(outputs), nn.Dropout(DROPOUT), nn.ReLU()]
        super().__init__(*layers)


@dataclass
class Trained:
    """A trained predictor and how it was chosen."""

    model: Predictor
    validation: float
    epoch: int
    median_filter_ms: float
    min_duration_ms: float


def train_predictor(
    task: HearTask,
    train: Embedded,
    valid: Embedded,
    setting: Setting,
    config: PredictorConfig,
    seed: int,
    device: torch.device | str = "cpu",
) -> Trained:
    """One predictor, the best of its validations."""
    devices = [device] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        model = Predictor(train.vectors.shape[1], len(task.labels), setting).to(device)
        optimiser = torch.optim.Adam(model.parameters(), lr=setting.learning_rate)
        x = torch.from_numpy(train.vectors).to(device)
        targets = torch.from_numpy(train.targets).to(device)
        best, weights, waited = None, {}, 0
        for epoch in range(config.max_epochs):
            model.train()
            for rows in _batches(len(x)):
                optimiser.zero_grad(set_to_none=True)
                _loss(model(x[rows]), targets[rows], task.prediction_type).backward()
                optimiser.step()
            if (epoch + 1) % config.check_every and epoch + 1 < config.max_epochs:
                continue
            found = _validate(task, model, valid, epoch)
            if best is None or found.validation > best.validation:
                best, waited = found, 0
                weights = {name: value.clone() for name, value in model.state_dict().items()}
            else:
                waited += 1
                if waited >= config.patience:
                    break
        assert best is not None
        model.load_state_dict(weights)
        return best


def _batches(count: int) -> list[slice]:
    """Rows in order; a last row alone joins the batch before it, as a batch norm of one row is none."""
    starts = list(range(0, count, BATCH_SIZE))
    if len(starts) > 1 and count - starts[-1] == 1:
        starts.pop()
    return [slice(start, end) for start, end in zip(starts, [*starts[1:], count])]


def _loss(logits: Tensor, targets: Tensor, prediction_type: str) -> Tensor:
    if prediction_type == MULTICLASS:
        return F.cross_entropy(logits, targets.int().argmax(1))
    return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))


@torch.no_grad()
def predict(task: HearTask, model: Predictor, data: Embedded) -> np.ndarray:
    """Probabilities (N, K)."""
    model.eval()
    device = next(model.parameters()).device
    parts = [
        model(torch.from_numpy(data.vectors[rows]).to(device)).cpu() for rows in _batches(len(data.vectors))
    ]
    logits = torch.cat(parts)
    return (logits.softmax(1) if task.prediction_type == MULTICLASS else logits.sigmoid()).numpy()


def events_of_frames(
    task: HearTask, data: Embedded, probabilities: np.ndarray, median_filter_ms: float, min_duration_ms: float
) -> Events:
    """File -> events found in its frames."""
    ends = np.cumsum([len(times) for times in data.times])
    parts = np.split(probabilities, ends[:-1])
    return {
        name: find_events(part, times, task.labels, median_filter_ms, min_duration_ms)
        for name, times, part in zip(data.files, data.times, parts)
    }


def _validate(task: HearTask, model: Predictor, valid: Embedded, epoch: int) -> Trained:
    probabilities = predict(task, model, valid)
    if task.embedding_type != EVENT:
        score = CLIP_SCORES[task.scores[0]](probabilities, valid.targets)
        return Trained(model, -math.inf if math.isnan(score) else score, epoch, 0.0, 0.0)
    target = dict(zip(valid.files, valid.events))
    found = []
    for width, shortest in itertools.product(task.median_filter_ms, task.min_durations_ms):
        predicted = events_of_frames(task, valid, probabilities, width, shortest)
        score = primary(EVENT_SCORES[task.scores[0]](predicted, target))
        found.append(Trained(model, score, epoch, width, shortest))
    return max(found, key=lambda each: each.validation)


def test_scores(task: HearTask, trained: Trained, test: Embedded) -> dict[str, float]:
    """Every score of the task; of event scores the f_measure or error_rate."""
    probabilities = predict(task, trained.model, test)
    if task.embedding_type != EVENT:
        return {name: CLIP_SCORES[name](probabilities, test.targets) for name in task.scores}
    predicted = events_of_frames(task, test, probabilities, trained.median_filter_ms, trained.min_duration_ms)
    target = dict(zip(test.files, test.events))
    scores = {}
    for name in task.scores:
        values = EVENT_SCORES[name](predicted, target)
        value = values.get("f_measure", values.get("error_rate", math.nan))
        scores[name] = 0.0 if math.isnan(value) else value
    return scores


test_scores.__test__ = False  # a score of tests, not a test
