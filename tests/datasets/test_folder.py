"""The folder adapter: both layouts, and one clear sentence for everything that can be wrong with a folder."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adbench.datasets.adapters.folder import Folder
from adbench.datasets.issues import Issue
from adbench.datasets.overview import overview
from adbench.datasets.store.prepare import prepare
from adbench.datasets.validation.check import check
from adbench.errors import UserError
from adbench.params import build

DATA = Path(os.environ.get("ADBENCH_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")


def folder(root: Path | None, **params: object) -> Folder:
    return Folder(build(Folder.Params, "dataset folder", params), root)


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def add(
    root: Path, split: str, stem: str, *, shape=(20, 14), lesion: bool | None = False, brain=True, modality="T1"
) -> Path:
    """One slice with its masks; returns the image's path."""
    inside = np.zeros(shape, np.uint8)
    inside[3:-3, 2:-2] = 255
    rows = np.arange(shape[0], dtype=np.uint8)[:, None] + np.uint8(100)
    image = np.broadcast_to(rows, shape).copy()
    if brain:
        save(root / split / f"{stem}-brainmask.png", inside)
    if lesion is not None:
        mask = np.zeros(shape, np.uint8)
        mask[8:10, 6:8] = 255 * lesion
        save(root / split / f"{stem}-segmentation.png", mask)
    return save(root / split / f"{stem}-{modality}.png", image)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "Meine Schnitte é"
    for k in (3, 10, 4):
        add(root, "train", f"s1-slice_{k}", lesion=None)
        add(root, "val", f"s2-slice_{k}", lesion=k == 4)
        add(root, "test", f"s-3-slice_{k}", lesion=k == 10)
    add(root, "test", "s4-slice_3", modality="FLAIR")
    add(root, "test", "s4-slice_3")
    return root


def refused(root: Path | None, modality: str = "T1", **params: object) -> str:
    """The message with which preparing ``root`` fails."""
    dataset = folder(root, **params)
    with pytest.raises(UserError) as caught:
        _ = [dataset.load(case, modality) for case in dataset.discover(modality)]
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_layout_with_splits(root):
    dataset = folder(root)
    assert dataset.available() == ("T1", "FLAIR")
    cases = dataset.discover("T1")
    assert [(c.split, c.subject, c.session) for c in cases] == [
        ("train", "s1", ""),
        ("val", "s2", ""),
        ("test", "s-3", ""),
        ("test", "s4", ""),
    ]
    stack = dataset.load(cases[2], "T1")
    assert stack.slices == [3, 4, 10]  # by number, not by text
    assert stack.image.shape == (3, 32, 32)
    assert stack.image.dtype == np.float32
    np.testing.assert_array_equal(stack.image > 0, stack.brain)  # 0 outside the brain mask
    assert stack.brain[0].sum() == 14 * 10
    assert stack.lesion is not None
    assert stack.lesion.sum(axis=(1, 2)).tolist() == [0, 0, 4]
    np.testing.assert_allclose(np.unique(stack.image[0])[1:], np.arange(103, 117) / 255, rtol=1e-6)
    assert dataset.load(cases[0], "T1").lesion is None
    assert [case.healthy for case in cases] == ["it lies in train/, which is for healthy subjects", "", "", ""]
    assert len(cases[2].files) == 9


def test_prepared_training_holds_no_lesion_slice(root, tmp_path):
    for k in (3, 4, 10):
        Image.fromarray(np.full((20, 14), 255 * (k == 4), np.uint8)).save(
            root / "train" / f"s1-slice_{k}-segmentation.png"
        )
    store = prepare(folder(root), "T1", tmp_path / "cache")
    train = store.healthy("train")
    assert train.slice_numbers.tolist() == [3, 10]
    assert store.labelled("test").subjects == ["s-3", "s4"]
    assert "s1: slice 4: it has 280 lesion pixels in train, and is not trained on" in store.manifest["remarks"]
    assert store.shape == (32, 32)
    assert "s1: slice 4: 140 of 280 lesion pixels lie outside the brain" in store.manifest["remarks"]


