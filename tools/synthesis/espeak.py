"""espeak-ng through ctypes: text in, samples out (library and data from the PyPI package espeakng-loader).

What espeak-ng says depends on what it has said before in the same process. For results that do not depend on
the order of speakers, give every speaker a fresh process (see ``workers.py``) and use one engine in it.
"""

import ctypes
import os
from functools import cache

import numpy as np

_OUTPUT_SYNCHRONOUS = 2
_CHARS_UTF8 = 1
_POSITION_CHARACTER = 1
_PARAMETERS = {"rate": 1, "pitch": 3, "range": 4}
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Engine:
    """One espeak-ng in this process; use ``engine()``, because the library holds global state."""

    def __init__(self):
        try:
            import espeakng_loader
        except ImportError:
            raise RuntimeError(
                "synthesising speech needs the package espeakng-loader: run `pip install espeakng-loader`, "
                "or use a real corpus (prepare.sh --mini false --corpus-dir DIR)"
            ) from None
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self._library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        data = espeakng_loader.get_data_path().encode()
        self.sample_rate = int(self._library.espeak_Initialize(_OUTPUT_SYNCHRONOUS, 0, data, 0))
        """Samples per second of what ``say`` returns (22050)."""
        if self.sample_rate <= 0:
            raise RuntimeError(
                f"espeak-ng did not start (code {self.sample_rate}): reinstall espeakng-loader"
            )
        # Breathy voices contain noise, which the library otherwise seeds with the time of day.
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        self._chunks: list[np.ndarray] = []
        # The reference must live as long as the library may call it.
        self._callback = _CALLBACK(self._collect)
        self._library.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples, count: int, _events) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def set_voice(self, name: str) -> None:
        """Chooses a voice, for example "en-us+f2": language, then the variant."""
        status = self._library.espeak_SetVoiceByName(name.encode())
        if status != 0:
            raise ValueError(f"espeak-ng has no voice {name!r} (code {status})")

    def set_parameters(self, *, rate: int, pitch: int, pitch_range: int) -> None:
        """``rate`` in words per minute; ``pitch`` and ``pitch_range`` 0 to 100 (50: as the voice is)."""
        for name, value in (("rate", rate), ("pitch", pitch), ("range", pitch_range)):
            self._library.espeak_SetParameter(_PARAMETERS[name], int(value), 0)

    def say(self, text: str) -> np.ndarray:
        """Samples of ``text``, (N,) float32 in [-1, 1] at ``sample_rate``."""
        self._chunks.clear()
        data = text.encode()
        status = self._library.espeak_Synth(
            data, len(data) + 1, 0, _POSITION_CHARACTER, 0, _CHARS_UTF8, None, None
        )
        if status != 0 or not self._chunks:
            raise RuntimeError(f"espeak-ng could not say {text!r} (code {status})")
        return np.concatenate(self._chunks).astype(np.float32) / 32768.0

    def phonemes(self, text: str) -> str:
        """How the present voice pronounces ``text``, in espeak-ng's phoneme letters."""
        pointer = ctypes.c_char_p(text.encode())
        result = self._library.espeak_TextToPhonemes(ctypes.byref(pointer), _CHARS_UTF8, 0)
        return (result or b"").decode()


@cache
def _engine_and_process() -> tuple[Engine, int]:
    return Engine(), os.getpid()


def engine() -> Engine:
    """The one engine of this process."""
    result, process = _engine_and_process()
    if process != os.getpid():
        raise RuntimeError(
            "espeak-ng was used before this process was forked: its output would depend on that"
        )
    return result
