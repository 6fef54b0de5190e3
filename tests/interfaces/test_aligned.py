"""The one geometry: inner frames are extract's, T has one formula, windows no seam, evaluation is forced."""

import math

import pytest
import torch
from torch import nn
from zipformer_fixtures import TINY

from spear_lib.encoders import load_encoder, save_encoder
from spear_lib.encoders.transformer import TransformerConfig
from spear_lib.encoders.zipformer import ZipformerConfig
from spear_lib.interfaces import AlignedEncoder, load_upstream, upstream_id
from spear_lib.interfaces.aligned import plan_windows

# The stacks of the published models, narrow.
PUBLISHED = {
    "encoder_dim": (16,),
    "feedforward_dim": (24,),
    "encoder_unmasked_dim": (8,),
    "frontend_channels": (1, 2, 3),
    "num_heads": (2,),
}
CONFIGS = {
    "published": ZipformerConfig.base(**PUBLISHED),
    "published 25 Hz": ZipformerConfig.base(**PUBLISHED, output_downsampling_factor=2),
    "mini": ZipformerConfig.mini(encoder_dim=(32,), feedforward_dim=(48,), encoder_unmasked_dim=(20,)),
    "mini 25 Hz": ZipformerConfig(**TINY, output_downsampling_factor=2),
    "transformer": TransformerConfig.mini(hidden_dim=32, feedforward_dim=48, num_heads=2, num_layers=2),
}
REAL_SIZES = (1, 2, 319, 320, 321, 640, 799, 1359, 1360, 1361, 1600, 1680, 2000, 3519, 9999, 40000)


def encoder_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    return load_encoder(CONFIGS[name])


def noise(*shape: int) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("layers", ["output", "all"])
def test_inner_frames_are_those_of_extract(name, layers):
    encoder = encoder_of(name)
    aligned = AlignedEncoder(encoder, layers)
    waveforms, lengths = noise(2, 20000), torch.tensor([20000, 12345])
    output, expected = aligned(waveforms, lengths), encoder.extract(waveforms, lengths)
    if layers == "output":
        raw, rate, counts = [expected.encoder_out], encoder.frame_rate, expected.lengths
    else:
        raw, rate, counts = list(expected.hidden_states), 50, encoder.hidden_length(lengths)
        if not encoder.ends_with_hidden_state and encoder.frame_rate == 50:
            raw.append(expected.encoder_out)
    shift = {("transformer", 50): 0, (name, 25): 1}.get((name, rate), 2)
    assert aligned.frame_rate == rate and len(output.states) == len(raw)
    for row, (size, count) in enumerate(zip(lengths.tolist(), counts.tolist())):
        total = math.ceil(size * rate / 16000)
        assert output.lengths[row] == total
        for ours, theirs in zip(output.states, raw):
            inner = min(count, total - shift)
            assert torch.equal(ours[row, shift : shift + inner], theirs[row, :inner])
            assert torch.equal(ours[row, :shift], theirs[row, :1].expand(shift, -1))
            tail = ours[row, shift + inner :]
            assert torch.equal(tail, theirs[row, count - 1].expand_as(tail))


@pytest.mark.parametrize(
    ("name", "layers", "first", "hop"),
    [
        ("published", "output", 5.0, 20),
        ("published 25 Hz", "output", 15.0, 40),
        ("published 25 Hz", 3, 5.0, 20),
        ("transformer", "output", 12.5, 20),
    ],
)
def test_centres(name, layers, first, hop):
    aligned = AlignedEncoder(encoder_of(name), layers)
    assert aligned.first_center_ms == first and 1000 / aligned.frame_rate == hop


@pytest.mark.parametrize("name", CONFIGS)
def test_number_of_frames(name):
    """By formula for every length up to 40,000; no frame is missing, or repeated but at the ends."""
    encoder = encoder_of(name)
    for layers, length_of in (("output", encoder.output_length), (0, encoder.hidden_length)):
        aligned = AlignedEncoder(encoder, layers)
        hop = 16000 // aligned.frame_rate
        for size in range(1, 40001):
            total = aligned.num_frames(size)
            assert total == math.ceil(size / hop)
            own = length_of(max(size, encoder.min_samples))
            if size >= encoder.min_samples:
                # No frame of the encoder is lost, and at most three are repeats of each end's.
                assert 0 <= total - aligned.shift - own <= 3


