"""Every finding of ``data check`` is provoked; its message names the file and the value."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import real_layouts as layouts

from adbench.context import Progress
from adbench.datasets.adapters.atlas import Atlas
from adbench.datasets.adapters.bids import Bids
from adbench.datasets.adapters.brats import BraTS21
from adbench.datasets.adapters.folder import Folder
from adbench.datasets.adapters.folder_volumes import FolderParams, FolderVolumes
from adbench.datasets.adapters.ixi import IXI
from adbench.datasets.io import nifti
from adbench.datasets.issues import CODES, Issue
from adbench.datasets.preprocessing.pipeline import run_recipe
from adbench.datasets.preprocessing.recipe import RawVolume, RecipeParams
from adbench.datasets.validation.check import CheckReport, check
from adbench.errors import UserError
from adbench.params import build
from adbench.utils import limits

SHAPE = layouts.BRATS_SHAPE


def report(root: Path, cls: Any = BraTS21, deep: bool = True, **params: Any) -> CheckReport:
    return check(layouts.dataset(cls, root, **params), deep=deep, workers=2)


def only(found: CheckReport, code: str) -> Issue:
    """The finding of ``code``; it is the only one beside information."""
    loud = [f for f in found.issues if f.severity != "info" or f.code == code]
    assert [f.code for f in loud] == [code], loud
    assert code in CODES
    return loud[0]


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """A BraTS'21 case exactly as distributed."""
    return layouts.brats(tmp_path / "data é", "00007")


def test_a_clean_dataset(case: Path) -> None:
    layouts.brats(case.parent, "00008")
    for deep in (False, True):
        found = report(case.parent, deep=deep)
        assert found.issues == []
        assert (found.cases, found.files, found.exit_code) == (2, 10, 0)


# -- headers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "end", [b"", b"\xff\xff\xff\xff"]
)  # the last four bytes would be the length, if all were there
def test_truncated_gzip_is_found_from_its_header_and_end(case: Path, end: bytes) -> None:
    path = case / "BraTS2021_00007_t2.nii.gz"
    path.write_bytes(path.read_bytes()[:-1000] + end)
    finding = only(report(case.parent, deep=False), "truncated")
    assert finding.severity == "error"
    assert finding.file == str(path)
    assert f"{path} is truncated" in finding.message


@pytest.mark.parametrize(("content", "says"), [(b"", "is empty"), (b"hello" * 200, "is not a NIfTI file")])
def test_unreadable(case: Path, content: bytes, says: str) -> None:
    path = case / "BraTS2021_00007_t2.nii.gz"
    path.write_bytes(content)
    finding = only(report(case.parent), "unreadable")
    assert f"{path} {says}" in finding.message


def rewritten(case: Path, kind: str, data: np.ndarray, affine: np.ndarray = layouts.BRATS_AFFINE, **more: Any) -> Path:
    path = case / f"BraTS2021_00007_{kind}.nii.gz"
    nifti.write(path, data, affine, **{"codes": (2, 0), **more})
    return path


def test_wrong_dtype(case: Path) -> None:
    path = case / "BraTS2021_00007_t1.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros(SHAPE, np.complex64), layouts.BRATS_AFFINE), path)
    finding = only(report(case.parent, deep=False), "dtype")
    assert finding.severity == "error"
    assert f"{path} stores complex voxels" in finding.message


def test_another_type_than_distributed(case: Path) -> None:
    path = rewritten(case, "t1", layouts.image(SHAPE, 1).astype(np.float32))
    finding = only(report(case.parent, deep=False), "dtype")
    assert finding.severity == "warning"
    assert finding.message == f"{path} stores float32 voxels, the distribution integers: was it processed?"


def test_labels_stored_as_floats(case: Path) -> None:
    path = rewritten(case, "seg", layouts.lesion(SHAPE).astype(np.float32))
    finding = only(report(case.parent, deep=False), "dtype")
    assert (finding.severity, finding.message) == ("warning", f"{path} stores labels as float32")


