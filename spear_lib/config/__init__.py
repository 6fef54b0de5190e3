"""Options of every command: frozen dataclasses, filled from YAML and the command line."""

from spear_lib.config.options import load, parse, positional, save, to_dict

__all__ = ["load", "parse", "positional", "save", "to_dict"]