def test_remarks_do_not_depend_on_what_was_prepared_before(root: Path, tmp_path: Path) -> None:
    """The same slices first in test/, then in train/."""
    before = prepare(folder(root), "T1", tmp_path / "cache")
    for path in list((root / "test").glob("s-3-*")):
        shutil.move(path, root / "train" / path.name)
    after = prepare(folder(root), "T1", tmp_path / "cache")
    remark = "s-3: slice 10: it has 4 lesion pixels in train, and is not trained on"
    assert remark not in before.manifest["remarks"]
    assert remark in after.manifest["remarks"]
    assert after.manifest["remarks"] == prepare(folder(root), "T1", tmp_path / "fresh").manifest["remarks"]
    shared = {path.name for path in before.files} & {path.name for path in after.files}
    assert len(shared) == len(before.files) - 1


def test_all_grids_are_padded_to_the_largest(root):
    add(root, "test", "s5-slice_1", shape=(30, 34))
    dataset = folder(root)
    assert {dataset.load(case, "T1").image.shape[1:] for case in dataset.discover("T1")} == {(64, 64)}


def test_resizing(root):
    dataset = folder(root, size=16)
    for case in dataset.discover("T1"):
        stack = dataset.load(case, "T1")
        assert stack.image.shape[1:] == stack.brain.shape[1:] == (16, 16)
        assert not stack.image[~stack.brain].any()
        assert 0 <= stack.image.min() <= stack.image.max() <= 1
    assert folder(root, size=16).recipe() != folder(root).recipe()


def test_a_lesion_lost_in_resizing_is_a_remark(root):
    path = root / "test" / "s-3-slice_3-segmentation.png"
    mask = np.zeros((20, 14), np.uint8)
    mask[9, 7] = 255
    found = []
    for shift in range(2):  # one of two neighbouring pixels falls between the samples
        Image.fromarray(np.roll(mask, shift, 0)).save(path)
        dataset = folder(root, size=16)
        stack = dataset.load(dataset.discover("T1")[2], "T1")
        kept = bool(stack.lesion is not None and stack.lesion[0].any())
        lost = [remark for remark in stack.remarks if "lost in resizing" in remark]
        assert bool(lost) != kept
        found += lost
    big = add(root, "test", "s6-slice_1", shape=(64, 64))
    tiny = np.zeros((64, 64), np.uint8)
    tiny[31, 31] = 1
    save(big.with_name("s6-slice_1-segmentation.png"), tiny)
    dataset = folder(root, size=16)
    case = next(c for c in dataset.discover("T1") if c.subject == "s6")
    assert dataset.load(case, "T1").remarks == ["slice 1: its lesion (1 pixels) was lost in resizing"]


def test_masks_of_any_kind_and_16_bit_images(tmp_path):
    image = np.full((8, 8), 6553, np.uint16)
    save(tmp_path / "test" / "a_slice_1_T1.png", image)
    save(tmp_path / "test" / "a_slice_1_brainmask.png", np.eye(8, dtype=np.uint8))  # 0 and 1
    save(tmp_path / "test" / "a_slice_1_segmentation.png", (np.eye(8) * 300).astype(np.uint16))
    dataset = folder(tmp_path)
    stack = dataset.load(dataset.discover("T1")[0], "T1")
    assert stack.brain.sum() == 8
    assert stack.lesion is not None
    np.testing.assert_array_equal(stack.lesion, stack.brain)
    np.testing.assert_allclose(stack.image[stack.brain], 6553 / 8191)  # 13 bits hold it
    save(tmp_path / "train" / "b_slice_1_T1.png", np.full((8, 8), 20000, np.uint16))
    dataset = folder(tmp_path)
    stack = dataset.load(dataset.discover("T1")[1], "T1")
    np.testing.assert_allclose(stack.image[stack.brain], 6553 / 32767)  # every image of the set has one scale


def test_scanners_of_12_bits_fill_the_range_of_grey_values(tmp_path: Path) -> None:
    for number, brightest in enumerate((2100, 4000)):
        image = np.zeros((32, 32), np.uint16)
        image[8:24, 8:24] = np.linspace(100, brightest, 256).reshape(16, 16)
        save(tmp_path / "train" / f"s{number}_slice_1_FLAIR.png", image)
    dataset = folder(tmp_path)
    stacks = [dataset.load(case, "FLAIR") for case in dataset.discover("FLAIR")]
    assert [float(stack.image.max()) for stack in stacks] == pytest.approx([2100 / 4095, 4000 / 4095])
    assert stacks[0].remarks[1] == "16-bit images use 12 bits, so 4095 is white"


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA"])
def test_colour_with_equal_channels_is_grey(root, mode):
    path = root / "test" / "s-3-slice_3-T1.png"
    before = np.asarray(Image.open(path))
    Image.open(path).convert(mode).save(path)
    dataset = folder(root)
    stack = dataset.load(dataset.discover("T1")[2], "T1")
    np.testing.assert_allclose(stack.image[0][stack.brain[0]] * 255, before[3:-3, 2:-2].ravel(), rtol=1e-6)


