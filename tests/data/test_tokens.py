"""Tokens on cuts: the packed store and its reader, without the traps of test_token_traps.py."""

import dataclasses
import pickle
import shutil

import numpy as np
import pytest
import torch
from lhotse import CutSet
from token_fixtures import FACTS, codes_of, cut_of

from spear_lib.data.batch import PADDING
from spear_lib.tokens import fields as token_module
from spear_lib.tokens.fields import (
    ShardPlan,
    TokenStoreReader,
    TokenStoreWriter,
    attach_tokens,
    collate_tokens,
    load_tokens,
    token_facts,
    validate,
    write_store,
    write_store_facts,
)
from spear_lib.tokens.shar import export_shar
from spear_lib.tokens.store import store_facts


def test_every_cut_gets_its_own_tokens_back(store):
    folder, cuts, codes = store
    for cut in cuts:
        assert np.array_equal(load_tokens(cut, "toy_cb4"), codes[cut.id])
        assert np.array_equal(cut.load_toy_cb4(), codes[cut.id])
        assert np.array_equal(TokenStoreReader(folder).read(cut), codes[cut.id])
    assert cuts[0].load_toy_cb4().dtype == np.uint8
    assert token_module.quantizer_id(cuts[0], "toy_cb4") == "q1"


def test_manifests_survive_files_and_pickling(store, tmp_path):
    _, cuts, codes = store
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl.gz")
    for cut in CutSet.from_file(tmp_path / "cuts.jsonl.gz"):
        assert np.array_equal(load_tokens(pickle.loads(pickle.dumps(cut)), "toy_cb4"), codes[cut.id])


def test_shar_export_keeps_tokens(store, tmp_path):
    from lhotse.shar import ArrayTarWriter, TarIterator

    _, cuts, codes = store
    with ArrayTarWriter(str(tmp_path / "tokens.tar"), shard_size=None, compression="numpy") as writer:
        for cut in cuts:
            writer.write(cut.id, cut.load_toy_cb4(), cut.toy_cb4)
    for (manifest, _), cut in zip(TarIterator(str(tmp_path / "tokens.tar")), cuts):
        assert np.array_equal(manifest.load(), codes[cut.id])


# The traps of spec/augment_and_mask §6, by number --------------------------------------------------------


def test_trap_1_and_2_padding_is_minus_100_in_int64():
    batch = collate_tokens([codes_of(5), codes_of(3)])
    assert batch.dtype == torch.int64 and batch.shape == (2, 5, 4)
    assert (batch[1, 3:] == PADDING).all() and (batch[1, :3] >= 0).all()
    # 255 stays 255, and -100 has not become 156 anywhere.
    assert batch[0, 4].tolist() == [255] * 4
    assert np.array_equal(batch[0].numpy(), codes_of(5))


def test_trap_2_minus_100_cannot_enter_a_store(tmp_path):
    cuts, bad = [cut_of("a", 0.06)], codes_of(3).astype(np.int64)
    bad[1, 1] = PADDING
    with pytest.raises(ValueError, match=r"lie in -100\.\.255.*padding \(-100\) must never reach the store"):
        write_store(tmp_path, FACTS, cuts, [bad])
    with pytest.raises(ValueError, match=r"shape \(3, 3\), expected \(frames, 4\)"):
        write_store(tmp_path, FACTS, cuts, [codes_of(3)[:, :3]])


def test_trap_3_cuts_that_do_not_start_at_zero(store):
    _, cuts, codes = store
    assert cuts[2].toy_cb4.start == 1.0
    assert load_tokens(cuts[2], "toy_cb4").shape == (100, 4)
    # What lhotse does if the field starts at 0: an array of the wrong part. We say so.
    cuts[2].custom["toy_cb4"].start = 0.0
    with pytest.raises(ValueError, match=r"has 50 frames of tokens 'toy_cb4', expected 100.0 \+- 2"):
        load_tokens(cuts[2], "toy_cb4")


