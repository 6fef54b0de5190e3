"""Fine-tune an encoder for audio tagging (stage 12 of recipes of sounds)."""

from spear_lib.bin.common import run
from spear_lib.config import parse
from spear_lib.corpora.clip_tables import read_class_list
from spear_lib.tagging.data import TaggingData
from spear_lib.tagging.description import DESCRIPTION
from spear_lib.tagging.model import TaggingModel
from spear_lib.tagging.options import FinetuneTaggingOptions
from spear_lib.tagging.task import TaggingTask
from spear_lib.training.finetuning import finetune


def main(argv: list[str] | None = None) -> None:
    options = parse(
        FinetuneTaggingOptions,
        argv,
        prog="python -m spear_lib.bin.finetune_tagging",
        description="Fine-tune an encoder for audio tagging (torchrun starts several processes).",
    )
    classes = read_class_list(options.classes)
    finetune(
        options,
        DESCRIPTION,
        lambda encoder: TaggingTask(
            TaggingModel(encoder, options.model, len(classes)), classes, options.data.spec_augment
        ),
        lambda **share: TaggingData(options.data, classes, **share),
        lambda data: {"sampling": data.describe_sampling()},
    )


if __name__ == "__main__":
    run(main)
