"""What the units of an encoder say about phones: PNMI and purities on hand-timed phones, by layer.

    python tools/studies/phone_units.py --encoder exp/pretrain/encoder --phones CORPORA/timit_nltk \\
        --output units.json

For a SpidR encoder the units of its codebooks; for every layer of any encoder, for random weights and for
log-mel features, k-means of 64 clusters trained on the same recordings. CORPORA/timit_nltk holds
``utterances.tsv`` and ``phones.tsv`` (utterance, phone, first and last sample). A frame has the phone at its
centre; frames outside of all phones are left out.
"""

import argparse
import copy
import csv
from pathlib import Path

import numpy as np
import torch

from spear_lib.encoders import load_encoder
from spear_lib.encoders.kinds import build_encoder
from spear_lib.encoders.spidr import SpidrEncoder
from spear_lib.features.fbank import FbankExtractor
from spear_lib.runtime.files import write_json

CLUSTERS, ITERATIONS, SAMPLE_RATE = 64, 30, 16000


def phone_scores(phones: np.ndarray, units: np.ndarray) -> dict[str, float]:
    """PNMI (mutual information over the entropy of phones) and purities of frames (T,)."""
    joint = np.zeros((phones.max() + 1, units.max() + 1))
    np.add.at(joint, (phones, units), 1.0)
    joint /= joint.sum()
    of_phones, of_units = joint.sum(1), joint.sum(0)
    present = joint > 0
    outer = np.outer(of_phones, of_units)
    information = (joint[present] * np.log(joint[present] / outer[present])).sum()
    entropy = -(of_phones[of_phones > 0] * np.log(of_phones[of_phones > 0])).sum()
    shares = of_units[of_units > 0]
    return {
        "pnmi": float(information / entropy),
        "phone_purity": float(joint.max(0).sum()),
        "cluster_purity": float(joint.max(1).sum()),
        "perplexity": float(np.exp(-(shares * np.log(shares)).sum())),
        "active": int((of_units > 0).sum()),
    }


def kmeans(frames: np.ndarray, seed: int) -> np.ndarray:
    """Cluster numbers (T,) of frames (T, D), normalised per channel."""
    random = np.random.default_rng(seed)
    x = torch.from_numpy((frames - frames.mean(0)) / (frames.std(0) + 1e-5)).float()
    centres = x[torch.from_numpy(random.choice(len(x), CLUSTERS, replace=False))]
    for _ in range(ITERATIONS):
        labels = torch.cdist(x, centres).argmin(1)
        one_hot = torch.nn.functional.one_hot(labels, CLUSTERS).float()
        counts = one_hot.sum(0)
        centres = torch.where(
            (counts > 0).unsqueeze(1), (one_hot.t() @ x) / counts.clamp(min=1).unsqueeze(1), centres
        )
    return labels.numpy()


def read(folder: Path) -> list[tuple[torch.Tensor, list[tuple[int, int, str]]]]:
    """Waveforms (N,) with their phones."""
    import soundfile

    tables = [folder / "utterances.tsv", folder / "phones.tsv"]
    for path in tables:
        if not path.is_file():
            raise SystemExit(f"error: there is no {path}: give the folder of hand-timed phones as --phones")
    utterances, phones = (
        list(csv.DictReader(path.read_text(encoding="utf-8").splitlines(), delimiter="\t")) for path in tables
    )
    segments: dict[str, list[tuple[int, int, str]]] = {}
    for row in phones:
        segment = (int(row["start_sample"]), int(row["end_sample"]), row["phone"])
        segments.setdefault(row["utt"], []).append(segment)
    found = []
    for row in utterances:
        samples, rate = soundfile.read(folder / row["path"], dtype="float32")
        if rate != SAMPLE_RATE:
            raise SystemExit(f"error: {row['path']} has {rate} samples per second, expected {SAMPLE_RATE}")
        found.append((torch.from_numpy(samples), segments[row["utt"]]))
    return found


def labels_of(phones: list[tuple[int, int, str]], num_frames: int, first_ms: float) -> list[str | None]:
    """The phone at the centre of every 20 ms frame."""
    centres = [16 * (first_ms + 20 * frame) for frame in range(num_frames)]
    return [next((p for a, b, p in phones if a <= centre < b), None) for centre in centres]


@torch.inference_mode()
def frames_of(encoder, corpus) -> tuple[list[np.ndarray], list[np.ndarray], list[str | None]]:
    """Every layer's frames, every codebook's units, and the phones."""
    layers: list[list] = []
    units, phones = [], []
    for waveform, segments in corpus:
        output = encoder.extract(waveform[None], torch.tensor([len(waveform)]))
        frames = int(encoder.hidden_length(len(waveform)))
        hidden = [h[0, :frames].numpy() for h in output.hidden_states]
        layers = layers or [[] for _ in hidden]
        for store, each in zip(layers, hidden):
            store.append(each)
        if isinstance(encoder, SpidrEncoder):
            units.append(encoder.units(output)[0, :frames].numpy())
        phones += labels_of(segments, frames, encoder.hidden_first_center_ms)
    joined = np.concatenate(units).T if units else []
    return [np.concatenate(each) for each in layers], list(joined), phones


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--phones", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    corpus = read(arguments.phones)
    trained = load_encoder(arguments.encoder)
    torch.manual_seed(arguments.seed)
    untrained = build_encoder(copy.copy(trained.config)).eval()
    result: dict[str, dict] = {}
    for name, encoder in (("trained", trained), ("random weights", untrained)):
        layers, units, phones = frames_of(encoder, corpus)
        kept = np.array([phone is not None for phone in phones])
        numbers = {phone: n for n, phone in enumerate(sorted({p for p in phones if p is not None}))}
        targets = np.array([numbers[p] for p in phones if p is not None])
        for layer, frames in enumerate(layers, 1):
            clusters = kmeans(frames[kept], arguments.seed)
            result[f"{name}, k-means of layer {layer}"] = phone_scores(targets, clusters)
        for place, codes in enumerate(units):
            layer = encoder.config.head_layers[place]
            result[f"{name}, codebook of layer {layer}"] = phone_scores(targets, codes[kept])
    extractor, mel, phones = FbankExtractor(), [], []
    for waveform, segments in corpus:
        fbank, lengths = extractor(waveform[None], torch.tensor([len(waveform)]))
        mel.append(fbank[0, : int(lengths[0]) : 2].numpy())
        phones += labels_of(segments, len(mel[-1]), 5.0)
    kept = np.array([phone is not None for phone in phones])
    targets = np.array([numbers[p] for p in phones if p is not None])
    result["log-mel, k-means"] = phone_scores(targets, kmeans(np.concatenate(mel)[kept], arguments.seed))
    write_json(arguments.output, result)
    for name, scores in result.items():
        print(f"{name:36}", " ".join(f"{key} {value:.3f}" for key, value in scores.items()))


if __name__ == "__main__":
    main()
