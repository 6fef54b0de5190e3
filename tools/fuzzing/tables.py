"""Tables and lists of ``fuzzing.cases`` in the place where a command looks for them."""

import gzip
import json
from pathlib import Path

import soundfile

from tools.fuzzing.commands import RATE, Broken, call, command, encode, noise, script

# The first lines, and two rows that are as they should be.
TABLES = {
    "classes": (
        "AudioSet/class_labels_indices.csv",
        ",",
        ["index", "mid", "display_name"],
        [["0", "a", "A"]],
    ),
    "audioset": ("AudioSet/balanced_train_segments.csv", ", ", [], [["a", "0.000", "10.000", '"a"']]),
    "vggsound": ("vggsound.csv", ",", [], [["a", "0", "a", "train"]]),
    "freesound": (
        "FSD50K.ground_truth/dev.csv",
        ",",
        ["fname", "labels", "mids", "split"],
        [["a", "A", "a", "train"]],
    ),
    "music4all": ("id_genres.csv", "\t", ["id", "genres"], [["a", "rock"]]),
    "mtg_jamendo": (
        "data/autotagging.tsv",
        "\t",
        ["TRACK_ID", "ARTIST_ID", "ALBUM_ID", "PATH", "DURATION", "TAGS"],
        [["t", "r", "l", "14/a.mp3", "1.0", "genre---rock"]],
    ),
    "voxpopuli": (
        "asr_en.tsv.gz",
        "|",
        ["session_id", "id_", "start_time", "end_time", "speaker_id", "gender", "original_text"]
        + ["normed_text", "split"],
        [["a", "1", "0.0", "0.5", "s", "m", "A", "a", "train"]],
    ),
    "nemo": ("a.jsonl", ", ", [], [['{"audio_filepath": "a.wav"', '"duration": 0.5', '"text": "A"}']]),
    "gigaspeech": ("GigaSpeech.json", ",", ['{"audios": ['], [["{}]}"]]),
    "libriheavy": ("libriheavy_cuts_small.jsonl.gz", ",", [], [['{"id": "a"', '"type": "MonoCut"}']]),
    "ids": ("ids.txt", " ", [], [["c0"], ["c1"]]),
    "arpa": (
        "lm.arpa",
        "\t",
        ["\\data\\\nngram 1=3\n\n\\1-grams:"],
        [["-1", "<s>"], ["-1", "</s>"], ["-1", "A"], ["\\end\\"]],
    ),
    "text": ("text.txt", " ", [], [["A", "B"], ["B", "A"]]),
}
CORPORA = {
    "voxpopuli": "voxpopuli_asr",
    "nemo": "yodas_granary",
    "gigaspeech": "gigaspeech",
    "libriheavy": "libriheavy",
}
CLIPS = ("vggsound", "freesound", "music4all", "mtg_jamendo")


def run_table(workplace, case: dict, place: Path) -> int:
    """Writes the table of a case and runs the command that reads it; its status."""
    kind = case["table"]
    name, separator, header, good = TABLES[kind]
    lines = [separator.join(header)] if case["header"] and header else []
    lines += [separator.join(row) for row in good] if case["header"] else []
    lines += [separator.join(row) for row in case["rows"]]
    if kind == "arpa" and case["header"]:  # what is drawn stands before the end
        lines = [line for line in lines if line != "\\end\\"] + ["\\end\\"]
    content = encode(case["newline"].join(lines) + case["newline"], case["encoding"])
    path = place / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    soundfile.write(place / "a.wav", noise(1, 8000), RATE)
    if kind in ("classes", "audioset"):
        return _audioset(place, kind)
    if kind in CLIPS:
        return _clips(kind, place)
    if kind in CORPORA:
        return _corpus(CORPORA[kind], place)
    if kind == "ids":
        arguments = ("--cuts", workplace.good, "--ids", path, "--output_cuts", place / "out.jsonl")
        seen = call(command("select_cuts"), *arguments)
        if seen.status == 0 and case["encoding"] == "utf-8":
            wanted = {line.split()[0] for line in "\n".join(lines).split("\n") if line.split()}
            chosen = (place / "out.jsonl").read_text().count("\n")
            if chosen != len(wanted):
                raise Broken(f"{len(wanted)} ids are listed and {chosen} cuts chosen")
        return seen.status
    option = "--arpa" if kind == "arpa" else "--text"
    value = path if kind == "arpa" else json.dumps([str(path)])
    return call(command("train_lm"), option, value, "--output_dir", place / "out", "--order", 2).status


def _audioset(place: Path, kind: str) -> int:
    corpus = place / "AudioSet"
    for name in ("balanced_train_segments.csv", "eval_segments.csv"):
        if not (corpus / name).exists():
            rows = [f'{name[0]}{number}, 0.000, 10.000, "a"\n' for number in range(2)]
            (corpus / name).write_text("".join(rows))
    if kind != "classes":
        (corpus / "class_labels_indices.csv").write_text("index,mid,display_name\n0,a,A\n")
    for name in ("a", "b0", "b1", "e0", "e1"):
        soundfile.write(corpus / f"{name}.wav", noise(1, 8000), RATE)
    arguments = ("--corpus-dir", place, "--output", place / "out", "--num-jobs", 1)
    limits = ("--max-missing-fraction", 1, "--max-bad-fraction", 1)
    return call(script("audioset", "prepare_manifests"), *arguments, *limits).status


def _clips(kind: str, place: Path) -> int:
    """The readers that no recipe uses yet, as adding.md says to use them."""
    from spear_lib.corpora.clip_tables import read_clips
    from spear_lib.corpora.labelled_clips import ClipFiles, ClipProblems, clip_cuts
    from spear_lib.data.manifests import save_cuts

    if kind == "freesound":
        (place / "FSD50K.ground_truth" / "eval.csv").write_text("fname,labels,mids\na,A,a\n")
    seen_clips, kept, problems = 0, 0, ClipProblems(1.0, 1.0)

    def main(argv: list[str]) -> None:
        nonlocal seen_clips, kept
        clips = list(read_clips(kind, argv[0]))
        seen_clips = len(clips)
        kept = save_cuts(clip_cuts(clips, ClipFiles(argv[0]), problems), place / "out.jsonl")

    seen = call(main, place)
    counted = kept + problems.missing.num_bad + problems.other.num_bad
    if seen.status == 0 and counted != seen_clips:
        raise Broken(f"{seen_clips} clips of the table became {kept} and {counted - kept} problems")
    return seen.status


def _corpus(corpus: str, place: Path) -> int:
    from spear_lib.corpora.speech_corpora import read_speech_corpus
    from spear_lib.data.manifests import save_cuts
    from spear_lib.data.problems import Problems

    if corpus.startswith("voxpopuli"):
        folder = place / "raw_audios" / "en" / "2020"
        folder.mkdir(parents=True)
        soundfile.write(folder / "a.ogg", noise(1, 16000), RATE)
    (place / "librilight").mkdir(exist_ok=True)

    def main(argv: list[str]) -> None:
        save_cuts(read_speech_corpus(corpus, argv[0], Problems(1.0, "cuts")), place / "out.jsonl")

    return call(main, place).status
