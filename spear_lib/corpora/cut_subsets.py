"""Choosing a part of a labelled set: so many hours over all its speakers, or given utterances (ours)."""

from collections import defaultdict
from pathlib import Path

from lhotse.cut import Cut

from spear_lib.data.manifests import Manifest
from spear_lib.data.references import speaker
from spear_lib.runtime import keyed_random
from spear_lib.runtime.text_files import text_lines
from spear_lib.runtime.walking import files_below


def select_hours(manifest: Manifest, hours: float, seed: int = 0) -> list[Cut]:
    """About ``hours`` of cuts, as equally over the speakers as their audio allows, in the manifest's order.

    The speakers take turns, in an order drawn by ``seed``; whoever has least so far takes a drawn cut. The
    last cut that fits is the last, so the sum is at most ``hours``. A cut's place in its speaker's order
    depends on seed and cut alone: more hours hold all cuts of fewer hours, but for the last round.

    Raises:
      ValueError: not positive, or more than there is.
    """
    available = float(manifest.durations.sum()) / 3600
    if not 0 < hours <= available:
        raise ValueError(
            f"{hours:g} hours are wanted, and the set has {available:.3f}: ask for 0 to that "
            "(in a recipe: labelled_subsets in local/corpus.sh)"
        )
    cuts = [manifest[position] for position in range(len(manifest))]
    waiting: dict[str, list[int]] = defaultdict(list)
    for position, cut in enumerate(cuts):
        waiting[speaker(cut)].append(position)
    for positions in waiting.values():
        positions.sort(key=lambda position: keyed_random.key("select_cuts", seed, cuts[position].id))
    taken = dict.fromkeys(
        sorted(waiting, key=lambda name: keyed_random.key("select_speaker", seed, name)), 0.0
    )
    chosen, left = [], hours * 3600
    while waiting:
        name = min((name for name in taken if name in waiting), key=taken.get)
        position = waiting[name].pop()
        if not waiting[name]:
            del waiting[name]
        if cuts[position].duration > left:
            break
        chosen.append(position)
        taken[name] += cuts[position].duration
        left -= cuts[position].duration
    if not chosen:
        raise ValueError(f"{hours:g} hours are less than one cut of the set: ask for more")
    return [cuts[position] for position in sorted(chosen)]


def select_ids(manifest: Manifest, source: str) -> list[Cut]:
    """The cuts whose ids a text file lists (first word of each line), or by which a folder's audio is named.

    Raises:
      ValueError: no such file or folder, no id in it, an id that the set does not have.
    """
    path = Path(source)
    if path.is_dir():
        wanted = {Path(file).stem for file in files_below(path, ".flac", ".wav")}
    elif path.exists():  # a file, or a pipe
        wanted = {line.split()[0] for _, line in text_lines(path)}
    else:
        raise ValueError(f"{path} does not exist: give a text file of utterance ids, or a folder of audio")
    places = {id: position for position, id in enumerate(manifest.ids)}
    missing = sorted(wanted - places.keys())
    if missing or not wanted:
        example = f", for example {missing[0]}" if missing else ""
        raise ValueError(
            f"{len(missing)} of the {len(wanted)} utterances of {path} are not in the set{example}: is it "
            "the list of this corpus, and are all its training parts there?"
        )
    return [manifest[position] for position in sorted(places[id] for id in wanted)]
