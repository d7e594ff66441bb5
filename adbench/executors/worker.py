"""Worker processes: a fresh one for each cell on Ray and each trial of a search, forked after the imports are done.

A fork server (:mod:`multiprocessing`) imports the libraries once and does nothing else: no thread, no GPU, no computation.
Each cell runs in a fork of it, on a GPU in a new Python, which ends with the cell, so that nothing of one cell (memory, GPU
memory, settings, a crash) reaches the next. A cell ends with the process that asked for it, and with the server, and so does all that it has
started.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from adbench.config.cell import Cell
from adbench.context import Progress
from adbench.errors import CellFailed, UserError, in_words, trace_of
from adbench.executors.resources import check_mark
from adbench.executors.serial import Options, Outcome
from adbench.results import rundir, status
from adbench.runner.plan import Plan, plan
from adbench.utils import threads
from adbench.utils.processes import GRACE, adopt, children, end_descendants, end_unless, exit_reason
from adbench.utils.signals import as_interrupts, exit_code

# What most cells import. A module that is missing here is imported by each cell that needs it.
PRELOAD = [
    "adbench.utils.installed",  # first: it lets the others look past damaged packages
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
    "torch._dynamo",  # by every optimiser
    "scipy.ndimage",
    "cc3d",
    "contourpy",
    "nibabel",
]

Tell = Callable[[Any], None]


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
class JobResult:
    """The outcome of a job: its record is written, or an error.

    Attributes:
        error: class name of what was raised; "" for nothing.
        message: its text.
        trace: its traceback.
        phase: in which it was raised, where ``failure.json`` is not written yet; "" where it is.
        expected: whether it is a :class:`adbench.errors.UserError`.
        memory: whether the GPU's memory ran out.
        died: whether its process was ended, and could not leave a ``failure.json``.
        again: whether another process may come further: this one was killed, or ended itself.
        node: host that ran the job.
        seconds: it took.
    """

    error: str = ""
    message: str = ""
    trace: str = ""
    phase: str = ""
    expected: bool = False
    memory: bool = False
    died: bool = False
    again: bool = False
    node: str = ""
    seconds: float = 0.0


class TookTooLong(CellFailed):
    """It was ended because its time was up."""


class _Forwarded(Progress):
    """Progress that another process shows."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell

    def update(self, phase: str, done: int, total: int, **figures: Any) -> None:
        """Report it there; of figures that are no plain number or text, their text."""
        plain = {name: value if type(value) in (int, float, str) else str(value) for name, value in figures.items()}
        self._tell((phase, done, total, plain))


def run_in_process(job: Job, progress: Progress | None = None) -> JobResult:
    """Run a job in a fresh process with the environment of this one; its end without a result is one too.

    Args:
        job: what is run.
        progress: receives the progress of the cell.
    """
    limit = job.options.time_limit

    def show(report: tuple[str, int, int, dict[str, Any]]) -> None:
        assert progress is not None
        phase, done, total, figures = report
        progress.update(phase, done, total, **figures)

    work = partial(run_job, job, watched=progress is not None)
    try:
        result: JobResult = in_process(work, show, seconds=limit, device=job.spec["device"])
    except TookTooLong as error:
        return JobResult("TimeLimit", str(error), died=True, node=socket.gethostname(), seconds=limit or 0.0)
    except CellFailed as error:
        return JobResult("CellFailed", str(error), died=True, again=True, node=socket.gethostname())
    return result


def outcome_of(plan: Plan, result: JobResult, options: Options) -> Outcome:
    """The outcome of the cell of ``plan``, which ended elsewhere with ``result``; a failure that is not written yet is written."""
    raised: Exception | None = None
    if result.error:
        raised = UserError(result.message) if result.expected else CellFailed(result.message)
        if result.trace:
            raised.add_note(result.trace)
        if result.died:
            status.write_death(plan.run_folder, raised)
        elif result.phase:
            rundir.write_failure(plan.run_folder, raised, result.phase, result.trace)
    elif not plan.done(save_maps=options.save_maps):
        raised = CellFailed(
            f"the node {result.node} says that it is done, but there is no record in {plan.run_folder}: does every node "
            "see the same --out?"
        )
    return Outcome(plan, raised, seconds=result.seconds)


def processes_for(device: str, libraries: Sequence[str] = ()) -> Any:
    """How processes that compute on ``device`` start: as forks of the server, which has imported ``libraries`` too.

    For a GPU a new Python starts and imports what it needs: CUDA works in no fork of a process in which a library has as much
    as counted the GPUs.
    """
    context: Any = multiprocessing.get_context("spawn" if device.startswith("cuda") else "forkserver")
    context.set_forkserver_preload([*PRELOAD, *libraries])
    return context


