"""The MNI152 2009a symmetric template of the nilearn wheel as a target: grid, brain, mask."""

from __future__ import annotations

from functools import cache

import numpy as np

from adbench.datasets.phantom.template import ORIGIN, SHAPE, template_files
from adbench.datasets.preprocessing.brain_extraction import background

AFFINE = np.array([[1.0, 0, 0, ORIGIN[0]], [0, 1, 0, ORIGIN[1]], [0, 0, 1, ORIGIN[2]], [0, 0, 0, 1]])
CROWN = (0.0, -15.5, 99.0)  # mm: middle of the head from above and its highest point (2009a symmetric, with skull)
HEAD_MARGIN = 4.0  # mm around the template's brain in which a whole head is compared with it
HEAD_SCALE = 0.93  # the template is larger than most heads: a search that starts there ends at the skull less often
BRAIN_MARGIN = 3.0  # the same for an extracted brain


def same_grid(shape: tuple[int, ...], affine: np.ndarray, tolerance: float = 0.01) -> bool:
    """Whether a RAS volume lies on the template's grid, voxel for voxel (within ``tolerance`` mm)."""
    return tuple(shape) == SHAPE and bool(np.abs(np.asarray(affine) - AFFINE).max() < tolerance)


@cache
def brain() -> np.ndarray:
    """(197, 233, 189) uint8: the T1 template, brain only."""
    import nibabel

    return np.asarray(nibabel.load(template_files()["t1"]).dataobj)  # type: ignore[attr-defined]


@cache
def _inside() -> np.ndarray:
    return background(brain(), "the template")


@cache
def _distance() -> np.ndarray:
    """mm to the brain, 0 inside."""
    from scipy import ndimage

    return ndimage.distance_transform_edt(~_inside()).astype(np.float32)  # voxels of 1 mm


@cache
def mask(margin: float) -> np.ndarray:
    """(197, 233, 189) bool: the template's brain without holes, dilated by ``margin`` mm."""
    return _inside() if margin <= 0 else _distance() <= margin
