"""The tissues around the brain of a phantom: fluid, skull, scalp, a face and a neck.

The template is skull-stripped; these layers are grown outward from each subject's own brain. They are there to be removed
again: plausible in order, thickness and brightness, not anatomy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adbench.datasets.phantom import fields
from adbench.datasets.phantom.anatomy import Anatomy

STEP = 2  # voxels of 1 mm between the points at which layers are computed
AIR, FLUID, BONE, MARROW, FAT, MUSCLE, EYE = range(7)
# Brightness by modality in units of white matter on T1, in the order above.
BRIGHTNESS = {
    "T1": (0.0, 0.26, 0.07, 0.60, 1.30, 0.50, 0.24),
    "T2": (0.0, 1.15, 0.05, 0.40, 0.72, 0.26, 1.25),
    "PD": (0.0, 0.80, 0.07, 0.50, 0.85, 0.62, 0.85),
}


@dataclass(frozen=True)
class Head:
    """The tissues outside one subject's brain on a RAS grid of 1 mm.

    Attributes:
        origin: mm of the first voxel.
        tissue: (X, Y, Z) uint8, one of the constants of this module; whatever is inside the brain counts for nothing.
        brain: (X, Y, Z) bool on the same grid.
        texture: (X, Y, Z) float32, relative brightness.
    """

    origin: tuple[float, float, float]
    tissue: np.ndarray
    brain: np.ndarray
    texture: np.ndarray

    def signal(self, modality: str, anatomy: Anatomy, brain_signal: np.ndarray) -> np.ndarray:
        """The noise-free head.

        Args:
            modality: one of :data:`BRIGHTNESS`.
            anatomy: of the same subject.
            brain_signal: (P,) signal of the brain's voxels, faded at its rim.

        Returns:
            (X, Y, Z) float32, at least 0.
        """
        from scipy import ndimage

        values = np.asarray(BRIGHTNESS[modality], np.float32)
        outside: np.ndarray = ndimage.gaussian_filter(values[self.tissue], 0.6) * self.texture
        fade = fields.power(2 * anatomy.rim - 1, 0.7)
        outside[self.brain] = brain_signal + (1 - fade) * values[FLUID]
        return outside


def grow(rng: np.random.Generator, anatomy: Anatomy, *, below: int = 0, front: int = 0) -> Head:
    """The head around a brain.

    Args:
        rng: source of every draw.
        anatomy: of a whole volume at 1 mm.
        below: voxels that the volume is extended downwards, for the face and the neck.
        front: voxels that it is extended forwards.
    """
    from scipy import ndimage

    brain = np.pad(anatomy.brain, ((0, 0), (0, front), (below, 0)))
    axes = [np.asarray(axis) for axis in anatomy.frame.axes]
    x, y, z = axes[0], _extended(axes[1], 0, front), _extended(axes[2], below, 0)
    coarse = (x[::STEP], y[::STEP], z[::STEP])
    bounds = [(float(axis[0]), float(axis[-1])) for axis in (x, y, z)]

    def field(spacing: float) -> np.ndarray:
        return fields.random_field(rng, coarse, spacing, bounds)

    gx, gy, gz = (axis.astype(np.float32) for axis in np.meshgrid(*coarse, indexing="ij", sparse=True))
    out = ndimage.distance_transform_edt(~brain[::STEP, ::STEP, ::STEP], sampling=STEP).astype(np.float32)
    skull = 6.0 + 0.8 * field(45.0) - 2.0 * (np.abs(gx) > 55)  # mm; thin at the temples
    scalp = 6.0 + 1.0 * field(55.0) + 2.0 * (gz < -20)
    wobble = 3.0 * field(28.0)
    face = (gx / 60) ** 2 + ((gy - 34) / 52) ** 2 + ((gz + 62) / 60) ** 2 < 1 + 0.04 * wobble
    neck = ((gx / 56) ** 2 + ((gy + 22) / 60) ** 2 < 1 + 0.04 * wobble) & (gz < -45)
    head = (out < 2.5 + skull + scalp) | face | neck
    inner = ndimage.distance_transform_edt(head, sampling=STEP).astype(np.float32)
    streaks = field(12.0)

    tissue = np.where(streaks > 0.9, FAT, MUSCLE).astype(np.uint8)
    tissue[inner < 6.0 + 0.5 * wobble] = FAT
    tissue[inner < 2.1] = MUSCLE  # skin
    bone = (out >= 2.5) & (out < 2.5 + skull)
    tissue[bone] = BONE
    tissue[bone & (np.abs(out - 2.5 - skull / 2) < skull / 5) & (gz > -25)] = MARROW
    tissue[out < 2.5] = FLUID
    tissue[(gx / 14) ** 2 + ((gy - 62) / 26) ** 2 + ((gz + 48) / 22) ** 2 < 1 + 0.1 * streaks] = AIR  # nose
    for side in (-1, 1):
        eye = (gx - side * 31) ** 2 + (gy - 60) ** 2 + (gz + 36) ** 2 < 12**2
        tissue[eye & (out > 4)] = EYE
    tissue[~head] = AIR
    shape = brain.shape
    texture = 1 + np.float32(0.05) * field(9.0)
    return Head(
        origin=(float(x[0]), float(y[0]), float(z[0])),
        tissue=_smooth_labels(tissue, shape),
        brain=brain,
        texture=(_eightfold(texture.astype(np.float64), shape) / 8).astype(np.float32),
    )


def _extended(axis: np.ndarray, before: int, after: int) -> np.ndarray:
    return np.arange(axis[0] - before, axis[-1] + after + 0.5, dtype=np.float32)


def _eightfold(coarse: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Eight times the trilinear interpolation on the 1 mm grid, where (i, j, k) of the coarse map is (2i, 2j, 2k).

    In the dtype of ``coarse``, which must hold the sums; exact for integers.
    """
    fine = coarse
    for axis, size in enumerate(shape):
        at, last = np.arange(size), coarse.shape[axis] - 1
        fine = fine.take(at // STEP, axis) + fine.take(np.minimum((at + 1) // STEP, last), axis)
    return fine


def _smooth_labels(coarse: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Labels on the 1 mm grid: at every voxel the one with the largest interpolated share."""
    best, labels = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    for label in np.unique(coarse):
        share = _eightfold((coarse == label).astype(np.uint8), shape)
        better = share > best
        best[better] = share[better]
        labels[better] = label
    return labels
