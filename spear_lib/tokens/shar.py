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
from lhotse.cut import Cut, MonoCut
from lhotse.shar.utils import to_shar_placeholder
from lhotse.shar.writers import AudioTarWriter, JsonlShardWriter, TarWriter
from lhotse.utils import fastcopy

from spear_lib.data.audio import to_mono
from spear_lib.tokens.fields import facts_key, load_tokens, token_facts

AUDIO_FORMATS = ("", "flac", "wav")
TRAVELLING_FACTS = ("teacher_id", "first_frame_center_ms", "codebook_size", "channels")
"""What a token field says of itself beside its quantiser, frame rate and shape."""


def export_shar(
    cuts: Iterable[Cut], folder: str | Path, fields: list[str], audio: str = "", shard_cuts: int = 1000
) -> int:
    """Write cuts with their tokens as Shar: cuts.*.jsonl.gz, <field>.*.tar and, if wanted, recording.*.tar.

    Args:
      cuts: whole cuts or windows of them.
      fields: token fields to write; other data of the cuts is left out.
      audio: flac or wav: the samples of each cut travel too, made mono as for its tokens, and it starts at 0
        of them; empty: the cuts go on pointing to their recordings.
      shard_cuts: cuts per archive.

    Returns:
      how many cuts.

    Raises:
      ValueError: a folder that holds archives already, an unknown audio format, a cut without usable tokens.
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
            if sound is not None:
                channels = token_facts(cut, fields[0]).get("channels", "mean") if fields else "mean"
                cut = _with_audio(cut, sound, channels)
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


def _with_audio(cut: Cut, sound: AudioTarWriter, channels: str) -> Cut:
    """Write the cut's own samples, of one channel; the cut that starts at 0 of them."""
    samples, _ = to_mono(cut.load_audio(), channels)
    channel = cut.channel[0] if isinstance(cut.channel, list) else cut.channel
    recording = to_shar_placeholder(cut.recording, cut)
    recording = fastcopy(recording, channel_ids=[channel])
    recording.sources = [fastcopy(recording.sources[0], channels=[channel])]
    sound.write(cut.id, samples[None], cut.sampling_rate, manifest=recording)
    said = [fastcopy(each, channel=channel) for each in cut.supervisions]
    return MonoCut(cut.id, 0.0, cut.duration, channel, said, recording=recording, custom=cut.custom)


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
