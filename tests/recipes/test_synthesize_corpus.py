"""The synthetic corpora: text, voices, bytes, layout; read unchanged by lhotse's own recipes."""

import filecmp
import json
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import soundfile

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from tools import synthesize_corpus  # noqa: E402
from tools.synthesis import layout, rooms, workers  # noqa: E402
from tools.synthesis.grammar import LARGE, SMALL, Grammar, split_of  # noqa: E402
from tools.synthesis.noises import NoiseOptions, make_noise_corpus  # noqa: E402
from tools.synthesis.voices import choose_voices  # noqa: E402

TINY = layout.SpeechOptions(
    train_minutes=1.2,
    labelled_minutes=0.6,
    dev_minutes=0.2,
    test_minutes=0.2,
    num_train_voices=4,
    num_test_voices=2,
    labelled_speakers=2,
)
ALL_ACCENTS = ["us", "gb", "rp", "scotland"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    output = tmp_path_factory.mktemp("speech") / "corpus"
    layout.make_speech_corpus(output, TINY, num_processes=2)
    return output


def transcripts(corpus: Path, part: str) -> list[str]:
    lines = []
    for path in sorted((corpus / "LibriSpeech" / part).rglob("*.trans.txt")):
        lines += [line.split(maxsplit=1)[1] for line in path.read_text().splitlines()]
    return lines


def test_lhotse_reads_the_corpus_unchanged(corpus):
    from lhotse.recipes import prepare_librispeech

    manifests = prepare_librispeech(corpus / "LibriSpeech")
    assert sorted(manifests) == ["dev-clean", "test-clean", "test-other", "train-clean-100"]
    minutes = json.loads((corpus / "corpus.json").read_text())["minutes"]
    for part, manifest in manifests.items():
        recordings = manifest["recordings"]
        assert len(recordings) == len(manifest["supervisions"]) == len(transcripts(corpus, part))
        assert sum(recording.duration for recording in recordings) / 60 == pytest.approx(
            minutes[part], abs=0.01
        )
        assert {recording.sampling_rate for recording in recordings} == {16000}
    # A little more than asked for, by at most one utterance for each speaker.
    assert 1.2 <= minutes["train-clean-100"] < 1.2 + 4 * 5 / 60
    assert 0.2 <= minutes["test-other"] < 0.2 + 2 * 5 / 60


def test_same_options_same_bytes_whatever_the_number_of_processes(corpus, tmp_path):
    layout.make_speech_corpus(tmp_path / "again", TINY, num_processes=1)
    assert_same_files(corpus, tmp_path / "again")


def assert_same_files(first: Path, second: Path) -> None:
    names = sorted(str(path.relative_to(first)) for path in first.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(second)) for path in second.rglob("*") if path.is_file())
    same, different, errors = filecmp.cmpfiles(first, second, names, shallow=False)
    assert (different, errors) == ([], []) and len(same) > 10


def test_another_seed_says_other_things(corpus, tmp_path):
    options = layout.SpeechOptions(**{**TINY.__dict__, "seed": 1})
    layout.make_speech_corpus(tmp_path / "other", options)
    assert transcripts(corpus, "test-clean") != transcripts(tmp_path / "other", "test-clean")


def test_audio_is_16_bit_mono_unclipped_and_speech_shaped(corpus):
    paths = sorted((corpus / "LibriSpeech").rglob("*.flac"))
    words = sum(len(line.split()) for part in layout_parts() for line in transcripts(corpus, part))
    seconds = 0.0
    for path in paths:
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.format, info.subtype) == (16000, 1, "FLAC", "PCM_16")
        samples, _ = soundfile.read(path)
        seconds += len(samples) / 16000
        assert 0.9 <= len(samples) / 16000 <= 8.0, path
        assert 0.02 < np.abs(samples).max() <= 0.9001, path
        assert -45 < 20 * np.log10(rooms.rms(samples)) < -14, path
    assert 110 < words / seconds * 60 < 220  # words per minute of natural speech


def layout_parts() -> list[str]:
    return ["train-clean-100", "dev-clean", "test-clean", "test-other"]


