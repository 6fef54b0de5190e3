"""Weights by name: ``hub:OWNER/NAME`` is a repository of huggingface.co, fetched once over the network."""

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
