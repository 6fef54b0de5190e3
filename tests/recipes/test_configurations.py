"""Every conf/*.yaml of every recipe loads through the dataclass of its command and names its sources."""

import re
from pathlib import Path

import pytest
import yaml
from toy_recipe import REPOSITORY

from spear_lib.asr.options import FinetuneOptions
from spear_lib.bin.decode import DecodeOptions
from spear_lib.bin.evaluate_tagging import EvaluateTaggingOptions
from spear_lib.bin.extract_embeddings import Options as EmbeddingOptions
from spear_lib.bin.probe import ProbeOptions
from spear_lib.bin.train_quantizer import Options as QuantizerOptions
from spear_lib.config import load
from spear_lib.encoders.zipformer import ZipformerConfig
from spear_lib.pretraining.options import PretrainOptions
from spear_lib.tagging.options import FinetuneTaggingOptions

# What the recipe scripts give on the command line.
GIVEN = {
    "quantizer": [
        (EmbeddingOptions, {"cuts": "a", "output_dir": "b"}),
        (QuantizerOptions, {"embeddings": "a", "output_dir": "b"}),
    ],
    "pretrain": [(PretrainOptions, {"experiment_dir": "a"})],
    "probe": [
        (
            ProbeOptions,
            {"encoder": "a", "train_cuts": ["b"], "dev_cuts": ["c"], "test_cuts": ["d"], "output_dir": "e"},
        )
    ],
}
# And for fine-tuning, by the fact finetune in local/corpus.sh.
FINE_TUNING = {
    "asr": {
        "finetune": [(FinetuneOptions, {"experiment_dir": "a", "units": "b", "dev_cuts": ["c"]})],
        "decode": [(DecodeOptions, {"experiment_dir": "a", "units": "b", "cuts": ["c"]})],
    },
    "tagging": {
        "finetune": [(FinetuneTaggingOptions, {"experiment_dir": "a", "classes": "b", "dev_cuts": ["c"]})],
        "evaluation": [(EvaluateTaggingOptions, {"experiment_dir": "a", "cuts": ["c"]})],
    },
}
KINDS = sorted({*GIVEN, *(kind for kinds in FINE_TUNING.values() for kind in kinds)})
# One file for each size and domain.
BY_DOMAIN = {("mixed", "quantizer"): ("speech", "audio")}
FILES = sorted(REPOSITORY.glob("egs/*/conf/**/*.yaml"))


def role(path: Path) -> str:
    """The folder below conf."""
    return path.parts[path.parts.index("conf") + 1]


def commands(recipe: Path) -> dict:
    """Role -> options of the commands that read it and what the scripts of ``recipe`` (a folder) give."""
    facts = (recipe / "local" / "corpus.sh").read_text(encoding="utf-8")
    stated = re.search(r"^finetune=(\w+)", facts, re.MULTILINE)
    scripts = "".join((recipe / f"{each}.sh").read_text(encoding="utf-8") for each in ("prepare", "run"))
    own = {kind: given for kind, given in GIVEN.items() if f"conf/{kind}/" in scripts}
    if "conf/finetune/" not in scripts:
        return own
    return {**own, **FINE_TUNING.get(stated.group(1) if stated else "asr", {})}