def test_slices_without_brain_are_left_out_with_a_remark(root):
    Image.fromarray(np.zeros((20, 14), np.uint8)).save(root / "test" / "s-3-slice_4-brainmask.png")
    dataset = folder(root)
    stack = dataset.load(dataset.discover("T1")[2], "T1")
    assert stack.slices == [3, 10]
    assert "slice 4: left out, no brain in it" in stack.remarks


def test_a_segmentation_without_its_image_is_a_remark(root):
    (root / "test" / "s-3-slice_4-T1.png").rename(root / "test" / "s-3-slice_4-FLAIR.png")
    dataset = folder(root)
    stack = dataset.load(dataset.discover("T1")[2], "T1")
    assert stack.remarks == ["slice 4: it has a segmentation and no T1 image"]


# ---- flat and healthy


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    root = tmp_path / "flat"
    for number in range(60):
        add(root, "", f"IXI{number:03d}-slice_95", brain=False, lesion=None)
    return root


def test_flat_split_is_deterministic_disjoint_and_seeded(flat):
    def roles(**params):
        return {case.subject: case.split for case in folder(flat, **params).discover("T1")}

    first = roles()
    assert first == roles()
    assert set(first.values()) == {"train", "val"}
    assert len(first) == 60
    assert first != roles(split_seed=1)
    many = sum(split == "val" for split in roles(val_share=0.3).values())
    assert 9 <= many <= 27
    assert set(roles(val_share=0).values()) == {"train"}
    (flat / "IXI059-slice_95-T1.png").unlink()
    assert roles() == {subject: split for subject, split in first.items() if subject != "IXI059"}


def test_flat_role_is_the_same_in_every_modality(flat):
    for path in sorted(flat.glob("*-T1.png"))[::3]:
        shutil.copy(path, path.with_name(path.name.replace("-T1", "-T2")))
    dataset = folder(flat)
    t1, t2 = ({c.subject: c.split for c in dataset.discover(m)} for m in ("T1", "T2"))
    assert t2.items() <= t1.items()


def test_a_flat_folder_of_two_still_has_both_splits(tmp_path):
    for name in ("one", "two"):
        add(tmp_path, "", f"{name}-slice_1", brain=False, lesion=None)
    assert {case.split for case in folder(tmp_path).discover("T1")} == {"train", "val"}


def test_flat_brain_is_where_the_image_is_not_zero_and_it_says_so(flat):
    dataset = folder(flat)
    stack = dataset.load(dataset.discover("T1")[0], "T1")
    np.testing.assert_array_equal(stack.brain, stack.image > 0)
    assert stack.lesion is None
    assert stack.remarks == ["no brainmask, brain = image > 0 (slice 95)"]
    assert "brain: brainmask > 0, else image > 0" in dataset.recipe()["steps"]


def test_ixi_numbers_are_one_subject(flat):
    for site in ("Guys-0828", "HH-1603"):
        add(flat, "", f"IXI219-{site}-slice_90", brain=False, lesion=None)
    cases = [case for case in folder(flat).discover("T1") if case.subject == "IXI219"]
    assert [case.session for case in cases] == ["Guys-0828", "HH-1603"]
    assert len({case.split for case in cases}) == 1


@pytest.mark.parametrize(
    ("name", "subject", "index"),
    [("sub-01_slice_7_FLAIR", "sub-01", 7), ("sub-01-FLAIR", "sub-01", 0), ("a-b-slice_003-FLAIR", "a-b", 3)],
)
def test_names(tmp_path, name, subject, index):
    save(tmp_path / f"{name}.png", np.full((4, 4), 9, np.uint8))
    (case,) = folder(tmp_path, val_share=0).discover("FLAIR")
    assert (case.subject, case.extra["slices"][0][0]) == (subject, index)


def test_modality_given_for_names_without_one(tmp_path):
    save(tmp_path / "brain 12.png", np.full((4, 4), 9, np.uint8))
    dataset = folder(tmp_path, modality="t2", val_share=0)
    assert dataset.available() == ("T2",)
    assert dataset.discover("T2")[0].subject == "brain 12"


