"""HEAR's task folders as they are published, and the embeddings of their audio.

    TASK/task_metadata.json  labelvocabulary.csv  {split}.json  {rate}/{split}/*.wav

Legend: N clips or frames of a split, D channels, K classes.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from spear_lib.data.audio import load_audio
from spear_lib.data.audio_files import open_audio
from spear_lib.evaluation.hear.events import MEDIAN_FILTER_MS, MIN_DURATIONS_MS, frame_targets
from spear_lib.evaluation.hear.scores import CLIP_SCORES, EVENT_SCORES, Event
from spear_lib.features.fbank import SAMPLE_RATE
from spear_lib.interfaces.aligned import AlignedEncoder
from spear_lib.runtime.files import atomic_path, read_json
from spear_lib.runtime.progress import progress
from spear_lib.runtime.tables import read_table

SCENE, EVENT = "scene", "event"
MULTICLASS, MULTILABEL = "multiclass", "multilabel"
METADATA, VOCABULARY = "task_metadata.json", "labelvocabulary.csv"


@dataclass(frozen=True)
class HearTask:
    """One task folder."""

    folder: Path
    name: str
    embedding_type: str
    """scene: one vector per clip; event: one per frame."""
    prediction_type: str
    """multiclass or multilabel."""
    scores: list[str]
    """Names of scores, the primary one first."""
    labels: list[str]
    splits: list[str]
    """train, valid, test; or folds."""
    clips: dict[str, dict[str, list]] = field(repr=False)
    """Split -> file -> its labels, or its Events."""
    median_filter_ms: list[float] = field(default_factory=lambda: [MEDIAN_FILTER_MS])
    min_durations_ms: list[float] = field(default_factory=lambda: list(MIN_DURATIONS_MS))

    def rounds(self) -> list[tuple[list[str], str, str]]:
        """(splits to train on, split to validate on, split to test on): one, or one per fold."""
        if self.splits == ["train", "valid", "test"]:
            return [(["train"], "valid", "test")]
        count = len(self.splits)
        rounds = []
        for index, test in enumerate(self.splits):
            valid = self.splits[(index + 1) % count]
            rounds.append(([name for name in self.splits if name not in (test, valid)], valid, test))
        return rounds

    def audio_folder(self) -> Path:
        """Of the sample rate that costs least: 16 kHz, else the highest."""
        rates = sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())
        if not rates:
            raise ValueError(f"{self.folder} has no folder of audio, named after its sample rate: 48000")
        return self.folder / str(SAMPLE_RATE if SAMPLE_RATE in rates else rates[-1])


def find_tasks(folders: list[str]) -> list[Path]:
    """The task folders among ``folders`` and in them, each once.

    Raises:
      ValueError: a folder that is none and holds none.
    """
    found: dict[Path, None] = {}
    for folder in map(Path, folders):
        inside = [folder] if (folder / METADATA).exists() else sorted(folder.glob(f"*/{METADATA}"))
        if not inside:
            raise ValueError(
                f"{folder} is no HEAR task and holds none: no {METADATA} in it or one level below"
            )
        found |= {(path.parent if path.name == METADATA else path): None for path in inside}
    return list(found)


def read_task(folder: str | Path) -> HearTask:
    """The task in ``folder``; its audio is not looked at.

    Raises:
      ValueError: what is not as HEAR publishes it, with the file.
    """
    folder = Path(folder)
    metadata = read_json(folder / METADATA)

    def known(name: str, values: tuple[str, ...]) -> str:
        if metadata.get(name) not in values:
            raise ValueError(
                f"{folder / METADATA}: {name} is {metadata.get(name)!r}, one of {', '.join(values)} is known"
            )
        return metadata[name]

    embedding_type = known("embedding_type", (SCENE, EVENT))
    prediction_type = known("prediction_type", (MULTICLASS, MULTILABEL))
    split_mode = known("split_mode", ("trainvaltest", "presplit_kfold", "new_split_kfold"))
    table = EVENT_SCORES if embedding_type == EVENT else CLIP_SCORES
    scores = [name for name in metadata.get("evaluation", []) if name in table]
    if not scores:
        raise ValueError(
            f"{folder / METADATA}: evaluation is {metadata.get('evaluation')}; scores of {embedding_type} "
            f"tasks are {', '.join(table)}"
        )
    splits = ["train", "valid", "test"]
    if split_mode != "trainvaltest":
        splits = metadata.get("splits") or sorted(path.stem for path in folder.glob("fold*.json"))
        if len(splits) < 3:
            raise ValueError(f"{folder} has the folds {splits}: three or more are needed, fold00.json, ...")
    rows = read_table(folder / VOCABULARY, ("idx", "label"))
    labels = [label for _, label in sorted((int(row["idx"]), row["label"]) for _, row in rows)]
    clips = {split: _read_split(folder / f"{split}.json", embedding_type, labels) for split in splits}
    grid = metadata.get("evaluation_params", {}).get("event_postprocessing_grid", {})
    return HearTask(
        folder=folder,
        name=f"{metadata['task_name']}-{metadata.get('version', '')}".rstrip("-"),
        embedding_type=embedding_type,
        prediction_type=prediction_type,
        scores=scores,
        labels=labels,
        splits=splits,
        clips=clips,
        median_filter_ms=list(grid.get("median_filter_ms", [MEDIAN_FILTER_MS])),
        min_durations_ms=list(grid.get("min_duration", MIN_DURATIONS_MS)),
    )


def _read_split(path: Path, embedding_type: str, labels: list[str]) -> dict[str, list]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}): get the task again from where it came") from error
    clips: dict[str, list] = {}
    for name, found in content.items():
        if embedding_type == EVENT:
            clips[name] = [Event(str(one["label"]), float(one["start"]), float(one["end"])) for one in found]
            own = {event.label for event in clips[name]}
        else:
            clips[name] = [str(label) for label in ([found] if isinstance(found, str | int) else found)]
            own = set(clips[name])
        if own - set(labels):
            raise ValueError(
                f"{path}: {name} has the label {sorted(own - set(labels))[0]!r}, which is not in {VOCABULARY}"
            )
    return clips


@dataclass
class Embedded:
    """The embeddings of one split, or of several together."""

    vectors: np.ndarray
    """(N, D) float32."""
    targets: np.ndarray
    """(N, K) bool."""
    files: list[str] = field(default_factory=list)
    """Of event tasks: files in order."""
    times: list[np.ndarray] = field(default_factory=list)
    """Of event tasks: times in ms of the frames of each file, which follow each other in ``vectors``."""
    events: list[list[Event]] = field(default_factory=list)
    """Of event tasks: what is to be found in each file."""

    @classmethod
    def join(cls, parts: list["Embedded"]) -> "Embedded":
        """Several splits as one."""
        return cls(
            np.concatenate([part.vectors for part in parts]),
            np.concatenate([part.targets for part in parts]),
            [name for part in parts for name in part.files],
            [times for part in parts for times in part.times],
            [events for part in parts for events in part.events],
        )


def clip_targets(clips: dict[str, list], labels: list[str]) -> np.ndarray:
    """(N, K) bool of scene tasks."""
    return np.array([[label in own for label in labels] for own in clips.values()], dtype=bool)


@torch.no_grad()
def embed_split(
    task: HearTask, split: str, encoder: AlignedEncoder, cache: Path, offset_ms: float = 0.0
) -> Embedded:
    """The embeddings of a split, from ``cache`` where they were made before.

    Args:
      encoder: of one state.
      cache: folder of this encoder's embeddings of this task.
      offset_ms: added to the times of frames.
    """
    clips = task.clips[split]
    path = cache / f"{split}.npz"
    if not path.exists():
        vectors, counts = [], []
        audio = task.audio_folder() / split
        for name in progress(clips, len(clips), f"{task.name}, {split}", "clips"):
            samples = torch.from_numpy(load_audio(open_audio(audio / name)))
            if task.embedding_type == SCENE:
                vectors.append(encoder.means(samples)[0].float().cpu())
                counts.append(1)
                continue
            frames = encoder(samples).states[0][0].float().cpu()
            last = 1000.0 * len(samples) / SAMPLE_RATE - encoder.first_center_ms
            counts.append(min(len(frames), max(1, int(last // (1000.0 / encoder.frame_rate)) + 1)))
            vectors.append(frames[: counts[-1]])
        with atomic_path(path) as unfinished, open(unfinished, "wb") as file:
            np.savez(file, vectors=torch.cat(vectors).numpy(), counts=np.array(counts), files=list(clips))
    with np.load(path) as content:
        vectors, counts, files = content["vectors"], content["counts"].tolist(), content["files"].tolist()
    if files != list(clips):
        raise ValueError(f"{path} holds the embeddings of other clips: delete the folder {cache}")
    if task.embedding_type == SCENE:
        return Embedded(vectors, clip_targets(clips, task.labels))
    hop = 1000.0 / encoder.frame_rate
    times = [encoder.first_center_ms + offset_ms + hop * np.arange(count) for count in counts]
    targets = [frame_targets(events, one, task.labels) for events, one in zip(clips.values(), times)]
    return Embedded(vectors, np.concatenate(targets), files, times, list(clips.values()))