def test_a_file_of_four_axes_is_named_once(tmp_path: Path) -> None:
    """The other files are not held against its grid, and it is not decoded."""
    root = tmp_path / "P01"
    nifti.write(root / "P01_flair.nii.gz", np.ones((8, 9, 10, 2), np.int16), np.eye(4))
    nifti.write(root / "P01_t1.nii.gz", np.arange(720, dtype=np.int16).reshape(8, 9, 10), np.eye(4))
    nifti.write(root / "P01_seg.nii.gz", np.ones((8, 9, 10), np.uint8), np.eye(4))
    found = check(FolderVolumes(FolderParams(), tmp_path), deep=True).issues
    assert [(issue.code, Path(issue.file).name) for issue in found if issue.severity == "error"] == [
        ("axes", "P01_flair.nii.gz")
    ]


def test_four_axes(case: Path) -> None:
    path = rewritten(case, "flair", np.zeros((240, 240, 155, 2), np.int16))
    assert (
        f"{path} has 4 axes (240x240x155x2 voxels), expected 3" in only(report(case.parent, deep=False), "axes").message
    )


def test_a_sequence_of_another_shape(case: Path) -> None:
    path = rewritten(case, "t2", layouts.image((240, 240, 150), 3))
    found = report(case.parent, deep=False)
    assert found.exit_code == 2
    by = {f.code: f for f in found.issues}
    assert set(by) == {"shape", "off-grid"}
    assert by["shape"].message == f"{path} has 240x240x150 voxels, the distribution 240x240x155"
    assert by["off-grid"].message.startswith(
        f"{path} does not lie on the grid of BraTS2021_00007_t1.nii.gz: 240x240x150"
    )


def test_a_mask_with_another_affine(case: Path) -> None:
    path = rewritten(
        case, "seg", layouts.lesion(SHAPE), np.array([[-1.0, 0, 0, 5], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])
    )
    finding = only(report(case.parent, deep=False), "off-grid")
    assert finding.severity == "error"
    assert (
        f"{path} does not lie on the grid of BraTS2021_00007_t1.nii.gz: its affine puts a corner 5.0 mm away"
        in finding.message
    )


def test_other_orientation(tmp_path: Path) -> None:
    case = layouts.brats(tmp_path, "00007", affine=np.diag([1.0, 1, 1, 1]))
    found = report(tmp_path, deep=False)
    assert found.exit_code == 1
    assert [f.code for f in found.issues] == ["orientation"] * 5
    first = case / "BraTS2021_00007_flair.nii.gz"
    assert found.issues[0].message == (f"{first} is stored as RAS, the distribution as LPS; the affine is trusted")


def test_no_orientation_at_all(tmp_path: Path) -> None:
    case = layouts.brats(tmp_path, "00007", codes=(0, 0))
    messages = [f.message for f in report(tmp_path, deep=False).issues if f.code == "orientation"]
    assert (
        f"{case / 'BraTS2021_00007_t1.nii.gz'} has neither sform nor qform: it does not say where left is" in messages
    )


def test_voxel_size(tmp_path: Path) -> None:
    affine = np.array([[-1.0, 0, 0, 0], [0, -1, 0, 239], [0, 0, 2, 0], [0, 0, 0, 1]])
    case = layouts.brats(tmp_path, "00007", affine=affine)
    found = report(tmp_path, deep=False)
    assert {f.code for f in found.issues} == {"voxel-size"}
    path = case / "BraTS2021_00007_flair.nii.gz"
    assert found.issues[0].message == f"{path} has voxels of 1 x 1 x 2 mm, the distribution 1 x 1 x 1 mm"


def test_implausible_voxels_where_sizes_vary(tmp_path: Path) -> None:
    layouts.ixi(tmp_path, kinds="T1")
    path = tmp_path / "IXI-T1" / "IXI002-Guys-0828-T1.nii.gz"
    nifti.write(path, layouts.image(layouts.SMALL, 1), np.diag([1.0, 1, 25, 1]))
    assert f"{path} has voxels of 1 x 1 x 25 mm: implausible" in only(report(tmp_path, IXI), "voxel-size").message


