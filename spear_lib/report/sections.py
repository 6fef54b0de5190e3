"""The sections of the report: what was read, as sentences, tables and pictures."""

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from spear_lib.report import plots
from spear_lib.report.data import Experiment, ReportData
from spear_lib.report.finetuning import finetuning, tagging_results, word_error_results
from spear_lib.report.probes import probes, probes_in_training
from spear_lib.report.render import Code, Fold, Picture, Section, Table, number, ordered
from spear_lib.runtime.progress import format_seconds


def build_sections(data: ReportData) -> list[Section]:
    """The report in reading order; a part without anything to show is named in the last section instead."""
    sections = [_summary(data), _corpus(data), _quantizers(data), _tokens(data)]
    sections += [_pretraining(data, run) for run in data.experiments if run.kind == "pretraining"]
    sections += [*finetuning(data), word_error_results(data), tagging_results(data), probes(data)]
    sections += [_stages(data), _reproduction(data)]
    return [section for section in sections if section is not None]


def last_record(records: list[dict], kind: str) -> dict[str, Any]:
    """The last line of metrics of one kind; empty if there is none."""
    matching = [record for record in records if record.get("kind") == kind]
    return matching[-1] if matching else {}


def _summary(data: ReportData) -> Section:
    section = Section("In short")
    audio, labels, model = "audio without labels", "labelled", "a model of the task"
    if data.results and not data.tagging:
        audio, labels, model = "speech without transcripts", "transcribed", "a speech recogniser"
    elif data.tagging and not data.results:
        audio, model = "sounds without labels", "a tagger of sounds"
    section.blocks.append(
        f"From {audio} an encoder learns to predict the tokens of masked audio; then a few {labels} minutes "
        f"turn the encoder into {model}. The same model trained without the first step (from scratch) is the "
        "comparison."
    )
    rows = []
    for run in data.experiments:
        if run.kind == "pretraining":
            sizes = codebook_sizes(data)
            for kind in run.valid_kinds or ["train"]:
                entropies = _unigrams(data, run, kind)
                for metric in run.names(kind, "masked_loss"):
                    field = _field(metric)
                    chance = math.log(sizes[field])
                    where = ", ".join(filter(None, (run.name, kind, field)))
                    rows.append(
                        [
                            f"Token loss on masked frames ({where})",
                            f"{number(run.last(kind, metric))} nats",
                            f"chance {chance:.3f}, token frequencies alone {number(entropies.get(field))}",
                        ]
                    )
    for name in ordered(result["set"] for result in data.results):
        row = [result for result in data.results if result["set"] == name]
        values = "; ".join(f"{result['arm']} {result['wer']:.2f} %" for result in row)
        words = row[0]["num_words"]
        rows.append(
            [f"Word error rate, {name}", values, f"{words:,} words, {row[0]['num_utterances']:,} utterances"]
        )
    for name in ordered(result["set"] for result in data.tagging):
        row = [result for result in data.tagging if result["set"] == name]
        values = "; ".join(f"{result['arm']} {result['map']:.2f} %" for result in row)
        facts = f"chance {row[0]['chance_map']:.2f} %; {row[0]['num_clips']:,} clips"
        rows.append([f"Mean average precision, {name}", values, facts])
    if rows:
        section.blocks.append(Table(["what", "result", "compare with"], rows, numeric=False))
    if data.missing:
        section.blocks.append("Not found, therefore not in this report: " + "; ".join(data.missing) + ".")
    return section


def _field(metric: str) -> str:
    """Token field of a metric's name; empty where there is one field only."""
    return metric.rsplit("/", 1)[0] if "/" in metric else ""


def _unigrams(data: ReportData, run: Experiment, kind: str) -> dict[str, float]:
    """Token field -> loss of the best guess without audio, measured on the tokens of ``kind`` if possible,
    else on those of other validation sets, else on the stores'."""
    measured: dict[str, float] = {}
    for each in [kind, *run.valid_kinds]:
        for metric in run.names(each, "unigram_entropy"):
            measured.setdefault(_field(metric), run.last(each, metric))
    if measured:
        return {
            _field(name): measured[_field(name)]
            for name in run.names(kind, "masked_loss")
            if _field(name) in measured
        }
    stored = data.unigram_entropy(run.config)
    return {} if stored is None else {"": stored}


def codebook_sizes(data: ReportData) -> dict[str, int]:
    """Token field -> codes per codebook ("": of the only one); 256 (one byte, as in the paper) when no store
    was found."""
    sizes: dict[str, int] = defaultdict(lambda: 256)
    for item in data.tokens:
        sizes[item["info"].get("field", "")] = sizes[""] = int(item["info"].get("codebook_size", 256))
    return sizes


