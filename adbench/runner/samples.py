"""The few test slices in the picture of a run, kept while it is scored and drawn later."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adbench.datasets.slices import LabelledSet
from adbench.runner.inference import ScoredVolume
from adbench.utils import limits

_ARRAYS = ("image", "brain", "lesion", "map")


@dataclass
class Sample:
    """One slice to show; arrays are (H, W).

    Attributes:
        title: of its row.
        image: in [0, 1].
        brain: bool.
        lesion: bool.
        map: scores, higher is more anomalous.
        reconstruction: in [0, 1], or None.
        threshold: of its own, instead of the sheet's.
        window: lowest and highest score shown, instead of the sheet's.
    """

    title: str
    image: np.ndarray
    brain: np.ndarray
    lesion: np.ndarray
    map: np.ndarray
    reconstruction: np.ndarray | None
    threshold: float | None = None
    window: tuple[float, float] | None = None


def choose_positions(data: LabelledSet, count: int = 6) -> list[int]:
    """Positions of ``count`` slices worth showing: the largest-lesion slice of subjects spread over lesion volume.

    Only the masks are looked at, never a score, so the choice flatters no method and is the same for all of them.
    """
    area = data.lesion_voxels
    best: list[tuple[int, int]] = []
    for subject in range(len(data.subjects)):
        positions = np.flatnonzero(data.subject_index == subject)
        volume = int(area[positions].sum())
        if volume:
            best.append((volume, int(positions[np.argmax(area[positions])])))
    if not best:
        return [int(place) for place in np.linspace(0, len(data) - 1, min(count, len(data)))]
    best.sort()
    chosen = np.linspace(0, len(best) - 1, min(count, len(best))).round().astype(int)
    return [best[i][1] for i in chosen][::-1]


class Samples:
    """Collects the chosen slices of the test set ``data`` from its scored volumes."""

    def __init__(self, data: LabelledSet) -> None:
        self._data, self._shown = data, choose_positions(data)
        self._found: dict[int, Sample] = {}

    def __call__(self, scored: ScoredVolume) -> None:
        """Keep those slices of a scored volume that were chosen."""
        for index, position in enumerate(scored.positions.tolist()):
            if position in self._shown:
                at = np.array([position])
                self._found[position] = Sample(
                    scored.volume,
                    self._data.images(at)[0].astype(np.float32),
                    self._data.counted(at)[0],
                    self._data.lesions(at)[0],
                    scored.maps[index],
                    None if scored.reconstructions is None else scored.reconstructions[index],
                )

    def save(self, path: Path) -> None:
        """Write the collected slices, in the order in which they were chosen, for :func:`load_samples`."""
        found = [self._found[position] for position in self._shown]
        arrays: dict[str, Any] = {name: np.stack([getattr(one, name) for one in found]) for name in _ARRAYS}
        recons = [one.reconstruction for one in found if one.reconstruction is not None]
        if len(recons) == len(found):
            arrays["reconstruction"] = np.stack(recons)
        np.savez(path, title=np.array([one.title for one in found]), **arrays)


def load_samples(path: Path) -> list[Sample]:
    """The slices that :meth:`Samples.save` wrote."""
    with np.load(path) as kept:
        unpacked = sum(info.file_size for info in kept.zip.infolist())
        limits.check(path, "holds arrays of", unpacked, limits.ARRAY_BYTES)
        arrays = dict(kept)
    recons = arrays.get("reconstruction")
    found = []
    for row, title in enumerate(arrays["title"]):
        image, brain, lesion, scores = (arrays[name][row] for name in _ARRAYS)
        found.append(Sample(str(title), image, brain, lesion, scores, None if recons is None else recons[row]))
    return found