def test_sform_and_qform_disagree(case: Path) -> None:
    path = case / "BraTS2021_00007_t1.nii.gz"
    image = nibabel.Nifti1Image(nifti.read(path).data, layouts.BRATS_AFFINE)
    image.set_sform(layouts.BRATS_AFFINE, 1)
    shifted = layouts.BRATS_AFFINE.copy()
    shifted[0, 3] = 12
    image.set_qform(shifted, 1)
    nibabel.save(image, path)
    finding = only(report(case.parent, deep=False), "affine-conflict")
    assert f"{path} has an sform and a qform that place a corner 12.0 mm apart" in finding.message


def test_what_is_odd_about_a_header_is_a_warning(case: Path) -> None:
    """Each of these is read; the bytes behind the voxels are seen where every voxel is read."""
    path = case / "BraTS2021_00007_t1.nii.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    header = nibabel.Nifti1Header(bytes(content[:348]), check=False)
    header["intent_code"], header["xyzt_units"], header["pixdim"][1:4] = 1007, 3, 4
    header["srow_x"][1], header["scl_slope"], header["scl_inter"] = 0.9, -1, 3000
    path.write_bytes(gzip.compress(header.binaryblock + bytes(content[348:]) + b"junk"))
    for deep in (False, True):
        said = [one.message for one in report(case.parent, deep=deep).issues if one.file == str(path)]
        parts = [
            "said to be micrometres, read as mm",
            "said to be no image (vector",
            "two of its axes meet at 48 degrees",
        ]
        parts += ["a negative scale (scl_slope -1)", "states voxels of 4 x 4 x 4 mm, and its sform places them"]
        for part in parts:
            assert sum(part in message for message in said) == 1, (part, said)
        assert sum("holds 4 bytes behind its voxels" in message for message in said) == deep


# -- voxels --------------------------------------------------------------------------------------------------------------


def test_nonfinite_voxels(case: Path) -> None:
    data = layouts.image(SHAPE, 3, np.float32)
    data[100, 101, 77] = np.nan
    data[101, 101, 77] = -np.inf
    path = rewritten(case, "t1ce", data)
    assert not [f for f in report(case.parent, deep=False).issues if f.code == "nonfinite"]
    (finding,) = (f for f in report(case.parent).issues if f.code == "nonfinite")
    assert finding.severity == "error"
    assert (
        finding.message
        == f"{path} holds 2 NaN or infinite voxels, the first at (100, 101, 77). Repair the volume or remove it."
    )


def test_a_constant_image(case: Path) -> None:
    path = rewritten(case, "t1ce", np.full(SHAPE, 7, np.int16))
    assert only(report(case.parent), "constant").message == f"{path} is constant: every voxel is 7"


def test_labels_of_another_release(case: Path) -> None:
    path = rewritten(case, "seg", layouts.lesion(SHAPE, (1, 2, 3)))
    finding = only(report(case.parent), "label")
    assert finding.severity == "error"
    assert finding.message == f"{path} holds the label 3 in 2 voxels; allowed are 0, 1, 2, 4"


def test_fractions_in_a_mask(case: Path) -> None:
    path = rewritten(case, "seg", (layouts.lesion(SHAPE) * np.float32(0.5)).astype(np.float32))
    messages = [f.message for f in report(case.parent).issues if f.code == "label"]
    assert messages == [f"{path} holds the label 0.5 in 2 voxels; allowed are 0, 1, 2, 4"]  # 2 and 4 became 1 and 2


def test_an_empty_mask(case: Path) -> None:
    path = rewritten(case, "seg", np.zeros(SHAPE, np.uint8))
    finding = only(report(case.parent), "empty-mask")
    assert (finding.severity, finding.message) == ("warning", f"{path} is empty: no voxel is lesion")


def test_a_mask_outside_the_brain(case: Path) -> None:
    mask = layouts.lesion(SHAPE)  # 6 voxels inside
    mask[2:4, 2, 2] = 2
    path = rewritten(case, "seg", mask)
    finding = only(report(case.parent), "outside-brain")
    assert finding.severity == "warning"
    assert finding.message == f"{path} marks 2 of 8 lesion voxels (25.0%) outside the brain"


