"""A preparation that is killed before any call that changes the disk, or whose disk fills up, ends as the same store."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_brats

from adbench.datasets.store import case_file
from adbench.datasets.store.prepare import prepare
from adbench.datasets.store.slice_store import SliceStore
from adbench.datasets.validation.check import CheckReport, check_stores
from adbench.errors import UserError

CALLS = ("replace", "rename", "unlink", "fsync")
KILLED, FULL, SAID = 9, 2, 3


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return small_brats.write(tmp_path / "data", 2, kinds=("flair",))


def prepared(root: Path, cache: Path) -> SliceStore:
    return prepare(small_brats.dataset(root), "FLAIR", cache, workers=1)


def content(store: SliceStore) -> dict[str, Any]:
    return {"manifest": store.manifest, "cases": [file.read_bytes() for file in store.files]}


def child_of(work: Callable[[], object]) -> int:
    """A process that does ``work`` and exits with 0, with 2 when the disk took no more, with 3 when it ended in a sentence."""
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        except OSError as error:
            code = FULL if error.errno in case_file.FULL else 1
        except UserError as error:
            code = SAID if any(word in str(error) for word in ("removed", "No such file", "is incomplete")) else 1
        finally:
            os._exit(code)
    return child


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*.tmp")]


def test_killed_before_every_call_that_changes_the_disk(root: Path, tmp_path: Path) -> None:
    whole = content(prepared(root, tmp_path / "whole"))
    left_some = 0
    for number in range(200):
        cache = tmp_path / str(number)

        def die(number: int = number, cache: Path = cache) -> None:
            left = iter(range(number))

            def dying(call: Callable[..., Any]) -> Callable[..., Any]:
                def counted(*args: Any, **named: Any) -> Any:
                    if next(left, None) is None:
                        os._exit(KILLED)
                    return call(*args, **named)

                return counted

            for name in CALLS:
                setattr(os, name, dying(getattr(os, name)))
            prepared(root, cache)

        code = ended(child_of(die))
        left_some += bool(leftovers(cache))
        assert content(prepared(root, cache)) == whole
        assert leftovers(cache) == []
        if code == 0:
            break
        assert code == KILLED
    assert number >= 9  # two cases and the manifest: flushed, renamed, the temporary name removed
    assert left_some >= 5


def test_a_disk_that_takes_files_of_growing_size(root: Path, tmp_path: Path) -> None:
    whole = prepared(root, tmp_path / "whole")
    longest = max(path.stat().st_size for path in (tmp_path / "whole").rglob("*") if path.is_file())
    for size in [0, 100, *range(4000, longest, longest // 8), longest]:
        cache = tmp_path / str(size)

        def full(size: int = size, cache: Path = cache) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            prepared(root, cache)

        assert ended(child_of(full)) == (0 if size == longest else FULL)
        assert leftovers(cache) == []
        assert content(prepared(root, cache)) == content(whole)


def test_a_disk_that_is_full_when_it_flushes(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device"):  # of which the command line makes a sentence
            prepared(root, tmp_path / "cache")
    assert leftovers(tmp_path) == []
    assert content(prepared(root, tmp_path / "cache")) == content(prepared(root, tmp_path / "whole"))


@pytest.mark.parametrize("first", ["cases/*/*/.lock", "cases/*/*.case", "stores/*/manifest.json"])
def test_a_cache_that_is_deleted_while_two_prepare_it(root: Path, tmp_path: Path, first: str) -> None:
    cache = tmp_path / "cache"
    children = [child_of(lambda: prepared(root, cache)) for _ in range(2)]
    deadline = time.monotonic() + 20
    while not any(cache.glob(first)) and time.monotonic() < deadline:
        time.sleep(0.002)
    shutil.rmtree(cache, ignore_errors=True)
    assert {ended(child) for child in children} <= {0, SAID}
    assert content(prepared(root, cache)) == content(prepared(root, tmp_path / "whole"))


def test_a_changed_end_of_a_case_file_is_found_before_it_is_used(root: Path, tmp_path: Path) -> None:
    """Another store of the same recipe would take what it says over."""
    first = prepared(root, tmp_path / "cache")
    whole = first.files[0].read_bytes()
    place = whole.index(b'"lesion_voxels": [') + 18
    first.files[0].write_bytes(whole[:place] + b"7" + whole[place + 1 :])
    (first.folder / "manifest.json").unlink()
    assert prepared(root, tmp_path / "cache").manifest == first.manifest
    assert first.files[0].read_bytes() == whole
    first.files[0].write_bytes(whole[:place] + b"7" + whole[place + 1 :])
    report = CheckReport("brats21", str(root), False)
    check_stores(small_brats.dataset(root), tmp_path / "cache", report)
    (finding,) = (finding for finding in report.issues if finding.code == "damaged-store")
    assert f"what it says of case {first.cases[0].id} was changed after preparation" in finding.message
