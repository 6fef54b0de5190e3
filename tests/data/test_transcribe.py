"""Transcribing files with a model that has learnt a toy corpus: rates, channels, lengths, bad files."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly

from spear_lib.asr.units import units_of
from spear_lib.bin import decode, transcribe
from spear_lib.bin.common import run
from spear_lib.data.audio_files import find_audio

RATE = 16000


def call(module, *arguments: object) -> None:
    module.main(list(map(str, arguments)))


@pytest.fixture
def transcribed(trained_toy, capsys):
    """Lines on standard output of ``transcribe`` with these arguments."""

    def lines(*arguments: object) -> list[str]:
        capsys.readouterr()
        common = ("--experiment_dir", trained_toy["experiment"], "--average", 0, "--search.method", "greedy")
        call(transcribe, *arguments, *common)
        return capsys.readouterr().out.splitlines()

    return lines


@pytest.fixture(scope="module")
def utterances(trained_toy) -> list[Path]:
    return sorted(trained_toy["folder"].glob("*.wav"))


@pytest.fixture(scope="module")
def references(trained_toy) -> dict[str, str]:
    from spear_lib.data.manifests import Manifest

    return {
        cut.id: cut.supervisions[0].text for cut in map(Manifest(trained_toy["cuts"]).__getitem__, range(12))
    }


def test_a_folder_gives_the_text_of_decode(trained_toy, transcribed, references, tmp_path):
    lines = transcribed(trained_toy["folder"], "--output_dir", tmp_path / "out")
    found = dict(line.split("\t") for line in lines)
    arguments = ("--experiment_dir", trained_toy["experiment"], "--units", "characters", "--average", 0)
    search = ("--search.method", "greedy", "--cuts", f"[dev={trained_toy['cuts']}]")
    call(decode, *arguments, *search, "--output_dir", tmp_path / "decode")
    decoded = [
        json.loads(line) for line in (tmp_path / "decode" / "recogs-dev.jsonl").read_text().splitlines()
    ]
    assert len(found) == len(decoded) == 12
    for line in decoded:
        path = trained_toy["folder"] / f"{line['id']}.wav"
        assert found[str(path)] == line["hypothesis"]
        assert (tmp_path / "out" / f"{line['id']}.txt").read_text() == line["hypothesis"] + "\n"
    right = sum(line["hypothesis"] == references[line["id"]] for line in decoded)
    assert right >= 9, "the toy model has not learnt its corpus: the other tests would say nothing"


def test_json_has_words_with_times_and_confidences(utterances, transcribed, references, tmp_path):
    transcribed(utterances[0], "--output_dir", tmp_path)
    result = json.loads((tmp_path / f"{utterances[0].stem}.json").read_text())
    words = references[utterances[0].stem].split()
    assert result["text"].split() == [word["word"] for word in result["words"]] == words
    assert result["windows"] == 1 and result["channels"] == 1 and result["sampling_rate"] == RATE
    assert result["seconds"] == pytest.approx(0.3 * len(words), abs=1e-3)
    for place, word in enumerate(result["words"]):
        # Each word sounds for 0.3 s; a unit may be emitted a little later than its sound.
        assert 0.3 * place - 0.05 <= word["start"] < word["end"] <= 0.3 * (place + 1) + 0.2
        assert 0.5 < word["confidence"] <= 1.0
        assert "".join(unit["text"] for unit in word["units"]).strip() == word["word"]
    assert result["weights_hash"] and 0.5 < result["confidence"] <= 1.0


@pytest.mark.parametrize(
    ("rate", "channels", "ending"),
    [(44100, 2, "wav"), (22050, 1, "flac"), (48000, 3, "wav"), (44100, 2, "ogg")],
)
def test_any_rate_and_number_of_channels(rate, channels, ending, utterances, transcribed, tmp_path):
    paths = []
    for path in utterances[:4]:
        samples, _ = soundfile.read(path)
        divisor = np.gcd(rate, RATE)
        samples = resample_poly(samples, rate // divisor, RATE // divisor)
        paths.append(tmp_path / f"{path.stem}.{ending}")
        gains = [1.0, 0.8, 0.9][:channels]
        soundfile.write(paths[-1], np.stack([gain * samples for gain in gains], axis=1), rate)
    original = [line.split("\t")[1] for line in transcribed(*utterances[:4])]
    assert all(original)
    assert [line.split("\t")[1] for line in transcribed(*paths)] == original


def test_long_audio_in_windows_has_the_text_of_the_whole(utterances, transcribed, tmp_path):
    pause = np.zeros(RATE // 5)
    pieces = [piece for path in utterances for piece in (soundfile.read(path)[0], pause)]
    samples = np.concatenate(pieces)
    path = tmp_path / "long.wav"
    soundfile.write(path, samples, RATE)
    whole = transcribed(path)[0]
    assert len(whole.split()) > 25
    for window, overlap in ((3.0, 1.0), (4.7, 1.5)):
        arguments = ("--windows.window_seconds", window, "--windows.overlap_seconds", overlap)
        windowed = transcribed(path, *arguments, "--output_dir", tmp_path)[0]
        result = json.loads((tmp_path / "long.json").read_text())
        assert result["windows"] > 3
        assert windowed == whole
        starts = [word["start"] for word in result["words"]]
        assert starts == sorted(starts) and starts[-1] > len(samples) / RATE - 1.5


def test_the_ctc_head_writes_the_same_words(utterances, transcribed, references, tmp_path):
    lines = transcribed(*utterances, "--search.head", "ctc", "--output_dir", tmp_path)
    right = sum(line.split("\t")[1] == references[Path(line.split("\t")[0]).stem] for line in lines)
    assert right >= 11
    word = json.loads((tmp_path / f"{utterances[0].stem}.json").read_text())["words"][0]
    assert -0.05 <= word["start"] < 0.3 and 0.5 < word["confidence"] <= 1.0


def test_batches_do_not_change_the_text(utterances, transcribed):
    together = transcribed(*utterances[:5])
    assert transcribed(*utterances[:5], "--windows.batch_seconds", 0.5) == together


def test_bad_files_do_not_lose_the_others(utterances, transcribed, tmp_path, caplog):
    (tmp_path / "text.wav").write_text("these are words, not samples")
    (tmp_path / "nothing.wav").touch()
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), RATE)
    whole = utterances[0].read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[:20])
    bad = [tmp_path / name for name in ("text.wav", "nothing.wav", "empty.wav", "missing.wav", "cut.flac")]
    with pytest.raises(
        RuntimeError, match=r"5 of 7 files could not be transcribed \(see above\): .*text.wav"
    ):
        transcribed(utterances[0], *bad, utterances[1], "--output_dir", tmp_path / "out")
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    stems = sorted(path.stem for path in utterances[:2])
    assert written == [f"{stem}.{ending}" for stem in stems for ending in ("json", "txt")]
    for message in (
        "text.wav is no audio that can be read",
        "nothing.wav is an empty file",
        "empty.wav holds no samples",
        "missing.wav does not exist",
        "cut.flac is no audio",
    ):
        assert message in caplog.text


def test_file_that_breaks_off_is_reported(utterances, transcribed, tmp_path, caplog):
    samples = np.concatenate([soundfile.read(path)[0] for path in utterances])
    soundfile.write(tmp_path / "long.flac", samples, RATE)
    content = (tmp_path / "long.flac").read_bytes()
    (tmp_path / "long.flac").write_bytes(content[: len(content) // 2])
    windows = ("--windows.window_seconds", 3, "--windows.overlap_seconds", 1)
    with pytest.raises(RuntimeError, match="1 of 2 files"):
        transcribed(tmp_path / "long.flac", utterances[0], *windows)
    assert "long.flac" in caplog.text and "cannot be read" in caplog.text


def test_a_bad_file_is_the_status_of_the_command(trained_toy, capsys, tmp_path):
    arguments = [tmp_path / "gone.wav", "--experiment_dir", trained_toy["experiment"], "--average", 0]
    with pytest.raises(SystemExit) as end:
        run(lambda: transcribe.main([*map(str, arguments)]))
    assert end.value.code == 1
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("error: 1 of 1 files")


def test_silence_is_said_and_is_no_error(transcribed, tmp_path, caplog):
    soundfile.write(tmp_path / "silence.wav", np.zeros(RATE), RATE)
    transcribed(tmp_path / "silence.wav")
    assert "silence.wav is silent: every sample is zero" in caplog.text


def test_a_hundredth_of_a_second_is_enough(transcribed, tmp_path):
    soundfile.write(tmp_path / "click.wav", np.full(160, 0.1), RATE)
    assert len(transcribed(tmp_path / "click.wav")) == 1


def test_folder_without_audio_says_what_it_looked_for(transcribed, tmp_path):
    (tmp_path / "notes.txt").write_text("no audio")
    with pytest.raises(ValueError, match=r"holds no audio: no file in it or below ends in \.flac, \.wav"):
        transcribed(tmp_path)


def test_folders_are_walked_and_named_files_kept_once(tmp_path):
    for name in ("b/two.FLAC", "b/one.wav", "a.mp3", "b/readme.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    files = find_audio([tmp_path / "b" / "one.wav", tmp_path])
    assert [str(path.relative_to(tmp_path)) for path in files] == ["b/one.wav", "a.mp3", "b/two.FLAC"]
    with pytest.raises(ValueError, match="nothing to read"):
        find_audio([])


def test_two_files_never_write_one_result(utterances, transcribed, tmp_path):
    shutil.copy(utterances[0], tmp_path / "a.wav")
    shutil.copy(utterances[0], tmp_path / "a.flac")
    with pytest.raises(ValueError, match=r"a\.flac and .*a\.wav would both write a\.json"):
        transcribed(tmp_path, "--output_dir", tmp_path / "out")


def test_units_are_found_or_missed_with_a_word(trained_toy, transcribed, tmp_path):
    with pytest.raises(ValueError, match="config.yaml does not exist"):
        units_of(str(tmp_path), "")
    experiment = tmp_path / "recipe" / "exp" / "finetune"
    experiment.mkdir(parents=True)
    (experiment / "config.yaml").write_text("units: data/units\n")
    with pytest.raises(ValueError, match="train the text units first"):
        units_of(str(experiment), "")
