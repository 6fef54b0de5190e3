"""Dasheng and ATST-Frame as teachers: geometry, batch mates, precision, odd input, windows, messages."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch
from audio_teacher_fixtures import (
    atst_state,
    dasheng_state,
    save_atst_checkpoint,
    save_dasheng_checkpoint,
    save_dasheng_folder,
)

from spear_lib.quantization import Quantizer
from spear_lib.teachers import create_teacher
from spear_lib.teachers.options import TeacherOptions
from spear_lib.teachers.windows import plan_windows
from spear_lib.tokens.agreement import token_agreement

NAMES = ("dasheng", "atst_frame")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audio_teachers")
    return {
        "dasheng": save_dasheng_checkpoint(folder / "dasheng.pt", embed_dim=32, depth=3),
        "atst_frame": save_atst_checkpoint(folder / "atst.ckpt", embed_dim=64, depth=3),
    }


def sounds(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Coloured noise of very different loudness in one batch; loud noise behind the ends."""
    generator = torch.Generator().manual_seed(sum(lengths))
    waveforms = torch.randn(len(lengths), max(lengths), generator=generator).cumsum(1) * 0.002
    waveforms -= waveforms.mean(dim=1, keepdim=True)
    for row, length in enumerate(lengths):
        waveforms[row] *= 0.5 ** (3 * row)
        waveforms[row, length:] = torch.randn(max(lengths) - length, generator=generator)
    return waveforms, torch.tensor(lengths)


@pytest.mark.parametrize("name", NAMES)
def test_geometry(checkpoints, name):
    teacher = create_teacher(name, checkpoints[name])
    assert (teacher.frame_rate, teacher.first_frame_center_ms, teacher.sample_rate) == (25.0, 15.0, 16000)
    assert teacher.describe()["teacher_id"] == teacher.id and teacher.id.startswith(name)
    assert teacher.num_frames(16000) == 25 and teacher.num_frames(160000) == 250
    shortest = {"dasheng": 480, "atst_frame": 513}[name]
    for num_samples in range(1, 40001):
        # Mel frames are centred on samples 0, 160, ... within the recording; four make a token.
        expected = len(range(0, num_samples + 1, 160)) // 4 if num_samples >= shortest else 0
        assert teacher.num_frames(num_samples) == expected
    for num_samples in (1, 257, shortest - 1, shortest, 639, 640, 1119, 1120, 16000, 39999):
        embeddings, counts = teacher.embed(*sounds(num_samples))
        assert counts.tolist() == [teacher.num_frames(num_samples)] == [embeddings.shape[1]]
        assert embeddings.shape[2] == teacher.embedding_dim and torch.isfinite(embeddings).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("time_ms", [415, 420, 1000, 1615, 1600])
def test_a_click_changes_the_frame_whose_centre_is_nearest(checkpoints, name, time_ms):
    teacher = create_teacher(name, checkpoints[name], layer=1)
    waveforms, lengths = sounds(32000)
    clicked = waveforms.clone()
    clicked[0, 16 * time_ms - 20 : 16 * time_ms + 20] += 0.05
    change = (teacher.embed(clicked, lengths)[0] - teacher.embed(waveforms, lengths)[0])[0].norm(dim=1)
    centre = teacher.first_frame_center_ms + 1000 / teacher.frame_rate * int(change.argmax())
    assert abs(centre - time_ms) <= 20


@pytest.mark.parametrize("name", NAMES)
def test_embeddings_do_not_see_batch_mates_or_padding(checkpoints, name):
    teacher = create_teacher(name, checkpoints[name])
    torch.manual_seed(0)
    quantizer = Quantizer(teacher.embedding_dim, 8, 64).eval()
    waveforms, lengths = sounds(200000, 24000, 16000, 300, 9000, 1, 520)
    together, counts = teacher.embed(waveforms, lengths)
    assert counts.tolist() == [teacher.num_frames(length) for length in lengths.tolist()]
    equal = []
    for row, (length, count) in enumerate(zip(lengths.tolist(), counts.tolist())):
        alone, own = teacher.embed(waveforms[row : row + 1, :length], lengths[row : row + 1])
        assert own.tolist() == [count] and not together[row, count:].any()
        torch.testing.assert_close(together[row, :count], alone[0], atol=1e-4, rtol=0)
        equal.append(quantizer.encode(together[row, :count]) == quantizer.encode(alone[0]))
    assert torch.cat(equal).float().mean() >= 0.999


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16(checkpoints, name):
    torch.manual_seed(0)
    exact = create_teacher(name, checkpoints[name])
    quantizer = Quantizer(exact.embedding_dim, 8, 64).eval()
    waveforms, lengths = sounds(16000, 12000)
    half = create_teacher(name, checkpoints[name], dtype="bfloat16")
    assert half.id == exact.id
    found = token_agreement(half, quantizer, [waveforms[0], waveforms[1, :12000]])
    assert 0.9 < found.equal_tokens < 1, found
    assert found.relative_error == pytest.approx(found.relative_error_float32, rel=0.01)
    # The front end stays in float32 whatever the caller does.
    with torch.autocast("cpu", torch.bfloat16):
        inside = exact.embed(waveforms, lengths)[0]
    assert torch.equal(inside, exact.embed(waveforms, lengths)[0])