def test_a_mask_outside_the_template_brain(tmp_path: Path) -> None:
    layouts.atlas(tmp_path, "r001s001", layouts.MNI_SHAPE)
    path = next(tmp_path.glob("*mask.nii.gz"))
    mask = layouts.lesion(layouts.MNI_SHAPE, (1,))
    mask[98, 230:232, 40] = 1  # in front of the face
    nifti.write(path, mask, layouts.MNI_AFFINE)
    finding = only(report(tmp_path, Atlas), "outside-brain")
    assert finding.message == f"{path} marks 2 of 4 lesion voxels (50.0%) outside the brain"


def test_a_background_that_is_not_zero(case: Path) -> None:
    path = rewritten(case, "t1", layouts.image(SHAPE, 3) + np.int16(4))
    finding = only(report(case.parent), "background")
    assert f"{path} is not 0 in its corners (up to 4)" in finding.message


# -- what is there -------------------------------------------------------------------------------------------------------


def test_missing_sequence_and_mask(case: Path) -> None:
    layouts.brats(case.parent, "00008", t2=None, seg=None)
    found = report(case.parent, deep=False)
    assert found.exit_code == 1
    assert [(f.code, f.message) for f in found.issues] == [
        ("missing-mask", "BraTS2021_00008 has no lesion mask and is left out"),
        ("missing-sequence", "BraTS2021_00008 has no T2 beside FLAIR, T1, T1CE"),
    ]


def test_a_sequence_that_nobody_has_is_no_finding(tmp_path: Path) -> None:
    layouts.brats(tmp_path, "00008", t2=None)
    assert report(tmp_path, deep=False).issues == []


def test_a_mask_without_image(case: Path) -> None:
    layouts.brats(case.parent, "00008", t1=None, t1ce=None, t2=None, flair=None)
    found = report(case.parent, deep=False)
    assert "missing-image" in {f.code for f in found.issues if f.severity == "error"}


def test_what_the_distribution_lacks_is_information(tmp_path: Path) -> None:
    layouts.ixi(tmp_path, "002")
    layouts.ixi(tmp_path, "116", kinds="T1")
    layouts.ixi(tmp_path, "117", kinds="T1 PD")
    found = report(tmp_path, IXI, deep=False)
    assert [(f.severity, f.code, f.case) for f in found.issues] == [
        ("warning", "missing-sequence", "IXI117_Guys-0828"),
        ("info", "known-missing", "IXI116_Guys-0828"),
        ("info", "known-missing", "IXI116_Guys-0828"),
    ]


def test_atlas_flags_and_its_testing_folder_are_information(tmp_path: Path) -> None:
    root = tmp_path / "test"  # of the user, who tests adbench here; not the distribution's
    layouts.atlas(root / "Training", "r009s001", layouts.MNI_SHAPE)
    layouts.atlas(root / "Testing", "r010s001", layouts.MNI_SHAPE, masked=False)
    found = report(root, Atlas, deep=False)
    assert [(f.severity, f.code, f.case) for f in found.issues] == [
        ("info", "flagged", "sub-r009s001_ses-1"),
        ("info", "missing-mask", "sub-r010s001_ses-1"),
    ]
    layouts.atlas(root / "Training", "r011s001", layouts.MNI_SHAPE, masked=False)
    found = report(root, Atlas, deep=False)
    assert found.exit_code == 1
    assert [(f.code, f.case) for f in found.issues if f.severity == "warning"] == [
        ("missing-mask", "sub-r011s001_ses-1")
    ]


def test_one_volume_under_two_subjects(case: Path) -> None:
    other = layouts.brats(case.parent, "00008")
    copied = other / "BraTS2021_00008_flair.nii.gz"
    original = case / "BraTS2021_00007_flair.nii.gz"
    copied.write_bytes(original.read_bytes())
    finding = only(report(case.parent, deep=False), "duplicate-subject")
    assert finding.severity == "error"
    assert finding.message == (
        f"{copied} holds the same volume as {original}: the subjects BraTS2021_00007 and BraTS2021_00008 are one"
    )


