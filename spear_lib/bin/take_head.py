"""The codebook head of a SpidR layer as a quantiser folder: dump_tokens then makes tokens of its posteriors.

    python -m spear_lib.bin.take_head --encoder exp/pretrain/encoder --layer 6 --output_dir data/quantizers/s6
    python -m spear_lib.bin.dump_tokens --cuts ... --quantizer data/quantizers/s6 --output_dir data/tokens/s6

A token is the most probable code of the head. Tokens of layers without a head, and of any other encoder, are
those of k-means (extract_embeddings --teacher spear, train_quantizer --kind kmeans).
"""

import logging
from dataclasses import asdict, dataclass

from spear_lib.bin.common import run
from spear_lib.config import parse
from spear_lib.encoders import load_encoder
from spear_lib.encoders.spidr import SpidrEncoder
from spear_lib.quantization.linear import LinearUnits
from spear_lib.runtime.log import first_screen
from spear_lib.teachers.options import TeacherOptions

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TakeHeadOptions:
    """Which head, and where it goes."""

    encoder: str
    """A SpidR or DinoSR: a folder of stage 11, a checkpoint of ours, or a published file."""
    output_dir: str
    """Folder for quantizer.safetensors."""
    layer: int = 0
    """Layer of the codebook, counted from 1 as in the paper; 0: the first one that has a head."""


def main(argv: list[str] | None = None) -> None:
    options = parse(TakeHeadOptions, argv, prog="python -m spear_lib.bin.take_head", description=__doc__)
    encoder = load_encoder(options.encoder)
    if not isinstance(encoder, SpidrEncoder):
        raise ValueError(
            f"{options.encoder} is a {encoder.encoder_type} encoder, which has no codebook heads: use "
            "k-means of a layer (extract_embeddings --teacher spear, train_quantizer --kind kmeans)"
        )
    config = encoder.config
    layer = options.layer or config.head_layers[0]
    if layer not in config.head_layers:
        raise ValueError(
            f"layer is {layer}: heads are on layers {config.head_layers[0]} to {config.head_layers[-1]}; of "
            "the others there is k-means"
        )
    # DinoSR's heads all read the output of the last block.
    teacher = TeacherOptions(name="spear", path=options.encoder, layer=layer - 1)
    if config.heads_on == "output":
        teacher = TeacherOptions(name="spear_output", path=options.encoder)
    head = encoder.heads[config.head_layers.index(layer)][0]
    units = LinearUnits(config.hidden_dim, config.codebook_size)
    units.weight.copy_(head.weight.detach())
    units.bias.copy_(head.bias.detach())
    units.provenance = {
        "teacher": teacher.create().describe(),
        "recipe": asdict(teacher),
        "codebook_of_layer": layer,
    }
    path = units.save(options.output_dir)
    first_screen(
        "Codebook head as a quantiser",
        {"encoder": options.encoder, "layer": layer, "codes": config.codebook_size, "id": units.id},
    )
    logger.info("wrote %s", path)


if __name__ == "__main__":
    run(main)
