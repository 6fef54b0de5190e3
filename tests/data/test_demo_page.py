"""What the page of ``spear demo`` shows of good and bad files, and what it prints when it cannot run (without
gradio; test_demo_browser.py has the page in a browser)."""

import io
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from asr_fixtures import TINY_ENCODER
from scipy.signal import resample_poly
from sklearn.decomposition import PCA
from tagging_fixtures import CLASSES

from spear_lib.asr.searcher import SearchConfig
from spear_lib.asr.transcription import transcribe as transcripts_of
from spear_lib.asr.words import Unit, Word
from spear_lib.bin import transcribe
from spear_lib.bin.common import one_line, run
from spear_lib.bin.demo import main
from spear_lib.data.audio import AudioError
from spear_lib.data.audio_windows import WindowConfig
from spear_lib.demo.listening import Listener, Models, PageLimitError, PageLimits
from spear_lib.demo.models import DemoOptions, kind_of, open_models
from spear_lib.demo.page import answers, component_values
from spear_lib.demo.pictures import Envelope, envelope_of, number_of_rows, principal_colours, waveform_picture
from spear_lib.demo.serving import free_port
from spear_lib.encoders import load_encoder, save_encoder
from spear_lib.tagging.events import EventConfig
from spear_lib.tagging.inference import Tagger, tag_file
from spear_lib.tagging.model import TaggingConfig, TaggingModel
from spear_lib.tagging.tag_files import results

RATE = 16000
WINDOWS = (WindowConfig(), WindowConfig(10.0, 2.0, 100.0))


@pytest.fixture(scope="module")
def tagger() -> Tagger:
    torch.manual_seed(1)
    model = TaggingModel(load_encoder(TINY_ENCODER), TaggingConfig(), len(CLASSES))
    return Tagger(model, CLASSES, {})


@pytest.fixture(scope="module")
def models(trained_toy, tagger) -> Models:
    folder = str(trained_toy["experiment"])
    options = DemoOptions(folder, average=0, search=SearchConfig(method="greedy"))
    found, facts = open_models(options, torch.device("cpu"))
    assert list(facts) == ["recogniser"] and folder in facts["recogniser"]
    return replace(found, tagger=tagger)


@pytest.fixture(scope="module")
def listener(models) -> Listener:
    return Listener(models, PageLimits(), *WINDOWS, EventConfig(threshold=0.3), 3)


@pytest.fixture(scope="module")
def utterance(trained_toy) -> Path:
    return sorted(trained_toy["folder"].glob("*.wav"))[0]


def last(listener: Listener, path: Path):
    *_, shown = listener.listen(path)
    return shown


def size_of(png: bytes) -> tuple[int, int]:
    """(height, width); fails where it is no picture."""
    from matplotlib.image import imread

    return imread(io.BytesIO(png)).shape[:2]


def test_the_parts_come_one_by_one_and_agree_with_the_commands(listener, utterance, trained_toy, capsys):
    steps = list(listener.listen(utterance))
    assert [bool(step.waveform) for step in steps] == [True] * 4
    assert [step.text is not None for step in steps] == [False, True, True, True]
    assert [bool(step.tags) for step in steps] == [False, False, True, True]
    assert [bool(step.layers) for step in steps] == [False, False, False, True]
    shown = steps[-1]
    capsys.readouterr()
    arguments = ["--experiment_dir", str(trained_toy["experiment"]), "--average", "0"]
    transcribe.main([str(utterance), *arguments, "--search.method", "greedy"])
    assert (
        shown.text == capsys.readouterr().out.rstrip("\n") != ""
        and [word.text for word in shown.words] == shown.text.split()
    )
    assert shown.facts.startswith(f"{utterance.name}, ") and "16000 Hz, mono" in shown.facts
    for picture in (shown.waveform, shown.tags, shown.layers):
        height, width = size_of(picture)
        assert width > 800 and height > 100
    file = tag_file(listener.models.tagger, utterance, WINDOWS[1])
    content = results(listener.models.tagger, file, 3, listener.events)
    events = [(round(a, 3), round(b, 3), name, round(p, 4)) for a, b, name, p in shown.events]
    assert events == [tuple(e[k] for k in ("start", "end", "name", "probability")) for e in content["events"]]


def test_six_channels_at_96_khz_are_heard_as_their_mean(listener, utterance, tmp_path):
    samples = resample_poly(soundfile.read(utterance)[0], 6, 1)
    path = tmp_path / "six.wav"
    gains = (1.0, 0.8, 0.9, 0.7, 0.6, 0.5)
    soundfile.write(path, np.stack([gain * samples for gain in gains], 1), 96000, subtype="PCM_24")
    shown = last(listener, path)
    assert shown.text == last(listener, utterance).text
    assert "96000 Hz, 6 channels (their mean is heard)" in shown.facts