@pytest.mark.parametrize("name", NAMES)
def test_silence_is_finite_and_the_same_in_any_batch(checkpoints, name):
    teacher = create_teacher(name, checkpoints[name])
    waveforms, lengths = sounds(16000, 16000)
    waveforms[1] = 0
    embeddings, _ = teacher.embed(waveforms, lengths)
    assert torch.isfinite(embeddings).all()
    alone, _ = teacher.embed(torch.zeros(1, 16000), torch.tensor([16000]))
    torch.testing.assert_close(embeddings[1], alone[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_loud_neighbours_do_not_raise_the_floor(checkpoints, name):
    """What torchaudio does to a batch: the loudest item's dynamic range for all."""
    teacher = create_teacher(name, checkpoints[name])
    loud, lengths = sounds(16000)
    quiet = 1e-4 * loud
    together, _ = teacher.embed(torch.cat([quiet, loud]), torch.tensor([16000, 16000]))
    torch.testing.assert_close(together[0], teacher.embed(quiet, lengths)[0][0], atol=1e-4, rtol=0)
    # The floor of the loud one would have raised bins of the quiet one.
    mel = teacher.encoder.mel if name == "dasheng" else teacher.mel
    assert float(mel(quiet, lengths).min()) < float(mel(loud, lengths).min()) - 0.05


def in_windows(teacher, audio: torch.Tensor, batch: int = 12) -> torch.Tensor:
    """Embeddings (T, D) of a recording (N,), by its windows."""
    windows, parts = plan_windows(teacher, len(audio)), []
    for begin in range(0, len(windows), batch):
        group = windows[begin : begin + batch]
        pieces = [audio[window.start : window.start + window.num_samples] for window in group]
        lengths = torch.tensor([len(piece) for piece in pieces])
        embeddings, _ = teacher.embed(torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True), lengths)
        parts += [row[each.skip : each.skip + each.num_frames] for row, each in zip(embeddings, group)]
    return torch.cat(parts)


@pytest.mark.parametrize("name", NAMES)
def test_long_recordings_in_windows(checkpoints, name):
    """Commands cut at 10 s with 1 s of overlap; what fits is left alone; frames keep their place."""
    teacher = create_teacher(name, checkpoints[name], layer=1)
    longest = {"dasheng": 161280, "atst_frame": 160000}[name]
    assert len(plan_windows(teacher, longest)) == 1 and len(plan_windows(teacher, longest + 640)) == 2
    waveforms, lengths = sounds(longest + 90000)
    before, after = plan_windows(teacher, int(lengths))
    assert after.skip >= 12 and before.num_samples // 640 - before.num_frames >= 12
    joined = in_windows(teacher, waveforms[0])
    assert len(joined) == teacher.num_frames(int(lengths))
    # A click lights the frame of the recording at that time, in the overlap as well.
    for frame in (100, after.first_frame - 1, after.first_frame, len(joined) - 30):
        clicked = waveforms[0].clone()
        sample = 640 * frame + 240
        clicked[sample - 20 : sample + 20] += 0.05
        assert int((in_windows(teacher, clicked) - joined).norm(dim=1).argmax()) == frame


@pytest.mark.parametrize("name", NAMES)
def test_two_hours_are_planned_on_the_grid(checkpoints, name):
    teacher = create_teacher(name, checkpoints[name])
    total = 2 * 3600 * 16000 + 123
    windows = plan_windows(teacher, total)
    assert sum(window.num_frames for window in windows) == teacher.num_frames(total) == 180000
    assert max(window.num_samples for window in windows) <= teacher.window_seconds * 16000
    frame = 0
    for window in windows:
        assert window.first_frame == frame == window.start // 640 + window.skip
        frame += window.num_frames


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_two_hours_in_windows(checkpoints, name):
    """As commands do it, 250 windows and more."""
    teacher = create_teacher(name, checkpoints[name])
    minute = sounds(16000 * 60)[0][0]
    embeddings = in_windows(teacher, minute.repeat(120))
    assert embeddings.shape == (180000, teacher.embedding_dim)
    assert torch.isfinite(embeddings).all() and float(embeddings.std(dim=0).min()) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_memory_of_two_hours_in_one_call(checkpoints, name):
    """Not what commands do, but it must not take the memory of a whole spectrum (3 GB) either."""
    code = (
        "import resource, sys, torch\n"
        "from spear_lib.teachers import create_teacher\n"
        "teacher = create_teacher(sys.argv[1], sys.argv[2])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "waveforms = torch.randn(1, 7200 * 16000)\n"
        "embeddings, counts = teacher.embed(waveforms, torch.tensor([waveforms.shape[1]]))\n"
        "assert counts.tolist() == [180000]\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, name, str(checkpoints[name])]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    waveform_kb = 7200 * 16000 * 4 / 1024
    assert int(done.stdout) < 4.5 * waveform_kb


def test_options_and_recipe_make_the_same_teacher(checkpoints):
    options = TeacherOptions("dasheng", str(checkpoints["dasheng"]), layer=2, window_seconds=5.0)
    teacher = options.create()
    again = TeacherOptions.from_recipe(json.loads(json.dumps(dataclasses.asdict(options)))).create()
    assert teacher.id == again.id and teacher.window_seconds == 5.0
    assert teacher.id != create_teacher("dasheng", checkpoints["dasheng"], layer=2).id


def test_only_the_weights_decide_not_where_they_lie(checkpoints, tmp_path):
    for name, save in (("dasheng", save_dasheng_checkpoint), ("atst_frame", save_atst_checkpoint)):
        size = {"embed_dim": 32 if name == "dasheng" else 64, "depth": 3}
        same, other = (
            save(tmp_path / name / "same.pt", **size),
            save(tmp_path / name / "b.pt", **size, seed=5),
        )
        ids = [create_teacher(name, path).id for path in (checkpoints[name], same, other)]
        assert ids[0] == ids[1] != ids[2]


def test_a_name_on_the_hub_is_fetched_or_explained(tmp_path, monkeypatch):
    import huggingface_hub

    folder = save_dasheng_folder(tmp_path / "folder")
    asked = []
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda name: ["config.json", "model.safetensors"])
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **filters: asked.append(name) or str(folder)
    )
    teacher = create_teacher("dasheng", "hub:mispeech/dasheng-base")
    assert asked == ["mispeech/dasheng-base"] and teacher.id == create_teacher("dasheng", folder).id

    def unreachable(name):
        raise ConnectionError("no network\nsecond line")

    def not_cached(name, local_files_only):
        raise FileNotFoundError("not in the cache")

    monkeypatch.setattr(huggingface_hub, "list_repo_files", unreachable)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", not_cached)
    with pytest.raises(
        RuntimeError, match=r"hub:me/mine cannot be fetched \(no network\): .*zenodo"
    ) as found:
        create_teacher("dasheng", "hub:me/mine")
    assert "\n" not in str(found.value)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(RuntimeError, match="pip install huggingface_hub; or download .*zenodo"):
        create_teacher("dasheng", "hub:me/mine")


