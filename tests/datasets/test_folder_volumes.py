"""Volumes of one's own: BIDS derivatives, common names, patterns, and how subjects get their roles."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import real_layouts as layouts

from adbench.config import run_config
from adbench.config.cell import Source
from adbench.context import Progress
from adbench.datasets.adapters.folder import Folder
from adbench.datasets.adapters.folder_volumes import FolderVolumes, compile_pattern
from adbench.datasets.io import nifti
from adbench.datasets.store.prepare import prepare
from adbench.datasets.validation.check import check
from adbench.errors import UserError
from adbench.params import build
from adbench.runner import plan

SMALL = layouts.SMALL
AFFINE = np.diag([1.0, 1, 1, 1])


def write(path: Path, seed: int = 1, mask: bool = False) -> Path:
    """One small image or mask."""
    nifti.write(path, layouts.lesion(SMALL, (1, 2)) if mask else layouts.image(SMALL, seed), AFFINE)
    return path


def folder(root: Path, **params: Any) -> FolderVolumes:
    found = layouts.dataset(Folder, root, **params)
    assert isinstance(found, FolderVolumes)
    return found


def refused(root: Path, **params: Any) -> str:
    dataset = folder(root, **params)
    with pytest.raises(UserError) as caught:
        dataset.discover((*dataset.available(), "FLAIR")[0])
    return str(caught.value)


def common(root: Path, names: str = "patient07 patient19 patient26") -> Path:
    for number, name in enumerate(names.split()):
        for index, kind in enumerate(("flair", "t1")):
            write(root / name / f"{name}_{kind}.nii.gz", 20 * number + index)
        write(root / name / f"{name}_seg.nii.gz", mask=True)
    return root


def test_common_names(tmp_path: Path) -> None:
    dataset = folder(common(tmp_path / "MS è"))
    assert dataset.available() == ("FLAIR", "T1")
    cases = dataset.discover("FLAIR")
    assert [case.id for case in cases] == ["patient07", "patient19", "patient26"]
    assert sorted(case.split for case in cases) == ["test", "train", "val"]
    raw = dataset.read(cases[0], "FLAIR")
    np.testing.assert_array_equal(raw.image, layouts.image(SMALL, 0))
    np.testing.assert_array_equal(raw.lesion, layouts.lesion(SMALL, (1, 2)))
    assert raw.lesion_labels is None
    assert not raw.skull  # most voxels are 0
    assert dataset.params.size == 256


def test_bids_derivatives(tmp_path: Path) -> None:
    root = tmp_path / "derivatives" / "pipeline"
    for subject in ("01", "02"):
        for session in ("1", "2"):
            stem = root / f"sub-{subject}" / f"ses-{session}" / "anat" / f"sub-{subject}_ses-{session}_space-MNI152"
            seed = int(subject) * 10 + int(session)
            write(stem.with_name(f"{stem.name}_T1w.nii.gz"), seed)
            write(stem.with_name(f"{stem.name}_FLAIR.nii.gz"), seed + 50)
            write(stem.with_name(f"{stem.name}_desc-brain_mask.nii.gz"), seed)
            write(stem.with_name(f"{stem.name}_label-lesion_mask.nii.gz"), mask=True)
    write(root / "sub-01" / "sub-01_desc-preproc_bold.nii.gz")
    dataset = folder(tmp_path)
    assert dataset.available() == ("FLAIR", "T1")
    cases = dataset.discover("T1")
    assert [case.id for case in cases] == ["sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1", "sub-02_ses-2"]
    assert {case.split for case in cases if case.subject == "sub-01"} == {cases[0].split}
    raw = dataset.read(cases[1], "T1")
    assert raw.brain is not None
    assert raw.lesion is not None
    assert [path for path in dataset.index.unused if "bold" in path]


def test_patterns(tmp_path: Path) -> None:
    for site, subject in (("Ulm", "a"), ("Ulm", "b"), ("Köln", "c")):
        write(tmp_path / "x" / site / "images" / f"{subject}-mr.nii.gz", ord(subject))
        write(tmp_path / "x" / site / "images" / f"{subject}-ct.nii.gz", ord(subject))
        write(tmp_path / "x" / site / "truth" / f"{subject}.nii.gz", mask=True)
        write(tmp_path / "x" / site / "brains" / f"{subject}.nii.gz", 1)
    dataset = folder(
        tmp_path,
        image_pattern="{site}/images/{subject}-mr.nii.gz",
        lesion_pattern="{site}/truth/{subject}.nii.gz",
        brain_pattern="{site}/brains/{subject}.nii.gz",
        modality="flair",
        lesion_labels=[2],
    )
    assert dataset.available() == ("FLAIR",)
    cases = dataset.discover("FLAIR")
    assert [(case.id, case.site, len(case.files)) for case in cases] == [
        ("a", "Ulm", 3),
        ("b", "Ulm", 3),
        ("c", "Köln", 3),
    ]
    assert dataset.read(cases[0], "FLAIR").lesion_labels == (2,)
    assert len(dataset.index.unused) == 3


@pytest.mark.parametrize(
    ("pattern", "path", "found"),
    [
        ("{subject}/{subject}_{modality}.nii.gz", "x/p1/p1_T2.nii.gz", {"subject": "p1", "modality": "T2"}),
        ("{subject}/{subject}_{modality}.nii.gz", "x/p1/p2_T2.nii.gz", None),
        ("{subject}_*.nii.gz", "p1_a_b.nii.gz", {"subject": "p1"}),
        ("raw/**/{subject}.nii.gz", "raw/a/b/p1.nii.gz", {"subject": "p1"}),
        ("raw/**/{subject}.nii.gz", "raw/p1.nii.gz", {"subject": "p1"}),
        ("aw/{subject}.nii.gz", "raw/p1.nii.gz", None),
        ("{subject}.nii", "p1.nii.gz", None),
        ("{site}(1)+/{subject}.nii.gz", "A(1)+/p.nii.gz", {"site": "A", "subject": "p"}),
    ],
)
def test_pattern_language(pattern: str, path: str, found: dict[str, str] | None) -> None:
    match = compile_pattern(pattern).search(path)
    assert (match and match.groupdict()) == found


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"image_pattern": "{subjekt}.nii.gz"}, "Unknown field {subjekt} in the pattern"),
        ({"image_pattern": "*.nii.gz"}, "has no {subject}"),
        ({"lesion_pattern": "{subject}_seg.nii.gz"}, "need dataset.image_pattern"),
        ({"image_pattern": "{subject}/{subject}_flair.nii.gz"}, "does not say its modality: state it with"),
        ({"image_pattern": "{subject}/nothing.nii.gz", "modality": "T1"}, "None of the 9 NIfTI files"),
    ],
)
def test_patterns_that_do_not_work(tmp_path: Path, params: dict[str, Any], message: str) -> None:
    assert message in refused(common(tmp_path), **params)


def test_a_mask_that_may_be_anything(tmp_path: Path) -> None:
    write(tmp_path / "p1_flair.nii.gz")
    write(tmp_path / "p1_mask.nii.gz", mask=True)
    assert "p1_mask.nii.gz: is this a brain mask or a lesion mask?" in refused(tmp_path)
    (tmp_path / "p1_mask.nii.gz").rename(tmp_path / "p1_lesion_mask.nii.gz")
    (case,) = folder(tmp_path).discover("FLAIR")
    assert len(case.files) == 2


def test_a_segmentation_of_tissues_is_no_lesion(tmp_path: Path) -> None:
    write(tmp_path / "sub-01_T1w.nii.gz")
    write(tmp_path / "sub-01_dseg.nii.gz", mask=True)
    assert "sub-01_dseg.nii.gz: is this a brain mask or a lesion mask?" in refused(tmp_path)
    for name in ("sub-01_label-lesion_dseg", "sub-01_space-MNI_label-L_mask", "sub-01_desc-tumour_dseg"):
        next(tmp_path.glob("*_*-*.gz"), tmp_path / "sub-01_dseg.nii.gz").rename(tmp_path / f"{name}.nii.gz")
        (case,) = folder(tmp_path).discover("T1")
        assert "lesion" in case.extra["files"]


def test_t1_with_a_contrast_agent_in_bids(tmp_path: Path) -> None:
    write(tmp_path / "sub-01_T1w.nii.gz", 1)
    write(tmp_path / "sub-01_ce-gadolinium_T1w.nii.gz", 2)
    dataset = folder(tmp_path, unmasked="healthy")
    assert set(dataset.available()) == {"T1", "T1CE"}
    assert "ce-gadolinium" in str(dataset.discover("T1CE")[0].files[0])


def test_two_files_of_one_meaning(tmp_path: Path) -> None:
    write(tmp_path / "sub-01_space-A_T1w.nii.gz")
    write(tmp_path / "sub-01_space-B_T1w.nii.gz", 2)
    assert "sub-01_space-B_T1w.nii.gz mean the same scan and sequence: remove one" in refused(tmp_path)
    chosen = folder(tmp_path, image_pattern="{subject}_space-B_{modality}.nii.gz", unmasked="healthy")
    assert [file.name for case in chosen.discover("T1") for file in case.files] == ["sub-01_space-B_T1w.nii.gz"]


def test_stated_modality_for_plain_names(tmp_path: Path) -> None:
    write(tmp_path / "case_a.nii.gz")
    assert "None of the 1 NIfTI files" in refused(tmp_path)
    assert [case.id for case in folder(tmp_path, modality="T2", unmasked="healthy").discover("T2")] == ["case_a"]


# -- roles ---------------------------------------------------------------------------------------------------------------


def roles(dataset: FolderVolumes, modality: str = "FLAIR") -> dict[str, str]:
    return {case.subject: case.split for case in dataset.discover(modality)}


def test_folders_give_roles(tmp_path: Path) -> None:
    for split, name in (("Training", "a"), ("Training", "b"), ("val", "c"), ("testing", "d")):
        write(tmp_path / split / f"{name}_flair.nii.gz")
        if split != "Training":
            write(tmp_path / split / f"{name}_seg.nii.gz", mask=True)
    assert roles(folder(tmp_path)) == {"a": "train", "b": "train", "c": "val", "d": "test"}
    write(tmp_path / "val" / "a_t1.nii.gz")
    assert "The subject a is in two splits, train (" in refused(tmp_path)


def test_excluding_somebody_changes_no_other_role(tmp_path: Path) -> None:
    """Neither the folds that are dealt nor who is healthy."""
    for n in range(3):
        write(tmp_path / "dealt" / "train" / f"h{n}_flair.nii.gz", n)
    for n in range(10):
        write(tmp_path / "dealt" / "test" / f"p{n}_flair.nii.gz", 10 + n)
        write(tmp_path / "dealt" / "test" / f"p{n}_seg.nii.gz", mask=True)
    for fold in range(2):
        everyone = roles(folder(tmp_path / "dealt", folds=2, fold=fold))
        for who in ("p9", "p4", "h1"):
            without = roles(folder(tmp_path / "dealt", folds=2, fold=fold, exclude=(who,)))
            assert without == {name: role for name, role in everyone.items() if name != who}
    for n in range(4):
        write(tmp_path / "ill" / ("train" if n == 3 else "val") / f"v{n}_flair.nii.gz", 30 + n)
    write(tmp_path / "ill" / "val" / "v0_seg.nii.gz", mask=True)
    assert "v1 in" in (said := refused(tmp_path / "ill", exclude=("v0",)))
    assert "has a lesion mask" in said


def test_an_excluded_scan_alone_gives_no_roles_by_its_folder(tmp_path: Path) -> None:
    for n in range(8):
        write(tmp_path / ("train" if n == 7 else "") / f"p{n}_flair.nii.gz", n)
    found = roles(folder(tmp_path, unmasked="healthy", exclude=("p7",)))
    assert set(found.values()) == {"train", "val"}
    assert "No case" in refused(tmp_path, exclude=("p7",))  # nobody is healthy by the folder of another


def test_a_mask_of_an_excluded_visit_is_not_denied(tmp_path: Path) -> None:
    write(tmp_path / "sub-1" / "ses-1" / "sub-1_ses-1_FLAIR.nii.gz")
    write(tmp_path / "sub-1" / "ses-1" / "sub-1_ses-1_label-lesion_mask.nii.gz", mask=True)
    write(tmp_path / "sub-1" / "ses-2" / "sub-1_ses-2_FLAIR.nii.gz", 2)
    said = refused(tmp_path, exclude=("sub-1_ses-1",))
    assert said.startswith(f"No case in {tmp_path} has a lesion mask: say --set dataset.unmasked=healthy or leave-out")


def test_a_stray_file_beside_split_folders(tmp_path: Path) -> None:
    write(tmp_path / "train" / "a_flair.nii.gz")
    write(tmp_path / "b_flair.nii.gz")
    assert "b_flair.nii.gz lies in no train, val or test folder while others do" in refused(tmp_path)


def test_healthy_volumes_train_and_validate(tmp_path: Path) -> None:
    for number in range(20):
        write(tmp_path / f"s{number:02d}_flair.nii.gz", number)
    assert refused(tmp_path).startswith(f"No case in {tmp_path} has a lesion mask: say --set dataset.unmasked=healthy")
    found = list(roles(folder(tmp_path, unmasked="healthy")).values())
    assert (found.count("train"), found.count("val"), found.count("test")) == (18, 2, 0)


def test_subjects_without_a_mask_where_others_have_one(tmp_path: Path) -> None:
    common(tmp_path, " ".join(f"p{n}" for n in range(6)))
    for number in range(8):
        write(tmp_path / f"h{number}_flair.nii.gz", 200 + number)
    message = refused(tmp_path)
    assert "h0" in message
    assert "has no lesion mask, as 6 of 14 cases have: say --set dataset.unmasked=healthy or leave-out" in message
    left = folder(tmp_path, unmasked="leave-out")
    assert len(left.discover("FLAIR")) == 6
    assert len(left.exclusions("FLAIR")) == 8
    healthy = roles(folder(tmp_path, unmasked="healthy"))
    assert {healthy[f"h{n}"] for n in range(8)} == {"train", "val"}
    assert {healthy[f"p{n}"] for n in range(6)} == {"val", "test"}  # patients need not train


def test_visits_of_one_patient_have_one_role(tmp_path: Path) -> None:
    for family in ("GLI", "MET"):
        for number in range(10):
            for visit in ("000", "001"):
                stem = f"BraTS-{family}-{number:05d}-{visit}"
                write(tmp_path / stem / f"{stem}-t2f.nii.gz", 40 * number + int(visit))
                write(tmp_path / stem / f"{stem}-seg.nii.gz", mask=True)
    cases = folder(tmp_path).discover("FLAIR")
    assert len(cases) == 40
    assert cases[0].id == "BraTS-GLI-00000_000"
    assert {case.split for case in cases} == {"train", "val", "test"}
    for number in range(10):
        assert len({case.split for case in cases if case.subject == f"BraTS-MET-{number:05d}"}) == 1


def test_names_of_one_patient_have_one_role(tmp_path: Path) -> None:
    """Sixty patients, each under two names: other padding and case. A draw by name would part some of them."""
    for number in range(60):
        for name in (f"p{number:03d}", f"P{number}"):
            write(tmp_path / name / f"{name}_flair.nii.gz", number)
            write(tmp_path / name / f"{name}_seg.nii.gz", mask=True)
    found = roles(folder(tmp_path))
    assert len(found) == 120
    assert all(found[f"p{number:03d}"] == found[f"P{number}"] for number in range(60))


def test_split_folders_hold_a_patient_once_under_any_name(tmp_path: Path) -> None:
    write(tmp_path / "train" / "p07_tp1_flair.nii.gz")
    write(tmp_path / "test" / "P7_tp2_flair.nii.gz", 2)
    write(tmp_path / "test" / "P7_tp2_seg.nii.gz", mask=True)
    assert re.search(r"The subject [pP]0?7 is in two splits, test \(.*P7_tp2.* and train \(", refused(tmp_path))


def test_second_scans_of_brats21_take_no_role(tmp_path: Path) -> None:
    common(tmp_path, "BraTS2021_01537 BraTS2021_01538 BraTS2021_01656 BraTS2021_01657")
    dataset = folder(tmp_path)
    assert [case.subject for case in dataset.discover("FLAIR")] == ["BraTS2021_01537", "BraTS2021_01657"]
    assert (
        "BraTS2021_01538: left out, it is probably a second scan of another patient" in dataset.exclusions("FLAIR")[0]
    )
    assert len(folder(tmp_path, second_scans="use").discover("FLAIR")) == 4


# -- health --------------------------------------------------------------------------------------------------------------


def isles(root: Path) -> Path:
    """ISLES'22 as distributed, but for a name of the mask that nobody knows."""
    for number in (1, 2, 3):
        stem = f"sub-strokecase{number:04d}_ses-0001"
        write(root / "rawdata" / stem[:18] / "ses-0001" / "anat" / f"{stem}_FLAIR.nii.gz", number)
        write(root / "derivatives" / stem[:18] / "ses-0001" / f"{stem}_stroke.nii.gz", mask=True)
        adc = np.random.default_rng(number).integers(0, 900, SMALL).astype(np.int16)
        nifti.write(root / "rawdata" / stem[:18] / "ses-0001" / "dwi" / f"{stem}_adc.nii.gz", adc, AFFINE)
    return root


