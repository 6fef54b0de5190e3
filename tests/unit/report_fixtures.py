"""The folders of a finished recipe, with made-up numbers in the real formats."""

import json
import math
from pathlib import Path

import yaml

from spear_lib.asr import description as asr
from spear_lib.asr import wer
from spear_lib.pretraining import description as pretraining
from spear_lib.report import plots
from spear_lib.runtime.task_file import write_task


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_lines(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def make_data(folder: Path) -> None:
    """What prepare.sh leaves."""
    sets = {
        "train": (1200, 1.3, 40),
        "labelled": (240, 0.3, 6),
        "dev": (80, 0.09, 8),
        "test-clean": (80, 0.085, 8),
    }
    statistics = {
        name: {
            "cuts": cuts,
            "hours": hours,
            "speakers": speakers,
            "words": 12 * cuts,
            "mean_seconds": 3.9,
            "max_seconds": 8.25,
            "parts": [name],
            "skipped": 0,
            "problems": {},
        }
        for name, (cuts, hours, speakers) in sets.items()
    }
    write(folder / "manifests" / "librispeech_statistics.json", statistics)
    report = {
        "relative_error": {"0": 0.41, "1": 0.36, "2": 0.352, "5": 0.35},
        "bits_per_frame": 64.0,
        "perplexity": [180.2] * 8,
        "quantizer_id": "a1b2",
    }
    write(folder / "quantizers" / "spectral" / "report.json", report)
    curves = {"x": ([0, 1, 2, 5], [0.41, 0.36, 0.352, 0.35])}
    png = plots.lines([plots.LinePanel("error", "relative error", curves)])
    (folder / "quantizers" / "spectral" / "report.png").write_bytes(png)
    for name, frames in (("train", 234000), ("dev", 16000)):
        entropies = [4.6 + 0.1 * (codebook % 3) for codebook in range(8)]
        info = {
            "field": "spectral_cb8",
            "num_cuts": 1200,
            "num_frames": frames,
            "frame_rate": 50.0,
            "num_codebooks": 8,
            "codebook_size": 256,
            "quantizer_id": "a1b2",
            "unigram_entropy_nats": entropies,
        }
        write(folder / "tokens" / "spectral" / name / "store.json", info)
    for stage, seconds in enumerate((95.0, 12.5, 2.0, 31.0, 44.0, 60.2, 5.1, 1.0)):
        marker = {
            "stage": stage,
            "description": f"preparation {stage}",
            "wall_seconds": seconds,
            "peak_memory_mb": 700.5,
            "command": "./prepare.sh --mini true",
            "options": {"seed": "0"},
            "identities": {},
            "commit": "abc",
            "finished": "2026-01-02 03:04:05",
        }
        write(folder / ".done" / f"stage-{stage}.json", marker)
    write(folder / ".done" / "stage-4.started.json", {"stage": 4})


def make_pretraining(folder: Path) -> None:
    """What stage 10 leaves."""
    records = []
    for step in range(20, 1001, 20):
        masked = 3.1 + 2.4 * math.exp(-step / 250)
        values = {
            "masked_loss": masked,
            "unmasked_loss": masked - 0.5,
            "masked_accuracy": 0.3 - masked / 20,
            "unmasked_accuracy": 0.4 - masked / 20,
        }
        values["loss"] = masked
        rates = {"learning_rate": 0.045 * min(1, step / 200), "audio_seconds_per_second": 21.0 + step % 3}
        records.append(
            {"step": step, "epoch": step // 200, "kind": "train", **values, **rates, "seconds": step / 2}
        )
        if step % 200 == 0:
            codebooks = {"unigram_entropy": 4.71, "chance": math.log(256), "masked_loss_codebook_00": masked}
            records.append({"step": step, "epoch": 0, "kind": "valid/dev", **values, **codebooks})
            probe = {"speaker_accuracy": 40 + step / 20, "log_mel/speaker_accuracy": 51.0, "seconds": 1.0}
            records.append({"step": step, "epoch": 0, "kind": "probe/dev", **probe})
    write_lines(folder / "metrics.jsonl", records)
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": {"token_fields": ["spectral_cb8"]}}))
    write_task(folder, pretraining.DESCRIPTION)


def make_finetuning(folder: Path, floor: float, hypotheses: dict[str, str]) -> None:
    """What stages 12 and 13 leave."""
    records = []
    for step in range(20, 601, 20):
        loss = floor + 2.0 * math.exp(-step / 120)
        records.append({"step": step, "epoch": 0, "kind": "train", "loss": loss, "learning_rate": 0.04})
        if step % 100 == 0:
            valid = {"loss": 1.3 * loss, "wer": 100 * min(1.0, loss)}
            records.append({"step": step, "epoch": 0, "kind": "valid/dev", **valid})
    write_task(folder, asr.DESCRIPTION)
    write_lines(folder / "metrics.jsonl", records)
    (folder / "config.yaml").write_text(yaml.safe_dump({"encoder_lr_scale": 0.3, "training": {"seed": 0}}))
    for name in ("dev", "test-clean"):
        result = {"set": name, "method": "beam 4", **wer.score(REFERENCES, hypotheses).summary()}
        write(folder / "decode" / f"wer-{name}.json", result)


REFERENCES = {f"u{i}": "THE CAT <SAT> ON THE MAT" for i in range(20)}
GOOD = {id: text if int(id[1:]) % 4 else "THE HAT <SAT> ON MAT" for id, text in REFERENCES.items()}
BAD = {id: "THE CAT ON THE THE MAT" if int(id[1:]) % 2 else "A <SAT> MAT" for id in REFERENCES}


def make_probes(folder: Path) -> None:
    """What the probe command leaves."""

    def value(mean: float, metric: str, layer: str = "4 of 7") -> dict:
        return {"mean": mean, "std": 0.8, "values": [mean], "dev": mean, "metric": metric, "layer": layer}

    tasks = {
        task: {
            "pre-trained": value(best, metric),
            "random weights": value(best - 30, metric),
            "log-mel": value(best - 20, metric, "–"),
        }
        for task, best, metric in (
            ("words", 71.0, "mean average precision"),
            ("events", 64.25, "mean average precision"),
            ("speaker", 96.5, "accuracy"),
        )
    }
    description = {"words": "which words", "events": "the classes of sounds", "speaker": "who"}
    write(folder / "probes.json", {"tasks": tasks, "description": description})


def make_everything(folder: Path) -> None:
    """``folder``/data and ``folder``/exp of a finished recipe."""
    make_data(folder / "data")
    make_pretraining(folder / "exp" / "pretrain")
    make_probes(folder / "exp" / "pretrain" / "probes")
    make_finetuning(folder / "exp" / "finetune_pretrained", 0.1, GOOD)
    make_finetuning(folder / "exp" / "finetune_scratch", 0.4, BAD)
    for stage, seconds in ((10, 420.0), (11, 3.0), (12, 333.0), (13, 61.0)):
        marker = {
            "stage": stage,
            "description": f"run {stage}",
            "wall_seconds": seconds,
            "peak_memory_mb": 1500.0,
            "command": "./run.sh --mini true",
            "options": {"conf": "mini"},
            "finished": "2026-01-02",
        }
        write(folder / "exp" / ".done" / f"stage-{stage}.json", marker)
