"""The slice store: what was written is what is read, and anything else is refused."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from adbench.context import Progress
from adbench.datasets import pixels
from adbench.datasets.base import Case, Dataset, DatasetInfo, Stack
from adbench.datasets.pixels import StoredCase
from adbench.datasets.slices import LabelledSet, SliceSet
from adbench.datasets.store import case_file
from adbench.datasets.store.prepare import prepare
from adbench.datasets.store.slice_store import MANIFEST, SliceStore
from adbench.errors import UserError
from adbench.params import ParamSet, param


class ToyParams(ParamSet):
    bright: float = param(0.5, "brightness")


VOXELS = 3 * 8 * 6  # of a case


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


def finished(cache: Path) -> list[str]:
    """Folders of the stores that are complete."""
    return sorted(path.parent.name for path in (cache / "stores").glob(f"*/{MANIFEST}"))


def case_file_of(store: SliceStore, subject: str) -> Path:
    return next(file for case, file in zip(store.cases, store.files, strict=True) if case.subject == subject)


def change(path: Path, position: int, content: bytes) -> None:
    """Write over a part of a file, and give it its old times."""
    state = path.stat()
    with open(path, "r+b") as file:
        file.seek(position)
        file.write(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


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


def test_truncation_is_found(store):
    path = case_file_of(store, "d")
    os.truncate(path, path.stat().st_size - 1)
    message = (
        rf"{path.name} has \d+ bytes where \d+ were written.*Delete .*{path.name}, then `adbench data prepare` or a run"
    )
    with pytest.raises(UserError, match=message):
        SliceStore.open(store.folder)
    os.truncate(path, 100)  # of a store that is open
    with pytest.raises(UserError, match=rf"{path.name} has 100 bytes where {VOXELS * 2} were written.*truncated after"):
        store.images[:]


def test_a_deleted_case_is_prepared_again_and_no_other(store, monkeypatch):
    before = [(file, file.stat().st_ino) for file in store.files]
    path = case_file_of(store, "d")
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(UserError, match=rf"{path.name} is missing"):
        SliceStore.open(store.folder)
    with pytest.raises(UserError, match=rf"{path.name} is missing"):
        store.images[:]
    loaded = []
    load = Toy.load
    monkeypatch.setattr(Toy, "load", lambda self, case, modality: loaded.append(case.id) or load(self, case, modality))
    again = prepare(toy(), "T1", store.folder.parents[1])
    assert loaded == ["d"]
    assert path.read_bytes() == content
    assert [(file, file.stat().st_ino) for file in again.files if file != path] == [
        one for one in before if one[0] != path
    ]


def test_a_changed_byte_is_found_when_its_case_is_read_and_not_before(store):
    path = case_file_of(store, "b")
    content = bytearray(path.read_bytes())
    place = VOXELS * 2 - 40  # in the last slice of the image
    content[place] ^= 1
    change(path, place, content[place : place + 1])
    opened = SliceStore.open(store.folder)
    case = stored(opened, "b")
    message = rf"{path}: the images of case b have the checksum \w+ and were written with {case.checksums['images']}.*Delete {path}, then `adbench data prepare` or a run"
    for split in ("train", "val", "test"):
        slices = opened.healthy(split)
        for read in (slices.images, lambda slices=slices: slices.batch(slice(None))):
            if split == "train":
                with pytest.raises(UserError, match=message):
                    read()
            else:
                read()
    with pytest.raises(UserError, match=message):
        opened.images[case.start]
    ((found, deep),) = [found for found in opened.faults() if found[1]]
    assert found == "b"
    assert f"the SHA-256 {hashlib.sha256(content[: VOXELS * 2]).hexdigest()[:16]}" in deep
    assert f"were written with {case.digests['images'][:16]}" in deep


def test_inverted_masks_with_the_old_time_are_found(store):
    path = case_file_of(store, "d")
    masks = path.read_bytes()[VOXELS * 3 : VOXELS * 4]
    change(path, VOXELS * 3, bytes(1 - value for value in masks))
    test = SliceStore.open(store.folder).labelled("test")
    assert test.brains().any()
    with pytest.raises(UserError, match=r"the lesions of case d have the checksum"):
        test.lesions()


def test_a_copied_cache_is_accepted(store, tmp_path):
    shutil.copytree(store.folder.parents[1], tmp_path / "elsewhere")
    copied = SliceStore.open(tmp_path / "elsewhere" / "stores" / store.folder.name)
    assert list(copied.faults()) == [(case.id, "") for case in store.cases] * 3
    np.testing.assert_array_equal(copied.images[:], store.images[:])


def test_rows_in_any_order_and_more_cases_than_may_be_mapped(store, monkeypatch):
    """All arrays and open stores share what may be mapped, and the least recently used are closed."""
    whole = store.images[:]
    monkeypatch.setattr(pixels, "MAPPED", 3)
    other = SliceStore.open(store.folder)
    for rows in ([14, 0, 7, 7, 3], [2, 1, 0], [], [5]):
        for opened in (store, other):
            np.testing.assert_array_equal(opened.images[np.array(rows, int)], whole[np.array(rows, int)])
            assert opened.brains[:].any()
            arrays = [rows for one in (store, other) for rows in (one.images, one.brains, one.lesions)]
            assert sum(len(rows._blocks) for rows in arrays) <= 3
    for row in (0, 3, 6, 0, 9):  # the first case is used again before a fourth one comes
        store.images[row]
    assert sorted(store.images._blocks) == [0, 2, 3]
    np.testing.assert_array_equal(store.brains[3:8], store.brains[:][3:8])
    with pytest.raises(IndexError, match="row 15 belongs to no case"):
        store.images[np.array([15])]


CROWDED = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[1])))
import numpy as np
from adbench.datasets.adapters.folder import Folder
from adbench.datasets.store.prepare import prepare
from adbench.params import build
store = prepare(Folder(build(Folder.Params, "dataset folder", {}), Path(sys.argv[2])), "T1", Path(sys.argv[3]), workers=1)
rng = np.random.default_rng(0)
sets = [store.healthy(split) for split in ("train", "val")]
for slices in sets:
    images = slices.images()
    order = rng.permutation(len(slices))
    np.testing.assert_array_equal(slices.subset(order).images() if hasattr(slices, "subset") else images[order], images[order])
every, brains = store.images[:], store.brains[:]
order = rng.permutation(len(store))
np.testing.assert_array_equal(store.images[order], every[order])
np.testing.assert_array_equal(store.brains[order], brains[order])
assert not any(fault for _, fault in store.faults())
print(len(store.cases))
"""


