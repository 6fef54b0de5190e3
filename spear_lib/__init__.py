"""SPEAR: self-supervised speech and audio representations (arXiv 2510.25955).

Users who only want features need one name::

    from spear_lib import load_encoder
    encoder = load_encoder("exp/pretrain/encoder")
    output = encoder.extract(waveforms, lengths)
"""

__version__ = "0.2.0.dev0"

__all__ = ["__version__", "load_encoder"]


def __getattr__(name: str):
    # Imported on first use, so that `import spear_lib` stays light and free of import cycles.
    if name == "load_encoder":
        from spear_lib.encoders import load_encoder

        return load_encoder
    raise AttributeError(f"module 'spear_lib' has no attribute {name!r}")
