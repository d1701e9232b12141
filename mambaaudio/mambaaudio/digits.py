"""A small classifier of short clips, to hear what a generator says and to compare with its ears.

Clips are freed of the silence around them, brought to one loudness and one duration as log-mel
frames, and judged by a
small convolutional net whose last hidden layer is the feature space of `mambaaudio.distribution`.
It knows nothing of any data set: give it clips and labels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from mambaaudio.mel import frames_of, log_mel
from mambacore.errors import DataError, UsageError

FEATURES = 48
_MELS = 40
_FRAMES = 32
_HOP_SECONDS = 0.008
_TRIM_SECONDS = 0.01
_TRIM_DB = 25.0
_RANGE = 40.0 / 10 * np.log(10)
_LEVEL = 0.1


@dataclass(frozen=True, eq=False)
class Heard:
    """What a classifier says of clips. probabilities: (n, classes). features: (n, 48)."""

    probabilities: NDArray[np.float64]
    features: NDArray[np.float64]

    @property
    def called(self) -> NDArray[np.int64]:
        """(n,) the likeliest class of each."""
        return self.probabilities.argmax(axis=1)


class ClipClassifier:
    """Tells short clips apart; `fit` makes one.

    Attributes:
        labels: names of the classes, in the order of the probabilities.
        rate: of the clips, in Hz.
    """

    def __init__(self, net: nn.Module, labels: Sequence[str], rate: int) -> None:
        self.labels = tuple(labels)
        self.rate = rate
        self._net = net.eval()

    @classmethod
    def fit(
        cls,
        clips: Sequence[NDArray[np.floating]],
        labels: Sequence[str],
        rate: int,
        *,
        seed: int = 0,
        epochs: int = 24,
        device: str | torch.device = "cpu",
    ) -> ClipClassifier:
        """Train on clips of known label: about a minute for 2,400 clips on two CPU cores.

        Args:
            clips: float samples (n,), full scale 1; any lengths and levels.
            labels: one a clip; at least two different ones.
            rate: of the samples in Hz.
            seed: the same seed and clips give the same classifier on one machine.
            epochs: passes over the clips.
            device: where it is trained and used.

        Raises:
            UsageError: lengths of `clips` and `labels` differ, or a single label.
            DataError: a clip without samples.

        >>> t = np.arange(2000) / 8000
        >>> tones = [np.sin(6.283 * f * t) for f in (300, 310, 320, 900, 910, 920)]
        >>> classifier = ClipClassifier.fit(tones, ["low"] * 3 + ["high"] * 3, 8000, epochs=8)
        >>> classifier.labels
        ('high', 'low')
        """
        if len(clips) != len(labels):
            raise UsageError(f"{len(clips)} clips have {len(labels)} labels; give one a clip")
        names = sorted(set(labels))
        if len(names) < 2:
            raise UsageError(f"the clips have {len(names)} label(s); a classifier needs two")
        x = torch.from_numpy(np.stack([_picture(clip, rate) for clip in clips])).to(device)
        y = torch.tensor([names.index(label) for label in labels], device=device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = _Net(len(names)).to(device)
            _train(net, x, y, epochs, np.random.default_rng(seed))
        return cls(net, names, rate)

    @torch.no_grad()
    def hear(self, clips: Sequence[NDArray[np.floating]], batch_size: int = 256) -> Heard:
        """Probabilities and features of clips at the classifier's rate.

        Raises:
            DataError: a clip without samples.
        """
        device = next(self._net.parameters()).device
        probabilities, features = [], []
        for first in range(0, len(clips), batch_size):
            part = np.stack([_picture(c, self.rate) for c in clips[first : first + batch_size]])
            hidden = self._net.features(torch.from_numpy(part).to(device))  # pyright: ignore
            logits = self._net.head(hidden)  # pyright: ignore[reportCallIssue]
            probabilities.append(logits.double().softmax(-1).cpu().numpy())
            features.append(hidden.double().cpu().numpy())
        if not probabilities:
            return Heard(np.empty((0, len(self.labels))), np.empty((0, FEATURES)))
        return Heard(np.concatenate(probabilities), np.concatenate(features))

    def accuracy(self, clips: Sequence[NDArray[np.floating]], labels: Sequence[str]) -> float:
        """Share of clips that are called by their label."""
        called = self.hear(clips).called
        return float(np.mean([self.labels[c] == t for c, t in zip(called, labels, strict=True)]))

    @property
    def digest(self) -> str:
        """Hash of the weights: equal classifiers have equal ones."""
        total = hashlib.sha256()
        for tensor in self._net.state_dict().values():
            total.update(tensor.cpu().numpy().tobytes())
        return total.hexdigest()[:16]


def leave_one_out(
    clips: Sequence[NDArray[np.floating]],
    labels: Sequence[str],
    groups: Sequence[str],
    rate: int,
    *,
    seed: int = 0,
    epochs: int = 24,
    device: str | torch.device = "cpu",
) -> dict[str, float]:
    """Accuracy on the clips of each group (a speaker) when trained on all the others."""
    result = {}
    for group in sorted(set(groups)):
        rest = [i for i, g in enumerate(groups) if g != group]
        own = [i for i, g in enumerate(groups) if g == group]
        fitted = ClipClassifier.fit(
            [clips[i] for i in rest],
            [labels[i] for i in rest],
            rate,
            seed=seed,
            epochs=epochs,
            device=device,
        )
        result[group] = fitted.accuracy([clips[i] for i in own], [labels[i] for i in own])
    return result


def normalise(clip: NDArray[np.floating], rate: int) -> NDArray[np.float32]:
    """The clip without the silence around it, at an RMS of 0.1 over its louder half.

    So that neither its level nor its padding gives a clip away.

    Raises:
        DataError: no samples, or a NaN.
    """
    wave = np.asarray(clip, np.float32)
    if wave.ndim != 1 or not len(wave) or np.isnan(wave).any():
        raise DataError(f"a clip must hold samples (n,) without NaN; got shape {wave.shape}")
    wave = wave - wave.mean()
    size = max(1, round(rate * _TRIM_SECONDS))
    power = frames_of(np.square(wave), size, size).mean(axis=1, dtype=np.float64)
    heard = np.flatnonzero(power >= power.max() * 10 ** (-_TRIM_DB / 10))
    wave = wave[heard[0] * size : (heard[-1] + 1) * size]
    loud = power[heard][power[heard] >= np.median(power[heard])]
    return (wave * (_LEVEL / np.sqrt(loud.mean() + 1e-12))).astype(np.float32)


def _picture(clip: NDArray[np.floating], rate: int) -> NDArray[np.float32]:
    """Log-mel frames (mels, 32) of the clip, stretched to one duration."""
    frames = log_mel(normalise(clip, rate), rate, hop=round(rate * _HOP_SECONDS), mels=_MELS)
    # Quieter than this counts as silence, so that no room's noise or format's zeros matter.
    frames = np.maximum(frames - frames.max() + _RANGE, 0) * (2 / _RANGE)
    place = np.linspace(0, frames.shape[1] - 1, _FRAMES)
    low = np.floor(place).astype(np.int64)
    high = np.minimum(low + 1, frames.shape[1] - 1)
    part = (place - low).astype(np.float32)
    return (frames[:, low] * (1 - part) + frames[:, high] * part).astype(np.float32)


def _convolution(inputs: int, outputs: int, size: int, stride: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class _Net(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = (24, 48, 64)
        self.stages = nn.Sequential(
            _convolution(1, widths[0], 5, 2),
            _convolution(widths[0], widths[1], 3, 2),
            _convolution(widths[1], widths[1], 3, 1),
            _convolution(widths[1], widths[2], 3, 2),
            _convolution(widths[2], widths[2], 3, 1),
        )
        self.hidden = nn.Linear(widths[-1] * (_MELS // 8) * (_FRAMES // 8), FEATURES)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(FEATURES, classes)

    def features(self, x: Tensor) -> Tensor:
        """(n, mels, frames) to (n, 48)."""
        return torch.relu(self.hidden(self.drop(self.stages(x[:, None]).flatten(1))))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def _train(net: _Net, x: Tensor, y: Tensor, epochs: int, rng: np.random.Generator) -> None:
    size = min(64, len(x), max(8, len(x) // 8))  # few clips: still several steps an epoch
    steps = epochs * (len(x) // size)
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=max(steps, 2))
    net.train()
    for _ in range(epochs):
        order = rng.permutation(len(x))
        for first in range(0, len(x) - size + 1, size):
            chosen = torch.from_numpy(order[first : first + size]).to(x.device)
            loss = functional.cross_entropy(
                net(_moved(x[chosen], rng)), y[chosen], label_smoothing=0.05
            )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
    net.eval()


def _moved(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Pictures cut a little shorter at both ends or padded, moved in pitch, partly blanked."""
    rows, mels, frames = x.shape
    first, last = rng.uniform(-2.5, 2.5, rows), frames - 1 + rng.uniform(-2.5, 2.5, rows)
    place = torch.from_numpy(np.linspace(first, last, frames, axis=1)).to(x)
    low = place.floor()
    part = (place - low)[:, None]
    inside = ((place >= 0) & (place <= frames - 1))[:, None]
    index = low.long().clamp(0, frames - 1)[:, None].expand(-1, mels, -1)
    after = (index + 1).clamp(max=frames - 1)
    out = (x.gather(2, index) * (1 - part) + x.gather(2, after) * part) * inside
    out = torch.roll(out, int(rng.integers(-2, 3)), dims=1)
    for axis, size in ((1, mels), (2, frames)):
        begin, width = rng.integers(0, size, rows), rng.integers(0, size // 8 + 1, rows)
        at = np.arange(size)
        keep = (at < begin[:, None]) | (at >= (begin + width)[:, None])
        out = out * torch.from_numpy(keep).to(x).unsqueeze(3 - axis)
    return out + 0.05 * torch.from_numpy(rng.standard_normal(out.shape, np.float32)).to(x)
