"""Stores that are prepared in parallel, are interrupted, meet bad files and full disks, and always end as the same store."""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import small_brats

from adbench.context import Progress
from adbench.datasets.base import Case, Stack
from adbench.datasets.store import workers
from adbench.datasets.store.prepare import prepare, prepare_all
from adbench.datasets.store.slice_store import SliceStore
from adbench.errors import UserError

BOTH = ("FLAIR", "T1")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return small_brats.write(tmp_path / "Läsionen of Zoë")


def content(store: SliceStore) -> dict[str, object]:
    """Everything a store says and holds."""
    return {"manifest": store.manifest, "cases": [file.read_bytes() for file in store.files]}


def test_serial_parallel_and_one_by_one_give_the_same_store(root: Path, tmp_path: Path) -> None:
    dataset = small_brats.dataset(root)
    serial = prepare_all(dataset, BOTH, tmp_path / "a", workers=1)
    parallel = prepare_all(dataset, BOTH, tmp_path / "b", workers=2)
    single = prepare(dataset, "FLAIR", tmp_path / "c", workers=1)
    assert content(serial["FLAIR"]) == content(parallel["FLAIR"]) == content(single)
    assert content(serial["T1"]) == content(parallel["T1"])
    assert not list((tmp_path / "b").rglob("*.tmp"))
    assert len(serial["FLAIR"].cases) == 6


