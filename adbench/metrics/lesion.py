"""One volume: its stacked slices and components, and its lesions, false components, slices and reconstruction error.

All are counts, so that subjects add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np

from adbench.errors import UserError
from adbench.metrics.component_tree import Level, Peaks, find_peaks, levels, span, spread
from adbench.metrics.counting import as_bool
from adbench.metrics.score_bins import as_array, predict
from adbench.metrics.similarity import ssim_map

COVERED, INSIDE = 10, 30  # a match covers at least this % of the lesion, and has at least this % of itself inside it
JOINED = 1.5  # neighbouring slices are joined up to this multiple of their volume's median distance


@dataclass(frozen=True)
class Volume:
    """The stacked slices of one volume (one session of one subject), S of them on the prepared grid.

    Attributes:
        maps: (S, H, W) scores in the type that the map has, higher is more anomalous, finite inside the brain.
        lesion: (S, H, W) bool, inside the brain.
        brain: (S, H, W) bool.
        slices: (S,) slice indices, or positions in mm, ascending.
        recon: (S, H, W) float32 pseudo-healthy image in [0, 1], or None.
        image: (S, H, W) float32 input image in [0, 1], or None.
        spacing: mm from one slice index to the next, from row to row, from column to column; None where it is unknown.
    """

    maps: np.ndarray
    lesion: np.ndarray
    brain: np.ndarray
    slices: np.ndarray
    recon: np.ndarray | None = None
    image: np.ndarray | None = None
    spacing: tuple[float, float, float] | None = None

    @cached_property
    def scores(self) -> np.ndarray:
        """(n,) scores of the brain's voxels, slice by slice in scan order; not to be written to."""
        return np.asarray(self.maps[self.brain])

    @cached_property
    def shown(self) -> np.ndarray:
        """(s,) which slices have brain."""
        return np.flatnonzero(self.brain.any(axis=(1, 2)))

    @cached_property
    def ends(self) -> np.ndarray:
        """(s,) where the :attr:`scores` of each slice with brain end."""
        return np.cumsum(np.count_nonzero(self.brain[self.shown], axis=(1, 2)))

    @cached_property
    def highest(self) -> np.ndarray:
        """(s,) the highest score of each slice with brain, in the type of the map."""
        return np.asarray(np.maximum.reduceat(self.scores, np.append(0, self.ends[:-1])))

    @cached_property
    def ill(self) -> np.ndarray:
        """(s,) whether each slice with brain has a lesion voxel."""
        return np.asarray(self.lesion[self.shown].any(axis=(1, 2)))

    def components(self, mask: np.ndarray) -> tuple[np.ndarray, int]:
        """Connected components of an (S, H, W) bool ``mask`` of this volume, as every lesion metric counts them.

        Returns:
            (S, H, W) labels from 1, and how many; see :func:`components`.
        """
        return components(mask, breaks(self.slices))