# ---- bad input: the sentence names the thing, the place and the way out


def test_no_root():
    assert re.match(r"The dataset folder needs a data root\. Expected there: NIfTI volumes", refused(None))


def test_missing_root(tmp_path):
    assert refused(tmp_path / "nowhere").startswith(f"The data root {tmp_path / 'nowhere'} is missing. Expected there:")


def test_root_is_a_file(tmp_path):
    path = save(tmp_path / "a.png", np.zeros((4, 4), np.uint8))
    assert f"{path} is not a folder" in refused(path)


def test_empty_root(tmp_path):
    assert f"No PNG slices in {tmp_path}, which holds nothing. Expected there:" in refused(tmp_path)


def test_wrong_layout(tmp_path):
    for number in range(7):
        (tmp_path / f"BraTS2021_0000{number}").mkdir()
    (tmp_path / "train").mkdir()
    message = refused(tmp_path)
    assert "holds only BraTS2021_00000, BraTS2021_00001" in message
    assert "brainmask.png" in message


def test_split_folders_and_loose_files(root):
    shutil.copy(root / "train" / "s1-slice_3-T1.png", root / "extra-T1.png")
    assert "both split folders and PNG files of its own, such as extra-T1.png" in refused(root)


def test_modality_not_there(root):
    assert "No T2 slice in" in refused(root, "T2")
    assert "there is T1, FLAIR" in refused(root, "T2")


def test_name_without_modality(root):
    path = save(root / "test" / "s9-slice_1.png", np.zeros((20, 14), np.uint8))
    message = refused(root)
    assert str(path) in message
    assert "--set dataset.modality=FLAIR" in message


def test_two_names_for_one_slice(root):
    shutil.copy(root / "test" / "s-3-slice_3-T1.png", root / "test" / "s-3-slice_03-T1.png")
    assert "s-3-slice_03-T1.png and s-3-slice_3-T1.png" in refused(root)


def test_subject_in_two_splits_even_by_another_modality(root):
    add(root, "val", "s1-slice_50", lesion=None, modality="FLAIR")
    message = refused(root)
    assert "The subject s1 is in two splits, train (s1-slice_" in message
    assert "and val (s1-slice_50" in message


def test_mask_without_image(root):
    path = save(root / "test" / "s-3-slice_77-segmentation.png", np.zeros((20, 14), np.uint8))
    assert f"{path} has no image beside it" in refused(root)


@pytest.mark.parametrize("kind", ["T1", "brainmask", "segmentation"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "no image"])
def test_unreadable_file(root, kind, damage):
    path = root / "test" / f"s-3-slice_4-{kind}.png"
    content = path.read_bytes()
    path.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "no image": b"hello" * 40}[damage])
    message = refused(root)
    assert f"{path} cannot be read as a PNG image" in message
    assert "Replace or remove the file." in message
    assert damage != "empty" or "it is empty" in message


def test_damage_inside_the_pixels_is_found(root):
    path = root / "test" / "s-3-slice_4-T1.png"
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 8] ^= 0xFF
    path.write_bytes(content)
    assert f"{path} cannot be read as a PNG image" in refused(root)


@pytest.mark.parametrize("kind", ["brainmask", "segmentation"])
def test_mask_of_another_size(root, kind):
    path = save(root / "test" / f"s-3-slice_4-{kind}.png", np.zeros((14, 20), np.uint8))
    message = refused(root)
    assert f"{path} is 14x20 and its image s-3-slice_4-T1.png is 20x14" in message


def test_colour(root):
    path = root / "test" / "s-3-slice_4-T1.png"
    pixels = np.zeros((20, 14, 3), np.uint8)
    pixels[5, 5] = (9, 8, 9)
    save(path, pixels)
    assert f"{path} is a colour image, expected grey" in refused(root)


def test_segmentation_missing_for_one_slice(root):
    path = root / "test" / "s-3-slice_4-segmentation.png"
    path.unlink()
    message = refused(root)
    assert "s-3-slice_4-T1.png" in message
    assert f"add {path.name}" in message


def test_bad_input_leaves_no_store(root, tmp_path):
    path = root / "val" / "s2-slice_10-T1.png"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match="cannot be read"):
        prepare(folder(root), "T1", tmp_path / "cache")
    assert list((tmp_path / "cache" / "stores").iterdir()) == []


@pytest.mark.parametrize("params", [{"size": 3}, {"val_share": 0.9}, {"sice": 64}])
def test_bad_parameters(root, params):
    with pytest.raises(UserError, match="dataset folder"):
        folder(root, **params)


