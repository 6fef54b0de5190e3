"""Folders of transformers: the numbers of this library from one file that does not know it, and back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from asr_fixtures import TINY_ENCODER
from lhotse.features.kaldi.layers import create_frame_window, get_mel_banks
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from zipformer_fixtures import TINY

from spear_lib.asr.model import AsrModel, TransducerConfig
from spear_lib.asr.units import character_units, load_units, train_bpe
from spear_lib.bin import export_huggingface as command
from spear_lib.bin import transcribe
from spear_lib.encoders import encoder_id, load_encoder, save_encoder
from spear_lib.encoders.transformer import TransformerConfig
from spear_lib.sharing.huggingface import Exported, export_huggingface
from spear_lib.sharing.modelling.features import Fbank
from spear_lib.sharing.modelling.models import SpearConfig, SpearForCTC, SpearModel
from spear_lib.sharing.one_file import modelling_file
from spear_lib.tagging.model import TaggingConfig, TaggingModel

# Runs where neither the repository nor lhotse can be imported, and no network is tried.
STRANGER = """
import sys
class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("spear_lib", "lhotse"):
            raise ImportError(name)
sys.meta_path.insert(0, Refused())
import torch, numpy as np
folder, audio, lengths = sys.argv[1], *torch.load(sys.argv[2])
results = {}
def note(**values): results.update(values)
"""
ENCODER = """
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, pipeline
remote = {"trust_remote_code": True}
assert AutoConfig.from_pretrained(folder, **remote).frame_rate in (25, 50)
model = AutoModel.from_pretrained(folder, **remote)
assert not model.training
extractor = AutoFeatureExtractor.from_pretrained(folder)
rows = [row[:size].numpy() for row, size in zip(audio, lengths.tolist())]
inputs = extractor(rows, sampling_rate=16000, padding=True, return_tensors="pt")
with torch.no_grad():
    published = model(audio, lengths)
    ours = model(**inputs, output_hidden_states=True)
    assert torch.equal(published["encoder_out"], ours.last_hidden_state) and isinstance(published, dict)
    assert torch.equal(published["hidden_states"][-1], ours.hidden_states[-1])
    asked = model(audio, lengths, return_middle_layers=True)
    assert len(asked.hidden_states) == len(ours.hidden_states)
    assert model(audio, lengths, False).hidden_states is None
    assert model(**inputs, output_hidden_states=False).hidden_states is None
    assert torch.equal(published[0], model(audio, lengths, return_dict=False)[0])
    assert torch.equal(model(audio[0]).encoder_out, model(audio[:1, None]).encoder_out)
    assert model(audio[:, :500]).encoder_out.isfinite().all()  # shorter than one frame
    assert published.encoder_out_lens.tolist() == model.output_length(lengths).tolist()
    for dtype in (torch.bfloat16, torch.float16):
        half = AutoModel.from_pretrained(folder, dtype=dtype, **remote)(audio, lengths).encoder_out
        size = published.encoder_out_lens[0]
        close = (half[0, :size].float() - published.encoder_out[0, :size]).abs().mean()
        assert half.dtype == dtype and close < 0.05, close
    trained = model.train()(audio, lengths).encoder_out
    assert torch.equal(trained, published.encoder_out)
try:
    model(**extractor(rows, sampling_rate=16000, padding=True, return_tensors="pt")
          | {"attention_mask": inputs["attention_mask"].flip(1)})
except ValueError as error:
    assert "pad on the right" in str(error)
else:
    raise AssertionError("padding on the left was taken")