def checked_volume(
    subject: str,
    maps: object,
    lesion: object,
    brain: object,
    slices: Sequence[int] | np.ndarray | None,
    recon: object = None,
    image: object = None,
    spacing: tuple[float, float, float] | None = None,
) -> Volume:
    """A :class:`Volume` from arrays or tensors, in slice order.

    Args:
        subject: for messages.
        maps: (S, H, W) scores.
        lesion: (S, H, W) bool or 0/1; voxels outside the brain are not evaluated.
        brain: (S, H, W) bool or 0/1.
        slices: (S,) distinct slice indices, or positions in mm; None for 0, 1, 2, ...
        recon: (S, H, W) or None; with ``image``.
        image: (S, H, W) or None.
        spacing: mm from one slice index to the next, from row to row, from column to column; None where unknown.

    Raises:
        UserError: shapes differ, masks are not binary, the brain mask is empty, or a score in the brain is not finite.
    """
    where = f"case {subject!r}"
    stack = as_array(maps)
    masks = as_bool(brain, f"{where} (brain)"), as_bool(lesion, where)
    pictures = {"reconstruction": recon, "image": image}
    arrays = {"brain mask": masks[0], "lesion mask": masks[1]}
    arrays |= {name: as_array(value) for name, value in pictures.items() if value is not None}
    if stack.ndim != 3:
        raise UserError(f"Maps of {where} have shape {stack.shape}: give slices x height x width.")
    for name, array in arrays.items():
        if array.shape != stack.shape:
            raise UserError(f"Maps of {where} have shape {stack.shape} but its {name} has shape {array.shape}.")
    indices = np.arange(len(stack)) if slices is None else np.asarray(slices)
    if indices.shape != (len(stack),) or len(set(indices.tolist())) != len(stack):
        raise UserError(f"Case {subject!r} has {len(stack)} maps but its slice indices are {indices.tolist()}.")
    if not masks[0].any():
        raise UserError(f"Case {subject!r} has no brain voxel: its brain mask is empty. Correct the mask.")
    order = np.argsort(indices)
    if (order != np.arange(len(order))).any():
        stack, masks, indices = stack[order], (masks[0][order], masks[1][order]), indices[order]
        arrays = {name: array[order] for name, array in arrays.items()}
    volume = Volume(
        stack, masks[1] & masks[0], masks[0], indices, arrays.get("reconstruction"), arrays.get("image"), spacing
    )
    wrong = len(volume.scores) - int(np.count_nonzero(np.isfinite(volume.scores)))
    if wrong:
        raise UserError(
            f"Scores of {where} hold {wrong} NaN or infinite value{'s' if wrong > 1 else ''} inside the brain: "
            "repair the map; nothing is replaced silently."
        )
    return volume


def breaks(slices: np.ndarray) -> np.ndarray:
    """Where a volume is cut: (k,) places p such that nothing is joined between its planes p - 1 and p.

    Two neighbours adjoin when their distance is at most 1.5 times the median distance of the volume's own neighbours.
    That is a ratio: for slices of one regular grid, as all volumes here are, indices and millimetres give the same.

    Args:
        slices: (S,) slice indices, or positions in mm, ascending.
    """
    gaps = np.diff(slices)
    if len(gaps) < 2:
        return np.zeros(0, np.int64)
    return np.flatnonzero(gaps > JOINED * np.median(gaps) * (1 + 1e-9)) + 1  # positions in mm carry round-off


def components(mask: np.ndarray, cuts: np.ndarray | None = None) -> tuple[np.ndarray, int]:
    """Connected components: voxels that touch by a face, an edge or a corner (26 neighbours).

    Args:
        mask: (S, H, W) bool.
        cuts: from :func:`breaks`; None: every plane adjoins the next.

    Returns:
        (S, H, W) labels from 1, and how many.
    """
    import cc3d

    labels = np.zeros(mask.shape, np.uint32)
    if not mask.any():
        return labels, 0
    box, planes, padded = spread(mask, np.zeros(0, np.int64) if cuts is None else cuts)
    found, count = cc3d.connected_components(padded, connectivity=26, return_N=True)
    labels[box] = found[planes, 1:-1, 1:-1]
    return labels, int(count)