@pytest.mark.parametrize("name", CONFIGS)
def test_number_of_frames_of_real_runs(name):
    for layers in ("output", -1):
        aligned = AlignedEncoder(encoder_of(name), layers)
        with torch.no_grad():
            for size in REAL_SIZES:
                output = aligned(noise(1, size))
                total = math.ceil(size / aligned.hop_samples)
                assert output.states[0].shape == (1, total, aligned.output_dim)
                assert output.lengths.tolist() == [total] and torch.isfinite(output.states[0]).all()


def test_shapes_and_lists_are_the_same():
    aligned = AlignedEncoder(encoder_of("mini"))
    audio = noise(5000)
    expected = aligned(audio.unsqueeze(0)).states[0]
    for same in (audio, audio.view(1, 1, -1), [audio]):
        assert torch.equal(aligned(same).states[0], expected)
    both = aligned([audio, audio[:3000]])
    padded = aligned(torch.stack([audio, audio]), [5000, 3000])  # what lies behind an end is ignored
    assert torch.equal(both.lengths, padded.lengths)
    assert torch.allclose(both.states[0][1, :10], padded.states[0][1, :10])


@pytest.mark.parametrize("size", [1, 500, 1359])
def test_short_audio_does_not_see_what_lies_behind_its_end(size):
    aligned = AlignedEncoder(encoder_of("mini"))
    batch = noise(2, 6000)
    alone = aligned(batch[1, :size]).states[0]
    together = aligned(batch, [6000, size])
    assert torch.allclose(together.states[0][1, : alone.shape[1]], alone[0], atol=1e-5)


@pytest.mark.parametrize(
    ("audio", "lengths", "message"),
    [
        (torch.zeros(1, 0), None, "1 sample at least"),
        (torch.zeros(2, 2000), [2000, 2001], r"lengths \[2000, 2001\]"),
        (torch.zeros(2, 2000), [2000], "one length per waveform"),
        (torch.zeros(2, 2, 2000), None, "make several channels one"),
        (torch.zeros(2, 2000, dtype=torch.int16), None, "divide 16-bit integers"),
        ([], None, "a list of one or more"),
    ],
)
def test_bad_audio_gets_one_line(audio, lengths, message):
    with pytest.raises(ValueError, match=message):
        AlignedEncoder(encoder_of("mini"))(audio, lengths)


def test_windows_take_every_sample_once_with_context():
    longest, context, grid = 16000 * 5, 16000, 2560
    for size in [*range(70000, 90000, 37), 160000, 200001, 1_000_003]:
        windows = plan_windows(size, longest, context, grid)
        assert (len(windows) == 1) == (size <= longest)
        assert windows[0].first == 0 and windows[-1].last is None and windows[-1].stop == size
        for before, after in zip(windows, windows[1:]):
            assert before.last == after.first and after.first % grid == after.start % grid == 0
            assert before.stop - before.last >= context and after.first - after.start >= context
        assert all(0 < window.stop - window.start <= longest for window in windows)


def test_windows_of_local_features_equal_the_whole():
    """Log-mels see 25 ms: in windows they are what they are in one piece, at every frame."""
    whole = AlignedEncoder(load_upstream("log-mel"), max_seconds=60)
    windows = AlignedEncoder(load_upstream("log-mel"), max_seconds=1.0, context_seconds=0.2)
    batch, lengths = noise(3, 50000), [50000, 15000, 33333]
    one, many = whole(batch, lengths), windows(batch, lengths)
    for row, count in enumerate(one.lengths.tolist()):
        assert torch.equal(one.states[0][row, :count], many.states[0][row, :count])


@pytest.mark.parametrize("name", ["published", "published 25 Hz", "transformer"])
def test_windows_of_an_encoder(name):
    """Same frames as in one piece but for what lies beyond the context; a frame out of place would differ by
    its whole size."""
    encoder = encoder_of(name)
    windows = AlignedEncoder(encoder, "output", max_seconds=4, context_seconds=0.8)
    whole = AlignedEncoder(encoder, "output")
    audio = noise(2, 200000)
    with torch.no_grad():
        one, many = whole(audio, [200000, 50000]), windows(audio, [200000, 50000])
        alone = windows(audio[:1])
    assert torch.equal(one.lengths, many.lengths)
    # Of batch mates nothing is seen, and audio that fits runs in one piece.
    assert torch.allclose(many.states[0][0], alone.states[0][0], atol=1e-5)
    short = int(one.lengths[1])
    assert torch.allclose(many.states[0][1, :short], one.states[0][1, :short], atol=1e-5)
    change = (one.states[0][0] - many.states[0][0]).norm(dim=1) / one.states[0][0].norm(dim=1)
    assert len(plan_windows(200000, 64000, 12800, 2560)) == 5 and 0 < change.max() < 0.05


