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
from small_search import Begun, Settings, Trial

from adbench.config import run_config
from adbench.datasets.selection import InsertedSet
from adbench.datasets.slices import LabelledSet
from adbench.datasets.store.slice_store import SliceStore
from adbench.datasets.synthetic_lesions import SyntheticLesionParams
from adbench.errors import UserError
from adbench.runner.plan import Data, plan
from adbench.tune.task import Role, Task, fewer, runs

ARRAYS = ("images", "brains", "lesions")


def case_files(store: SliceStore, rows: np.ndarray) -> set[Path]:
    """The files of the cases that have one of ``rows``."""
    return {store.files[index] for index in store.owner(rows).tolist()}


@pytest.fixture
def data(settings: Settings, tmp_path: Path) -> Data:
    (planned,) = plan(run_config.cells(settings("histeq")), tmp_path / "runs", tmp_path / "cache")
    return planned.data


def test_rows_as_stretches() -> None:
    assert runs([4, 2, 3, 9, 9]) == [(2, 5), (9, 10)]


def test_roles_open_to_the_same_slices_and_digests(data: Data) -> None:
    assert data.val is not None
    inserted = InsertedSet(data.train_store, data.val.rows, SyntheticLesionParams(share=0.7, seed=3))
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
    opened = Role.of(data.threshold, data.test_store).open()
    opened.images()
    lines = Path("/proc/self/maps").read_text().splitlines()
    mapped = {Path(line.split(maxsplit=5)[5]) for line in lines if line.endswith(".case")}
    assert mapped >= case_files(data.test_store, data.threshold.rows)
    assert not mapped & case_files(data.test_store, data.test.rows)


@contextmanager
def _watched(monkeypatch: pytest.MonkeyPatch, reads: set[Path]) -> Iterator[None]:
    """Every way in which this package opens pixels is noted."""
    plain = mmap.mmap

    def mapped(descriptor: int, length: int, *, access: int) -> mmap.mmap:
        reads.add(Path(f"/proc/self/fd/{descriptor}").readlink())
        return plain(descriptor, length, access=access)

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
    reads: set[Path] = set()
    with _watched(monkeypatch, reads):
        assert trial(folder, 0, {})[-1]["share"] == 100
    store = SliceStore.open(Path(task.train.store))
    assert reads >= case_files(store, data.train.rows)
    assert not {path.name for path in reads} & {file.name for file in case_files(store, data.test.rows)}


def _ruin(store: SliceStore, rows: np.ndarray) -> None:
    """Write nonsense over the cases of ``rows``, as if nothing had happened to the files."""
    for file in case_files(store, rows):
        state, content = file.stat(), np.frombuffer(file.read_bytes(), np.uint8)
        file.write_bytes((content ^ 1).tobytes())
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))


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
    with pytest.raises(UserError, match=r"the images of case .* were changed after preparation"):
        SliceStore.open(planned.data.test_store.folder).images[planned.data.test.rows]
    (tmp_path / "run.yaml").write_text(private.to_yaml())
    code, _, err = cli("run", "--config", tmp_path / "run.yaml", "--quiet")
    assert code == 2
    assert "was changed after preparation" in " ".join(err.split())


def test_the_task_names_no_test_row(settings: Settings, begun: Begun, data: Data) -> None:
    folder, _ = begun(settings())
    task = Task.read(folder)
    assert task.val is not None
    for role in (task.train, task.val, task.select):
        named = np.concatenate([np.arange(low, high) for low, high in role.rows])
        assert not set(named.tolist()) & set(data.test.rows.tolist())
