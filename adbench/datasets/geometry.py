"""Voxel grids from the provider's file to the prepared slices, and back.

Three grids, each an array shape and an affine to world millimetres (RAS+):

* *original*: the file as its provider ships it;
* *registered*: a RAS volume, either the file's own voxels reoriented or the template's grid after registration;
* *prepared*: the stored slices: columns run left to right, rows from anterior to posterior, slices upwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Geometry:
    """How the prepared slices of one case were cut.

    Attributes:
        original_shape: voxels of the provider's image.
        original_affine: its voxels to its world, mm.
        registered_shape: voxels of the RAS volume that was cut into slices.
        registered_affine: its voxels to its world, mm.
        to_original_world: registered world to original world, mm; the identity without registration.
        registration: "none", "rigid" or "affine".
        corner: column and row of the square's first pixel in the registered volume, as voxel indices along x and (from
            the anterior end) along y; negative where the square reaches beyond the volume.
        side: of the square, voxels of the registered volume along x and y; they differ where its pixels are not square.
        size: of a prepared slice, px.
        step: distance of neighbouring prepared slices, voxels.
    """

    original_shape: tuple[int, ...]
    original_affine: Matrix
    registered_shape: tuple[int, ...]
    registered_affine: Matrix
    to_original_world: Matrix
    registration: str
    corner: tuple[int, int]
    side: tuple[int, int]
    size: int
    step: int = 1

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers; :meth:`from_json` gives the same geometry back, bit for bit."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The geometry that :meth:`to_json` wrote."""
        return cls(**{key: _tuples(item) for key, item in value.items()})

    def prepared_to_registered(self) -> np.ndarray:
        """(4, 4): prepared (column, row, plane), plane being the slice index, to registered voxel indices (x, y, z)."""
        across, down = (side / self.size for side in self.side)
        transform = np.diag([across, -down, 1.0, 1.0])
        # The half pixels: grids agree in their edges, affines speak of voxel centres.
        transform[0, 3] = self.corner[0] + (across - 1) / 2
        transform[1, 3] = self.registered_shape[1] - 1 - (self.corner[1] + (down - 1) / 2)
        return transform

    def prepared_affine(self) -> np.ndarray:
        """(4, 4): prepared (column, row, plane) to registered world, mm."""
        return np.asarray(np.asarray(self.registered_affine) @ self.prepared_to_registered())

    def original_to_registered(self) -> np.ndarray:
        """(4, 4): original voxel indices to registered voxel indices."""
        to_world = np.linalg.inv(np.asarray(self.to_original_world)) @ np.asarray(self.original_affine)
        return clean(np.linalg.inv(np.asarray(self.registered_affine)) @ to_world)

    def original_to_prepared(self) -> np.ndarray:
        """(4, 4): original voxel indices to prepared (column, row, plane)."""
        return clean(np.linalg.inv(self.prepared_to_registered()) @ self.original_to_registered())

    @property
    def registered_voxel_ml(self) -> float:
        """Volume of one registered voxel, ml."""
        return float(abs(np.linalg.det(np.asarray(self.registered_affine)[:3, :3])) / 1000)

    @property
    def prepared_voxel_ml(self) -> float:
        """Volume one prepared voxel stands for in the registered world, ml; skipped slices count to their neighbours."""
        return self.registered_voxel_ml * self.side[0] * self.side[1] / self.size**2 * self.step

    @property
    def volume_scale(self) -> float:
        """Original volume per registered volume: a prepared volume times this is the patient's."""
        return float(abs(np.linalg.det(np.asarray(self.to_original_world)[:3, :3])))


def matrix(values: np.ndarray) -> Matrix:
    """A (4, 4) array as nested tuples of Python floats."""
    return tuple(tuple(float(v) for v in row) for row in np.asarray(values, np.float64))


def clean(transform: np.ndarray, tolerance: float = 1e-6) -> np.ndarray:
    """``transform`` with entries that are whole numbers but for round-off made whole, so that a copy stays a copy."""
    whole = np.round(transform)
    return np.where(np.abs(transform - whole) < tolerance, whole, transform)