def test_bad_files_get_the_line_of_transcribe(listener, models, tmp_path):
    corrupt, text, empty = (tmp_path / name for name in ("corrupt.wav", "notes.flac", "empty.wav"))
    corrupt.write_bytes(np.random.default_rng(0).bytes(50_000))
    text.write_text("this is text\n" * 99)
    empty.touch()
    for path in (corrupt, text, empty, tmp_path / "missing.wav", tmp_path):
        (transcript,) = transcripts_of(models.recogniser, [path], WINDOWS[0])
        with pytest.raises(AudioError) as caught:
            last(listener, path)
        assert str(caught.value) == str(transcript.error)
        (values,) = answers(listener, path, one_line)
        line = one_line(transcript.error).replace(str(path), path.name)
        assert line in values["facts"].replace("&#x27;", "'") and "error: " in values["facts"]
        assert str(tmp_path) not in values["facts"].replace(str(tmp_path.name), "")
        others = {name: value for name, value in values.items() if name != "facts"}
        assert not any(others.values()) and others["text"] is None


def test_a_file_that_breaks_off_takes_away_what_was_shown(listener, utterance, tmp_path):
    path = tmp_path / "broken.flac"
    samples, rate = soundfile.read(utterance)
    soundfile.write(path, np.tile(samples, 9), rate)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    values = list(answers(listener, path, one_line))
    assert "error: " in values[-1]["facts"] and "broken.flac" in values[-1]["facts"]
    assert values[-1]["waveform"] is None and values[-1]["text"] is None


def test_two_hours_are_refused_by_the_header_alone(listener, tmp_path, monkeypatch):
    path = tmp_path / "talk.flac"
    with soundfile.SoundFile(path, "w", RATE, 1) as file:
        for _ in range(120):
            file.write(np.zeros(60 * RATE, dtype=np.int16))
    monkeypatch.setattr("spear_lib.demo.listening.load_audio", None)  # it would be called
    with pytest.raises(
        PageLimitError, match=r"lasts 7200.0 s \(2 h 00 min\), the page takes 600 s: cut it, or"
    ):
        next(listener.listen(path))
    (values,) = answers(listener, path, one_line)
    assert "error: talk.flac lasts 7200.0 s" in values["facts"] and "--limits.seconds" in values["facts"]


def test_limits_of_bytes_and_of_the_pictures(models, utterance):
    tight = Listener(models, PageLimits(megabytes=0.001), *WINDOWS, EventConfig())
    with pytest.raises(
        PageLimitError, match=r"has 0\.0\d* MB, the page takes 0.001 MB: .*--limits.megabytes"
    ):
        tight.open(utterance)
    for name in ("seconds", "megabytes", "layer_seconds"):
        for value in (0.0, -1.0, float("nan"), float("inf")):
            with pytest.raises(ValueError, match=f"limits.{name} is .*; it must be positive"):
                PageLimits(**{name: value})
    short = Listener(
        replace(models, recogniser=None, tagger=None), PageLimits(layer_seconds=0.2), *WINDOWS, None
    )
    steps = list(short.listen(utterance))
    assert len(steps) == 2 and steps[-1].layers and steps[-1].text is None
    # A recogniser of ONNX files has no layers.
    plain = Listener(replace(models, tagger=None, encoder=None), PageLimits(), *WINDOWS, EventConfig())
    assert not last(plain, utterance).layers and last(plain, utterance).text
    with pytest.raises(ValueError, match="there is no model to try"):
        Models()


def test_silence_and_the_shortest_audio(listener, tmp_path):
    path = tmp_path / "quiet.wav"
    soundfile.write(path, np.zeros(31 * RATE), RATE)
    assert "silent: every sample is zero" in last(listener, path).facts
    soundfile.write(path, np.ones(3) * 0.1, RATE)
    shown = last(listener, path)
    assert shown.waveform and shown.layers and "silent" not in shown.facts


def test_an_error_that_nobody_foresaw_is_a_line_too(listener, utterance, monkeypatch):
    def fail(*_):
        raise KeyError("<b>")

    monkeypatch.setattr("spear_lib.demo.listening.tag_file", fail)
    values = list(answers(listener, utterance, one_line))[-1]
    assert "unexpected KeyError" in values["facts"] and "&lt;b&gt;" in values["facts"]
    (values,) = answers(listener, None, one_line)
    assert "no recording yet" in values["facts"]


def test_names_of_files_and_words_are_text_not_html(listener, utterance, tmp_path):
    path = tmp_path / "<img src=x>.wav"
    path.write_bytes(utterance.read_bytes())
    values = list(answers(listener, path, one_line))[-1]
    assert "<img" not in values["facts"] and "&lt;img" in values["facts"]
    word = Word("A", (Unit("A", 0.254, 0.301, 0.5),))
    shown = replace(last(listener, utterance), words=[word])
    assert component_values(shown, "")["words"] == [["A", "0.25", "0.30", "0.50"]]


