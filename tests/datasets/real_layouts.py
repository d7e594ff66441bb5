"""Cases in the layouts of IXI, ATLAS and BraTS'21 with their true grids, and next to nothing in them: made in a moment."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from adbench.datasets.io import nifti
from adbench.params import build

BRATS_AFFINE = np.array([[-1.0, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])
MNI_AFFINE = np.array([[1.0, 0, 0, -98], [0, 1, 0, -134], [0, 0, 1, -72], [0, 0, 0, 1]])
BRATS_SHAPE, MNI_SHAPE = (240, 240, 155), (197, 233, 189)
SMALL = (12, 14, 10)


@cache
def box(shape: tuple[int, int, int]) -> np.ndarray:
    """A brain: a box in the middle of the volume."""
    inside = np.zeros(shape, bool)
    inside[tuple(slice(n // 4, 3 * n // 4) for n in shape)] = True
    return inside


def image(shape: tuple[int, int, int], seed: int, dtype: Any = np.int16) -> np.ndarray:
    """Tissue in the box, 0 outside; every seed gives another one, also after normalisation."""
    ramp = np.random.default_rng(seed).permutation(50)[np.arange(shape[2]) % 50] + 100 + seed
    return (box(shape) * ramp).astype(dtype)


def lesion(shape: tuple[int, int, int], values: tuple[int, ...] = (1, 2, 4)) -> np.ndarray:
    """A mask in the middle of the box with a few voxels of every value."""
    mask = np.zeros(shape, np.uint8)
    centre = [n // 2 for n in shape]
    for offset, value in enumerate(values):
        mask[centre[0] + offset, centre[1], centre[2] - 1 : centre[2] + 1] = value
    return mask


@cache
def written(shape: tuple[int, int, int], seed: int | None, affine: tuple[float, ...], codes: tuple[int, int]) -> bytes:
    """The file of :func:`image`, or of :func:`lesion` without a seed: compressed once, wanted by many tests."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "volume.nii.gz"
        data = lesion(shape) if seed is None else image(shape, seed)
        nifti.write(path, data, np.reshape(affine, (4, 4)), codes=codes)
        return path.read_bytes()


def brats(
    root: Path,
    number: str = "00001",
    shape: tuple[int, int, int] = BRATS_SHAPE,
    affine: np.ndarray = BRATS_AFFINE,
    codes: tuple[int, int] = (2, 0),
    **files: Any,
) -> Path:
    """One BraTS'21 case; ``files`` (t1, t1ce, t2, flair, seg) replace arrays, None leaves a file out."""
    stem = f"BraTS2021_{number}"
    (root / stem).mkdir(parents=True, exist_ok=True)
    seeds = {kind: 10 * i + int(number) for i, kind in enumerate(("t1", "t1ce", "t2", "flair"))}
    for kind, seed in {**seeds, "seg": None}.items():
        path = root / stem / f"{stem}_{kind}.nii.gz"
        if kind not in files:
            path.write_bytes(written(shape, seed, tuple(affine.ravel().tolist()), codes))
        elif files[kind] is not None:
            nifti.write(path, files[kind], affine, codes=codes)
    return root / stem


def ixi(root: Path, subject: str = "002", site: str = "Guys", scan: str = "0828", kinds: str = "T1 T2 PD") -> Path:
    """One IXI subject."""
    for index, kind in enumerate(kinds.split()):
        data = image(SMALL, 10 * index + int(subject) + int(scan), np.int16)
        nifti.write(root / f"IXI-{kind}" / f"IXI{subject}-{site}-{scan}-{kind}.nii.gz", data, np.diag([1, 1, 1, 1.0]))
    return root


def atlas(
    folder: Path, subject: str, shape: tuple[int, int, int] = SMALL, masked: bool = True, flat: bool = False
) -> Path:
    """One ATLAS subject in ``folder``, or in its Images/ and Masks/ when ``flat``."""
    stem = f"sub-{subject}_ses-1_space-MNI152NLin2009aSym"
    affine = MNI_AFFINE
    seed = int(subject[1:4]) * 1000 + int(subject[5:8])
    where = folder / "Images" if flat else folder
    nifti.write(where / f"{stem}_T1w.nii.gz", image(shape, seed, np.float32), affine)
    if masked:
        where = folder / "Masks" if flat else folder
        nifti.write(where / f"{stem}_label-L_desc-T1lesion_mask.nii.gz", lesion(shape, (1,)), affine)
    return folder


def dataset(cls: Any, root: Path, **params: Any) -> Any:
    """The adapter on ``root``."""
    return cls(build(cls.Params, f"dataset {cls.info.name}", params), root)
