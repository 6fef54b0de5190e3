"""Runs one case of ``fuzzing.cases`` through the user's commands and judges what a user would see.

The rules: a command ends (``fuzz.py`` watches the time), with status 0, 1 or 2; what goes wrong is said in
one line that begins with "error: " and was meant for users (no traceback, none of "unexpected ..."); and
nothing is lost in silence: what was good is used, or what was left out is counted or named.
"""

import contextlib
import dataclasses
import importlib
import io
import json
import logging
import math
import re
import runpy
import shutil
import typing
from pathlib import Path

import numpy as np
import soundfile

from spear_lib import config
from spear_lib.bin.common import run

REPOSITORY = Path(__file__).parents[2]
# Not common, which is no command, nor spear, which hands everything on to the others.
COMMANDS = sorted(
    path.stem
    for path in (REPOSITORY / "spear_lib/bin").glob("[a-z]*.py")
    if path.stem not in ("common", "spear")
)
RATE = 16000
TINY = """
--scratch true --freeze_encoder_steps 0 --encoder_config.frontend_channels [2,4,8]
--encoder_config.downsampling_factor [1,2] --encoder_config.num_encoder_layers [1,1]
--encoder_config.encoder_dim [32] --encoder_config.feedforward_dim [32] --encoder_config.num_heads [2]
--encoder_config.encoder_unmasked_dim [24] --encoder_config.query_head_dim [8]
--encoder_config.cnn_module_kernel [15,15] --data.num_workers 0 --data.speed.enabled false
--data.mixing.noise_probability 0 --model.decoder_dim 32 --model.joiner_dim 32 --training.average_period 2
--training.device cpu --training.max_steps 1
"""


# What Python and the libraries say of values they were not made for: no words for a user without the place.
RAW = re.compile(
    r"codec can't|values to unpack|has no attribute|not subscriptable|invalid literal|out of range for|"
    r"could not convert|unexpected keyword|unsupported operand|must be real number|not iterable|NoneType|"
    r"positional argument|Expecting value|index out of range|bad escape|cannot reshape|Invalid argument"
)


class Broken(AssertionError):
    """A rule does not hold."""


class Seen(typing.NamedTuple):
    """What a user sees of a command."""

    status: int
    out: str
    err: str


def call(main, *arguments: object) -> Seen:
    """Runs ``main`` as its command line would, and holds what is true of every command against it."""
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run(lambda: main([str(argument) for argument in arguments]))
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        finally:
            logging.getLogger().handlers.clear()
    seen = Seen(status, out.getvalue(), err.getvalue())
    errors = [line for line in seen.err.splitlines() if line.startswith("error: ")]
    if "Traceback" in seen.err or any(line.startswith("error: unexpected ") for line in errors):
        raise Broken(f"not foreseen: {(errors or seen.err.splitlines())[-1][:300]}")
    raw = next((line for line in errors if RAW.search(line) and "/" not in line), None)
    if raw is not None:
        raise Broken(f"in Python's words, without a place: {raw[:300]}")
    if status not in (0, 1, 2):
        raise Broken(f"status {status}")
    if status and not any(len(line) > 20 for line in errors):
        raise Broken(f"status {status} without a word: {seen.err[-200:]!r}")
    return seen


def command(name: str):
    """The ``main`` of a command of spear_lib.bin."""
    return importlib.import_module(f"spear_lib.bin.{name}").main


def script(recipe: str, name: str):
    """The ``main`` of a script of a recipe."""
    return runpy.run_path(str(REPOSITORY / "egs" / recipe / "local" / f"{name}.py"))["main"]


def noise(seed: int, samples: int, channels: int = 1) -> np.ndarray:
    """(samples, channels) float32."""
    return (0.1 * np.random.default_rng(seed).standard_normal((samples, channels))).astype(np.float32)


def _decorated(content: bytes, patches: list, keep: float | None = None) -> bytes:
    changed = bytearray(content)
    for offset, value in patches:
        if changed:
            changed[offset % len(changed)] = value
    return bytes(changed if keep is None else changed[: int(keep * len(changed))])


