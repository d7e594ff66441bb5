"""The adapters find every layout at any depth, keep people together, and refuse what is not theirs."""

from __future__ import annotations

import gzip
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import real_layouts as layouts

from adbench.datasets.adapters.atlas import FLAGGED, Atlas
from adbench.datasets.adapters.brats import BraTS21
from adbench.datasets.adapters.ixi import IXI
from adbench.datasets.io import nifti
from adbench.datasets.validation.check import check
from adbench.errors import UserError

SMALL = layouts.SMALL


def refused(cls: type, root: Path, **params: object) -> str:
    dataset = layouts.dataset(cls, root, **params)
    with pytest.raises(UserError) as caught:
        dataset.discover((*dataset.available(), "T1")[0])
    return str(caught.value)


# -- layouts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", ["", "data/RSNA ASNR/Träining_Dåta_16July2021/新しい"])
def test_brats_at_any_depth(tmp_path: Path, depth: str) -> None:
    for number in ("00000", "00002", "01666"):
        layouts.brats(tmp_path / depth, number, SMALL)
    (tmp_path / depth / "._BraTS2021_00000_t1.nii.gz").write_bytes(b"resource fork")
    (tmp_path / "README.txt").write_text("mine")
    dataset = layouts.dataset(BraTS21, tmp_path)
    assert dataset.available() == ("FLAIR", "T1", "T1CE", "T2")
    cases = dataset.discover("T1CE")
    assert [case.id for case in cases] == ["BraTS2021_00000", "BraTS2021_00002", "BraTS2021_01666"]
    raw = dataset.read(cases[0], "T1CE")
    np.testing.assert_array_equal(raw.image, layouts.image(SMALL, 10))
    np.testing.assert_array_equal(raw.lesion, layouts.lesion(SMALL))
    np.testing.assert_array_equal(raw.affine, layouts.BRATS_AFFINE)
    assert not raw.skull
    assert raw.companion is None


@pytest.mark.parametrize(
    "where",
    [
        "ATLAS_2/Training/R001/sub-{s}/ses-1/anat",
        "derivatives/ATLAS/sub-{s}/ses-1/anat",
        "train/derivatives/ATLAS/sub-{s}/ses-1/anat",
        "flat",
    ],
)
def test_atlas_layouts(tmp_path: Path, where: str) -> None:
    for subject in ("r001s001", "r001s002", "r009s001"):
        layouts.atlas(tmp_path / where.format(s=subject), subject, flat=where == "flat")
    dataset = layouts.dataset(Atlas, tmp_path)
    cases = dataset.discover("T1")
    assert [(case.id, case.site, case.flags) for case in cases] == [
        ("sub-r001s001", "r001", ()),
        ("sub-r001s002", "r001", ()),
        ("sub-r009s001", "r009", ("artefact",)),
    ]
    assert {case.split for case in cases} == {"val", "test"}
    raw = dataset.read(cases[0], "T1")
    np.testing.assert_array_equal(raw.lesion, layouts.lesion(SMALL, (1,)))
    assert raw.skull
    assert dataset.on_template


def test_atlas_names_may_be_equal_in_images_and_masks(tmp_path: Path) -> None:
    nifti.write(tmp_path / "Images" / "sub-r001s001.nii.gz", layouts.image(SMALL, 1), layouts.MNI_AFFINE)
    nifti.write(tmp_path / "Masks" / "sub-r001s001.nii.gz", layouts.lesion(SMALL, (1,)), layouts.MNI_AFFINE)
    (case,) = layouts.dataset(Atlas, tmp_path).discover("T1")
    assert len(case.files) == 2


def test_atlas_testing_without_masks_is_left_out_by_name(tmp_path: Path) -> None:
    layouts.atlas(tmp_path / "Training", "r001s001")
    layouts.atlas(tmp_path / "Testing", "r002s001", masked=False)
    dataset = layouts.dataset(Atlas, tmp_path)
    assert [case.subject for case in dataset.discover("T1")] == ["sub-r001s001"]
    assert dataset.exclusions("T1") == [
        "sub-r002s001: left out, it has no lesion mask, so it can neither be trained on nor be scored"
    ]


