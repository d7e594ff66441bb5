"""Fingerprints: copies are found after small changes and another position, people are told apart."""

from __future__ import annotations

import logging
import re
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from adbench.config.cell import Source
from adbench.config.protocols import get
from adbench.context import Progress
from adbench.datasets.adapters.folder import Folder
from adbench.datasets.store import case_file, similarity
from adbench.datasets.store.prepare import prepare
from adbench.datasets.validation.check import check
from adbench.errors import UserError
from adbench.params import build
from adbench.runner import plan

SHAPE = (40, 56, 48)


def head(seed: int, rotation: float = 0.0, scale: float = 1.0, move: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """An ellipsoid of smooth random tissue, tilted by ``rotation`` degrees and scaled; (S, H, W)."""
    noise = np.random.default_rng(seed).normal(size=SHAPE)
    tissue = ndimage.gaussian_filter(noise, 2.5)
    turn = np.deg2rad(rotation)
    matrix = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]) * scale
    centre = (np.array(SHAPE) - 1) / 2
    grid = np.indices(SHAPE).reshape(3, -1) - centre[:, None] - move
    inside = ((matrix @ grid / (np.array(SHAPE)[:, None] * 0.4)) ** 2).sum(axis=0).reshape(SHAPE) < 1
    image = ndimage.affine_transform(tissue, matrix, centre - matrix @ (centre + move), order=1, mode="nearest")
    return (0.5 + 3 * image) * inside, inside