def test_windows_get_their_own_frames(store):
    _, cuts, codes = store
    window = cuts[2].truncate(offset=0.5, duration=0.8)
    assert np.array_equal(load_tokens(window, "toy_cb4"), codes["c"][25:65])
    pieces = [load_tokens(piece, "toy_cb4") for piece in cuts[2].cut_into_windows(0.7)]
    assert np.array_equal(np.concatenate(pieces), codes["c"])


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_trap_4_changed_speed_is_refused(store, factor):
    _, cuts, _ = store
    with pytest.raises(ValueError, match="speed (was )?changed"):
        load_tokens(cuts[0].perturb_speed(factor), "toy_cb4")


def test_trap_5_and_6_mixtures_are_refused(store):
    _, cuts, _ = store
    mixed = cuts[0].drop_features().mix(cut_of("noise", 5.0), snr=10)
    with pytest.raises(ValueError, match="is a mixture.*before mixing"):
        load_tokens(mixed, "toy_cb4")


@pytest.mark.parametrize("duration", [0.505, 0.51, 0.515, 0.993, 0.02, 1.0])
def test_trap_7_rounding_of_durations_is_tolerated(tmp_path, duration):
    cut = cut_of("a", duration)
    frames = int(np.ceil(((round(duration * 16000) + 80) // 160) / 2))  # the spectral teacher's own count
    write_store(tmp_path, FACTS, [cut], [codes_of(frames)])
    (cut,) = attach_tokens([cut], tmp_path)
    assert load_tokens(cut, "toy_cb4").shape[0] == frames
    assert abs(cut.load_toy_cb4().shape[0] - frames) <= 1


def test_padded_cuts_are_refused(store):
    _, cuts, _ = store
    with pytest.raises(ValueError, match="is a mixture"):
        load_tokens(cuts[0].pad(duration=3.0), "toy_cb4")


def test_trap_11_missing_tokens_are_errors(store):
    folder, cuts, _ = store
    with pytest.raises(ValueError, match=r"cut x has no tokens 'toy_cb4' \(it has none\); run stage 6"):
        load_tokens(cut_of("x", 1.0), "toy_cb4")
    with pytest.raises(ValueError, match=r"no tokens 'other' \(it has toy_cb4\)"):
        load_tokens(cuts[0], "other")
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match="token file .* does not exist"):
        load_tokens(cuts[0], "toy_cb4")


def test_validate_counts_and_limits(store):
    folder, cuts, _ = store
    report = validate(cuts, "toy_cb4", "q1")
    assert (report.num_cuts, report.num_frames, report.num_missing, report.num_mismatched) == (3, 175, 0, 0)
    bad = [*cuts, cut_of("x", 1.0), cuts[0].perturb_speed(1.1)]
    with pytest.raises(
        ValueError, match="2 of 5 cuts have no usable tokens.*1 missing, 1 mismatched.*0.10%.*cut x"
    ):
        validate(bad, "toy_cb4")
    assert validate(bad, "toy_cb4", max_bad_fraction=0.5).num_missing == 1
    with pytest.raises(ValueError, match="come from quantiser q1, expected q2"):
        validate(cuts, "toy_cb4", "q2")


def test_batches_of_two_quantisers_are_refused():
    with pytest.raises(ValueError, match="4 and 8 codebooks"):
        collate_tokens([codes_of(3), np.zeros((3, 8), dtype=np.uint8)])
    with pytest.raises(ValueError, match="empty list"):
        collate_tokens([])


# The store ----------------------------------------------------------------------------------------------


def test_attaching_refuses_other_audio(store):
    folder, _, _ = store
    with pytest.raises(ValueError, match=r"no tokens of cut zz \(1.000 s from 0.000 s of its recording\)"):
        list(attach_tokens([cut_of("zz", 1.0)], folder))
    with pytest.raises(ValueError, match=r"no tokens of cut a \(1.500 s from 0.000 s"):
        list(attach_tokens([cut_of("a", 1.5)], folder))
    with pytest.raises(ValueError, match=r"no tokens of cut c \(2.000 s from 0.500 s"):
        list(attach_tokens([cut_of("c", 2.0, start=0.5)], folder))
    with pytest.raises(ValueError, match="holds the field 'toy_cb4', not 'wavlm'"):
        list(attach_tokens([], folder, "wavlm"))


def test_attaching_refuses_wrong_frame_counts(tmp_path):
    write_store(tmp_path, FACTS, [cut_of("a", 1.0)], [codes_of(25)])
    with pytest.raises(ValueError, match=r"cut a has 25 token frames, expected 50.5 \+- 2"):
        list(attach_tokens([cut_of("a", 1.0)], tmp_path))


def test_cuts_are_known_by_their_audio_not_by_their_names(store):
    folder, cuts, codes = store
    renamed = [cut.with_id(f"new-{cut.id}") for cut in reversed(cuts)]
    for cut in attach_tokens(renamed, folder):
        assert np.array_equal(load_tokens(cut, "toy_cb4"), codes[cut.id.removeprefix("new-")])


def test_tokens_beyond_one_byte(tmp_path):
    """k-means with 500 clusters: the type follows from the number of codes and travels with store and cut."""
    facts = dataclasses.replace(FACTS, codebook_size=500, num_codebooks=1, dtype="")
    assert (facts.dtype, FACTS.dtype) == ("uint16", "uint8") and facts.bytes_per_second == 100
    cut, codes = cut_of("a", 1.0), np.arange(450, 500, dtype=np.int64)[:, None]
    write_store(tmp_path, facts, [cut], [codes])
    (cut,) = attach_tokens([cut], tmp_path)
    assert load_tokens(cut, "toy_cb4").dtype == np.uint16
    assert np.array_equal(load_tokens(cut.truncate(offset=0.5), "toy_cb4"), codes[25:])
    assert collate_tokens([load_tokens(cut, "toy_cb4")]).max() == 499
    counts = TokenStoreReader(tmp_path).verify()
    assert counts.shape == (1, 500) and counts[0, 450:].tolist() == [1] * 50 and counts.sum() == 50
    with pytest.raises(ValueError, match="dtype is 'uint8', but tokens of 500 codes are stored as uint16"):
        dataclasses.replace(FACTS, codebook_size=500)
    with pytest.raises(ValueError, match=r"stored for 2\.\.65536 codes"):
        dataclasses.replace(FACTS, codebook_size=70000, dtype="")


def test_a_shard_has_one_maker_at_a_time(tmp_path):
    plan = ShardPlan((1, 2))
    one, other = TokenStoreWriter(tmp_path, FACTS, plan), TokenStoreWriter(tmp_path, FACTS, plan)
    with one.claim(0):
        with (
            pytest.raises(RuntimeError, match=r"shard 0 of .* is being written by process \d+ on .*two jobs"),
            other.claim(0),
        ):
            raise AssertionError("both have it")
        with other.claim(1):
            pass
    with other.claim(0):
        pass
    # What a killed holder leaves does not block.
    (tmp_path / "shards" / "shard-00000.lock").write_text('{"host": "n", "pid": 1, "since": 0}')
    with one.claim(0):
        pass
    assert not list(tmp_path.rglob("*lock"))


def test_a_store_keeps_its_plan(tmp_path):
    first = TokenStoreWriter(tmp_path, FACTS, ShardPlan((3, 6)))
    assert TokenStoreWriter(tmp_path, FACTS, ShardPlan((2, 4, 6))).plan == first.plan


def test_writer_refuses_a_store_of_another_run(tmp_path):
    TokenStoreWriter(tmp_path, FACTS, ShardPlan((1,)))
    other = dataclasses.replace(FACTS, quantizer_id="q2")
    with pytest.raises(
        ValueError, match="with quantizer_id = 'q1', but this run has 'q2'; delete the folder"
    ):
        TokenStoreWriter(tmp_path, other, ShardPlan((1,)))


def test_plans_divide_by_length_and_every_cut_is_in_one_shard():
    durations = np.random.default_rng(0).uniform(1, 30, size=500)
    plan = ShardPlan.over(durations, 600.0)
    positions = [position for shard in range(len(plan)) for position in plan.positions(shard)]
    assert positions == list(range(500))
    lengths = [durations[list(plan.positions(shard))].sum() for shard in range(len(plan))]
    assert max(lengths) < 630 and min(lengths) > 500
    for num_splits in (1, 3, 100):
        shares = [plan.share(split, num_splits) for split in range(1, num_splits + 1)]
        assert [shard for share in shares for shard in share] == list(range(len(plan)))
    assert ShardPlan.over(np.array([7200.0, 1.0, 1.0]), 60.0).ends == (1, 3)
    assert ShardPlan.over(np.array([1.0, 2.0]), 1e9).ends == (2,)
    equal = ShardPlan.over(np.full(100, 10.0), 100.0)
    assert [len(equal.positions(shard)) for shard in range(len(equal))] == [10] * 10


def test_committed_shards_are_found_and_damaged_ones_not(tmp_path):
    writer = TokenStoreWriter(tmp_path, FACTS, ShardPlan((1,)))
    assert not writer.is_done(0)
    writer.write_shard(0, [cut_of("a", 0.1)], [codes_of(5)[:0]], {"a": "corrupt audio"})
    assert writer.is_done(0) and writer.skipped(0) == {"a": "corrupt audio"}
    assert not writer.is_done(0, retry_skipped=True)
    writer.write_shard(0, [cut_of("a", 0.1)], [codes_of(5)])
    assert writer.is_done(0, retry_skipped=True)
    (tmp_path / "shards" / "shard-00000.bin").write_bytes(b"x")
    assert not writer.is_done(0)


def test_unfinished_stores_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no tokens in .*dump_tokens"):
        TokenStoreReader(tmp_path / "nothing")
    writer = TokenStoreWriter(tmp_path, FACTS, ShardPlan((1, 2, 3)))
    writer.write_shard(1, [cut_of("a", 0.1)], [codes_of(5)])
    with pytest.raises(ValueError, match=r"2 of 3 shards of .* are not made \(0, 2\); run stage 5"):
        TokenStoreReader(tmp_path)


def test_skipped_cuts_get_no_tokens(tmp_path):
    writer = TokenStoreWriter(tmp_path, FACTS, ShardPlan((2,)))
    cuts = [cut_of("a", 0.1), cut_of("b", 0.1)]
    writer.write_shard(0, cuts, [codes_of(5)[:0], codes_of(5)], {"a": "corrupt audio"})
    assert [cut.id for cut in attach_tokens(cuts, tmp_path)] == ["b"]
    assert TokenStoreReader(tmp_path).find(cuts[0]).skipped == "corrupt audio"


def test_damage_is_found(store):
    folder, cuts, _ = store
    reader = TokenStoreReader(folder)
    reader.verify()
    data = folder / "shards" / "shard-00000.bin"
    content = bytearray(data.read_bytes())
    content[7] ^= 1
    data.write_bytes(content)
    with pytest.raises(ValueError, match="changed since it was written"):
        reader.verify()
    data.write_bytes(content[:-8])
    with pytest.raises(ValueError, match="has 292 bytes, expected 300"):
        TokenStoreReader(folder)
    with pytest.raises(ValueError, match="cut short or the cuts belong to another token store"):
        load_tokens(cuts[1], "toy_cb4")
    index = data.with_suffix(".json")
    index.write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        TokenStoreReader(folder)
    index.unlink()
    with pytest.raises(ValueError, match="1 of 2 shards of .* are not made"):
        TokenStoreReader(folder)


def test_audio_held_twice_is_found(tmp_path):
    cuts = [cut_of("a", 0.1), cut_of("a", 0.1).with_id("b")]
    write_store(tmp_path, FACTS, cuts, [codes_of(5), codes_of(5)])
    with pytest.raises(ValueError, match="the audio of cut a is in .* twice"):
        TokenStoreReader(tmp_path)


def test_facts_travel_with_cuts_and_store(store):
    folder, cuts, _ = store
    short = token_facts(cuts[0], "toy_cb4")
    assert short == {"field": "toy_cb4", "quantizer_id": "q1", "frame_rate": 50.0, "num_codebooks": 4}
    with pytest.raises(ValueError, match="store.json does not exist; run stage 6"):
        store_facts(folder)
    write_store_facts(folder, FACTS, {"num_cuts": 3})
    full = token_facts(cuts[0], "toy_cb4")
    assert (full["first_frame_center_ms"], full["teacher_id"], full["num_cuts"]) == (5.0, "toy-1", 3)
    write_store_facts(folder, dataclasses.replace(FACTS, quantizer_id="q2"), {})
    with pytest.raises(ValueError, match="attached for quantiser q1, but .* now holds tokens of q2"):
        token_facts(cuts[0], "toy_cb4")


def test_a_replaced_file_is_read_anew(tmp_path):
    for seed in (1, 2):
        write_store(tmp_path, FACTS, [cut_of("a", 1.0)], [codes_of(50, seed)])
        (cut,) = attach_tokens([cut_of("a", 1.0)], tmp_path)
        assert np.array_equal(load_tokens(cut, "toy_cb4"), codes_of(50, seed))


def test_histograms_count_every_code(store):
    folder, _, codes = store
    everything = np.concatenate(list(codes.values()))
    counts = TokenStoreReader(folder).verify()
    assert counts.shape == (4, 256) and counts.sum() == everything.size
    assert np.array_equal(counts[2], np.bincount(everything[:, 2], minlength=256))


def test_bad_keys_say_so():
    with pytest.raises(ValueError, match="token key '12:3' is not"):
        token_module.PackedTokenReader("x").read("12:3")


def test_a_teacher_without_frames_at_the_edges(tmp_path):
    """A Zipformer's first frame is centred at 45 ms, its last one 45 ms before the end: 46 in a second."""
    facts = dataclasses.replace(FACTS, first_frame_center_ms=45.0)
    cuts = [
        cut_of("second", 1.0),
        cut_of("long", 12.34),
        cut_of("short", 0.13),
        cut_of("part", 2.0, 3.0, 9.0),
    ]
    codes = [codes_of(number, number) for number in (46, 613, 3, 96)]
    write_store(tmp_path, facts, cuts, codes)
    write_store_facts(tmp_path, facts, {})
    attached = list(attach_tokens(cuts, tmp_path))
    assert validate(attached, "toy_cb4").num_frames == 46 + 613 + 3 + 96
    assert all(np.array_equal(load_tokens(cut, "toy_cb4"), own) for cut, own in zip(attached, codes))
    long = attached[1]
    inside = load_tokens(long.truncate(offset=2.0, duration=4.0), "toy_cb4")
    assert np.array_equal(inside, codes[1][100:300])
    at_the_end = load_tokens(long.truncate(offset=10.0), "toy_cb4")
    assert np.array_equal(at_the_end, codes[1][500:])
    export_shar(attached, tmp_path / "shar", ["toy_cb4"])
    again = CutSet.from_shar(in_dir=tmp_path / "shar")
    assert [len(load_tokens(cut, "toy_cb4")) for cut in again] == [46, 613, 3, 96]
    for number in (50, 42):
        other = tmp_path / str(number)
        write_store(other, facts, cuts[:1], [codes_of(number)])
        write_store_facts(other, facts, {})
        with pytest.raises(ValueError, match=f"has {number} token frames, expected 46.5 .*centred at 45 ms"):
            list(attach_tokens(cuts[:1], other))
    slower = attached[0].perturb_speed(0.9)
    with pytest.raises(ValueError, match=r"46 frames of tokens 'toy_cb4', expected 55.6.*speed was changed"):
        load_tokens(slower, "toy_cb4")
