"""Fine-tune an encoder for speech recognition: pruned transducer, CTC or both (stage 12)."""

from spear_lib.asr.data import AsrData
from spear_lib.asr.description import DESCRIPTION
from spear_lib.asr.model import AsrModel
from spear_lib.asr.options import FinetuneOptions
from spear_lib.asr.task import AsrTask
from spear_lib.asr.units import UNITS_FOLDER, load_units
from spear_lib.bin.common import run
from spear_lib.config import parse
from spear_lib.training.finetuning import finetune


def main(argv: list[str] | None = None) -> None:
    options = parse(
        FinetuneOptions,
        argv,
        prog="python -m spear_lib.bin.finetune_asr",
        description="Fine-tune an encoder for speech recognition (torchrun starts several processes).",
    )
    units = load_units(options.units)
    finetune(
        options,
        DESCRIPTION,
        lambda encoder: AsrTask(
            AsrModel(encoder, options.model, units.vocab_size),
            units,
            options.data.spec_augment,
            options.valid_wer,
        ),
        lambda **share: AsrData(options.data, units=units, **share),
        keep=lambda experiment_dir: units.save(experiment_dir / UNITS_FOLDER),
    )


if __name__ == "__main__":
    run(main)