def test_a_mask_of_an_unknown_name_makes_nobody_healthy(tmp_path: Path) -> None:
    message = refused(isles(tmp_path))
    assert message == (
        f"{tmp_path}/derivatives/sub-strokecase0001/ses-0001/sub-strokecase0001_ses-0001_stroke.nii.gz holds the values 0, 1, 2 "
        "alone, as a mask does, and its name does not say of what: if it marks lesions, sub-strokecase0001_ses-0001 is not healthy. "
        "Rename it, or name it by --set dataset.lesion_pattern=... or brain_pattern=... beside image_pattern, or declare the case "
        "healthy with --set dataset.unmasked=healthy."
    )
    found = check(folder(tmp_path))
    assert found.counts["error"] == 4  # of three cases their file, and once that no case has a mask
    assert {f.code for f in found.issues if f.severity == "error"} == {"unnamed-mask", "missing-mask"}
    assert not [f for f in found.issues if "adc" in f.message and f.code == "unnamed-mask"]
    named = folder(
        tmp_path,
        image_pattern="{subject}_{session}_{modality}.nii.gz",
        lesion_pattern="{subject}_{session}_stroke.nii.gz",
    )
    assert all("lesion" in case.extra["files"] for case in named.discover("FLAIR"))
    declared = check(folder(tmp_path, unmasked="healthy"))
    assert {f.code for f in declared.issues if f.severity == "warning"} == {"unnamed-mask", "no-test"}
    assert declared.counts["error"] == 0