@dataclass
class VolumeRow:
    """What the spatial metrics keep of one volume; plain JSON values.

    Attributes:
        volume: its id.
        subject: whose volume it is; the same as ``volume`` where the subject has only one.
        groups: e.g. {"site": "A", "modality": "FLAIR"}.
        slice_lesion: for each slice with brain, whether it has a lesion voxel.
        slice_max: for each slice with brain, the highest score in it.
        slice_top: for each slice with brain, the median of its highest 1 % of scores.
        lesion_sizes: voxels of each 26-connected lesion.
        lesion_ious: of each lesion at the val threshold, intersection over union with the predicted component that is
            matched with it, 0 where none is; empty without that threshold.
        found: for each threshold of the accumulator, lesions that are matched with a predicted component.
        false_components: for each threshold of the accumulator, predicted components that are matched with no lesion.
        alarms: rule -> lesion-free slices with a prediction at its threshold.
        recon_l1: mean |reconstruction - image| over healthy brain; None without a reconstruction.
        recon_ssim: mean structural similarity over healthy brain; None without a reconstruction.
        measures: plug-in metric -> (above, below).
    """

    volume: str
    subject: str
    groups: dict[str, str] = field(default_factory=dict)
    slice_lesion: list[bool] = field(default_factory=list)
    slice_max: list[float] = field(default_factory=list)
    slice_top: list[float] = field(default_factory=list)
    lesion_sizes: list[int] = field(default_factory=list)
    lesion_ious: list[float] = field(default_factory=list)
    found: list[int] = field(default_factory=list)
    false_components: list[int] = field(default_factory=list)
    alarms: dict[str, int] = field(default_factory=dict)
    recon_l1: float | None = None
    recon_ssim: float | None = None
    measures: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Detection:
    """Lesions against predicted components at one threshold.

    Attributes:
        ious: of each lesion, intersection over union with the component matched with it; 0 where there is none.
        false: predicted components matched with no lesion.
    """

    ious: list[float]
    false: int

    @property
    def found(self) -> int:
        """Lesions that are matched."""
        return sum(iou > 0 for iou in self.ious)


def detect(volume: Volume, thresholds: Sequence[float]) -> tuple[list[int], list[Detection]]:
    """Which lesions are found at each threshold, and how many predicted components are false.

    A predicted component may be matched with a lesion when it covers at least 10 % of the lesion and at most 70 % of
    itself lies outside, which are the limits of the MSSEG challenge (Commowick et al. 2018, Sci Rep 8:13650, alpha and
    beta). Lesions and components are matched one to one, pairs of highest intersection over union first (greedy
    matching as in Metrics Reloaded, Maier-Hein et al. 2024, Nat Methods 21:195), where MSSEG lets several components
    share a lesion. A component that covers everything is matched with nothing but a lesion of 30 % of the brain.

    Returns:
        Voxels of each lesion, in scan order, and one :class:`Detection` a threshold.
    """
    sizes, own = _lesions(volume)
    nothing = Detection([0.0] * len(sizes), 0)
    if not len(thresholds):
        return sizes.tolist(), []
    steps, which = np.unique(np.asarray(thresholds, np.float64), return_inverse=True)
    inside = predict(volume.maps, steps[0]) & volume.brain
    voxels = np.flatnonzero(inside)
    if not len(voxels):
        return sizes.tolist(), [nothing] * len(thresholds)
    scores = volume.maps.reshape(-1)[voxels]
    level = np.zeros(len(scores), np.min_scalar_type(len(steps)))
    for step in steps:
        level += predict(scores, step)
    peaks = find_peaks(inside, level, len(steps), breaks(volume.slices))
    ill = np.flatnonzero(volume.lesion.reshape(-1)[voxels])
    matching = _Matching(sizes, own[inside[volume.lesion]], ill, peaks)
    found = [matching.at(level) for level in levels(peaks)]
    return sizes.tolist(), [found[len(steps) - 1 - place] for place in which]