def _tuples(value: Any) -> Any:
    return (
        tuple(_tuples(item) for item in value) if isinstance(value, Sequence) and not isinstance(value, str) else value
    )


def to_ras(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The volume with its axes nearest to right, anterior, superior.

    Args:
        array: (X, Y, Z), any type.
        affine: (4, 4) voxel to world, mm, RAS+; may be oblique.

    Returns:
        A view of ``array`` and the affine that places every voxel where it was. The first axis runs from the patient's
        left to right: left is at low x.
    """
    from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

    turn = io_orientation(affine)
    return apply_orientation(array, turn), np.asarray(affine, np.float64) @ inv_ornt_aff(turn, array.shape)


def zooms(affine: np.ndarray) -> np.ndarray:
    """(3,) voxel size along each axis, mm."""
    return np.asarray(np.sqrt((np.asarray(affine, np.float64)[:3, :3] ** 2).sum(axis=0)))


def voxel_ml(affine: np.ndarray) -> float:
    """Volume of one voxel, ml."""
    return float(abs(np.linalg.det(np.asarray(affine)[:3, :3])) / 1000)


def _only_moves(to_voxel: np.ndarray) -> bool:
    """Whether every voxel of one grid lies on one of the other's: whole steps, axes in another order or direction."""
    turn = np.abs(to_voxel[:3, :3])
    whole = (to_voxel == np.round(to_voxel)).all() and (turn <= 1).all()
    return bool(whole and (turn.sum(axis=0) == 1).all() and (turn.sum(axis=1) == 1).all())


def _copied(source: np.ndarray, to_voxel: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """:func:`resample` where :func:`_only_moves`: the same values in a tenth of the time."""
    moved = np.zeros(shape, source.dtype)
    order = np.abs(to_voxel[:3, :3]).argmax(axis=0)  # the axis of ``source`` along each new one
    taken, filled = [], []
    for new, old in enumerate(order):
        step, first, size = int(to_voxel[old, new]), int(to_voxel[old, 3]), source.shape[old]
        ends = sorted((-first * step, (size - 1 - first) * step))  # the new indices of its first and last plane
        low, high = max(ends[0], 0), max(min(ends[1] + 1, shape[new]), 0)
        filled.append(slice(low, high))
        begin, end = first + step * low, first + step * high
        taken.append(slice(begin, end if end >= 0 else None, step) if low < high else slice(0, 0))
    moved[tuple(filled)] = source.transpose(order)[tuple(taken)]
    if source.dtype.kind == "f":
        moved += 0  # -0 becomes 0, as it does in a sum of neighbours
    return moved


def resample(
    array: np.ndarray, to_voxel: np.ndarray, shape: tuple[int, ...], *, linear: bool, double: bool = False
) -> np.ndarray:
    """``array`` on another grid; 0 outside its field of view.

    Args:
        array: (X, Y, Z). Bool masks need ``linear=False``.
        to_voxel: (4, 4) voxel indices of the new grid to voxel indices of ``array``.
        shape: of the new grid.
        linear: trilinear, float32; otherwise the nearest voxel, in the type of ``array``.
        double: trilinear in float64.
    """
    from scipy import ndimage

    if linear:
        source = np.asarray(array, np.float64 if double else np.float32)
        kind = source.dtype.type
    else:
        source = array.view(np.uint8) if array.dtype == np.bool_ else array
        kind = source.dtype.type
    to_voxel = clean(to_voxel)
    moved: np.ndarray
    if _only_moves(to_voxel):
        moved = _copied(source, to_voxel, shape)
    else:
        moved = ndimage.affine_transform(
            source, to_voxel[:3, :3], to_voxel[:3, 3], shape, order=int(linear), output=kind, mode="grid-constant"
        )
    return moved.view(np.bool_) if array.dtype == np.bool_ else moved
