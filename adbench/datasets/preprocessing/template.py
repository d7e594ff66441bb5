"""The MNI152 2009a symmetric template that ships in the nilearn wheel: its files, its grid, its brain."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from adbench.datasets.io import nifti
from adbench.datasets.preprocessing.brain_extraction import background
from adbench.errors import UserError
from adbench.utils.hashing import digest_file

SHAPE = (197, 233, 189)  # voxels of 1 mm
ORIGIN = (-98.0, -134.0, -72.0)  # mm, RAS
FILES = {name: f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz" for name in ("t1", "gm", "wm")}
AFFINE = np.array([[1.0, 0, 0, ORIGIN[0]], [0, 1, 0, ORIGIN[1]], [0, 0, 1, ORIGIN[2]], [0, 0, 0, 1]])
CROWN = (0.0, -15.5, 99.0)  # mm: middle of the head from above and its highest point (2009a symmetric, with skull)
HEAD_MARGIN = 4.0  # mm around the template's brain in which a whole head is compared with it
HEAD_SCALE = 0.93  # the template is larger than most heads: a search that starts there ends at the skull less often
BRAIN_MARGIN = 3.0  # the same for an extracted brain


def template_files() -> dict[str, Path]:
    """Paths of the three maps in the installed nilearn.

    Raises:
        UserError: nilearn is missing or does not ship them.
    """
    package = find_spec("nilearn")  # located, not imported: that would take a second
    if package is None or package.origin is None:
        raise UserError("The MNI152 template comes with nilearn, which is missing: pip install nilearn.")
    folder = Path(package.origin).parent / "datasets" / "data"
    files = {name: folder / file for name, file in FILES.items()}
    for file in files.values():
        if not file.is_file():
            raise UserError(
                f"The MNI152 template {file} is missing, which nilearn should ship: reinstall nilearn (>= 0.12)."
            )
    return files


@cache
def template_digest() -> str:
    """SHA-256 (first 16 hex digits each) of the three files, for the recipe."""
    return " ".join(digest_file(file)[:16] for file in template_files().values())


def same_grid(shape: tuple[int, ...], affine: np.ndarray) -> bool:
    """Whether a RAS volume lies on the template's grid, voxel for voxel (within .01 mm)."""
    return tuple(shape) == SHAPE and bool(np.abs(np.asarray(affine) - AFFINE).max() < 0.01)


@cache
def brain() -> np.ndarray:
    """(197, 233, 189) uint8: the T1 template, brain only."""
    return nifti.read(template_files()["t1"]).data


@cache
def _inside() -> np.ndarray:
    return background(brain(), "T1", "the template")


@cache
def _distance() -> np.ndarray:
    """mm to the brain, 0 inside."""
    from scipy import ndimage

    return np.asarray(ndimage.distance_transform_edt(~_inside()), np.float32)  # voxels of 1 mm


@cache
def mask(margin: float) -> np.ndarray:
    """(197, 233, 189) bool: the template's brain without holes, dilated by ``margin`` mm."""
    return _inside() if margin <= 0 else _distance() <= margin
