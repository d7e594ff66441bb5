"""What an output folder holds: runs that are complete, running, waiting, failed, interrupted, or lost with their process.

A grid keeps a list of its unfinished cells in ``OUT/.plans`` while it runs, so that others can see what is still to come.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from adbench.errors import UserError
from adbench.results import rundir, status
from adbench.results.record import RECORD
from adbench.utils.locks import acquire, is_locked

PLANS = ".plans"
_CELLS = "cells.jsonl"  # in a folder below PLANS whose lock the process of the grid holds
STATES = ("running", "waiting", "complete", "failed", "interrupted", "lost")  # in the order in which they are shown


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
    doing = status.read(folder)
    if doing is not None and doing["state"] == "running":
        return "running", doing
    if (folder / RECORD).exists():
        return "complete", {}
    if doing is not None:
        return doing["state"], doing
    try:
        return "failed", dict(json.loads((folder / rundir.FAILURE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return "waiting", {}
    except ValueError:
        return "failed", {"message": f"{folder / rundir.FAILURE} is damaged"}


def runs(out: Path) -> Iterator[RunState]:
    """Every run below ``out``, in path order; those that wait come last.

    Raises:
        UserError: there is no such folder.
    """
    out = Path(out)
    if not out.is_dir():
        raise UserError(f"There is no folder {out}. Name the one that `adbench run --out` writes to.")
    for folder in sorted(
        path for path in out.glob("*/*/*") if path.is_dir() and path.relative_to(out).parts[0] != "fits"
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
    with suppress(OSError, ValueError), open(path, encoding="utf-8") as file:  # half written, or gone by now
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
