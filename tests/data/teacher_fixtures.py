"""Small randomly initialised WavLM and HuBERT checkpoints in the format of the published ones.

The folders hold config.json, model.safetensors (or pytorch_model.bin with the old weight-norm names, as the
published files of 2021 do) and preprocessor_config.json, and load through the same code as the real ones.
"""

from pathlib import Path

import torch

FAMILIES = ("wavlm", "hubert")
SIZES = ("large", "base")


def tiny_model(family: str, size: str, depth: int = 3, seed: int = 0) -> torch.nn.Module:
    """A model with the structure of ``size`` and a few thousand weights, every one of them random.

    Args:
      family: wavlm, hubert or wav2vec2.
      size: large (blocks that normalise first, layer norm in every convolution) or base (blocks that
        normalise last, one group norm over time).
      depth: transformer blocks.
    """
    import transformers

    large = size == "large"
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": depth,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "conv_dim": (16,) * 7,
        "conv_bias": large and family == "hubert",
        "num_conv_pos_embedding_groups": 4,
        "do_stable_layer_norm": large,
        "feat_extract_norm": "layer" if large else "group",
    }
    kind = {
        "wavlm": (transformers.WavLMConfig, transformers.WavLMModel),
        "hubert": (transformers.HubertConfig, transformers.HubertModel),
        "wav2vec2": (transformers.Wav2Vec2Config, transformers.Wav2Vec2Model),
    }[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind[1](kind[0](**shape))
        with torch.no_grad():
            # Fresh weights have zero biases and unit scales, which would hide what is left out.
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def tiny_checkpoint(
    folder: Path,
    family: str = "wavlm",
    size: str = "large",
    depth: int = 3,
    seed: int = 0,
    do_normalize: bool | None = None,
    old_format: bool = False,
) -> Path:
    """Write ``tiny_model`` to ``folder`` and return the folder.

    Args:
      do_normalize: what preprocessor_config.json says; default: as the published checkpoint of this kind.
      old_format: pytorch_model.bin with weight_g and weight_v instead of model.safetensors.
    """
    import transformers

    model = tiny_model(family, size, depth, seed)
    if do_normalize is None:
        do_normalize = (family, size) != ("wavlm", "base")
    model.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=do_normalize).save_pretrained(folder)
    if old_format:
        names = {
            "parametrizations.weight.original0": "weight_g",
            "parametrizations.weight.original1": "weight_v",
        }
        state = {}
        for name, value in model.state_dict().items():
            for new, old in names.items():
                name = name.replace(new, old)
            state[name] = value
        torch.save(state, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    return folder
