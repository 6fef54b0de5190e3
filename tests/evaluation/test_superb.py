"""What surrounds s3prl: its tables, the choice among learning rates, the stand-in for torchaudio."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from phone_corpus import write_encoder

from spear_lib.bin import evaluate_superb
from spear_lib.evaluation import superb
from spear_lib.evaluation.clip_sets import Clip
from spear_lib.evaluation.superb import PROBLEMS, write_tables

REPOSITORY = Path(__file__).parents[2]


def clips(folder: Path, labels: list[tuple[str, ...]], rate: int = 8000) -> list[Clip]:
    found = []
    for number, of_clip in enumerate(labels):
        path = folder / f"clip{number}.wav"
        soundfile.write(path, 0.1 * np.ones(rate), rate)
        found.append(Clip(path, of_clip, "train"))
    return found


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_tables_of_a_class(tmp_path):
    data = clips(tmp_path, [("a",), ("b",), ("a",)])
    write_tables(PROBLEMS["sid"], (data[:1], data[1:2], data[2:]), tmp_path / "sid", tmp_path / "audio")
    (row,) = rows(tmp_path / "sid" / "valid.csv")
    assert row["label"] == "b" and Path(row["wav_path"]).is_absolute()
    assert soundfile.info(row["wav_path"]).samplerate == 16000
    assert {path.name for path in (tmp_path / "sid").iterdir()} == {"train.csv", "valid.csv", "test.csv"}
    double = clips(tmp_path, [("a", "b")])
    with pytest.raises(ValueError, match=r"has the labels \('a', 'b'\): SuperbSID wants one"):
        write_tables(PROBLEMS["sid"], (double, double, double), tmp_path / "x", tmp_path / "audio")


def test_tables_of_several_labels_and_of_text(tmp_path):
    data = clips(tmp_path, [("light", "on")])
    write_tables(PROBLEMS["ic"], (data, data, data), tmp_path / "ic", tmp_path / "audio")
    assert rows(tmp_path / "ic" / "test.csv")[0]["labels"] == "light ; on"
    text = clips(tmp_path, [("ONE TWO",)])
    write_tables(PROBLEMS["asr"], (text, text, text), tmp_path / "asr", tmp_path / "audio")
    assert rows(tmp_path / "asr" / "train-clean-100.csv")[0]["transcription"] == "ONE TWO"


@pytest.mark.parametrize(("task", "best"), [("sid", 1e-3), ("asr", 1e-4)])
def test_the_best_learning_rate_on_validation_is_tested(tmp_path, monkeypatch, task, best):
    """Accuracies grow with the rate up to 1e-3 and so do, here, word error rates, which are better low."""
    calls = []

    def fake(problem, folder, encoder, rate, config, device):
        calls.append((encoder, rate))
        value = {1e-4: 0.2, 1e-3: 0.6, 1e-2: 0.4}[rate]
        return {"valid": {problem.metric: value}, "test": {problem.metric: value / 2}}

    monkeypatch.setattr(superb, "run_problem", fake)
    encoder = write_encoder(tmp_path / "encoder")
    clips(tmp_path, [("a",)] * 12)
    table = tmp_path / "clips.tsv"
    table.write_text("path\tlabel\n" + "".join(f"clip{n}.wav\t{'ab'[n % 2]}\n" for n in range(12)))
    given = [f"--encoders=[ours={encoder}]", f"--task={task}", f"--train=[{table}]", f"--test=[{table}]"]
    given += ["--learning_rates=[1e-4, 1e-3, 1e-2]", f"--output_dir={tmp_path / 'out'}", "--device=cpu"]
    evaluate_superb.main(given)
    content = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert {path for path, _ in calls} == {str(encoder), f"random:{encoder}", "log-mel"}
    for tasks in content.values():
        result = tasks[task]
        assert result["learning_rate"] == best and len(result["runs"]) == 3
        assert result["mean"] == pytest.approx(50 * {1e-4: 0.2, 1e-3: 0.6}[best])
        assert result["counts"] == {"train": 11, "valid": 1, "test": 12}
    before = len(calls)
    evaluate_superb.main(given)
    assert len(calls) == before


def test_without_s3prl_one_line_says_what_to_do(tmp_path, monkeypatch):
    from spear_lib.evaluation import superb
    from spear_lib.interfaces import torchaudio_stand_in

    monkeypatch.setattr(torchaudio_stand_in, "install", lambda: False)
    monkeypatch.setitem(sys.modules, "s3prl", None)
    with pytest.raises(RuntimeError, match=r"s3prl is not installed: tools/clients\.sh superb"):
        superb.run_problem(PROBLEMS["sid"], tmp_path, "x", 0.0, superb.SuperbConfig(), "cpu")


def test_the_stand_in_for_torchaudio(tmp_path):
    """In a process of its own: it takes a place in sys.modules."""
    soundfile.write(tmp_path / "a.wav", np.stack([np.arange(800), np.zeros(800)], 1) / 1000, 8000)
    code = f"""
import sys, torch
sys.modules.pop("torchaudio", None)
from spear_lib.interfaces import torchaudio_stand_in
import importlib.util
if importlib.util.find_spec("torchaudio") is not None: raise SystemExit("installed")
assert torchaudio_stand_in.install() and not torchaudio_stand_in.install()
import torchaudio, torchaudio.compliance.kaldi as kaldi
from torchaudio.sox_effects import apply_effects_file
torchaudio.set_audio_backend("sox_io")
wave, rate = torchaudio.load({str(tmp_path / "a.wav")!r}, frame_offset=100, num_frames=50)
assert wave.shape == (2, 50) and rate == 8000 and abs(wave[0, 0].item() - 0.1) < 1e-4
assert torchaudio.info({str(tmp_path / "a.wav")!r}).num_frames == 800
again = torchaudio.transforms.Resample(8000, 16000)(torch.sin(torch.arange(800) / 10).unsqueeze(0))
assert again.shape == (1, 1600)
assert (again[0, 200:1400] - torch.sin(torch.arange(200, 1400) / 20)).abs().max() < 0.02
torchaudio.save({str(tmp_path / "b.wav")!r}, wave, 8000)
assert torch.allclose(torchaudio.load({str(tmp_path / "b.wav")!r})[0], wave, atol=1e-4)
for call in (lambda: kaldi.fbank(wave), lambda: apply_effects_file("x"), torchaudio.transforms.MFCC):
    try:
        call()
    except RuntimeError as error:
        assert "not in the stand-in for torchaudio" in str(error)
    else:
        raise SystemExit("no error")
print("fine")
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    if "installed" in result.stderr:
        pytest.skip("torchaudio is installed here")
    assert result.stdout.strip() == "fine", result.stderr
