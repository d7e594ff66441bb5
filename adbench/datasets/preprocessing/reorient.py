"""Turning a volume to RAS by its affine: axes permuted and flipped, no voxel interpolated."""

from __future__ import annotations

import numpy as np

from adbench.datasets.geometry import clean


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
    to_voxel = clean(to_voxel)  # where grids agree, a copy is a copy
    moved: np.ndarray = ndimage.affine_transform(
        source, to_voxel[:3, :3], to_voxel[:3, 3], shape, order=int(linear), output=kind, mode="grid-constant"
    )
    return moved.view(np.bool_) if array.dtype == np.bool_ else moved