def test_evaluation_mode_is_forced_and_gradients_reach_the_encoder():
    aligned = AlignedEncoder(encoder_of("mini"), "weighted")
    audio = noise(1, 8000)
    expected = aligned(audio).states[0]
    aligned.train()
    assert aligned.training and not any(module.training for module in aligned.encoder.modules())
    output = aligned(audio).states[0]
    assert torch.equal(output, expected)
    output.sum().backward()
    assert aligned.weights.grad is not None
    assert sum(p.grad is not None for p in aligned.encoder.parameters()) > 40


def test_layers():
    encoder = encoder_of("mini")
    audio = noise(1, 8000)
    states = AlignedEncoder(encoder, "all")(audio).states
    assert len(states) == 5  # four layers, and the output, which none of them is
    assert torch.equal(states[-1], AlignedEncoder(encoder)(audio).states[0])
    assert torch.equal(states[2], AlignedEncoder(encoder, 2)(audio).states[0])
    assert torch.equal(states[2], AlignedEncoder(encoder, "-3")(audio).states[0])
    assert torch.equal(AlignedEncoder(encoder, [3, 1])(audio).states[0], states[3])
    concat = AlignedEncoder(encoder, "concat")
    assert torch.equal(concat(audio).states[0], torch.cat(states, 2)) and concat.output_dim == 160
    weighted = AlignedEncoder(encoder, "weighted")(audio).states[0]
    assert torch.allclose(weighted, torch.stack(states).mean(0), atol=1e-6)
    for wrong in (5, -6, "last", []):
        with pytest.raises(ValueError, match="layers is"):
            AlignedEncoder(encoder, wrong)
    wide = load_encoder(ZipformerConfig(**{**TINY, "encoder_dim": (24, 32, 32)}))
    with pytest.raises(ValueError, match=r"'weighted', but the states have \[24, 32\]"):
        AlignedEncoder(wide, "weighted")


def test_a_25_hz_encoder_does_not_mix_its_rates():
    encoder = encoder_of("published 25 Hz")
    states = AlignedEncoder(encoder, "all")(noise(1, 16000)).states
    assert len(states) == len(encoder.hidden_dims) and {state.shape[1] for state in states} == {50}


def test_means_are_of_the_encoders_own_frames():
    encoder = encoder_of("mini")
    waveforms, lengths = noise(2, 9000), torch.tensor([9000, 4000])
    output = encoder.extract(waveforms, lengths)
    (mean,) = AlignedEncoder(encoder).means(waveforms, lengths)
    for row, count in enumerate(output.lengths.tolist()):
        assert torch.allclose(mean[row], output.encoder_out[row, :count].mean(0), atol=1e-6)


def test_identities_never_meet(tmp_path):
    encoders = [encoder_of("mini"), load_encoder(CONFIGS["mini"]), load_upstream("log-mel")]
    save_encoder(encoders[0], tmp_path, {})
    encoders.append(load_upstream(f"random:{tmp_path}", seed=1))
    encoders.append(load_encoder(tmp_path, padding="reference"))
    seen = [AlignedEncoder(encoder).identity() for encoder in encoders]
    for options in ({"layers": 0}, {"layers": "concat"}, {"max_seconds": 30}, {"context_seconds": 1}):
        seen.append(AlignedEncoder(encoders[0], **options).identity())
    assert len(set(seen)) == len(seen)
    assert AlignedEncoder(load_upstream(tmp_path)).identity() == seen[0]
    assert upstream_id(load_upstream(tmp_path)) == upstream_id(encoders[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cast_encoder(dtype):
    """Means are of float32: a sum of many frames in half precision would be off, or infinite."""
    encoder = encoder_of("mini")
    audio = noise(1, 160000)
    expected = AlignedEncoder(encoder).means(audio)[0]
    aligned = AlignedEncoder(encoder.to(dtype))
    assert aligned(audio).states[0].dtype == dtype
    (mean,) = aligned.means(audio)
    assert mean.dtype == torch.float32 and (mean - expected).norm() < 0.05 * expected.norm()
