"""NIfTI of a report, through the whole command: files lie voxel for voxel on the source they came from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

Cli = Callable[..., tuple[int, str, str]]
SAME_GRID = ("--set", "dataset.size=64", "--set", "dataset.field_of_view=64")  # a prepared pixel is a voxel of 1 mm


@pytest.fixture
def run_folder(cli: Cli, volumes: Path, tmp_path: Path) -> Path:
    code, _, err = cli(
        "run", "--method", "histeq", "--dataset", "folder", "--data-root", volumes, *SAME_GRID,
        "--set", "histeq.sigma=0", "--device", "cpu", "--out", tmp_path / "runs", "--quiet",
    )  # fmt: skip
    assert code == 0, err
    (record,) = (tmp_path / "runs").rglob("record.json")
    return record.parent


@pytest.mark.parametrize("number", [4, 5])
def test_original_grid_overlaps_the_source(
    cli: Cli, volumes: Path, run_folder: Path, tmp_path: Path, number: int
) -> None:
    """Subject 4 is flipped with permuted axes, subject 5 oblique with permuted axes."""
    out = tmp_path / "out"
    code, _, err = cli("report", run_folder, "--out", out, "--nifti", "original", "--nifti-all", "--quiet")
    assert code == 0, err
    stem = out / "nifti" / f"sub-s{number}" / "anat" / f"sub-s{number}_space-orig"
    source = nibabel.load(volumes / "test" / f"s{number}_FLAIR.nii.gz")
    for kind in ("desc-histeq_anomaly", "desc-prepared_FLAIR", "desc-lesion_mask", "desc-brain_mask"):
        exported = nibabel.load(f"{stem}_{kind}.nii.gz")
        assert exported.shape == source.shape
        assert np.allclose(exported.affine, source.affine, atol=1e-5)
    lesion = np.asarray(nibabel.load(f"{stem}_desc-lesion_mask.nii.gz").dataobj)
    assert np.array_equal(lesion, np.asarray(nibabel.load(volumes / "test" / f"s{number}_seg.nii.gz").dataobj))
    brain = np.asarray(nibabel.load(f"{stem}_desc-brain_mask.nii.gz").dataobj) > 0
    anomaly = np.asarray(nibabel.load(f"{stem}_desc-histeq_anomaly.nii.gz").dataobj)
    # Without smoothing the score is the rank of the intensity: the brightest voxels of the source score highest.
    assert anomaly[lesion > 0].min() > np.quantile(anomaly[brain & (lesion == 0)], 0.99)
    sidecar = json.loads(Path(f"{stem}_desc-histeq_anomaly.json").read_text())
    assert sidecar["RunKey"] == json.loads((run_folder / "record.json").read_text())["run_key"]


def test_prepared_grid_lies_at_the_same_place_in_the_world(
    cli: Cli, volumes: Path, run_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, stdout, _ = cli("report", run_folder, "--out", out, "--nifti", "prepared", "--count", 1, "--json")
    assert code == 0
    files = json.loads(stdout)["nifti"]
    assert len(files) == 2 * 4  # two test subjects: map, image, brain, lesion
    assert json.loads((out / "nifti" / "dataset_description.json").read_text())["DatasetType"] == "derivative"
    for number in (4, 5):
        exported = nibabel.load(next(f for f in files if f"sub-s{number}_space-prepared_desc-lesion" in f))
        assert nibabel.aff2axcodes(exported.affine) == ("R", "A", "S")
        source = nibabel.load(volumes / "test" / f"s{number}_seg.nii.gz")
        assert np.allclose(_world(exported), _world(source), atol=1e-3)


def _world(mask: nibabel.Nifti1Image) -> np.ndarray:
    """World coordinates of all mask voxels, sorted."""
    points = nibabel.affines.apply_affine(mask.affine, np.argwhere(np.asarray(mask.dataobj) > 0))
    return points[np.lexsort(points.round(2).T)]
