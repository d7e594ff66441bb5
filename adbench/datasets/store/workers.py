"""Worker processes of preparation: how many cores and memory allow, and their pools.

A task is one case with all its wanted modalities, so that a worker decodes its mask once. A worker writes case files and
reports what it wrote: the process that waits for it holds no pixels.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import Thread
from time import perf_counter
from typing import Any, Literal

from adbench.datasets.base import Dataset
from adbench.datasets.store.case_file import Prepared, Task, run
from adbench.errors import UserError

Executor = Literal["processes", "ray"]
_Recipe = tuple[type[Dataset], Any, Path | None, Path | None]  # what a dataset is built from in another process
WORTH = 3  # cases below which starting processes takes longer than it saves,
START = 3.0  # and seconds of work
SURE = 8  # cases after which what was written says more than the estimate


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory() -> int:
    """Bytes that this process and its children may still take, a container's limit included."""
    import psutil

    free = int(psutil.virtual_memory().available)
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such limit ("max")
            continue
    return max(0, free)


def worker_count(dataset: Dataset, wanted: int | None, tasks: int) -> int:
    """Processes to use: ``wanted``, or what cores and memory allow; never more than tasks."""
    if wanted is not None:
        return max(1, min(wanted, tasks))
    importable = type(dataset).__module__ != "__main__"
    if tasks < WORTH or not dataset.parallel or not importable:
        return 1
    fit = free_memory() // dataset.memory_per_worker if dataset.memory_per_worker else tasks
    return max(1, min(cores(), tasks, fit))


def check_disk(dataset: Dataset, cache: Path, left: int, *, written: int = 0, done: int = 0) -> None:
    """Refuse to begin, or to go on, when the rest will not fit.

    Args:
        dataset: what is prepared; its estimate is used at the beginning.
        cache: folder of all stores.
        left: cases times modalities that are still to be prepared.
        written: bytes written so far.
        done: cases times modalities that these are.

    Raises:
        UserError: says how much is needed and how much is free.
    """
    needed = left * (written / done if done >= SURE else dataset.disk_per_case)
    free = shutil.disk_usage(cache).free
    if needed > free:
        raise UserError(
            f"Preparing {dataset.info.name} needs about {needed / 1e9:.1f} GB more in {cache}, where "
            f"{free / 1e9:.1f} GB are free: give another --cache, or smaller or fewer slices with "
            f"--set dataset.size=128 or dataset.slice_step=2. What is finished is kept."
        )


def prepare_cases(
    dataset: Dataset, tasks: list[Task], wanted: int | None, executor: Executor = "processes"
) -> Iterator[list[Prepared]]:
    """Prepare cases, ``wanted`` at a time; answers come as they are ready.

    With None the first two are done here, and processes are started if the others take longer than these would to start.

    Raises:
        UserError: a worker was killed (out of memory, as a rule).
        OSError: the disk is full or not writable.
    """
    count = worker_count(dataset, wanted, len(tasks))
    if wanted is None and count > 1 and executor == "processes":
        seconds = []
        for task in tasks[:2]:
            begin = perf_counter()
            yield run(dataset, task)
            seconds.append(perf_counter() - begin)
        tasks = tasks[2:]
        if min(seconds) * len(tasks) < START:  # the first has waited for imports
            count = 1
    if count == 1:
        yield from (run(dataset, task) for task in tasks)
    else:
        yield from (_on_ray if executor == "ray" else _in_processes)(dataset, tasks, count)


def _in_processes(dataset: Dataset, tasks: list[Task], count: int) -> Iterator[list[Prepared]]:
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    pool = ProcessPoolExecutor(count, get_context("spawn"), _start)
    try:
        waiting = {pool.submit(_run_there, _recipe(dataset), task) for task in tasks}
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


def _on_ray(dataset: Dataset, tasks: Iterable[Task], count: int) -> Iterator[list[Prepared]]:
    """On the Ray cluster at ``RAY_ADDRESS``, or on one started here; every node must see data and cache."""
    from adbench.utils.cluster import connect

    with connect(cpus=count):
        import ray

        remote = ray.remote(num_cpus=1, max_retries=1)(_run_there)
        recipe = ray.put(_recipe(dataset))
        waiting = [remote.remote(recipe, task) for task in tasks]
        try:
            while waiting:
                ready, waiting = ray.wait(waiting)
                yield ray.get(ready[0])
        finally:
            for reference in waiting:
                ray.cancel(reference, force=True)


def _recipe(dataset: Dataset) -> _Recipe:
    return type(dataset), dataset.params, dataset.root, dataset.products


def _run_there(recipe: _Recipe, task: Task) -> list[Prepared]:
    cls, params, root, products = recipe
    dataset = cls(params, root)
    dataset.products = products
    return run(dataset, task)


def _start() -> None:
    """Make this process a worker: no reaction to Ctrl-C, gone when its parent is."""
    from multiprocessing import parent_process

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None:
        Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: Any) -> None:
    parent.join()
    os._exit(1)