def test_the_folder_train_declares_nobody_healthy_who_has_an_unnamed_mask(tmp_path: Path) -> None:
    write(tmp_path / "train" / "a_flair.nii.gz")
    mask = write(tmp_path / "train" / "a_drawn.nii.gz", mask=True)
    assert f"{mask} holds the values 0, 1, 2 alone" in refused(tmp_path)
    nifti.write(mask, np.zeros(SMALL, np.uint8), AFFINE)  # nothing is drawn: nothing speaks against it
    (case,) = folder(tmp_path).discover("FLAIR")
    assert case.healthy == "it lies in train/, which is for healthy subjects"


def test_numbered_lesions_of_an_unknown_name_make_nobody_healthy(tmp_path: Path) -> None:
    write(tmp_path / "train" / "a_flair.nii.gz")
    parts = np.zeros(SMALL, np.int16)
    parts[::4, ::4, ::3] = np.arange(1, 49).reshape(3, 4, 4)
    nifti.write(tmp_path / "train" / "a_components.nii.gz", parts, AFFINE)
    message = refused(tmp_path)
    assert f"{tmp_path}/train/a_components.nii.gz holds 49 whole numbers from 0 to 48 alone, as a mask does" in message
    assert "if it marks lesions, a is not healthy" in message


@pytest.mark.parametrize("name", ["P01_infarct", "p1_infarct", "roi_p01", "p01infarct", "p01_prob", "rois/P1/drawn"])
@pytest.mark.parametrize("unmasked", ["refuse", "leave-out"])
def test_nobody_in_train_is_healthy_with_a_mask_that_bears_his_name(tmp_path: Path, name: str, unmasked: str) -> None:
    write(tmp_path / "train" / "p01_flair.nii.gz")
    write(tmp_path / "train" / "p011_flair.nii.gz", 2)
    path = tmp_path / "train" / f"{name}.nii.gz"
    if name == "p01_prob":
        soft = np.zeros(SMALL, np.float32)
        soft[4:6, 5:9, 3:6] = np.linspace(0.01, 1, 24).reshape(2, 4, 3)
        nifti.write(path, soft, AFFINE)
    else:
        write(path, mask=True)
    message = refused(tmp_path, unmasked=unmasked)
    what = "values from 0 to 1, most of them 0" if name == "p01_prob" else "the values 0, 1, 2 alone"
    assert f"{path} holds {what}, as a mask does" in message
    assert "if it marks lesions, p01 is not healthy" in message
    (finding,) = [f for f in check(folder(tmp_path, unmasked=unmasked)).issues if f.code == "unnamed-mask"]
    assert (finding.severity, finding.case, finding.message) == ("error", "p01", message)


