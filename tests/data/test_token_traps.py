"""The known traps of token fields in lhotse, naively: what lhotse does by itself (ours: test_tokens.py).

If one of these fails, lhotse has changed.
"""

import shutil
import warnings

import numpy as np
import pytest
import torch
from lhotse import CutSet
from lhotse.dataset.collation import collate_custom_field
from token_fixtures import FACTS, codes_of, cut_of

from spear_lib.data.batch import PADDING
from spear_lib.data.manifests import Manifest, save_cuts
from spear_lib.tokens.fields import attach_tokens, collate_tokens, load_tokens, write_store


def test_trap_1_naive_collation_pads_with_a_valid_token(store):
    _, cuts, _ = store
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        naive, _ = collate_custom_field(CutSet.from_cuts(cuts[:2]), "toy_cb4")
    ours = collate_tokens([load_tokens(cut, "toy_cb4") for cut in cuts[:2]])
    padded = ours[1] == PADDING
    assert padded.any() and (naive[1][padded] != PADDING).all() and (naive[1][padded] == 0).all()


def test_trap_2_naive_padding_wraps_to_156(store):
    _, cuts, _ = store
    naive = cuts[1].pad(duration=1.0, pad_value_dict={"toy_cb4": PADDING}).load_toy_cb4()
    assert naive.dtype == np.uint8 and (naive[-10:] == 156).all()
    with pytest.raises(ValueError, match="is a mixture"):
        load_tokens(cuts[1].pad(duration=1.0), "toy_cb4")


def test_trap_3_naive_start_of_zero_loads_the_wrong_part(store):
    _, cuts, codes = store
    cut = cuts[2]
    assert np.array_equal(cut.load_toy_cb4(), codes["c"])
    cut.custom["toy_cb4"].start = 0.0
    assert not np.array_equal(cut.load_toy_cb4(), codes["c"])


def test_trap_4_naive_speed_change_cuts_tokens_silently(store):
    _, cuts, codes = store
    faster = cuts[0].perturb_speed(1.1)
    assert len(faster.load_toy_cb4()) < len(codes["a"])  # no error


def test_trap_5_naive_mixture_grows_and_fills_the_field(store):
    _, cuts, codes = store
    mixed = cuts[0].mix(cut_of("noise", 5.0), snr=10)
    naive = mixed.load_toy_cb4()
    assert len(naive) > len(codes["a"]) and (naive[len(codes["a"]) :] == 0).all()


def test_trap_6_naive_mixture_of_two_tokenised_cuts_fails(store):
    _, cuts, _ = store
    with pytest.raises((ValueError, AssertionError, AttributeError)):
        cuts[0].mix(cuts[1], snr=0).load_toy_cb4()


def test_trap_7_naive_loading_loses_the_last_frame_of_a_whole_cut(tmp_path):
    """0.993 s at 50 Hz: lhotse asks for 50 frames of the 51 or 49 of 50; whole cuts give what was stored."""
    lost = 0
    for number, duration in enumerate([0.505, 0.513, 0.993, 1.009, 1.5051]):
        cut = cut_of(f"t{number}", duration)
        frames = int(np.ceil(((round(duration * 16000) + 80) // 160) / 2))
        write_store(tmp_path / str(number), FACTS, [cut], [codes_of(frames)])
        (cut,) = attach_tokens([cut], tmp_path / str(number))
        assert np.array_equal(load_tokens(cut, "toy_cb4"), codes_of(frames))
        lost += len(cut.load_toy_cb4()) != frames
    assert lost > 0


def test_trap_9_a_killed_writer_leaves_nothing_half(tmp_path):
    """lhotse's own gz writer, ended in the middle, leaves a file that cannot be read; ours leaves no file."""
    cuts = [cut_of(f"c{number}", 1.0) for number in range(50)]
    naive = CutSet.open_writer(tmp_path / "naive.jsonl.gz")
    for cut in cuts:
        naive.write(cut)
    naive.file.flush()
    shutil.copy(tmp_path / "naive.jsonl.gz", tmp_path / "killed.jsonl.gz")
    naive.close()
    with pytest.raises(ValueError, match="is truncated or not gzip"):
        Manifest(tmp_path / "killed.jsonl.gz")

    def dies():
        yield from cuts
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_cuts(dies(), tmp_path / "ours.jsonl.gz")
    assert not list(tmp_path.glob("ours*"))


def test_trap_10_no_padded_position_reaches_the_loss(store):
    _, cuts, _ = store
    targets = collate_tokens([load_tokens(cut, "toy_cb4") for cut in cuts[:2]])
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(*targets.shape, 256, generator=generator, requires_grad=True)
    torch.nn.functional.cross_entropy(
        logits.flatten(0, 2), targets.flatten(), ignore_index=PADDING
    ).backward()
    scored = logits.grad.abs().sum(-1) > 0
    assert torch.equal(scored, targets != PADDING) and not scored[1, -1].any()
