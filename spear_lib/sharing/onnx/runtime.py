"""A transducer of ONNX files, run by onnxruntime behind the interface of ``AsrModel`` (ours).

Every search of the library works on it: only features and the search itself are PyTorch. Files of a streaming
encoder run chunk by chunk.
Legend: N rows, T fbank frames, U encoder frames, J joiner channels, C labels of context, V units.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from spear_lib.asr.words import WORD_START
from spear_lib.encoders.base import EncoderOutput
from spear_lib.encoders.zipformer.front_end import embedding_frames
from spear_lib.features.fbank import SAMPLE_RATE, FbankExtractor, fbank_length
from spear_lib.runtime.text_files import text_lines

ENCODER, DECODER, JOINER, TOKENS = "encoder.onnx", "decoder.onnx", "joiner.onnx", "tokens.txt"
ERROR_RATES = "wer.json"
_PROVENANCE = ("weights", "weights_hash", "step")  # metadata that say where the weights come from
INSTALL = "pip install 'spear_lib[onnx]', or pip install onnx onnxruntime"


def eight_bit_name(name: str) -> str:
    """How the 8-bit version of a file is called."""
    return name.replace(".onnx", ".int8.onnx")


class OnnxPart:
    """One ONNX file on the CPU: tensors in by name, tensors out.

    Raises:
      RuntimeError: onnxruntime is missing, or cannot read the file.
      ValueError: no such file.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = path = Path(path)
        if not path.is_file():
            raise ValueError(f"{path} does not exist: export the model first (spear_lib.bin.export_onnx)")
        try:
            import onnxruntime
        except ImportError as error:
            raise RuntimeError(f"ONNX files need onnxruntime ({error}): {INSTALL}") from error
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        settings.log_severity_level = 4  # what goes wrong is raised
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), settings, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own classes, one for each kind of damage
            reason = " ".join(str(error).split())[:300]
            if "external data" in reason.lower():
                raise RuntimeError(
                    f"{path} cannot be read: its weights lie beside it in {path.name}.data, which is missing "
                    "or of another export; copy both files"
                ) from error
            raise RuntimeError(f"{path} cannot be read ({reason}): export or copy it again") from error
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map

    def zeros(self, batch: int) -> dict[str, Tensor]:
        """A tensor of zeros for every input, in order; its free axis, if it has one, is ``batch`` long."""
        dtypes = {"tensor(float)": torch.float32, "tensor(int64)": torch.int64}
        return {
            item.name: torch.zeros(
                [size if isinstance(size, int) else batch for size in item.shape], dtype=dtypes[item.type]
            )
            for item in self._session.get_inputs()
        }

    def __call__(self, **inputs: Tensor) -> list[Tensor]:
        arrays = {name: value.detach().cpu().numpy() for name, value in inputs.items()}
        try:
            outputs = self._session.run(None, arrays)
        except Exception as error:  # onnxruntime's own classes
            shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
            reason = " ".join(str(error).split())[:300]
            raise RuntimeError(f"{self.path} cannot be run on {shapes}: {reason}") from error
        return [torch.from_numpy(output) for output in outputs]