def test_other_files_are_no_obstacle(root):
    (root / "README.txt").write_text("mine")
    (root / "test" / "Thumbs.db").write_bytes(b"x")
    (root / "test" / "._s-3-slice_3-T1.png").write_bytes(b"resource fork")
    assert len(folder(root).discover("T1")) == 4


# ---- identity, health, and everything that check lists


def findings(root: Path, **params: object) -> dict[str, list[Issue]]:
    found: dict[str, list[Issue]] = {}
    for finding in check(folder(root, **params)).issues:
        found.setdefault(finding.code, []).append(finding)
    return found


@pytest.mark.parametrize(
    ("there", "known"), [("val", "validation"), ("train", "Training"), ("test", "testing"), ("val", "valid")]
)
def test_other_names_of_the_split_folders(root, there, known):
    before = folder(root).discover("T1")
    (root / there).rename(root / known)
    assert [(case.subject, case.split) for case in folder(root).discover("T1")] == [
        (case.subject, case.split) for case in before
    ]


@pytest.mark.parametrize("stray", ["figures", "train/better", "holdout/a"])
def test_slices_in_other_folders_are_refused(root, stray):
    add(root, stray, "s9-slice_1")
    says = (
        f"{root / stray} holds PNG files and is none of train/, val/ and test/: move them into one, or out of {root}."
    )
    assert refused(root) == says
    assert [f.message for f in findings(root)["stray"]] == [says]


def test_a_test_subject_without_its_mask_is_refused(root):
    (root / "test" / "s4-slice_3-segmentation.png").unlink()
    message = refused(root)
    assert message.startswith(
        f"s4-slice_3-FLAIR.png in {root / 'test'} has no segmentation, and test/ declares no subject"
    )
    assert "add s4-slice_3-segmentation.png (all 0 where there is no lesion)" in message
    assert [f.message for f in findings(root)["missing-mask"]] == [message]
    left = folder(root, unmasked="leave-out")
    assert [case.subject for case in left.discover("T1")] == ["s1", "s2", "s-3"]
    assert left.exclusions("T1") == ["s4: left out, it has no segmentation and dataset.unmasked is leave-out"]
    assert folder(root, unmasked="healthy").discover("T1")[3].healthy == "dataset.unmasked says so"
    assert folder(root, unmasked="healthy").recipe() == left.recipe()


def test_a_val_folder_needs_masks_for_all_or_for_nobody(root):
    for k in (3, 4, 10):
        shutil.copy(root / "train" / f"s1-slice_{k}-T1.png", root / "val" / f"s7-slice_{k}-T1.png")
    assert "s7-slice_10-T1.png in" in refused(root)
    for path in (root / "val").glob("*segmentation.png"):
        path.unlink()
    cases = folder(root).discover("T1")
    assert {case.healthy for case in cases if case.split == "val"} == {
        "it lies in val/, where no subject has a segmentation"
    }


@pytest.mark.parametrize("kind", ["segmentation", "brainmask"])
def test_a_grey_mask_is_refused(root, kind):
    path = root / "test" / f"s-3-slice_4-{kind}.png"
    mask = np.zeros((20, 14), np.uint8)
    mask[4:8, 4:8], mask[8, 4:8] = 255, 128
    save(path, mask)
    message = refused(root)
    assert message.startswith(f"{path} holds the values 0, 128, 255: a mask has two, 0 and one other.")
    assert [f.message for f in findings(root)["label"]] == [message]


def test_patients_are_told_apart_by_more_than_their_names(root):
    add(root, "test", "S01_tp2-slice_3")
    assert "The subject S01 is in two splits, train (s1-slice_10-T1.png) and test (S01_tp2-slice_3-" in refused(root)
    assert [f.code for f in findings(root)["two-roles"]] == ["two-roles"]


def test_a_flat_folder_keeps_visits_of_a_patient_together(tmp_path):
    for number in range(1, 31):
        for visit in ("-tp1", "-tp2", ""):
            add(tmp_path, "", f"p{number:02d}{visit}-slice_1", brain=False, lesion=None)
            add(tmp_path, "", f"P{number}-slice_1", brain=False, lesion=None)
    roles: dict[str, set[str]] = {}
    for case in folder(tmp_path, val_share=0.3).discover("T1"):
        roles.setdefault(case.subject.lower().replace("p0", "p"), set()).add(case.split)
    assert len(roles) == 30
    assert all(len(of_one) == 1 for of_one in roles.values())