extract = pipeline("feature-extraction", model=folder, **remote)
assert np.allclose(extract(rows[0])[0], published.encoder_out[0], atol=1e-5)
model.save_pretrained(sys.argv[4])
note(out=published.encoder_out, lengths=published.encoder_out_lens, layers=list(published.hidden_states))
"""


def as_a_stranger(folder: Path, code: str, tmp_path: Path, python: str = sys.executable) -> dict:
    """``results`` of ``code`` in a process that has only transformers; also the audio that it heard."""
    random = torch.Generator().manual_seed(3)
    audio, lengths = 0.1 * torch.randn(3, 20000, generator=random), torch.tensor([20000, 12345, 1360])
    torch.save((audio, lengths), tmp_path / "audio.pt")
    code = f"{STRANGER}{code}\ntorch.save(results, sys.argv[3])"
    arguments = [folder, tmp_path / "audio.pt", tmp_path / "results.pt", tmp_path / "saved"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, "-c", code, *map(str, arguments)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {"audio": audio, "samples": lengths, **torch.load(tmp_path / "results.pt")}


def random_encoder(**changes):
    """An encoder all of whose layers matter."""
    torch.manual_seed(0)
    encoder = load_encoder({**TINY, **changes})
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return encoder


def settings_of(encoder):
    """Its settings, a list of equal values as one value."""
    values = vars(encoder.config).items()
    return {k: v[:1] if isinstance(v, tuple) and len(set(v)) == 1 else v for k, v in values}


def assert_equal_frames(ours, found, lengths, atol=1e-5):
    for row, length in enumerate(lengths.tolist()):
        scale = max(1.0, float(ours[row, :length].abs().max()))
        torch.testing.assert_close(found[row, :length], ours[row, :length], rtol=0, atol=atol * scale)


def test_transformers_computes_what_this_library_does(tmp_path):
    encoder = random_encoder(output_downsampling_factor=2)
    save_encoder(encoder, tmp_path / "encoder", {"step": 7, "hours": 1.5})
    folder = tmp_path / "spear-tiny.v1"  # a dot in the name: modules have none
    command.main(["--encoder", str(tmp_path / "encoder"), "--output_dir", str(folder), "--licence", "mit"])
    found = as_a_stranger(folder, ENCODER, tmp_path)
    with torch.no_grad():
        ours = encoder.extract(found["audio"], found["samples"])
    assert found["lengths"].tolist() == ours.lengths.tolist()
    assert_equal_frames(ours.encoder_out, found["out"], ours.lengths)
    assert len(found["layers"]) == len(ours.hidden_states)
    for mine, other in zip(ours.hidden_states, found["layers"], strict=True):
        assert_equal_frames(mine, other, encoder.hidden_length(found["samples"]))
    for place in (folder, tmp_path / "saved"):  # and what transformers saved again
        back = load_encoder(place)
        assert settings_of(back) == settings_of(encoder) and encoder_id(back) == encoder_id(encoder)
    assert load_encoder(folder).provenance["step"] == 7
    names = load_file(folder / "model.safetensors").keys()
    assert all(name.startswith("model.model.") for name in names)
    assert {name.removeprefix("model.model.") for name in names} == set(encoder.state_dict())
    settings = json.loads((folder / "config.json").read_text())
    assert settings["downsampling_factor"] == "1,2,4" and settings["num_encoder_layers"] == "1,2,1"
    card = (folder / "README.md").read_text()
    assert "license: mit" in card and "| step | 7 |" in card and "| hours | 1.5 |" in card


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"padding": "reference"},
        {"padding": "reference", "output_downsampling_factor": 2},
        {"encoder_dim": (32, 48, 40), "output_downsampling_factor": 2},
        {"causal": True},
        {"causal": True, "padding": "reference"},
        {"causal": True, "chunk_size": (16,), "left_context_frames": (32,)},
        {"causal": True, "chunk_size": (4,), "padding": "reference"},
        {"num_mel_bins": 80, "pos_head_dim": 6, "pos_dim": 16, "cnn_module_kernel": (5, 9, 3)},
    ],
    ids=str,
)
def test_every_shape(changes, tmp_path):
    encoder = random_encoder(**changes)
    assert export_huggingface(Exported(encoder, ""), tmp_path / "out") < 5e-5
    back = load_encoder(tmp_path / "out")
    assert back.config.structure() == encoder.config.structure()
    assert back.config.padding == encoder.config.padding and encoder_id(back) == encoder_id(encoder)
    loaded = SpearModel.from_pretrained(tmp_path / "out").double()
    audio, lengths = 0.1 * torch.randn(2, 12000), torch.tensor([12000, 7001])
    with torch.no_grad():
        ours, found = encoder.double().extract(audio, lengths), loaded(audio, lengths)
    assert_equal_frames(ours.encoder_out, found.encoder_out, ours.lengths, 3e-6)


def test_a_wavlm_needs_no_remote_code(tmp_path):
    torch.manual_seed(0)
    encoder = load_encoder(TransformerConfig.mini(num_layers=2))
    export_huggingface(Exported(encoder, ""), tmp_path / "out")
    code = """
