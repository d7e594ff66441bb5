"""One volume: its stacked slices and components, and its lesions, false components, slices and reconstruction error.

All are counts, so that subjects add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from adbench.errors import UserError
from adbench.metrics.counting import as_bool
from adbench.metrics.score_bins import as_array, predict

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
    wrong = int(np.count_nonzero(~np.isfinite(stack[masks[0]])))
    if wrong:
        raise UserError(
            f"Scores of {where} hold {wrong} NaN or infinite value{'s' if wrong > 1 else ''} inside the brain: "
            "repair the map; nothing is replaced silently."
        )
    order = np.argsort(indices)
    if (order != np.arange(len(order))).any():
        stack, masks, indices = stack[order], (masks[0][order], masks[1][order]), indices[order]
        arrays = {name: array[order] for name, array in arrays.items()}
    return Volume(
        stack, masks[1] & masks[0], masks[0], indices, arrays.get("reconstruction"), arrays.get("image"), spacing
    )


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

    if cuts is None or not len(cuts):
        labels, count = cc3d.connected_components(mask, connectivity=26, return_N=True)
        return labels, int(count)
    # An empty plane in each cut keeps apart what lies on its two sides.
    labels, count = cc3d.connected_components(np.insert(mask, cuts, False, axis=0), connectivity=26, return_N=True)
    return np.delete(labels, cuts + np.arange(len(cuts)), axis=0), int(count)


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
    cuts = breaks(volume.slices)
    sizes, own = np.zeros(0, np.int64), np.zeros(0, np.int64)
    if volume.lesion.any():
        labels, count = components(volume.lesion, cuts)
        own = labels[volume.lesion].astype(np.int64) - 1  # in the order of np.flatnonzero(volume.lesion)
        sizes = np.bincount(own, minlength=count)
    nothing = Detection([0.0] * len(sizes), 0)
    if not len(thresholds):
        return sizes.tolist(), []
    inside = predict(volume.maps, min(thresholds)) & volume.brain
    if not inside.any():
        return sizes.tolist(), [nothing] * len(thresholds)
    box = tuple(slice(int(places.min()), int(places.max()) + 1) for places in np.nonzero(inside))
    cuts = cuts[(cuts > box[0].start) & (cuts < box[0].stop)] - box[0].start
    cropped = np.zeros(volume.lesion.shape, bool)
    cropped[box] = True
    own = own[cropped[volume.lesion]]
    lesion, brain, maps = np.flatnonzero(volume.lesion[box]), volume.brain[box], volume.maps[box]
    found = []
    for threshold in thresholds:
        predicted = predict(maps, threshold) & brain
        labels, count = components(predicted, cuts)
        found.append(_match(sizes, own, labels.ravel()[lesion].astype(np.int64), labels, predicted, count))
    return sizes.tolist(), found


def _match(
    sizes: np.ndarray, own: np.ndarray, other: np.ndarray, labels: np.ndarray, predicted: np.ndarray, count: int
) -> Detection:
    """Match lesions with components; ``own`` and ``other``: lesion and component (0: none) of each lesion voxel."""
    ious = np.zeros(len(sizes))
    touching = other > 0
    if not touching.any():
        return Detection(ious.tolist(), count)
    pairs, shared = np.unique(own[touching] * (count + 1) + other[touching], return_counts=True)
    mine, theirs = pairs // (count + 1), pairs % (count + 1)
    volumes = np.bincount(labels[predicted], minlength=count + 1)
    union = sizes[mine] + volumes[theirs] - shared
    taken: set[int] = set()
    for pair in np.argsort(-shared / union, kind="stable").tolist():
        lesion, component = int(mine[pair]), int(theirs[pair])
        enough = 100 * shared[pair] >= max(COVERED * sizes[lesion], INSIDE * volumes[component])
        if enough and not ious[lesion] and component not in taken:
            ious[lesion] = shared[pair] / union[pair]
            taken.add(component)
    return Detection(ious.tolist(), count - len(taken))


def slice_scores(volume: Volume) -> tuple[list[bool], list[float], list[float]]:
    """For each slice with brain: has a lesion, highest score, median of the highest 1 % of its brain scores.

    The (lower) median is a score of the slice itself, so that an increasing function of the map changes no order of
    slices; a mean would.
    """
    found: tuple[list[bool], list[float], list[float]] = ([], [], [])
    for scores, lesion, brain in zip(volume.maps, volume.lesion, volume.brain, strict=True):
        if not brain.any():
            continue
        own = scores[brain]
        count = max(1, round(len(own) / 100))
        middle = len(own) - count + (count - 1) // 2
        own = np.partition(own, [middle, len(own) - 1])
        found[0].append(bool(lesion.any()))
        found[1].append(float(own[-1]))
        found[2].append(float(own[middle]))
    return found


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
    predicted = (predict(volume.maps, threshold) & volume.brain).any(axis=(1, 2))
    return int(np.count_nonzero(predicted & ~volume.lesion.any(axis=(1, 2))))


def reconstruction(volume: Volume) -> tuple[float | None, float | None]:
    """(mean absolute error, mean structural similarity) over brain outside lesions; None without a reconstruction.

    SSIM is that of Wang et al. 2004 (IEEE TIP 13:600): per slice, Gaussian window of 11 x 11 with sigma 1.5,
    K1 = 0.01, K2 = 0.03, data range 1; its map is averaged over the same voxels.
    """
    healthy = volume.brain & ~volume.lesion
    if volume.recon is None or volume.image is None or not healthy.any():
        return None, None
    absolute = np.abs(volume.recon[healthy].astype(np.float64) - volume.image[healthy])
    total = 0.0
    for recon, image, inside in zip(volume.recon, volume.image, healthy, strict=True):
        if inside.any():
            total += float(ssim_map(recon, image)[inside].sum())
    return float(absolute.mean()), total / int(healthy.sum())


def ssim_map(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(H, W) float64 structural similarity of two images in [0, 1]; edges are mirrored."""
    from scipy.ndimage import gaussian_filter

    def smooth(image: np.ndarray) -> np.ndarray:
        return np.asarray(gaussian_filter(image, 1.5, radius=5))

    x, y = first.astype(np.float64), second.astype(np.float64)
    mean_x, mean_y = smooth(x), smooth(y)
    var_x, var_y = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2
    covariance = smooth(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
    return np.asarray(luminance * (2 * covariance + 0.03**2) / (var_x + var_y + 0.03**2))
