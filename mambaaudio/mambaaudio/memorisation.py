"""Did a generator learn its training clips by heart? Distances to the nearest of them.

The distance of two clips is the root mean square difference of their log-mel frames (in dB) after
both are brought to one loudness, freed of the silence around them, and shifted against each other
by up to 0.1 s where that brings them closer; a frame that only one has counts as against silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mambaaudio.digits import normalise
from mambaaudio.mel import log_mel
from mambacore.errors import DataError

_HOP_SECONDS = 0.008
_SHIFT_SECONDS = 0.1
_MELS = 32
# Quieter than this below full scale counts as silence.
_FLOOR_DB = -40.0
_TO_DB = 10 / np.log(10)
PERCENTILE = 5.0


@dataclass(frozen=True, eq=False)
class Memorisation:
    """Distances in dB to the nearest training clip.

    generated, real: (n,) of generated clips and of real clips that were not trained on. nearest:
    (n,) which training clip is nearest to each generated one. threshold: the 5th percentile of
    `real`. share: part of the generated clips below it, which is 0.05 for real clips by
    definition and 1 for copies.
    """

    generated: NDArray[np.float64]
    real: NDArray[np.float64]
    nearest: NDArray[np.int64]
    threshold: float
    share: float

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        return {
            "clips": len(self.generated),
            "real_clips": len(self.real),
            "threshold_db": values["threshold"],
            "share_below": values["share"],
            "generated_median_db": float(np.median(self.generated)),
            "real_median_db": float(np.median(self.real)),
        }


def memorisation(
    generated: Sequence[NDArray[np.floating]],
    real: Sequence[NDArray[np.floating]],
    training: Sequence[NDArray[np.floating]],
    rate: int,
    *,
    device: str | torch.device = "cpu",
) -> Memorisation:
    """Compare generated clips with the training clips, and real unseen clips likewise.

    Args:
        generated, real, training: float samples (n,) each, any lengths and levels.
        rate: of all of them, in Hz.
        device: where the distances are computed.

    Raises:
        DataError: one of the three is empty.
    """
    for name, clips in (("generated", generated), ("real", real), ("training", training)):
        if not len(clips):
            raise DataError(f"there are no {name} clips to compare")
    known = [_frames(clip, rate) for clip in training]
    shift = round(_SHIFT_SECONDS / _HOP_SECONDS)
    ours, which = _nearest([_frames(c, rate) for c in generated], known, shift, device)
    theirs, _ = _nearest([_frames(c, rate) for c in real], known, shift, device)
    threshold = float(np.percentile(theirs, PERCENTILE))
    return Memorisation(ours, theirs, which, threshold, float((ours < threshold).mean()))


def _frames(clip: NDArray[np.floating], rate: int) -> NDArray[np.float32]:
    """(frames, mels) dB above the floor, 0 for silence."""
    mel = log_mel(normalise(clip, rate), rate, hop=round(rate * _HOP_SECONDS), mels=_MELS).T
    mel = mel * _TO_DB
    return np.maximum(mel - (mel.max() + _FLOOR_DB), 0).astype(np.float32)


@torch.no_grad()
def _nearest(
    clips: Sequence[NDArray[np.float32]],
    known: Sequence[NDArray[np.float32]],
    shift: int,
    device: str | torch.device,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Distance to, and place of, the nearest known clip of each.

    |x - y|^2 = |x|^2 + |y|^2 - 2 x y: of a shift, only the inner products change.
    """
    longest = max(len(c) for c in (*clips, *known))
    width = longest + 2 * shift
    table = torch.zeros(len(known), longest, _MELS, device=device)
    for row, frames in enumerate(known):
        table[row, : len(frames)] = torch.from_numpy(frames)
    sizes = torch.tensor([len(k) for k in known], device=device)
    flat, power = table.flatten(1), table.square().sum((1, 2))
    best, place = [], []
    for frames in clips:
        padded = torch.zeros(width, _MELS, device=device)
        padded[shift : shift + len(frames)] = torch.from_numpy(frames)
        moved = torch.stack([padded[s : s + longest].flatten() for s in range(2 * shift + 1)])
        inner = (flat @ moved.T).amax(1)
        square = power + padded.square().sum() - 2 * inner
        count = torch.maximum(sizes, torch.tensor(len(frames), device=device)) * _MELS
        distance = (square.clamp(min=0) / count).sqrt()
        value, index = distance.min(0)
        best.append(float(value))
        place.append(int(index))
    return np.array(best), np.array(place, np.int64)
