"""Every conf/*.yaml of every recipe loads through the dataclass of its command and names its sources."""

import re
from pathlib import Path

import pytest
import yaml
from toy_recipe import REPOSITORY

from spear_lib.bin.decode import DecodeOptions
from spear_lib.bin.extract_embeddings import Options as EmbeddingOptions
from spear_lib.bin.finetune_asr import FinetuneOptions
from spear_lib.bin.pretrain import PretrainOptions
from spear_lib.bin.probe import ProbeOptions
from spear_lib.bin.train_quantizer import Options as QuantizerOptions
from spear_lib.config import load
from spear_lib.zipformer import ZipformerConfig

# What the recipe scripts give on the command line.
GIVEN = {
    "quantizer": [
        (EmbeddingOptions, {"cuts": "a", "output_dir": "b"}),
        (QuantizerOptions, {"embeddings": "a", "output_dir": "b"}),
    ],
    "pretrain": [(PretrainOptions, {"experiment_dir": "a"})],
    "finetune": [(FinetuneOptions, {"experiment_dir": "a", "units": "b", "dev_cuts": ["c"]})],
    "decode": [(DecodeOptions, {"experiment_dir": "a", "units": "b", "cuts": ["c"]})],
    "probe": [
        (
            ProbeOptions,
            {"encoder": "a", "train_cuts": ["b"], "dev_cuts": ["c"], "test_cuts": ["d"], "output_dir": "e"},
        )
    ],
}
FILES = sorted(REPOSITORY.glob("egs/*/conf/**/*.yaml"))


def role(path: Path) -> str:
    """The folder below conf."""
    return path.parts[path.parts.index("conf") + 1]


def name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY / "egs"))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_configuration_loads(path):
    values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    for options, given in GIVEN[role(path)]:
        loaded = load(options, {**given, **values})
        assert isinstance(loaded, options)


@pytest.mark.parametrize("kind", sorted(GIVEN))
@pytest.mark.parametrize("recipe", sorted(REPOSITORY.glob("egs/*/conf")), ids=lambda path: path.parent.name)
def test_every_size_has_every_file(recipe, kind):
    sizes = {path.stem for path in (recipe / "pretrain").glob("*.yaml")}
    assert sizes, recipe
    assert {path.stem for path in (recipe / kind).glob("*.yaml")} == sizes


@pytest.mark.parametrize("size", ["base", "large"])
def test_published_sizes_have_the_published_shape(size):
    path = REPOSITORY / "egs" / "librispeech" / "conf" / "pretrain" / f"{size}.yaml"
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    options = load(PretrainOptions, {"experiment_dir": "a", **values})
    assert options.encoder == getattr(ZipformerConfig, size)()
    assert options.training.learning_rate == 0.045
    assert options.training.lr_hours == {"base": 25_000, "large": 75_000}[size]
    assert options.data.mixing.noise_probability == {"base": 0.1, "large": 0.2}[size]


@pytest.mark.parametrize("size", ["base", "large"])
@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_every_value_of_the_published_sizes_names_its_source(kind, size):
    path = REPOSITORY / "egs" / "librispeech" / "conf" / kind / f"{size}.yaml"
    for line in path.read_text(encoding="utf-8").splitlines():
        if re.match(r"\s*\w+: \S", line) and not line.rstrip().endswith(":"):
            assert re.search(r"# .*(paper|reference|icefall|ours|million|50 Hz|fine-tuning)", line), line


def test_a_mistyped_key_names_the_nearest():
    with pytest.raises(ValueError, match="max_steps"):
        load(PretrainOptions, {"experiment_dir": "a", "training": {"max_step": 3}})