def in_process(
    work: Callable[[Tell], Any],
    heard: Callable[[Any], None] = lambda said: None,
    *,
    seconds: float | None = None,
    device: str = "cpu",
) -> Any:
    """Run ``work`` in a fresh process with the environment of this one, and return its result.

    Args:
        work: called with a function that takes what it has to say before it ends; it can be pickled, and whatever it raises
            that is no interrupt is a death of the process.
        heard: gets in this process what it says. The work waits meanwhile, and is ended when this raises.
        seconds: it may take; None: any.
        device: it computes on, see :func:`processes_for`.

    Raises:
        CellFailed: the process was killed, or ended itself, without a result.
        TookTooLong: that was not over in time.
    """
    context = processes_for(device)
    pipe, theirs = context.Pipe()
    process = context.Process(target=_run, args=(work, dict(os.environ), theirs))
    adopt()  # what a cell leaves behind when it is killed
    with _server_start():
        process.start()
    theirs.close()
    others = children()
    end = None if seconds is None else time.monotonic() + seconds
    late = False
    try:
        while wait([pipe, process.sentinel], None if end is None else max(0.0, end - time.monotonic())):
            answer = None
            with suppress(EOFError, OSError):
                answer = pipe.recv() if pipe.poll() else None
            if answer is None:
                break
            over, said = answer
            if over:
                process.join(GRACE)
                return said
            heard(said)
            with suppress(OSError):  # it has died meanwhile
                pipe.send(None)
        else:
            late = True
            process.terminate()
        process.join(GRACE)
    except KeyboardInterrupt:
        process.terminate()  # it saves what it is doing
        process.join(GRACE)
        raise
    finally:
        process.kill()  # it has nothing left to do
        process.join()
        pipe.close()
        end_descendants(keep=others)
    if late:
        raise TookTooLong(f"it took longer than --time-limit ({seconds:g} s)")
    raise CellFailed(exit_reason(process.exitcode or 0))


@contextmanager
def _server_start() -> Iterator[None]:
    """The surroundings in which the server and its forks are to start.

    Libraries of the server must start no threads, which a fork would lack. A fork must not run the main script or
    module of this process again: a user's need not be guarded, and under Ray it is that of Ray's workers and takes a second.
    """
    main = sys.modules["__main__"]
    script, spec = main.__dict__.pop("__file__", None), main.__spec__
    main.__spec__ = None
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
        main.__spec__ = spec
        if script is not None:
            main.__file__ = script


def _run(work: Callable[[Tell], Any], environment: dict[str, str], pipe: Connection) -> None:
    """The main function of the process of a cell."""
    os.setsid()
    adopt()
    asked, server = multiprocessing.parent_process(), os.getppid()
    assert asked is not None
    os.environ.clear()
    os.environ.update(environment)

    def tell(said: Any) -> None:
        try:
            pipe.send((False, said))
            pipe.recv()
        except (EOFError, OSError):  # the other end is closed
            os.kill(os.getpid(), signal.SIGTERM)

    code = 0
    try:
        with as_interrupts():
            end_unless(lambda: asked.is_alive() and os.getppid() == server)
            pipe.send((True, work(tell)))
    except KeyboardInterrupt:
        code = exit_code()
    sys.stdout.flush()
    sys.stderr.flush()
    end_descendants()
    os._exit(code)  # whatever thread a method has left running


def run_job(job: Job, tell: Tell | None = None, *, watched: bool = False) -> JobResult:
    """Run the cell in this process; whatever is raised, but an interrupt, comes back as a result. Meant for a process of its own.

    Args:
        job: what is run.
        tell: takes the progress, where it is ``watched``.
        watched: whether another process shows the progress.
    """
    phase, begin = "plan", time.perf_counter()
    error: BaseException | None = None
    try:
        os.environ[threads.VARIABLE] = str(job.threads)  # Ray has set it to the cores that it keeps for the run
        if job.memory_fraction is not None and job.spec["device"].startswith("cuda"):
            import torch

            torch.cuda.set_per_process_memory_fraction(job.memory_fraction)
        check_mark(job.out, job.mark)
        planned = _plan(job)
        phase = ""
        progress = _Forwarded(tell) if watched and tell is not None else None
        job.options.run(planned, progress, gpus=job.gpus)
    except KeyboardInterrupt:
        raise
    except BaseException as raised:  # a plug-in may raise anything, SystemExit included
        error = raised
    node, seconds = socket.gethostname(), time.perf_counter() - begin
    if error is None:
        return JobResult(node=node, seconds=seconds)
    return JobResult(
        type(error).__name__,
        in_words(error),
        trace_of(error),
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
