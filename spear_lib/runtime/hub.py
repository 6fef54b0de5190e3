"""Weights by name: ``hub:OWNER/NAME`` is a repository of huggingface.co, fetched once over the network."""

import re
from pathlib import Path

HUB_PREFIX = "hub:"
_CONFIG_FILES = ("config.json", "preprocessor_config.json")


def download(repository: str, advice: str) -> Path:
    """Folder with the configuration and weights of a repository, from the hub or its cache on disk.

    Args:
      repository: OWNER/NAME.
      advice: what to download where by hand; ends the message of the error.

    Raises:
      RuntimeError: the package huggingface_hub is missing, or the hub does not give the files.
    """
    try:
        from huggingface_hub import list_repo_files, snapshot_download
    except ImportError as error:
        raise RuntimeError(
            f"{HUB_PREFIX}{repository} needs a package: pip install huggingface_hub; or {advice}"
        ) from error
    try:
        files = list_repo_files(repository)
        # One format of the weights is enough.
        safe = any(file.startswith("model") and file.endswith(".safetensors") for file in files)
        weights = ["model*.safetensors", "model.safetensors.index.json"] if safe else ["pytorch_model*"]
        return Path(snapshot_download(repository, allow_patterns=[*_CONFIG_FILES, *weights]))
    except Exception as error:
        try:
            # Machines without a network share the cache of one that has it.
            return Path(snapshot_download(repository, local_files_only=True))
        except (OSError, ValueError):
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RuntimeError(f"{HUB_PREFIX}{repository} cannot be fetched ({reason}): {advice}") from error


_NAME = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


def is_hub_name(text: str) -> bool:
    """Whether ``text`` names a repository: hub:OWNER/NAME, or OWNER/NAME where no folder OWNER is here;
    either may end in @REVISION (branch, tag or commit)."""
    if text.startswith(HUB_PREFIX):
        return True
    return bool(_NAME.fullmatch(text)) and not text.startswith(".") and not Path(text).parent.exists()


def download_encoder(name: str) -> tuple[Path, str]:
    """Configuration and safetensors of a repository, from the hub or its cache on disk; no code, no pickles.

    Args:
      name: as ``is_hub_name`` describes.

    Returns:
      Their folder, and the name with the commit that was read.

    Raises:
      FileNotFoundError: no such repository, revision or file; neither in the cache nor on the hub.
      RuntimeError: the package huggingface_hub is missing.
      ValueError: not a name.
    """
    match = _NAME.fullmatch(name.removeprefix(HUB_PREFIX))
    if match is None:
        raise ValueError(f"{name} is no repository: write hub:OWNER/NAME or hub:OWNER/NAME@REVISION")
    repository, revision = match["repository"], match["revision"]
    advice = (
        f"download config.json and model.safetensors of https://huggingface.co/{repository} into a folder "
        "and give that"
    )
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise RuntimeError(f"{name} needs a package: pip install huggingface_hub; or {advice}") from error
    wanted = ["config.json", "model.safetensors"]
    try:
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
    except Exception as error:  # of requests, httpx or the hub's own classes, by its version
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise FileNotFoundError(
            f"no encoder at {name}: no such path here, and the hub and its cache do not give it ({reason}); "
            f"{advice}"
        ) from error
    missing = [file for file in wanted if not (folder / file).exists()]
    if missing:
        raise FileNotFoundError(
            f"no encoder at {name}: the repository, as far as it is in the cache, has no "
            f"{' and no '.join(missing)}; go online once, or {advice}"
        )
    return folder, f"{HUB_PREFIX}{repository}@{folder.name}"