from transformers import AutoModel
model = AutoModel.from_pretrained(folder)
with torch.no_grad():
    note(out=model(audio[:1]).last_hidden_state)
"""
    found = as_a_stranger(tmp_path / "out", code, tmp_path)
    with torch.no_grad():
        ours = encoder.extract(found["audio"][:1], found["samples"][:1])
    assert_equal_frames(ours.encoder_out, found["out"], ours.lengths)
    assert encoder_id(load_encoder(tmp_path / "out")) == encoder_id(encoder)


def test_features_are_lhotses():
    fbank = Fbank(128, torch.device("cpu"))
    filters, _ = get_mel_banks(128, 512, 16000, 20.0, -400.0)
    torch.testing.assert_close(fbank.filters[:256].t(), filters, rtol=0, atol=0)
    torch.testing.assert_close(fbank.window, create_frame_window(400), rtol=0, atol=0)


def test_missing_tensors_are_refused(tmp_path):
    export_huggingface(Exported(random_encoder(), ""), tmp_path / "out")
    state = load_file(tmp_path / "out" / "model.safetensors")
    name = "model.model.encoder.encoders.0.layers.0.norm.bias"
    del state[name]
    save_file(state, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"lacks 1 tensors of the encoder, .*{name}"):
        SpearModel.from_pretrained(tmp_path / "out")


def test_a_new_model_has_finite_weights():
    model = SpearModel(SpearConfig(frontend_channels="2,3,4", encoder_dim="16", feedforward_dim="16"))
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert model(0.1 * torch.randn(1, 4000)).encoder_out.isfinite().all()


def test_the_file_stands_alone():
    text = modelling_file()
    compile(text, "modeling_spear.py", "exec")
    assert "import spear_lib" not in text and "from spear_lib" not in text and "lhotse." not in text
    code = f"{STRANGER.split('import torch')[0]}\nexec(sys.stdin.read(), {{'__name__': 'alone'}})"
    done = subprocess.run([sys.executable, "-c", code], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


CTC = """
from transformers import AutoModelForCTC, AutoProcessor, AutoTokenizer, pipeline
remote = {"trust_remote_code": True}
model = AutoModelForCTC.from_pretrained(folder, **remote)
tokenizer = AutoTokenizer.from_pretrained(folder)
mask = (torch.arange(audio.shape[1]) < lengths[:, None]).long()
with torch.no_grad():
    logits = model(audio, attention_mask=mask).logits
recognise = pipeline("automatic-speech-recognition", model=folder, **remote)
said = recognise({"raw": audio[0].numpy(), "sampling_rate": 16000})["text"]
labels = torch.tensor([[3, 4, -100], [5, 5, 6], [2, -100, -100]])
loss = model(audio, attention_mask=mask, labels=labels).loss
loss.backward()
note(logits=logits, said=said, text=tokenizer.batch_decode(logits.argmax(-1)), loss=float(loss),
     ids=tokenizer("STOP THE RED", add_special_tokens=False)["input_ids"])