def test_one_volume_as_two_sequences(case: Path) -> None:
    copied = case / "BraTS2021_00007_t2.nii.gz"
    copied.write_bytes((case / "BraTS2021_00007_flair.nii.gz").read_bytes())
    assert (
        "FLAIR and T2 of BraTS2021_00007 are one" in only(report(case.parent, deep=False), "duplicate-volume").message
    )


def test_repeated_files_scans_links_and_downloads(tmp_path: Path) -> None:
    layouts.ixi(tmp_path / "a", "002", kinds="T1")
    layouts.ixi(tmp_path / "b", "002", kinds="T1")
    layouts.ixi(tmp_path / "a", "002", "HH", "1111", kinds="T1")
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    (tmp_path / "IXI-T2.tar.part").write_bytes(b"x")
    (tmp_path / "IXI-PD.zip").write_bytes(b"x")
    (tmp_path / "a" / "IXI002-Guys-0828-MRA.nii.gz").write_bytes(b"x")
    found = {f.code: f for f in report(tmp_path, IXI, deep=False).issues}
    assert set(found) == {
        "duplicate-file", "several-scans", "broken-link", "unfinished-download", "unopened-archive", "unused-file"
    }  # fmt: skip
    assert found["duplicate-file"].file == str(tmp_path / "b" / "IXI-T1" / "IXI002-Guys-0828-T1.nii.gz")
    assert "IXI002 has 2 scans (Guys-0828, HH-1111)" in found["several-scans"].message
    assert found["unused-file"].file == "a/IXI002-Guys-0828-MRA.nii.gz"


def test_a_subject_that_the_table_of_a_cohort_does_not_have(tmp_path: Path) -> None:
    for number in ("01", "02"):
        path = tmp_path / f"sub-{number}" / f"sub-{number}_T1w.nii.gz"
        nifti.write(path, layouts.image(layouts.SMALL, int(number)), np.diag([1.0, 1, 1, 1]))
    (tmp_path / "participants.tsv").write_text("participant_id\tgroup\nsub-1\tcontrol\n")
    found = report(tmp_path, Bids, unmasked="healthy")
    finding = next(f for f in found.issues if f.code == "participants")
    assert (finding.severity, finding.case) == ("warning", "sub-02")
    assert finding.message.startswith(f"sub-02 is not in {tmp_path / 'participants.tsv'}: it has no age, sex or group")


def test_every_code_has_a_test_here() -> None:
    here = ("check", "folder", "folder_volumes", "known_layouts", "volumes", "similarity")
    files = [
        *(Path(__file__).with_name(f"test_{name}.py") for name in here),
        Path(__file__).parents[1] / "test_cli_data.py",
    ]
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    assert [code for code in CODES if f'"{code}"' not in text] == []


# -- the report ----------------------------------------------------------------------------------------------------------


def test_workers_and_progress(case: Path) -> None:
    layouts.brats(case.parent, "00008", seg=None)
    seen: list[tuple[int, int]] = []

    class Bar(Progress):
        def update(self, phase: str, done: int, total: int, **figures: Any) -> None:
            seen.append((done, total))

    found = [check(layouts.dataset(BraTS21, case.parent), workers=n, progress=Bar()).as_dict() for n in (1, 3)]
    assert found[0] == found[1]
    assert seen == [(1, 2), (2, 2)] * 2
    assert json.loads(json.dumps(found[0]))["counts"] == {"error": 0, "warning": 1, "info": 0}


def test_other_datasets_are_loaded_when_deep(slices: Path) -> None:
    found = check(layouts.dataset(Folder, slices), deep=True)
    assert found.exit_code == 0
    broken = next((slices / "train").glob("*FLAIR.png"))
    content = broken.read_bytes()
    broken.write_bytes(content[:-30])
    found = check(layouts.dataset(Folder, slices), deep=True)
    assert [f.code for f in found.issues if f.severity == "error"] == ["unreadable"]
    assert broken.name in found.issues[0].message
    broken.write_bytes(content)
    lesion = next((slices / "test").glob("*segmentation.png"))
    from PIL import Image

    mask = np.zeros((32, 32), np.uint8)
    mask[0, 0] = 255
    Image.fromarray(mask).save(lesion)
    (outside,) = [f for f in check(layouts.dataset(Folder, slices)).issues if f.code == "outside-brain"]
    assert outside.severity == "warning"
    assert outside.message == f"{lesion}: slice 10: 1 of 1 lesion pixels lie outside the brain"
    sorted((slices / "test").glob("*brainmask.png"))[0].unlink()
    found = [f.message for f in check(layouts.dataset(Folder, slices)).issues if f.code == "remark"]
    assert found == ["test00 FLAIR: no brainmask, brain = image > 0 (slice 10)"]


