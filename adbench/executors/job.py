"""One cell as it travels to another process, and what comes back. Plain JSON both ways."""

from __future__ import annotations

import json
import os
import socket
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from adbench.config.cell import Cell
from adbench.errors import UserError
from adbench.evaluation.pictures import illustrate
from adbench.executors.base import Options
from adbench.runner.plan import Plan, plan
from adbench.runner.run_cell import run_cell
from adbench.utils import threads
from adbench.utils.files import write_text

MARK = ".adbench"  # a file that tells one output folder from another


@dataclass(frozen=True)
class Job:
    """A cell with everything a process elsewhere needs to carry it out.

    Attributes:
        spec: the cell, as JSON.
        run_key: what the sender computed; a receiver with other code or data computes another.
        out: folder of runs and fits.
        cache: folder of slice stores.
        mark: content of the output folder's mark: the receiver must find the same.
        options: how it is run.
        threads: it computes with, see :mod:`adbench.utils.threads`.
        gpus: share of a GPU, for those who look.
        memory_fraction: the part of the GPU's memory it may fill; None: all.
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

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        content = json.loads(text)
        return cls(**{**content, "options": Options(**content["options"])})


@dataclass(frozen=True)
class Result:
    """What became of a job: nothing to say when its record is there, else what went wrong.

    Attributes:
        error: class name of what was raised; "" for none.
        message: its text.
        trace: its traceback.
        phase: in which it was raised, where nobody has written ``failure.json`` yet; "" where somebody has.
        expected: whether it is one that a user can mend (:class:`adbench.errors.UserError`).
        memory: whether the GPU's memory ran out.
        node: where it was.
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

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Result:
        return cls(**json.loads(text))


def mark(out: Path) -> str:
    """The content of the mark of ``out``, which is made if need be."""
    path = Path(out) / MARK
    if not path.exists():
        write_text(path, uuid4().hex)
    return path.read_text()


def check_mark(out: str, expected: str) -> None:
    """Hold the output folder that this process sees against the one that was meant.

    Raises:
        UserError: another one, none, or one that this process may not write to.
    """
    host = socket.gethostname()
    try:
        found = (Path(out) / MARK).read_text()
    except OSError:
        found = None
    if found != expected:
        raise UserError(
            f"The node {host} does not see the folder {out} of the machine that started the grid: put --out (and --cache) on "
            "storage that every node mounts at the same path."
        )
    probe = Path(out) / f"{MARK}.{uuid4().hex}"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"The node {host} may not write to {out} ({error.strerror}): mend its permissions.") from None


def carry_out(job: Job) -> Result:
    """Run the cell in this process; whatever is raised comes back as a result. Meant for a process of its own."""
    phase, begin = "plan", time.perf_counter()
    try:
        _take_share(job)
        check_mark(job.out, job.mark)
        planned = _plan(job)
        phase = ""
        run_cell(
            planned,
            force=True,
            checkpoint_seconds=job.options.checkpoint_seconds,
            save_maps=job.options.save_maps,
            tensorboard=job.options.tensorboard,
            facts={"gpus": job.gpus},
        )
        illustrate(planned.run_folder)
    except Exception as error:
        return Result(
            type(error).__name__,
            str(error),
            "".join(traceback.format_exception(error)),
            phase,
            expected=isinstance(error, UserError),
            memory=_out_of_memory(error),
            node=socket.gethostname(),
            seconds=time.perf_counter() - begin,
        )
    return Result(node=socket.gethostname(), seconds=time.perf_counter() - begin)


def _out_of_memory(error: BaseException | None) -> bool:
    """Whether the GPU's memory ran out, even if something else was said about it."""
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


def _take_share(job: Job) -> None:
    """Compute with as many threads as the sender would, and use no more of the GPU than this run was given."""
    os.environ[threads.VARIABLE] = str(job.threads)  # Ray has set it to the cores that it keeps for the run
    if job.memory_fraction is not None and job.spec["device"].startswith("cuda"):
        import torch

        torch.cuda.set_per_process_memory_fraction(job.memory_fraction)
