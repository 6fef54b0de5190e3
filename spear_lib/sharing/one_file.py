"""The one modelling file of an exported folder, joined from ``sharing.modelling``.

transformers copies a folder's code to a cache of its own and follows imports between its files in some
versions only; one file works in all. It imports torch, numpy and transformers, never this library.
"""

import ast
from importlib.resources import files

MODULE = "modeling_spear"
"""Name of the file without its ending, as config.json's auto_map writes it."""
_PARTS = ("configuration", "features", "layers", "models")  # each uses those before it
_HEADER = '''"""SPEAR (arXiv 2510.25955) for transformers, in one file; written by spear_lib.

    AutoModel.from_pretrained(FOLDER, trust_remote_code=True)

It needs torch, numpy and transformers alone, and can be imported: ``from modeling_spear import SpearModel``.
"""
'''


def modelling_file() -> str:
    """The source text of modeling_spear.py: all imports once, then the parts without theirs."""
    plain: set[str] = set()
    named: dict[str, set[str]] = {}
    bodies: list[str] = []
    for part in _PARTS:
        text = files("spear_lib.sharing.modelling").joinpath(f"{part}.py").read_text(encoding="utf-8")
        docstring, *statements = ast.parse(text).body
        end = docstring.end_lineno
        for node in statements:
            if not isinstance(node, ast.Import | ast.ImportFrom):
                break
            end = node.end_lineno
            if isinstance(node, ast.Import):
                plain |= {ast.unparse(ast.Import(names=[alias])) for alias in node.names}
            elif not node.module.startswith("spear_lib."):
                named.setdefault(node.module, set()).update(alias.name for alias in node.names)
        bodies.append("\n".join(text.splitlines()[end:]).strip("\n"))
    imports = sorted(plain) + [
        f"from {each} import {', '.join(sorted(named[each]))}" for each in sorted(named)
    ]
    return "\n\n\n".join([_HEADER + "\n" + "\n".join(imports), *bodies]) + "\n"
