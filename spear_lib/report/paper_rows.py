"""The paper's rows that stand beside results of benchmarks (paper Tables 13, 14, 16), as they are printed.

``docs/paper_values.csv`` holds all of them; a test compares the two.
"""

ROWS = ("FBANK", "WavLM Large", "SPEAR_s Base", "SPEAR_s+a Base", "SPEAR_s+a Large")
"""Models that are shown; HEAR (Table 16, final layer) has no FBANK."""

PAPER: dict[str, tuple[str, tuple[float | None, ...]]] = {
    # column: (table, a value for each of ROWS)
    "PR PER": ("Table 13", (82.01, 3.06, 3.34, 3.84, 3.08)),
    "ASR WER": ("Table 13", (23.18, 3.44, 3.43, 3.79, 3.39)),
    "KS Acc": ("Table 13", (8.63, 97.86, 97.50, 97.58, 97.92)),
    "QbE MTWV": ("Table 13", (0.0058, 0.0886, 0.0772, 0.0801, 0.0712)),
    "IC Acc": ("Table 13", (9.10, 99.31, 99.17, 98.05, 99.40)),
    "SF F1": ("Table 13", (69.64, 92.21, 90.96, 90.54, 92.07)),
    "SID Acc": ("Table 14", (0.0, 95.49, 90.5, 90.26, 95.19)),
    "SV EER": ("Table 14", (9.56, 3.77, 3.77, 3.85, 3.30)),
    "SD DER": ("Table 14", (10.05, 3.24, 2.93, 3.0, 2.31)),
    "ER Acc": ("Table 14", (35.39, 70.62, 69.14, 69.24, 71.66)),
    "SE PESQ": ("Table 14", (2.55, 2.70, 2.64, 2.67, 2.73)),
    "SS SI-SDRi": ("Table 14", (9.23, 11.19, 11.32, 11.39, 11.60)),
    "D16": ("Table 16", (None, 85.1, 92.0, 93.5, 93.8)),
    "ESC": ("Table 16", (None, 68.6, 74.8, 83.8, 85.1)),
    "FSD": ("Table 16", (None, 40.1, 43.4, 49.9, 51.4)),
    "LC": ("Table 16", (None, 70.3, 66.5, 71.9, 76.2)),
    "NS-5": ("Table 16", (None, 23.0, 36.8, 64.6, 64.8)),
    "SC-5": ("Table 16", (None, 94.8, 95.9, 96.9, 97.5)),
}


def paper_values(column: str) -> dict[str, float]:
    """Model -> what the paper prints in ``column``.

    Raises:
      ValueError: no such column.
    """
    if column not in PAPER:
        raise ValueError(f"paper is {column!r}: the columns that can stand beside are {', '.join(PAPER)}")
    return {row: value for row, value in zip(ROWS, PAPER[column][1]) if value is not None}
