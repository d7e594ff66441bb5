"""Cut a registered volume into prepared slices: intensity window, planes with brain, a square, one size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adbench.datasets.geometry import zooms
from adbench.datasets.preprocessing.brain_extraction import bounds
from adbench.datasets.preprocessing.recipe import RecipeParams


@dataclass(frozen=True)
class Window:
    """The intensities that become 0 and 1, and the share of the brain beyond them."""

    low: float
    high: float
    clipped: float


def intensity_window(image: np.ndarray, brain: np.ndarray, params: RecipeParams) -> Window:
    """The percentiles of the intensities inside the brain.

    Args:
        image: (X, Y, Z) of any real type.
        brain: (X, Y, Z) bool, not empty.
        params: ``clip_low`` and ``clip_high``.
    """
    inside = image.T[brain.T]  # NIfTI volumes lie in memory with x fastest
    low, high = (float(v) for v in np.percentile(inside, [params.clip_low, params.clip_high]))
    clipped = float(((inside < low) | (inside > high)).mean())
    return Window(low, high, clipped)


def scaled(image: np.ndarray, brain: np.ndarray, levels: Window) -> np.ndarray:
    """``image`` with ``low`` at 0 and ``high`` at 1, clipped, 0 outside the brain; float32."""
    result = np.asarray(image, np.float32) - np.float32(levels.low)
    result *= np.float32(1 / (levels.high - levels.low))
    np.clip(result, 0, 1, out=result)
    result *= brain
    return result


@dataclass(frozen=True)
class Cut:
    """Which planes of a RAS volume are kept, and the square in them.

    Attributes:
        planes: z indices, ascending.
        thin: z indices that hold brain, but too little.
        corner: column and row (from the anterior end) of the square's first pixel; negative beyond the volume.
        side: columns and rows of the square, voxels.
        outside: brain voxels that the square leaves out.
    """

    planes: tuple[int, ...]
    thin: tuple[int, ...]
    corner: tuple[int, int]
    side: tuple[int, int]
    outside: int


def cut(brain: np.ndarray, affine: np.ndarray, params: RecipeParams) -> Cut:
    """Choose planes and square.

    Args:
        brain: (X, Y, Z) bool in RAS order, not empty.
        affine: (4, 4).
        params: ``min_brain``, ``slice_step``, ``square``.
    """
    size = zooms(affine)
    area = brain.sum(axis=(0, 1))
    enough = area * size[0] * size[1] >= max(params.min_brain * params.square**2, 1e-9)
    kept = np.flatnonzero(enough)
    planes = kept[kept % params.slice_step == 0]
    side = (max(1, round(params.square / size[0])), max(1, round(params.square / size[1])))
    box = bounds(brain)
    assert box is not None
    columns, rows = brain.shape[0], brain.shape[1]
    left = _start(columns, side[0], box[0].start, box[0].stop)
    top = _start(rows, side[1], rows - box[1].stop, rows - box[1].start)
    low = max(0, rows - top - side[1])
    inside = brain[max(0, left) : left + side[0], low : rows - top]
    outside = int(brain.sum()) - int(inside.sum())
    thin = np.flatnonzero((area > 0) & ~enough)
    return Cut(tuple(planes.tolist()), tuple(thin.tolist()), (left, top), side, outside)


def _start(length: int, side: int, first: int, stop: int) -> int:
    """Where a square of ``side`` begins on an axis: centred, moved just far enough to hold first..stop, if it can."""
    start = (length - side) // 2
    if side >= length or stop - first > side:
        return start
    return min(max(start, stop - side), first)


def slices(volume: np.ndarray, cut: Cut) -> np.ndarray:
    """The kept planes of a (X, Y, Z) RAS volume as (S, rows, columns): anterior at the top, left at low columns."""
    chosen = list(cut.planes)
    stack = volume[:, ::-1, chosen].transpose(2, 1, 0)
    height, width = stack.shape[1:]
    (left, top), (columns, rows) = cut.corner, cut.side
    result = np.zeros((len(chosen), rows, columns), volume.dtype)
    across = slice(max(0, left), min(width, left + columns))
    down = slice(max(0, top), min(height, top + rows))
    target = (slice(None), slice(down.start - top, down.stop - top), slice(across.start - left, across.stop - left))
    result[target] = stack[:, down, across]
    return result
