"""What users bring, as plain values: hypothesis draws a case, JSON keeps it, and ``fuzzing.commands`` makes
its files and runs its command."""

from hypothesis import strategies as st

# Container and encoding as libsndfile writes them; "" is the container's own encoding.
FORMATS = [
    *[("wav", subtype) for subtype in ("PCM_U8", "PCM_16", "PCM_24", "FLOAT", "DOUBLE", "ULAW", "IMA_ADPCM")],
    *[("flac", "PCM_16"), ("flac", "PCM_24"), ("ogg", "VORBIS"), ("ogg", "OPUS"), ("mp3", "MPEG_LAYER_III")],
    *[("aiff", "PCM_16"), ("au", "FLOAT"), ("caf", "PCM_16"), ("w64", "PCM_16"), ("wav", "WAVEX")],
]
RATES = [8000, 11025, 16000, 22050, 44100, 48000, 192000]
LENGTHS = st.one_of(st.integers(0, 500), st.integers(500, 40000))
NAMES = ["a", "b c", "ü", "日本", "x,y", "p[1]", "q#1", "t: u", "'", "-v", "._w", "%d", "A.B"]
ODD_TEXT = [
    "\u2028",
    "\u0085",
    "\x0c",
    "\t",
    "\u00a0",
    "\r",
    "\ufeff",
    "\0",
    "▁",
    "<blk>",
    "’",
    "é",
    "𝄞",
    "\x1b",
]
ENCODINGS = ["utf-8", "utf-8-sig", "latin-1", "utf-16", "cp1252", "utf-8 with a bad byte"]
WORDS = st.lists(st.sampled_from(["ONE", "TWO", "it's", "3", *ODD_TEXT]), max_size=6).map(" ".join)


def patches(size: int) -> st.SearchStrategy:
    """Bytes to overwrite, (offset, value), mostly in a header."""
    offsets = st.one_of(st.integers(0, 64), st.integers(0, size))
    return st.lists(st.tuples(offsets, st.sampled_from([0, 1, 127, 128, 255])).map(list), max_size=4)


@st.composite
def audio_files(draw) -> dict:
    """One file: format, rate, channels, length, what it holds, and what happened to its bytes."""
    ending, subtype = draw(st.sampled_from(FORMATS))
    return {
        "name": draw(st.sampled_from(NAMES)),
        "ending": ending,
        "subtype": subtype,
        "rate": draw(st.sampled_from(RATES)),
        "channels": draw(st.sampled_from([1, 1, 1, 2, 3, 8])),
        "samples": draw(LENGTHS),
        "content": draw(st.sampled_from(["noise", "zeros", "nan", "inf", "spike", "int16", "cancel"])),
        "patches": draw(st.one_of(st.just([]), patches(2000))),
        "keep": draw(st.one_of(st.none(), st.floats(0.0, 1.0))),
    }


AUDIO = st.fixed_dictionaries(
    {
        "kind": st.just("audio"),
        "files": st.lists(audio_files(), min_size=1, max_size=3, unique_by=lambda file: file["name"]),
    }
)

# A value that pandas, a spreadsheet or a hand may leave in a field of a manifest.
VALUES = st.one_of(
    st.sampled_from(
        [None, True, 0, -1, 1.5, 1e9, 1e400, -1e400, "", "x", "2.0", [], {}, [0], [None], {"a": 1}]
    ),
    st.sampled_from(NAMES),
)
CUT_PATHS = [
    *[
        "id",
        "type",
        "start",
        "duration",
        "channel",
        "supervisions",
        "recording",
        "custom",
        "extra",
        "features",
    ],
    *["supervisions.0." + name for name in ("id", "start", "duration", "text", "speaker", "custom", "extra")],
    *["recording." + name for name in ("id", "sources", "sampling_rate", "num_samples", "duration")],
    *["recording.channel_ids", "recording.transforms", "supervisions.0", "supervisions.0.alignment"],
    *["recording.sources.0." + name for name in ("type", "channels", "source", "extra")],
]
CHANGES = st.tuples(st.integers(0, 3), st.sampled_from(CUT_PATHS), VALUES, st.booleans()).map(list)
MANIFEST = st.fixed_dictionaries(
    {
        "kind": st.just("manifest"),
        "command": st.sampled_from(
            ["train_units", "train_lm", "select_cuts", "extract_embeddings", "finetune_asr", "decode"]
        ),
        "changes": st.lists(
            st.tuples(st.integers(0, 3), st.sampled_from(CUT_PATHS), VALUES, st.booleans()).map(list),
            max_size=3,
        ),
        "texts": st.lists(WORDS, max_size=2),
        "patches": st.one_of(st.just([]), patches(3000)),
        "packed": st.booleans(),
        "encoding": st.sampled_from(["utf-8", *ENCODINGS]),
    }
)

LINES = st.lists(
    st.one_of(
        st.builds("100-1-{:04d} {}".format, st.integers(0, 3), WORDS),
        st.sampled_from(["", " ", "100-1-0000", "x", "100-1", "-", "100-1-0009 GONE", "1-2-3-4-5 A"]),
    ),
    max_size=6,
)
TRANSCRIPTS = st.fixed_dictionaries(
    {
        "kind": st.just("transcripts"),
        "lines": LINES,
        "encoding": st.sampled_from(ENCODINGS),
        "newline": st.sampled_from(["\n", "\r\n", "\n\n"]),
        "companion": st.booleans(),
    }
)

CELLS = st.one_of(
    st.sampled_from(["", "a", "0", "1", "0.000", "10.000", "nan", '"', "#", ",", "\t", "train"]), WORDS
)
ROWS = st.lists(st.lists(CELLS, max_size=6), max_size=5)
TABLES = st.fixed_dictionaries(
    {
        "kind": st.just("table"),
        "table": st.sampled_from(
            ["classes", "audioset", "vggsound", "freesound", "music4all", "mtg_jamendo", "voxpopuli", "nemo"]
            + ["gigaspeech", "libriheavy", "ids", "arpa", "text"]
        ),
        "header": st.booleans(),
        "rows": ROWS,
        "encoding": st.sampled_from(ENCODINGS),
        "newline": st.sampled_from(["\n", "\r\n"]),
    }
)

CONFIGURATIONS = ["extends: .", "a: [", "- 1", "&a [*a]", "data: 1", "data: {x: 1}", "extends: some.yaml"]
OPTIONS = st.fixed_dictionaries(
    {
        "kind": st.just("options"),
        "command": st.integers(0, 10**6),
        "options": st.lists(
            st.tuples(
                st.integers(0, 10**6),
                st.one_of(st.sampled_from(NAMES + ODD_TEXT), VALUES.map(repr), st.text(max_size=8)),
                st.booleans(),
            ).map(list),
            max_size=4,
        ),
        "required": st.booleans(),
        "config": st.one_of(st.none(), st.text(max_size=40), st.sampled_from(CONFIGURATIONS)),
    }
)

ALL = {"audio": AUDIO, "manifest": MANIFEST, "transcripts": TRANSCRIPTS, "table": TABLES, "options": OPTIONS}
