"""One volume: its lesions, false components, slices and reconstruction error. All counts, so that subjects add up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from adbench.errors import UserError
from adbench.metrics.base import Volume
from adbench.metrics.histogram import as_bool
from adbench.metrics.keys import is_tensor, predict


@dataclass
class VolumeRow:
    """What the spatial metrics keep of one subject; plain JSON values.

    Attributes:
        subject: its id.
        groups: e.g. {"site": "A", "modality": "FLAIR"}.
        slice_lesion: for each slice with brain, whether it has a lesion voxel.
        slice_max: for each slice with brain, the highest score in it.
        slice_top: for each slice with brain, the mean of its highest 1 % of scores (at least one voxel).
        lesion_sizes: voxels of each 26-connected lesion.
        lesion_scores: highest score of each lesion; the lesion is found at every threshold up to it.
        false_components: for each threshold of the accumulator, predicted components that touch no lesion.
        alarms: lesion-free slices with a prediction at the val threshold; None without that threshold.
        recon_l1: mean |reconstruction - image| over healthy brain; None without a reconstruction.
        recon_ssim: mean structural similarity over healthy brain; None without a reconstruction.
        measures: plug-in metric -> (above, below).
    """

    subject: str
    groups: dict[str, str] = field(default_factory=dict)
    slice_lesion: list[bool] = field(default_factory=list)
    slice_max: list[float] = field(default_factory=list)
    slice_top: list[float] = field(default_factory=list)
    lesion_sizes: list[int] = field(default_factory=list)
    lesion_scores: list[float] = field(default_factory=list)
    false_components: list[int] = field(default_factory=list)
    alarms: int | None = None
    recon_l1: float | None = None
    recon_ssim: float | None = None
    measures: dict[str, tuple[float, float]] = field(default_factory=dict)


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
        slices: (S,) distinct slice indices; None for 0, 1, 2, ...
        recon: (S, H, W) or None; with ``image``.
        image: (S, H, W) or None.
        spacing: mm from one slice index to the next, from row to row, from column to column; None where unknown.

    Raises:
        UserError: shapes differ, masks are not binary, the brain mask is empty, or a score in the brain is not finite.
    """
    where = f"case {subject!r}"
    stack = _array(maps)
    masks = as_bool(brain, f"{where} (brain)"), as_bool(lesion, where)
    pictures = {"reconstruction": recon, "image": image}
    arrays = {"brain mask": masks[0], "lesion mask": masks[1]}
    arrays |= {name: _array(value) for name, value in pictures.items() if value is not None}
    if stack.ndim != 3:
        raise UserError(f"Maps of {where} have shape {stack.shape}: give slices x height x width.")
    for name, array in arrays.items():
        if array.shape != stack.shape:
            raise UserError(f"Maps of {where} have shape {stack.shape} but its {name} has shape {array.shape}.")
    indices = np.arange(len(stack)) if slices is None else np.asarray(slices, dtype=np.int64)
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


def components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """((S, H, W) labels from 1, how many): components that touch by a face, an edge or a corner (26 neighbours)."""
    import cc3d

    labels, count = cc3d.connected_components(mask, connectivity=26, return_N=True)
    return labels, int(count)


def contiguous(array: np.ndarray, slices: np.ndarray, step: int) -> np.ndarray:
    """``array`` with an empty plane wherever neighbouring slices are more than ``step`` apart, so that nothing joins."""
    gaps = np.flatnonzero(np.diff(slices) > step) + 1
    return np.insert(array, gaps, np.zeros((), array.dtype), axis=0) if len(gaps) else array


def lesions(volume: Volume, step: int) -> tuple[list[int], list[float]]:
    """(voxels of each lesion, highest score of each lesion), in scan order."""
    if not volume.lesion.any():
        return [], []
    mask = contiguous(volume.lesion, volume.slices, step)
    labels, count = components(mask)
    own = labels[mask]
    highest = np.full(count + 1, -np.inf, np.float32)
    np.maximum.at(highest, own, volume.maps[volume.lesion])
    return np.bincount(own, minlength=count + 1)[1:].tolist(), highest[1:].tolist()


def false_components(volume: Volume, thresholds: Sequence[float], step: int) -> list[int]:
    """At each threshold, the predicted components without a lesion voxel."""
    if not len(thresholds):
        return []
    inside = predict(volume.maps, min(thresholds)) & volume.brain
    if not inside.any():
        return [0] * len(thresholds)
    box = tuple(slice(int(places.min()), int(places.max()) + 1) for places in np.nonzero(inside))
    lesion = contiguous(volume.lesion[box], volume.slices[box[0]], step)
    counts = []
    for threshold in thresholds:
        predicted = predict(volume.maps[box], threshold) & volume.brain[box]
        labels, count = components(contiguous(predicted, volume.slices[box[0]], step))
        counts.append(count - len(np.setdiff1d(labels[lesion], [0])))
    return counts


def slice_scores(volume: Volume) -> tuple[list[bool], list[float], list[float]]:
    """For each slice with brain: has a lesion, highest score, mean of the highest 1 % of its brain scores."""
    found: tuple[list[bool], list[float], list[float]] = ([], [], [])
    for scores, lesion, brain in zip(volume.maps, volume.lesion, volume.brain, strict=True):
        if not brain.any():
            continue
        own = scores[brain]
        count = max(1, round(len(own) / 100))
        top = np.partition(own, len(own) - count)[len(own) - count :]
        found[0].append(bool(lesion.any()))
        found[1].append(float(top.max()))
        found[2].append(float(np.float32(top.mean(dtype=np.float64))))
    return found


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
        return gaussian_filter(image, 1.5, radius=5)

    x, y = first.astype(np.float64), second.astype(np.float64)
    mean_x, mean_y = smooth(x), smooth(y)
    var_x, var_y = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2
    covariance = smooth(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
    return luminance * (2 * covariance + 0.03**2) / (var_x + var_y + 0.03**2)


def _array(value: object) -> np.ndarray:
    if is_tensor(value):
        value = value.detach().float().cpu().numpy()  # type: ignore[attr-defined]
    return np.asarray(value, dtype=np.float32)
