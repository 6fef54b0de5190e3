"""SUPERB's tasks on heads of our own, through the command: they learn, go on, and refuse what cannot be."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import SupervisionSegment
from phone_corpus import write_encoder

from spear_lib.bin import evaluate_superb
from spear_lib.data.audio_files import open_audio
from spear_lib.data.manifests import save_cuts

RATE = 16000
TONES = {"a": 300.0, "b": 2500.0}


def tone(speaker: str, seconds: float) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * TONES[speaker] * np.arange(round(RATE * seconds)) / RATE)


def write(folder: Path, name: str, samples: np.ndarray) -> Path:
    random = np.random.default_rng(len(name))
    path = folder / "audio" / f"{name}.wav"
    path.parent.mkdir(exist_ok=True, parents=True)
    soundfile.write(path, samples + 0.01 * random.standard_normal(len(samples)), RATE)
    return path


def named(path: Path):
    """A cut that is called as its file."""
    return open_audio(path).with_id(path.stem)


def manifests(folder: Path, make) -> list[str]:
    """Options --train, --valid, --test of cuts that ``make(part, number)`` returns."""
    given = []
    for part, count in (("train", 8), ("valid", 4), ("test", 4)):
        save_cuts([make(part, number) for number in range(count)], folder / f"{part}.jsonl.gz")
        given.append(f"--{part}=[{folder / f'{part}.jsonl.gz'}]")
    return given


def run(
    folder: Path, task: str, given: list[str], encoders: str = "log-mel", steps: int = 60, **config
) -> dict:
    """encoder -> result."""
    config = {"hidden_size": 16, "eval_step": steps // 2, "batch_size": 4, "gradient_accumulate": 1} | config
    options = [f"--superb.{name}={value}" for name, value in config.items()]
    evaluate_superb.main(
        [f"--encoders=[{encoders}]", "--baselines=false", f"--task={task}", "--device=cpu", "--num_seeds=1"]
        + [f"--superb.total_steps={steps}", f"--output_dir={folder / 'out'}", "--superb.normalise=true"]
        + options
        + given
    )
    content = json.loads((folder / "out" / "results.json").read_text())["results"]
    return {encoder: tasks[task] for encoder, tasks in content.items()}


def test_diarization_of_tones(tmp_path):
    """Two "speakers", each a tone, with overlap: almost every frame is found."""

    def make(part, number):
        random = np.random.default_rng(number)
        samples, supervisions = np.zeros(2 * RATE), []
        for speaker in "ab":
            start = round(float(random.uniform(0, 1)), 2)
            length = round(float(random.uniform(0.4, 0.9)), 2)
            first = round(start * RATE)
            sound = tone(speaker, length)
            samples[first : first + len(sound)] += sound
            supervisions.append(SupervisionSegment(f"{number}{speaker}", "x", start, length, speaker=speaker))
        cut = named(write(tmp_path, f"{part}{number}", samples))
        cut.supervisions = supervisions
        return cut

    given = [*manifests(tmp_path, make), "--learning_rates=[2e-2]"]
    result = run(tmp_path, "sd", given, steps=40)["log-mel"]
    assert (
        result["metric"] == "DER (%)" and result["mean"] < 30.0
    )  # a third of it is what nothing learned gives
    assert result["counts"] == {"train": 8, "valid": 4, "test": 4}
    assert result["runs"][0]["chosen"][0] in (0.3, 0.4, 0.5, 0.6, 0.7)
    before = (tmp_path / "out" / "results.json").stat().st_mtime_ns
    run(tmp_path, "sd", given, steps=40)
    assert (tmp_path / "out" / "results.json").stat().st_mtime_ns == before  # not again
    # Other segments of the same speakers are other data.
    cuts = [make("test", number) for number in range(4)]
    cuts[0].supervisions[0].duration += 0.1
    save_cuts(cuts, tmp_path / "test.jsonl.gz")
    assert run(tmp_path, "sd", given, steps=2)["log-mel"]["facts"]["data"] != result["facts"]["data"]


def spoken(tmp_path: Path, part: str, number: int):
    """A cut of one tone with a speaker and texts."""
    speaker = "ab"[number % 2]
    cut = named(write(tmp_path, f"{part}{number}", tone(speaker, 0.5 + 0.05 * number)))
    text = {"a": "ON", "b": "OFF"}[speaker]
    cut.supervisions = [SupervisionSegment(cut.id, "x", 0.0, cut.duration, speaker=speaker, text=text)]
    cut.custom = {"slots": f"B-switch {text} E-switch", "label": speaker}
    return cut


def test_verification_classification_and_texts(tmp_path):
    """On an encoder with random weights: every task trains, scores, and says what it did."""
    encoder = f"ours={write_encoder(tmp_path / 'encoder')}"
    given = manifests(tmp_path, lambda part, number: spoken(tmp_path, part, number))
    rates = "--learning_rates=[1e-3, 3e-3]"
    result = run(tmp_path, "asv", [*given, rates], encoder, steps=8)["ours"]
    assert result["metric"] == "EER (%)" and result["mean"] <= 50.0 and len(result["runs"]) == 2
    trials = tmp_path / "trials.txt"
    trials.write_text("1 test0 test2\n0 test0 test1\n")
    one = run(tmp_path, "asv", [*given, rates, f"--trials={trials}"], encoder, steps=2)["ours"]
    assert one["facts"]["trials"] != result["facts"]["trials"]
    result = run(tmp_path, "sid", [*given, "--trainer=own", "--learning_rates=[1e-2]"], encoder)["ours"]
    assert result["mean"] == 100.0
    result = run(tmp_path, "sf", [*given, "--learning_rates=[2e-2]"], encoder, steps=6)["ours"]
    assert result["metric"] == "slot type F1 (%)" and "slot value CER (%)" in result["beside"]
    assert 0.0 <= result["mean"] <= 100.0
    result = run(tmp_path, "asr", [*given, "--trainer=own", "--label=text"], encoder, steps=4)["ours"]
    assert result["metric"] == "WER (%)" and "CER (%)" in result["beside"]
    assert len(result["runs"][0]["weights"]) > 1 and sum(result["runs"][0]["weights"]) == pytest.approx(
        1, abs=0.01
    )


def test_separation_of_tones(tmp_path):
    def make(part, number):
        sources = [str(write(tmp_path, f"{part}{number}{one}", tone(one, 0.6))) for one in "ab"]
        cut = named(write(tmp_path, f"{part}{number}", tone("a", 0.6) + tone("b", 0.6)))
        cut.custom = {"sources": sources}
        return cut

    given = [*manifests(tmp_path, make), "--learning_rates=[1e-2]"]
    assert run(tmp_path, "ss", given, steps=40)["log-mel"]["mean"] > 5.0  # dB above the mixture
    with pytest.raises(ValueError, match="the clips have 2 sources: se wants one"):
        run(tmp_path, "se", given)


def test_queries(tmp_path):
    """Of chirps: a query is found in the document that holds it."""

    def chirp(kind: int) -> np.ndarray:
        time = np.arange(round(0.4 * RATE)) / RATE
        return 0.3 * np.sin(2 * np.pi * (400 + 600 * kind) * time * (1 + time))

    def made(name: str, samples: np.ndarray, text: str):
        cut = named(write(tmp_path, name, samples))
        cut.supervisions = [SupervisionSegment(name, "x", 0.0, cut.duration, text=text)]
        return cut

    random = np.random.default_rng(0)
    noise = [0.1 * random.standard_normal(RATE) for _ in range(4)]
    documents = [
        made(f"document{n}", np.concatenate([noise[n][: 4000 * n], chirp(n), noise[n]]), f"WORD{n} MORE")
        for n in range(4)
    ]
    given = []
    for option, kinds in (("valid", (0, 1)), ("test", (2, 3))):
        save_cuts(
            [made(f"{option}{n}", chirp(n), f"word{n}") for n in kinds], tmp_path / f"{option}.jsonl.gz"
        )
        given.append(f"--{option}=[{tmp_path / f'{option}.jsonl.gz'}]")
    save_cuts(documents, tmp_path / "documents.jsonl.gz")
    given.append(f"--documents=[{tmp_path / 'documents.jsonl.gz'}]")
    result = run(tmp_path, "qbe", given)["log-mel"]
    assert result["mean"] == pytest.approx(1.0) and result["counts"]["documents"] == 4
    table = tmp_path / "relevance.tsv"
    table.write_text(
        "query\tdocument\nvalid0\tdocument0\nvalid1\tdocument1\ntest2\tdocument0\ntest3\tdocument1\n"
    )
    assert run(tmp_path, "qbe", [*given, f"--relevant={table}"])["log-mel"]["mean"] == 0.0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--task=sv"], "task is 'sv': use sid, ks, er, ic, pr, asr, sd, asv, qbe, sf, se, ss"),
        (["--task=sd", "--trainer=s3prl"], "sd is trained here alone"),
        (["--task=ic", "--trainer=own"], "ic is trained by s3prl alone"),
        (["--task=qbe"], "qbe needs documents, and development queries"),
        (["--task=sd"], "train is empty: sd needs training data"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, capsys, given, words):
    with pytest.raises(SystemExit):
        evaluate_superb.main(["--encoders=[log-mel]", "--test=[x.tsv]", f"--output_dir={tmp_path}", *given])
    assert words in capsys.readouterr().err


def test_broken_trials(tmp_path):
    from spear_lib.evaluation.downstream.verification import read_trials

    path = tmp_path / "trials.txt"
    path.write_text("1 a/b.wav c\n")
    assert read_trials(path, ["a-b", "c"]) == [(True, "a-b", "c")]
    path.write_text("1 a\n")
    with pytest.raises(ValueError, match="line 1: '1 a', expected '1 enrolled tested'"):
        read_trials(path, ["a"])
    path.write_text("1 a x\n")
    with pytest.raises(ValueError, match="line 1: no test clip is called 'x'"):
        read_trials(path, ["a"])