def test_second_scans_of_brats21_take_no_role(root):
    add(root, "test", "BraTS2021_01600-slice_3")
    assert "BraTS2021_01600" not in [case.subject for case in folder(root).discover("T1")]
    assert folder(root).exclusions("T1")[0].startswith("BraTS2021_01600: left out, it is probably a second scan")
    assert "BraTS2021_01600" in [case.subject for case in folder(root, second_scans="use").discover("T1")]


def test_check_lists_what_it_sees_in_pixels(root):
    add(root, "train", "s8-slice_1", shape=(30, 14), lesion=True)
    save(root / "test" / "s-3-slice_4-T1.png", np.zeros((20, 14), np.uint8))
    for name in ("one", "two"):
        pixels = np.random.default_rng(1).integers(1, 255, (20, 14)).astype(np.uint8)
        save(root / "test" / f"{name}-slice_3-T1.png", pixels)
        save(root / "test" / f"{name}-slice_3-segmentation.png", np.zeros((20, 14), np.uint8))
    found = findings(root)
    assert f"{root / 'train' / 's8-slice_1-segmentation.png'}: slice 1: it has 4 lesion pixels in train" in (
        found["lesion-in-train"][0].message
    )
    assert f"{root / 'test' / 's-3-slice_4-T1.png'}: slice 4: left out, its image is black" in (
        f.message for f in found["black-slice"]
    )
    assert "s8-slice_1-T1.png is 30x14 and s1-slice_10-T1.png is 20x14" in found["shape"][0].message
    twice = [f.message for f in found["duplicate-subject"]]
    assert any(
        "two-slice_3-T1.png shares 1 of 1 slices with" in line and "one and two are one" in line for line in twice
    )


def test_a_damaged_slice_is_to_be_corrected_or_removed(root: Path, tmp_path: Path) -> None:
    path = root / "test" / "s4-slice_3-T1.png"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"1 of 4 cases of folder could not be prepared: .*s4-slice_3-T1") as caught:
        prepare(folder(root), "T1", tmp_path / "cache")
    assert "or leave them out with --set dataset.exclude=[s4]" in str(caught.value)
    stack = prepare(folder(root, exclude=["s4"]), "T1", tmp_path / "cache")
    assert "s4" not in {case.subject for case in stack.cases}
    assert "s4: left out, it is in dataset.exclude" in stack.manifest["remarks"]


def test_an_excluded_slice_is_no_obstacle_and_changes_no_role(tmp_path: Path) -> None:
    picture = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for number in range(6):
        save(tmp_path / f"p{number}-slice_3-FLAIR.png", picture)
    roles = {case.subject: case.split for case in folder(tmp_path).discover("FLAIR")}
    save(tmp_path / "p2-slice_3.png", picture)
    save(tmp_path / "p3-slice_4-mask.png", picture)
    assert {f.code for f in check(folder(tmp_path)).issues} >= {"unnamed-image", "unnamed-mask"}
    assert folder(tmp_path).available() == ("FLAIR",)
    found = folder(tmp_path, exclude=["p2", "p3"])
    assert {case.subject: case.split for case in found.discover("FLAIR")} == {
        who: role for who, role in roles.items() if who not in ("p2", "p3")
    }
    with pytest.raises(UserError, match=r"Unknown case of folder in dataset.exclude 'p9'"):
        folder(tmp_path, exclude=["p9"]).discover("FLAIR")
    with pytest.raises(UserError, match=r"No slice in .* is left: dataset.exclude names everyone"):
        folder(tmp_path, exclude=list(roles)).available()


def test_names_without_a_modality_are_said_and_give_no_empty_one(tmp_path: Path) -> None:
    picture = np.arange(256, dtype=np.uint8).reshape(16, 16)
    save(tmp_path / "p0-slice_3.png", picture)
    save(tmp_path / "p1-slice_3.png", picture)
    with pytest.raises(UserError, match=r"The name of .*p0-slice_3.png does not end with a modality"):
        overview(folder(tmp_path))
    assert [(f.code, f.case) for f in check(folder(tmp_path)).issues] == [
        ("unnamed-image", "p0"),
        ("unnamed-image", "p1"),
    ]
    save(tmp_path / "p2-slice_3-FLAIR.png", picture)
    assert not [f.message for f in check(folder(tmp_path)).issues if "  " in f.message or ": there is ," in f.message]