def test_more_cases_than_files_may_be_open(tmp_path):
    from PIL import Image

    root = tmp_path / "slices"
    root.mkdir()
    rng = np.random.default_rng(5)
    for number in range(150):
        Image.fromarray(rng.integers(1, 255, (8, 8), np.uint8)).save(root / f"p{number:04d}-slice_3-T1.png")
    done = subprocess.run(
        [sys.executable, "-c", CROWDED, "96", str(root), str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "150\n"), done.stderr


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
    with pytest.raises(UserError, match=r"incomplete: .*manifest\.json is missing"):
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
    assert finished(tmp_path) == []


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
    assert finished(tmp_path) == []


def test_no_usable_slice(tmp_path):
    class Empty(Toy):
        def load(self, case, modality):
            nothing = np.zeros((0, 8, 6))
            return Stack(nothing, nothing.astype(bool), None, [], ["slice 3: left out, no brain in it"])

    with pytest.raises(UserError, match=r"No usable slice of T1 in toy: [a-e]: slice 3: left out"):
        prepare(Empty(ToyParams(), None), "T1", tmp_path)
    assert finished(tmp_path) == []


@pytest.mark.parametrize("what", ["fsync", "replace"])
def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch, what):
    original, calls = getattr(os, what), []

    def full(*arguments, **options):
        calls.append(1)
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*arguments, **options)

    monkeypatch.setattr(os, what, full)
    with pytest.raises(OSError, match="No space left") as caught:
        prepare(toy(), "T1", tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert finished(tmp_path) == []
    assert len(list(tmp_path.glob("cases/*/*.case"))) == 3
    assert not list(tmp_path.rglob("*.tmp"))
    monkeypatch.undo()
    assert len(prepare(toy(), "T1", tmp_path)) == 15


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
def test_a_really_full_device_reports_no_space(tmp_path, monkeypatch):
    from contextlib import nullcontext

    monkeypatch.setattr(case_file, "replacing", lambda path: nullcontext(Path("/dev/full")))
    with pytest.raises(OSError, match="No space left"):
        prepare(toy(), "T1", tmp_path)
    assert finished(tmp_path) == []


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
    assert finished(tmp_path) == [found[0].folder.name]
    assert len({store.healthy("train").digest for store in found}) == 1


def test_case_files_that_no_store_lists_go_after_a_month(tmp_path):
    first = prepare(toy(bright=0.25), "T1", tmp_path)  # listed, however old
    unlisted = tmp_path / "cases" / "other-t1-0123"
    unlisted.mkdir()
    for name in ("old.case", ".half.case.77.tmp", "young.case", "failures.json"):
        (unlisted / name).write_bytes(b"")
    long_ago = time.time() - 40 * 86400
    for path in (*first.files, *(path for path in unlisted.iterdir() if path.name != "young.case")):
        os.utime(path, (long_ago, long_ago))
    prepare(toy(), "T1", tmp_path)
    assert sorted(path.name for path in unlisted.iterdir()) == ["failures.json", "young.case"]
    assert all(file.exists() for file in first.files)


def test_a_case_file_that_is_used_again_during_the_sweep_stays(tmp_path, monkeypatch):
    """Another process uses it after it was found to be old."""
    unlisted = tmp_path / "cases" / "other-t1-0123"
    unlisted.mkdir(parents=True)
    for name in ("used.case", "old.case"):
        (unlisted / name).write_bytes(b"")
        os.utime(unlisted / name, (1, 1))
    (tmp_path / "stores" / "another").mkdir(parents=True)
    (tmp_path / "stores" / "another" / MANIFEST).write_text('{"files": []}')
    read_text = Path.read_text

    def meanwhile(self, **options):
        if self.parent.name == "another":
            os.utime(unlisted / "used.case")
        return read_text(self, **options)

    monkeypatch.setattr(Path, "read_text", meanwhile)
    prepare(toy(), "T1", tmp_path)
    assert [path.name for path in unlisted.iterdir()] == ["used.case"]


def test_a_case_file_that_is_removed_during_the_preparation_is_named(tmp_path):
    class Remove(Progress):
        def update(self, phase, done, total, **figures):
            if done == total == 5:
                sorted(tmp_path.glob("cases/*/*.case"))[0].unlink()

    with pytest.raises(UserError, match=r"\.case was removed while toy was being prepared: run the command again"):
        prepare(toy(), "T1", tmp_path, Remove())
    assert len(prepare(toy(), "T1", tmp_path)) == 15


def test_stores_of_one_recipe_are_prepared_side_by_side_and_the_same_one_waits(tmp_path):
    """Two roots share a recipe and no lock; who has the lock of one's own store is said."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for subject in "abcde":
            (tmp_path / name / f"{subject}.raw").write_bytes(b"x")
    began, go_on, said = threading.Event(), threading.Event(), []

    class Hold(Progress):
        def update(self, phase, done, total, **figures):
            began.set()
            go_on.wait(30)

    class Listen(Progress):
        def update(self, phase, done, total, **figures):
            said.append(phase)
            if "waiting" in phase:
                go_on.set()

    first = threading.Thread(target=prepare, args=(toy(tmp_path / "one"), "T1", tmp_path / "cache", Hold()))
    first.start()
    try:
        assert began.wait(30)
        second = threading.Thread(target=prepare, args=(toy(tmp_path / "two"), "T1", tmp_path / "cache", Listen()))
        second.start()
        second.join(20)
        assert not second.is_alive()
        assert not [phase for phase in said if "waiting" in phase]
        assert not go_on.is_set()
        store = prepare(toy(tmp_path / "one"), "T1", tmp_path / "cache", Listen())
        assert any(f"waiting for process {os.getpid()} on " in phase for phase in said)
        assert len(store) == 15
    finally:
        go_on.set()
        first.join()
    assert len(finished(tmp_path / "cache")) == 2


def test_what_reads_a_store_says_which_command_prepares_it_again(store):
    opened = SliceStore.open(store.folder)
    case_file_of(store, "d").unlink()
    for read in (lambda: SliceStore.open(store.folder), lambda: opened.lesions[:]):
        with pytest.raises(UserError, match=r"is missing.*`adbench data prepare` or a run on this data prepares"):
            read()


def test_stores_of_an_earlier_version_are_left_and_named(tmp_path, caplog):
    older = tmp_path / "stores" / "toy-t1-0123456789abcdef"
    older.mkdir(parents=True)
    (older / "images.npy").write_bytes(b"pixels")
    assert len(prepare(toy(), "T1", tmp_path)) == 15
    assert "earlier version of adbench prepared (toy-t1-0123456789abcdef)" in caplog.text
    assert (older / "images.npy").exists()


def test_preparing_twice_gives_the_same_bytes(tmp_path):
    first, second = (prepare(toy(), "T1", tmp_path / name) for name in "xy")
    assert [file.read_bytes() for file in first.files] == [file.read_bytes() for file in second.files]
    assert (first.folder / MANIFEST).read_bytes() == (second.folder / MANIFEST).read_bytes()


def test_a_case_file_holds_plain_arrays_one_after_the_other(store):
    path, rows = case_file_of(store, "c"), stored(store, "c").rows
    images = np.fromfile(path, np.float16, VOXELS).reshape(3, 8, 6)
    masks = np.fromfile(path, bool, 2 * VOXELS, offset=2 * VOXELS).reshape(2, 3, 8, 6)
    np.testing.assert_array_equal(images, store.images[rows])
    np.testing.assert_array_equal(masks, [store.brains[rows], store.lesions[rows]])
    assert case_file.read_case(path)["manifest"]["slices"] == [4, 7, 9]