def test_an_envelope_holds_every_peak_and_rows_are_twelve_seconds():
    samples = np.zeros(1000)
    samples[123], samples[877] = 1.0, -0.5
    low, high = envelope_of(samples, 10)
    assert np.flatnonzero(high).tolist() == [1] and np.flatnonzero(low).tolist() == [8]
    assert len(envelope_of(samples[:3], 10)[0]) == 3
    assert [number_of_rows(s) for s in (0.01, 12.0, 12.1, 72.0, 600.0)] == [1, 1, 2, 6, 6]
    words = [Word("W" * 9, (Unit("W", t / 10, t / 10 + 0.04, 0.9),)) for t in range(590)]
    flat = Envelope(np.full(2000, -0.1), np.full(2000, 0.1), 59.0)
    assert size_of(waveform_picture(flat, words))[0] > size_of(waveform_picture(flat, []))[0] > 300


def test_colours_are_the_principal_components():
    random = np.random.default_rng(3)
    frames = (
        random.normal(size=(200, 5)) @ np.diag([5.0, 3.0, 2.0, 0.5, 0.1]) @ random.normal(size=(5, 16)) + 7.0
    )
    colours, share = principal_colours(frames)
    pca = PCA(3, svd_solver="full").fit(frames)
    assert share == pytest.approx(pca.explained_variance_ratio_.sum(), abs=1e-9)
    inside = (colours > 0) & (colours < 1)
    for component, placed in enumerate(pca.transform(frames).T):
        kept = inside[:, component]
        assert kept.mean() > 0.9
        assert abs(np.corrcoef(placed[kept], colours[kept, component])[0, 1]) == pytest.approx(1.0, abs=1e-9)
    assert np.array_equal(colours, principal_colours(frames)[0])
    for flat in (np.ones((4, 8)), np.ones((1, 8))):
        assert (principal_colours(flat)[0] == 0.5).all()
    assert principal_colours(random.normal(size=(9, 2)))[0].shape == (9, 3)


def test_which_model_is_in_a_folder(trained_toy, tmp_path):
    torch.manual_seed(0)
    encoder = load_encoder(TINY_ENCODER)
    save_encoder(encoder, tmp_path / "run" / "encoder", {})
    save_encoder(encoder, tmp_path / "alone", {})
    folder = str(trained_toy["experiment"])
    assert [kind_of(f) for f in (folder, str(tmp_path / "alone"))] == ["asr", "encoder"]
    for place in ("run", "alone"):
        models, facts = open_models(DemoOptions(str(tmp_path / place)), torch.device("cpu"))
        assert models.recogniser is None and models.encoder is not None and list(facts) == ["encoder"]
    both = DemoOptions([folder, str(tmp_path / "alone")], average=0)
    models, facts = open_models(both, torch.device("cpu"))
    assert (
        list(facts) == ["recogniser", "encoder"]
        and models.encoder is models.recogniser.searcher.model.encoder
    )
    with pytest.raises(ValueError, match="is a second recogniser: give one of each kind"):
        open_models(replace(both, experiment_dir=[folder, folder]), torch.device("cpu"))
    with pytest.raises(ValueError, match="has no config.json; it is not an encoder folder"):
        open_models(DemoOptions(str(tmp_path)), torch.device("cpu"))
    for gone in (str(tmp_path / "gone"), "owner/name"):  # and not a name of the hub
        with pytest.raises(
            ValueError, match=f"experiment_dir {gone} does not exist: give the folder of a run"
        ):
            open_models(DemoOptions(gone), torch.device("cpu"))


def test_the_command_says_what_is_missing_in_one_line(trained_toy, capsys, monkeypatch):
    def error_of(*arguments: str) -> str:
        monkeypatch.setattr(
            sys, "argv", ["demo", "--experiment_dir", str(trained_toy["experiment"]), *arguments]
        )
        with pytest.raises(SystemExit):
            run(main)
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
        assert len(lines) == 1
        return lines[0]

    monkeypatch.setitem(sys.modules, "gradio", None)
    assert "the page needs gradio" in error_of() and "pip install 'spear_lib[demo]'" in error_of()
    assert "port is 70000" in error_of("--port", "70000")
    assert "limits.seconds is 0" in error_of("--limits.seconds", "0")


def test_a_port_that_is_taken_and_an_address_of_another_machine():
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RuntimeError, match=f"127.0.0.1:{port} .*in use.*give another port"):
            free_port("127.0.0.1", port)
        assert free_port("127.0.0.1", 0) not in (0, port)
    with pytest.raises(RuntimeError, match="cannot be served at 192.0.2.1:7860"):
        free_port("192.0.2.1", 7860)
