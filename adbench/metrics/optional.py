"""Metrics measured on request: false alarms, Dice pooled and by slice, surface distances, volume error, per-region overlap, calibration.

They follow the contract of any plug-in metric: each measures one volume at a time, brain voxels only, on the prepared
grid, and the sums over volumes are divided. Headings and directions are in :mod:`adbench.metrics.spec`.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from adbench.metrics.base import Metric, Subject
from adbench.metrics.lesion import Volume, alarms
from adbench.metrics.score_bins import predict

TOLERANCE = 2.0  # mm
MAX_FPR = 0.3
BINS = 15
_NO_MM = "no lesion-bearing volume has a known voxel size in mm"


class FalseAlarms1(Metric):
    """Mean share of the lesion-free voxels of a test subject at or above the threshold :attr:`rule`."""

    name = "alarms@fpr1"
    rule: ClassVar[str] = "fpr1"

    def measure(self, subject: Subject) -> tuple[float, float] | None:
        if self.rule not in subject.thresholds or not subject.histogram.n_negative:
            return None
        _, false = subject.histogram.positives_at(subject.thresholds[self.rule])
        return false / subject.histogram.n_negative, 1.0


class FalseAlarms5(FalseAlarms1):
    """Mean share of the lesion-free voxels of a test subject at or above the threshold of 5 % of healthy validation voxels."""

    name = "alarms@fpr5"
    rule = "fpr5"


class PooledDice(Metric):
    """Dice over all test voxels at the threshold :attr:`rule`."""

    name = "dice_pooled@val"
    rule: ClassVar[str] = "val"
    over_lesions = True
    undefined = "no validation split chose the threshold"

    def measure(self, subject: Subject) -> tuple[float, float] | None:
        if self.rule not in subject.thresholds:
            return None
        found, false = subject.histogram.positives_at(subject.thresholds[self.rule])
        return 2.0 * found, float(found + false + subject.histogram.n_positive)


class SliceDice(Metric):
    """Mean over slices with a lesion of the Dice of each, at the threshold :attr:`rule`."""

    name = "dice_slice@val"
    rule: ClassVar[str] = "val"
    needs_maps = True
    undefined = "no slice with a lesion, or no validation split that chose the threshold"

    def measure(self, subject: Subject) -> tuple[float, float] | None:
        volume, predicted = subject.volume, _predicted(subject, self.rule)
        if volume is None or predicted is None or not volume.lesion.any():
            return None
        found, every, own = (m.sum(axis=(1, 2)) for m in (predicted & volume.lesion, predicted, volume.lesion))
        return float((2 * found[own > 0] / (every + own)[own > 0]).sum()), float(np.count_nonzero(own))


class SliceAlarms05(Metric):
    """Share of lesion-free test slices with a positive voxel at the threshold :attr:`rule`."""

    name = "fa_slice@slice05"
    rule: ClassVar[str] = "slice05"
    needs_maps = True
    undefined = "no lesion-free test slice, or no lesion-free validation slice that sets the threshold"

    def measure(self, subject: Subject) -> tuple[float, float] | None:
        volume = subject.volume
        if volume is None or self.rule not in subject.thresholds:
            return None
        free = np.count_nonzero(volume.brain.any(axis=(1, 2)) & ~volume.lesion.any(axis=(1, 2)))
        return (float(alarms(volume, subject.thresholds[self.rule])), float(free)) if free else None


class SliceAlarms10(SliceAlarms05):
    """Share of lesion-free test slices with a positive voxel where 10 % of those of the validation may have one."""

    name, rule = "fa_slice@slice10", "slice10"


class PooledDice05(PooledDice):
    """:class:`PooledDice` where 5 % of the lesion-free validation slices may have a positive voxel."""

    name, rule = "dice_pooled@slice05", "slice05"
    undefined = "no lesion-free validation slice sets the threshold"


class PooledDice10(PooledDice05):
    """:class:`PooledDice` where 10 % of the lesion-free validation slices may have a positive voxel."""

    name, rule = "dice_pooled@slice10", "slice10"


class SliceDice05(SliceDice):
    """:class:`SliceDice` where 5 % of the lesion-free validation slices may have a positive voxel."""

    name, rule = "dice_slice@slice05", "slice05"
    undefined = "no slice with a lesion, or no lesion-free validation slice that sets the threshold"


class SliceDice10(SliceDice05):
    """:class:`SliceDice` where 10 % of the lesion-free validation slices may have a positive voxel."""

    name, rule = "dice_slice@slice10", "slice10"


class SurfaceDice(Metric):
    """Share of the surfaces of lesion and prediction within 2 mm of each other, at the val threshold.

    A mean over lesion-bearing volumes; 0 where nothing is predicted.
    """

    name = "surface_dice@2mm"
    needs_maps = True
    undefined = _NO_MM

    def measure(self, subject: Subject) -> tuple[float, float] | None:
        found = _with_surfaces(subject)
        if found is None:
            return None
        volume, predicted = found
        if not predicted.any():
            return 0.0, 1.0
        there, back = surface_distances(volume.lesion, predicted, volume)
        close = np.count_nonzero(there <= TOLERANCE) + np.count_nonzero(back <= TOLERANCE)
        return close / (len(there) + len(back)), 1.0


class HD95(Metric):
    """95th percentile of the distances between the surfaces of lesion and prediction at the val threshold, mm.

    A mean over lesion-bearing volumes; the diagonal of the grid where nothing is predicted.
    """

    name = "hd95"
    needs_maps = True
    undefined = _NO_MM

    def measure(self, subject: Subject) -> tuple[float, float] | None:
        found = _with_surfaces(subject)
        if found is None:
            return None
        volume, predicted = found
        if not predicted.any():
            return diagonal(volume), 1.0
        there, back = surface_distances(volume.lesion, predicted, volume)
        return float(max(np.percentile(there, 95), np.percentile(back, 95))), 1.0


class VolumeError(Metric):
    """Mean absolute difference of predicted and true lesion volume at the val threshold, ml, healthy subjects included."""

    name = "volume_error"
    needs_maps = True
    undefined = "no volume has a known voxel size in mm"

    def measure(self, subject: Subject) -> tuple[float, float] | None:
        volume = subject.volume
        predicted = _predicted(subject)
        if volume is None or predicted is None or volume.spacing is None:
            return None
        voxels = abs(int(np.count_nonzero(predicted)) - int(np.count_nonzero(volume.lesion)))
        return voxels * voxel_ml(volume), 1.0


class AUPRO(Metric):
    """Area under the per-region-overlap curve up to a false-positive rate of 0.3, a mean over lesions."""

    name = "aupro"
    needs_maps = True
    undefined = "no volume has lesion and background"

    def measure(self, subject: Subject) -> tuple[float, float] | None:
        volume = subject.volume
        if volume is None or not volume.lesion.any():
            return None
        background = volume.brain & ~volume.lesion
        if not background.any():
            return None
        labels, count = volume.components(volume.lesion)
        area = per_region_overlap(volume.maps[volume.lesion], labels[volume.lesion], volume.maps[background])
        return area * count, float(count)


class ECE(Metric):
    """Expected calibration error: how far shares of lesion are from the probabilities that a map claims.

    A mean over volumes; undefined unless every score in every brain lies in [0, 1].
    """

    name = "ece"
    needs_maps = True
    undefined = "not every map lies in [0, 1], so these are no probabilities"
    of_all = True

    def measure(self, subject: Subject) -> tuple[float, float] | None:
        volume = subject.volume
        if volume is None:
            return None
        scores = volume.maps[volume.brain]
        if scores.min() < 0 or scores.max() > 1:
            return None
        return calibration_error(scores, volume.lesion[volume.brain]), 1.0


def surface_distances(first: np.ndarray, second: np.ndarray, volume: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Distances between the surfaces of two masks: of each surface voxel to the nearest one of the other.

    A surface voxel has a face neighbour outside its mask (in its slice alone, where the volume is one slice). Voxels
    stand at their centres, slices where their indices place them, so gaps between slices may differ.

    Args:
        first: (S, H, W) bool with at least one voxel.
        second: (S, H, W) bool with at least one voxel.
        volume: gives slice indices and voxel size, which must be known.

    Returns:
        ((n,) from first to second, (m,) from second to first), mm.
    """
    from scipy.spatial import cKDTree

    points = [_surface(mask, volume) for mask in (first, second)]
    trees = [cKDTree(own) for own in points]
    return trees[1].query(points[0])[0], trees[0].query(points[1])[0]


