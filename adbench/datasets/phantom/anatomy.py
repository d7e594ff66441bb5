"""A subject's healthy anatomy: the template seen through a random, smooth and invertible deformation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adbench.datasets.phantom import fields
from adbench.datasets.phantom.template import PhantomGrid, template
from adbench.datasets.preprocessing.template import ORIGIN

# Choi & Lee (2000), "Injectivity conditions of 2D and 3D uniform cubic B-spline functions": a displacement whose
# coefficients stay below spacing / 2.48 along each axis is injective. The bound is one on first derivatives, so shares
# of it add up over levels; the rest is left to the ventricles and the affine part.
INJECTIVE = 1 / 2.479472335
LEVELS = ((56.0, 0.30, 3.5), (26.0, 0.32, 1.6))  # spacing mm, share of the bound, standard deviation mm
VENTRICLES = (-1.0, 4.0)  # mm by which the walls of the lateral ventricles move; the template's are a young adult's
CORTEX = 5.0  # mm, size of the folds by which subjects differ


@dataclass(frozen=True)
class MassEffect:
    """A growing tumour pushes tissue outward from ``centre``.

    Seen from the deformed side, the tissue at distance r from the centre was at ``r * (1 - s * exp(-(r / R)**2))``;
    that grows with r for every s < 1, so the map is invertible.

    Attributes:
        centre: template coordinates, mm.
        radius: R, mm.
        strength: s, 0 <= s < 1.
    """

    centre: tuple[float, float, float]
    radius: float
    strength: float

    def apply(self, points: np.ndarray) -> np.ndarray:
        """Positions of the tissue now at ``points`` before it was displaced: (3, P) mm -> (3, P) mm."""
        offset = points - np.asarray(self.centre, np.float32)[:, None]
        squared = (offset**2).sum(axis=0)
        return np.asarray(points - offset * np.float32(self.strength) * np.exp(-squared / np.float32(self.radius) ** 2))


@dataclass(frozen=True)
class Anatomy:
    """A subject's tissues at the P voxels of its brain.

    Attributes:
        frame: the grid.
        brain: (X, Y, Z) bool, P voxels set.
        points: (3, P) template coordinates of those voxels before any mass effect, mm: where lesions are drawn.
        gm, wm, csf: (P,) float32 fractions that sum to 1.
        detail: (P,) float32 myelin and iron beyond the three tissues, in units of the white matter's T1 intensity.
        ventricle: (P,) float32 distance to the lateral ventricles, mm (up to 63).
        rim: (P,) float32 in (0.5, 1], how much of the voxel is brain and not the empty outside.
    """

    frame: PhantomGrid
    brain: np.ndarray
    points: np.ndarray
    gm: np.ndarray
    wm: np.ndarray
    csf: np.ndarray
    detail: np.ndarray
    ventricle: np.ndarray
    rim: np.ndarray

    def field(self, rng: np.random.Generator, spacing: float) -> np.ndarray:
        """(P,) smooth random field of unit variance with features of ``spacing`` mm."""
        return np.asarray(fields.random_field(rng, self.frame.axes, spacing, self.frame.bounds)[self.brain])

    def volume(self, values: np.ndarray) -> np.ndarray:
        """(X, Y, Z) with ``values`` (P,) in the brain and 0 outside."""
        volume = np.zeros(self.frame.shape, values.dtype)
        volume[self.brain] = values
        return volume


def deformation(rng: np.random.Generator, frame: PhantomGrid) -> np.ndarray:
    """A random invertible map from the subject's grid to the template.

    A rotation, a scaling, the size of the ventricles and two levels of B-spline displacement; about what is left
    between healthy people after affine registration.

    Args:
        rng: source of every draw.
        frame: the subject's grid.

    Returns:
        (3, X, Y, Z) float32 template coordinates in mm of every voxel.
    """
    grid = np.stack(np.meshgrid(*frame.axes, indexing="ij"))
    moved = _affine(rng, grid)
    ventricles = np.clip(rng.normal(1.4, 1.6), *VENTRICLES)
    moved += _on_grid(template().pull, frame) * np.float32(ventricles)
    for spacing, share, deviation in LEVELS:
        limit = share * INJECTIVE * spacing
        shape = (3, *fields.control_shape(spacing, frame.bounds))
        coefficients = np.clip(rng.normal(0, deviation / fields.UNIT, shape), -limit, limit)
        for axis in range(3):
            moved[axis] += fields.evaluate_spline(coefficients[axis], frame.axes, spacing, frame.bounds)
    return moved


def _affine(rng: np.random.Generator, grid: np.ndarray) -> np.ndarray:
    a, b, c = np.deg2rad(rng.normal(0, 1.5, 3))
    turn = np.array([[1, -c, b], [c, 1, -a], [-b, a, 1]])  # small angles
    scale = (1 + rng.normal(0, 0.02)) * (1 + rng.normal(0, 0.02, 3))
    shift = rng.normal(0, 1.0, 3)
    matrix = (turn * scale).astype(np.float32)
    moved = [row[0] * grid[0] + row[1] * grid[1] + row[2] * grid[2] for row in matrix]  # not BLAS: see fields
    return np.stack(moved) + shift.astype(np.float32)[:, None, None, None]


def _on_grid(lattice: np.ndarray, frame: PhantomGrid) -> np.ndarray:
    """A (3, ...) map of the 4 mm lattice on the subject's grid, by separable linear interpolation."""
    result = lattice
    for axis in (2, 1, 0):
        index = (frame.axes[axis] - ORIGIN[axis]) / 4
        count = lattice.shape[axis + 1]
        weights = np.clip(1 - np.abs(index[:, None] - np.arange(count)), 0, 1).astype(np.float32)
        weights[index > count - 1, -1] = 1
        result = fields.apply_weights(weights, result, axis + 1, taps=2)
    return result


def build_anatomy(rng: np.random.Generator, frame: PhantomGrid, mass: MassEffect | None = None) -> Anatomy:
    """Draw one subject.

    Args:
        rng: source of every draw; the same generator state gives the same subject, mass effect or not.
        frame: the grid to draw it on.
        mass: displacement by a tumour, or None.
    """
    maps = template()
    coordinates = deformation(rng, frame)
    flat = coordinates.reshape(3, -1)
    tissue = flat if mass is None else mass.apply(flat)
    inside = maps.sample("brain", tissue) / 255
    brain = inside > 0.5
    points, tissue, rim = flat[:, brain], tissue[:, brain], inside[brain]
    brain = brain.reshape(frame.shape)
    gm, wm = (maps.sample(name, tissue) / 255 for name in ("gm", "wm"))
    # The template is a mean of many brains: sharpen its fractions, and let each subject fold its own cortex.
    atrophy = rng.normal(0.5, 0.45)
    logits = []
    for fraction, lean in ((gm, 0.0), (wm, 0.0), (1 - gm - wm, atrophy)):
        field = fields.random_field(rng, frame.axes, CORTEX, frame.bounds)[brain]
        logits.append(1.8 * np.log(fraction.clip(0, 1) + 0.02) + 0.42 * field + lean)
    weights = np.exp(np.stack(logits))
    gm, wm, csf = weights / weights.sum(axis=0)
    return Anatomy(
        frame=frame,
        brain=brain,
        points=points,
        gm=gm,
        wm=wm,
        csf=csf,
        detail=(maps.sample("detail", tissue) - 128) / 255,
        ventricle=maps.sample("ventricle", tissue) / 4,
        rim=rim,
    )
