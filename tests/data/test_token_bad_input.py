"""Stage 5 and recordings that are not as they should be: a clear error, or skipped, counted and listed."""

import numpy as np
import pytest
import soundfile
import torch
from lhotse import MonoCut, MultiCut, Recording
from test_token_stages import call, made

from spear_lib.bin import check_tokens, dump_tokens, extract_embeddings
from spear_lib.data.manifests import Manifest, save_cuts
from spear_lib.quantization import Quantizer
from spear_lib.tokens.fields import load_tokens
from spear_lib.tokens.frame_sampling import SamplingOptions, choose_cuts
from spear_lib.tokens.making import load_teacher
from spear_lib.tokens.store import TokenStoreReader

__all__ = ["made"]  # a fixture

FIELD = "spectral_cb3"


def tone(seconds: float, rate: int = 16000, hertz: float = 300.0) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    return 0.3 * np.sin(2 * np.pi * hertz * time * (1 + 0.2 * np.sin(2 * time)))


def cut_of(path, samples: np.ndarray, rate: int = 16000, **kind: str):
    soundfile.write(path, samples, rate, **kind)
    return Recording.from_file(path).to_cut()


@pytest.fixture
def dump(made, tmp_path):
    """Tokens of some cuts, through the command; the store."""

    def run(cuts, name: str = "store", **options):
        save_cuts(cuts, tmp_path / f"{name}.jsonl.gz")
        arguments = ["--cuts", tmp_path / f"{name}.jsonl.gz", "--quantizer", made / "quantizer"]
        arguments += ["--output_dir", tmp_path / name]
        for option, value in options.items():
            arguments += [f"--{option}", value]
        call(dump_tokens, *arguments)
        return TokenStoreReader(tmp_path / name)

    return run


def bad_cuts(folder) -> list:
    """A truncated, a NaN, a one-sample, a missing and an empty recording between two good ones."""
    cuts = [cut_of(folder / "good0.wav", tone(1.0))]
    cuts.append(cut_of(folder / "truncated.flac", np.random.default_rng(0).normal(0, 0.1, 16000)))
    (folder / "truncated.flac").write_bytes((folder / "truncated.flac").read_bytes()[:5000])
    samples = tone(1.0).astype(np.float32)
    samples[7] = np.nan
    cuts.append(cut_of(folder / "nan.wav", samples, subtype="FLOAT"))
    cuts.append(cut_of(folder / "one.wav", tone(1.0)[:1] + 0.1))
    for name in ("missing", "empty"):
        cuts.append(cut_of(folder / f"{name}.wav", tone(0.5)))
    (folder / "missing.wav").unlink()
    (folder / "empty.wav").write_bytes(b"")
    return [*cuts, cut_of(folder / "good1.wav", tone(1.2))]