class OnnxStreamingEncoder:
    """A streaming encoder.onnx, with the steps of ``StreamingEncoder`` on whole blocks.

    Attributes:
      block_frames: fbank frames of a block.
      block_shift: fbank frames from one block to the next.
    """

    def __init__(self, part: OnnxPart):
        self._part = part
        self.block_frames = int(part.metadata["T"])
        self.block_shift = int(part.metadata["decode_chunk_len"])

    def initial_state(self, batch_size: int) -> list[Tensor]:
        """The state before the first frame of ``batch_size`` streams."""
        return list(self._part.zeros(batch_size).values())[1:]

    def step(self, fbank: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """fbank (N, block_frames, M) and the state -> the next chunk (N, U, J) and the new state."""
        names = list(self._part.zeros(0))[1:]
        encoder_out, *state = self._part(x=fbank, **dict(zip(names, state, strict=True)))
        return encoder_out, state


class _Encoder:
    def __init__(self, path: Path):
        self._part = OnnxPart(path)
        facts = self._part.metadata
        self.provenance = {name: facts[name] for name in _PROVENANCE if name in facts}
        self.frame_rate = int(facts["frame_rate"])
        self.first_frame_center_ms = float(facts["first_frame_center_ms"])
        self._features = FbankExtractor(int(facts["feature_dim"]))
        self._streaming = OnnxStreamingEncoder(self._part) if "decode_chunk_len" in facts else None

    def extract(self, waveforms: Tensor, lengths: Tensor) -> EncoderOutput:
        """Waveforms (N, samples), 16 kHz -> encoder_out (N, U, J), lengths (N,); no hidden states.

        A streaming encoder hears silence behind the end of each waveform, as its blocks are always whole.
        """
        if self._streaming is not None:
            return self._in_chunks(self._streaming, waveforms, lengths)
        fbank, num_frames = self._features(waveforms, lengths)
        return EncoderOutput(*self._part(x=fbank, x_lens=num_frames), hidden_states=())

    def _in_chunks(
        self, streaming: OnnxStreamingEncoder, waveforms: Tensor, lengths: Tensor
    ) -> EncoderOutput:
        num_hidden = embedding_frames(fbank_length(lengths))  # at 50 Hz
        per_frame = 50 // self.frame_rate
        num_output = torch.div(num_hidden + per_frame - 1, per_frame, rounding_mode="floor")
        num_chunks = -(-2 * int(num_hidden.max()) // streaming.block_shift)
        num_frames = (num_chunks - 1) * streaming.block_shift + streaming.block_frames
        missing = max(0, num_frames * SAMPLE_RATE // 100 - waveforms.shape[1])
        silent = torch.arange(waveforms.shape[1]) >= lengths.unsqueeze(1)
        padded = F.pad(waveforms.masked_fill(silent, 0.0), (0, missing))
        fbank, _ = self._features(padded, torch.full_like(lengths, padded.shape[1]))
        state, chunks = streaming.initial_state(len(lengths)), []
        for index in range(num_chunks):
            start = index * streaming.block_shift
            chunk, state = streaming.step(fbank[:, start : start + streaming.block_frames], state)
            chunks.append(chunk)
        return EncoderOutput(torch.cat(chunks, dim=1), num_output, hidden_states=())


class _Decoder:
    def __init__(self, path: Path):
        self._part = OnnxPart(path)
        self.context_size = int(self._part.metadata["context_size"])
        self.vocab_size = int(self._part.metadata["vocab_size"])

    def __call__(self, labels: Tensor, pad: bool = False) -> Tensor:
        """labels (N, C) -> (N, 1, J)."""
        return self._part(y=labels)[0][:, None]


class _Joiner:
    def __init__(self, path: Path):
        self._part = OnnxPart(path)

    @staticmethod
    def encoder_proj(encoder_out: Tensor) -> Tensor:
        """The projection is in encoder.onnx already."""
        return encoder_out

    decoder_proj = encoder_proj

    def __call__(self, encoder_out: Tensor, decoder_out: Tensor, project_input: bool = False) -> Tensor:
        """(..., J) and (..., J) of broadcastable shapes -> (..., V)."""
        encoder_out, decoder_out = torch.broadcast_tensors(encoder_out, decoder_out)
        rows = {"encoder_out": encoder_out.flatten(0, -2), "decoder_out": decoder_out.flatten(0, -2)}
        return self._part(**rows)[0].unflatten(0, encoder_out.shape[:-1])


class OnnxTransducer:
    """A folder of ``export_transducer`` for the searches of the library.

    Args:
      folder: with encoder.onnx, decoder.onnx, joiner.onnx and tokens.txt.
      int8: use encoder.int8.onnx and joiner.int8.onnx.
    """

    blank_id = 0
    heads = ("transducer",)

    def __init__(self, folder: str | os.PathLike, int8: bool = False):
        folder = Path(folder)
        names = {name: eight_bit_name(name) if int8 else name for name in (ENCODER, JOINER)}
        self.encoder = _Encoder(folder / names[ENCODER])
        self.decoder = _Decoder(folder / DECODER)
        self.joiner = _Joiner(folder / names[JOINER])
        self.units = TokenTable(folder / TOKENS)
        if self.units.vocab_size != self.decoder.vocab_size:
            raise ValueError(
                f"{folder / TOKENS} holds {self.units.vocab_size} units, the model writes "
                f"{self.decoder.vocab_size}: these files are not of one export"
            )

    def parameters(self) -> Iterator[Tensor]:
        """One empty tensor on the CPU: where the model computes."""
        yield torch.zeros(0)


class TokenTable:
    """The units of tokens.txt: enough to write text, not to encode it."""

    blank_id = 0

    def __init__(self, path: str | os.PathLike):
        if not Path(path).is_file():
            raise ValueError(f"{path} does not exist: export the model first (spear_lib.bin.export_onnx)")
        pairs = [line.rsplit(" ", 1) for _, line in text_lines(path)]
        if [pair[-1] for pair in pairs] != [str(number) for number in range(len(pairs))]:
            raise ValueError(f"{path} must hold lines '<unit> <id>' with the ids 0, 1, 2, ... in order")
        self._units = [pair[0] for pair in pairs]
        self.vocab_size = len(self._units)

    def unit(self, unit_id: int) -> str:
        """How one unit is written."""
        return self._units[unit_id]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of unit ids; units in angle brackets (blank and the like) write nothing."""
        written = [self._units[id] for id in ids]
        text = "".join(unit for unit in written if not (unit.startswith("<") and unit.endswith(">")))
        return " ".join(text.replace(WORD_START, " ").split())


def is_onnx_folder(folder: str | os.PathLike) -> bool:
    """Whether ``folder`` holds an exported model."""
    return (Path(folder) / ENCODER).is_file()