def encode(text: str, encoding: str) -> bytes:
    """The text as an editor of that encoding saves it."""
    if encoding == "utf-8 with a bad byte":
        content = text.encode("utf-8", "surrogatepass")
        return content[: len(content) // 2] + b"\xff" + content[len(content) // 2 :]
    return text.encode(encoding, "replace")


def cut(folder: Path, index: int, text: str) -> dict:
    """The fields of a cut of a new file."""
    path, samples = folder / f"u{index}.wav", 16000 + 3000 * index
    if not path.exists():
        soundfile.write(path, noise(index, samples), RATE)
    seconds = samples / RATE
    recording = {
        "id": f"r{index}",
        "sources": [{"type": "file", "channels": [0], "source": str(path)}],
        "sampling_rate": RATE,
        "num_samples": samples,
        "duration": seconds,
        "channel_ids": [0],
    }
    supervision = {
        "id": f"s{index}",
        "recording_id": f"r{index}",
        "start": 0.0,
        "duration": seconds,
        "channel": 0,
        "text": text,
        "speaker": f"p{index % 2}",
    }
    where = {"id": f"c{index}", "start": 0.0, "duration": seconds, "channel": 0, "type": "MonoCut"}
    return {**where, "supervisions": [supervision], "recording": recording}


class Workplace:
    """What all cases share: a few good cuts, text units and a model that was trained for one step."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        texts = ["ONE TWO THREE it's", "THREE ONE", "TWO TWO", "ONE it's"]
        self.cuts = [cut(folder, index, text) for index, text in enumerate(texts)]
        self.good = folder / "good.jsonl"
        self.good.write_text("".join(json.dumps(each) + "\n" for each in self.cuts))
        self.units, self.model = folder / "units", folder / "model"
        for step in (
            (command("train_units"), "--cuts", self.good, "--output_dir", self.units, "--vocab_size", 18),
            (command("finetune_asr"), *self.training(self.good), "--experiment_dir", self.model),
        ):
            if call(*step).status:
                raise RuntimeError(f"the workplace cannot be made: {call(*step).err[-500:]}")

    def training(self, cuts: Path) -> list[object]:
        """Options of a training of one step."""
        data = ["--data.train_cuts", json.dumps([str(cuts)]), "--dev_cuts", json.dumps([str(self.good)])]
        return [*TINY.split(), *data, "--units", self.units]

    def run(self, case: dict, place: Path) -> str:
        """Makes the case's files in the empty folder ``place`` and runs it; ``Broken`` where a rule does not
        hold. Returns what happened, in a word."""
        status = getattr(self, f"_{case['kind']}")(case, place)
        return "used" if status == 0 else "refused"

    # ------------------------------------------------------------------ kinds

    def _audio(self, case: dict, place: Path) -> int:
        paths = [self._audio_file(file, place, number) for number, file in enumerate(case["files"])]
        out = place / "out"
        seen = call(
            command("transcribe"),
            *[f"./{path.relative_to(place)}" for path in paths],
            *("--experiment_dir", self.model, "--output_dir", out, "--search.method", "greedy"),
            *("--average", 0),
        )
        for path, file in zip(paths, case["files"]):
            made = (out / f"{path.with_suffix('').name}.json").is_file()
            # One sample of 44.1 kHz is none at 16 kHz.
            whole = not file["patches"] and file["keep"] is None and file["samples"] * 16000 >= file["rate"]
            if whole and file["content"] in ("noise", "zeros") and not made:
                raise Broken(f"{path.name} is good and has no result: {seen.err[-300:]}")
            if not made and path.name.encode("ascii", "backslashreplace").decode() not in _ascii(seen.err):
                raise Broken(f"{path.name} has no result and is not named: {seen.err[-300:]}")
            if not made and seen.status == 0:
                raise Broken(f"{path.name} has no result, and the status is 0")
        return seen.status

    def _audio_file(self, file: dict, place: Path, number: int) -> Path:
        path = place / f"{file['name']}{number}.{file['ending']}"
        samples = noise(number, file["samples"], file["channels"])
        content = file["content"]
        if content == "zeros":
            samples[:] = 0
        elif content == "int16":
            samples *= 32768
        elif content == "cancel":
            samples[:, 1:2] = -samples[:, :1]
        elif content in ("nan", "inf", "spike") and len(samples):
            samples[len(samples) // 2, 0] = {"nan": np.nan, "inf": np.inf, "spike": 1e20}[content]
        if file["subtype"] not in (
            "FLOAT",
            "DOUBLE",
        ):  # only these hold absurd samples; encoders crash on them
            samples = np.clip(np.nan_to_num(samples), -1.0, 1.0)
        form = "WAVEX" if file["subtype"] == "WAVEX" else file["ending"].upper()
        subtype = "PCM_16" if file["subtype"] == "WAVEX" else file["subtype"]
        try:
            soundfile.write(path, samples, file["rate"], format=form, subtype=subtype)
        except (soundfile.LibsndfileError, ValueError):  # a rate or number of channels that the format lacks
            soundfile.write(path, samples[:, :1], RATE, format="WAV", subtype="PCM_16")
        path.write_bytes(_decorated(path.read_bytes(), file["patches"], file["keep"]))
        return path

    def _manifest(self, case: dict, place: Path) -> int:
        cuts = json.loads(json.dumps(self.cuts))
        for each, text in zip(cuts, case["texts"]):
            each["supervisions"][0]["text"] = text
        for row, where, value, remove in case["changes"]:
            _change(cuts[row], where.split("."), value, remove)
        text = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in cuts)
        path = place / ("cuts.jsonl.gz" if case["packed"] else "cuts.jsonl")
        content = _decorated(encode(text, case["encoding"]), case["patches"])
        if case["packed"]:
            import gzip

            content = _decorated(gzip.compress(content), case["patches"])
        path.write_bytes(content)
        name, out = case["command"], place / "out"
        arguments: dict[str, list[object]] = {
            "train_units": ["--cuts", path, "--output_dir", out, "--vocab_size", 18],
            "train_lm": ["--cuts", path, "--output_dir", out, "--order", 2],
            "select_cuts": ["--cuts", path, "--hours", 0.0005, "--output_cuts", place / "some.jsonl"],
            "extract_embeddings": ["--cuts", path, "--output_dir", out, "--num_workers", 0],
            "finetune_asr": [*self.training(path), "--experiment_dir", out],
            "decode": ["--experiment_dir", self.model, "--units", self.units, "--cuts", f"x={path}"],
        }
        if name == "decode":
            arguments[name] += ["--search.method", "greedy", "--output_dir", out, "--average", 0]
        return call(command(name), *arguments[name]).status

    def _transcripts(self, case: dict, place: Path) -> int:
        for part, speaker in (("train-clean-100", 100), ("dev-clean", 200)):
            folder = place / "LibriSpeech" / part / str(speaker) / "1"
            folder.mkdir(parents=True)
            for number in range(4):
                soundfile.write(folder / f"{speaker}-1-{number:04d}.flac", noise(number, 3200), RATE)
            lines = [f"{speaker}-1-{number:04d} ONE" for number in range(4)]
            content = "\n".join(lines).encode()
            if speaker == 100:
                content = encode(case["newline"].join(case["lines"]), case["encoding"])
                if case["companion"]:
                    (folder / "._100-1.trans.txt").write_bytes(b"\0\5\26\7\xff")
            (folder / f"{speaker}-1.trans.txt").write_bytes(content)
        out = place / "out"
        arguments = ("--corpus-dir", place, "--output", out, "--max-bad-fraction", 1, "--num-jobs", 1)
        seen = call(script("librispeech", "prepare_manifests"), *arguments)
        if seen.status == 0:
            train = json.loads((out / "librispeech_statistics.json").read_text())["train"]
            lines = [line.split() for line in case["lines"] for line in line.split("\n") if line.split()]
            audio = {f"100-1-{number:04d}" for number in range(4)} - {words[0] for words in lines}
            if case["encoding"] == "utf-8" and train["cuts"] + train["skipped"] != len(lines) + len(audio):
                raise Broken(f"{len(lines)} lines and {len(audio)} files became {train}")
        return seen.status

    def _table(self, case: dict, place: Path) -> int:
        from tools.fuzzing.tables import run_table

        return run_table(self, case, place)

    def _options(self, case: dict, place: Path) -> int:
        name = COMMANDS[case["command"] % len(COMMANDS)]
        main = command(name)
        options = next(
            each
            for each in vars(importlib.import_module(main.__module__)).values()
            if isinstance(each, type) and hasattr(each, "__dataclass_fields__") and "Options" in each.__name__
        )
        keys = config._keys(options)
        arguments = []
        for field in dataclasses.fields(options) if case["required"] else ():
            if field.default is field.default_factory is dataclasses.MISSING:
                arguments += (
                    ["nowhere"] if field.metadata.get("positional") else [f"--{field.name}", "nowhere"]
                )
        if case["config"] is not None:
            (place / "some.yaml").write_text(case["config"], encoding="utf-8", errors="replace")
            arguments += ["--config", "some.yaml"]
        for number, value, joined in case["options"]:
            key = keys[number % len(keys)]
            arguments += [f"--{key}={value}"] if joined else [f"--{key}", value]
        return call(main, *arguments).status


def _ascii(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode()


def _change(fields: dict, where: list[str], value: object, remove: bool) -> None:
    """Sets or removes a nested field, where the path is still there."""
    for name in where[:-1]:
        index = int(name) if name.isdigit() else name
        try:
            fields = fields[index]
        except (KeyError, IndexError, TypeError):
            return
    last = int(where[-1]) if where[-1].isdigit() else where[-1]
    try:
        if remove:
            del fields[last]
        else:
            fields[last] = value if not (isinstance(value, float) and math.isnan(value)) else None
    except (KeyError, IndexError, TypeError):
        return


def empty(place: Path) -> Path:
    """The folder, new and empty."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    return place
