"""Text units as a tokenizer of transformers: tokenizer.json and tokenizer_config.json.

One form holds BPE and characters: pairs of units are merged in the order of the units' ids, as sentencepiece
does, and a word begins with "▁". Its decoder is that of CTC: repeats and blanks are left out.
"""

from pathlib import Path
from typing import Any

from spear_lib.asr.units import UNKNOWN, CharacterUnits
from spear_lib.asr.words import WORD_START
from spear_lib.runtime.files import write_json


def unit_names(units: Any) -> list[str]:
    """How each unit is written, by id; the space between words as "▁"."""
    names = [units.unit(number) for number in range(units.vocab_size)]
    return [WORD_START if name == " " else name for name in names]


def write_tokenizer(units: Any, folder: Path) -> None:
    """Write vocab.json (unit -> id), tokenizer.json and tokenizer_config.json.

    Encoding text gives the ids of ``units.encode``, decoding the ids of single frames its text.
    """
    names = unit_names(units)
    vocabulary = {name: number for number, name in enumerate(names)}
    blank = names[units.blank_id]
    characters = isinstance(units, CharacterUnits)
    special = [name for name in names if name.startswith("<") and name.endswith(">") and len(name) > 2]
    metaspace = {
        "type": "Metaspace",
        "replacement": WORD_START,
        "prepend_scheme": "never" if characters else "always",
        "split": not characters,
    }
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": UNKNOWN if UNKNOWN in vocabulary else None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": _merges(names, vocabulary),
    }
    added = [
        {
            "id": vocabulary[name],
            "content": name,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for name in special
    ]
    decoder = {
        "type": "Sequence",
        "decoders": [
            {"type": "CTC", "pad_token": blank, "word_delimiter_token": WORD_START, "cleanup": True},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 1},
        ],
    }
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": metaspace,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }
    write_json(folder / "tokenizer.json", content, compact=True)
    write_json(folder / "vocab.json", vocabulary, compact=True)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": blank,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000_000,
    }
    if UNKNOWN in vocabulary:
        settings["unk_token"] = UNKNOWN
    write_json(folder / "tokenizer_config.json", settings)


def _merges(names: list[str], vocabulary: dict[str, int]) -> list[list[str]]:
    """Pairs of units that are a unit together, those of the smallest id first (it was merged first)."""
    merges = []
    for name in names:
        pairs = [(name[:cut], name[cut:]) for cut in range(1, len(name))]
        known = [pair for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary]
        merges += sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    return [list(pair) for pair in merges]