def test_a_mask_of_nobody_is_named_where_it_lies_on_a_grid(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = common(tmp_path / "data")
    own = write(root / "lesions" / "x9.nii.gz", mask=True)
    write(root / "patient07" / "patient07_atlas.nii.gz", mask=True)  # of somebody whose mask is known
    nifti.write(root / "other_grid.nii.gz", layouts.lesion(layouts.SMALL, (1,)), np.diag([2.0, 2, 2, 1]))
    tissue = np.random.default_rng(1).random(SMALL, np.float32) * layouts.box(SMALL)
    nifti.write(root / "normalised.nii.gz", tissue, AFFINE)
    nifti.write(root / "adc.nii.gz", (900 * tissue).astype(np.int16), AFFINE)
    said = f"{own} holds the values 0, 1, 2 alone, as a mask does, lies on the grid of an image here"
    (finding,) = [f for f in check(folder(root)).issues if f.code == "unnamed-mask"]
    assert finding.severity == "warning"
    assert said in finding.message
    source = Source.resolve("folder", str(root), {"field_of_view": 32, "size": 32})
    with caplog.at_level(logging.WARNING, logger="adbench"):
        for _ in range(2):
            plan.open_store(source, "FLAIR", tmp_path / "cache", Progress())
    assert caplog.text.count(said) == 1


def test_the_mask_of_isles_is_known_by_its_name(tmp_path: Path) -> None:
    write(tmp_path / "sub-strokecase0001_ses-0001_FLAIR.nii.gz")
    write(tmp_path / "sub-strokecase0001_ses-0001_msk.nii.gz", mask=True)
    (case,) = folder(tmp_path).discover("FLAIR")
    assert "lesion" in case.extra["files"]


def test_a_test_folder_needs_masks(tmp_path: Path) -> None:
    write(tmp_path / "train" / "a_flair.nii.gz")
    write(tmp_path / "val" / "b_flair.nii.gz", 2)
    write(tmp_path / "test" / "c_flair.nii.gz", 3)
    where = tmp_path / "test" / "c_flair.nii.gz"
    assert refused(tmp_path).startswith(
        f"No case in {tmp_path} has a lesion mask, and c in {where} needs one: say --set"
    )
    cases = folder(tmp_path, unmasked="leave-out").discover("FLAIR")
    assert [(case.subject, case.healthy[:16]) for case in cases] == [
        ("a", "it lies in train"),
        ("b", "it lies in val/,"),
    ]


def test_two_lesion_masks_of_one_case(tmp_path: Path) -> None:
    common(tmp_path)
    write(tmp_path / "patient07" / "patient07_lesion.nii.gz", mask=True)
    message = refused(tmp_path)
    assert message == (
        f"{tmp_path}/patient07/patient07_lesion.nii.gz and {tmp_path}/patient07/patient07_seg.nii.gz are both lesion masks: merge "
        "them into one (lesion where either says so) with --set dataset.lesion_masks=union, or take one with lesion or "
        "seg, or leave patient07 out with dataset.exclude=[patient07]."
    )
    assert [f.case for f in check(folder(tmp_path)).issues if f.code == "conflict"] == ["patient07"]
    assert len(folder(tmp_path, exclude=["patient07"]).discover("FLAIR")) == 2


def test_masks_in_pieces(tmp_path: Path) -> None:
    common(tmp_path)
    left, right, third = (np.zeros(SMALL, np.uint8) for _ in range(3))
    left[4:6], right[5:8], third[5] = 1, 2, 1
    for word, data in (("seg_first", left), ("seg_second", right), ("seg_third", third)):
        nifti.write(tmp_path / "patient07" / f"patient07_{word}_lesion.nii.gz", data, AFFINE)
    (tmp_path / "patient07" / "patient07_seg.nii.gz").unlink()
    for path in tmp_path.glob("patient07/*_lesion.nii.gz"):
        path.rename(path.with_name(path.name.replace("_seg_", "-").replace("_lesion", "_seg")))
    pattern = {"image_pattern": "{subject}/{subject}_{modality}.nii.gz", "lesion_pattern": "{subject}/*_seg.nii.gz"}
    whole = {
        "union": left | right | third,
        "majority": (left > 0).astype(int) + (right > 0) + (third > 0) > 1,
        "second": right,
    }
    for policy, expected in whole.items():
        dataset = folder(tmp_path, **pattern, lesion_masks=policy)
        case = dataset.discover("FLAIR")[0]
        raw = dataset.read(case, "FLAIR")
        np.testing.assert_array_equal(raw.lesion > 0, expected > 0)
        assert len([file for file in case.files if "_seg" in file.name]) == (1 if policy == "second" else 3)
        named = ", ".join(f"patient07-{word}_seg.nii.gz" for word in ("first", "second", "third"))
        assert raw.remarks == (() if policy == "second" else (f"lesion: {policy} of {named}",))
        assert dataset.read(dataset.discover("FLAIR")[1], "FLAIR").remarks == ()
    message = refused(tmp_path, **pattern, lesion_masks="d")
    assert message == (
        f"dataset.lesion_masks=d is in the name of several lesion masks of patient07 ({named}): say union, "
        "majority, or first, second or third."
    )


def test_merged_masks_keep_their_labels(tmp_path: Path) -> None:
    common(tmp_path, "p1 p2 p3")
    write(tmp_path / "p1" / "p1_lesion.nii.gz", mask=True)
    dataset = folder(tmp_path, lesion_masks="union", lesion_labels=2)
    raw = dataset.read(dataset.discover("FLAIR")[0], "FLAIR")
    np.testing.assert_array_equal(raw.lesion, layouts.lesion(SMALL, (1, 2)) == 2)
    assert raw.lesion_labels is None


def test_labels_that_no_mask_holds(tmp_path: Path) -> None:
    common(tmp_path / "data")
    for labels, asked in (([9], "9"), ([1, 7, 9], "7, 9")):
        dataset = folder(tmp_path / "data", lesion_labels=labels, field_of_view=32, size=32)
        message = (
            f"dataset.lesion_labels asks for {asked}, which no lesion mask in {tmp_path / 'data'} holds: their labels are 1, 2; "
            "name those that are lesion."
        )
        for _ in range(2):  # case files that are there say it too
            with pytest.raises(UserError) as caught:
                prepare(dataset, "FLAIR", tmp_path / "cache", workers=1)
            assert str(caught.value) == message
        (finding,) = [f for f in check(dataset, deep=True).issues if f.severity == "error"]
        assert (finding.code, finding.message) == ("label", message)
    one = common(tmp_path / "data") / "patient19" / "patient19_seg.nii.gz"
    nifti.write(one, 9 * layouts.lesion(SMALL, (1,)), AFFINE)  # one mask holds it: that is enough
    dataset = folder(tmp_path / "data", lesion_labels=[1, 9], field_of_view=32, size=32)
    assert not [f for f in check(dataset, deep=True).issues if f.code == "label"]
    store = prepare(dataset, "FLAIR", tmp_path / "cache", workers=1)
    said = "lesion: label 2 counts as healthy, dataset.lesion_labels does not have it"
    assert {f"{name}: {said}" for name in ("patient07", "patient26")} <= set(store.manifest["remarks"])


def test_an_excluded_case_is_no_obstacle_whatever_it_holds(tmp_path: Path) -> None:
    common(tmp_path)
    write(tmp_path / "patient07" / "patient07_mask.nii.gz", mask=True)
    message = refused(tmp_path)
    assert message == (
        f"{tmp_path}/patient07/patient07_mask.nii.gz: is this a brain mask or a lesion mask? Rename it, or say it with --set "
        "dataset.lesion_pattern=... or dataset.brain_pattern=... beside dataset.image_pattern=..., or leave patient07 out with "
        "dataset.exclude=[patient07]."
    )
    assert [f.case for f in check(folder(tmp_path)).issues if f.severity == "error"] == ["patient07"]
    assert len(folder(tmp_path, exclude="patient07").discover("FLAIR")) == 2


# -- options as YAML reads them --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("skull=no", "no"),
        ("skull=yes", "yes"),
        ("exclude=[100206]", ("100206",)),
        ("exclude=100206", ("100206",)),
        ("exclude=[00012, p_1]", ("00012", "p_1")),
        ("lesion_labels=1", (1,)),
        ("lesion_labels=[1, 3]", (1, 3)),
        ("size=64", 64),
        ("size=null", None),
        ("n4=on", True),
        ("name=2024", "2024"),
        ("name=no", "no"),
        ("name=true", "true"),
        ("name=2024-01-05", "2024-01-05"),
        ("skull=false", "no"),
        ("registration=off", "none"),
        ("registration=null", "none"),
        ("exclude=p1, 00012", ("p1", "00012")),
        ("lesion_labels=1,3", (1, 3)),
        ("n4=no", False),
        ("split_seed=010", 10),
    ],
)
def test_options_are_read_by_the_type_of_their_field(text: str, expected: object) -> None:
    _, key, value = run_config.parse_assignment(f"dataset.{text}")
    assert getattr(build(Folder.Params, "dataset folder", {key: value}), key) == expected