def test_excluding_flagged_subjects_moves_nobody_else(tmp_path: Path) -> None:
    flagged = ["r009s001", "r009s005", "r009s007", "r023s002"]
    for subject in [*flagged, *(f"r009s{n:03d}" for n in range(100, 112))]:
        layouts.atlas(tmp_path, subject)
    everyone = {case.subject: case.split for case in layouts.dataset(Atlas, tmp_path).discover("T1")}
    without = layouts.dataset(Atlas, tmp_path, exclude_flagged=True)
    kept = {case.subject: case.split for case in without.discover("T1")}
    assert kept == {s: role for s, role in everyone.items() if s not in FLAGGED}
    assert len(everyone) - len(kept) == 4
    assert sum("flagged (artefact)" in line for line in without.exclusions("T1")) == 4
    assert len(FLAGGED) == 24


def test_ixi_keeps_one_number_together_and_takes_roles_over_all_sequences(tmp_path: Path) -> None:
    for number in range(2, 42):
        layouts.ixi(tmp_path, f"{number:03d}", ("Guys", "HH", "IOP")[number % 3], f"{number:04d}")
    layouts.ixi(tmp_path, "007", "HH", "9999", "T1")  # the same person, another scan
    layouts.ixi(tmp_path, "116", "Guys", "0001", "T1")
    dataset = layouts.dataset(IXI, tmp_path)
    roles = {modality: {c.subject: c.split for c in dataset.discover(modality)} for modality in ("T1", "T2", "PD")}
    assert len(roles["T1"]) == 41
    assert len(roles["T2"]) == 40
    assert all(roles["T1"][subject] == role for subject, role in roles["T2"].items())
    both = [case for case in dataset.discover("T1") if case.subject == "IXI007"]
    assert [case.id for case in both] == ["IXI007_HH-0007", "IXI007_HH-9999"]
    assert len({case.split for case in both}) == 1
    counts = [list(roles["T1"].values()).count(role) for role in ("train", "val", "test")]
    assert counts == [33, 4, 4]
    by_site = {(c.site, c.split) for c in dataset.discover("T1")}
    assert by_site >= {(site, role) for site in ("Guy's", "HH", "IOP") for role in ("train", "val", "test")}
    assert "IXI116: left out, it has no T2" in dataset.exclusions("T2")


def test_ixi_hands_the_t1_over_with_t2(tmp_path: Path) -> None:
    layouts.ixi(tmp_path)
    dataset = layouts.dataset(IXI, tmp_path)
    (case,) = dataset.discover("T2")
    assert [file.name for file in case.files] == ["IXI002-Guys-0828-T2.nii.gz", "IXI002-Guys-0828-T1.nii.gz"]
    raw = dataset.read(case, "T2")
    assert raw.companion is not None
    assert raw.companion.modality == "T1"
    assert raw.lesion is None
    assert dataset.read(case, "T1").companion is None


def test_unused_sequences_are_no_obstacle(tmp_path: Path) -> None:
    layouts.ixi(tmp_path)
    nifti.write(tmp_path / "IXI002-Guys-0828-MRA.nii.gz", layouts.image(SMALL, 1), np.eye(4))
    nifti.write(tmp_path / "masks" / "mine.nii.gz", layouts.image(SMALL, 1), np.eye(4))
    dataset = layouts.dataset(IXI, tmp_path)
    assert dataset.available() == ("T1", "T2", "PD")
    assert dataset.index.unused == ["IXI002-Guys-0828-MRA.nii.gz", "masks/mine.nii.gz"]


# -- roles ---------------------------------------------------------------------------------------------------------------


def test_no_subject_has_two_roles_and_every_modality_agrees(tmp_path: Path) -> None:
    for number in range(30):
        layouts.brats(tmp_path, f"{number:05d}", (6, 6, 6), t2=None if number % 4 else layouts.image((6, 6, 6), number))
    dataset = layouts.dataset(BraTS21, tmp_path)
    roles: dict[str, set[str]] = {}
    for modality in dataset.available():
        for case in dataset.discover(modality):
            roles.setdefault(case.subject, set()).add(case.split)
    assert len(roles) == 30
    assert all(len(found) == 1 for found in roles.values())
    assert len(dataset.discover("T2")) == 8


def test_exclude_names_cases_and_refuses_unknown_ones(tmp_path: Path) -> None:
    for number in ("00000", "00001", "00002"):
        layouts.brats(tmp_path, number, SMALL)
    dataset = layouts.dataset(BraTS21, tmp_path, exclude=["BraTS2021_00001"])
    assert len(dataset.discover("T1")) == 2
    assert dataset.exclusions("T1") == ["BraTS2021_00001: left out, it is in dataset.exclude"]
    wrong = layouts.dataset(BraTS21, tmp_path, exclude=["BraTS2021_00011"])
    with pytest.raises(UserError, match="Did you mean 'BraTS2021_00001'"):
        wrong.discover("T1")


