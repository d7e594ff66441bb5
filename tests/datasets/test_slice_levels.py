"""16-bit slices that were not all written on one scale: one white would darken some of them in silence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adbench.datasets.adapters.folder import Folder
from adbench.datasets.validation.check import check
from adbench.errors import UserError
from adbench.params import build


def folder(root: Path, **params: object) -> Folder:
    return Folder(build(Folder.Params, "dataset folder", params), root)


def written(root: Path, role: str, subject: str, *largest: int) -> None:
    """Slices of ``subject`` whose largest values are given."""
    (root / role).mkdir(parents=True, exist_ok=True)
    for index, value in enumerate(largest):
        image = np.zeros((16, 16), np.uint16)
        image[4:12, 4:12] = np.linspace(value / 3, value, 64).reshape(8, 8)
        Image.fromarray(image).save(root / role / f"{subject}-slice_{index}-FLAIR.png")
        if role == "test":
            mask = np.zeros((16, 16), np.uint8)
            mask[6:8, 6:8] = 255
            Image.fromarray(mask).save(root / role / f"{subject}-slice_{index}-segmentation.png")


def found(root: Path, **params: object) -> list[tuple[str, str]]:
    return [(i.severity, i.message) for i in check(folder(root, **params)).issues if i.code == "scale"]


def test_12_bits_in_train_and_16_in_test_are_refused(tmp_path: Path) -> None:
    for number in range(4):
        written(tmp_path, "train", f"a{number}", 3000 + 300 * number)
        written(tmp_path, "test", f"b{number}", 30000 + 9000 * number)
    with pytest.raises(UserError) as refused:
        folder(tmp_path).discover("FLAIR")
    assert str(refused.value) == (
        f"Of 16-bit images, those of train use 12 bits (in the middle 3600, {tmp_path}/train/a2-slice_0-FLAIR.png) and those "
        f"of test 16 (in the middle 48000, {tmp_path}/test/b2-slice_0-FLAIR.png): divided by one white, the first would be 13 times darker. "
        "Write all of them on one scale, or leave the others out with dataset.exclude."
    )


def test_a_stray_full_range_subject_darkens_nobody_in_silence(tmp_path: Path) -> None:
    for number in range(5):
        written(tmp_path, "train", f"a{number}", 3900, 2500)
    written(tmp_path, "train", "stray", 65535, 3900)
    ((severity, message),) = found(tmp_path)
    assert severity == "error"
    assert "the 5 subjects a0, a1, a2, ... use 12 bits" in message
    assert "the 1 subject stray 16" in message
    assert found(tmp_path, exclude=("stray",)) == []
    stacks = [s.load(c, "FLAIR") for s in [folder(tmp_path, exclude=("stray",))] for c in s.discover("FLAIR")]
    assert {round(float(stack.image.max()), 3) for stack in stacks} == {round(3900 / 4095, 3)}


def test_two_scanners_within_one_role_are_refused(tmp_path: Path) -> None:
    for number in range(6):
        written(tmp_path, "train", f"a{number}", 4000 if number < 2 else 60000)
    assert [severity for severity, _ in found(tmp_path)] == ["error"]


def test_stray_slices_in_every_subject_and_one_dark_subject_are_warned_of(tmp_path: Path) -> None:
    for number in range(4):
        written(tmp_path / "slices", "train", f"a{number}", 3500, 3600, 3700, 65000)
        written(tmp_path / "subject", "train", f"a{number}", 3500)
    written(tmp_path / "subject", "train", "dark", 500)
    ((severity, message),) = found(tmp_path / "slices")
    assert severity == "warning"
    assert "12 slices use 12 bits" in message
    assert "4 others 16" in message
    ((severity, message),) = found(tmp_path / "subject")
    assert severity == "warning"
    assert "the 1 subject dark use" in message


def test_levels_that_differ_as_scans_do_are_only_remarked(tmp_path: Path) -> None:
    for number, largest in enumerate((1500, 2500, 4000, 7000, 12000)):
        written(tmp_path, "train", f"a{number}", largest, 40)  # the uppermost slice is nearly empty
    assert found(tmp_path) == []
    dataset = folder(tmp_path, val_share=0.0)
    remarks = {case.subject: dataset.load(case, "FLAIR").remarks for case in dataset.discover("FLAIR")}
    assert "16-bit images use 11 bits where others use 14, and 16383 is white" in remarks["a0"]
    assert "16-bit images use 14 bits, so 16383 is white" in remarks["a4"]


def test_a_dark_subject_is_remarked_where_white_is_that_of_all_16_bits(tmp_path: Path) -> None:
    written(tmp_path, "train", "a", 30000)
    written(tmp_path, "train", "b", 60000)
    dataset = folder(tmp_path)
    remarks = {case.subject: dataset.load(case, "FLAIR").remarks for case in dataset.discover("FLAIR")}
    assert "16-bit images use 15 bits where others use 16, and 65535 is white" in remarks["a"]
    assert not any("16-bit" in remark for remark in remarks["b"])


def test_a_small_role_inside_the_range_of_the_others_is_used(tmp_path: Path) -> None:
    for number in range(12):
        written(tmp_path, "train", f"a{number}", 8000 + 4700 * number)
    written(tmp_path, "val", "v", 9000)
    for number in range(3):
        written(tmp_path, "test", f"b{number}", 45000 + 5000 * number)
    assert found(tmp_path) == []
    assert len(folder(tmp_path).discover("FLAIR")) == 16


def test_a_nearly_black_subject_or_slice_hides_no_other_gap(tmp_path: Path) -> None:
    written(tmp_path / "subjects", "train", "black", 3)
    for number in range(10):
        written(tmp_path / "subjects", "train", f"dark{number}", 1000)
        written(tmp_path / "subjects", "train", f"bright{number}", 60000)
    (first, message), (second, _) = found(tmp_path / "subjects")
    assert (first, second) == ("error", "warning")
    assert "the 11 subjects black, dark0, dark1, ... use 10 bits (in the middle 1000," in message
    assert "60 times darker" in message
    for name in ("a", "b"):
        written(tmp_path / "slices", "train", name, *[2] * (name == "a"), *[800] * 15, 60000)
    ((severity, message),) = found(tmp_path / "slices")
    assert severity == "warning"
    assert "31 slices use 10 bits" in message
    assert "2 others 16" in message


def test_only_the_modality_that_is_used_is_judged_and_of_two_subjects_one_may_be_dark(tmp_path: Path) -> None:
    for number, value in enumerate((700, 710, 3000, 3100)):
        written(tmp_path, "train", f"s{number}", value)
    for name in ("t1", "t2"):
        written(tmp_path, "train", name, 900 if name == "t1" else 9000)
        (tmp_path / "train" / f"{name}-slice_0-FLAIR.png").rename(tmp_path / "train" / f"{name}-slice_0-T2.png")
    assert {case.subject for case in folder(tmp_path).discover("T2")} == {"t1", "t2"}
    with pytest.raises(UserError, match="the 2 subjects s0, s1 use 10 bits"):
        folder(tmp_path).discover("FLAIR")
    assert [severity for severity, _ in found(tmp_path)] == ["error", "warning"]