def test_bad_recordings_are_skipped_counted_and_listed(dump, tmp_path, caplog):
    cuts = bad_cuts(tmp_path)
    with caplog.at_level("INFO"):
        store = dump(cuts, max_bad_fraction=0.9)
    reasons = {entry.cut_id: entry.skipped for entry in store.entries()}
    assert reasons["good0"] == reasons["good1"] == ""
    assert store.find(cuts[0]).num_frames == 50 and store.find(cuts[1]).num_frames == 0
    for name, kind in (
        ("truncated", "corrupt audio"),
        ("nan", "not finite"),
        ("one", "too short for one token"),
        ("missing", "missing audio"),
        ("empty", "zero-length audio"),
    ):
        assert kind in reasons[name], reasons
    assert "skipped 5 of 7 cuts" in caplog.text and "truncated.flac" in caplog.text
    check = ("--cuts", tmp_path / "store.jsonl.gz", "--store", tmp_path / "store")
    check = (*check, "--output_cuts", tmp_path / "out.jsonl.gz")
    with pytest.raises(
        ValueError, match=r"5 of 7 cuts have no tokens.*at most 0.10% may: truncated: corrupt audio"
    ):
        call(check_tokens, *check)
    listed = (tmp_path / "store" / "bad_cuts.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in listed] == ["truncated", "nan", "one", "missing", "empty"]
    assert not (tmp_path / "out.jsonl.gz").exists()
    call(check_tokens, *check, "--max_bad_fraction", 0.9)
    assert Manifest(tmp_path / "out.jsonl.gz").ids == ["good0", "good1"]


def test_too_many_bad_recordings_stop_the_dump_and_are_named(dump, tmp_path):
    cuts = bad_cuts(tmp_path)
    with pytest.raises(ValueError, match=r"of 7 cuts cannot be used, the limit is 0.1 %: .*\.(wav|flac)"):
        dump(cuts)


def test_repaired_recordings_are_made_on_request(dump, tmp_path):
    cuts = [cut_of(tmp_path / "a.wav", tone(1.0)), cut_of(tmp_path / "b.wav", tone(1.0, hertz=500))]
    content = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(b"")
    assert dump(cuts, max_bad_fraction=0.5).find(cuts[0]).skipped
    (tmp_path / "a.wav").write_bytes(content)
    assert dump(cuts, max_bad_fraction=0.5).find(cuts[0]).skipped  # what is committed stays
    store = dump(cuts, retry_skipped="true")
    assert not store.find(cuts[0]).skipped and store.find(cuts[0]).num_frames == 50


def test_another_sample_rate_is_resampled_and_counted(dump, tmp_path, caplog):
    cuts = [cut_of(tmp_path / "a.wav", tone(1.0, 8000), 8000), cut_of(tmp_path / "b.wav", tone(1.0))]
    with caplog.at_level("INFO"):
        store = dump(cuts)
    assert "1 of 2 cuts: resampled" in caplog.text
    assert store.find(cuts[0]).num_frames == 50
    assert (store.read(cuts[0]) == store.read(cuts[1])).mean() > 0.5  # chance: 1 in 8


def test_several_channels_mean_or_first(dump, tmp_path, caplog):
    left, right = tone(1.0), tone(1.0, hertz=700)
    stereo = cut_of(tmp_path / "stereo.wav", np.stack([left, right], 1))
    assert isinstance(stereo, MultiCut)
    one = cut_of(tmp_path / "left.wav", left)
    mean = cut_of(tmp_path / "mean.wav", (left + right) / 2)
    with caplog.at_level("INFO"):
        first = dump([stereo, one, mean], "first", channels="first")
        averaged = dump([stereo, one, mean], "averaged")
    assert caplog.text.count("1 of 3 cuts: made mono") == 2
    assert (first.read(stereo) == first.read(one)).mean() > 0.99
    assert (averaged.read(stereo) == averaged.read(mean)).mean() > 0.9
    assert (averaged.read(stereo) == averaged.read(one)).mean() < 0.9
    with pytest.raises(ValueError, match="channels is 'second': use mean or first"):
        dump([stereo], "second", channels="second")


def test_silence_has_tokens_and_is_counted(dump, tmp_path, caplog):
    cuts = [cut_of(tmp_path / "silent.wav", np.zeros(16000)), cut_of(tmp_path / "b.wav", tone(1.0))]
    with caplog.at_level("INFO"):
        store = dump(cuts)
    assert store.find(cuts[0]).num_frames == 50 and "1 of 2 cuts: silent" in caplog.text
    assert len(np.unique(store.read(cuts[0]), axis=0)) <= 3  # the edges may differ


def test_a_long_recording_goes_through_windows(dump, made, tmp_path):
    """70 s at a window of 30 s (starts 0, 20, 40 s; joined at 25 and 45 s): the frames of the windows."""
    cut = cut_of(tmp_path / "long.wav", tone(70.0) + np.random.default_rng(0).normal(0, 0.01, 70 * 16000))
    store = dump([cut, cut_of(tmp_path / "b.wav", tone(1.0))])
    assert store.find(cut).num_frames == 3500
    quantizer = Quantizer.load(made / "quantizer")
    teacher = load_teacher(quantizer, "quantizer")
    head = torch.from_numpy(cut.truncate(duration=30.0).load_audio())
    embeddings, _ = teacher.embed(head, torch.tensor([head.shape[1]]))
    assert np.array_equal(store.read(cut)[:1250], quantizer.encode(embeddings[0, :1250]).numpy())


@pytest.mark.slow
def test_two_hours_in_one_recording(dump, tmp_path):
    path = tmp_path / "hours.wav"
    minute = (tone(60.0) + np.random.default_rng(0).normal(0, 0.01, 60 * 16000)).astype(np.float32)
    with soundfile.SoundFile(path, "w", 16000, 1, subtype="PCM_16") as file:
        for _ in range(120):
            file.write(minute)
    cut = Recording.from_file(path).to_cut()
    assert dump([cut]).find(cut).num_frames == 7200 * 50


def test_a_part_of_a_recording_gets_its_own_tokens(dump, tmp_path):
    whole = cut_of(tmp_path / "a.wav", tone(3.0))
    part = whole.truncate(offset=1.0, duration=1.5).with_id("part")
    alone = cut_of(tmp_path / "alone.wav", tone(3.0)[16000:40000])
    store = dump([whole, part, alone])
    assert store.find(part).num_frames == 75
    assert (store.read(part) == store.read(alone)).mean() > 0.99


def test_teacher_of_another_size_than_the_quantiser(dump, made, tmp_path):
    quantizer = Quantizer(20, 3, 8)
    quantizer.provenance = Quantizer.load(made / "quantizer").provenance
    quantizer.save(tmp_path / "wide")
    with pytest.raises(
        ValueError, match=r"teacher spectral-\w+ has 12 channels, but the quantiser .*trained for 20"
    ):
        dump([cut_of(tmp_path / "a.wav", tone(1.0))], quantizer=tmp_path / "wide")


def test_two_cuts_of_the_same_audio_are_refused_before_any_work(dump, tmp_path):
    cut = cut_of(tmp_path / "a.wav", tone(1.0))
    with pytest.raises(
        ValueError, match="1 cuts are the same audio .* for example a and again; keep one of each"
    ):
        dump([cut, cut.with_id("again")])
    assert not (tmp_path / "store").exists()


def test_bad_recordings_of_the_quantisers_subset(made, tmp_path):
    cuts = [cut_of(tmp_path / f"r{number}.wav", tone(1.0, hertz=200 + 50 * number)) for number in range(5)]
    (tmp_path / "r2.wav").write_bytes(b"RIFF")
    save_cuts(cuts, tmp_path / "cuts.jsonl.gz")
    config = ("--config", made / "quantizer.yaml", "--cuts", tmp_path / "cuts.jsonl.gz")
    config = (*config, "--output_dir", tmp_path / "embeddings")
    with pytest.raises(ValueError, match=r"1 of 5 cuts cannot be used.*r2\.wav"):
        call(extract_embeddings, *config)
    call(extract_embeddings, *config, "--max_bad_fraction", 0.3)
    shards = sorted((tmp_path / "embeddings").glob("shard-*.npy"))
    assert sum(len(np.load(shard)) for shard in shards) == 4 * 50


def test_embeddings_are_balanced_over_recordings(tmp_path):
    """One recording of 100 cuts and 20 of one: the first 20 choices are of 20 recordings or more."""
    source = Recording("long", [], 16000, 100 * 16000, 100.0)
    cuts = [MonoCut(f"long-{n}", float(n), 1.0, 0, recording=source) for n in range(100)]
    for number in range(20):
        cuts.append(
            MonoCut(f"s{number}", 0.0, 1.0, 0, recording=Recording(f"s{number}", [], 16000, 16000, 1.0))
        )
    save_cuts(cuts, tmp_path / "cuts.jsonl")
    manifest = Manifest(tmp_path / "cuts.jsonl")

    chosen = choose_cuts(manifest, 50.0, SamplingOptions(), seed=3)
    recordings = [manifest[position].recording.id for position in chosen]
    assert len(set(recordings[:21])) == 21 and len(chosen) == 120
    assert chosen != choose_cuts(manifest, 50.0, SamplingOptions(), seed=4)
    # Enough for the frames wanted, and no more.
    assert len(choose_cuts(manifest, 50.0, SamplingOptions(num_frames=101, frames_per_cut=20), seed=3)) == 6


def test_tokens_of_a_loaded_manifest(dump, tmp_path):
    """The commands end to end on cuts of mixed trouble: what is written can be loaded."""
    cuts = bad_cuts(tmp_path)
    dump(cuts, max_bad_fraction=1.0)
    check = ("--cuts", tmp_path / "store.jsonl.gz", "--store", tmp_path / "store", "--max_bad_fraction", 1.0)
    call(check_tokens, *check, "--output_cuts", tmp_path / "out.jsonl.gz")
    assert [load_tokens(cut, FIELD).shape for cut in Manifest(tmp_path / "out.jsonl.gz")] == [
        (50, 3),
        (60, 3),
    ]