@pytest.mark.parametrize(
    "text",
    [
        "skull=maybe",
        "lesion_labels=one",
        "lesion_labels=0",
        "lesion_labels=[1,-2]",
        "n4=perhaps",
        "exclude={a: 1}",
        "name=a/b",
    ],
)
def test_options_that_mean_nothing(text: str) -> None:
    _, key, value = run_config.parse_assignment(f"dataset.{text}")
    with pytest.raises(UserError, match=f"dataset folder: {key}"):
        build(Folder.Params, "dataset folder", {key: value})


def test_own_data_has_a_name_of_its_own(tmp_path: Path) -> None:
    common(tmp_path)
    named = Source.resolve("folder", str(tmp_path), {"name": "hospital_a"})
    assert (named.title, Source.resolve("folder", str(tmp_path), {}).title) == ("hospital_a", "folder")
    assert (
        named.open().recipe() == Source.resolve("folder", str(tmp_path), {}).open().recipe()
    )  # no pixel depends on it
    with pytest.raises(UserError, match=r"dataset\.name=ixi is the name of another dataset"):
        Source.resolve("folder", str(tmp_path), {"name": "ixi"})


# -- background that is not 0 ----------------------------------------------------------------------------------------------


def test_a_brain_that_no_human_has(tmp_path: Path) -> None:
    large = np.diag([24.0, 24, 24, 1])
    nifti.write(tmp_path / "p1_flair.nii.gz", layouts.image(SMALL, 1), large)  # 6 x 7 x 5 voxels of 13.8 ml
    nifti.write(tmp_path / "p1_seg.nii.gz", layouts.lesion(SMALL), large)

    def said(**params: Any) -> list[str]:
        findings = check(folder(tmp_path, **params), deep=True).issues
        return [f.message for f in findings if f.code == "brain-volume" and f.severity == "warning"]

    image, mask = (tmp_path / f"p1_{kind}.nii.gz" for kind in ("flair", "brainmask"))
    assert said() == [
        f"{image} says that 2903 ml are brain, of a human at most 2500: is all else exactly the background?"
    ]
    assert said(skull="yes") == said(brain="template") == []
    nifti.write(mask, layouts.box(SMALL).astype(np.uint8), large)
    assert (
        said(skull="yes")
        == [said()[0]]
        == [f"{mask} says that 2903 ml are brain, of a human at most 2500: is all else exactly the background?"]
    )
    nifti.write(mask, layouts.lesion(SMALL), large)
    assert said() == []


