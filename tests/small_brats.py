"""A tiny dataset in the BraTS'21 layout: ellipsoid brains of 8 mm voxels, a bright lesion on the patient's left."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adbench.datasets.adapters.brats import BraTS21
from adbench.datasets.io import nifti
from adbench.params import build

SHAPE, VOXEL = (30, 30, 20), 8.0
AFFINE = np.array([[-VOXEL, 0, 0, 0], [0, -VOXEL, 0, VOXEL * 29], [0, 0, VOXEL, 0], [0, 0, 0, 1.0]])  # LPS
PARAMS = {"size": 32, "min_brain": 0.01, "val_share": 0.25, "test_share": 0.25}


def write(root: Path, n: int = 6, kinds: tuple[str, ...] = ("flair", "t1")) -> Path:
    """Write ``n`` cases below ``root``; returns it."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, length) for length in SHAPE), indexing="ij"))
    for number in range(n):
        rng = np.random.default_rng(number)
        brain = (grid**2).sum(axis=0) < 0.8
        lesion = ((grid - np.array([0.4, 0.1, 0.0])[:, None, None, None]) ** 2).sum(axis=0) < 0.03 + 0.01 * number
        name = f"BraTS2021_{number:05d}"
        for kind in kinds:
            image = (brain * (300 + 80 * grid[1] + rng.normal(0, 15, SHAPE) + 200 * lesion)).astype(np.int16)
            nifti.write(root / name / f"{name}_{kind}.nii.gz", image, AFFINE)
        nifti.write(root / name / f"{name}_seg.nii.gz", (lesion * 4).astype(np.uint8), AFFINE)
    return root


def dataset(root: Path, **params: object) -> BraTS21:
    """The adapter on ``root``."""
    return BraTS21(build(BraTS21.Params, "brats21", {**PARAMS, **params}), root)
