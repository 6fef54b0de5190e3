"""SUPERB's corpora in the layouts in which they are published (parts as s3prl 0.4.18 has them).

lhotse's recipes are not used: those of VoxCeleb and Speech Commands download lists, want files that SUPERB
does not need and know no parts for identification; that of Fluent reads Kaggle's layout; for the others there
is none.
"""

import hashlib
import re
import unicodedata
from pathlib import Path

from lhotse import SupervisionSegment

from spear_lib.corpora.benchmarks.common import (
    TEST,
    TRAIN,
    VALID,
    Labelled,
    Read,
    audio_below,
    clip_cut,
    lines_of,
    needed,
    recording_of,
    rows_of,
    share,
)
from spear_lib.data.audio import cut_of

# ---- VoxCeleb1: {dev,test}/wav/idNNNNN/VIDEO/NNNNN.wav, iden_split.txt, veri_test2.txt

TEST_SPEAKERS = range(10270, 10310)
TRIALS = ("veri_test2.txt", "voxceleb1_test_v2.txt", "veri_test.txt")


def _voxceleb_file(folder: Path, name: str) -> Path:
    for part in ("dev/wav", "test/wav", "wav", "."):
        if (folder / part / name).is_file():
            return folder / part / name
    raise ValueError(f"{folder} has no dev/wav/{name} (nor test/wav, wav): complete the corpus")


def _voxceleb_id(name: str) -> str:
    return "-".join(Path(name).with_suffix("").parts)


def voxceleb1_sid(folder: Path, read: Read) -> Labelled:
    """Identification: iden_split.txt says 1 train, 2 validation, 3 test of every file."""
    parts = {"1": TRAIN, "2": VALID, "3": TEST}
    for code, name in lines_of(folder / "iden_split.txt", 2, "VoxCeleb's list for identification"):
        speaker = name.split("/")[0]
        path = _voxceleb_file(folder, name)
        yield parts[code], clip_cut(path, _voxceleb_id(name), speaker, custom={"label": speaker})


def voxceleb1_asv(folder: Path, read: Read) -> Labelled:
    """Verification: trials of the 40 test speakers; all others train, those of iden_split's 2 validate."""
    listed = next((folder / name for name in TRIALS if (folder / name).is_file()), folder / TRIALS[0])
    trials = list(lines_of(listed, 3, "VoxCeleb's trials"))
    read.files["trials.txt"] = "".join(
        f"{same} {_voxceleb_id(one)} {_voxceleb_id(other)}\n" for same, one, other in trials
    )
    for code, name in lines_of(folder / "iden_split.txt", 2, "VoxCeleb's list for identification"):
        speaker = name.split("/")[0]
        if int(speaker[2:]) not in TEST_SPEAKERS:
            path = _voxceleb_file(folder, name)
            yield VALID if code == "2" else TRAIN, clip_cut(path, _voxceleb_id(name), speaker)
    for name in dict.fromkeys(name for _, *pair in trials for name in pair):
        yield TEST, clip_cut(_voxceleb_file(folder, name), _voxceleb_id(name), name.split("/")[0])


# ---- Speech Commands v1: speech_commands_v0.01/WORD/*.wav, speech_commands_test_set_v0.01/CLASS/*.wav

WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
UNKNOWN, SILENCE, NOISES = "_unknown_", "_silence_", "_background_noise_"
_MOST_PER_CLASS = 2**27 - 1


def _commands_part(name: str) -> str:
    """By the rule in the corpus's README: a hash of the speaker decides; its test part is another archive."""
    speaker = re.sub(r"_nohash_.*$", "", name)
    value = int(hashlib.sha1(speaker.encode()).hexdigest(), 16) % (_MOST_PER_CLASS + 1)
    percent = value * (100.0 / _MOST_PER_CLASS)
    return VALID if percent < 10 else ("" if percent < 20 else TRAIN)


def speech_commands_v1(folder: Path, read: Read) -> Labelled:
    """Twelve classes. Silence is the noise recordings in windows of 1 s, every tenth for validation (ours;
    s3prl takes each recording whole, in both parts)."""
    first = next((p for p in (folder / "speech_commands_v0.01", folder) if (p / NOISES).is_dir()), None)
    if first is None:
        raise ValueError(f"{folder} holds no speech_commands_v0.01 with {NOISES}: name the folder that does")
    for path in audio_below(first):
        word, part = path.parent.name, _commands_part(path.name)
        if word == NOISES:
            recording = recording_of(path)
            for second in range(int(recording.duration)):
                part = VALID if second % 10 == 9 else TRAIN
                name = f"{path.stem}-{second:03d}"
                yield part, clip_cut(path, name, custom={"label": SILENCE}, start=float(second), seconds=1.0)
        elif part and not path.is_relative_to(first / "speech_commands_test_set_v0.01"):
            label = word if word in WORDS else UNKNOWN
            yield part, clip_cut(path, f"{word}-{path.stem}", custom={"label": label})
    tests = next(
        (
            base / "speech_commands_test_set_v0.01"
            for base in (folder, folder.parent)
            if (base / "speech_commands_test_set_v0.01").is_dir()
        ),
        folder / "speech_commands_test_set_v0.01",
    )
    for path in audio_below(needed(tests, "the archive of the test set")):
        name = f"test-{path.parent.name}-{path.stem}"
        yield TEST, clip_cut(path, name, custom={"label": path.parent.name})


