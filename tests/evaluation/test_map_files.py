"""Maps and masks as others write them, and as adbench does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from adbench.datasets.io import nifti
from adbench.errors import UserError
from adbench.evaluation.map_files import CaseFolder

SHAPE = (4, 5, 3)
MASK = np.zeros(SHAPE, np.uint8)
MASK[1:3, 2, 1] = 1


def write(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> None:
    nifti.write(path, data, np.eye(4) if affine is None else affine)


@pytest.mark.parametrize(
    ("name", "brain", "lesion", "image"),
    [
        ("p_1_map_space-original", "p_1_brain_space-original", "p_1_lesion_space-original", "p_1_FLAIR_space-original"),
        ("p_1_map_space-prepared", "p_1_brain_space-prepared", "p_1_lesion_space-prepared", "p_1_T1_space-prepared"),
        (
            "sub-p/ses-1/anat/sub-p_ses-1_space-orig_desc-madad_anomaly",
            "sub-p/ses-1/anat/sub-p_ses-1_space-orig_desc-brain_mask",
            "sub-p/ses-1/anat/sub-p_ses-1_space-orig_desc-lesion_mask",
            "sub-p/ses-1/anat/sub-p_ses-1_space-orig_desc-madadRecon_FLAIR",
        ),
    ],
)
def test_what_adbench_exports_is_read_by_its_names(
    tmp_path: Path, name: str, brain: str, lesion: str, image: str
) -> None:
    maps = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    for stem, data in ((name, maps), (brain, np.ones(SHAPE, np.uint8)), (lesion, MASK), (image, maps + 1)):
        write(tmp_path / f"{stem}.nii.gz", data)
    (case,) = CaseFolder(tmp_path, tmp_path, tmp_path)
    assert case.volume == ("p_1" if name.startswith("p_1") else "sub-p_ses-1")
    np.testing.assert_array_equal(case.maps, np.moveaxis(maps, -1, 0))
    np.testing.assert_array_equal(case.lesion, np.moveaxis(MASK > 0, -1, 0))
    assert case.brain.all()


def test_names_of_others_that_look_like_it_stay_cases(tmp_path: Path) -> None:
    for folder in ("maps", "masks"):
        for name in ("a_space-original", "b_t1_space-prepared", "c_space-MNI", "d_space-orig_desc-x_FLAIR"):
            write(tmp_path / folder / f"{name}.nii.gz", MASK)
    found = CaseFolder(tmp_path / "maps", tmp_path / "masks")
    assert len(found) == 4


def test_two_methods_in_one_export_are_two_maps_of_a_case(tmp_path: Path) -> None:
    for method in ("ae", "madad"):
        write(tmp_path / f"sub-1_space-orig_desc-{method}_anomaly.nii.gz", MASK)
    with pytest.raises(UserError, match="are both the map of case 'sub-1'"):
        CaseFolder(tmp_path, tmp_path)


def cases(root: Path, mask: np.ndarray, affine: np.ndarray | None = None) -> CaseFolder:
    write(root / "maps" / "a.nii.gz", MASK.astype(np.float32))
    write(root / "masks" / "a.nii.gz", mask, affine)
    return CaseFolder(root / "maps", root / "masks")


def test_a_mask_that_a_float_rounded(tmp_path: Path) -> None:
    (case,) = cases(tmp_path, (MASK * 0.9999999).astype(np.float32))
    np.testing.assert_array_equal(case.lesion, np.moveaxis(MASK > 0, -1, 0))
    with pytest.raises(UserError, match=r"hold the value 0\.998: give 0 and 1"):
        list(cases(tmp_path, (MASK * 0.998).astype(np.float32)))


def test_a_mask_with_another_background_than_0(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="hold the value -1: give 0 and 1"):
        list(cases(tmp_path, MASK.astype(np.int8) * 2 - 1))


def test_headers_may_differ_by_a_tenth_of_a_voxel(tmp_path: Path) -> None:
    """As for datasets: rounding, not another grid."""
    affine = np.eye(4)
    affine[0, 3] = 0.09
    assert len(list(cases(tmp_path, MASK, affine))) == 1
    affine[0, 3] = 0.11
    with pytest.raises(UserError, match=r"does not lie on the grid of its map: its affine puts a corner 0\.1 mm away"):
        list(cases(tmp_path, MASK, affine))


def test_a_pair_of_files_says_what_to_do(tmp_path: Path) -> None:
    for ending in (".hdr", ".img"):
        (tmp_path / f"a{ending}").write_bytes(bytes(400))
    with pytest.raises(UserError, match=r"a\.hdr is one of a pair of files: .*`nib-convert a\.hdr a\.nii\.gz`"):
        CaseFolder(tmp_path, tmp_path)