def test_a_mask_is_decoded_once_for_all_sequences(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adbench.datasets.adapters import volume_reader
    from adbench.datasets.io import nifti

    read = []
    monkeypatch.setattr(
        volume_reader.nifti,
        "read",
        lambda file, original=nifti.read, **more: read.append(file.name) or original(file, **more),
    )
    prepare_all(small_brats.dataset(root), BOTH, tmp_path, workers=1)
    assert len(read) == len(set(read)) == 6 * 3


def test_the_manifest_knows_its_sources(root: Path, tmp_path: Path) -> None:
    import hashlib

    store = prepare(small_brats.dataset(root), "FLAIR", tmp_path, workers=1)
    assert len(store.manifest["sources"]) == 12
    for source in store.manifest["sources"]:
        file = Path(source["file"])
        assert source["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert source["bytes"] == file.stat().st_size
    steps = [step["step"] for step in store.manifest["recipe"]["steps"]]
    assert steps == ["orient", "brain", "intensity", "slices", "square", "resize", "version"]


def test_killed_in_the_middle_it_goes_on_to_the_same_store(root: Path, tmp_path: Path) -> None:
    whole = prepare(small_brats.dataset(root), "FLAIR", tmp_path / "whole", workers=1)
    killed = tmp_path / "killed"
    script = (
        "import os, signal, sys; from pathlib import Path; import small_brats\n"
        "from adbench.context import Progress; from adbench.datasets.store.prepare import prepare\n"
        "class Die(Progress):\n"
        "    def update(self, phase, done, total, **figures):\n"
        "        if done == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "prepare(small_brats.dataset(Path(sys.argv[1])), 'FLAIR', Path(sys.argv[2]), Die(), workers=1)\n"
    )
    there = [str(Path(small_brats.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(there)}
    done = subprocess.run([sys.executable, "-c", script, str(root), str(killed)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(killed.glob("cases/*/*.case"))) == 3
    assert not list(killed.glob("stores/*"))
    loaded = []
    dataset = small_brats.dataset(root)
    dataset.load = lambda case, modality, original=dataset.load: loaded.append(case.id) or original(case, modality)  # type: ignore[method-assign]
    assert content(prepare(dataset, "FLAIR", killed, workers=1)) == content(whole)
    assert loaded == [case.id for case in whole.cases[3:]]


def test_workers_of_a_killed_preparation_end_and_their_cases_are_kept(root: Path, tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; import small_brats\n"
        "from adbench.context import Progress; from adbench.datasets.store.prepare import prepare_all\n"
        "class Die(Progress):\n"
        "    def update(self, phase, done, total, **figures):\n"
        "        if done == 3: os.kill(os.getpid(), 9)\n"
        "if __name__ == '__main__':\n"
        "    prepare_all(small_brats.dataset(Path(sys.argv[1])), ('FLAIR', 'T1'), Path(sys.argv[2]), Die(), workers=2)\n"
    )
    path = tmp_path / "script.py"
    path.write_text(script)
    there = [str(Path(small_brats.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(there)}
    process = subprocess.Popen([sys.executable, str(path), str(root), str(tmp_path / "cache")], env=environment, start_new_session=True)  # fmt: skip
    assert process.wait(120) == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:  # the session is empty once the workers have noticed
        with suppress(ChildProcessError):  # this process adopts them where a run within it asked for that
            os.waitpid(-process.pid, os.WNOHANG)
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        pytest.fail("workers outlived their parent")
    stores = prepare_all(small_brats.dataset(root), BOTH, tmp_path / "cache", workers=1)
    whole = prepare_all(small_brats.dataset(root), BOTH, tmp_path / "whole", workers=1)
    assert {name: content(store) for name, store in stores.items()} == {name: content(store) for name, store in whole.items()}  # fmt: skip


def test_one_changed_byte_prepares_that_case_alone(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare(small_brats.dataset(root), "FLAIR", tmp_path, workers=1)
    image = next(root.glob("*00002/*flair*"))
    other = small_brats.write(tmp_path / "other", 4) / "BraTS2021_00003" / "BraTS2021_00003_flair.nii.gz"
    image.write_bytes(other.read_bytes())
    for untouched in root.glob("*00001/*"):  # a new time and the same bytes is no change
        os.utime(untouched)
    loaded = []
    load = small_brats.BraTS21.load
    monkeypatch.setattr(small_brats.BraTS21, "load", lambda self, case, modality: loaded.append(case.id) or load(self, case, modality))  # fmt: skip
    second = prepare(small_brats.dataset(root), "FLAIR", tmp_path, workers=1)
    assert loaded == ["BraTS2021_00002"]
    fresh = prepare(small_brats.dataset(root), "FLAIR", tmp_path / "fresh", workers=1)
    assert content(second) == content(fresh)
    assert second.folder != first.folder
    changed = [a.id for a, b in zip(first.cases, second.cases, strict=True) if a.digests != b.digests]
    assert changed == ["BraTS2021_00002"]


@pytest.mark.parametrize("how", ["written over", "put in its place"])
def test_other_voxels_of_the_same_size_and_time_are_noticed(root: Path, tmp_path: Path, how: str) -> None:
    for packed in root.rglob("*.nii.gz"):
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
    image = next(root.glob("*00002/*flair.nii"))
    first = prepare(small_brats.dataset(root), "FLAIR", tmp_path, workers=1)
    before, other = image.stat(), next(root.glob("*00003/*flair.nii")).read_bytes()
    assert len(other) == before.st_size
    if how == "written over":
        image.write_bytes(other)
    else:
        image.with_suffix(".new").write_bytes(other)
    changed = image if how == "written over" else image.with_suffix(".new")
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    changed.replace(image)
    assert (image.stat().st_size, image.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    second = prepare(small_brats.dataset(root), "FLAIR", tmp_path, workers=1)
    differ = [
        a.id for a, b in zip(first.cases, second.cases, strict=True) if a.digests["images"] != b.digests["images"]
    ]
    assert differ == ["BraTS2021_00002"]


def test_cases_are_prepared_on_one_thread(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from threadpoolctl import threadpool_info, threadpool_limits

    def counts() -> set[int]:
        return {library["num_threads"] for library in threadpool_info()}

    seen: list[tuple[set[int], str]] = []
    load = small_brats.BraTS21.load
    monkeypatch.setattr(small_brats.BraTS21, "load", lambda self, case, modality: seen.append((counts(), os.environ["OMP_NUM_THREADS"])) or load(self, case, modality))  # fmt: skip
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with threadpool_limits(2):
        assert counts() == {2}
        prepare(small_brats.dataset(root), "FLAIR", tmp_path, workers=1)
        assert counts() == {2}
    assert seen == [({1}, "1")] * 6
    assert os.environ["OMP_NUM_THREADS"] == "2"


def test_another_split_shares_every_case(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare(small_brats.dataset(root), "FLAIR", tmp_path, workers=1)
    monkeypatch.setattr(small_brats.BraTS21, "load", lambda *_: pytest.fail("it decoded again"))
    again = prepare(small_brats.dataset(root, split_seed=5, exclude=("BraTS2021_00001",)), "FLAIR", tmp_path, workers=1)
    assert len(again.cases) == 5
    assert set(again.files) < set(first.files)


def test_moved_data_share_every_case(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare(small_brats.dataset(root), "FLAIR", tmp_path / "c", workers=1)
    moved = shutil.copytree(root, tmp_path / "elsewhere")
    monkeypatch.setattr(small_brats.BraTS21, "load", lambda *_: pytest.fail("it decoded again"))
    again = prepare(small_brats.dataset(moved), "FLAIR", tmp_path / "c", workers=1)
    assert again.files == first.files
    assert again.folder != first.folder


def test_another_sequence_beside_it_changes_no_case(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare(small_brats.dataset(root), "FLAIR", tmp_path, workers=1)
    for image in root.rglob("*_t1.nii.gz"):
        shutil.copy(image, image.with_name(image.name.replace("_t1", "_t2")))
    monkeypatch.setattr(small_brats.BraTS21, "load", lambda *_: pytest.fail("it decoded again"))
    assert prepare(small_brats.dataset(root, split_seed=3), "FLAIR", tmp_path, workers=1).files[0] in first.files


def test_a_failing_case_is_reported_and_the_rest_goes_on(root: Path, tmp_path: Path) -> None:
    broken = next(root.glob("*00003/*flair*"))
    good = broken.read_bytes()
    broken.write_bytes(good[: len(good) // 2])
    with pytest.raises(
        UserError, match=r"1 of 6 cases of brats21 could not be prepared: .*00003_flair.*truncated"
    ) as caught:
        prepare_all(small_brats.dataset(root), BOTH, tmp_path, workers=2)
    assert "The other 5 are kept" in str(caught.value)
    assert "--set dataset.exclude=[BraTS2021_00003]" in str(caught.value)
    (listed,) = tmp_path.glob("cases/*/failures.json")
    assert str(listed) in str(caught.value)
    failures = json.loads(listed.read_text())
    assert failures[0]["case"] == "BraTS2021_00003"
    assert "Traceback" in failures[0]["trace"]
    left_out = prepare(small_brats.dataset(root, exclude=("BraTS2021_00003",)), "FLAIR", tmp_path, workers=1)
    assert len(left_out.cases) == 5
    assert any("dataset.exclude" in remark for remark in left_out.manifest["remarks"])
    broken.write_bytes(good)
    repaired = prepare(small_brats.dataset(root), "FLAIR", tmp_path, workers=1)
    assert len(repaired.cases) == 6
    assert not listed.exists()


def test_a_failure_keeps_what_comes_after_it(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also without a change on disk: the case may have failed for lack of memory."""
    whole = prepare(small_brats.dataset(root), "FLAIR", tmp_path / "whole", workers=1)
    load = small_brats.BraTS21.load

    def hungry(self, case, modality):
        if case.id == whole.cases[1].id:
            raise MemoryError
        return load(self, case, modality)

    monkeypatch.setattr(small_brats.BraTS21, "load", hungry)
    with pytest.raises(
        UserError, match=r"case BraTS2021_\d+: out of memory; prepare fewer cases at a time with --workers 1"
    ):
        prepare(small_brats.dataset(root), "FLAIR", tmp_path / "c", workers=1)
    loaded = []
    monkeypatch.setattr(small_brats.BraTS21, "load", lambda self, case, modality: loaded.append(case.id) or load(self, case, modality))  # fmt: skip
    assert content(prepare(small_brats.dataset(root), "FLAIR", tmp_path / "c", workers=1)) == content(whole)
    assert loaded == [whole.cases[1].id]


@pytest.mark.parametrize("count", [1, 2])
def test_a_full_disk_stops_and_the_next_attempt_goes_on(root: Path, tmp_path: Path, count: int) -> None:
    """With one process and with several: what a worker meets reaches the process that waits for it."""
    dataset = small_brats.dataset(root)
    dataset.__class__ = FullDisk  # which a worker can import
    with pytest.raises(OSError, match="No space left"):
        prepare(dataset, "FLAIR", tmp_path / "c", workers=count)
    there = len(list((tmp_path / "c").glob("cases/*/*.case")))
    loaded = []
    dataset = small_brats.dataset(root)
    dataset.load = lambda case, modality, original=dataset.load: loaded.append(case.id) or original(case, modality)  # type: ignore[method-assign]
    store = prepare(dataset, "FLAIR", tmp_path / "c", workers=1)
    assert "BraTS2021_00003" in loaded
    assert len(loaded) <= 6 - there  # a worker may have finished another case meanwhile
    assert content(store) == content(prepare(small_brats.dataset(root), "FLAIR", tmp_path / "whole", workers=1))


class FullDisk(small_brats.BraTS21):
    """The disk is full when the fourth case is prepared."""

    def load(self, case: Case, modality: str) -> Stack:
        if case.id == "BraTS2021_00003":
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().load(case, modality)


def test_bytes_that_a_power_failure_lost_are_prepared_again(root: Path, tmp_path: Path) -> None:
    whole = prepare(small_brats.dataset(root), "FLAIR", tmp_path / "whole", workers=1)

    class Stop(Progress):
        def update(self, phase, done, total, **figures):
            if done == 4:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(small_brats.dataset(root), "FLAIR", tmp_path / "c", Stop(), workers=1)
    short, empty, *_ = sorted((tmp_path / "c").glob("cases/*/*.case"))
    os.truncate(short, short.stat().st_size // 2)
    os.truncate(empty, 0)
    assert content(prepare(small_brats.dataset(root), "FLAIR", tmp_path / "c", workers=1)) == content(whole)


def test_a_damaged_case_is_refused_by_every_store_that_shares_it(root: Path, tmp_path: Path) -> None:
    first = prepare(small_brats.dataset(root), "FLAIR", tmp_path, workers=1)
    damaged = first.files[-1]
    with open(damaged, "r+b") as file:
        file.seek(5000)
        file.write(b"\xff" * 100)
    again = prepare(small_brats.dataset(root, split_seed=9), "FLAIR", tmp_path, workers=1)
    with pytest.raises(
        UserError, match=f"{damaged}: the images of case .* Delete {damaged}, then `adbench data prepare` or a run"
    ):
        again.images[:]
    damaged.unlink()
    repaired = prepare(small_brats.dataset(root, split_seed=9), "FLAIR", tmp_path, workers=1)
    fresh = prepare(small_brats.dataset(root, split_seed=9), "FLAIR", tmp_path / "fresh", workers=1)
    assert content(repaired) == content(fresh)
    assert not any(fault for _, fault in repaired.faults())


def test_disk_space_is_asked_for_before_anything_is_prepared(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(small_brats.BraTS21, "load", lambda *_: pytest.fail("it began"))
    needed = 2 * 6 * 150 * 32 * 32 * 4 / 1e9
    with pytest.raises(UserError, match=rf"needs about {needed:.1f} GB more in .*0\.0 GB are free.*dataset\.size=128"):
        prepare_all(small_brats.dataset(root), BOTH, tmp_path)


def test_disk_space_is_asked_for_on_the_way(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there already is not counted again."""
    usage = shutil.disk_usage(tmp_path)
    free = iter([10**9, 10**9, 1000, 1000])
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda _: usage._replace(free=next(free, 10**6)))
    with pytest.raises(UserError, match=r"needs about .* GB more.*What is finished is kept"):
        prepare(small_brats.dataset(root), "FLAIR", tmp_path, workers=1)
    assert len(list(tmp_path.glob("cases/*/*.case"))) == 2
    each = small_brats.dataset(root).disk_per_case
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda _: usage._replace(free=4 * each))
    assert len(prepare(small_brats.dataset(root), "FLAIR", tmp_path, workers=1).cases) == 6


def test_case_files_of_other_data_are_no_room_on_the_disk(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another root of the same recipe left as many as are wanted now, and none of these is among them."""
    prepare(small_brats.dataset(root), "FLAIR", tmp_path / "c", workers=1)
    other = tmp_path / "other"
    for number in range(6):
        name = f"BraTS2021_{number + 3:05d}"
        shutil.copytree(root / f"BraTS2021_{number:05d}", other / name)
        for file in (other / name).iterdir():
            file.rename(file.with_name(file.name.replace(f"{number:05d}", f"{number + 3:05d}")))
    each = small_brats.dataset(root).disk_per_case
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(small_brats.BraTS21, "load", lambda *_: pytest.fail("it began"))
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda _: usage._replace(free=int(5.5 * each)))
    with pytest.raises(UserError, match=rf"needs about {6 * each / 1e9:.1f} GB more"):
        prepare(small_brats.dataset(other), "FLAIR", tmp_path / "c", workers=1)


def test_memory_limits_the_workers(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = small_brats.dataset(root)
    monkeypatch.setattr(workers, "cores", lambda: 64)
    monkeypatch.setattr(workers, "free_memory", lambda: 5_000_000_000)
    assert workers.worker_count(dataset, None, 100) == 3
    assert workers.worker_count(dataset, None, 2) == 1  # not worth two processes
    assert workers.worker_count(dataset, 7, 100) == 7
    monkeypatch.setattr(workers, "free_memory", lambda: 10)
    assert workers.worker_count(dataset, None, 100) == 1
    monkeypatch.undo()
    assert workers.free_memory() > 0


@pytest.mark.parametrize(("start", "elsewhere"), [(60.0, []), (0.0, [4])])
def test_processes_are_started_where_they_pay(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: float, elsewhere: list[int]
) -> None:
    given: list[int] = []
    start_processes = workers._in_processes
    monkeypatch.setattr(workers, "_in_processes", lambda *a: given.append(len(a[1])) or start_processes(*a))
    monkeypatch.setattr(workers, "START", start)
    monkeypatch.setattr(workers, "cores", lambda: 2)
    store = prepare(small_brats.dataset(root), "FLAIR", tmp_path / "auto")
    assert given == elsewhere
    assert content(store) == content(prepare(small_brats.dataset(root), "FLAIR", tmp_path / "one", workers=1))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_may_not_be_written(root: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o500)
    with pytest.raises(PermissionError):
        prepare(small_brats.dataset(root), "FLAIR", cache, workers=1)


def test_cases_on_other_grids_are_brought_to_one_size(root: Path, tmp_path: Path) -> None:
    from adbench.datasets.io import nifti

    name = "BraTS2021_00009"
    image = np.zeros((20, 24, 18), np.int16)
    image[3:-3, 3:-3, 2:-2] = np.arange(14 * 18 * 14).reshape(14, 18, 14) + 100
    affine = np.diag([12.0, 10.0, 8.0, 1.0])
    for kind in ("flair", "seg"):
        nifti.write(
            root / name / f"{name}_{kind}.nii.gz", image if kind == "flair" else (image > 2000).astype(np.uint8), affine
        )
    store = prepare(small_brats.dataset(root), "FLAIR", tmp_path, workers=1)
    assert store.shape == (32, 32)
    quality = store.case(name).quality
    assert quality["lesion_ml"] == pytest.approx(quality["lesion_ml_source"], rel=0.05)