def _corpus(data: ReportData) -> Section | None:
    if not data.corpus:
        return None
    columns = ordered(key for row in data.corpus for key in row if key != "set")
    rows = [
        [row["set"], *(_corpus_cell(column, row.get(column)) for column in columns)] for row in data.corpus
    ]
    titles = {"hours": "audio", "mean_seconds": "mean (s)", "max_seconds": "longest (s)"}
    header = ["set", *(titles.get(column, column.replace("_", " ")) for column in columns)]
    section = Section(
        "Corpus", ["The audio that went in, after validation. Fine-tuning reads the labelled set alone."]
    )
    section.blocks.append(Table(header, rows))
    if data.tables:
        section.blocks.append(
            "Of the clips in the tables of the corpus, some are not on disk or cannot be used."
        )
        counts = [
            [row["table"], *(number(row[name]) for name in ("clips", "missing", "other"))]
            for row in data.tables
        ]
        section.blocks.append(Table(["table", "clips", "missing", "useless otherwise"], counts))
    return section


def _corpus_cell(column: str, value: Any) -> str:
    if column == "hours" and value is not None:
        return f"{value:,.1f} h" if value >= 3 else f"{60 * value:.1f} min"
    return number(value, 1)


def facts_table(values: dict[str, Any]) -> Table:
    """Scalars and short lists of a nested object as rows of name and value."""
    rows = []

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                add(f"{prefix}, {key}" if prefix else str(key), item)
        elif isinstance(value, list):
            if len(value) <= 16 and all(isinstance(item, int | float | str) for item in value):
                rows.append([prefix.replace("_", " "), ", ".join(number(item) for item in value)])
        else:
            rows.append([prefix.replace("_", " "), number(value, 4)])

    add("", values)
    return Table(["", "value"], rows, numeric=False)


def _quantizers(data: ReportData) -> Section | None:
    if not data.quantizers:
        return None
    section = Section("Quantiser")
    section.blocks.append(
        "The quantiser writes each teacher frame as a few bytes, one per codebook; the frame is approximated "
        "by the sum of the chosen code vectors. Relative reconstruction error 0 would be perfect, 1 is no "
        "better than always answering with the mean."
    )
    for index, item in enumerate(data.quantizers):
        section.blocks.append(f"Teacher: {item['name']}.")
        if item["picture"]:
            png = Path(item["picture"]).read_bytes()
            section.blocks.append(Picture(f"quantizer-{index}", png, f"Quantiser of {item['name']}."))
        report = item["report"]
        errors = report.get("relative_error")
        if isinstance(errors, dict):
            header = ["rounds of refinement", *errors]
            section.blocks.append(Table(header, [["relative error", *(number(v) for v in errors.values())]]))
        section.blocks.append(Fold("All numbers of the quantiser", [facts_table(report)]))
    return section


def _tokens(data: ReportData) -> Section | None:
    if not data.tokens:
        return None
    section = Section("Tokens")
    section.blocks.append(
        "The tokens are what the encoder learns to predict. A codebook is well used when its codes occur "
        "about equally often; the entropy of the codes is the loss of the best guess that does not listen."
    )
    rows, usage = [], {}
    for item in data.tokens:
        info, values = item["info"], item["entropies"]
        mean = sum(values) / len(values) if values else None
        rows.append(
            [
                item["name"],
                number(info.get("num_cuts")),
                number(info.get("num_frames")),
                number(info.get("frame_rate")),
                f"{info.get('num_codebooks')} × {info.get('codebook_size')}",
                number(mean),
            ]
        )
        if values and item["set"].split("-")[-1] == "train":
            usage[item["name"]] = [100 * math.exp(value) / info.get("codebook_size", 256) for value in values]
    header = ["store", "cuts", "frames", "frames/s", "codebooks × codes", "entropy (nats)"]
    section.blocks.append(Table(header, rows))
    if usage:
        png = plots.code_usage(usage)
        caption = (
            "Perplexity of each codebook, the number of equally frequent codes that would be as varied, as a "
            "share of all its codes."
        )
        section.blocks.append(Picture("code-usage", png, caption))
    return section


