"""Tokens of a SpidR's codebook heads, and units as text."""

import json

import numpy as np
import pytest
import torch
from pretraining_fixtures import FIELD, make_corpus
from self_distillation_fixtures import SPIDR

from spear_lib import load_encoder
from spear_lib.bin import dump_tokens, export_units, take_head
from spear_lib.data.audio import load_audio
from spear_lib.data.manifests import Manifest
from spear_lib.encoders import save_encoder
from spear_lib.encoders.spidr import SpidrConfig, SpidrEncoder
from spear_lib.encoders.zipformer import SpearEncoder, ZipformerConfig
from spear_lib.quantization import load_tokeniser
from spear_lib.quantization.linear import LinearUnits
from spear_lib.tokens.store import TokenStoreReader
from spear_lib.tokens.units import runs


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("units")
    return folder, make_corpus(folder, 6)


def new_encoder(folder, **changes):
    torch.manual_seed(5)
    encoder = SpidrEncoder(SpidrConfig(**{**SPIDR, **changes})).eval()
    for head in encoder.heads:  # random heads agree on one code
        torch.nn.init.normal_(head[0].weight, std=3.0)
    for block in encoder.student.layers:
        torch.nn.init.normal_(block.feed_forward.output_dense.weight)
    save_encoder(encoder, folder, {})
    return encoder


def tokens_of(corpus, encoder, name, *more):
    folder = corpus[0] / name
    take_head.main(["--encoder", str(encoder), "--output_dir", str(folder / "head"), *more])
    store = folder / "store"
    common = ["--cuts", str(corpus[1]), "--quantizer", str(folder / "head"), "--output_dir", str(store)]
    dump_tokens.main([*common, "--num_workers", "1"])
    return TokenStoreReader(store)


@pytest.mark.parametrize(("heads_on", "layer"), [("layers", 2), ("layers", 3), ("output", 2)])
def test_tokens_are_the_units_of_the_encoder(corpus, heads_on, layer):
    name = f"{heads_on}-{layer}"
    encoder = new_encoder(corpus[0] / f"encoder-{name}", heads_on=heads_on)
    store = tokens_of(corpus, corpus[0] / f"encoder-{name}", name, "--layer", str(layer))
    assert store.facts.first_frame_center_ms == 12.5 and store.facts.codebook_size == 8
    manifest, used = Manifest([str(corpus[1])]), set()
    for number in range(len(manifest)):
        cut = manifest[number]
        waveform = torch.from_numpy(np.asarray(load_audio(cut, sample_rate=16000)))[None]
        with torch.no_grad():
            units = encoder.units(encoder.extract(waveform, torch.tensor([waveform.shape[1]])))
        assert store.read(cut)[:, 0].tolist() == units[0, :, layer - 2].tolist()
        used |= set(units[0, :, layer - 2].tolist())
    assert len(used) >= 3


def test_text_of_units(corpus):
    new_encoder(corpus[0] / "encoder-text")
    store = tokens_of(corpus, corpus[0] / "encoder-text", "text")
    output = corpus[0] / "text.txt"
    export_units.main(["--store", str(store.store), "--output", str(output), "--durations", "true"])
    lines = [line.split("\t") for line in output.read_text().splitlines()]
    manifest = Manifest([str(corpus[1])])
    assert [line[0] for line in lines] == manifest.ids
    total = 0
    for (_, units, durations), number in zip(lines, range(len(lines))):
        codes = store.read(manifest[number])[:, 0]
        units, durations = np.array(units.split(), int), np.array(durations.split(), int)
        assert np.repeat(units, durations).tolist() == codes.tolist()
        assert (units[1:] != units[:-1]).all()
        total += len(units)
    summary = json.loads((corpus[0] / "text.txt.json").read_text())
    assert summary["units"] == total and summary["recordings"] == 6
    rate = total / summary["seconds"]
    assert summary["units_per_second"] == pytest.approx(rate, rel=1e-3)
    assert summary["bits_per_second"] == pytest.approx(3 * rate, rel=1e-3)
    plain = corpus[0] / "plain.txt"
    options = ("--deduplicate", "false", "--ids", "false")
    export_units.main(["--store", str(store.store), "--output", str(plain), *options])
    first = plain.read_text().splitlines()[0].split()
    assert first == list(map(str, store.read(manifest[0])[:, 0].tolist()))


def test_several_codebooks(corpus):
    """Units of the second codebook of any tokens."""
    store, output = corpus[0] / "tokens" / FIELD / "train", corpus[0] / "second.txt"
    export_units.main(["--store", str(store), "--output", str(output), "--codebook", "1"])
    cut = Manifest([str(corpus[1])])[0]
    wanted, _ = runs(TokenStoreReader(store).read(cut)[:, 1])
    assert output.read_text().splitlines()[0].split("\t")[1] == " ".join(map(str, wanted.tolist()))
    with pytest.raises(ValueError, match=r"codebook is 2: .* have codebooks 0..1"):
        export_units.main(["--store", str(store), "--output", str(output), "--codebook", "2"])


def test_runs_by_hand():
    units, durations = runs(np.array([4, 4, 1, 4, 4, 4], dtype=np.uint8))
    assert units.tolist() == [4, 1, 4] and durations.tolist() == [2, 1, 3]
    assert [part.tolist() for part in runs(np.array([4, 4]), deduplicate=False)] == [[4, 4], [1, 1]]
    assert [part.tolist() for part in runs(np.zeros(0, dtype=np.uint8))] == [[], []]


def test_a_head_as_a_quantiser(tmp_path):
    head = LinearUnits(3, 300)
    head.weight.copy_(torch.randn(300, 3))
    head.provenance = {"note": "x"}
    head.save(tmp_path)
    loaded = load_tokeniser(tmp_path)
    assert loaded.kind == "linear" and loaded.id == head.id and loaded.provenance == {"note": "x"}
    x = torch.randn(5, 3)
    assert loaded.encode(x).dtype == torch.uint16
    assert loaded.encode(x)[:, 0].tolist() == loaded.posteriors(x).argmax(-1).tolist()
    with pytest.raises(ValueError, match="no vectors to decode"):
        loaded.decode(torch.zeros(1, 1))
    with pytest.raises(ValueError, match="have 4 channels but the classifier was trained for 3"):
        loaded.encode(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="NaN"):
        loaded.encode(torch.full((1, 3), float("nan")))


def test_what_has_no_head_is_refused(corpus):
    new_encoder(corpus[0] / "encoder-refused")
    output = ["--output_dir", str(corpus[0] / "refused")]
    with pytest.raises(ValueError, match="heads are on layers 2 to 3"):
        take_head.main(["--encoder", str(corpus[0] / "encoder-refused"), "--layer", "1", *output])
    settings = {"downsampling_factor": (1, 2), "num_encoder_layers": (1, 1), "encoder_dim": (16,)}
    zipformer = SpearEncoder(
        ZipformerConfig(
            **settings,
            feedforward_dim=(24,),
            encoder_unmasked_dim=(8,),
            num_heads=(2,),
            cnn_module_kernel=(7,),
        )
    )
    save_encoder(zipformer, corpus[0] / "zipformer", {})
    with pytest.raises(ValueError, match="has no codebook heads: use k-means"):
        take_head.main(["--encoder", str(corpus[0] / "zipformer"), *output])
    assert not (corpus[0] / "refused").exists()
    assert load_encoder(corpus[0] / "zipformer").encoder_type == "zipformer"
