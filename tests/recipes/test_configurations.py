"""Every configuration that a recipe can name loads through its command's options; every value stands once."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from toy_recipe import REPOSITORY

from spear_lib.asr.options import FinetuneOptions
from spear_lib.bin.decode import DecodeOptions
from spear_lib.bin.evaluate_tagging import EvaluateTaggingOptions
from spear_lib.bin.extract_embeddings import Options as EmbeddingOptions
from spear_lib.bin.probe import ProbeOptions
from spear_lib.bin.train_quantizer import Options as QuantizerOptions
from spear_lib.config import load
from spear_lib.encoders.spidr import SpidrConfig
from spear_lib.encoders.zipformer import ZipformerConfig
from spear_lib.pretraining.options import PretrainOptions
from spear_lib.runtime.overlays import flatten, layers, overlay, read_overlays, read_yaml
from spear_lib.self_distillation.masking import FrameMaskingConfig
from spear_lib.self_distillation.options import SelfDistillOptions
from spear_lib.self_distillation.teacher import TeacherConfig
from spear_lib.tagging.options import FinetuneTaggingOptions

# What the recipe scripts give on the command line.
GIVEN = {
    "quantizer": [
        (EmbeddingOptions, {"cuts": "a", "output_dir": "b"}),
        (QuantizerOptions, {"embeddings": "a", "output_dir": "b"}),
    ],
    "pretrain": [(PretrainOptions, {"experiment_dir": "a"})],
    "benchmarks": [],  # suites of tasks: tests/evaluation/test_benchmark_suite.py
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
# And for pre-training in another way, by --method; each has the sizes of its folder in egs/common.
METHODS = ("spidr", "dinosr", "spidr-z", "spear-spidr")
SELF_DISTILLATION = [(SelfDistillOptions, {"experiment_dir": "a"})]
EGS = REPOSITORY / "egs"
FILES = sorted(EGS.glob("*/conf/**/*.yaml"))
RECIPES = sorted(path.parent.name for path in EGS.glob("*/local"))
# A mixture has a quantiser for each domain; where it has no file for it, that of the domain's recipe counts.
DOMAINS = {"speech": "librispeech", "audio": "audioset"}
MIXTURES = [
    each for each in RECIPES if "/common/parts/" in (EGS / each / "run.sh").read_text(encoding="utf-8")
]


def facts(recipe: str) -> str:
    return (EGS / recipe / "local" / "corpus.sh").read_text(encoding="utf-8")


def commands(recipe: str) -> dict:
    """Kind -> options of the commands that read it and what the scripts of the recipe give."""
    stubs = recipe not in MIXTURES
    parts = EGS / "common" / "parts"
    scripts = "".join((parts / f"{each}.sh").read_text(encoding="utf-8") for each in ("prepare", "run"))
    named = set(GIVEN) if stubs else {kind for kind in GIVEN if f"config_file {kind} " in scripts}
    if "probe=false" in facts(recipe):
        named -= {"probe"}
    found = {kind: given for kind, given in GIVEN.items() if kind in named}
    if stubs:
        stated = re.search(r"^finetune=(\w+)", facts(recipe), re.MULTILINE)
        found |= FINE_TUNING.get(stated.group(1) if stated else "asr", {})
        found |= dict.fromkeys(METHODS, SELF_DISTILLATION)
    return found


def config_file(recipe: str, kind: str, size: str) -> Path:
    """As config_file of egs/common/stages.sh, and quantizer_config of egs/common/parts."""
    own = EGS / recipe / "conf" / kind / f"{size}.yaml"
    if recipe in MIXTURES and kind.startswith("quantizer/") and not own.is_file():
        of_domain = DOMAINS[kind.split("/")[1]] if recipe == "mixed" else "common"
        return config_file(of_domain, "quantizer", size.replace("xlarge", "large"))
    return own if own.is_file() else EGS / "common" / "conf" / kind / f"{size}.yaml"


def sizes(recipe: str) -> list[str]:
    """The sizes of the encoder, of the recipe and of all recipes; base-ls960 is a variant of one."""
    stems = {path.stem for each in (recipe, "common") for path in (EGS / each).glob("conf/pretrain/*.yaml")}
    return sorted(stem for stem in stems if "-" not in stem)


def named() -> list[tuple[str, str, str]]:
    """(recipe, kind with its folders, name): all that --conf, --finetune-conf and their like can name."""
    found = []
    for recipe in RECIPES:
        for kind in commands(recipe):
            folders = (
                [f"quantizer/{domain}" for domain in DOMAINS]
                if recipe in MIXTURES and kind == "quantizer"
                else [kind]
            )
            folders += ["decode/lm"] if kind == "decode" else []
            if kind in METHODS:
                paths = [
                    path for each in (recipe, "common") for path in (EGS / each / "conf" / kind).glob("*")
                ]
                found += sorted({(recipe, kind, path.stem) for path in paths})
                continue
            found += [(recipe, folder, size) for folder in folders for size in sizes(recipe)]
            if kind in ("pretrain", "finetune", "quantizer"):  # beside the sizes: --finetune-conf base-as2m
                variants = {
                    path.stem
                    for each in (recipe, "common")
                    for path in (EGS / each / "conf" / kind).glob("*.yaml")
                }
                found += [(recipe, kind, name) for name in sorted(variants - set(sizes(recipe)))]
    return found


def name(path: Path) -> str:
    return str(path.relative_to(EGS))


@pytest.mark.parametrize(("recipe", "kind", "size"), named())
def test_every_configuration_that_a_recipe_can_name_loads(recipe, kind, size):
    path = config_file(recipe, kind, size)
    assert path.is_file(), f"egs/{recipe} has no conf/{kind}/{size}.yaml, nor has egs/common"
    assert size.split("-")[0] in sizes("librispeech" if kind in METHODS else recipe)
    values = read_overlays(path)
    scratch = config_file(recipe, "finetune/scratch", size) if kind == "finetune" else None
    for options, given in commands(recipe)[kind.split("/")[0]]:
        assert isinstance(load(options, {**given, **values}), options)
        if scratch and scratch.is_file():
            assert isinstance(load(options, {**given, **overlay(values, read_overlays(scratch))}), options)


def test_every_configuration_is_named_or_extended():
    used = {config_file(*each) for each in named()}
    used |= {EGS / recipe / "conf" / "finetune" / "scratch" / f"{size}.yaml" for recipe, _, size in named()}
    used |= {Path(os.path.normpath(file)) for path in FILES for file, _ in layers(path)[:-1]}
    assert set(FILES) - used == set()


def test_no_two_configurations_are_the_same():
    by_content: dict[str, list[str]] = {}
    for path in FILES:
        by_content.setdefault(hashlib.sha256(path.read_bytes()).hexdigest(), []).append(name(path))
    assert [names for names in by_content.values() if len(names) > 1] == []


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_configuration_repeats_what_it_extends(path):
    below: dict = {}
    for _, values in layers(path)[:-1]:
        below = overlay(below, values)
    below = flatten(below)
    own = {key: value for key, value in flatten(read_yaml(path)).items() if key != "extends"}
    assert {key: value for key, value in own.items() if below.get(key) == value} == {}


def test_the_scripts_find_the_same_files():
    calls = [each for each in named() if each[0] not in MIXTURES]
    script = "source ../common/stages.sh; while read -r kind name; do config_file $kind $name; echo; done"
    for recipe in {recipe for recipe, _, _ in calls}:
        lines = [f"{kind} {size}" for each, kind, size in calls if each == recipe]
        found = subprocess.run(
            ["bash", "-c", script],
            input="\n".join(lines) + "\n",
            cwd=EGS / recipe,
            capture_output=True,
            text=True,
        ).stdout.splitlines()
        expected = [config_file(recipe, *line.split()) for line in lines]
        assert [Path(os.path.normpath(EGS / recipe / line)) for line in found] == expected


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        (
            "librispeech",
            ("--conf", "huge"),
            "no configuration conf/pretrain/huge.yaml; there are: base, base-ls960",
        ),
        ("librispeech", ("--conf", "xlarge"), "no configuration conf/pretrain/xlarge.yaml"),
        (
            "digits",
            ("--conf", "base"),
            "no configuration conf/pretrain/base.yaml; there are: mini, mini-causal, tiny",
        ),
        ("mixed", ("--conf", "huge"), "there are: base, base-usad, large, large-100k"),
        (
            "librispeech",
            ("--method", "spidr", "--conf", "large"),
            "no configuration conf/spidr/large.yaml; there are: base, mini, tiny",
        ),
    ],
)
def test_an_unknown_size_names_what_there_is(recipe, options, message, tmp_path):
    done = tmp_path / "data" / ".done"
    done.mkdir(parents=True)
    for number in (1, 2, 6):
        (done / f"stage-{number}.json").write_text('{"id": "x", "inputs": {}}')
    folders = ("--data-dir", str(tmp_path / "data"), "--exp-dir", str(tmp_path / "exp"))
    environment = {**os.environ, "PYTHON": sys.executable}
    command = [str(EGS / recipe / "run.sh"), *options, *folders]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1 and message in result.stderr


def test_spidr_base_is_the_published_one():
    """Sections 2, 3, 6 and 7 of its specification."""
    for method, heads_on in (("spidr", "layers"), ("dinosr", "output")):
        values = read_overlays(EGS / "common" / "conf" / method / "base.yaml")
        options = load(SelfDistillOptions, {"experiment_dir": "a", **values})
        layerdrop = 0.05 if method == "dinosr" else 0.0
        assert options.spidr == SpidrConfig.base(heads_on=heads_on, layerdrop=layerdrop)
        assert options.data.masking == FrameMaskingConfig(probability=0.8, span=10, min_spans=2)
        assert options.data.batch_seconds == 16 * 237.5 and not options.data.mixing.enabled
        objective, training = options.objective, options.training
        assert (objective.codebook_size, objective.codebook_decay) == (256, 0.9)
        assert (objective.codebook_start, objective.revive_after) == ("random", 0)
        expected = {"spidr": {}, "dinosr": {"schedule": "linear"}}[method]
        assert objective.teacher == TeacherConfig(**expected)
        adamw = training.adamw
        assert (training.optimizer, training.learning_rate, training.max_steps) == ("adamw", 5e-4, 400_000)
        assert (adamw.betas, adamw.eps, adamw.weight_decay) == ((0.9, 0.95), 1e-6, 0.01)
        assert (adamw.warmup_steps, adamw.hold_steps, adamw.decay_steps) == (12_000, 188_000, 200_000)
        assert (adamw.start_factor, adamw.final_factor, adamw.max_norm) == (0.01, 0.01, 10.0)
        assert training.finish_steps == 200_000
        assert training.finish == ["encoder.feature_extractor", "encoder.feature_projection"]


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


PUBLISHED = [
    path
    for path in FILES
    if {"pretrain", "finetune"} & {path.parent.name, path.stem.split("_")[0]}
    and not {"mini", "tiny"} & set(re.split("[-_]", path.stem))
]


@pytest.mark.parametrize("path", PUBLISHED, ids=name)
def test_every_value_of_the_published_sizes_names_its_source(path):
    for line in path.read_text(encoding="utf-8").splitlines():
        if re.match(r"\s*\w+: \S", line) and not line.startswith("extends:"):
            assert re.search(r"# .*(paper|reference|icefall|ours|million|50 Hz|fine-tuning)", line), line


def test_a_mistyped_key_names_the_nearest():
    with pytest.raises(ValueError, match="max_steps"):
        load(PretrainOptions, {"experiment_dir": "a", "training": {"max_step": 3}})


@pytest.mark.parametrize(("size", "samples"), [("base", 0), ("large-as2m", 200_000)])
def test_published_tagging(size, samples):
    path = REPOSITORY / "egs" / "audioset" / "conf" / "finetune" / f"{size}.yaml"
    ((options, given),) = FINE_TUNING["tagging"]["finetune"]
    data = load(options, {**given, **read_overlays(path)}).data
    assert (data.mixup.probability, data.mixup.alpha) == (0.5, 10.0)
    assert data.mixing.noise_probability == 0.5
    assert (data.weighted_sampling, data.samples_per_epoch) == (True, samples)
