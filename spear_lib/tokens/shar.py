"""Tokens (and audio) of cuts as lhotse Shar archives, for object stores (ours, on lhotse's tar writers).

lhotse's own SharWriter is not used for tokens. It asks for frames by time, which loses the last frame of some
whole cuts; it writes the shape of the whole array beside the frames of a truncated cut; and without audio it
resets the cut's start but leaves its recording whole, so that cut, audio and tokens no longer agree. Here an
archive holds exactly the frames of ``load_tokens``, a field that says so, and a cut that starts where its
tokens and its audio do.
"""

import io
import json
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from lhotse.array import Array, TemporalArray
from lhotse.cut import Cut
from lhotse.shar.utils import to_shar_placeholder
from lhotse.shar.writers import AudioTarWriter, JsonlShardWriter, TarWriter
from lhotse.utils import fastcopy

from spear_lib.tokens.fields import facts_key, load_tokens, token_facts

AUDIO_FORMATS = ("", "flac", "wav")
TRAVELLING_FACTS = ("teacher_id", "first_frame_center_ms", "codebook_size")
"""What a token field says of itself beside its quantiser, frame rate and shape."""


def export_shar(
    cuts: Iterable[Cut], folder: str | Path, fields: list[str], audio: str = "", shard_cuts: int = 1000
) -> int:
    """Write cuts with their tokens as Shar: cuts.*.jsonl.gz, <field>.*.tar and, if wanted, recording.*.tar.

    Args:
      cuts: whole cuts or windows of them.
      fields: token fields to write; other data of the cuts is left out.
      audio: flac or wav: the samples of each cut travel too, and it starts at 0 of them; empty: the cuts go
        on pointing to their recordings.
      shard_cuts: cuts per archive.

    Returns:
      how many cuts.

    Raises:
      ValueError: a folder that holds archives already, an unknown audio format, a cut without usable tokens,
        or without a single channel where audio is wanted.
    """
    folder = Path(folder)
    if audio not in AUDIO_FORMATS:
        raise ValueError(f"audio is {audio!r}: use flac or wav, or leave it empty for tokens alone")
    if any(folder.glob("cuts.*")):
        raise ValueError(f"{folder} holds archives already: delete it or choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    with ExitStack() as stack:
        lines = stack.enter_context(JsonlShardWriter(f"{folder}/cuts.%06d.jsonl.gz", shard_cuts))
        tars = {
            name: stack.enter_context(TarWriter(f"{folder}/{name}.%06d.tar", shard_cuts)) for name in fields
        }
        sound = None
        if audio:
            sound = stack.enter_context(AudioTarWriter(f"{folder}/recording.%06d.tar", shard_cuts, audio))
        for cut in cuts:
            tokens = {name: load_tokens(cut, name) for name in fields}
            cut = _with_audio(cut, sound) if sound is not None else cut
            custom = {
                name: value
                for name, value in (cut.custom or {}).items()
                if not isinstance(value, Array | TemporalArray)
            }
            for name, values in tokens.items():
                # Away from its store a field must say itself what aligning and scoring it takes.
                facts = token_facts(cut, name)
                custom[facts_key(name)] = {key: facts[key] for key in TRAVELLING_FACTS if key in facts}
                custom[name] = _write_tokens(tars[name], cut, values, cut.custom[name].frame_shift)
            lines.write(fastcopy(cut, custom=custom, features=None))
            count += 1
    return count


def _with_audio(cut: Cut, sound: AudioTarWriter) -> Cut:
    """Write the cut's own samples; the cut that starts at 0 of them."""
    samples = cut.load_audio()
    if isinstance(cut.channel, list):
        raise ValueError(
            f"cut {cut.id} has channels {cut.channel}: export cuts of one channel (to_mono), or without audio"
        )
    recording = to_shar_placeholder(cut.recording, cut)
    recording = fastcopy(recording, channel_ids=[cut.channel])
    recording.sources[0].channels = [cut.channel]
    sound.write(cut.id, samples, cut.sampling_rate, manifest=recording)
    return fastcopy(cut, start=0.0, recording=recording)


def _write_tokens(tar: TarWriter, cut: Cut, tokens: np.ndarray, frame_shift: float) -> TemporalArray:
    """Write the frames and a manifest of exactly these; the manifest, which the cut carries too."""
    field = TemporalArray(
        array=Array(storage_type="shar", storage_path="", storage_key="", shape=list(tokens.shape)),
        temporal_dim=0,
        frame_shift=frame_shift,
        start=cut.start,
    )
    data = io.BytesIO()
    np.save(data, tokens, allow_pickle=False)
    data.seek(0)
    tar.write(f"{cut.id}.npy", data)
    manifest: dict[str, Any] = field.to_dict()
    tar.write(f"{cut.id}.json", io.BytesIO(json.dumps(manifest).encode()), count=False)
    return field
