"""What Ray runs on a node. It imports next to nothing: what a cell needs is imported by the process that the cell gets."""

from __future__ import annotations

import signal
from functools import cache

from adbench.executors.worker import Warm


class Crashed(Exception):
    """The process of a cell ended without a word. Ray starts the cell again, on this node or another one."""


@cache
def _warm() -> Warm:
    return Warm()


def work(job: str) -> str:
    """Carry out a cell.

    Args:
        job: an :class:`adbench.executors.job.Job` as JSON.

    Returns:
        An :class:`adbench.executors.job.Result` as JSON.

    Raises:
        Crashed: the process was killed, or ended itself.
    """
    code, result = _warm().run(job)
    if code == 0 and result:
        return result
    raise Crashed(reason(code))


def reason(code: int) -> str:
    """What the exit code of a process that left no result means."""
    if code >= 0:
        return f"its process ended by itself with exit code {code}, without a result"
    name = signal.Signals(-code).name
    why = ": the kernel does this when memory runs out" if -code == signal.SIGKILL else ""
    return f"its process was ended by signal {-code} ({name}{why})"


def look(out: str, mark: str) -> str:
    """Why this node cannot work on the output folder; "" when it can."""
    from adbench.errors import UserError
    from adbench.executors.job import check_mark

    try:
        check_mark(out, mark)
    except UserError as error:
        return str(error)
    return ""


def gpu_memory_gb() -> float:
    """Memory of the smallest GPU that this process sees, in GiB; 0 when it sees none."""
    import torch

    sizes = [torch.cuda.get_device_properties(n).total_memory for n in range(torch.cuda.device_count())]
    return min(sizes, default=0) / 2**30
