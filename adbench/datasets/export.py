"""Prepared arrays back to NIfTI: on the prepared grid, or on the grid of the file they came from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from adbench.datasets.geometry import Geometry
from adbench.datasets.io import nifti
from adbench.datasets.store.slice_store import SliceStore
from adbench.errors import UserError

Space = Literal["prepared", "original"]
SPACES: tuple[Space, ...] = ("prepared", "original")


def prepared_volume(
    geometry: Geometry | None, slices: Sequence[int], array: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The slices of one case as a volume on the prepared grid.

    Args:
        geometry: of the case; None: unknown, voxels then count as 1 mm.
        slices: S slice indices, ascending.
        array: (S, H, W), any type.

    Returns:
        (W, H, Z) array, its axes running right, anterior and up, planes that were not kept filled with 0; and its
        (4, 4) affine to world mm (the template's after registration, else the patient's).
    """
    slab, first, step = _slab(geometry, slices, array)
    place = np.eye(4) if geometry is None else geometry.prepared_affine()
    rows = slab.shape[1]
    # Rows run from anterior to posterior; flipped, the volume is the RAS that viewers expect.
    flip = np.diag([1.0, -1.0, step, 1.0])
    flip[:3, 3] = 0, rows - 1, first
    return slab[:, ::-1], place @ flip


def original_volume(geometry: Geometry, slices: Sequence[int], array: np.ndarray, *, linear: bool) -> np.ndarray:
    """The slices of one case on the voxels of the file they came from, registration and orientation undone.

    Args:
        geometry: of the case.
        slices: S slice indices, ascending.
        array: (S, H, W).
        linear: trilinear, float32 or, of float64, float64 (maps); otherwise nearest (masks, labels).

    Returns:
        (X, Y, Z) in the stored axis order of the original file; 0 where no prepared slice reaches.
    """
    from adbench.datasets.geometry import resample

    slab, first, step = _slab(geometry, slices, array)
    to_slab = np.diag([1.0, 1.0, 1 / step, 1.0])
    to_slab[2, 3] = -first / step
    to_voxel = to_slab @ geometry.original_to_prepared()
    return resample(slab, to_voxel, geometry.original_shape, linear=linear, double=array.dtype == np.float64)


def placed(
    store: SliceStore,
    case_id: str,
    slices: Sequence[int],
    array: np.ndarray,
    space: str,
    linear: bool | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(X, Y, Z) and the (4, 4) affine to mm of an (S, H, W) array of ascending slices of a case; masks become uint8.

    On the original grid floats are interpolated linearly and everything else by the nearest voxel, unless ``linear`` says.

    Raises:
        UserError: no such case; slices that come from no volume, so that there is no original grid to go back to.
    """
    if space == "original":
        geometry = store.geometry(case_id)
        linear = array.dtype.kind == "f" if linear is None else linear
        volume = original_volume(geometry, slices, array, linear=linear)
        affine = np.asarray(geometry.original_affine)
    else:
        stored = store.case(case_id).geometry
        volume, affine = prepared_volume(Geometry.from_json(stored) if stored else None, slices, array)
    kinds = {np.dtype(np.bool_): np.uint8, np.dtype(np.float16): np.float32}  # which NIfTI has not
    return volume.astype(kinds.get(volume.dtype, volume.dtype), copy=False), affine


def export_stack(
    store: SliceStore,
    case_id: str,
    array: np.ndarray,
    folder: Path,
    *,
    space: Space = "prepared",
    name: str = "map",
    linear: bool | None = None,
) -> Path:
    """Write one case's array as ``{case}_{name}_space-{space}.nii.gz``.

    Args:
        store: that the case is in.
        case_id: of the case.
        array: (S, H, W), one slice for each row of the case: an anomaly map, a mask, an image.
        folder: to write to.
        space: grid of the result.
        name: what the array is.
        linear: how to interpolate on the original grid; None: floats linearly, everything else by nearest neighbour.

    Returns:
        The file's path.

    Raises:
        UserError: no such case, an array of another shape, or slices that come from no volume.
    """
    case = store.case(case_id)
    expected = (len(case.slices), *store.shape)
    if array.shape != expected:
        raise UserError(f"case {case_id}: an array of shape {array.shape} cannot be exported, expected {expected}.")
    array = array.astype(np.float32) if array.dtype.kind == "f" else array
    if space not in SPACES:
        raise UserError(f"There is no space {space!r} to export to. Known: {', '.join(SPACES)}.")
    path = Path(folder) / f"{_safe(case_id)}_{_safe(name)}_space-{space}.nii.gz"
    nifti.write(path, *placed(store, case_id, case.slices, array, space, linear))
    return path


def export_case(store: SliceStore, case_id: str, folder: Path, *, space: Space = "prepared") -> list[Path]:
    """Write the prepared image, brain mask and lesion mask (if there is one) of a case; see :func:`export_stack`."""
    case = store.case(case_id)
    arrays = {store.modality: store.images, "brain": store.brains}
    if case.masked:
        arrays["lesion"] = store.lesions
    return [
        export_stack(store, case_id, np.asarray(array[case.rows]), folder, space=space, name=name)
        for name, array in arrays.items()
    ]


def _slab(geometry: Geometry | None, slices: Sequence[int], array: np.ndarray) -> tuple[np.ndarray, int, int]:
    """(W, H, Z) with every plane between the first and the last, the first plane's index, and the step."""
    indices = np.asarray(slices)
    gaps = np.diff(indices)
    step = geometry.step if geometry is not None else int(np.gcd.reduce(gaps)) if len(gaps) else 1
    places = (indices - indices[0]) // step
    slab = np.zeros((places[-1] + 1, *array.shape[1:]), array.dtype)
    slab[places] = array
    return slab.transpose(2, 1, 0), int(indices[0]), step


def _safe(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)
