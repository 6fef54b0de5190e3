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
from spear_lib.runtime.overlays import laid_over, read_overlays
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
# One file for each size and domain.
BY_DOMAIN = {("mixed", "quantizer"): ("quantizer/speech", "quantizer/audio")}
EGS = REPOSITORY / "egs"
FILES = sorted(EGS.glob("*/conf/**/*.yaml"))
SHARED = EGS / "common" / "conf" / "shared"  # what other files extend; no command reads them alone
RECIPES = sorted(path.parent.parent.name for path in EGS.glob("*/local/corpus.sh"))


def role(path: Path) -> str:
    """The folder below conf."""
    return path.parts[path.parts.index("conf") + 1]


def name(path: Path) -> str:
    return str(path.relative_to(EGS))


def commands(recipe: Path) -> dict:
    """Role -> options of the commands that read it and what the scripts of ``recipe`` (a folder) give."""
    facts = (recipe / "local" / "corpus.sh").read_text(encoding="utf-8")
    stated = re.search(r"^finetune=(\w+)", facts, re.MULTILINE)
    given = {kind: value for kind, value in GIVEN.items() if kind != "probe" or "probe=true" in facts}
    if "parts=(" in facts:
        return given  # fine-tuning is that of the parts' recipes
    return {**given, **FINE_TUNING[stated.group(1) if stated else "asr"]}


def chosen(recipe: str, kind: str, name: str) -> Path | None:
    """The file that conf_file of egs/common/stages.sh chooses."""
    places = [EGS / recipe / "conf", EGS / "common" / "conf"]
    files = [place / kind / f"{stem}.yaml" for stem in (name, "base") for place in places]
    return next((file for file in files if file.exists()), None)


def sizes(recipe: str) -> list[str]:
    places = [EGS / recipe / "conf" / "pretrain", EGS / "common" / "conf" / "pretrain"]
    return sorted({path.stem for place in places for path in place.glob("*.yaml")})


def readings():
    """(recipe, kind, file) of every configuration that a recipe can name."""
    for recipe in RECIPES:
        for kind in commands(EGS / recipe):
            for folder in BY_DOMAIN.get((recipe, kind), (kind,)):
                own = {path.stem for path in (EGS / recipe / "conf" / folder).glob("*.yaml")}
                for stem in sorted({*sizes(recipe), *own}):
                    yield pytest.param(recipe, kind, folder, stem, id=f"{recipe}-{folder}-{stem}")


@pytest.mark.parametrize(("recipe", "kind", "folder", "stem"), list(readings()))
def test_a_configuration_loads(recipe, kind, folder, stem):
    path = chosen(recipe, folder, stem)
    assert path is not None, "no file for this size, and no base.yaml to stand for it"
    values = read_overlays(path)
    assert values, path
    for options, given in commands(EGS / recipe)[kind]:
        assert isinstance(load(options, {**given, **values}), options)


def test_every_file_is_read_by_something():
    read = {chosen(recipe, folder, stem) for recipe, _, folder, stem in (p.values for p in readings())}
    extended = set()
    for path in FILES:
        extended |= {(path.parent / parent).resolve() for parent in parents(path)}
    other = {
        path for path in FILES if path.parent.name in ("lm", "scratch")
    }  # a second --config of stages 12, 13
    assert set(FILES) - read - extended - other == set()


def parents(path: Path) -> list[str]:
    named = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("extends", [])
    return [named] if isinstance(named, str) else named


def flat(values: dict, prefix: str = "") -> dict:
    items = {}
    for key, value in values.items():
        items |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return items


@pytest.mark.parametrize("path", [path for path in FILES if parents(path)], ids=name)
def test_an_overlay_holds_only_what_differs(path):
    below: dict = {}
    for parent in parents(path):
        below = laid_over(below, read_overlays(path.parent / parent))
    below = flat(below)
    own = flat(yaml.safe_load(path.read_text(encoding="utf-8")))
    assert [key for key, value in own.items() if key in below and below[key] == value] == []


def test_no_file_stands_twice():
    texts = [path.read_bytes() for path in FILES]
    assert len(set(texts)) == len(texts)
    assert not [path for path in FILES if path.is_symlink()]


@pytest.mark.parametrize("size", ["base", "large"])
def test_published_sizes_have_the_published_shape(size):
    path = REPOSITORY / "egs" / "librispeech" / "conf" / "pretrain" / f"{size}.yaml"
    values = read_overlays(path)
    options = load(PretrainOptions, {"experiment_dir": "a", **values})
    assert options.encoder == getattr(ZipformerConfig, size)()
    assert options.training.learning_rate == 0.045
    assert options.training.lr_hours == {"base": 25_000, "large": 75_000}[size]
    assert options.data.mixing.noise_probability == {"base": 0.1, "large": 0.2}[size]


@pytest.mark.parametrize("size", ["base", "large"])
def test_published_sizes_for_sounds(size):
    path = REPOSITORY / "egs" / "audioset" / "conf" / "pretrain" / f"{size}.yaml"
    options = load(PretrainOptions, {"experiment_dir": "a", **read_overlays(path)})
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
    options = load(PretrainOptions, {"experiment_dir": "a", **read_overlays(path)})
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
        if role(path) in ("pretrain", "finetune", "shared")
        and not re.search("mini|tiny|mixed|quantizer", path.stem)
    ],
    ids=name,
)
def test_every_value_of_the_published_sizes_names_its_source(path):
    for line in path.read_text(encoding="utf-8").splitlines():
        if re.match(r"\s*(?!extends)\w+: \S", line) and not line.rstrip().endswith(":"):
            assert re.search(r"# .*(paper|reference|icefall|ours|million|50 Hz|fine-tuning)", line), line


def test_a_mistyped_key_names_the_nearest():
    with pytest.raises(ValueError, match="max_steps"):
        load(PretrainOptions, {"experiment_dir": "a", "training": {"max_step": 3}})


@pytest.mark.parametrize(("size", "weighted"), [("base", False), ("as2m", True)])
def test_published_tagging(size, weighted):
    path = REPOSITORY / "egs" / "audioset" / "conf" / "finetune" / f"{size}.yaml"
    ((options, given),) = FINE_TUNING["tagging"]["finetune"]
    data = load(options, {**given, **read_overlays(path)}).data
    assert (data.mixup.probability, data.mixup.alpha) == (0.5, 10.0)
    assert data.mixing.noise_probability == 0.5
    assert (data.weighted_sampling, data.samples_per_epoch) == ((True, 200_000) if weighted else (False, 0))
