"""The MNI152 2009a symmetric template of the nilearn wheel as a target: grid, brain, mask."""

from __future__ import annotations

from functools import cache

import numpy as np

from adbench.datasets.phantom.template import ORIGIN, SHAPE, template_files

AFFINE = np.array([[1.0, 0, 0, ORIGIN[0]], [0, 1, 0, ORIGIN[1]], [0, 0, 1, ORIGIN[2]], [0, 0, 0, 1]])


def same_grid(shape: tuple[int, ...], affine: np.ndarray, tolerance: float = 0.01) -> bool:
    """Whether a RAS volume lies on the template's grid, voxel for voxel (within ``tolerance`` mm)."""
    return tuple(shape) == SHAPE and bool(np.abs(np.asarray(affine) - AFFINE).max() < tolerance)


@cache
def brain() -> np.ndarray:
    """(197, 233, 189) uint8: the T1 template, brain only."""
    import nibabel

    return np.asarray(nibabel.load(template_files()["t1"]).dataobj)  # type: ignore[attr-defined]


@cache
def mask(margin: float) -> np.ndarray:
    """(197, 233, 189) bool: the template's brain without holes, dilated by ``margin`` mm."""
    from scipy import ndimage

    inside = ndimage.binary_fill_holes(brain() > 0)
    if margin <= 0:
        return inside
    return ndimage.distance_transform_edt(~inside) <= margin  # 1 mm voxels
