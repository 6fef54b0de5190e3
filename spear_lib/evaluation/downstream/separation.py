"""SE and SS: masks on the spectrogram of a mixture, from frozen features (after s3prl's enhancement_stft and
separation_stft).

Spectrogram: 512 points, hop 320, Hann window, centred. Target of a mask: the non-negative phase-sensitive
magnitude |S| max(0, cos(angle S - angle X)); squared error summed over bins, mean over frames and sources, of
the best order of the sources. The sources are the masked mixture.

Measures: SI-SDRi (own lines), PESQ and STOI by the packages pesq and pystoi (extra ``enhancement``).

Legend: B utterances, N samples (16 kHz), T frames at 50 Hz, F bins, S sources.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spear_lib.data.audio import load_audio
from spear_lib.data.audio_files import open_audio
from spear_lib.evaluation.clip_sets import Clip
from spear_lib.evaluation.downstream.heads import MaskEstimator, frames_mask
from spear_lib.evaluation.downstream.training import Features, Recipe
from spear_lib.features.fbank import SAMPLE_RATE

POINTS, HOP = 512, 320
MEASURES = {"pesq": "PESQ", "stoi": "STOI (%)", "si_sdri": "SI-SDRi (dB)"}


def spectrogram(samples: Tensor) -> Tensor:
    """(..., N) -> complex (..., T', F), T' = N // 320 + 1."""
    flat = samples.reshape(-1, samples.shape[-1])
    window = torch.hann_window(POINTS, device=samples.device)
    found = torch.stft(flat, POINTS, HOP, window=window, pad_mode="constant", return_complex=True)
    return found.transpose(1, 2).reshape(*samples.shape[:-1], -1, POINTS // 2 + 1)


def waveform(spectra: Tensor, num_samples: int) -> Tensor:
    """Complex (S, T', F) -> (S, N)."""
    window = torch.hann_window(POINTS, device=spectra.device)
    return torch.istft(spectra.transpose(1, 2), POINTS, HOP, window=window, length=num_samples)


def mask_loss(masks: Tensor, mixture: Tensor, sources: Tensor, lengths: Tensor) -> Tensor:
    """Args:
    masks: (B, S, T, F). mixture: complex (B, T, F). sources: complex (B, S, T, F). lengths: (B,) frames.
    """
    inside = frames_mask(lengths, mixture.shape[1]).unsqueeze(1).unsqueeze(3)
    aligned = (sources * mixture.unsqueeze(1).conj()).real / mixture.abs().clamp(min=1e-8).unsqueeze(1)
    targets = F.relu(aligned)
    by_order = []
    for order in itertools.permutations(range(sources.shape[1])):
        wrong = (masks * mixture.abs().unsqueeze(1) - targets[:, list(order)]).square() * inside
        by_order.append(wrong.sum((1, 2, 3)) / lengths)
    return torch.stack(by_order).min(0).values.mean() / sources.shape[1]


def si_sdr(estimate: np.ndarray, source: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio in dB; means are removed. (N,) each.

    Raises:
      ValueError: a silent source.
    """
    estimate, source = estimate - estimate.mean(), source - source.mean()
    energy = float(source @ source)
    if energy <= 0.0:
        raise ValueError("a source is silent: its SI-SDR is not defined, leave the mixture out")
    target = (float(estimate @ source) / energy) * source
    wrong = estimate - target
    return float(10.0 * np.log10((target @ target + 1e-12) / (wrong @ wrong + 1e-12)))


def best_order(estimates: np.ndarray, sources: np.ndarray) -> tuple[float, list[int]]:
    """Largest mean SI-SDR over orders, and for each source its estimate; (S, N) both."""
    table = [[si_sdr(estimate, source) for estimate in estimates] for source in sources]
    orders = itertools.permutations(range(len(estimates)))
    best = max(orders, key=lambda order: sum(row[index] for row, index in zip(table, order)))
    return sum(row[index] for row, index in zip(table, best)) / len(table), list(best)


def quality(name: str, estimate: np.ndarray, source: np.ndarray) -> float:
    """PESQ (wide band, 1..4.6) or STOI (0..100).

    Raises:
      RuntimeError: the package is not installed.
    """
    try:
        if name == "pesq":
            import pesq

            value = pesq.pesq(SAMPLE_RATE, source, estimate, "wb", on_error=pesq.PesqError.RETURN_VALUES)
            return max(1.0, float(value))  # -1: no speech was found in the estimate
        import pystoi

        return 100.0 * float(pystoi.stoi(source, estimate, SAMPLE_RATE))
    except ImportError as error:
        raise RuntimeError(
            f"{name} needs a package that is not installed: pip install 'spear_lib[enhancement]', or "
            "--superb.measures '[si_sdri]'"
        ) from error


@dataclass
class Separation:
    """The task, for ``training.train_head``; the labels of a clip are the files of its sources."""

    clips: Sequence[Clip]
    """All of them: they must have one number of sources, 1 (SE) or more (SS)."""
    measures: Sequence[str] = ("si_sdri",)
    """Of MEASURES, the primary one first."""
    recipe: Recipe = Recipe(150_000, 2000, 8, hidden_size=896, adamw=True)
    better: str = "higher"
    audio: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    room: float = 1e9
    """Bytes of audio that are kept; the rest is read each time."""

    def __post_init__(self) -> None:
        numbers = sorted({len(clip.labels) for clip in self.clips})
        if len(numbers) > 1 or numbers[0] > 4:
            raise ValueError(f"the clips have {numbers} sources: give clips of one number of them, 1 to 4")
        self.num_sources = numbers[0]
        unknown = sorted(set(self.measures) - set(MEASURES))
        if unknown or not self.measures:
            raise ValueError(f"superb.measures is {list(self.measures)}: use {', '.join(MEASURES)}")
        self.metric = MEASURES[self.measures[0]]

    def samples(self, clip: Clip) -> tuple[Tensor, Tensor]:
        """Mixture (N,) and sources (S, N); sources of other lengths are cut or filled up with zeros."""
        if clip.name not in self.audio:
            mixture = torch.from_numpy(load_audio(clip.cut()))
            sources = [torch.from_numpy(load_audio(open_audio(Path(path)))) for path in clip.labels]
            size = len(mixture)
            whole = torch.stack([F.pad(one[:size], (0, max(0, size - len(one)))) for one in sources])
            if self.room < mixture.nbytes + whole.nbytes:
                return mixture, whole
            self.room -= mixture.nbytes + whole.nbytes
            self.audio[clip.name] = mixture, whole
        return self.audio[clip.name]

    def spectra(self, clip: Clip, num_frames: int) -> tuple[Tensor, Tensor]:
        """Of the mixture (T, F) and the sources (S, T, F), as many frames as there are features."""
        mixture, sources = self.samples(clip)
        return spectrogram(mixture)[:num_frames], spectrogram(sources)[:, :num_frames]

    def head(self, dim: int, hidden: int) -> nn.Module:
        return MaskEstimator(dim, POINTS // 2 + 1, self.num_sources, hidden)

    def crop(self, clip: Clip, states: Tensor, random: Any) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return states, self.spectra(clip, states.shape[1])

    def loss(self, head: nn.Module, features: Tensor, lengths: Tensor, targets: list[Any]) -> Tensor:
        total = features.shape[1]
        mixture = torch.stack([F.pad(mix, (0, 0, 0, total - mix.shape[0])) for mix, _ in targets])
        sources = torch.stack([F.pad(own, (0, 0, 0, total - own.shape[1])) for _, own in targets])
        device = features.device
        return mask_loss(head(features, lengths), mixture.to(device), sources.to(device), lengths)

    def estimates(self, head: nn.Module, features: Features, clip: Clip) -> np.ndarray:
        """(S, N)."""
        mixture, _ = self.samples(clip)
        masks = head(*features(clip))[0].cpu()
        spectrum = spectrogram(mixture)
        # The spectrogram has a frame more where N is a whole number of hops: it has no features (as s3prl).
        masks = F.pad(masks, (0, 0, 0, max(0, spectrum.shape[0] - masks.shape[1])))[:, : spectrum.shape[0]]
        return waveform(masks * spectrum, len(mixture)).numpy().astype(np.float64)

    def scores(
        self, head: nn.Module, features: Features, clips: Sequence[Clip], chosen: Any
    ) -> tuple[dict[str, float], Any]:
        sums = dict.fromkeys(self.measures, 0.0)
        for clip in clips:
            estimates = self.estimates(head, features, clip)
            mixture, sources = (one.numpy().astype(np.float64) for one in self.samples(clip))
            after, order = best_order(estimates, sources)
            before = sum(si_sdr(mixture, source) for source in sources) / len(sources)
            for name in self.measures:
                if name == "si_sdri":
                    sums[name] += after - before
                else:
                    pairs = zip(estimates[order], sources)
                    sums[name] += sum(quality(name, *pair) for pair in pairs) / len(sources)
        return {MEASURES[name]: value / len(clips) for name, value in sums.items()}, None
