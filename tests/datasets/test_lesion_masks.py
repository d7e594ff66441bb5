"""No lesion is lost, halved or given to another image on the way from its mask; no patient is taken for healthy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import real_layouts as layouts
from PIL import Image

from adbench.datasets.adapters.bids import Bids
from adbench.datasets.adapters.described import ISLES22, SOOP, WMH
from adbench.datasets.adapters.folder import Folder
from adbench.datasets.adapters.ixi import IXI
from adbench.datasets.adapters.lesion_masks import merged, whole_numbers
from adbench.datasets.adapters.nnunet import NnUNet
from adbench.datasets.io import nifti
from adbench.datasets.io.filename_patterns import UNCLEAR, common_name
from adbench.datasets.io.mask_names import BRAIN, LESION
from adbench.datasets.validation.check import check
from adbench.errors import UserError

SHAPE = (12, 14, 10)
AFFINE = np.diag([10.0, 10, 10, 1])


def image(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    data = np.zeros(shape, np.int16)
    data[2:-2, 2:-2] = np.random.default_rng(seed).integers(50, 500, data[2:-2, 2:-2].shape)
    return data


def mask(*planes: int, label: int = 1) -> np.ndarray:
    data = np.zeros(SHAPE, np.uint8)
    data[4:8, 4:8, list(planes)] = label
    return data


def put(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    nifti.write(path, data, affine)
    return path


def people(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        put(root / f"{name}_FLAIR.nii.gz", image(number))
    return root


def errors(found: Any, deep: bool = False) -> list[tuple[str, str]]:
    return [(i.code, i.case) for i in check(found, deep=deep).issues if i.severity == "error"]


# -- several masks of one scan -----------------------------------------------------------------------------------------------


def test_equal_raters_have_a_vote_each(tmp_path: Path) -> None:
    people(tmp_path, "p1")
    for rater, data in (("a", mask(5)), ("b", mask(5)), ("c", mask())):
        put(tmp_path / rater / "p1_seg.nii.gz", data)
    found = layouts.dataset(Folder, tmp_path, lesion_masks="majority")
    raw = found.read(found.discover("FLAIR")[0], "FLAIR")
    np.testing.assert_array_equal(raw.lesion, mask(5))
    put(tmp_path / "d" / "p1_seg.nii.gz", mask())  # two against two
    found = layouts.dataset(Folder, tmp_path, lesion_masks="majority")
    assert not found.read(found.discover("FLAIR")[0], "FLAIR").lesion.any()


def test_sides_have_no_majority_however_many_they_are(tmp_path: Path) -> None:
    people(tmp_path, "p1", "p2")
    for number, name in enumerate(("L_seg", "R_seg", "rater1_seg")):
        put(tmp_path / f"p1_{name}.nii.gz", mask(2 + number))
    put(tmp_path / "p2_seg.nii.gz", mask(3))
    found = layouts.dataset(Folder, tmp_path, lesion_masks="majority")
    message = (
        "dataset.lesion_masks=majority: the lesion masks of p1 (p1_L_seg.nii.gz, p1_R_seg.nii.gz, p1_rater1_seg.nii.gz) are of "
        "two sides, which have no majority: say union, or L, R or rater1."
    )
    with pytest.raises(UserError) as error:
        found.discover("FLAIR")
    assert str(error.value) == message
    assert errors(found) == [("conflict", "p1")]
    found = layouts.dataset(Folder, tmp_path, lesion_masks="majority", exclude=["p1"])
    assert [case.subject for case in found.discover("FLAIR")] == ["p2"]


def test_a_vote_that_leaves_nothing_is_an_empty_mask(tmp_path: Path) -> None:
    people(tmp_path, "p1", "p2")
    for number in (1, 2, 3):
        put(tmp_path / f"p1_rater{number}_seg.nii.gz", mask(1 + number))
        put(tmp_path / f"p2_rater{number}_seg.nii.gz", mask(4, 4 + number))
    found = layouts.dataset(Folder, tmp_path, lesion_masks="majority")
    said = [i for i in check(found, deep=True).issues if i.code == "empty-mask"]
    names = ", ".join(f"p1_rater{number}_seg.nii.gz" for number in (1, 2, 3))
    what = f"The lesion masks of p1 ({names}) make an empty one: no voxel is lesion by the vote of them"
    assert [(i.severity, i.case, i.message) for i in said] == [("warning", "p1", what)]
    found = layouts.dataset(Folder, tmp_path, lesion_masks="union")
    assert "empty-mask" not in {i.code for i in check(found, deep=True).issues}


@pytest.mark.parametrize(
    ("left", "right", "word"),
    [
        ("p1_left_lesion", "p1_right_lesion", "right"),
        ("p1_L_seg", "p1_R_seg", "R"),
        ("p1_lesion_mask-lh", "p1_lesion_mask-rh", "rh"),
        ("lh.p1_lesion", "rh.p1_lesion", "rh"),
        ("p1_FLAIR_hemi-L_label", "p1_FLAIR_hemi-R_label", "hemi-r"),
        ("p1_rater1_seg", "p1_rater10_seg", "rater10"),
        ("p1_seg_r1", "p1_seg_r2", "r2"),
        ("p1_lesion_observer-A", "p1_lesion_observer-B", "observer-b"),
        ("p1_reader_JD_gt", "p1_reader_MK_gt", "mk"),
        ("p1_lesion_A", "p1_lesion_B", "B"),
        ("p1_seg1", "p1_seg2", "seg2"),
        ("p1_manual_1_lesion", "p1_consensus_lesion", "consensus"),
        ("one/p1_seg", "two/p1_seg", "two"),
    ],
)
def test_pieces_under_many_names(tmp_path: Path, left: str, right: str, word: str) -> None:
    people(tmp_path, "p1", "p10")
    put(tmp_path / "p10_seg.nii.gz", mask(2))
    put(tmp_path / f"{left}.nii.gz", mask(4))
    put(tmp_path / f"{right}.nii.gz", mask(6))
    with pytest.raises(UserError, match=r"dataset.lesion_masks=union"):
        layouts.dataset(Folder, tmp_path).discover("FLAIR")
    with pytest.raises(
        UserError, match=r"dataset.lesion_masks=majority: the lesion masks of p1 .* say union, or [^ ]+ or [^ ]+\.$"
    ):
        layouts.dataset(Folder, tmp_path, lesion_masks="majority").discover("FLAIR")
    for said, planes in (("union", (4, 6)), (word, (6,))):
        found = layouts.dataset(Folder, tmp_path, lesion_masks=said)
        cases = found.discover("FLAIR")
        assert [case.subject for case in cases] == ["p1", "p10"]
        np.testing.assert_array_equal(found.read(cases[0], "FLAIR").lesion, mask(*planes))


def test_a_side_or_a_letter_of_a_patients_name_is_no_piece(tmp_path: Path) -> None:
    """p1_R is a patient of his own, and so may p1_B be, whose image is not there."""
    people(tmp_path, "p1", "p1_R", "left_p1")
    for name in ("p1", "p1_R", "left_p1"):
        put(tmp_path / f"{name}_seg.nii.gz", mask(len(name)))
    found = layouts.dataset(Folder, tmp_path)
    assert {case.subject: case.files[1].name for case in found.discover("FLAIR")} == {
        name: f"{name}_seg.nii.gz" for name in ("p1", "p1_R", "left_p1")
    }
    (tmp_path / "p1_seg.nii.gz").rename(tmp_path / "p1_B_seg.nii.gz")
    with pytest.raises(UserError, match=r"p1_B_seg.nii.gz holds the values 0, 1 alone, as a mask does"):
        layouts.dataset(Folder, tmp_path).discover("FLAIR")
    (tmp_path / "p1_B_seg.nii.gz").rename(tmp_path / "p1_observer-B_mask.nii.gz")
    with pytest.raises(UserError, match=r"is this a brain mask or a lesion mask\?.* or leave p1 out"):
        layouts.dataset(Folder, tmp_path).discover("FLAIR")


def test_votes_on_what_does_not_count() -> None:
    one, two, three = np.array([1, 1, 3, 3, 0, 1]), np.array([1, 3, 3, 0, 0, 0]), np.array([0, 0, 0, 0, 3, 1])
    assert merged([one, two, three], 0.5, None, (3,)).tolist() == [1, 2, 2, 0, 0, 1]
    assert merged([one, two, three], 0.0, (1,), (3,)).tolist() == [1, 1, 2, 2, 2, 1]


def test_every_piece_is_checked_like_a_single_mask(tmp_path: Path) -> None:
    people(tmp_path, "p1", "p2")
    for name in ("p1", "p2"):
        put(tmp_path / f"{name}_lesion.nii.gz", mask(5))
    put(tmp_path / "p1_seg.nii.gz", mask(5).astype(np.int16) * 2 - 1)
    put(tmp_path / "p2_seg.nii.gz", mask(6), np.diag([9.0, 9, 9, 1]))
    found = layouts.dataset(Folder, tmp_path, lesion_masks="union")
    assert errors(found, deep=True) == [("label", "p1"), ("off-grid", "p2")]
    one, two = found.discover("FLAIR")
    with pytest.raises(UserError, match=r"p1_seg.nii.gz holds the value -1"):
        found.read(one, "FLAIR")
    with pytest.raises(UserError, match=r"p2_seg.nii.gz does not lie on the grid"):
        found.read(two, "FLAIR")
    chosen = layouts.dataset(Folder, tmp_path, lesion_masks="_lesion")
    assert errors(chosen, deep=True) == []


@pytest.mark.parametrize("value", [65536, 70000, 2**24])
def test_large_labels_of_floats_stay(value: int) -> None:
    data = np.array([0, value], np.float32)
    assert whole_numbers(data, Path("m")).tolist() == [0, value]


@pytest.mark.parametrize("value", [2.0**40, -1.0])
def test_labels_that_are_none(value: float) -> None:
    with pytest.raises(UserError, match="m holds the value"):
        whole_numbers(np.array([0, value]), Path("m"))


# -- nnU-Net -----------------------------------------------------------------------------------------------------------------


def test_what_nnunet_ignores_does_not_count(tmp_path: Path) -> None:
    put(tmp_path / "imagesTr" / "c1_0000.nii.gz", image(1))
    put(tmp_path / "labelsTr" / "c1.nii.gz", mask(5) + mask(3, label=2))
    labels = {"background": 0, "lesion": 1, "ignore": 2}
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "FLAIR"}, "labels": labels}))
    for params in ({}, {"channels": ["FLAIR"]}):
        found = layouts.dataset(NnUNet, tmp_path, brain="background", min_brain=0, size=32, **params)
        stack = found.load(found.discover("FLAIR")[0], "FLAIR")
        assert stack.quality["lesion_ml_source"] == pytest.approx(16)  # voxels of 1 ml
        assert 3 not in stack.slices
    assert layouts.dataset(NnUNet, tmp_path, lesion_labels=[1, 2]).expected.not_counted == ()


def test_four_digits_of_a_case_are_no_channel(tmp_path: Path) -> None:
    for number in (0, 1):
        put(tmp_path / "imagesTr" / f"glio_{number:04d}.nii.gz", image(number, (*SHAPE, 2)))
        put(tmp_path / "labelsTr" / f"glio_{number:04d}.nii.gz", mask(5))
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {"0": "FLAIR", "1": "T1"}}))
    assert [c.subject for c in layouts.dataset(NnUNet, tmp_path).discover("T1")] == ["glio_0000", "glio_0001"]


# -- whose mask it is --------------------------------------------------------------------------------------------------------


def test_a_mask_of_one_run_is_never_that_of_another(tmp_path: Path) -> None:
    for run in (1, 2):
        put(tmp_path / "sub-1" / "anat" / f"sub-1_run-{run}_FLAIR.nii.gz", image(run))
    put(tmp_path / "derivatives" / "sub-1_run-2_label-lesion_mask.nii.gz", mask(5))
    for cls in (Bids, Folder):
        (case,) = layouts.dataset(cls, tmp_path).discover("FLAIR")
        assert case.files[0].name == "sub-1_run-2_FLAIR.nii.gz"
    (tmp_path / "sub-1" / "anat" / "sub-1_run-2_FLAIR.nii.gz").unlink()
    found = layouts.dataset(Bids, tmp_path, unmasked="healthy")
    assert ("conflict", "sub-1") in errors(found)


def test_halves_of_a_lesion_are_not_chosen_by_their_run(tmp_path: Path) -> None:
    put(tmp_path / "sub-1" / "anat" / "sub-1_FLAIR.nii.gz", image(1))
    for run in (1, 2):
        put(tmp_path / "derivatives" / f"sub-1_run-{run}_label-lesion_mask.nii.gz", mask(run + 3))
    with pytest.raises(UserError, match="are both lesion masks"):
        layouts.dataset(Bids, tmp_path).discover("FLAIR")
    found = layouts.dataset(Bids, tmp_path, lesion_masks="union")
    np.testing.assert_array_equal(found.read(found.discover("FLAIR")[0], "FLAIR").lesion, mask(4, 5))


@pytest.mark.parametrize(
    ("name", "subject", "kind"),
    [
        ("p01_brain_lesion_mask", "p01", LESION),
        ("brain01_lesion_mask", "brain01", LESION),
        ("sub-01_desc-brainlesion_mask", "sub-01", LESION),
        ("lesion01_brain_mask", "lesion01", BRAIN),
        ("brain01_mask", "brain01", UNCLEAR),
        ("p01_nonlesion_mask", "p01_nonlesion", UNCLEAR),
        ("p01_brain_seg", "p01", UNCLEAR),
        ("sub-01_label-GM_seg", "sub-01", ""),
        ("p01_wm_seg", "p01", ""),
        ("p01_tissue_seg", "p01_tissue", ""),
        ("p01_wm_lesion_seg", "p01", LESION),
        ("p01_flair_seg", "p01", LESION),
        ("sub-1_rec-ADC_dwi", "sub-1", "ADC"),
        ("sub-1_rec-TRACE_dwi", "sub-1", "DWI"),
    ],
)
def test_what_a_mask_is_of(name: str, subject: str, kind: str) -> None:
    found = common_name(name)
    assert found is not None
    assert (found.subject, found.kind) == (subject, kind)


def test_a_word_of_the_patients_name_says_nothing_of_his_mask(tmp_path: Path) -> None:
    for name in ("csf_study_07", "GM12-x", "p3", "p3_lesion_x"):
        put(tmp_path / "train" / f"{name}_FLAIR.nii.gz", image(len(name)))
        put(tmp_path / "train" / f"{name.lower()}_seg.nii.gz", mask(5))
    put(tmp_path / "train" / "p3_wm_seg.nii.gz", mask(5, 6))
    put(tmp_path / "train" / "csf_study_07_brain_mask.nii.gz", mask(4, 5))
    dataset = layouts.dataset(Folder, tmp_path)
    cases = {case.subject: case for case in dataset.discover("FLAIR")}
    assert sorted(cases) == ["GM12-x", "csf_study_07", "p3", "p3_lesion_x"]
    for name, case in cases.items():
        assert (case.healthy, case.extra["files"]["lesion"].name) == ("", f"{name.lower()}_seg.nii.gz")
    assert cases["csf_study_07"].extra["files"]["brain"].name == "csf_study_07_brain_mask.nii.gz"
    assert dataset.index.unused == ["train/p3_wm_seg.nii.gz"]
    put(tmp_path / "train" / "p3_lesion_x_mask.nii.gz", mask(4))  # "lesion" is the patient's
    assert ("unnamed-mask", "p3_lesion_x") in errors(layouts.dataset(Folder, tmp_path))


def test_a_word_of_a_name_without_a_modality_says_nothing_either(tmp_path: Path) -> None:
    put(tmp_path / "train" / "atlas_wm_3.nii.gz", image(1))
    put(tmp_path / "train" / "atlas_wm_3_seg.nii.gz", mask(5))
    (case,) = layouts.dataset(Folder, tmp_path, modality="FLAIR").discover("FLAIR")
    assert case.extra["files"]["lesion"].name == "atlas_wm_3_seg.nii.gz"


def test_names_of_soop(tmp_path: Path) -> None:
    derived = tmp_path / "derivatives" / "lesion_masks" / "sub-7" / "dwi"
    put(tmp_path / "sub-7" / "dwi" / "sub-7_rec-ADC_dwi.nii.gz", image(1))
    whole = put(derived / "sub-7_space-TRACE_desc-lesion_mask.nii.gz", mask(4, 5))
    for part, plane in (("Acute", 4), ("Chronic", 5)):
        put(derived / f"sub-7_space-TRACE_desc-lesion{part}_mask.nii.gz", mask(plane))
    assert layouts.dataset(SOOP, tmp_path).available() == ("ADC",)
    trace = put(tmp_path / "sub-7" / "dwi" / "sub-7_rec-TRACE_dwi.nii.gz", image(2))
    (case,) = layouts.dataset(SOOP, tmp_path).discover("DWI")
    assert case.files[:2] == (trace, whole)
    whole.unlink()
    with pytest.raises(UserError, match="are both lesion masks"):
        layouts.dataset(SOOP, tmp_path).discover("DWI")


def test_names_of_the_wmh_challenge_and_of_ixi(tmp_path: Path) -> None:
    found = layouts.dataset(WMH, tmp_path).named("Amsterdam/Philips_VU .PETMR_01./121/pre/FLAIR.nii.gz")
    assert (found.subject, found.kind) == ("Amsterdam-Philips_VU-PETMR_01-121", "FLAIR")
    for kind in ("T1", "T2"):
        put(tmp_path / f"IXI001-Guys-0800-{kind}_bet.nii.gz", image(1))
        put(tmp_path / f"IXI001-Guys-0800-{kind}_bet_mask.nii.gz", mask(len(kind), ord(kind[1]) - 48))
    (case,) = layouts.dataset(IXI, tmp_path, registration="none", n4=False).discover("T2")
    assert [file.name for file in case.files if "mask" in file.name] == ["IXI001-Guys-0800-T1_bet_mask.nii.gz"]


# -- who is healthy ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["", "train"])
def test_no_session_of_a_patient_is_healthy(tmp_path: Path, split: str) -> None:
    people(tmp_path / split, "sub-1_ses-1", "sub-1_ses-2", "sub-2_ses-1")
    put(tmp_path / split / "sub-1_ses-1_label-lesion_mask.nii.gz", mask(5))
    found = layouts.dataset(Folder, tmp_path, unmasked="healthy")
    assert [case.id for case in found.discover("FLAIR") if case.healthy] == ["sub-2"]
    assert any(line.startswith("sub-1_ses-2: left out") and "has lesions" in line for line in found.exclusions("FLAIR"))
    refusing = layouts.dataset(Folder, tmp_path)
    assert ("missing-mask", "sub-1_ses-2") in errors(refusing)
    with pytest.raises(UserError, match="shows that this patient has lesions" if split else "has no lesion mask"):
        refusing.discover("FLAIR")


def test_rows_of_one_subject_that_differ(tmp_path: Path) -> None:
    put(tmp_path / "sub-1" / "anat" / "sub-1_FLAIR.nii.gz", image(1))
    table = tmp_path / "participants.tsv"
    table.write_text("participant_id\tgroup\nsub-1\tpatient\nsub-01\tcontrol\n")
    with pytest.raises(UserError, match="two rows of sub-01, with group 'patient' and 'control'"):
        layouts.dataset(Bids, tmp_path, healthy="group=control").discover("FLAIR")
    table.write_text("participant_id\tgroup\nsub-1\tcontrol\nsub-1\tcontrol\n")
    (case,) = layouts.dataset(Bids, tmp_path, healthy="group=control").discover("FLAIR")
    assert case.healthy == "participants.tsv says group=control"


def test_png_masks_in_a_flat_folder(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32)).astype(np.uint8)
    white = np.zeros((32, 32), np.uint8)
    white[8:16, 8:16] = 255
    Image.fromarray(pixels).save(tmp_path / "p00-slice_10.png")
    named, unnamed = tmp_path / "p00-slice_10-mask.png", tmp_path / "p01-slice_10.png"
    Image.fromarray(white).save(named)
    found = layouts.dataset(Folder, tmp_path, modality="FLAIR")
    with pytest.raises(UserError, match=r"p00-slice_10-mask.png is named like a mask"):
        found.discover("FLAIR")
    named.rename(unnamed)
    found = layouts.dataset(Folder, tmp_path, modality="FLAIR")
    case = next(case for case in found.discover("FLAIR") if case.subject == "p01")
    with pytest.raises(UserError, match="holds two values alone, as a mask does"):
        found.load(case, "FLAIR")


# -- masks on another grid ---------------------------------------------------------------------------------------------------


def test_a_lesion_that_another_grid_loses_is_said_and_what_dwi_does_not_show_does_not_count(tmp_path: Path) -> None:
    folder = tmp_path / "sub-strokecase0001" / "ses-0001"
    stem = "sub-strokecase0001_ses-0001"
    fine = np.diag([10.0, 10, 2, 1])  # the lower half, five planes to one of the FLAIR
    put(folder / f"{stem}_FLAIR.nii.gz", image(1))
    put(folder / f"{stem}_dwi.nii.gz", image(2, (12, 14, 26)), fine)
    thin = np.zeros((12, 14, 26), np.uint8)
    thin[4:8, 4:8, 12:14] = 1  # at 24 and 26 mm; planes of the FLAIR lie at 20 and 30
    put(tmp_path / "derivatives" / f"{stem}_msk.nii.gz", thin, fine)
    found = layouts.dataset(ISLES22, tmp_path, brain="background", min_brain=0, size=32)
    stack = found.load(found.discover("FLAIR")[0], "FLAIR")
    assert stack.quality["lesion_ml_source"] == pytest.approx(32 * 0.2)
    assert "lesion: 6.4 ml where it was drawn are 0 ml on the grid of the image" in stack.remarks
    assert max(stack.slices) == 5  # the DWI ends at 50 mm


def test_a_brain_mask_on_no_grid_is_found(tmp_path: Path) -> None:
    put(tmp_path / "sub-1" / "anat" / "sub-1_FLAIR.nii.gz", image(1))
    put(tmp_path / "derivatives" / "sub-1_label-lesion_mask.nii.gz", mask(5))
    put(tmp_path / "derivatives" / "sub-1_desc-brain_mask.nii.gz", mask(5), np.diag([9.0, 9, 9, 1]))
    found = layouts.dataset(Bids, tmp_path)
    assert [i.severity for i in check(found).issues if i.code == "off-grid"] == ["warning"]
    remarks = found.read(found.discover("FLAIR")[0], "FLAIR").remarks
    assert remarks == ("brain: sub-1_desc-brain_mask.nii.gz is not used, it lies on another grid",)


def test_a_subject_that_the_table_does_not_have_is_said_once(tmp_path: Path) -> None:
    """Neither a lack of a mask, with advice that ``healthy`` forbids, nor that it is left out."""
    for number in (1, 2, 3):
        put(tmp_path / f"sub-{number}" / "anat" / f"sub-{number}_FLAIR.nii.gz", image(number))
    put(tmp_path / "derivatives" / "m" / "sub-3" / "sub-3_label-lesion_mask.nii.gz", mask(4))
    (tmp_path / "participants.tsv").write_text("participant_id\tgroup\nsub-1\tcontrol\nsub-3\tpatient\n")
    found = check(layouts.dataset(Bids, tmp_path, healthy="group=control")).issues
    assert [(i.severity, i.code, i.case) for i in found if i.case == "sub-2"] == [("error", "participants", "sub-2")]
    found = check(layouts.dataset(Bids, tmp_path)).issues
    assert ("error", "missing-mask") in {(i.severity, i.code) for i in found if i.case == "sub-2"}


def test_raters_in_folders_are_offered_by_name(tmp_path: Path) -> None:
    people(tmp_path, "p1", "p2")
    for rater in ("rater1", "rater2"):
        put(tmp_path / rater / "p1_seg.nii.gz", mask(3 + len(rater), 2 + int(rater[-1])))
    put(tmp_path / "p2_seg.nii.gz", mask(3))
    (said,) = [i.message for i in check(layouts.dataset(Folder, tmp_path)).issues if i.severity == "error"]
    assert (
        "or merge them with --set dataset.lesion_masks=union if they are of one, or take one with dataset.lesion_masks=rater1 or rater2"
        in said
    )
    found = layouts.dataset(Folder, tmp_path, lesion_masks="rater2")
    np.testing.assert_array_equal(found.read(found.discover("FLAIR")[0], "FLAIR").lesion, mask(4, 9))


@pytest.mark.parametrize(("word", "what"), [("left", "no lesion mask"), ("hemi", "several lesion masks")])
def test_a_word_of_none_and_one_of_several_are_told_apart(tmp_path: Path, word: str, what: str) -> None:
    people(tmp_path, "p1")
    for side in "LR":
        put(tmp_path / f"p1_hemi-{side}_seg.nii.gz", mask(3 if side == "L" else 5))
    names = "p1_hemi-L_seg.nii.gz, p1_hemi-R_seg.nii.gz"
    with pytest.raises(UserError) as error:
        layouts.dataset(Folder, tmp_path, lesion_masks=word).discover("FLAIR")
    assert (
        str(error.value)
        == f"dataset.lesion_masks={word} is in the name of {what} of p1 ({names}): say union, or L or R."
    )


def test_a_majority_that_was_refused_leaves_no_empty_mask(tmp_path: Path) -> None:
    people(tmp_path, "p1")
    for side, plane in (("L", 3), ("R", 6)):
        put(tmp_path / f"p1_{side}_seg.nii.gz", mask(plane))
    found = check(layouts.dataset(Folder, tmp_path, lesion_masks="majority"), deep=True).issues
    assert [i.code for i in found if i.severity != "info"] == ["conflict"]


# -- excluded cases ----------------------------------------------------------------------------------------------------------


def test_excluded_cases_are_no_obstacle_whatever_is_wrong_with_them(tmp_path: Path) -> None:
    people(tmp_path, "p1", "p2", "p3", "p4", "p5")
    for name in ("p1", "p2", "p3", "p4"):
        put(tmp_path / f"{name}_seg.nii.gz", mask(3))
    broken = tmp_path / "p1_FLAIR.nii.gz"
    broken.write_bytes(broken.read_bytes()[:200])
    put(tmp_path / "p2_seg.nii.gz", np.zeros((4, 4, 4), np.uint8))
    put(tmp_path / "p3_T2.nii.gz", image(2))  # that no other case has
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "p3_FLAIR.nii.gz").write_bytes((tmp_path / "p3_FLAIR.nii.gz").read_bytes())
    for number, folder in enumerate(("train", "test")):
        put(tmp_path / "homes" / folder / f"p6_ses-{number}_FLAIR.nii.gz", image(7 + number))
    whole = {(i.code, i.case) for i in check(layouts.dataset(Folder, tmp_path), deep=True).issues}
    assert {
        ("truncated", "p1"),
        ("off-grid", "p2"),
        ("missing-sequence", "p4"),
        ("missing-mask", "p5"),
        ("two-roles", "p6"),
    } <= {(code, case[:2]) for code, case in whole}
    names = ["p1", "p2", "p3", "p5", "p6"]
    report = check(layouts.dataset(Folder, tmp_path, exclude=names), deep=True)
    loud = [
        (i.code, i.message) for i in report.issues if i.severity != "info" and i.code not in ("no-train", "no-test")
    ]
    assert loud == []
    assert [i.case for i in report.issues if i.code == "left-out"] == [*names[:-1], "p6_ses-0", "p6_ses-1"]
    assert (report.cases, report.excluded) == (1, 6)
    assert [case.subject for case in layouts.dataset(Folder, tmp_path, exclude=names).discover("FLAIR")] == ["p4"]


def test_an_excluded_case_may_lie_beside_the_folders_of_the_roles(tmp_path: Path) -> None:
    for number, folder in enumerate(("train", "test", "loose")):
        put(tmp_path / folder / f"p{number}_FLAIR.nii.gz", image(number))
        put(tmp_path / folder / f"p{number}_seg.nii.gz", mask(3))
    assert errors(layouts.dataset(Folder, tmp_path)) == [("stray", "p2")]
    found = layouts.dataset(Folder, tmp_path, exclude=["p2"])
    assert errors(found) == []
    assert {case.subject: case.split for case in found.discover("FLAIR")} == {"p0": "train", "p1": "test"}


def test_an_unknown_name_in_exclude_stops_the_check_of_a_described_set(tmp_path: Path) -> None:
    for number in range(1, 7):
        for session in ("ses-0001", "ses-0002"):
            name = f"sub-strokecase{number:04d}_{session}"
            put(tmp_path / f"{name}_dwi.nii.gz", image(number))
            put(tmp_path / f"{name}_msk.nii.gz", mask(3))
    with pytest.raises(UserError) as error:
        check(layouts.dataset(ISLES22, tmp_path, exclude=["sub-strokecase0009"]))
    said = str(error.value)
    assert said.startswith(
        "Unknown case of isles22 in dataset.exclude 'sub-strokecase0009'. Did you mean 'sub-strokecase000"
    )
    assert said.count("strokecase") == 4  # the nearest, not everyone
    with pytest.raises(UserError, match=r"'xyz'. There are 12 cases, such as sub-strokecase0001_ses-0001, sub-"):
        check(layouts.dataset(ISLES22, tmp_path, exclude=["xyz"]))
