"""The model card (README.md) of an exported folder, filled from what the run left behind.

What no file says stands there as "not stated": whoever publishes the folder knows it.
"""

import json
from pathlib import Path
from typing import Any

from spear_lib.runtime.files import read_json
from spear_lib.runtime.overlays import read_yaml
from spear_lib.runtime.text_files import text_lines

_USE = {
    "encoder": """```python
from transformers import AutoFeatureExtractor, AutoModel

extractor = AutoFeatureExtractor.from_pretrained(FOLDER)
model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True).eval()
inputs = extractor([waveform], sampling_rate=16000, padding=True, return_tensors="pt")
output = model(**inputs)  # or model(audio, lengths): (B, samples), (B,)
output.encoder_out, output.encoder_out_lens, output.hidden_states
```

`pipeline("feature-extraction", model=FOLDER, trust_remote_code=True)` takes waveforms. In spear_lib:
`load_encoder(FOLDER)`.""",
    "wavlm": """```python
from transformers import AutoFeatureExtractor, AutoModel

extractor = AutoFeatureExtractor.from_pretrained(FOLDER)
model = AutoModel.from_pretrained(FOLDER).eval()
output = model(**extractor([waveform], sampling_rate=16000, padding=True, return_tensors="pt"))
```""",
    "ctc": """```python
from transformers import pipeline

recognise = pipeline("automatic-speech-recognition", model=FOLDER, trust_remote_code=True)
recognise({"raw": waveform, "sampling_rate": 16000})["text"]
```

It is `AutoModelForCTC`; tokenizer.json and vocab.json hold the units.""",
    "tagging": """```python
from transformers import pipeline

tag = pipeline("audio-classification", model=FOLDER, trust_remote_code=True)
tag({"raw": waveform, "sampling_rate": 16000}, top_k=10, function_to_apply="sigmoid")
```

It is `AutoModelForAudioClassification`; every class has a probability of its own (sigmoid).""",
}
_LIMITS = {
    "encoder": "Features, not decisions: what they are good for is measured by a probe or a fine-tuning.",
    "wavlm": "Features, not decisions: what they are good for is measured by a probe or a fine-tuning.",
    "ctc": "It writes the words of the language that it was trained on; no language model, no punctuation.",
    "tagging": "It knows the listed classes alone, as its training set labels them.",
}
_TASK = {
    "encoder": "feature-extraction",
    "wavlm": "feature-extraction",
    "ctc": "automatic-speech-recognition",
    "tagging": "audio-classification",
}
_NOT_STATED = "not stated"


def model_card(
    kind: str,
    facts: dict[str, Any],
    sizes: dict[str, Any],
    experiment: Path | None,
    licence: str,
    command: str,
) -> str:
    """README.md of a folder.

    Args:
      kind: encoder, wavlm, ctc or tagging.
      facts: where the weights come from (step, hours, code, ...).
      sizes: parameters, rate and the like.
      experiment: folder of the run; its config.yaml, results and probes are read where they are there.
      licence: of the weights, as the hub writes it ("apache-2.0"); empty: not stated.
      command: what exported it.
    """
    head = ["---", "library_name: transformers", f"pipeline_tag: {_TASK[kind]}"]
    head += [f"license: {licence}"] if licence else []
    head += ["tags:", "- speech", "- audio", "- spear", "---"]
    known = {name: value for name, value in facts.items() if value not in (None, "", [], {})}
    made = {"training data": ", ".join(_data(experiment)) or _NOT_STATED, **known}
    return "\n".join(
        [
            *head,
            "",
            "# SPEAR " + {"ctc": "speech recogniser (CTC)", "tagging": "audio tagger"}.get(kind, "encoder"),
            "",
            "Trained by spear_lib, a recipe for *SPEAR: A Unified SSL Framework for Learning Speech and",
            "Audio Representations* (arXiv 2510.25955). Input: one channel at 16 kHz in [-1, 1].",
            "",
            "## Use",
            "",
            _USE[kind],
            "",
            "## Sizes",
            "",
            *_table(sizes),
            "",
            "## How it was made",
            "",
            *_table(made),
            "",
            f"Exported by `{command}`.",
            "",
            "## Results",
            "",
            *(_results(experiment) or [_NOT_STATED]),
            "",
            "## Limits",
            "",
            _LIMITS[kind],
            "It was trained on the data above, and hears other languages, rooms and sounds less well.",
            "Audio shorter than 85 ms is padded with zeros. Training mode has no dropout.",
            "",
            "## Licence",
            "",
            f"{licence or _NOT_STATED}; the licences of the training data apply too.",
            "",
        ]
    )


def _table(values: dict[str, Any]) -> list[str]:
    return ["| | |", "|---|---|"] + [f"| {name} | {_cell(value)} |" for name, value in values.items()]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return " ".join(text.split()).replace("|", "\\|")


def _data(experiment: Path | None) -> list[str]:
    """Names of the training sets, as the run's config.yaml lists them."""
    path = experiment / "config.yaml" if experiment else None
    if path is None or not path.is_file():
        return []
    settings = read_yaml(path)
    data = settings.get("data") or {}
    sets = (data.get("train_cuts") if isinstance(data, dict) else None) or settings.get("train_cuts") or []
    sets = [sets] if isinstance(sets, str) else sets
    return [Path(name).name.split(".")[0] for name in sets]


def _results(experiment: Path | None) -> list[str]:
    """Probes, word error rates and the last validation, one line each."""
    if experiment is None:
        return []
    lines = []
    probes = experiment / "probe" / "probes.json"
    if probes.is_file():
        for task, arms in read_json(probes).get("tasks", {}).items():
            named = [f"{arm} {value['mean']:.2f}" for arm, value in arms.items() if "mean" in value]
            metric = next(iter(arms.values())).get("metric", "")
            lines.append(f"- linear probe, {task} ({metric}, %): {', '.join(named)}")
    for path in sorted(experiment.rglob("wer-*.json")):
        result = read_json(path)
        if "wer" in result:
            characters = f" (characters {result['cer']:.2f} %)" if "cer" in result else ""
            lines.append(
                f"- word error rate of {result.get('set', path.stem)}: {result['wer']:.2f} %{characters}"
            )
    for path in sorted(experiment.rglob("tagging-*.json")):
        result = read_json(path)
        if "map" in result:
            lines.append(f"- mean average precision of {result.get('set', path.stem)}: {result['map']:.2f} %")
    metrics = experiment / "metrics.jsonl"
    last: dict[str, dict[str, Any]] = {}
    for _, line in text_lines(metrics) if metrics.is_file() else []:
        try:
            entry = json.loads(line)
        except ValueError:  # the line that a killed run was writing
            continue
        if str(entry.get("kind", "")).startswith("valid"):
            last[entry["kind"]] = entry
    lines += [
        f"- {kind.replace('valid/', 'validation on ')}: loss {entry['loss']:.4g} at step {entry['step']}"
        for kind, entry in last.items()
        if "loss" in entry
    ]
    return lines