def diagonal(volume: Volume) -> float:
    """Length of the diagonal of the grid of ``volume``, mm: no two of its voxels are farther apart."""
    assert volume.spacing is not None
    _, height, width = volume.maps.shape
    extent = np.array([volume.slices[-1] - volume.slices[0], height - 1, width - 1], float)
    return float(np.linalg.norm(extent * volume.spacing))


def voxel_ml(volume: Volume) -> float:
    """What one voxel stands for, ml: slices that were left out between two count to their neighbours."""
    assert volume.spacing is not None
    gaps = np.diff(volume.slices)
    thickness = float(np.median(gaps)) if len(gaps) else 1.0
    return thickness * float(np.prod(volume.spacing)) / 1000


def per_region_overlap(scores: np.ndarray, regions: np.ndarray, background: np.ndarray) -> float:
    """Area under the mean overlap of regions against the false-positive rate, up to 0.3, divided by 0.3.

    Bergmann et al. 2021 (IJCV 129:1038, section 6.2): at each threshold, the share of each region that is predicted,
    averaged over regions, against the share of background that is predicted; thresholds are all scores that occur,
    points are joined by lines. There the rate is over a whole data set, here over one volume.

    Args:
        scores: (n,) of the voxels of all regions.
        regions: (n,) the region of each, from 1.
        background: (m,) scores of voxels outside all regions, m > 0.
    """
    sizes = np.bincount(regions)
    shares = 1 / (sizes[regions] * np.count_nonzero(sizes))
    at, which = np.unique(scores, return_inverse=True)
    overlap = np.cumsum(np.bincount(which, shares)[::-1])  # at each score of a region, from the highest down
    ordered = np.sort(background)
    beyond, upto = (len(ordered) - np.searchsorted(ordered, at[::-1], side) for side in ("right", "left"))
    # Between two of these scores only background is added: the curve is level there, and slanted where both are tied.
    rate = np.concatenate([[0], np.column_stack([beyond, upto]).ravel(), [len(ordered)]]) / len(ordered)
    height = np.concatenate([[0.0, 0.0], np.repeat(overlap, 2)])
    inside = rate <= MAX_FPR
    x, y = np.append(rate[inside], MAX_FPR), np.append(height[inside], np.interp(MAX_FPR, rate, height))
    return float(np.trapezoid(y, x)) / MAX_FPR


