"""SUPERB tasks on frozen encoders.

    python -m spear_lib.bin.evaluate_superb --encoders '[exp/pretrain/encoder]' --task sd \\
        --train '[train.jsonl.gz]' --valid '[dev.jsonl.gz]' --test '[test.jsonl.gz]' \\
        --learning_rates '[1e-4, 1e-3]' --output_dir exp/superb

Tasks: sid, ks, er, ic, pr, asr, trained and scored by s3prl (pip install 'spear_lib[superb]'; all but ic
also without it, --trainer own); sd (diarization), asv (speaker verification), qbe (query by example), sf
(slots), se (enhancement), ss (separation), after s3prl's definitions. Several go to one output_dir, one
command each. Of several learning rates the best on validation is tested; all are recorded. Run the same
command again to go on after a crash.
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from spear_lib.bin.common import command_line, run
from spear_lib.config import parse
from spear_lib.evaluation.clip_sets import TEST, TRAIN, VALID, Clip, read_clips, rounds
from spear_lib.evaluation.downstream.training import HeadConfig
from spear_lib.evaluation.measured import MeasureOptions, Results, encoder_facts, fingerprint, log_table
from spear_lib.evaluation.superb import PROBLEMS, SuperbConfig, sweep
from spear_lib.evaluation.superb_own import BOTH, LABELS, OWN, QBE, OwnConfig, find_terms
from spear_lib.evaluation.superb_own import sweep as own_sweep
from spear_lib.interfaces.aligned import AlignedEncoder
from spear_lib.runtime.log import first_screen

S3PRL, OWN_TRAINER = "s3prl", "own"


@dataclass(frozen=True, kw_only=True)
class SuperbOptions(MeasureOptions):
    """Encoders and one task."""

    task: str
    """sid, ks, er, ic, pr, asr, sd, asv, qbe, sf, se or ss."""
    train: list[str] = field(default_factory=list)
    """Training data: manifests of cuts, or tables (.tsv, .csv) with a column path. qbe has none."""
    valid: list[str] = field(default_factory=list)
    """Validation data; by default a tenth of the training clips. qbe: development queries, which choose the
    layer."""
    test: list[str]
    """Test data. qbe: queries."""
    label: str = ""
    """Column of the label; of cuts speaker, events, text, or a custom field. By default speaker (sd, asv),
    slots (sf), sources (se, ss: the files of the clean sources), text (qbe), else label."""
    trainer: str = ""
    """s3prl, or own: small heads of ours, for which nothing need be installed; by default s3prl where it has
    the task."""
    learning_rates: list[float] = field(default_factory=lambda: [0.0])
    """Of the head; of several the best on validation is tested (0: s3prl's)."""
    documents: list[str] = field(default_factory=list)
    """qbe: where the queries are looked for."""
    relevant: str = ""
    """qbe: table of the columns query and document; by default documents whose text holds the query's."""
    trials: str = ""
    """asv: file of lines "1 enrolled tested" and "0 enrolled tested"; by default all pairs of test clips."""
    collar: float = 0.0
    """sd: seconds around the borders of the reference that are not scored."""
    superb: SuperbConfig = field(default_factory=SuperbConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        known = [*PROBLEMS, *OWN]
        if self.task not in known:
            raise ValueError(f"task is {self.task!r}: use {', '.join(known)}")
        if not self.learning_rates:
            raise ValueError("learning_rates is empty: give one or more, 0 is s3prl's own")
        if self.trainer not in ("", S3PRL, OWN_TRAINER):
            raise ValueError(f"trainer is {self.trainer!r}: use {S3PRL} or {OWN_TRAINER}")
        if self.trainer == S3PRL and self.task in OWN:
            raise ValueError(
                f"trainer is {S3PRL!r}, but {self.task} is trained here alone: leave trainer out"
            )
        if self.trainer == OWN_TRAINER and self.task not in OWN + BOTH:
            raise ValueError(
                f"trainer is {OWN_TRAINER!r}, but {self.task} is trained by s3prl alone: use {S3PRL}"
            )
        if self.task == QBE:
            if not self.documents or not self.valid:
                raise ValueError("qbe needs documents, and development queries (valid) that choose the layer")
        elif not self.train:
            raise ValueError(f"train is empty: {self.task} needs training data")

    @property
    def is_own(self) -> bool:
        """Whether s3prl is not needed."""
        return self.task in OWN or self.trainer == OWN_TRAINER

    def clips(self, paths: list[str], part: str) -> list[Clip]:
        """Those of some manifests and tables."""
        label = self.label or LABELS.get(self.task, "label")
        found: list[Clip] = []
        for path in paths:
            clips = read_clips([path], label, "", part)
            if label == "sources":  # of tables: beside the table
                clips = [
                    replace(clip, labels=tuple(str(Path(path).parent / one) for one in clip.labels))
                    if isinstance(clip.source, Path)
                    else clip
                    for clip in clips
                ]
            found += clips
        return found

    def read(self) -> list[Clip]:
        """All clips with their parts; of qbe the documents are those to train on."""
        train = self.documents if self.task == QBE else self.train
        parts = {TRAIN: train, VALID: self.valid, TEST: self.test}
        return [clip for part, paths in parts.items() for clip in self.clips(paths, part)]

    def segments(self, clip: Clip) -> list[list[Any]]:
        """sd: who speaks when in a clip."""
        if self.task != "sd":
            return []
        return [[one.speaker, one.start, one.duration] for one in clip.cut().supervisions]

    def own(self) -> OwnConfig:
        """What our own heads are trained with."""
        names = ("total_steps", "eval_step", "batch_size", "gradient_accumulate", "hidden_size")
        head = HeadConfig(
            **{name: getattr(self.superb, name) for name in names},
            normalise=self.superb.normalise,
            max_gigabytes=self.superb.max_gigabytes,
        )
        return OwnConfig(head, self.superb.measures, self.trials, self.collar)

    def protocol(self) -> dict[str, Any]:
        """What decides a result beside encoder and data."""
        superb = asdict(self.superb)
        own = {name: superb.pop(name) for name in ("hidden_size", "normalise", "max_gigabytes", "measures")}
        found = {"superb": superb, "learning_rates": self.learning_rates}
        if self.is_own:
            own.pop("max_gigabytes")
            trials = Path(self.trials).read_text(encoding="utf-8") if self.trials else ""
            relevant = Path(self.relevant).read_text(encoding="utf-8") if self.relevant else ""
            found |= {"own": own, "seeds": self.seeds, "collar": self.collar, "trainer": OWN_TRAINER}
            found |= {"trials": fingerprint(trials), "relevant": fingerprint(relevant)}
        return found


def measure(
    options: SuperbOptions, parts: tuple[list[Clip], ...], name: str, encoder: AlignedEncoder
) -> dict[str, Any]:
    """The result of one encoder."""
    if options.task == QBE:
        return find_terms(encoder, *parts, options.relevant, options.superb.max_gigabytes)
    if options.is_own:
        return own_sweep(options.task, parts, encoder, options.own(), options.learning_rates, options.seeds)
    return sweep(
        options.task,
        parts,
        options.named()[name],
        Path(options.output_dir) / "s3prl",
        name,
        options.learning_rates,
        options.superb,
        options.device,
    )


def main(argv: list[str] | None = None) -> None:
    options = parse(SuperbOptions, argv, prog="python -m spear_lib.bin.evaluate_superb", description=__doc__)
    clips = options.read()
    ((_, *parts),) = rounds(clips, options.seed)
    by_whom = "own heads" if options.is_own else f"s3prl's {PROBLEMS[options.task].name}"
    results = Results(options.output_dir, "superb", command_line("spear_lib.bin.evaluate_superb", argv))
    first_screen(
        "SUPERB on frozen encoders",
        {
            "encoders": ", ".join(options.named()),
            "task": f"{options.task} ({by_whom}): {'/'.join(str(len(part)) for part in parts)} clips",
            "learning rates": ", ".join(
                f"{rate:g}" if rate else "s3prl's" for rate in options.learning_rates
            ),
            "result": results.path,
        },
    )
    data = fingerprint([[clip.name, list(clip.labels), clip.part, *options.segments(clip)] for clip in clips])
    table = {}
    # s3prl loads the encoder itself, and random weights with the first seed.
    seed = options.seed if options.is_own else 0
    for name, encoder in replace(options, seed=seed).load("all"):
        result = results.measure(
            name,
            options.task,
            encoder_facts(encoder) | {"data": data} | options.protocol(),
            lambda name=name, encoder=encoder: measure(options, tuple(parts), name, encoder),
        )
        spread = f" ± {result['std']:.2f}" if result.get("std") else ""
        digits = 4 if options.task == QBE else 2
        table[name] = {f"{options.task}, {result['metric']}": f"{result['mean']:.{digits}f}{spread}"}
    log_table(table)


if __name__ == "__main__":
    run(main)