# ---- Fluent Speech Commands: data/{train,valid,test}_data.csv, wavs/speakers/*/*.wav


def fluent(folder: Path, read: Read) -> Labelled:
    """The label is action, object and location, each with its name, as "none" may come twice."""
    columns = ("path", "speakerId", "transcription", "action", "object", "location")
    for part in (TRAIN, VALID, TEST):
        for row in rows_of(folder / "data" / f"{part}_data.csv", columns):
            labels = [f"{kind}={row[kind]}" for kind in columns[3:]]
            path = folder / row["path"]
            yield part, clip_cut(path, path.stem, row["speakerId"], row["transcription"], {"label": labels})


# ---- IEMOCAP: Session{1..5}/dialog/EmoEvaluation/DIALOG.txt, sentences/wav/DIALOG/UTTERANCE.wav

EMOTIONS = {"neu": "neu", "hap": "hap", "exc": "hap", "ang": "ang", "sad": "sad"}
_EMOTION_LINE = re.compile(r"^\[[\d. -]+\]\t(\S+)\t(\w+)\t", re.MULTILINE)


def iemocap(folder: Path, read: Read) -> Labelled:
    """Four emotions, excited is happy. Session ``fold`` is tested; of the others a fifth validates."""
    sessions = range(1, 6)
    if read.fold not in sessions:
        raise ValueError(f"fold is {read.fold}: IEMOCAP has the sessions 1 to 5")
    for session in sessions:
        base = needed(folder / f"Session{session}")
        for table in sorted(needed(base / "dialog" / "EmoEvaluation").glob("*.txt")):
            for name, emotion in _EMOTION_LINE.findall(table.read_text(encoding="utf-8", errors="replace")):
                if emotion not in EMOTIONS:
                    continue
                part = VALID if share(name, "IEMOCAP validation") < 0.2 else TRAIN
                path = base / "sentences" / "wav" / table.stem / f"{name}.wav"
                cut = clip_cut(path, name, name.split("_")[0], custom={"label": EMOTIONS[emotion]})
                yield TEST if session == read.fold else part, cut


# ---- LibriMix

_MIX_PARTS = {TRAIN: ("train-100", "train"), VALID: ("dev",), TEST: ("test",)}


def _mixtures(folder: Path, mixture: str, sources: tuple[str, ...]) -> Labelled:
    """FOLDER/[wav16k/min/]{train-100,dev,test}/{mix_clean,s1,s2,...}/NAME.wav."""
    base = next(
        (p for p in (folder / "wav16k" / "min", folder / "wav16k" / "max", folder) if (p / "test").is_dir()),
        None,
    )
    if base is None:
        raise ValueError(
            f"{folder} is not laid out as LibriMix: expected wav16k/min/test/{mixture} and the like"
        )
    for part, names in _MIX_PARTS.items():
        inside = next((base / name for name in names if (base / name).is_dir()), base / names[0])
        for path in audio_below(inside / mixture):
            files = [str(inside / source / path.name) for source in sources]
            absent = next((file for file in files if not Path(file).is_file()), None)
            if absent:
                raise ValueError(f"{absent} is not there, the source of {path}: complete the corpus")
            yield part, clip_cut(path, f"{part}-{path.stem}", custom={"sources": files})


def librimix_ss(folder: Path, read: Read) -> Labelled:
    """Two speakers without noise: mix_clean, s1, s2."""
    return _mixtures(folder, "mix_clean", ("s1", "s2"))


def librimix_se(folder: Path, read: Read) -> Labelled:
    """One speaker and noise: mix_single, s1."""
    return _mixtures(folder, "mix_single", ("s1",))


def librimix_sd(folder: Path, read: Read) -> Labelled:
    """Kaldi folders as SUPERB makes them of LibriMix: {train,dev,test}/wav.scp, segments, utt2spk."""
    for part, name in ((TRAIN, "train"), (VALID, "dev"), (TEST, "test")):
        data = needed(folder / name, "Kaldi folders train, dev and test")
        speakers = {words[0]: words[1] for words in lines_of(data / "utt2spk", 2, "speakers")}
        segments: dict[str, list[SupervisionSegment]] = {}
        for utterance, recording, start, end in lines_of(data / "segments", 4, "segments"):
            if utterance not in speakers:
                raise ValueError(f"{data / 'utt2spk'} has no speaker of {utterance}, which segments names")
            length = float(end) - float(start)
            segments.setdefault(recording, []).append(
                SupervisionSegment(utterance, recording, float(start), length, speaker=speakers[utterance])
            )
        for name, source in ((words[0], words[1]) for words in lines_of(data / "wav.scp", 2, "audio")):
            path = Path(source) if Path(source).is_absolute() else data / source
            cut = cut_of(recording_of(path), f"{part}-{name}")
            cut.supervisions = segments.get(name, [])
            yield part, cut


