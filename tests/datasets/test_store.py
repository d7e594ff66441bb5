"""The slice store: what was written is what is read, and anything else is refused."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from adbench.datasets.base import Case, Dataset, DatasetInfo, Stack
from adbench.datasets.slices import LabelledSet, SliceSet
from adbench.datasets.store import pixels
from adbench.datasets.store import slice_store as module
from adbench.datasets.store.slice_store import SliceStore, StoredCase, prepare
from adbench.errors import UserError
from adbench.params import ParamSet, param


class ToyParams(ParamSet):
    bright: float = param(0.5, "brightness")


class Toy(Dataset):
    """Five subjects of three slices; file contents do not matter, only that files exist."""

    info = DatasetInfo("toy", "1", ("T1",), "none", "", "", "folder")
    Params = ToyParams
    poison: str = ""

    def discover(self, modality):
        splits = {"a": "train", "b": "train", "c": "val", "d": "test", "e": "test"}
        files = (lambda name: (self.root / f"{name}.raw",)) if self.root else (lambda name: ())
        return [Case(name, split, files(name)) for name, split in splits.items()]

    def load(self, case, modality):
        rng = np.random.default_rng(ord(case.subject))
        brain = np.zeros((3, 8, 6), bool)
        brain[:, 1:-1, 1:-1] = True
        image = (rng.random(brain.shape) * self.params.bright).astype(np.float32) * brain
        lesion = np.zeros_like(brain)
        lesion[1, 3:5, 2:4] = case.subject in "bcd"
        if case.subject == self.poison:
            image[2, 4, 3] = np.nan
        return Stack(image, brain, None if case.subject == "e" else lesion, [4, 7, 9], ["slice 2: no brain"])


def toy(root: Path | None = None, **params: float) -> Toy:
    return Toy(ToyParams(**params), root)


@pytest.fixture
def store(tmp_path: Path) -> SliceStore:
    return prepare(toy(), "T1", tmp_path)


def stored(store: SliceStore, subject: str) -> StoredCase:
    return next(case for case in store.cases if case.subject == subject)


def leftovers(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "stores").iterdir()) if (cache / "stores").exists() else []


def test_round_trip(store):
    dataset = toy()
    assert len(store) == 15
    assert store.shape == (8, 6)
    assert len(store.cases) == 5
    for case in dataset.discover("T1"):
        stack, found = dataset.load(case, "T1"), stored(store, case.subject)
        np.testing.assert_array_equal(store.images[found.rows], stack.image.astype(np.float16))
        np.testing.assert_array_equal(store.brains[found.rows], stack.brain)
        assert store.lesions[found.rows].sum() == (0 if stack.lesion is None else stack.lesion.sum())
        assert (found.subject, found.split, found.slices) == (case.subject, case.split, (4, 7, 9))
        assert found.masked == (stack.lesion is not None)
    assert store.images.dtype == np.float16
    row = stored(store, "b").start + 1
    assert (store.case_of(row).subject, store.healthy("train").slice_numbers.tolist()) == ("b", [4, 7, 9, 4, 9])
    assert "a: slice 2: no brain" in store.manifest["remarks"]
    assert store.manifest["recipe"]["params"] == {"bright": 0.5}


def test_a_method_sees_no_lesion_slice_and_no_mask(store):
    train = store.healthy("train")
    assert len(train) == 5  # three of a, two of b: its slice with a lesion is gone
    assert not store.lesions[train.rows].any()
    assert type(train) is SliceSet
    assert not [name for name in dir(train) if "lesion" in name.lower()]
    batch = train.batch(slice(0, 2))
    assert not [name for name in dir(batch) if "lesion" in name.lower()]
    assert type(train.limited(2)) is SliceSet


def test_labelled_slices_come_from_masked_cases_only(store):
    test = store.labelled("test")
    assert isinstance(test, LabelledSet)
    assert test.subjects == ["d"]  # e has no mask
    assert test.lesion_voxels.tolist() == [0, 4, 0]
    np.testing.assert_array_equal(test.lesions().sum(axis=(1, 2)), test.lesion_voxels)


def test_splits_that_are_not_there_are_empty(tmp_path):
    class OnlyTrain(Toy):
        def discover(self, modality):
            return [case for case in super().discover(modality) if case.split == "train"]

    store = prepare(OnlyTrain(ToyParams(), None), "T1", tmp_path)
    assert len(store.labelled("test")) == len(store.healthy("val")) == 0


def test_digest_ignores_paths_and_lesions_but_not_pixels(tmp_path):
    stores = []
    for name in ("one", "two place"):
        root = tmp_path / name
        root.mkdir()
        for subject in "abcde":
            (root / f"{subject}.raw").write_bytes(b"x")
        stores.append(prepare(toy(root), "T1", tmp_path / f"cache {name}"))
    brighter = prepare(toy(bright=0.75), "T1", tmp_path / "third")
    first, second = (s.healthy("train").digest for s in stores)
    assert first == second != brighter.healthy("train").digest
    assert stores[0].labelled("test").digest == stores[1].labelled("test").digest

    class Relabelled(Toy):
        def load(self, case, modality):
            stack = super().load(case, modality)
            if stack.lesion is not None:
                stack.lesion[1, 6, 1] = stack.lesion[1].any()
            return stack

    other = prepare(Relabelled(ToyParams(), None), "T1", tmp_path / "fourth")
    assert other.healthy("train").digest == first
    assert other.labelled("test").digest != stores[0].labelled("test").digest


def test_a_second_time_opens_and_touched_sources_prepare_anew(tmp_path, monkeypatch):
    root = tmp_path / "data"
    root.mkdir()
    for subject in "abcde":
        (root / f"{subject}.raw").write_bytes(b"x")
    first = prepare(toy(root), "T1", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Toy, "load", lambda *_: pytest.fail("it decoded again"))
        assert prepare(toy(root), "T1", tmp_path).folder == first.folder
    os.utime(root / "c.raw", ns=(1, 1))
    assert prepare(toy(root), "T1", tmp_path).folder != first.folder


@pytest.mark.parametrize("file", ["images.npy", "brains.npy", "lesions.npy"])
def test_truncation_is_found(store, file):
    path = store.folder / file
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(
        UserError, match=rf"{file} has \d+ bytes where \d+ were written.*Delete .* run the command again"
    ):
        SliceStore.open(store.folder)


def test_a_changed_byte_is_found_when_its_case_is_read_and_not_before(store):
    path = store.folder / "images.npy"
    state = path.stat()
    content = bytearray(path.read_bytes())
    content[-40] ^= 1  # in the last case, which is the second one of training
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    opened = SliceStore.open(store.folder)
    last = opened.cases[-1]
    message = rf"images\.npy: the pixels of case {last.id} have the checksum \w+ and were written with {last.checksums['images']}.*Delete .* run the command again"
    for split in ("train", "val", "test"):
        slices = opened.healthy(split)
        whole = np.isin(last.rows, slices.rows).any()
        for read in (slices.images, lambda slices=slices: slices.batch(slice(None))):
            if whole:
                with pytest.raises(UserError, match=message):
                    read()
            else:
                read()
    with pytest.raises(UserError, match=message):
        opened.images[last.start]
    ((case, deep),) = [found for found in opened.faults() if found[1]]
    assert case == last.id
    assert f"the SHA-256 {hashlib.sha256(content[-96 * 3 :]).hexdigest()[:16]}" in deep
    assert f"were written with {last.digests['images'][:16]}" in deep


def test_inverted_masks_with_the_old_time_are_found(store):
    path = store.folder / "lesions.npy"
    state = path.stat()
    masks = np.lib.format.open_memmap(path, "r+")
    masks[:] = ~masks
    masks.flush()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    test = SliceStore.open(store.folder).labelled("test")
    assert test.brains().any()  # of other files
    with pytest.raises(UserError, match=r"lesions\.npy: the pixels of case d have the checksum"):
        test.lesions()


def test_a_copied_store_is_accepted(store, tmp_path):
    copied = SliceStore.open(shutil.copytree(store.folder, tmp_path / "elsewhere"))
    assert list(copied.faults()) == [(case.id, "") for case in store.cases] * 3
    np.testing.assert_array_equal(copied.images[:], store.images[:])


def test_without_checksums_the_digests_are_taken(store):
    manifest = json.loads(json.dumps(store.manifest))
    for case in manifest["cases"]:
        del case["checksums"]
        case["digests"]["brains"] = "0" * 64
    older = SliceStore(store.folder, manifest)
    np.testing.assert_array_equal(older.healthy("train").images(), store.healthy("train").images())
    with pytest.raises(UserError, match=r"the SHA-256 [1-9a-f].* were written with 0000"):
        older.healthy("train").brains()


def test_each_case_is_hashed_once_for_all_sets_of_a_split(store, monkeypatch):
    hashed = []
    original = pixels.Rows.fault
    monkeypatch.setattr(pixels.Rows, "fault", lambda self, i: (hashed.append((self.name, i)), original(self, i))[1])
    for _ in range(2):
        store.healthy("train").images()
        store.healthy("train").limited(2).batch(slice(None))
    assert sorted(hashed) == [("brains", 0), ("brains", 1), ("images", 0), ("images", 1)]


def test_manifest_damage_is_found(store):
    path = store.folder / "manifest.json"
    text = path.read_text()
    manifest = json.loads(text)
    guilty = next(case for case in manifest["cases"] if case["subject"] == "b")
    assert guilty["lesion_voxels"] == [0, 4, 0]
    guilty["lesion_voxels"] = [0, 0, 0]  # would let a lesion slice into training
    path.write_text(json.dumps(manifest))
    with pytest.raises(
        UserError, match=r"manifest\.json was changed after preparation: its case list has the digest \w+ and"
    ):
        SliceStore.open(store.folder)
    path.write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        SliceStore.open(store.folder)
    path.unlink()
    with pytest.raises(UserError, match=r"incomplete: manifest\.json is missing"):
        SliceStore.open(store.folder)


def test_another_version_is_refused(store):
    path = store.folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "store_version": 0}))
    with pytest.raises(UserError, match="has version 0, this adbench reads"):
        SliceStore.open(store.folder)


def test_nan_is_refused_with_the_case_named_and_nothing_left(tmp_path):
    dataset = toy()
    dataset.poison = "c"
    with pytest.raises(UserError, match=r"case c \(generated\): the image holds NaN"):
        prepare(dataset, "T1", tmp_path)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: setattr(s, "image", s.image + 2), r"image values from 2 to .*, expected \[0, 1\]"),
        (lambda s: setattr(s, "brain", s.brain.astype(np.uint8)), "brain mask .* uint8, expected .* bool"),
        (lambda s: setattr(s, "lesion", s.brain[:, :4]), r"lesion mask \(3, 4, 6\)"),
        (lambda s: setattr(s, "slices", [1, 1, 2]), "slice indices must ascend"),
        (lambda s: setattr(s, "slices", [1, 2]), "image stack of shape"),
    ],
)
def test_an_adapter_that_breaks_the_contract_is_named(tmp_path, change, message):
    class Broken(Toy):
        def load(self, case, modality):
            stack = super().load(case, modality)
            change(stack)
            return stack

    with pytest.raises(UserError, match=f"case [a-e] .*{message}"):
        prepare(Broken(ToyParams(), None), "T1", tmp_path)
    assert leftovers(tmp_path) == []


def test_no_usable_slice(tmp_path):
    class Empty(Toy):
        def load(self, case, modality):
            nothing = np.zeros((0, 8, 6))
            return Stack(nothing, nothing.astype(bool), None, [], ["slice 3: left out, no brain in it"])

    with pytest.raises(UserError, match=r"No usable slice of T1 in toy: [a-e]: slice 3: left out"):
        prepare(Empty(ToyParams(), None), "T1", tmp_path)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("when", ["while writing", "at the end"])
def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch, when):
    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    if when == "while writing":
        original = module._Writer.append
        calls = []

        def append(self, block):
            calls.append(1)
            return full() if len(calls) > 5 else original(self, block)

        monkeypatch.setattr(module._Writer, "append", append)
    else:
        monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        prepare(toy(), "T1", tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert leftovers(tmp_path) == []
    monkeypatch.undo()
    assert len(prepare(toy(), "T1", tmp_path)) == 15


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
def test_a_really_full_device_reports_no_space(tmp_path, monkeypatch):
    original = module._Writer.__init__

    def on_full_device(self, path, dtype):
        original(self, path, dtype)
        self.file.close()
        self.file = open("/dev/full", "wb")

    monkeypatch.setattr(module._Writer, "__init__", on_full_device)
    with pytest.raises(OSError, match="No space left"):
        prepare(toy(), "T1", tmp_path)
    assert leftovers(tmp_path) == []


def test_concurrent_preparation_gives_one_store(tmp_path):
    barrier, found, errors = threading.Barrier(4), [], []

    class Slow(Toy):
        def load(self, case, modality):
            time.sleep(0.01)
            return super().load(case, modality)

    def work():
        barrier.wait()
        try:
            found.append(prepare(Slow(ToyParams(), None), "T1", tmp_path))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len({store.folder for store in found}) == 1
    assert leftovers(tmp_path) == [found[0].folder.name]
    assert len({store.healthy("train").digest for store in found}) == 1


def test_what_nobody_took_up_for_a_month_goes(tmp_path):
    for name, age in (("dead", 40 * 86400), ("alive", 86400)):
        partial = tmp_path / "partial" / f"other-t1-{name}"
        partial.mkdir(parents=True)
        (partial / "images.npy").write_bytes(b"half")
        then = time.time() - age
        for path in (partial / "images.npy", partial):
            os.utime(path, (then, then))
    prepare(toy(), "T1", tmp_path)
    assert [path.name for path in (tmp_path / "partial").iterdir() if path.is_dir()] == ["other-t1-alive"]


def test_preparing_twice_gives_the_same_bytes(tmp_path):
    first, second = (prepare(toy(), "T1", tmp_path / name).folder for name in "xy")
    for name in pixels.ARRAYS:
        assert (first / f"{name}.npy").read_bytes() == (second / f"{name}.npy").read_bytes()


def test_arrays_are_plain_numpy_files(store):
    images = np.load(store.folder / "images.npy", mmap_mode="r")
    assert images.shape == (15, 8, 6)
    assert images.dtype == np.float16