def name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY / "egs"))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_configuration_loads(path):
    values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    for options, given in commands(REPOSITORY / "egs" / name(path).split("/")[0])[role(path)]:
        loaded = load(options, {**given, **values})
        assert isinstance(loaded, options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recipe", sorted(REPOSITORY.glob("egs/*/conf")), ids=lambda path: path.parent.name)
def test_every_size_has_every_file(recipe, kind):
    sizes = {path.stem for path in (recipe / "pretrain").glob("*.yaml")}
    assert sizes, recipe
    facts = (recipe.parent / "local" / "corpus.sh").read_text(encoding="utf-8")
    if kind not in commands(recipe.parent) or (kind == "probe" and "probe=false" in facts):
        assert kind == "probe" or not (recipe / kind).exists(), "there is no stage that reads it"
        return
    for folder in BY_DOMAIN.get((recipe.parent.name, kind), ("",)):
        found = {path.stem for path in (recipe / kind / folder).glob("*.yaml")}
        # Fine-tuning may have more: --finetune-conf base-as2m.
        assert sizes <= found if kind == "finetune" else sizes == found
        assert all(stem.split("-")[0] in sizes for stem in found)


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
def test_published_sizes_for_sounds(size):
    path = REPOSITORY / "egs" / "audioset" / "conf" / "pretrain" / f"{size}.yaml"
    options = load(
        PretrainOptions, {"experiment_dir": "a", **yaml.safe_load(path.read_text(encoding="utf-8"))}
    )
    assert options.encoder == getattr(ZipformerConfig, size)()
    masking, mixing = options.data.masking, options.data.mixing
    assert (masking.time_probability, masking.time_span) == (0.65, 10)
    assert (masking.channel_probability, masking.channel_span) == (0.25, 20)
    assert (mixing.noise_probability, mixing.token_probability, mixing.utterance_probability) == (
        0.5,
        0.0,
        0.0,
    )
    assert tuple(mixing.noise_snr_db) == (10.0, 20.0) and tuple(mixing.noise_overlap) == (1.0, 1.0)
    assert options.training.lr_hours == 20_000


@pytest.mark.parametrize("size", ["base", "large", "xlarge"])
def test_published_sizes_for_both_domains(size):
    path = REPOSITORY / "egs" / "mixed" / "conf" / "pretrain" / f"{size}.yaml"
    options = load(
        PretrainOptions, {"experiment_dir": "a", **yaml.safe_load(path.read_text(encoding="utf-8"))}
    )
    recompute = {"checkpoint_activations": (True,)} if size == "xlarge" else {}
    assert options.encoder == getattr(ZipformerConfig, size)(**recompute)
    masking, mixing = options.data.masking, options.data.mixing
    assert (masking.time_probability, masking.time_span) == (0.65, 10)
    assert (masking.channel_probability, masking.channel_span) == (0.25, 20)
    probabilities = mixing.noise_probability, mixing.token_probability, mixing.utterance_probability
    assert probabilities == (0.5, 0.1, 0.0)
    assert tuple(mixing.noise_snr_db) == (10.0, 20.0) and tuple(mixing.noise_overlap) == (1.0, 1.0)
    assert (options.objective.alpha, options.objective.audio_weight) == (0.5, 0.1)
    assert options.training.lr_hours == {"base": 25_000, "large": 75_000, "xlarge": 75_000}[size]
    facts = (REPOSITORY / "egs" / "mixed" / "local" / "corpus.sh").read_text(encoding="utf-8")
    parts = re.search(r"^parts=\((.*?)^\)", facts, re.MULTILINE | re.DOTALL).group(1)
    assert len(options.data.train_repeats) == len(parts.strip().splitlines())


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in FILES
        if role(path) in ("pretrain", "finetune") and path.stem in ("base", "large", "xlarge")
    ],
    ids=name,
)
def test_every_value_of_the_published_sizes_names_its_source(path):
    for line in path.read_text(encoding="utf-8").splitlines():
        if re.match(r"\s*\w+: \S", line) and not line.rstrip().endswith(":"):
            assert re.search(r"# .*(paper|reference|icefall|ours|million|50 Hz|fine-tuning)", line), line


def test_a_mistyped_key_names_the_nearest():
    with pytest.raises(ValueError, match="max_steps"):
        load(PretrainOptions, {"experiment_dir": "a", "training": {"max_step": 3}})


@pytest.mark.parametrize(("size", "weighted"), [("base", False), ("large-as2m", True)])
def test_published_tagging(size, weighted):
    path = REPOSITORY / "egs" / "audioset" / "conf" / "finetune" / f"{size}.yaml"
    ((options, given),) = FINE_TUNING["tagging"]["finetune"]
    data = load(options, {**given, **yaml.safe_load(path.read_text(encoding="utf-8"))}).data
    assert (data.mixup.probability, data.mixup.alpha) == (0.5, 10.0)
    assert data.mixing.noise_probability == 0.5
    assert (data.weighted_sampling, data.samples_per_epoch) == ((True, 200_000) if weighted else (False, 0))
