"""A process of its own for every cell, without the seconds that importing the libraries takes each time.

A fork server (:mod:`multiprocessing`) imports them once and does nothing else: no thread, no GPU, no computation. Each cell
runs in a fork of it and the fork ends with the cell, so that nothing of one cell (memory, GPU memory, settings, a crash)
reaches the next. A cell dies with the process that asked for it, and with the server.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from adbench.config.cell import Cell
from adbench.errors import UserError
from adbench.executors.base import CellFailed, Options
from adbench.executors.nodes import check_mark
from adbench.runner.plan import Plan, plan
from adbench.utils import threads

# What most cells import. A module that is missing here is imported by each cell that needs it.
PRELOAD = [
    "adbench.executors.worker",
    "adbench.datasets.adapters.folder",
    "adbench.datasets.phantom.dataset",
    "adbench.datasets.store.prepare",
    "adbench.methods.simple",
    "isal.igzip_lib",
    "matplotlib.pyplot",
    "matplotlib.backends.backend_agg",
    "threadpoolctl",
    "torch",
    "scipy.ndimage",
    "cc3d",
    "contourpy",
    "nibabel",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.unets.unet_2d",
]
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


@dataclass(frozen=True)
class Job:
    """A cell with everything that another process needs to run it.

    Attributes:
        spec: the cell, as JSON.
        run_key: what the sender computed; a receiver with other code or data computes another.
        out: folder of runs and fits.
        cache: folder of slice stores.
        mark: content of the output folder's mark: the receiver must find the same.
        options: how it is run.
        threads: it computes with, see :mod:`adbench.utils.threads`.
        gpus: share of a GPU, shown by ``adbench status``.
        memory_fraction: the part of the GPU's memory that it may fill; None: all.
    """

    spec: dict[str, Any]
    run_key: str
    out: str
    cache: str
    mark: str
    options: Options
    threads: int
    gpus: float = 0.0
    memory_fraction: float | None = None


@dataclass(frozen=True)
class Result:
    """How a job ended: with its record written, or with an error.

    Attributes:
        error: class name of what was raised; "" for nothing.
        message: its text.
        trace: its traceback.
        phase: in which it was raised, where ``failure.json`` is not written yet; "" where it is.
        expected: whether it is a :class:`adbench.errors.UserError`.
        memory: whether the GPU's memory ran out.
        node: host that ran the job.
        seconds: it took.
    """

    error: str = ""
    message: str = ""
    trace: str = ""
    phase: str = ""
    expected: bool = False
    memory: bool = False
    node: str = ""
    seconds: float = 0.0


def run_in_process(job: Job) -> Result:
    """Run a job in a fresh process with the environment of this one.

    Raises:
        CellFailed: the process was killed, or ended itself, without a result.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(job, dict(os.environ), sender))
    with _server_start():
        process.start()
    sender.close()
    with receiver:
        wait([receiver, process.sentinel])
        try:
            result: Result | None = receiver.recv() if receiver.poll() else None
        except EOFError:
            result = None
    process.join()
    if result is None:
        raise CellFailed(exit_reason(process.exitcode or 0))
    return result


@contextmanager
def _server_start() -> Iterator[None]:
    """The surroundings in which the server and its forks are to start.

    Libraries of the server must start no threads, which a fork would lack. A fork must not run the main script of this
    process again, which under Ray is that of Ray's workers and takes a second.
    """
    main = sys.modules["__main__"]
    script = main.__dict__.pop("__file__", None)
    wanted = {"OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
        if script is not None:
            main.__file__ = script


def exit_reason(code: int) -> str:
    """What the exit code of a process that left no result means, in words."""
    if code >= 0:
        return f"its process ended by itself with exit code {code}, without a result"
    name = signal.Signals(-code).name
    why = ": the kernel does this when memory runs out" if -code == signal.SIGKILL else ""
    return f"its process was ended by signal {-code} ({name}{why})"


def _run(job: Job, environment: dict[str, str], answer: Connection) -> None:
    """The main function of the process of a cell."""
    os.setsid()  # with the processes that it may start, it can be killed as one
    _end_with_the_others()
    os.environ.clear()
    os.environ.update(environment)
    answer.send(run_job(job))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # whatever thread a method has left running


def _end_with_the_others() -> None:
    """Kill this process group as soon as the process that asked for the cell, or the fork server, is no more."""
    asked = multiprocessing.parent_process()
    assert asked is not None

    def watch() -> None:
        asked.join()
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="adbench-parent").start()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def run_job(job: Job) -> Result:
    """Run the cell in this process; whatever is raised comes back as a result. Meant for a process of its own."""
    phase, begin = "plan", time.perf_counter()
    error: Exception | None = None
    try:
        os.environ[threads.VARIABLE] = str(job.threads)  # Ray has set it to the cores that it keeps for the run
        if job.memory_fraction is not None and job.spec["device"].startswith("cuda"):
            import torch

            torch.cuda.set_per_process_memory_fraction(job.memory_fraction)
        check_mark(job.out, job.mark)
        planned = _plan(job)
        phase = ""
        job.options.run(planned, gpus=job.gpus)
    except Exception as raised:
        error = raised
    node, seconds = socket.gethostname(), time.perf_counter() - begin
    if error is None:
        return Result(node=node, seconds=seconds)
    return Result(
        type(error).__name__,
        str(error),
        "".join(traceback.format_exception(error)),
        phase,
        expected=isinstance(error, UserError),
        memory=_out_of_memory(error),
        node=node,
        seconds=seconds,
    )


def _out_of_memory(error: BaseException | None) -> bool:
    """Whether the GPU's memory ran out, even if a later error hides it."""
    import torch

    while error is not None and not isinstance(error, torch.OutOfMemoryError):
        error = error.__cause__ or error.__context__
    return error is not None


def _plan(job: Job) -> Plan:
    (planned,) = plan([Cell.from_json(job.spec)], Path(job.out), Path(job.cache))
    if planned.run_key != job.run_key:
        raise UserError(
            f"The node {socket.gethostname()} computes another key for {planned.cell.label}: its adbench, its plug-ins or its "
            "data are not those that the grid was started with. Install the same versions on every node; after a change, "
            "start the grid again."
        )
    return planned