@pytest.mark.parametrize(
    ("change", "code"), [(lambda case: None, 0), (lambda case: (case / "BraTS2021_00007_seg.nii.gz").unlink(), 1)]
)
def test_the_verb(
    case: Path, tmp_path: Path, cli: Callable[..., Any], change: Callable[[Path], None], code: int
) -> None:
    change(case)
    target = tmp_path / "out" / "report.json"
    arguments = ("data", "check", "--dataset", "brats21", "--data-root", case.parent, "--report", target, "--quiet")
    returned, out, _ = cli(*arguments)
    assert returned == code
    assert f"0 errors, {code} warning" in out
    assert json.loads(target.read_text())["counts"]["warning"] == code
    returned, out, _ = cli(*arguments, "--json")
    assert returned == code
    assert json.loads(out) == json.loads(target.read_text())


# -- against the standard, beyond a limit ----------------------------------------------------------------------------------


def test_a_header_against_the_standard_is_read_and_said(tmp_path: Path) -> None:
    path = layouts.ixi(tmp_path, kinds="T1") / "IXI-T1" / "IXI002-Guys-0828-T1.nii.gz"
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[80:84] = struct.pack("<f", -1.0)  # the first voxel size
    path.write_bytes(gzip.compress(bytes(raw)))
    finding = only(report(tmp_path, IXI), "header")
    assert finding.severity == "warning"
    assert finding.message == f"{path} has voxel sizes of -1, 1, 1 mm, read without their sign"


def test_a_volume_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = layouts.ixi(tmp_path, kinds="T1") / "IXI-T1" / "IXI002-Guys-0828-T1.nii.gz"
    monkeypatch.setattr(limits, "VOLUME_BYTES", limits.Limit("VOLUME_BYTES", 3711, "bytes"))
    finding = only(report(tmp_path, IXI), "too-large")
    assert finding.severity == "error"
    assert f"{path} needs for its voxels 3712 bytes, where at most 3711 are read" in finding.message


def test_a_pair_of_files_is_named(tmp_path: Path) -> None:
    layouts.ixi(tmp_path, kinds="T1")
    for ending in (".hdr", ".img"):
        (tmp_path / f"IXI003-HH-0001-T1{ending}").write_bytes(bytes(400))
    finding = only(report(tmp_path, IXI), "unused-file")
    assert "IXI003-HH-0001-T1.hdr is the header of a pair of files: only single files are read" in finding.message


def test_a_mask_with_another_background_than_0(tmp_path: Path) -> None:
    """Every voxel would be lesion."""
    image, mask = layouts.image(layouts.SMALL, 1), layouts.lesion(layouts.SMALL).astype(np.int8) - 1
    for kind, data in (("flair", image), ("seg", mask)):
        nifti.write(tmp_path / "p1" / f"p1_{kind}.nii.gz", data, np.diag([8.0, 8, 8, 1]))
    found = [f.message for f in report(tmp_path, Folder, modality="FLAIR").issues if f.code == "label"]
    assert len(found) == 1
    assert f"{tmp_path / 'p1' / 'p1_seg.nii.gz'} holds the label -1 in" in found[0]
    raw = RawVolume("p1", "FLAIR", image, np.diag([8.0, 8, 8, 1]), lesion=mask, skull=False)
    with pytest.raises(UserError, match=r"lesion mask holds the value -1, where 0 is the background"):
        run_recipe(raw, build(RecipeParams, "recipe", {"size": 16}))
