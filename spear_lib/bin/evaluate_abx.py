"""ABX error rates of phones, of frozen encoders and of tokens (spec evaluation §5; as fastabx).

    python -m spear_lib.bin.evaluate_abx --encoders '[exp/pretrain/encoder]' --layers all \\
        --alignments '[TIMIT/phones.tsv]' --speakers TIMIT/utterances.tsv --audio '[TIMIT/audio]' \\
        --output_dir exp/abx

Run the same command again to go on after a crash.
"""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from spear_lib.bin.common import command_line, run
from spear_lib.config import parse
from spear_lib.evaluation.abx.conditions import Conditions
from spear_lib.evaluation.abx.distances import DISTANCES
from spear_lib.evaluation.abx.rates import CONTEXTS, SPEAKERS, AbxConfig
from spear_lib.evaluation.alignments import is_silence
from spear_lib.evaluation.audio_by_name import features_of, tokens_of
from spear_lib.evaluation.measured import Results, encoder_facts, log_table
from spear_lib.evaluation.phone_options import PhoneOptions, phones_fingerprint
from spear_lib.runtime.log import first_screen
from spear_lib.tokens.store import TokenStoreReader

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AbxOptions(PhoneOptions):
    """Encoders, token stores, phones and conditions."""

    layers: str = "output"
    """output, numbers of layers (3 or 3,6,9), or all: every one is measured, the best one is named."""
    speaker: list[str] = field(default_factory=lambda: list(SPEAKERS))
    """Conditions: within, across."""
    context: list[str] = field(default_factory=lambda: ["within"])
    """Conditions: within (all three phones have the same neighbours), any."""
    distance: str = "angular"
    """Of frames of features: angular or euclidean. Tokens: share of the codebooks that differ."""
    abx: AbxConfig = field(default_factory=AbxConfig)
    max_too_short: float = 0.1
    """Share of the phones that may have no frame; they are left out and counted."""
    without_last_frame: bool = False
    """Drop the last frame of every phone, as the old code of Libri-light did."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, values, known in (
            ("speaker", self.speaker, SPEAKERS),
            ("context", self.context, CONTEXTS),
            ("distance", [self.distance], tuple(DISTANCES)[:2]),
        ):
            if not values or set(values) - set(known):
                raise ValueError(f"{name} is {values}: use {' or '.join(known)}")
        if self.layers in ("concat", "weighted"):
            raise ValueError(f"layers is {self.layers!r}: use output, all or numbers of layers (3 or 3,6,9)")


def main(argv: list[str] | None = None) -> None:
    options = parse(AbxOptions, argv, prog="python -m spear_lib.bin.evaluate_abx", description=__doc__)
    phones, audio, names = options.read()
    results = Results(options.output_dir, "abx", command_line("spear_lib.bin.evaluate_abx", argv))
    spoken = [phone for phone in phones if not is_silence(phone.label)]
    first_screen(
        "ABX error rates of phones",
        {
            "encoders": ", ".join([*options.named(), *options.named_stores()]),
            "phones": f"{len(spoken)} of {len({phone.label for phone in spoken})} kinds in {len(names)} "
            f"files, {len({phone.speaker for phone in spoken})} speakers",
            "sample": f"{options.abx.max_items or 'all'} items of a phone, speaker and context, "
            f"{options.abx.max_x_speakers or 'all'} speakers of x",
            "result": results.path,
        },
    )
    data = {"data": phones_fingerprint(phones), "files": len(names), "phones": len(spoken)}
    protocol = {
        "abx": asdict(options.abx),
        "max_too_short": options.max_too_short,
        "without_last_frame": options.without_last_frame,
    }
    table: dict[str, dict[str, str]] = {}

    def measure(
        name: str,
        facts: dict[str, Any],
        distance: str,
        rate: int,
        load: Callable[[], tuple[list[dict[str, Tensor]], float]],
        label: Callable[[int], str],
    ) -> None:
        """All conditions of an encoder or store; ``load`` is called where one of them is missing, and
        ``label`` says which state was the best."""
        conditions = Conditions(
            phones, load, rate, distance, options.abx, options.max_too_short, options.without_last_frame
        )

        for speaker in options.speaker:
            for context in options.context:
                task = f"{speaker} speaker, {'same' if context == 'within' else 'any'} context"
                result = results.measure(
                    name,
                    task,
                    facts | data | protocol | {"distance": distance},
                    lambda speaker=speaker, context=context: conditions(speaker, context),
                )
                table.setdefault(name, {})[task] = f"{result['mean']:.2f}{label(result['best_state'])}"
                logger.info(
                    "%s, %s: %.2f %%, %d cells of %d phones, %d without a frame",
                    *(name, task, result["mean"], result["cells"], result["items"], result["too_short"]),
                )

    for name, encoder in options.load(options.layers):
        measure(
            name,
            encoder_facts(encoder),
            options.distance,
            encoder.frame_rate,
            lambda name=name, encoder=encoder: (
                features_of(encoder, audio, names, f"features of {name}"),
                encoder.first_center_ms,
            ),
            encoder.state_label,
        )
    for name, path in options.named_stores().items():
        store = TokenStoreReader(path)
        of_store = {"store": store.facts.quantizer_id, "teacher": store.facts.teacher_id}
        for codebook in [None, *range(store.facts.num_codebooks)] if store.facts.num_codebooks > 1 else [0]:

            def load(store=store, codebook=codebook) -> tuple[list[dict[str, Tensor]], float]:
                tokens, first_ms = tokens_of(store, audio, names)
                chosen = slice(None) if codebook is None else slice(codebook, codebook + 1)
                return [{file: codes[:, chosen] for file, codes in tokens.items()}], first_ms

            part = name if codebook is None else f"{name}, codebook {codebook}"
            facts = of_store | {"codebook": codebook}
            measure(part, facts, "units", round(store.facts.frame_rate), load, lambda _: "")
    log_table(table)


if __name__ == "__main__":
    run(main)
