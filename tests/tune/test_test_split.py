"""No test slice is opened during a search: by construction, by watching every read, and by what the numbers say."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib import format as npy
from small_search import Begun, Settings, Trial

from adbench.config import run_config
from adbench.datasets.selection import InsertedSet
from adbench.datasets.slices import LabelledSet
from adbench.datasets.store.slice_store import SliceStore
from adbench.datasets.synthetic_lesions import PseudoParams
from adbench.errors import UserError
from adbench.runner.plan import Data, plan
from adbench.tune.task import Role, Task, fewer, runs

ARRAYS = ("images", "brains", "lesions")


@pytest.fixture
def data(settings: Settings, tmp_path: Path) -> Data:
    (planned,) = plan(run_config.cells(settings("histeq")), tmp_path / "runs", tmp_path / "cache")
    return planned.data


def test_rows_as_stretches() -> None:
    assert runs([4, 2, 3, 9, 9]) == [(2, 5), (9, 10)]


def test_roles_open_to_the_same_slices_and_digests(data: Data) -> None:
    assert data.val is not None
    inserted = InsertedSet(data.train_store, data.val.rows, PseudoParams(share=0.7, seed=3))
    for slices in (data.train, data.val, data.threshold, inserted, fewer(data.threshold, 3), fewer(inserted, 2)):
        again = Role.of(slices, data.train_store).open()
        assert type(again) is type(slices)
        assert again.digest == slices.digest
        assert (again.images() == slices.images()).all()
        assert (again.brains() == slices.brains()).all()
        assert again.subjects == slices.subjects
        batch, expected = again.batch(slice(0, 2)), slices.batch(slice(0, 2))
        assert (batch.image == expected.image).all()
        assert (batch.subjects, batch.slices) == (expected.subjects, expected.slices)
        if hasattr(slices, "lesions"):
            assert (again.lesions() == slices.lesions()).all()  # type: ignore[attr-defined]
            assert (again.lesion_voxels == slices.lesion_voxels).all()  # type: ignore[attr-defined]
    assert len(fewer(data.threshold, 3)) == 3


def test_a_test_slice_cannot_be_asked_for(data: Data) -> None:
    opened = Role.of(data.threshold, data.test_store).open()
    assert isinstance(opened, LabelledSet)
    store, test = opened._store, data.test.rows
    assert len(store.rows("test")) == 0
    assert {case.split for case in store.cases} == {"val"}
    for arrays in (store, opened._pixels):
        for name in ARRAYS:
            if hasattr(arrays, name):
                with pytest.raises(IndexError, match="belongs to no case that is open here"):
                    getattr(arrays, name)[test]
    with pytest.raises(IndexError):
        store.case_of(int(test[0]))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc/self/maps on this system")
def test_the_bytes_of_test_slices_are_not_even_mapped(data: Data) -> None:
    role = Role.of(data.threshold, data.test_store)
    opened = role.open()
    opened.images()
    path = Path(role.store) / "images.npy"
    first, last = _byte_range(path, data.test.rows)
    mapped = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] == str(path):
            low, high = (int(end, 16) for end in fields[0].split("-"))
            offset = int(fields[2], 16)
            overlap = min(last, offset + high - low) - max(first, offset)
            assert overlap < 2 * os.sysconf("SC_PAGE_SIZE")  # a mapping starts and ends on whole pages
            mapped += high - low
    assert mapped > 0


def _byte_range(path: Path, rows: np.ndarray) -> tuple[int, int]:
    with open(path, "rb") as file:
        npy.read_magic(file)
        (_, *shape), _, dtype = npy.read_array_header_1_0(file)
        start = file.tell()
    size = int(np.prod(shape)) * dtype.itemsize
    return start + int(rows.min()) * size, start + (int(rows.max()) + 1) * size


@contextmanager
def _watched(monkeypatch: pytest.MonkeyPatch, reads: list[tuple[Path, int, int]]) -> Iterator[None]:
    """Every way in which this package opens an array is noted: file, first byte, byte after the last."""
    plain = mmap.mmap

    def mapped(descriptor: int, length: int, *, access: int, offset: int) -> mmap.mmap:
        reads.append((Path(f"/proc/self/fd/{descriptor}").readlink(), offset, offset + length))
        return plain(descriptor, length, access=access, offset=offset)

    def whole(path: Any, *_: Any, **__: Any) -> Any:
        raise AssertionError(f"{path} was opened whole")

    with monkeypatch.context() as patched:
        patched.setattr(mmap, "mmap", mapped)
        patched.setattr(np, "load", whole)
        patched.setattr(np, "fromfile", whole)
        yield


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc/self/fd on this system")
@pytest.mark.parametrize("objective", ["val_auprc", "pseudo", "recon"])
def test_trials_read_no_byte_of_a_test_slice(
    objective: str, settings: Settings, begun: Begun, trial: Trial, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, task = begun(settings(), objective=objective)
    reads: list[tuple[Path, int, int]] = []
    with _watched(monkeypatch, reads):
        assert trial(folder, 0, {})[-1]["share"] == 100
    store = Path(task.train.store)
    closed = {name: _byte_range(store / f"{name}.npy", data.test.rows) for name in ARRAYS}
    assert {path.stem for path, _, _ in reads} >= {"images", "brains"}
    for path, low, high in reads:
        first, last = closed[path.stem]
        assert high <= first or low >= last, f"{path.name}: bytes {low} to {high} touch the test slices"


def _ruin(store: SliceStore, rows: np.ndarray) -> None:
    """Write nonsense over ``rows`` of every array, as if nothing had happened to the files."""
    for name in ARRAYS:
        path = store.folder / f"{name}.npy"
        times = path.stat().st_mtime_ns
        array = np.lib.format.open_memmap(path, "r+")
        array[rows] = np.nan if name == "images" else ~array[rows]
        array.flush()
        del array
        os.utime(path, ns=(times, times))


def test_ruined_test_slices_change_nothing(
    settings: Settings, begun: Begun, trial: Trial, cli: Callable[..., Any], tmp_path: Path
) -> None:
    private = settings().model_copy(update={"cache": str(tmp_path / "own cache")})
    points: list[dict[str, Any]] = [{}, {"lr": 5e-3, "sigma": 1.0}]
    (folder, _), (other, _) = begun(private), begun(private)
    before = [trial(folder, number, point) for number, point in enumerate(points)]
    (planned,) = plan(run_config.cells(private), tmp_path / "runs", tmp_path / "own cache")
    _ruin(planned.data.test_store, planned.data.test.rows)
    assert [trial(other, number, point) for number, point in enumerate(points)] == before
    # The ruin is real: whoever opens a test slice notices.
    with pytest.raises(UserError, match=r"images\.npy: the pixels of case .* were changed after preparation"):
        SliceStore.open(planned.data.test_store.folder).images[planned.data.test.rows]
    (tmp_path / "run.yaml").write_text(private.to_yaml())
    code, _, err = cli("run", "--config", tmp_path / "run.yaml", "--quiet")
    assert code == 2
    assert "were changed after preparation" in " ".join(err.split())


def test_the_task_names_no_test_row(settings: Settings, begun: Begun, data: Data) -> None:
    folder, _ = begun(settings())
    task = Task.read(folder)
    assert task.val is not None
    for role in (task.train, task.val, task.select):
        named = np.concatenate([np.arange(low, high) for low, high in role.rows])
        assert not set(named.tolist()) & set(data.test.rows.tolist())