def test_two_backgrounds_are_said(tmp_path: Path) -> None:
    shape = (24, 24, 16)
    image = np.pad(np.full((18, 20, 12), -0.75, np.float32), ((3, 3), (2, 2), (2, 2)))
    image[8:16, 8:16, 4:12] = np.random.default_rng(1).random((8, 8, 8))
    nifti.write(tmp_path / "p1_flair.nii.gz", image, AFFINE)
    nifti.write(tmp_path / "p1_seg.nii.gz", np.pad(np.ones((2, 2, 2), np.uint8), ((10, 12), (10, 12), (7, 7))), AFFINE)
    dataset = folder(tmp_path, field_of_view=32, size=32)
    assert not dataset.skull
    (said,) = [f.message for f in check(dataset, deep=True).issues if f.code == "background"]
    assert said.endswith(
        "has the value 0 in all corners, and -0.75 in most voxels besides, which are both taken for its background"
    )
    stack = dataset.load(dataset.discover("FLAIR")[0], "FLAIR")
    assert (stack.quality["brain_ml"], image.shape) == (pytest.approx(0.512), shape)
    assert stack.remarks[0] == (
        "brain: every voxel that is not 0, the value of all corners, nor -0.75, that of most voxels besides, and what it encloses"
    )


@pytest.mark.parametrize(("scale", "shift"), [(1 / 40, -1.75), (1.0, 1024.0), (1.0, 0.0)])
def test_the_background_is_the_value_of_the_corners(tmp_path: Path, scale: float, shift: float) -> None:
    plain, moved = tmp_path / "plain", tmp_path / "moved"
    for number in range(3):
        data = layouts.image(SMALL, number).astype(np.float32)
        for root, values in ((plain, data), (moved, data * scale + shift)):
            nifti.write(root / f"p{number}_flair.nii.gz", values, AFFINE)
            nifti.write(root / f"p{number}_seg.nii.gz", layouts.lesion(SMALL), AFFINE)
    tiny = {"field_of_view": 32, "size": 32}
    before, after = folder(plain, **tiny), folder(moved, **tiny)
    assert not after.skull
    one, other = (found.load(found.discover("FLAIR")[0], "FLAIR") for found in (before, after))
    np.testing.assert_array_equal(one.brain, other.brain)
    np.testing.assert_allclose(one.image, other.image, atol=1e-5)
    said = [f.message for f in check(after, deep=True).issues if f.code == "background"]
    taken = [remark for remark in other.remarks if remark.startswith("brain:")]
    if shift:
        assert (
            said[0]
            == f"{moved / 'p0_flair.nii.gz'} has the value {shift:g} in all corners, which is taken for its background"
        )
        assert taken == [f"brain: every voxel that is not {shift:g}, the value of all corners, and what it encloses"]
    else:
        assert said == taken == []