@pytest.mark.parametrize(
    "name, advice",
    [
        ("dasheng", r"dasheng_base\.pt.*https://zenodo\.org/records/11511780"),
        ("atst_frame", r"atstframe_base.*https://github\.com/Audio-WestlakeU/audiossl"),
    ],
)
def test_missing_weights_are_one_line_that_says_what_to_download(name, advice, tmp_path):
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(
            RuntimeError, match=f"no .* weights at {tmp_path}.*: download .*{advice}"
        ) as found:
            create_teacher(name, path)
        assert "\n" not in str(found.value)
    with pytest.raises(ValueError, match=f"the {name} teacher needs a path .*{advice}") as found:
        create_teacher(name)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "name, state, prefix",
    [("dasheng", dasheng_state, ""), ("atst_frame", atst_state, "model.teacher.encoder.")],
)
def test_weights_that_do_not_fit_are_listed_one_by_one(name, state, prefix, tmp_path):
    content = state(depth=3)
    del content["blocks.1.attn.qkv.weight"], content["blocks.2.mlp.fc1.bias"]
    content["blocks.0.extra"] = torch.zeros(1)
    content["blocks.0.norm1.weight"] = torch.zeros(7)
    path = tmp_path / "odd.pt"
    full = {f"{prefix}{key}": value for key, value in content.items()}
    torch.save({"model": full, "state_dict": full, "config": {"num_heads": 2, "depth": 3}}, path)
    with pytest.raises(ValueError) as found:
        create_teacher(name, path)
    message = str(found.value)
    assert "missing (2): blocks.1.attn.qkv.weight, blocks.2.mlp.fc1.bias\n" in message
    assert "unexpected (1): blocks.0.extra\n" in message
    assert "wrong shape (1): blocks.0.norm1.weight (7,) instead of" in message and str(path) in message