"""


@pytest.mark.parametrize("kind", ["characters", "bpe"])
def test_a_recogniser_writes_our_text(kind, tmp_path):
    if kind == "bpe":
        texts = ["STOP THE RED CAT'S BLUE TOY", "THE THEME OF TWO", "GO GO GO", "READ THE TOP STORIES"] * 5
        train_bpe(texts, 40, tmp_path / "units")
        units = load_units(tmp_path / "units")
    else:
        units = character_units()
    heads = TransducerConfig(transducer_loss_scale=0.0, ctc_loss_scale=1.0)
    torch.manual_seed(0)
    model = AsrModel(load_encoder(TINY_ENCODER), heads, units.vocab_size).eval()
    with torch.no_grad():
        model.ctc_output.weight.mul_(8.0)
        if kind == "bpe":
            model.ctc_output.bias[1:3] = -100.0  # <sos/eos>, <unk>: no trained model writes them
    export_huggingface(Exported(model, "", {}, units), tmp_path / "out")
    found = as_a_stranger(tmp_path / "out", CTC, tmp_path)
    with torch.no_grad():
        ours = model.encoder.extract(found["audio"], found["samples"])
        logits = model.ctc_output(ours.encoder_out)
    assert_equal_frames(logits, found["logits"], ours.lengths)
    for row, length in enumerate(ours.lengths.tolist()):
        best = torch.unique_consecutive(logits[row, :length].argmax(-1)).tolist()
        assert units.decode(best) == found["text"][row]
    assert found["said"] == found["text"][0] != ""
    assert found["ids"] == units.encode("STOP THE RED") and found["loss"] > 0
    assert encoder_id(load_encoder(tmp_path / "out")) == encoder_id(model.encoder)


def test_a_transducer_alone_is_refused(tmp_path):
    model = AsrModel(load_encoder(TINY_ENCODER), TransducerConfig(), 29).eval()
    with pytest.raises(ValueError, match="no CTC head.*export_onnx"):
        export_huggingface(Exported(model, "", {}, character_units()), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


TAGGER = """
from transformers import AutoModelForAudioClassification, pipeline
remote = {"trust_remote_code": True}
model = AutoModelForAudioClassification.from_pretrained(folder, **remote)
mask = (torch.arange(audio.shape[1]) < lengths[:, None]).long()
with torch.no_grad():
    note(logits=model(audio, attention_mask=mask).logits)
tag = pipeline("audio-classification", model=folder, **remote)
note(tags=tag({"raw": audio[0].numpy(), "sampling_rate": 16000}, top_k=3, function_to_apply="sigmoid"))
other = AutoModelForAudioClassification.from_pretrained(  # another task from the same encoder
    folder, num_labels=5, ignore_mismatched_sizes=True, **remote)
assert other(audio, labels=torch.tensor([0, 1, 4])).loss.isfinite()
"""


@pytest.mark.parametrize("pooling", ["mean", "linear_softmax"])
def test_a_tagger_hears_the_same(pooling, tmp_path):
    classes = {"/m/1": "Dog", "/m/2": "Cat, wild", "/m/3": "Rain"}
    torch.manual_seed(0)
    model = TaggingModel(load_encoder(TINY_ENCODER), TaggingConfig(pooling=pooling), 3).eval()
    export_huggingface(Exported(model, "", {}, classes=classes), tmp_path / "out")
    found = as_a_stranger(tmp_path / "out", TAGGER, tmp_path)
    with torch.no_grad():
        output = model.encoder.extract(found["audio"], found["samples"])
        logits = model.clip_logits(model.frame_logits(output.encoder_out), output.lengths)
    torch.testing.assert_close(found["logits"], logits, rtol=0, atol=1e-5)
    assert {tag["label"] for tag in found["tags"]} == set(classes.values())
    best = max(found["tags"], key=lambda tag: tag["score"])
    assert np.isclose(best["score"], float(logits[0].sigmoid().max()), atol=1e-4)


def test_a_fine_tuned_folder_writes_what_transcribe_does(trained_toy, tmp_path, capsys):
    arguments = ["--experiment_dir", str(trained_toy["experiment"]), "--average", "0"]
    command.main([*arguments, "--output_dir", str(tmp_path / "out")])
    capsys.readouterr()
    search = ["--search.head", "ctc", "--search.method", "greedy"]
    transcribe.main([str(trained_toy["folder"]), *arguments, *search])
    expected = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    recognise = SpearForCTC.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    for path, text in expected.items():
        samples = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
        with torch.no_grad():
            assert tokenizer.decode(recognise(samples[None]).logits[0].argmax(-1)) == text
    assert len(expected) == 12 and "| step | 140 |" in (tmp_path / "out" / "README.md").read_text()


def test_what_cannot_be_exported_is_said(tmp_path):
    out = ["--output_dir", str(tmp_path / "out")]
    with pytest.raises(ValueError, match="give either encoder"):
        command.main(["--experiment_dir", "x", "--encoder", "x", *out])
    with pytest.raises(ValueError, match="has no task.json"):
        command.main(["--experiment_dir", str(tmp_path), *out])
    (tmp_path / "task.json").write_text('{"kind": "pretraining"}')
    with pytest.raises(ValueError, match="'pretraining', not a fine-tuning: give its encoder"):
        command.main(["--experiment_dir", str(tmp_path), *out])