def test_shares_beyond_one(tmp_path: Path) -> None:
    layouts.brats(tmp_path, "00000", SMALL)
    with pytest.raises(UserError, match=r"val_share 0.5 and test_share 0.6 of brats21 add up to more than 1"):
        layouts.dataset(BraTS21, tmp_path, val_share=0.5, test_share=0.6).discover("T1")


# -- what is not theirs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "looks"),
    [
        ("BraTS20_Training_001/BraTS20_Training_001_t1.nii", "this looks like BraTS'20"),
        ("BraTS19_CBICA_AAB_1/BraTS19_CBICA_AAB_1_t1.nii.gz", "this looks like BraTS'17-'19"),
        ("BraTS-GLI-00000-000/BraTS-GLI-00000-000-t1n.nii.gz", "this looks like BraTS2023-GLI"),
        ("BraTS-MEN-00000-000/BraTS-MEN-00000-000-t1n.nii.gz", "this looks like BraTS2023 (PED, MEN, SSA) ("),
        (
            "BraTS-MEN-RT-0003-1/BraTS-MEN-RT-0003-1_t1c.nii.gz",
            "this looks like BraTS2024-MEN-RT (BraTS-MEN-RT-0003-1/BraTS-MEN-RT-0003-1_t1c.nii.gz); meningiomas before radiotherapy",
        ),
        ("BraTS-GoAT-00003/BraTS-GoAT-00003-t2f.nii.gz", "--dataset folder reads them as they are; never train"),
        ("IXI002-Guys-0828-T1.nii.gz", "this looks like IXI (IXI002-Guys-0828-T1.nii.gz); use --dataset ixi"),
        ("sub-r001s001_ses-1_space-MNI152NLin2009aSym_T1w.nii.gz", "use --dataset atlas"),
        ("subject07_flair.nii.gz", "None of the 1 NIfTI files"),
        ("patient07_flair.nii.gz", "this looks like MSLUB"),
        ("slice_1.png", "No NIfTI file in"),
    ],
)
def test_the_root_of_another_dataset(tmp_path: Path, name: str, looks: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    message = refused(BraTS21, tmp_path)
    assert looks in message
    assert str(tmp_path) in message


def test_releases_of_the_same_patients_are_not_mixed(tmp_path: Path) -> None:
    layouts.brats(tmp_path, "00000", SMALL)
    nifti.write(tmp_path / "BraTS-GLI-00001-000-t1n.nii.gz", layouts.image(SMALL, 1), np.eye(4))
    message = refused(BraTS21, tmp_path)
    assert "mixes BraTS'21 (5 files" in message
    assert "and BraTS2023-GLI (1 files, e.g. BraTS-GLI-00001-000-t1n.nii.gz), which hold the same patients" in message


def test_two_datasets_in_one_root(tmp_path: Path) -> None:
    layouts.brats(tmp_path, "00000", SMALL)
    layouts.ixi(tmp_path)
    assert "mixes BraTS'21 (5 files" in refused(BraTS21, tmp_path)
    assert "and IXI (3 files" in refused(IXI, tmp_path)


@pytest.mark.parametrize("cls", [IXI, Atlas, BraTS21])
def test_empty_missing_and_absent_roots(tmp_path: Path, cls: type) -> None:
    assert "No NIfTI file in" in refused(cls, tmp_path)
    assert "is missing" in refused(cls, tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    assert "is a file, expected a folder" in refused(cls, tmp_path / "file")
    assert "needs a data root" in refused(cls, None)  # type: ignore[arg-type]


def test_symlinks_are_followed_once(tmp_path: Path) -> None:
    real = tmp_path / "elsewhere"
    layouts.brats(real, "00000", SMALL)
    root = tmp_path / "root"
    root.mkdir()
    (root / "data").symlink_to(real)
    (real / "loop").symlink_to(root)
    (real / "self").symlink_to(real)
    (root / "gone").symlink_to(tmp_path / "nothing")
    (root / "itself").symlink_to("itself")
    dataset = layouts.dataset(BraTS21, root)
    assert len(dataset.discover("T1")) == 1
    assert not dataset.index.duplicates
    assert dataset.index.files.broken == [root / "gone", root / "itself"]


def test_a_root_of_dead_links(tmp_path: Path) -> None:
    (tmp_path / "BraTS2021_00000_t1.nii.gz").symlink_to(tmp_path / "nothing")
    assert "holds only broken links" in refused(BraTS21, tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    folder = layouts.brats(tmp_path, "00000", SMALL)
    folder.chmod(0)
    try:
        assert "cannot be read: Permission denied" in refused(BraTS21, tmp_path)
    finally:
        folder.chmod(0o755)


def test_the_same_file_twice(tmp_path: Path) -> None:
    layouts.brats(tmp_path / "a", "00000", SMALL)
    layouts.brats(tmp_path / "b", "00000", SMALL)
    dataset = layouts.dataset(BraTS21, tmp_path)
    (case,) = dataset.discover("T1")
    assert all("/a/" in str(file) for file in case.files)
    assert sum("is the same file" in line for line in dataset.exclusions("T1")) == 5
    (tmp_path / "b" / "BraTS2021_00000" / "BraTS2021_00000_t1.nii.gz").write_bytes(b"other")
    assert "have the same name and different content" in refused(BraTS21, tmp_path)


def test_the_same_name_twice_without_compression(tmp_path: Path) -> None:
    case = layouts.brats(tmp_path / "a", "00000", SMALL)
    plain = tmp_path / "b" / "BraTS2021_00000_t1.nii"
    plain.parent.mkdir()
    content = gzip.decompress((case / "BraTS2021_00000_t1.nii.gz").read_bytes())
    plain.write_bytes(content)
    assert len(layouts.dataset(BraTS21, tmp_path).index.duplicates) == 1
    (case / "BraTS2021_00000_t1.nii.gz").unlink()
    (case / "BraTS2021_00000_t1.nii").write_bytes(content[:-2] + b"\x01\x00")  # as long, another voxel
    message = refused(BraTS21, tmp_path)
    assert "BraTS2021_00000_t1.nii have the same name and different content: remove one, or leave " in message
    layouts.brats(tmp_path, "00001", SMALL)
    excluded = layouts.dataset(BraTS21, tmp_path, exclude=["BraTS2021_00000"])
    assert [case.id for case in excluded.discover("T1")] == ["BraTS2021_00001"]


def members(raw: bytes) -> bytes:
    """A gzip of several members, the last one empty: its end states the length and checksum of nothing."""
    return b"".join(gzip.compress(part, mtime=0) for part in (raw[:500], raw[500:], b""))


def test_two_volumes_in_gzips_of_several_members_are_compared_by_content(tmp_path: Path) -> None:
    file = layouts.brats(tmp_path / "a", "00000", SMALL) / "BraTS2021_00000_t1.nii.gz"
    raw = gzip.decompress(file.read_bytes())
    file.write_bytes(members(raw))
    second = tmp_path / "b" / file.name
    second.parent.mkdir()
    second.write_bytes(members(raw))
    assert layouts.dataset(BraTS21, tmp_path).index.duplicates == [(file, second)]
    second.write_bytes(members(raw[:-2] + b"\x01\x00"))
    assert f"{file} and {second} have the same name and different content" in refused(BraTS21, tmp_path)


def mapping(path: Path, rows: list[tuple[str, ...]]) -> Path:
    """A table as a spreadsheet writes it: some texts shared, some in place."""
    names = [text for row in rows for text in row]
    space = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    lines = ""
    for row in rows:
        cells = "".join(f'<c t="s"><v>{names.index(text)}</v></c>' for text in row[:-1])
        lines += f'<row>{cells}<c><v>7</v></c><c t="inlineStr"><is><t>{row[-1]}</t></is></c></row>'
    with zipfile.ZipFile(path, "w") as file:
        shared = "".join(f"<si><t>{name}</t></si>" for name in names)
        file.writestr("xl/sharedStrings.xml", f"<sst {space}>{shared}</sst>")
        file.writestr("xl/worksheets/sheet1.xml", f"<worksheet {space}><sheetData>{lines}</sheetData></worksheet>")
    return path


def test_second_scans_of_brats_take_no_role_without_the_mapping(tmp_path: Path) -> None:
    for number in ("00011", "00012", "01537", "01540", "01656", "01657"):
        layouts.brats(tmp_path, number, SMALL)
    dataset = layouts.dataset(BraTS21, tmp_path)
    assert [case.subject[-5:] for case in dataset.discover("T1")] == ["00011", "00012", "01537", "01657"]
    why = "BraTS2021_01540: left out, it is probably a second scan of another patient (numbers 01538 to 01656)"
    assert any(line.startswith(why) for line in dataset.exclusions("T1"))
    assert [f.case for f in check(dataset).issues if f.code == "left-out"] == ["BraTS2021_01540", "BraTS2021_01656"]
    used = layouts.dataset(BraTS21, tmp_path, second_scans="use")
    assert len(used.discover("T1")) == 6
    assert used.recipe() == dataset.recipe()  # it chooses cases and leaves their pixels alone


@pytest.mark.parametrize("name", ["BraTS2023_2017_GLI_Mapping.xlsx", "tables/mapping.csv"])
def test_the_mapping_says_whose_second_scan_it_is(tmp_path: Path, name: str) -> None:
    for number in ("00011", "00012", "00013", "01540", "01656"):
        layouts.brats(tmp_path, number, SMALL)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    rows = [("BraTS2023", "BraTS2021"), ("BraTS-GLI-00012-000", "BraTS2021_00012")]
    rows += [("BraTS-GLI-00012-001", "BraTS2021_01540"), ("BraTS-GLI-00099-000", "BraTS2021_00099")]
    if name.endswith("csv"):
        (tmp_path / name).write_text("\n".join(map(",".join, rows)), encoding="utf-8")
    else:
        mapping(tmp_path / name, rows)
    dataset = layouts.dataset(BraTS21, tmp_path)
    cases = dataset.discover("T1")
    assert [case.id[-11:] for case in cases] == ["S2021_00011", "S2021_00012", "00012_01540", "S2021_00013"]
    assert cases[1].subject == cases[2].subject == "BraTS2021_00012"
    assert cases[1].split == cases[2].split
    assert "01540" in str(cases[2].files[0])


def test_a_mapping_that_says_nothing(tmp_path: Path) -> None:
    layouts.brats(tmp_path, "00011", SMALL)
    path = mapping(tmp_path / "Mapping.xlsx", [("BraTS2023", "x")])
    assert f"No row of {path} names a case of BraTS'21" in refused_at_once(tmp_path)
    path.write_bytes(b"hello")
    assert f"The mapping table {path} cannot be read" in refused_at_once(tmp_path)


def refused_at_once(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        layouts.dataset(BraTS21, root).available()
    return str(caught.value)


# -- reading -------------------------------------------------------------------------------------------------------------


def read_error(root: Path) -> str:
    dataset = layouts.dataset(BraTS21, root)
    with pytest.raises(UserError) as caught:
        dataset.read(dataset.discover("T1")[0], "T1")
    return str(caught.value)


def test_a_mask_of_another_grid(tmp_path: Path) -> None:
    case = layouts.brats(tmp_path, "00000", SMALL, seg=layouts.lesion((12, 14, 11)))
    assert (
        "does not lie on the grid of its image BraTS2021_00000_t1.nii.gz: 12x14x11 voxels against 12x14x10"
        in read_error(tmp_path)
    )
    seg = case / "BraTS2021_00000_seg.nii.gz"
    nifti.write(seg, layouts.lesion(SMALL), np.diag([-1.0, -1, 1, 1]))
    assert "its affine puts a corner 239.0 mm away" in read_error(tmp_path)


def test_a_mask_with_fractions(tmp_path: Path) -> None:
    layouts.brats(tmp_path, "00000", SMALL, seg=layouts.lesion(SMALL) * np.float32(0.37))
    assert "holds the value 0.37, expected whole numbers" in read_error(tmp_path)


@pytest.mark.parametrize("factor", [1, 0.9999999])
def test_a_float_mask_of_whole_numbers_is_fine(tmp_path: Path, factor: float) -> None:
    layouts.brats(tmp_path, "00000", SMALL, seg=(layouts.lesion(SMALL) * factor).astype(np.float32))
    assert not [f for f in check(layouts.dataset(BraTS21, tmp_path), deep=True).issues if f.code == "label"]
    dataset = layouts.dataset(BraTS21, tmp_path)
    raw = dataset.read(dataset.discover("T1")[0], "T1")
    assert raw.lesion.dtype.kind == "i"
    np.testing.assert_array_equal(raw.lesion, layouts.lesion(SMALL))