# -- kinds of folder -----------------------------------------------------------------------------------------------------


def test_slices_and_volumes_are_not_mixed(slices: Path) -> None:
    write(slices / "train" / "p1_flair.nii.gz")
    with pytest.raises(UserError, match="holds NIfTI volumes and PNG slices such as"):
        layouts.dataset(Folder, slices)


def test_parameters_of_volumes_are_refused_for_slices(slices: Path) -> None:
    with pytest.raises(UserError, match=r"dataset.n4 is for NIfTI volumes, and .* holds none"):
        layouts.dataset(Folder, slices, n4=True).available()


def test_a_skull_is_seen_or_stated(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(1, 900, SMALL).astype(np.int16)
    for kind in ("flair", "t1"):
        nifti.write(tmp_path / f"p1_{kind}.nii.gz", data, AFFINE)
    assert folder(tmp_path).skull
    assert folder(tmp_path).companion_of("FLAIR") == "T1"
    assert not folder(tmp_path, skull="no").skull
    assert folder(tmp_path, skull="no").companion_of("FLAIR") == "FLAIR"
    assert not folder(tmp_path).on_template


def test_the_template_grid_is_recognised(tmp_path: Path) -> None:
    nifti.write(tmp_path / "p1_t1.nii.gz", layouts.image(layouts.MNI_SHAPE, 1), layouts.MNI_AFFINE)
    assert folder(tmp_path).on_template


def test_a_damaged_first_volume_leaves_the_others_alone(tmp_path: Path) -> None:
    root = common(tmp_path / "data")
    damaged = root / "patient07" / "patient07_flair.nii.gz"
    tiny: dict[str, Any] = {"field_of_view": 32, "size": 32}
    for content, what in ((damaged.read_bytes()[:-20], "is truncated"), (b"no volume", "is not a NIfTI file")):
        damaged.write_bytes(content)
        with pytest.raises(UserError, match=f"1 of 3 cases of folder could not be prepared: .*patient07.* {what}"):
            prepare(folder(root, **tiny), "FLAIR", tmp_path / "cache", workers=1)
        store = prepare(folder(root, exclude=("patient07",), **tiny), "FLAIR", tmp_path / "cache", workers=1)
        assert {case.id for case in store.cases} == {"patient19", "patient26"}
    for image in root.rglob("*_[ft]*.gz"):
        image.write_bytes(b"no volume")
    with pytest.raises(UserError, match=r"patient07_flair.* is not a NIfTI file"):
        prepare(folder(root, **tiny), "FLAIR", tmp_path / "cache", workers=1)


def test_real_multiple_sclerosis_volumes(cli: Callable[..., Any], tmp_path: Path) -> None:
    root = Path(__file__).parents[2].parent / "shared" / "data" / "volumes" / "open_ms_mni"
    if not root.is_dir():
        pytest.skip("the real volumes are not here")
    code, out, _ = cli("data", "check", "--dataset", "folder", "--data-root", root, "--deep", "--quiet")
    assert code == 0
    assert "marks 3 of 49769 lesion voxels (0.0%) outside the brain" in out
    assert "3 cases, 12 files: 0 errors, 0 warnings, 1 info" in out
    names = {"flair": "FLAIR", "t1": "T1W", "t2": "T2W", "seg": "consensus_gt"}
    for path in root.rglob("*.nii.gz"):
        patient, kind = path.name.removesuffix(".nii.gz").split("_")
        (tmp_path / patient).mkdir(exist_ok=True)
        (tmp_path / patient / f"{patient}_{names[kind]}.nii.gz").symlink_to(path)
    found = run_config.locate("mslub", str(tmp_path), {}, "--data-root").open()
    stack = found.load(found.discover("FLAIR")[2], "FLAIR")
    assert stack.quality["lesion_ml_source"] == pytest.approx(8.2, abs=0.1)
    assert stack.quality["brain_ml"] == pytest.approx(1120, abs=1)  # stripped: every voxel that is not 0


def test_a_patient_of_brats_by_the_folder_of_its_case(tmp_path: Path) -> None:
    """Copies of BraTS'21 whose files say only ``00003_brain`` are of the patient that BraTS 2023 calls GLI-00003."""
    for number in range(6):
        name = f"BraTS-GLI-{number:05d}-000"
        write(tmp_path / name / f"{name}-t2f.nii.gz", number)
        write(tmp_path / name / f"{name}-seg.nii.gz", mask=True)
    for number in range(3):
        for word in ("flair", "seg"):
            name = f"BraTS2021_{number:05d}"
            write(
                tmp_path / name / f"{name}_{word}.nii" / f"{number:05d}_brain_{word}.nii",
                10 + number,
                mask=word == "seg",
            )
    for seed in range(5):
        cases = folder(tmp_path, split_seed=seed, val_share=0.3, test_share=0.3).discover("FLAIR")
        splits = {case.subject: case.split for case in cases}
        assert len(splits) == 9
        assert all(splits[f"BraTS2021_{n:05d}"] == splits[f"BraTS-GLI-{n:05d}"] for n in range(3))
    found = [f for f in check(folder(tmp_path)).issues if f.code == "several-scans"]
    assert [(f.severity, f.message) for f in found] == [
        ("warning", f"BraTS-GLI-{n:05d} and BraTS2021_{n:05d} are one patient under several names, kept in one split")
        for n in range(3)
    ]


@pytest.mark.parametrize(
    "above",
    ["BraTS2021_Training_Data", "BraTS_train_2023", "BraTS-GLI-2023", "BraTS-MEN-RT-2024", "BraTS_Validation_2024"],
)
def test_a_folder_of_many_patients_of_brats_is_no_patient(tmp_path: Path, above: str) -> None:
    for name in ("p1", "p2"):
        write(tmp_path / above / f"{name}_flair.nii.gz", int(name[1]))
        write(tmp_path / above / f"{name}_seg.nii.gz", mask=True)
    write(tmp_path / above / "BraTS-MEN-RT-0003-1" / "scan_flair.nii.gz", 5)
    write(tmp_path / above / "BraTS-MEN-RT-0003-1" / "scan_seg.nii.gz", mask=True)
    assert {case.subject for case in folder(tmp_path).discover("FLAIR")} == {"p1", "p2", "BraTS-MEN-RT-0003"}


def test_a_check_refuses_what_a_preparation_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stripped volume with noise all around: no rule finds its brain, and the way out is one that can be gone."""
    monkeypatch.setattr("adbench.datasets.preprocessing.brain_extraction.find_spec", lambda name: name == "deepbet")
    for number, name in enumerate(("p2", "p1")):
        noise = np.random.default_rng(number).normal(0, 1e-3, SMALL).astype(np.float32)
        noise[6:14, 6:14, 4:10] += 5
        nifti.write(tmp_path / name / f"{name}_FLAIR.nii.gz", noise, AFFINE)
        write(tmp_path / name / f"{name}_seg.nii.gz", mask=True)
    for skull, said in (("auto", "deepbet finds the brain on T1 only"), ("no", "100% of the voxels are not 0")):
        dataset = folder(tmp_path, skull=skull)
        found = [i.message for i in check(dataset, deep=True).issues if i.code == "no-brain"]
        assert len(found) == 2
        assert all(said in message and "dataset.brain=hd-bet or template" in message for message in found)
        for case, message in zip(sorted(dataset.discover("FLAIR"), key=lambda c: c.subject), found, strict=True):
            with pytest.raises(UserError) as error:
                dataset.load(case, "FLAIR")
            assert str(error.value) == message
        with pytest.raises(UserError) as failed:
            prepare(dataset, "FLAIR", tmp_path / f"cache-{skull}", workers=1)
        text = str(failed.value)
        assert text.startswith("2 of 2 cases of folder could not be prepared: FLAIR of case p1")
        assert "other 0" not in text
        assert "exclude" not in text
        assert ". Correct or remove their files and run again. Tracebacks:" in text


def test_every_volume_that_is_not_finite_is_listed(tmp_path: Path) -> None:
    for name in ("p1", "p2", "p3"):
        data = np.full(SMALL, int(name[1]), np.float32)
        data[0, 0, 0] = np.nan
        nifti.write(tmp_path / name / f"{name}_FLAIR.nii.gz", data, AFFINE)
        write(tmp_path / name / f"{name}_seg.nii.gz", mask=True)
    assert not [i for i in check(folder(tmp_path)).issues if i.severity == "error"]
    found = [i for i in check(folder(tmp_path), deep=True).issues if i.severity == "error"]
    assert [(i.code, i.case) for i in found] == [("nonfinite", name) for name in ("p1", "p2", "p3")]


@pytest.mark.parametrize(
    ("names", "left"),
    [
        (["P0"], {"p1", "sub-000", "sub-001"}),
        (["000", "1"], {"p0", "p1"}),
        (["SUB-1"], {"p0", "p1", "sub-000"}),
    ],
)
def test_exclusion_follows_the_rule_of_identity(tmp_path: Path, names: list[str], left: set[str]) -> None:
    for number, name in enumerate(("p0", "p1", "sub-000", "sub-001")):
        write(tmp_path / name / f"{name}_FLAIR.nii.gz", number)
        write(tmp_path / name / f"{name}_seg.nii.gz", mask=True)
    assert {case.subject for case in folder(tmp_path, exclude=names).discover("FLAIR")} == left
    with pytest.raises(UserError, match="Did you mean 'p0'"):
        folder(tmp_path, exclude=["pp0"]).discover("FLAIR")


def test_an_exact_name_excludes_no_other_of_the_patient(tmp_path: Path) -> None:
    for number, name in enumerate(("BraTS2021_00001", "BraTS-GLI-00001", "p2_tp1", "p2_tp2")):
        write(tmp_path / f"{name}_FLAIR.nii.gz", number)
        write(tmp_path / f"{name}_seg.nii.gz", mask=True)
    cases = folder(tmp_path, exclude=["BraTS2021_00001", "P2_TP1"]).discover("FLAIR")
    assert [case.subject for case in cases] == ["BraTS-GLI-00001", "p2"]


def test_a_gross_tumour_volume_is_a_lesion_mask(tmp_path: Path) -> None:
    """BraTS-MEN-RT as it lies: one image, the mask ``_gtv``, the visit behind the number."""
    for number, visit in ((1, 1), (1, 2), (2, 1)):
        name = f"BraTS-MEN-RT-{number:04d}-{visit}"
        write(tmp_path / name / f"{name}_t1c.nii.gz", 10 * number + visit)
        write(tmp_path / name / f"{name}_gtv.nii.gz", mask=True)
    cases = folder(tmp_path).discover("T1CE")
    assert [(case.subject, case.session) for case in cases] == [
        ("BraTS-MEN-RT-0001", "1"),
        ("BraTS-MEN-RT-0001", "2"),
        ("BraTS-MEN-RT-0002", ""),
    ]
    assert all(case.files[1].name.endswith("_gtv.nii.gz") for case in cases)


def test_where_no_case_has_a_mask_it_is_said_once_with_what_may_be_one(tmp_path: Path) -> None:
    for number in range(4):
        write(tmp_path / f"s{number}" / f"s{number}_flair.nii.gz", number)
        write(tmp_path / f"s{number}" / f"s{number}_roi.nii.gz", mask=True)
    found = [f for f in check(folder(tmp_path)).issues if f.severity == "error"]
    assert [f.case for f in found if f.code == "unnamed-mask"] == ["s0", "s1", "s2", "s3"]
    (said,) = [f.message for f in found if f.code == "missing-mask"]
    assert said.startswith(
        f"No case in {tmp_path} has a lesion mask by the names of the files ({tmp_path}/s0/s0_roi.nii.gz may be one: rename it if "
        "it is). If there is none: say --set dataset.unmasked=healthy or leave-out"
    )
