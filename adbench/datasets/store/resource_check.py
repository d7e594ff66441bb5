"""How many cases at a time, and whether the result fits the disk: asked before anything is prepared, and again on the way."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from adbench.datasets.base import Dataset
from adbench.errors import UserError

WORTH = 3  # cases below which starting processes takes longer than it saves
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


class Room:
    """Room on the disk and in memory for one preparation.

    Args:
        dataset: what will be prepared; its estimates are used.
        cache: folder that stores grow in.
        count: cases times modalities to prepare.
    """

    def __init__(self, dataset: Dataset, cache: Path, count: int) -> None:
        self._dataset, self._cache, self._count = dataset, cache, count

    def workers(self, wanted: int | None, tasks: int) -> int:
        """Processes to use: ``wanted``, or what cores and memory allow; never more than tasks."""
        if wanted is not None:
            return max(1, min(wanted, tasks))
        if (
            tasks < WORTH or not self._dataset.parallel or type(self._dataset).__module__ == "__main__"
        ):  # a worker could not import that
            return 1
        per_worker = self._dataset.memory_per_worker
        fit = free_memory() // per_worker if per_worker else tasks
        return max(1, min(cores(), tasks, fit))

    def check(self, written: int = 0, done: int = 0) -> None:
        """Refuse to begin, or to go on, when the rest will not fit.

        Args:
            written: bytes of all stores so far.
            done: cases times modalities that this took.

        Raises:
            UserError: says how much is needed and how much is free.
        """
        per_case = written / done if done >= SURE else self._dataset.disk_per_case
        needed = per_case * (self._count - done)
        free = shutil.disk_usage(self._cache).free
        if needed > free:
            raise UserError(
                f"Preparing {self._dataset.info.name} needs about {needed / 1e9:.1f} GB more in {self._cache}, where "
                f"{free / 1e9:.1f} GB are free: give another --cache, or smaller or fewer slices with "
                f"--set dataset.size=128 or dataset.slice_step=2. What is finished is kept."
            )