# ---- Voicebank-DEMAND: {noisy,clean}_{trainset_28spk,testset}_wav/pNNN_NNN.wav

VALID_SPEAKERS = ("p226", "p287")


def voicebank_demand(folder: Path, read: Read) -> Labelled:
    """Files of two training speakers validate (ours, as is common)."""
    for source, part in (("trainset_28spk", TRAIN), ("testset", TEST)):
        clean = needed(folder / f"clean_{source}_wav")
        for path in audio_below(folder / f"noisy_{source}_wav"):
            if not (clean / path.name).is_file():
                raise ValueError(f"{clean / path.name} is not there, the clean speech of {path}")
            speaker = path.stem.split("_")[0]
            own = VALID if part == TRAIN and speaker in VALID_SPEAKERS else part
            yield own, clip_cut(path, path.stem, speaker, custom={"sources": [str(clean / path.name)]})


# ---- Audio SNIPS: all.iob.snips.txt, {train,valid,test}/*.wav

SNIPS_SPEAKERS = {
    TRAIN: ("Ivy", "Joanna", "Joey", "Justin", "Kendra", "Kimberly", "Matthew", "Salli"),
    VALID: ("Aditi", "Amy", "Geraint", "Nicole"),
    TEST: ("Brian", "Emma", "Raveena", "Russell"),
}
_WORDS_OF_SNIPS = {"楽園追放": "EXPELLED", "官方杂志": "", "–": "-", "&": " AND "}
_STROKES = str.maketrans("ØÐ", "OD")
_PUNCTUATION = set("?!.,;-–…")


def _plain(text: str) -> str:
    """Capitals without accents; quotation marks are spaces."""
    letters = unicodedata.normalize("NFKD", text.upper().replace('"', " ").replace("Æ", "A"))
    return "".join(one for one in letters if not unicodedata.combining(one)).translate(_STROKES)


def with_slots(words: list[str], tags: list[str]) -> str:
    """Words and their tags (O, B-x, I-x) as "B-x word word E-x"."""
    found: list[str] = []
    inside = ""
    for word, tag in zip(words, tags, strict=True):
        kind = tag[2:] if tag[:2] in ("B-", "I-") else ""
        if inside and (kind != inside or tag.startswith("B-")):
            found.append(f"E-{inside}")
            inside = ""
        if kind and not inside:
            found.append(f"B-{kind}")
            inside = kind
        found.append(word)
    return " ".join([*found, f"E-{inside}"] if inside else found)


def snips(folder: Path, read: Read) -> Labelled:
    """Lines "ID BOS words EOS\\tO tags intent"; synthetic speakers of Amazon Polly, by part."""
    texts: dict[str, tuple[list[str], list[str]]] = {}
    path = needed(folder / "all.iob.snips.txt")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        name, _, rest = line.strip().partition(" ")
        words, _, tags = rest.partition("\t")
        if not name:
            continue
        for old, new in _WORDS_OF_SNIPS.items():
            words = words.replace(old, new)
        said, marked = _plain(words).split()[1:-1], tags.split()[1:-1]
        if len(said) != len(marked):
            raise ValueError(f"{path}, line {number}: {len(said)} words and {len(marked)} tags of {name}")
        kept = [pair for pair in zip(said, marked) if pair[0] not in _PUNCTUATION]
        texts[name] = [word for word, _ in kept], [tag for _, tag in kept]
    for part, speakers in SNIPS_SPEAKERS.items():
        for audio in audio_below(folder / part):
            speaker = audio.stem.split("-")[0]
            if speaker in speakers and audio.stem in texts:
                words, tags = texts[audio.stem]
                custom = {"slots": with_slots(words, tags)}
                yield part, clip_cut(audio, audio.stem, speaker, " ".join(words), custom)


# ---- QUESST 2014: scoring/language_key_*.lst, scoring/groundtruth_quesst14_*/*.rttm, and audio


def quesst14(folder: Path, read: Read) -> Labelled:
    """The English part: documents are "train", development queries "valid", evaluation queries "test".
    ``relevance.tsv`` says which query is in which document (LEXEME lines of the ground truth)."""
    rows = ["query\tdocument"]
    for truth in sorted(needed(folder / "scoring").glob("groundtruth_quesst14_*/*.rttm")):
        for words in lines_of(truth, 6, "ground truth"):
            if words[0] == "LEXEME":
                rows.append(f"{words[5]}\t{words[1]}")
    if len(rows) == 1:
        raise ValueError(f"{folder / 'scoring'} has no groundtruth_quesst14_*/*.rttm with LEXEME lines")
    read.files["relevance.tsv"] = "\n".join(dict.fromkeys(rows)) + "\n"
    for part, name in ((TRAIN, "utterances"), (VALID, "dev"), (TEST, "eval")):
        for listed, language in lines_of(folder / "scoring" / f"language_key_{name}.lst", 2, "languages"):
            if language == "nnenglish":
                # Lists begin with the name of a folder that the archive has not.
                path = folder / re.sub(r"^.*?/", "", listed)
                yield part, clip_cut(path, path.stem, custom={"label": path.stem}, text=path.stem)
