"""Weights that an installed Python package brings along, found without importing the package (ours).

Such packages are named as ``package:NAME`` where a teacher wants a path. They are installed with
``--no-deps``: nothing of their code is run.
"""

import importlib.util
from pathlib import Path

PACKAGE_PREFIX = "package:"


def packaged_file(path: str | Path, package: str, name: str, install: str) -> Path:
    """The weights ``name``: in the folder or file ``path``, or in an installed package.

    Args:
      path: a file, a folder that holds ``name``, or ``package:...`` with the package's import name.
      package: import name of the package that ships the file.
      name: of the file below the package's folder.
      install: how to get it, for the message.

    Raises:
      RuntimeError: it is not there; says how to install it.
    """
    text = str(path)
    if not text.startswith(PACKAGE_PREFIX):
        place = Path(path)
        for candidate in (place, place / name, place / Path(name).name):
            if candidate.is_file():
                return candidate
        raise RuntimeError(f"{place} is no file and holds no {Path(name).name}: {install}")
    if text != PACKAGE_PREFIX + package:
        raise RuntimeError(f"{text}: this teacher's weights are in {PACKAGE_PREFIX}{package}: {install}")
    try:
        found = importlib.util.find_spec(package)
    except ModuleNotFoundError:  # a package above it is missing
        found = None
    for folder in (found.submodule_search_locations or []) if found else []:
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    raise RuntimeError(f"the package {package} with {name} is not installed: {install}")
