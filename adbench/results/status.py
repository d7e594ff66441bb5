"""State of runs: a progress file beside the record while one runs, and the states of all runs in an output folder.

A grid keeps a list of its unfinished cells in ``OUT/.plans`` while it runs, so that others can see what is still to come.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from adbench.context import Progress
from adbench.errors import UserError, text_of
from adbench.results import rundir
from adbench.results.record import RECORD
from adbench.utils.files import replacing
from adbench.utils.limits import STATUS_BYTES
from adbench.utils.locks import acquire, is_locked
from adbench.utils.plain_files import open_plain, read_json

STATUS = "status.json"
PLANS = ".plans"
_CELLS = "cells.jsonl"  # in a folder below PLANS whose lock the process of the grid holds
STATES = ("running", "waiting", "complete", "failed", "interrupted", "lost")  # in the order in which they are shown
_EVERY = 1.0  # seconds between two looks whether there is something new to write


class _Reported(Progress):
    """Passes progress on and keeps the latest for the file."""

    def __init__(self, path: Path, to: Progress, facts: dict[str, Any]) -> None:
        self._path = path
        self._to = to
        self._facts = {**facts, "host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}
        self._now: dict[str, Any] = {
            "phase": "start",
            "done": 0,
            "total": 0,
            "figures": {},
            "phase_started": time.time(),
        }
        self._written: dict[str, Any] = {}

    def update(self, phase: str, done: int, total: int, **figures: Any) -> None:
        begun = self._now["phase_started"] if phase == self._now["phase"] else time.time()
        plain = {name: value if isinstance(value, int) else _plain(value) for name, value in figures.items()}
        self._now = {"phase": phase, "done": done, "total": total, "figures": plain, "phase_started": begun}
        self._to.update(phase, done, total, **figures)

    def write(self, state: str = "running") -> None:
        """Bring the file up to date."""
        content = {"state": state, **self._facts, **self._now}
        if content != self._written:
            self._written = content
            _write(self._path, content)

    def write_until(self, over: threading.Event) -> None:
        """Keep the file up to date; a full or unreachable disk does not stop the run."""
        while not over.wait(_EVERY):
            with suppress(OSError):
                self.write()


def _plain(value: Any) -> float | str:
    """A JSON value: a loss that became NaN is a text."""
    return value if isinstance(value, float) and math.isfinite(value) else str(value)


def _write(path: Path, content: dict[str, Any]) -> None:
    with replacing(path, durable=False) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


@contextmanager
def reported(folder: Path, progress: Progress, **facts: Any) -> Iterator[Progress]:
    """Keep a status file in ``folder`` while the block runs; afterwards it is gone, or says "interrupted".

    Args:
        folder: of the run; the caller holds its lock, which tells others that the run is alive.
        progress: receives the progress too.
        **facts: stored in the file: label, share of the GPU, ...

    Yields:
        The progress to report to.
    """
    report = _Reported(folder / STATUS, progress, facts)
    report.write()
    over = threading.Event()
    thread = threading.Thread(target=report.write_until, args=(over,), daemon=True, name="adbench-status")
    thread.start()
    interrupted = False
    try:
        yield report
    except KeyboardInterrupt:
        interrupted = True
        raise
    finally:
        over.set()
        thread.join()
        if interrupted:
            report.write("interrupted")
        else:
            (folder / STATUS).unlink(missing_ok=True)


def interrupt(folder: Path) -> None:
    """Mark the run in ``folder`` as interrupted by the user, for a process that was ended before it could do so."""
    doing = read_status(folder)
    if doing is not None:
        _write(Path(folder) / STATUS, {**doing, "state": "interrupted"})


def write_death(folder: Path, error: BaseException) -> None:
    """Record an attempt whose process was ended before it could do so, unless that was done already."""
    doing = read_status(folder)
    if doing is None and state(folder)[1].get("message") == text_of(error):
        return
    (folder / STATUS).unlink(missing_ok=True)
    rundir.write_failure(folder, error, doing["phase"] if doing else "start")


def read_status(folder: Path) -> dict[str, Any] | None:
    """The status of the run in ``folder``; None when there is none.

    ``state`` is "running", "interrupted" (by the user), or "lost" (no process holds the lock of the folder: it was killed).
    """
    try:
        path = Path(folder) / STATUS
        content = dict(read_json(path, STATUS_BYTES))
        if content["state"] == "running" and not is_locked(folder):
            if not path.exists():  # it came to its end between the two looks
                return None
            content["state"] = "lost"
        float(content["started"]), str(content["phase"]), int(content["done"]), int(content["total"])
        return content
    except (OSError, UserError, ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True)
class RunState:
    """One run and how far it is.

    Attributes:
        folder: of the run; one that waits may have none yet.
        label: method, dataset, seed and so on, in words.
        state: one of :data:`STATES`; "lost" means that its process was killed, or its machine failed.
        detail: of ``status.json`` (what it is doing) or ``failure.json`` (why it failed); empty otherwise.
    """

    folder: Path
    label: str
    state: str
    detail: dict[str, Any] = field(default_factory=dict)


def state(folder: Path) -> tuple[str, dict[str, Any]]:
    """State and detail of the run in ``folder``, as in :class:`RunState`; "waiting" when there is nothing in it."""
    doing = read_status(folder)
    if doing is not None and doing["state"] == "running":
        return "running", doing
    if (folder / RECORD).exists():
        return "complete", {}
    if doing is not None:
        return doing["state"], doing
    try:
        return "failed", dict(read_json(folder / rundir.FAILURE, STATUS_BYTES))
    except FileNotFoundError:
        return "waiting", {}
    except (UserError, ValueError, TypeError) as error:
        return "failed", {"message": f"{folder / rundir.FAILURE} is damaged ({error})"}


def runs(out: Path) -> Iterator[RunState]:
    """Every run below ``out``, in path order; those that wait come last.

    Raises:
        UserError: there is no such folder.
    """
    out = Path(out)
    if not out.is_dir():
        raise UserError(f"There is no folder {out}. Name the one that `adbench run --out` writes to.")
    for folder in sorted(
        path for path in out.glob("*/*/*") if path.is_dir() and path.relative_to(out).parts[0] != rundir.FITS
    ):
        found, detail = state(folder)
        if found != "waiting":
            yield RunState(folder, str(detail.get("label") or folder.relative_to(out)), found, detail)
    seen: set[str] = set()
    for alive, cell in _announced_cells(out):
        folder = out / cell["folder"]
        if cell["folder"] not in seen and state(folder)[0] == "waiting":
            seen.add(cell["folder"])
            yield RunState(folder, cell["label"], "waiting" if alive else "interrupted")


def _announced_cells(out: Path) -> Iterator[tuple[bool, dict[str, Any]]]:
    """The unfinished cells of every grid with whether that grid still runs; grids that run come first."""
    grids = [(is_locked(path.parent), path) for path in (out / PLANS).glob(f"*/{_CELLS}")]
    for alive, path in sorted(grids, key=lambda grid: (not grid[0], grid[1])):
        yield from ((alive, cell) for cell in _cells(path))


def _cells(path: Path) -> Iterator[dict[str, Any]]:
    with suppress(OSError, ValueError, UserError), open_plain(path) as file:  # half written, or gone by now
        for line in file:
            yield json.loads(line)


def identity(run: Path, out: Path) -> dict[str, Any] | None:
    """Key and identity of the run in folder ``run``, or of one that waits to be made there; None when there is none."""
    found = rundir.read_identity(run)
    if found is not None:
        return found
    return next((cell for _, cell in _announced_cells(out) if Path(cell["folder"]).name == run.name), None)


@contextmanager
def announced(out: Path, name: str, cells: Sequence[dict[str, Any]]) -> Iterator[None]:
    """While the block runs, ``adbench status`` lists ``cells`` as waiting; when an error ends it, as interrupted.

    Args:
        out: folder of runs.
        name: of the grid, the same each time that it is started: a list that it left when interrupted is replaced.
        cells: that are not complete, each with "folder" (relative to ``out``), "label", "run_key", "fit_key", "identity".
    """
    plans = Path(out) / PLANS
    waiting = {
        cell["run_key"] for _, cell in _announced_cells(out) if state(Path(out) / cell["folder"])[0] == "waiting"
    }
    for earlier in plans.glob("*"):
        listed = {cell["run_key"] for cell in _cells(earlier / _CELLS)}
        if not is_locked(earlier) and (earlier.name.startswith(name) or not waiting & listed):
            shutil.rmtree(earlier, ignore_errors=True)
    folder = plans / f"{name}-{uuid4().hex[:8]}"
    with acquire(folder) if cells else nullcontext():
        if cells:
            (folder / _CELLS).write_text("".join(json.dumps(cell) + "\n" for cell in cells), encoding="utf-8")
        yield
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # other grids are at work
        plans.rmdir()