def test_info_says_who_is_taken_for_healthy_and_why(root):
    assert overview(folder(root))["modalities"]["T1"]["healthy"] == {
        "it lies in train/, which is for healthy subjects": ["s1"],
        "slices without lesion, by their mask": ["s2"],
    }


def test_check_says_that_a_role_is_empty(tmp_path):
    add(tmp_path, "test", "a-slice_1")
    assert [f.severity for f in findings(tmp_path)["no-train"]] == ["warning"]
    (tmp_path / "test").rename(tmp_path / "train")
    found = findings(tmp_path)
    assert found["no-test"][0].message == f"There is no T1 slice with a lesion mask in the split `test` of {tmp_path}."
    assert "no-train" not in found


def test_check_lists_every_fault_that_run_meets_first(root):
    shutil.copy(root / "train" / "s1-slice_3-T1.png", root / "extra-T1.png")
    shutil.copy(root / "test" / "s-3-slice_3-T1.png", root / "test" / "s-3-slice_03-T1.png")
    add(root, "val", "s1-slice_50")
    save(root / "test" / "s9-slice_1.png", np.zeros((20, 14), np.uint8))
    save(root / "test" / "s-3-slice_77-segmentation.png", np.zeros((20, 14), np.uint8))
    assert set(findings(root)) >= {"stray", "conflict", "two-roles", "unnamed-image", "missing-image"}


# ---- real data


@pytest.mark.skipif(not (DATA / "soop_flair").is_dir(), reason="real FLAIR slices are not here (ADBENCH_TEST_DATA)")
def test_real_strokes(tmp_path):
    store = prepare(folder(DATA / "soop_flair"), "FLAIR", tmp_path)
    assert store.shape == (192, 192)
    assert [len(store.healthy("train")), len(store.labelled("val")), len(store.labelled("test"))] == [165, 123, 365]
    test = store.labelled("test")
    brain = test.brains()
    assert (test.lesions() & brain).sum() / brain.sum() == pytest.approx(0.048, abs=0.0005)


@pytest.mark.skipif(not (DATA / "ixi_t1").is_dir(), reason="real IXI slices are not here (ADBENCH_TEST_DATA)")
def test_real_healthy_flat_folder():
    dataset = folder(DATA / "ixi_t1", size=64)
    cases = dataset.discover("T1")
    assert len(cases) == len({case.subject for case in cases}) == 473
    assert 0.06 < np.mean([case.split == "val" for case in cases]) < 0.14
    assert dataset.load(cases[0], "T1").image.shape == (1, 64, 64)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_slices_in_a_folder_for_lesions_are_never_healthy(tmp_path: Path, split: str) -> None:
    """As in BMAD, its labels lost."""
    for part, number in (("train", 1), ("valid", 2), ("test", 3)):
        tissue = np.full((20, 20), 90 + number, np.uint8)
        save(tmp_path / part / "good" / "img" / f"{number:05d}_17.png", tissue)
        if part == "test":
            save(tmp_path / part / "good" / "label" / f"{number:05d}_17.png", tissue * 0)
    ill = save(tmp_path / split / "Ungood" / "img" / "00009_10.png", np.full((20, 20), 80, np.uint8))
    healthy = save(tmp_path / split / "good" / "img" / "00009_17.png", np.full((20, 20), 70, np.uint8))
    for unmasked in ("refuse", "healthy"):
        (finding,) = findings(tmp_path, modality="T1", unmasked=unmasked)["missing-mask"]
        assert (finding.severity, finding.case) == ("error", "00009")
        assert finding.message == (
            f"00009_10.png in {ill.parent} has no segmentation: add label/00009_10.png, with the lesion that its folder says is "
            "there, or leave such subjects out with --set dataset.unmasked=leave-out."
        )
    dataset = folder(tmp_path, modality="T1", unmasked="leave-out")
    assert "00009" not in [case.subject for case in dataset.discover("T1")]
    assert "00009: left out" in dataset.exclusions("T1")[0]
    for path in (ill, healthy, tmp_path / "valid" / "good" / "img" / "00002_17.png"):
        save(path.parents[1] / "label" / path.name, np.zeros((20, 20), np.uint8) + 255 * (path == ill))
    (case,) = [case for case in folder(tmp_path, modality="T1").discover("T1") if case.subject == "00009"]
    assert case.healthy == ""
