"""Synthetic datasets differ from the real ones in content alone: names, grids, types and labels are the same."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import real_layouts as layouts
from scipy import ndimage

from adbench.datasets.adapters.atlas import Atlas
from adbench.datasets.adapters.brats import BraTS21
from adbench.datasets.adapters.ixi import IXI
from adbench.datasets.io import nifti
from adbench.datasets.phantom.layout_table import LAYOUTS
from adbench.datasets.phantom.layouts import _PHANTOMS, synthesise
from adbench.datasets.phantom.small_layouts import write_small
from adbench.datasets.validation.check import check
from adbench.errors import UserError


def loud(root: Path, cls: type) -> list[str]:
    """Everything a deep check says beyond information."""
    found = check(layouts.dataset(cls, root), deep=True).issues
    return [finding.message for finding in found if finding.severity != "info"]


@pytest.fixture(scope="module")
def brats(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A synthetic BraTS'21 case: its root and its files."""
    root = tmp_path_factory.mktemp("synthetic é")
    return root, synthesise("brats21", 1, root)


def test_brats(brats: tuple[Path, list[Path]]) -> None:
    root, files = brats
    assert [file.relative_to(root).as_posix() for file in files] == [
        f"RSNA_ASNR_MICCAI_BraTS2021_TrainingData_16July2021/BraTS2021_00000/BraTS2021_00000_{kind}.nii.gz"
        for kind in ("flair", "seg", "t1", "t1ce", "t2")
    ]
    assert loud(root, BraTS21) == []
    dataset = layouts.dataset(BraTS21, root)
    (case,) = dataset.discover("T1")
    volumes = {modality: dataset.read(case, modality) for modality in dataset.available()}
    seg = volumes["T1"].lesion
    assert seg is not None
    assert set(np.unique(seg)) <= {0, 1, 2, 4}
    assert {2, 4} <= set(np.unique(seg))
    brain = volumes["T1"].image > 0
    assert 1.2e6 < brain.sum() < 2.4e6  # mm3
    for raw in volumes.values():
        assert raw.image.dtype == np.int16
        assert raw.image.shape == (240, 240, 155)
        np.testing.assert_array_equal(raw.affine, layouts.BRATS_AFFINE)
        np.testing.assert_array_equal(raw.image > 0, brain)
    assert not seg[~brain].any()
    healthy = brain & (ndimage.binary_dilation(seg > 0, iterations=8) == 0)
    core, oedema = seg == 4, seg == 2
    contrast = {m: (v.image[core].mean() / v.image[healthy].mean()) for m, v in volumes.items()}
    assert contrast["T1CE"] > 1.5 > 1.0 > contrast["T1"]  # the core takes up contrast agent
    assert volumes["FLAIR"].image[oedema].mean() > 1.15 * volumes["FLAIR"].image[healthy].mean()


def test_atlas(tmp_path: Path) -> None:
    files = synthesise("atlas", 1, tmp_path)
    stem = "ATLAS_2/Training/R001/sub-r001s001/ses-1/anat/sub-r001s001_ses-1_space-MNI152NLin2009aSym"
    assert [file.relative_to(tmp_path).as_posix() for file in files] == [
        f"{stem}_T1w.nii.gz",
        f"{stem}_label-L_desc-T1lesion_mask.nii.gz",
    ]
    assert loud(tmp_path, Atlas) == []
    image, mask = (nifti.read(file) for file in files)
    np.testing.assert_array_equal(image.affine, layouts.MNI_AFFINE)
    assert image.data.shape == mask.data.shape == layouts.MNI_SHAPE
    assert set(np.unique(mask.data)) == {0, 1}
    shell = _shell(image.data, layouts.MNI_AFFINE)
    assert shell["scalp"] > 1.5 * shell["bone"]  # there is a skull to strip
    assert image.data[98, -8:, 20].max() == 0  # the face is gone


def _shell(data: np.ndarray, affine: np.ndarray) -> dict[str, float]:
    """Mean brightness of bone and scalp above the vertex, found along a line from the outside."""
    column = data[98, 116, :].astype(float)
    outside = int(np.flatnonzero(column > 0.3 * column.max())[-1])
    profile = column[outside - 14 : outside + 1][::-1]
    return {"scalp": profile[:7].max(), "bone": profile[3:13].min()}


def test_ixi(tmp_path: Path) -> None:
    files = {file.parent.name[4:]: file for file in synthesise("ixi", 1, tmp_path)}
    assert sorted(files) == ["PD", "T1", "T2"]
    assert loud(tmp_path, IXI) == []
    t1, t2, pd = (nifti.read(files[kind]) for kind in ("T1", "T2", "PD"))
    assert (t1.header.orientation, t2.header.orientation) == ("PSR", "LPS")
    assert t1.data.shape in ((256, 256, 150), (256, 256, 146))
    assert t2.data.shape == pd.data.shape == (256, 256, 130)
    np.testing.assert_allclose(t1.header.zooms, (0.9375, 0.9375, 1.2), atol=1e-4)
    np.testing.assert_array_equal(t2.affine, pd.affine)
    oblique = t1.affine[:3, :3] / t1.header.zooms
    assert 0.02 < np.abs(oblique).max(axis=0).min() < 0.9999  # no axis of the scanner is one of the head
    assert all(volume.data.dtype == np.int16 for volume in (t1, t2, pd))
    assert t1.data[:8, :8, :8].std() > 0  # noise in the air
    # T1 and T2 show the same head in the same world: their foregrounds overlap there.
    grid = np.indices((60, 60, 60)).reshape(3, -1) * 2.5 + np.array([[-75.0], [-75], [-40]])
    inside = []
    for volume in (t1, t2):
        voxels = np.linalg.inv(volume.affine) @ np.vstack([grid, np.ones(grid.shape[1])])
        blurred = ndimage.gaussian_filter(volume.data.astype(np.float32), 1)
        values = ndimage.map_coordinates(blurred, voxels[:3], order=1)
        inside.append(values > 0.15 * np.percentile(values, 99))
    assert (inside[0] & inside[1]).sum() / (inside[0] | inside[1]).sum() > 0.8