def _lesions(volume: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Voxels of each lesion, in scan order, and the lesion of each lesion voxel, from 0, in scan order too."""
    if not volume.lesion.any():
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    labels, count = volume.components(volume.lesion)
    own = labels[volume.lesion].astype(np.int64) - 1
    return np.bincount(own, minlength=count), own


class _Matching:
    """Lesions and predicted components, matched at one level after the other.

    Args:
        sizes: voxels of each lesion.
        own: (m,) lesion of each voxel that is both in a lesion and predicted at the lowest threshold.
        voxels: (m,) which of the predicted voxels these are, in scan order.
        peaks: of the predicted voxels.
    """

    def __init__(self, sizes: np.ndarray, own: np.ndarray, voxels: np.ndarray, peaks: Peaks) -> None:
        self._sizes = sizes
        ill = np.zeros(len(peaks.order), bool)
        ill[voxels] = True
        lesion_of = np.zeros(len(peaks.order), np.int64)
        lesion_of[voxels] = own
        self._ranks = np.flatnonzero(ill[peaks.order])  # in the order in which levels bring them
        pairs = lesion_of[peaks.order[self._ranks]] * len(peaks.order) + peaks.peak[self._ranks]
        distinct, self._pair = np.unique(pairs, return_inverse=True)
        self._lesion, self._peak = np.divmod(distinct, len(peaks.order))
        self._shared = np.zeros(len(distinct), np.int64)

    def at(self, level: Level) -> Detection:
        """Lesions against the components of a level, which follows on the one that was asked for before."""
        low, high = np.searchsorted(self._ranks, [level.voxels.start, level.voxels.stop])
        self._shared += np.bincount(self._pair[low:high], minlength=len(self._shared))
        ious = np.zeros(len(self._sizes))
        touching = np.flatnonzero(self._shared)
        if not len(touching):
            return Detection(ious.tolist(), level.count)
        # Components are told by their first voxel, so that they are in scan order.
        component = level.component[self._peak[touching]]
        keys = self._lesion[touching] << 32 | level.first[component]
        _, place, group = np.unique(keys, return_index=True, return_inverse=True)
        mine, theirs = self._lesion[touching][place], component[place]
        shared = np.bincount(group, self._shared[touching]).astype(np.int64)
        volumes = level.size[theirs]
        union = self._sizes[mine] + volumes - shared
        taken: set[int] = set()
        for pair in np.argsort(-shared / union, kind="stable").tolist():
            lesion, other = int(mine[pair]), int(theirs[pair])
            enough = 100 * shared[pair] >= max(COVERED * self._sizes[lesion], INSIDE * volumes[pair])
            if enough and not ious[lesion] and other not in taken:
                ious[lesion] = shared[pair] / union[pair]
                taken.add(other)
        return Detection(ious.tolist(), level.count - len(taken))


def slice_scores(volume: Volume) -> tuple[list[bool], list[float], list[float]]:
    """For each slice with brain: has a lesion, highest score, median of the highest 1 % of its brain scores.

    The (lower) median is a score of the slice itself, so that an increasing function of the map changes no order of
    slices; a mean would.
    """
    top = []
    for start, end in pairwise([0, *volume.ends.tolist()]):
        count = max(1, round((end - start) / 100))
        middle = end - start - count + (count - 1) // 2
        top.append(float(np.partition(volume.scores[start:end], middle)[middle]))
    return volume.ill.tolist(), [float(score) for score in volume.highest], top


def free_maxima(maps: np.ndarray, lesion: np.ndarray, brain: np.ndarray) -> list[float]:
    """The highest score inside the brain of every slice that has brain and no lesion in it.

    Args:
        maps: (S, H, W) scores.
        lesion: (S, H, W) bool.
        brain: (S, H, W) bool.
    """
    each = zip(maps, lesion, brain, strict=True)
    return [float(own[inside].max()) for own, ill, inside in each if inside.any() and not (ill & inside).any()]


def alarms(volume: Volume, threshold: float) -> int:
    """Lesion-free slices with at least one predicted brain voxel."""
    return int(np.count_nonzero(predict(volume.highest, threshold) & ~volume.ill))


def reconstruction(volume: Volume) -> tuple[float | None, float | None]:
    """(mean absolute error, mean structural similarity) over brain outside lesions; None without a reconstruction.

    SSIM is that of Wang et al. 2004 (IEEE TIP 13:600): per slice, Gaussian window of 11 x 11 with sigma 1.5,
    K1 = 0.01, K2 = 0.03, data range 1; its map is averaged over the same voxels.
    """
    healthy = volume.brain & ~volume.lesion
    if volume.recon is None or volume.image is None or not healthy.any():
        return None, None
    error = similarity = 0.0
    for recon, image, inside in zip(volume.recon, volume.image, healthy, strict=True):
        if inside.any():
            error += float(np.abs(recon[inside].astype(np.float64) - image[inside]).sum())
            box = span(inside, 1), span(inside, 0)
            similarity += float(ssim_map(recon, image, *box)[inside[box]].sum())
    count = int(np.count_nonzero(healthy))
    return error / count, similarity / count