def correlation(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> float:
    a, b = (similarity.fingerprint(*volume)[None] for volume in (one, other))
    return float(similarity.similarity(a, b)[0, 0])


def test_copies_are_certain_after_small_changes() -> None:
    image, brain = head(1)
    pixel = image.copy()
    pixel[20, 28, 24] += 1 / 255
    noisy = image + 0.01 * np.random.default_rng(0).normal(size=SHAPE)
    for changed in (image, pixel, noisy, 0.7 * image + 0.1):
        assert correlation((image, brain), (changed, brain)) >= similarity.CERTAIN


@pytest.mark.parametrize("change", [{"rotation": 6.0}, {"scale": 1.06}, {"move": 1.5}])
def test_copies_are_likely_in_another_position(change: dict[str, float]) -> None:
    assert correlation(head(1), head(1, **change)) >= similarity.LIKELY


def test_people_are_told_apart() -> None:
    found = np.stack([similarity.fingerprint(*head(seed)) for seed in range(12)])
    apart = similarity.similarity(found, found)[np.triu_indices(12, 1)]
    assert apart.max() < 0.5


def test_voxels_of_another_size_are_no_other_person() -> None:
    image, brain = head(1)
    whole = similarity.fingerprint(image, brain)[None]
    thick = similarity.fingerprint(image[::2], brain[::2], range(0, SHAPE[0], 2))[None]
    coarse = similarity.fingerprint(image[:, ::2, ::2], brain[:, ::2, ::2], spacing=(1, 2, 2))[None]
    assert similarity.similarity(whole, thick)[0, 0] >= similarity.LIKELY
    assert similarity.similarity(whole, coarse)[0, 0] >= similarity.LIKELY


def test_nothing_is_said_of_next_to_nothing() -> None:
    image, brain = head(1)
    brain[:] = False
    brain[20, 20:24, 20:24] = True
    assert np.isnan(similarity.fingerprint(image, brain)).all()
    assert correlation((image, brain), (image, brain)) == 0


def write(
    root: Path, split: str, name: str, seed: int, change: float = 0.0, slices: tuple[int, ...] = (18, 20, 22)
) -> None:
    image, brain = head(seed)
    (root / split).mkdir(parents=True, exist_ok=True)
    for k in slices:
        pixels = np.clip(255 * image[k], 1, 255) * brain[k]
        pixels[28, 24] += change
        Image.fromarray(pixels.astype(np.uint8)).save(root / split / f"{name}-slice_{k}-T1.png")
        if split != "train":
            mask = np.zeros(SHAPE[1:], np.uint8)
            mask[30:34, 20:24] = 255
            Image.fromarray(mask).save(root / split / f"{name}-slice_{k}-segmentation.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, seeds in (("train", (1, 2)), ("val", (3,)), ("test", (4, 5))):
        for seed in seeds:
            write(tmp_path / "data", split, f"s{seed}", seed)
    return tmp_path / "data"


def gather(root: Path) -> None:
    source = Source.resolve("folder", str(root), {})
    plan.gather(source, None, "T1", get("folder"), root.parent / "cache", Progress())


def test_a_copy_with_one_other_pixel_in_two_roles_is_refused(root: Path) -> None:
    gather(root)
    write(root, "test", "other", 1, change=1)
    with pytest.raises(UserError, match="'s1' \\(training\\) and 'other' \\(test\\) are one scan, hardly changed"):
        gather(root)
    dataset = Folder(build(Folder.Params, "folder", {}), root)
    (finding,) = [finding for finding in check(dataset).issues if finding.code == "look-alike"]
    assert finding.severity == "error"
    assert "the subjects s1 and other are one scan, hardly changed" in finding.message


def copies(root: Path) -> list[str]:
    """What the check says of subjects that are one, names of files without their folders."""
    found = check(Folder(build(Folder.Params, "folder", {}), root)).issues
    return [f.message.replace(f"{root}/", "") for f in found if f.code == "duplicate-subject"]


@pytest.mark.parametrize("role", ["train", "val"])
def test_a_slice_of_a_test_subject_under_another_name_is_refused(root: Path, role: str) -> None:
    assert copies(root) == []
    write(root, role, "other", 6, slices=(18, 22))
    write(root, role, "other", 4, slices=(20,))
    if role == "val":  # seen as healthy there
        for path in (root / "val").glob("*segmentation.png"):
            path.unlink()
    names = {"train": "training", "val": "validation"}
    with pytest.raises(UserError, match=f"'other' .{names[role]}. and 's4' .test. share 1 slice, pixel by pixel"):
        gather(root)
    (message,) = copies(root)
    one, other = f"{role}/other-slice_18-T1.png", "test/s4-slice_18-T1.png"
    assert message == f"{other} shares 1 of 3 slices with {one}, pixel by pixel: the subjects other and s4 are one"


@pytest.mark.parametrize(
    ("role", "name", "said"), [("train", "s1", "training"), ("val", "s3", "validation"), ("test", "s4", "test")]
)
def test_one_person_twice_in_a_role_is_refused(root: Path, role: str, name: str, said: str) -> None:
    write(root, role, "other", int(name[1:]), slices=(20, 22))
    with pytest.raises(UserError, match=f"'other' .{said}. and '{name}' .{said}. share 2 slices, pixel by pixel"):
        gather(root)
    assert len(copies(root)) == 1


def test_two_sessions_of_one_person_may_share_slices(root: Path) -> None:
    write(root, "test", "S4_tp2", 4)
    gather(root)
    assert copies(root) == []


def test_slices_that_say_next_to_nothing_do_not_count() -> None:
    images = np.zeros((5, 10, 12), np.float16)
    images[:, 1:7, 1:11] = np.linspace(0.1, 0.9, 60).reshape(6, 10)
    images[1, 1, 1] = 0  # 59 pixels of brain
    images[2, 1:7, 1:11] = np.arange(60).reshape(6, 10) % 15 / 20 + 0.1  # 15 grey levels
    images[4, 1:7, 1:11] = np.arange(60).reshape(6, 10) % 16 / 20 + 0.1
    hashes = similarity.slice_hashes(images)
    assert hashes[0] == hashes[3] != 0 != hashes[4] != hashes[0]
    assert hashes[1] == hashes[2] == 0
    prints = [("a", hashes), ("A_ses-2", hashes), ("b", hashes[1:3]), ("c", hashes[:3])]
    assert similarity.shared_slices(prints) == {(0, 3): 1}


def test_who_looks_alike_is_named(
    root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(similarity, "LIKELY", -1.0)
    with caplog.at_level(logging.WARNING, logger="adbench"):
        gather(root)
        gather(root)  # as a run does, which looks at its data several times
    said = "'s1' (training) and 's4' (test) may be one person: their fingerprints correlate by"
    assert caplog.text.count(said) == 1


def test_fingerprints_of_a_store_lie_in_its_case_files(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = prepare(Folder(build(Folder.Params, "folder", {}), root), "T1", root.parent / "cache")
    first = case_file.prints(store, store.rows("test"))
    assert first.subjects == ["s4", "s5"]
    assert [len(hashes) for hashes in first.hashes] == [3, 3]
    assert len({*first.hashes[0].tolist(), *first.hashes[1].tolist(), 0}) == 7
    monkeypatch.setattr(similarity, "VERSION", 0)  # of another version they are made from the pixels
    again = case_file.prints(store, store.rows("test"))
    np.testing.assert_array_equal(again.values, first.values)
    np.testing.assert_array_equal(again.hashes, first.hashes)
    assert case_file.prints(store, np.empty(0, np.int64)).subjects == []
    file = next(file for case, file in zip(store.cases, store.files, strict=True) if case.subject == "s5")
    file.write_bytes(file.read_bytes()[:-30] + b"?" + file.read_bytes()[-29:])
    with pytest.raises(UserError, match=r"what it says of case s5 was changed after preparation. Delete .*\.case"):
        case_file.prints(store, store.rows("test"))


@pytest.mark.parametrize(
    ("seed", "noise", "says"),
    [
        (4, None, "share 3 slices, pixel by pixel"),
        (4, 1.0, "are one scan, hardly changed"),
        (4, 15.0, "have one name and look like one person"),
        (7, 1.0, ""),
    ],
)
def test_one_name_in_two_data_sets_is_one_person_where_the_images_say_so(
    root: Path, tmp_path: Path, seed: int, noise: float | None, says: str
) -> None:
    other = tmp_path / "clinic"
    write(other, "train", "s4", seed)
    write(other, "train", "s9", 9)
    for path in other.rglob("s4-*.png"):
        if noise is None:
            path.write_bytes(path.read_bytes() + b" ")  # another file of the same pixels
            continue
        pixels = np.asarray(Image.open(path)).astype(float)
        changed = pixels + np.random.default_rng(1).normal(0, noise, pixels.shape) * (pixels > 0)
        Image.fromarray(np.clip(changed, pixels > 0, 255).astype(np.uint8)).save(path)
    source, train = (
        Source.resolve("folder", str(where), values) for where, values in ((root, {}), (other, {"name": "clinic"}))
    )
    beginning = re.escape(f"'s4 (of clinic)' (training) and 's4 (of folder)' (test) {says}")
    with pytest.raises(UserError, match=f"^{beginning}") if says else nullcontext():
        plan.gather(source, train, "T1", get("folder"), tmp_path / "cache", Progress())