def test_other_is_noisier_than_clean(corpus):
    def noise_floor(part: str) -> float:
        floors = []
        for path in sorted((corpus / "LibriSpeech" / part).rglob("*.flac")):
            samples, _ = soundfile.read(path)
            frames = samples[: len(samples) // 160 * 160].reshape(-1, 160)
            levels = np.sqrt((frames**2).mean(axis=1))
            floors.append(20 * np.log10(np.percentile(levels, 5) / np.percentile(levels, 95)))
        return float(np.mean(floors))

    assert noise_floor("test-other") > noise_floor("test-clean") + 10


def test_no_sentence_is_shared_between_train_dev_and_test(corpus):
    train, dev = set(transcripts(corpus, "train-clean-100")), set(transcripts(corpus, "dev-clean"))
    test = set(transcripts(corpus, "test-clean")) | set(transcripts(corpus, "test-other"))
    for first, second in combinations((train, dev, test), 2):
        assert not first & second
    assert all(split_of(sentence.lower()) == "test" for sentence in test)


def test_speakers_table_and_labelled_speakers(corpus):
    lines = (corpus / "LibriSpeech" / "SPEAKERS.TXT").read_text().splitlines()
    rows = [[field.strip() for field in line.split("|")] for line in lines if not line.startswith(";")]
    folders = sorted(path.name for path in (corpus / "LibriSpeech").glob("*/*"))
    assert sorted(row[0] for row in rows) == folders and len(folders) == 4 + 3 * 2
    assert {row[1] for row in rows} == {"F", "M"}
    facts = json.loads((corpus / "corpus.json").read_text())
    minutes = {int(row[0]): float(row[3]) for row in rows}
    labelled = sum(minutes[speaker] for speaker in facts["labelled_speakers"])
    assert len(facts["labelled_speakers"]) == 2 and 0.6 <= labelled < 0.6 + 2 * 5 / 60


@pytest.mark.parametrize("vocabulary", [SMALL, LARGE])
def test_grammar(vocabulary):
    grammar, random = Grammar(vocabulary), np.random.default_rng(0)
    sentences = [grammar.draw(random) for _ in range(20_000)]
    assert {len(sentence.split()) for sentence in sentences} <= set(range(3, 10))
    said = {word for sentence in sentences for word in sentence.split()}
    assert said == set(vocabulary.words())
    splits = [split_of(sentence) for sentence in set(sentences)]
    for split, share in (("train", 0.8), ("dev", 0.1), ("test", 0.1)):
        assert splits.count(split) / len(splits) == pytest.approx(share, abs=0.02)
    assert len(set(sentences)) > 15_000
    with pytest.raises(ValueError, match="no split 'eval'"):
        grammar.draw_for("eval", random)


def test_size_of_the_vocabularies():
    assert 100 <= len(SMALL.words()) <= 150 and 250 <= len(LARGE.words()) <= 400
    assert set(SMALL.words()) < set(LARGE.words())


def test_no_two_words_sound_the_same():
    # In a process of its own: espeak-ng must be untouched when the others fork.
    code = (
        "from tools.synthesis import espeak\n"
        "from tools.synthesis.grammar import LARGE\n"
        "engine = espeak.engine()\n"
        "for voice in ('en-us', 'en', 'en-gb-x-rp', 'en-gb-scotland'):\n"
        "    engine.set_voice(voice)\n"
        "    sounds = {}\n"
        "    for word in LARGE.words(): sounds.setdefault(engine.phonemes(word), []).append(word)\n"
        "    print(voice, [words for words in sounds.values() if len(words) > 1])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    lines = result.stdout.splitlines()
    assert len(lines) == 4 and all(line.endswith(" []") for line in lines), result.stdout


def test_voices_are_disjoint_balanced_and_of_every_accent():
    groups = choose_voices(0, [40, 8, 8, 8], [100, 1000, 2000, 3000], ALL_ACCENTS, spread=1.0)
    pairs = [(voice.accent, voice.variant) for group in groups for voice in group]
    assert len(set(pairs)) == len(pairs) == 64
    assert len({voice.speaker for group in groups for voice in group}) == 64
    for group in groups:
        assert {voice.accent for voice in group} == set(ALL_ACCENTS)
        assert sum(voice.gender == "F" for voice in group) == len(group) // 2
    few = groups[0][:6]
    assert len({voice.accent for voice in few}) >= 3 and len({voice.variant for voice in few}) == 6


def test_no_spread_leaves_accent_and_variant():
    (group,) = choose_voices(0, [10], [1], ALL_ACCENTS, spread=0.0)
    assert len({(voice.pitch, voice.rate, voice.tract, voice.tilt) for voice in group}) == 1


def test_too_many_voices_and_unknown_accents():
    with pytest.raises(ValueError, match=r"200 different voices are wanted, 30 exist .*lower --num-train"):
        choose_voices(0, [200], [1], ["us"], 1.0)
    with pytest.raises(ValueError, match=r"unknown accents \['texas'\]"):
        choose_voices(0, [1], [1], ["texas"], 1.0)


def test_room_keeps_direct_sound_first_and_decays():
    random = np.random.default_rng(0)
    room = rooms.Room(0.4, direct_ratio=6.0, noise="pink", snr=20.0, microphone=0.0, level=-25.0)
    response = rooms.impulse_response(room, random)
    assert len(response) == 6400 and response[0] == 1.0
    tail = response[1:] ** 2
    assert 10 * np.log10(1.0 / tail.sum()) == pytest.approx(6.0, abs=0.1)
    assert tail[:1600].sum() > 100 * tail[-1600:].sum()


def test_a_measured_room_keeps_its_shape_from_the_peak_on(tmp_path):
    response = np.zeros(1600)
    response[160:480] = 0.5 * np.array([1.0, *-np.exp(-np.arange(319) / 50)])  # the peak after 10 ms
    soundfile.write(tmp_path / "room.wav", response, 16000, subtype="FLOAT")
    found = rooms.measured_response(tmp_path / "room.wav", direct_ratio=6.0)
    assert len(found) == 1440 and found[0] == 1.0
    assert 10 * np.log10(1.0 / (found[1:] ** 2).sum()) == pytest.approx(6.0, abs=1e-6)
    assert found[101] / found[1] == pytest.approx(np.exp(-2), rel=1e-4) and found[1] < 0
    soundfile.write(tmp_path / "room.wav", np.r_[np.zeros(9), 1.0], 16000)
    with pytest.raises(ValueError, match="no echo after its peak"):
        rooms.measured_response(tmp_path / "room.wav", 6.0)
    with pytest.raises(ValueError, match="--rooms .* holds no impulse responses"):
        layout.SpeechOptions(rooms=str(tmp_path / "nothing"))


def test_measured_rooms_change_the_sound_alone(corpus, tmp_path):
    decay = np.exp(-np.arange(4000) / 800) * np.random.default_rng(0).standard_normal(4000)
    soundfile.write(tmp_path / "a.wav", np.r_[0.9, 0.1 * decay], 16000)
    options = replace(TINY, rooms=str(tmp_path), train_minutes=0.6, labelled_minutes=0.3)
    layout.make_speech_corpus(tmp_path / "corpus", options, num_processes=2)
    for part in ("dev-clean", "test-other"):
        assert transcripts(tmp_path / "corpus", part) == transcripts(corpus, part)
        names = sorted((corpus / "LibriSpeech" / part).rglob("*.flac"))
        for name in names:
            drawn, _ = soundfile.read(name)
            measured, _ = soundfile.read(tmp_path / "corpus" / name.relative_to(corpus))
            assert len(drawn) == len(measured) and not np.array_equal(drawn, measured)
    # A corpus that was made before there were measured rooms is still the same corpus.
    facts = json.loads((corpus / "corpus.json").read_text())
    del facts["options"]["rooms"]
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "corpus.json").write_text(json.dumps(facts))
    assert synthesize_corpus.is_complete(tmp_path / "old", TINY)
    with pytest.raises(ValueError, match="rooms is None there, '.*' is wanted"):
        synthesize_corpus.is_complete(tmp_path / "old", replace(TINY, rooms=str(tmp_path)))


def test_recording_has_the_wanted_snr():
    random = np.random.default_rng(0)
    room = rooms.Room(0.1, direct_ratio=60.0, noise="white", snr=10.0, microphone=0.0, level=-20.0)
    speech = np.sin(2 * np.pi * 1000 * np.arange(32000) / 16000)
    samples = rooms.record(speech, np.ones(1), room, room.microphone, room.level, random) / 32767
    # The first 0.1 s is silence: only noise.
    assert 20 * np.log10(rooms.rms(samples[:1600])) == pytest.approx(-30.0, abs=0.5)
    assert 20 * np.log10(rooms.rms(samples[8000:24000])) == pytest.approx(-19.6, abs=0.3)


@pytest.mark.parametrize(("colour", "exponent"), rooms.NOISE_COLOURS.items())
def test_noise_has_its_colour(colour, exponent):
    noise = rooms.coloured_noise(160_000, exponent, np.random.default_rng(0))
    assert rooms.rms(noise) == pytest.approx(1.0)
    power = np.abs(np.fft.rfft(noise)) ** 2
    low, high = power[1000:2000].mean(), power[40_000:41_000].mean()  # around 150 Hz and 4050 Hz
    assert np.log(high / low) / np.log(4050 / 150) == pytest.approx(exponent, abs=0.1)


def test_noises_are_read_by_lhotse_and_have_the_same_bytes_each_time(tmp_path):
    from lhotse.recipes import prepare_musan

    options = NoiseOptions(minutes=1.0)
    facts = make_noise_corpus(tmp_path / "a", options, 2)
    make_noise_corpus(tmp_path / "b", options, 1)
    names = sorted(str(p.relative_to(tmp_path / "a")) for p in (tmp_path / "a").rglob("*") if p.is_file())
    same, different, errors = filecmp.cmpfiles(tmp_path / "a", tmp_path / "b", names, shallow=False)
    assert (different, errors) == ([], []) and len(same) == len(names)
    manifests = prepare_musan(tmp_path / "a" / "musan")
    assert sorted(manifests) == ["music", "noise", "speech"]
    for part, manifest in manifests.items():
        recordings = manifest["recordings"]
        assert sum(r.duration for r in recordings) / 60 == pytest.approx(facts["minutes"][part])
        for recording in recordings:
            samples = recording.load_audio()
            assert 20 * np.log10(rooms.rms(samples)) > -36 and np.abs(samples).max() <= 0.9001
    assert len(manifests["music"]["supervisions"]) == len(manifests["music"]["recordings"])
    with pytest.raises(ValueError, match="--minutes is 0.1, at least 0.5"):
        NoiseOptions(minutes=0.1)


def test_command_leaves_a_finished_corpus_alone_and_refuses_other_options(tmp_path, caplog):
    output = tmp_path / "noise"

    def command(*arguments: str) -> None:
        synthesize_corpus.main(["noise", "--output", str(output), *arguments])

    caplog.set_level("INFO")
    command("--minutes", "0.5", "--num-processes", "1")
    assert "made" in caplog.text and not (tmp_path / "noise.tmp").exists()
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    command("--minutes", "0.5")
    assert "nothing to do" in caplog.text
    assert before == {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    with pytest.raises(ValueError, match=r"minutes is 0\.5 there, 0\.6 is wanted\. Delete"):
        command("--minutes", "0.6")
    with pytest.raises(SystemExit):
        command("--minuets", "0.6")


def test_command_runs_from_anywhere():
    tool = str(REPOSITORY / "tools" / "synthesize_corpus.py")
    result = subprocess.run(
        [sys.executable, tool, "speech", "--help"], capture_output=True, text=True, check=True, cwd="/"
    )
    for option in ("--train-minutes", "--labelled-speakers", "--num-train-voices", "--vocabulary", "--seed"):
        assert option in result.stdout


def test_foreign_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a synthesised corpus"):
        synthesize_corpus.is_complete(tmp_path, TINY)


def test_interrupted_run_is_started_again(tmp_path):
    output = tmp_path / "noise"
    rubbish = tmp_path / "noise.tmp" / "musan" / "noise" / "rubbish.wav"
    rubbish.parent.mkdir(parents=True)
    rubbish.write_text("half a file")
    make_noise_corpus(output, NoiseOptions(minutes=0.5))
    assert not list(output.rglob("rubbish.wav")) and not (tmp_path / "noise.tmp").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labelled_speakers": 50}, "50 labelled speakers of 40 training voices"),
        ({"labelled_minutes": 80.0}, "labelled_minutes is 80.0, .* at most train_minutes"),
        ({"train_minutes": 0.0}, "train_minutes is 0.0"),
        ({"num_test_voices": 0}, "num_test_voices is 0"),
        ({"vocabulary": "huge"}, "'huge': choose from small, large"),
        ({"voice_spread": 9.0}, "voice_spread is 9.0"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        layout.SpeechOptions(**options)


def fail_on_two(job: int) -> None:
    if job == 2:
        raise KeyError("two is too much")


def kill_itself(job: int) -> None:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def test_failure_and_death_of_a_worker_are_reported(tmp_path):
    with pytest.raises(RuntimeError, match="job 3 of 4 failed: KeyError: 'two is too much'"):
        workers.run_fresh(fail_on_two, [0, 1, 2, 3], 2, tmp_path, "testing", "jobs")
    with pytest.raises(RuntimeError, match=r"job 1 of 1 ended with code -9: it was killed"):
        workers.run_fresh(kill_itself, [0], 2, tmp_path, "testing", "jobs")