def test_the_command_line_makes_what_is_missing_with_the_same_bytes(
    brats: tuple[Path, list[Path]], cli: Callable[..., tuple[int, str, str]]
) -> None:
    root, files = brats
    before = [file.read_bytes() for file in files]
    stamps = [file.stat().st_mtime_ns for file in files]
    files[2].unlink()
    code, _, err = cli("data", "synth", "--layout", "brats21", "--n", "1", "--out", root)
    assert code == 0
    assert f"adbench data check --dataset brats21 --data-root {shlex.quote(str(root))}" in err
    assert sorted(file for file in root.rglob("*") if file.is_file()) == files
    assert [file.read_bytes() for file in files] == before
    assert [file.stat().st_mtime_ns for i, file in enumerate(files) if i != 2] == stamps[:2] + stamps[3:]
    code, text, _ = cli("data", "check", "-d", "brats21", "--data-root", root, "-q")
    assert code == 0
    assert "1 cases, 5 files: 0 errors, 0 warnings, 0 info" in text


@pytest.mark.parametrize(("layout", "n", "count"), [("ixi", 300, 300), ("atlas", 100, 120), ("brats21", 200, 200)])
def test_many_subjects_have_names_of_their_own(layout: str, n: int, count: int) -> None:
    list_jobs, _ = _PHANTOMS[layout]
    jobs = list(list_jobs(n, 0))
    assert len({job.stem for job in jobs}) == len({job.subject for job in jobs}) == count
    assert [job.stem for job in jobs] == [job.stem for job in list_jobs(n, 0)]
    if layout == "ixi":
        assert {job.stem.split("-")[1] for job in jobs} == {"Guys", "HH", "IOP"}
        assert len({job.stem[:6] for job in jobs}) == count
        assert all(len(job.stem.split("-")[0]) == 6 for job in jobs)


def test_bad_requests(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Unknown layout 'brats'\. Did you mean 'brats2"):
        synthesise("brats", 1, tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        synthesise("ixi", 1, tmp_path / "file")


@pytest.mark.parametrize("layout", sorted(set(LAYOUTS) - {"atlas", "atlas-derivatives", "atlas-flat"}))
def test_every_small_layout_is_written_and_read_as_its_row_says(
    cli: Callable[..., tuple[int, str, str]], tmp_path: Path, layout: str
) -> None:
    known = LAYOUTS[layout]
    assert write_small(layout, tmp_path / "small", 2)
    options = [f"--set=dataset.{option}" for option in known.options.split()]
    code, _, err = cli("data", "info", "--dataset", known.dataset, "--data-root", tmp_path / "small", *options)
    assert (code, err) == (0, "")


def test_masks_of_every_small_layout_mark_the_bright_lesion_of_their_heads(tmp_path: Path) -> None:
    """In BraTS 2023 the mask of the third subject was that of another head."""
    for layout, image, mask in (("brats23", "*00002*t2f*", "*00002*seg*"), ("bids", "*003*run-01*", "*003*lesion*")):
        write_small(layout, tmp_path / layout, 4)
        (scan,), (seg,) = (
            [nifti.read(path).data for path in (tmp_path / layout).rglob(name)] for name in (image, mask)
        )
        ring = ndimage.binary_dilation(seg > 0) & (seg == 0) & (scan > 0)
        assert scan[seg > 0].mean() > scan[ring].mean() + 100


def test_a_small_layout_with_other_names_and_numbers(tmp_path: Path) -> None:
    files = write_small("brats23", tmp_path, 1, first=41, group="XYZ", visit="7")
    assert [file.relative_to(tmp_path).as_posix() for file in files] == [
        f"BraTS-XYZ-00041-007/BraTS-XYZ-00041-007-{kind}.nii.gz" for kind in ("seg", "t1c", "t1n", "t2f", "t2w")
    ]


def test_the_command_names_the_layouts_and_says_how_to_read_one(
    cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    code, out, _ = cli("data", "synth", "--help")
    assert code == 0
    assert all(name in out for name in LAYOUTS)
    code, _, out = cli("data", "synth", "--layout", "wmh", "--n", "2", "--out", tmp_path / "w")
    assert code == 0
    assert f"adbench data check --dataset wmh --data-root {tmp_path / 'w'} --set=dataset.brain=background" in out
    assert (tmp_path / "w" / "Utrecht" / "0" / "wmh.nii.gz").is_file()
    code, _, err = cli("data", "synth", "--layout", "wmh", "--seed", "1", "--out", tmp_path / "w")
    assert (code, "always the same: --seed is for ixi, atlas, brats21" in err) == (2, True)