def calibration_error(scores: np.ndarray, lesion: np.ndarray) -> float:
    """Expected calibration error of the lesion class over 15 bins of equal width (Guo et al. 2017, ICML, equation 3).

    Args:
        scores: (n,) in [0, 1], n > 0; bins hold their upper end, the first one 0 too.
        lesion: (n,) bool.
    """
    place = np.clip(np.ceil(scores.astype(np.float64) * BINS).astype(np.int64) - 1, 0, BINS - 1)
    claimed = np.bincount(place, scores, minlength=BINS)
    true = np.bincount(place, lesion, minlength=BINS)
    return float(np.abs(claimed - true).sum() / len(scores))


def _with_surfaces(subject: Subject) -> tuple[Volume, np.ndarray] | None:
    """The volume and its prediction where distances in mm from its lesions are defined, else None."""
    volume, predicted = subject.volume, _predicted(subject)
    if volume is None or predicted is None or not volume.lesion.any() or volume.spacing is None:
        return None
    return volume, predicted


def _predicted(subject: Subject, rule: str = "val") -> np.ndarray | None:
    if subject.volume is None or rule not in subject.thresholds:
        return None
    return np.asarray(predict(subject.volume.maps, subject.thresholds[rule]) & subject.volume.brain)


def _surface(mask: np.ndarray, volume: Volume) -> np.ndarray:
    """(n, 3) places of the surface voxels, mm."""
    from scipy.ndimage import binary_erosion, generate_binary_structure

    assert volume.spacing is not None
    box = tuple(slice(int(places.min()), int(places.max()) + 1) for places in np.nonzero(mask))
    cross = generate_binary_structure(3, 1)
    if len(mask) == 1:
        cross[[0, 2]] = False
    inner = binary_erosion(mask[box], cross)
    places = np.argwhere(mask[box] & ~inner) + [part.start for part in box]
    return np.asarray(np.column_stack([volume.slices[places[:, 0]], places[:, 1:]]) * np.array(volume.spacing))