def _pretraining(data: ReportData, run: Experiment) -> Section:
    section = Section(f"Pre-training: {run.name}")
    section.blocks.append(
        "Some frames of the input are hidden and the encoder predicts their tokens from the rest (masked "
        "frames), and also those of the visible frames (unmasked). A masked loss below the token "
        "frequencies means that it uses the context; zero is impossible."
    )
    kinds = {"train": "training", **{kind: kind.replace("valid/", "validation ") for kind in run.valid_kinds}}
    losses = {"masked frames": "masked_loss", "unmasked frames": "unmasked_loss"}
    shares = {"masked frames": "masked_accuracy", "unmasked frames": "unmasked_accuracy"}
    slug = run.name.replace("/", "-")
    sizes = codebook_sizes(data)
    panels = [
        (
            name,
            _curves(run, kind, losses),
            _unigrams(data, run, kind),
            sorted({sizes[_field(metric)] for metric in run.names(kind, "masked_loss")}),
        )
        for kind, name in kinds.items()
    ]
    png = plots.pretraining_loss([panel for panel in panels if panel[1]])
    caption = "Token loss; lower is better. Unigram: the token frequencies alone."
    section.blocks.append(Picture(f"pretrain-loss-{slug}", png, caption))
    panels = []
    for kind, name in kinds.items():
        curves = _curves(run, kind, shares, scale=100)
        if curves:
            panels.append((name, "tokens predicted right (%)", curves))
    if panels:
        png = plots.lines(panels)
        section.blocks.append(Picture(f"pretrain-accuracy-{slug}", png, "Token accuracy; higher is better."))
    section.blocks += probes_in_training(run, slug)
    section.blocks += _schedule(run, slug)
    values = {
        kind: {
            name: value for name, value in last_record(run.records, kind).items() if "_codebook_" not in name
        }
        for kind in ["train", *run.valid_kinds]
    }
    section.blocks.append(Fold("Last values", [facts_table(values)]))
    return section


def _curves(run: Experiment, kind: str | None, names: dict[str, str], scale: float = 1.0) -> dict[str, Any]:
    curves = {}
    for label, name in names.items() if kind else ():
        for metric in run.names(kind, name):
            steps, values = run.curve(kind, metric)
            prefix = metric.rsplit("/", 1)[0] + ": " if "/" in metric else ""
            if steps:
                curves[prefix + label] = (steps, [scale * value for value in values])
    return curves


def _schedule(run: Experiment, slug: str) -> list[Picture]:
    panels = []
    for title, label, name in (
        ("learning rate", "learning rate (relative)", "learning_rate"),
        ("throughput", "audio seconds per second", "audio_seconds_per_second"),
    ):
        curves = _curves(run, "train", {run.name: name})
        if curves:
            panels.append((title, label, curves))
    if not panels:
        return []
    caption = "Learning rate of the schedule, and seconds of audio trained on per second of time."
    return [Picture(f"schedule-{slug}", plots.lines(panels), caption)]


def _stages(data: ReportData) -> Section | None:
    if not data.stages:
        return None
    section = Section("Time and memory")
    section.blocks.append("What each stage cost on this machine: time on the clock and the largest process.")
    rows = []
    for marker in data.stages:
        seconds, memory = marker.get("wall_seconds"), marker.get("peak_memory_mb")
        rows.append(
            [
                f"{marker.get('stage')} {marker.get('description', '')}".strip(),
                format_seconds(seconds) if seconds is not None else "–",
                f"{memory:,.0f}" if memory is not None else "–",
                str(marker.get("finished", "–")),
            ]
        )
    total = sum(marker.get("wall_seconds") or 0.0 for marker in data.stages)
    largest = max((marker.get("peak_memory_mb") or 0.0 for marker in data.stages), default=0.0)
    rows.append(["all", format_seconds(total), f"{largest:,.0f}", ""])
    section.blocks.append(Table(["stage", "time", "peak memory (MB)", "finished"], rows))
    return section


def _reproduction(data: ReportData) -> Section:
    section = Section("To do it again", ["The exact commands and versions."])
    commands = ordered(str(marker["command"]) for marker in data.stages if marker.get("command"))
    if commands:
        section.blocks.append(Code("\n".join(commands)))
    details = []
    for marker in data.stages:
        options = {key: marker[key] for key in ("options", "identities", "commit") if marker.get(key)}
        if options:
            details += [f"Stage {marker.get('stage')}", facts_table(options)]
    if details:
        section.blocks.append(Fold("Options and identities of every stage", details))
    for run in data.experiments:
        if run.config:
            import yaml

            text = yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)
            section.blocks.append(Fold(f"Configuration of {run.name}", [Code(text.rstrip())]))
    rows = [[name, version] for name, version in data.versions.items()]
    section.blocks.append(Table(["package", "version"], rows, numeric=False))
    return section