def test_a_released_width_must_have_the_released_depth(tmp_path):
    """Expanded tensors: a file of the base size that takes no space."""
    state = {name: torch.zeros(()).expand(each.shape) for name, each in dasheng_state(768, 1).items()}
    path = tmp_path / "dasheng_base.pt"
    torch.save({"model": state, "config": {}}, path)
    with pytest.raises(ValueError, match=r"does not fit the Dasheng encoder \(12 blocks of 768") as found:
        create_teacher("dasheng", path)
    assert "missing (132):" in str(found.value) and "blocks.11.norm2.weight" in str(found.value)


@pytest.mark.parametrize("name", NAMES)
def test_damaged_and_foreign_files(name, checkpoints, tmp_path):
    cut = tmp_path / "cut.pt"
    cut.write_bytes(checkpoints[name].read_bytes()[:5000])
    with pytest.raises(ValueError, match="cut.pt (is not a whole PyTorch file|holds Python objects)"):
        create_teacher(name, cut)
    foreign = tmp_path / "foreign.pt"
    torch.save({"decoder.weight": torch.zeros(2)}, foreign)
    with pytest.raises(ValueError, match=r"foreign.pt holds no .* encoder.*first names: decoder\.weight"):
        create_teacher(name, foreign)
    with_code = tmp_path / "code.pt"
    torch.save({"state_dict": {}, "callbacks": {torch.nn.Linear: 1}}, with_code)
    with pytest.raises(ValueError, match="code.pt holds Python objects besides tensors"):
        create_teacher(name, with_code)


@pytest.mark.parametrize(
    "options, message",
    [
        (("dasheng", {"layer": 4}), r"layer is 4: the Dasheng encoder at .* has layers 1\.\.3"),
        (("dasheng", {"layer": 0}), r"layer is 0"),
        (("dasheng", {"layer": -4}), r"layer is -4"),
        (("dasheng", {"dtype": "float16"}), "dtype is 'float16'.*float32 or bfloat16"),
        (("dasheng", {"num_layers": 2}), "the dasheng teacher has no option num_layers; it has layer"),
        (("atst_frame", {"layer": 4}), r"layer is 4: the ATST-Frame encoder at .* has layers 1\.\.3"),
        (
            ("atst_frame", {"layer": 2, "num_layers": 3}),
            r"num_layers is 3: there are 1\.\.2 layers up to layer 2",
        ),
        (("atst_frame", {"num_layers": 0}), "num_layers is 0"),
    ],
)
def test_messages(checkpoints, options, message):
    name, keywords = options
    with pytest.raises(ValueError, match=message):
        create_teacher(name, checkpoints[name], **keywords)


@pytest.mark.parametrize("name", NAMES)
def test_not_a_number_in_a_waveform(checkpoints, name):
    waveforms, lengths = sounds(16000)
    waveforms[0, 5000] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        create_teacher(name, checkpoints[name]).embed(waveforms, lengths)


def test_heads_of_an_unreleased_size_must_be_known(tmp_path):
    path = save_dasheng_checkpoint(tmp_path / "odd.pt", num_heads=5)
    with pytest.raises(ValueError, match=r"32 channels is no released size.*num_heads 5; a divisor of 32"):
        create_teacher("dasheng", path)
    path = save_atst_checkpoint(tmp_path / "odd.ckpt", embed_dim=96)
    with pytest.raises(ValueError, match="96 channels is no multiple of 64"):
        create_teacher("atst_frame", path)
