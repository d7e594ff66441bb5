"""Preparing cases, one after the other or many at a time: what a worker does, and the pools that make workers do it.

A task is one case with all its wanted modalities, so that a worker decodes its mask once. A worker leaves what it
prepared in a file and reports a few numbers: the process that waits for it holds no pixels.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any, Literal

import numpy as np

from adbench.datasets.base import Case, Dataset, Stack
from adbench.datasets.io.archive import digest_of, state_of
from adbench.datasets.store.pixels import ARRAYS, digest_block
from adbench.datasets.store.slice_store import NO_SLICE
from adbench.errors import UserError
from adbench.utils import threads
from adbench.utils.files import replacing, write_json

Executor = Literal["processes", "ray"]
Blocks = dict[str, np.ndarray]


@dataclass(frozen=True)
class Task:
    """One case to prepare.

    Attributes:
        wanted: (modality, the case as its dataset describes it for that modality, folder for what was prepared).
    """

    wanted: tuple[tuple[str, Case, Path], ...]


@dataclass
class Prepared:
    """What became of one case and modality.

    Attributes:
        modality: of it.
        case: its id.
        record: what the manifest says of the case, without its first row; None when no slice is left or it failed.
        remarks: what was left out and why.
        sources: name, state (:func:`adbench.datasets.io.archive.state_of`) and SHA-256 of every file.
        blocks: the pixels; None when they lie in a file.
        problem: why it failed, one sentence; "" when it did not.
        trace: of the failure.
    """

    modality: str
    case: str
    record: dict[str, Any] | None = None
    remarks: list[str] = field(default_factory=list)
    sources: list[dict[str, Any]] = field(default_factory=list)
    blocks: Blocks | None = None
    problem: str = ""
    trace: str = ""

    def entry(self) -> dict[str, Any]:
        """Everything but the pixels and failures, as JSON."""
        return {"case": self.case, "record": self.record, "remarks": self.remarks, "sources": self.sources}


def run(dataset: Dataset, task: Task, *, spill: bool) -> list[Prepared]:
    """Prepare one case. A failure is an answer, not an exception, unless it would meet every other case too.

    One thread computes: sums of several end in other digits, and two machines would prepare different bytes.

    Args:
        dataset: of the case.
        task: what is wanted.
        spill: leave the pixels in files.

    Raises:
        OSError: the disk is full or not writable.
    """
    done = []
    for modality, case, folder in task.wanted:
        try:
            with threads.limited(1, load_torch=False):
                prepared = _prepare(dataset, modality, case)
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise
            problem = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            if isinstance(error, MemoryError):
                problem = "out of memory; prepare fewer cases at a time with --workers 1"
            if case.id not in problem:
                problem = f"case {case.id}: {problem}"
            prepared = Prepared(modality, case.id, problem=problem, trace=traceback.format_exc())
        else:
            if spill:
                write_part(folder, prepared)
                prepared.blocks = None
        done.append(prepared)
    return done


def _prepare(dataset: Dataset, modality: str, case: Case) -> Prepared:
    stack = dataset.load(case, modality)
    check(stack, case)
    prepared = Prepared(modality, case.id, remarks=list(stack.remarks), sources=sources(case))
    if not len(stack.slices):
        prepared.remarks.append(NO_SLICE)
        return prepared
    lesion = np.zeros_like(stack.brain) if stack.lesion is None else stack.lesion
    blocks = {"images": stack.image, "brains": stack.brain, "lesions": lesion}
    prepared.blocks = {name: np.ascontiguousarray(block, ARRAYS[name]) for name, block in blocks.items()}
    prepared.record = {
        "slices": [int(s) for s in stack.slices],
        "lesion_voxels": lesion.sum(axis=(1, 2)).tolist(),
        "brain_voxels": stack.brain.sum(axis=(1, 2)).tolist(),
        "masked": stack.lesion is not None,
        "digests": {name: digest_block(block) for name, block in prepared.blocks.items()},
        "geometry": None if stack.geometry is None else stack.geometry.to_json(),
        "quality": {name: float(value) for name, value in stack.quality.items()},
    }
    return prepared


def sources(case: Case) -> list[dict[str, Any]]:
    """Name, state and hash of every source file."""
    return [{"file": str(file), **state_of(file), "sha256": digest_of(file)} for file in case.files]


def check(stack: Stack, case: Case) -> None:
    """Hold what an adapter (possibly a stranger's) gave against its contract.

    Raises:
        UserError: names the case and what is wrong.
    """
    where = f"case {case.id} ({case.files[0] if case.files else 'generated'})"
    count = len(stack.slices)
    if stack.image.ndim != 3 or stack.image.shape[0] != count:
        raise UserError(f"{where}: image stack of shape {stack.image.shape}, expected ({count}, H, W).")
    for name, mask in (("brain", stack.brain), ("lesion", stack.lesion)):
        if mask is not None and (mask.shape != stack.image.shape or mask.dtype != np.bool_):
            raise UserError(f"{where}: {name} mask {mask.shape} {mask.dtype}, expected {stack.image.shape} bool.")
    if not np.isfinite(stack.image).all():
        raise UserError(f"{where}: the image holds NaN or infinite values. Repair or remove the file.")
    if count and (stack.image.min() < 0 or stack.image.max() > 1):
        raise UserError(f"{where}: image values from {stack.image.min():g} to {stack.image.max():g}, expected [0, 1].")
    if list(stack.slices) != sorted(set(stack.slices)):
        raise UserError(f"{where}: slice indices must ascend and be unique, got {list(stack.slices)[:8]}.")
    if not np.isfinite(list(stack.quality.values())).all():
        raise UserError(f"{where}: quality figures must be finite, got {stack.quality}.")


# -- parts: a prepared case in files, until its turn comes ---------------------------------------------------------------


def _stem(case_id: str) -> str:
    return hashlib.sha256(case_id.encode()).hexdigest()[:24]  # an id may hold what a file name may not


def write_part(folder: Path, prepared: Prepared) -> None:
    """Leave a prepared case in ``folder``; its JSON comes last, so a part is whole or absent."""
    stem = _stem(prepared.case)
    for name, block in (prepared.blocks or {}).items():
        with replacing(folder / f"{stem}.{name}") as temporary:
            temporary.write_bytes(block.data)
    entry = prepared.entry()
    entry["shape"] = list(prepared.blocks["images"].shape) if prepared.blocks else None
    write_json(folder / f"{stem}.json", entry)


def has_part(folder: Path, case_id: str) -> bool:
    """Whether a part of ``case_id`` was finished."""
    return (folder / f"{_stem(case_id)}.json").exists()


def read_part(folder: Path, modality: str, case_id: str) -> Prepared | None:
    """The part of ``case_id``, or None when there is none or it is damaged."""
    stem = _stem(case_id)
    try:
        entry = json.loads((folder / f"{stem}.json").read_text(encoding="utf-8"))
        blocks = None
        if entry["shape"] is not None:
            blocks = {
                name: np.fromfile(folder / f"{stem}.{name}", ARRAYS[name]).reshape(entry["shape"]) for name in ARRAYS
            }
            if any(digest_block(block) != entry["record"]["digests"][name] for name, block in blocks.items()):
                return None
        return Prepared(modality, entry["case"], entry["record"], entry["remarks"], entry["sources"], blocks)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remove_part(folder: Path, case_id: str) -> None:
    """Forget a part."""
    for ending in ("json", *ARRAYS):
        (folder / f"{_stem(case_id)}.{ending}").unlink(missing_ok=True)


# -- pools ------------------------------------------------------------------------------------------------------------

_dataset: Dataset | None = None


def serial(dataset: Dataset, tasks: Iterable[Task]) -> Iterator[list[Prepared]]:
    """Do the tasks here, in order."""
    for task in tasks:
        yield run(dataset, task, spill=False)


def processes(dataset: Dataset, tasks: list[Task], workers: int) -> Iterator[list[Prepared]]:
    """Do the tasks in ``workers`` fresh processes; answers come as they are ready.

    Raises:
        UserError: a worker was killed (out of memory, as a rule).
    """
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    made = (type(dataset), dataset.params, dataset.root, dataset.products)
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start, initargs=made)
    try:
        waiting = {pool.submit(_task, task) for task in tasks}
        for future in as_completed(waiting):
            yield future.result()
    except BrokenProcessPool:
        raise UserError(
            "A worker that prepared cases was killed, most often because memory ran out. What is finished is kept: run "
            "the command again with --workers 1. (From a script of your own, call it under `if __name__ == '__main__':`.)"
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        if sys.exc_info()[0] is not None:
            for process in list((getattr(pool, "_processes", None) or {}).values()):
                process.terminate()  # a case takes up to a minute: an interrupt should not wait for it


def _start(cls: type[Dataset], params: Any, root: Path | None, products: Path | None) -> None:
    """Make this process a worker: no reaction to Ctrl-C, gone when its parent is."""
    from multiprocessing import parent_process

    global _dataset
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None:
        Thread(target=_follow, args=(parent,), daemon=True).start()
    _dataset = cls(params, root)
    _dataset.products = products


def _follow(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _task(task: Task) -> list[Prepared]:
    assert _dataset is not None
    return run(_dataset, task, spill=True)


def on_ray(dataset: Dataset, tasks: list[Task], workers: int) -> Iterator[list[Prepared]]:
    """Do the tasks on the Ray cluster at ``RAY_ADDRESS``, or on one started here; every node must see data and cache."""
    from adbench.utils.cluster import connect

    with connect(cpus=workers):
        import ray

        remote = ray.remote(num_cpus=1, max_retries=1)(_remote)
        made = ray.put((type(dataset), dataset.params, dataset.root, dataset.products))
        waiting = [remote.remote(made, task) for task in tasks]
        try:
            while waiting:
                ready, waiting = ray.wait(waiting)
                yield ray.get(ready[0])
        finally:
            for reference in waiting:
                ray.cancel(reference, force=True)


def _remote(made: tuple[type[Dataset], Any, Path | None, Path | None], task: Task) -> list[Prepared]:
    cls, params, root, products = made
    dataset = cls(params, root)
    dataset.products = products
    return run(dataset, task, spill=True)
