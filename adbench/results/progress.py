"""What an output folder holds: runs that are complete, at work, waiting, failed, or left behind by a process that died.

A grid at work keeps a list of its unfinished cells in ``OUT/.plans``, so that others can see what is still to come; it goes
when the grid has come to its end.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adbench.errors import UserError
from adbench.results import rundir, status
from adbench.results.record import RECORD
from adbench.utils import locks
from adbench.utils.files import replacing

if TYPE_CHECKING:
    from adbench.runner.plan import Plan

PLANS = ".plans"
# In the order in which they are shown.
STATES = ("running", "waiting", "complete", "failed", "interrupted", "lost")


@dataclass(frozen=True)
class Seen:
    """One run.

    Attributes:
        folder: of the run; one that waits may have none yet.
        label: what it is.
        state: one of :data:`STATES`; "lost" means that its process is gone: killed, or with its machine.
        detail: of ``status.json`` (what it is doing) or ``failure.json`` (why it failed); empty otherwise.
    """

    folder: Path
    label: str
    state: str
    detail: dict[str, Any] = field(default_factory=dict)


def state(folder: Path) -> tuple[str, dict[str, Any]]:
    """State and detail of the run in ``folder``; "waiting" when there is nothing in it."""
    doing = status.read(folder)
    if doing is not None:
        return doing["state"], doing
    if (folder / RECORD).exists():
        return "complete", {}
    try:
        return "failed", dict(json.loads((folder / rundir.FAILURE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return "waiting", {}
    except ValueError:
        return "failed", {"message": f"{folder / rundir.FAILURE} is damaged"}


def runs(out: Path) -> Iterator[Seen]:
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
            yield Seen(folder, str(detail.get("label") or folder.relative_to(out)), found, detail)
    seen: set[str] = set()
    for plan in _plans(out):
        folder = out / plan["folder"]
        if plan["folder"] not in seen and state(folder)[0] == "waiting":
            seen.add(plan["folder"])
            yield Seen(folder, plan["label"], "waiting" if plan["alive"] else "interrupted")


def _plans(out: Path) -> Iterator[dict[str, Any]]:
    """The unfinished cells of every grid, each with whether somebody is at that grid."""
    for path in sorted((out / PLANS).glob("*.jsonl")):
        try:
            with open(path, encoding="utf-8") as file:
                alive = not locks.gone(json.loads(file.readline()), path.stat().st_mtime)
                for line in file:
                    yield {**json.loads(line), "alive": alive}
        except (OSError, ValueError, KeyError):
            continue  # being replaced, or gone by now


def identity(run: Path, out: Path) -> dict[str, Any] | None:
    """Key and identity of the run in folder ``run``, or of one that waits to be made there."""
    found = rundir.read_identity(run)
    if found is None:
        wanted = run.name
        found = next((plan for plan in _plans(out) if Path(plan["folder"]).name == wanted), None)
    return found


@contextmanager
def announced(out: Path, plans: Iterable[Plan], *, force: bool = False) -> Iterator[None]:
    """While the block runs, ``adbench status`` knows of the cells that are to come; interrupted, it still does.

    Args:
        out: folder of runs.
        plans: the whole grid, looked at once; the same grid later replaces its list.
        force: complete cells are to come too.
    """
    out = Path(out)
    name = hashlib.sha256()
    whose = locks.me()
    path = out / PLANS / f"{whose['pid']}.jsonl"
    with replacing(path, durable=False) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(json.dumps(whose) + "\n")
        for plan in plans:
            name.update(plan.run_key.encode())
            if plan.done() and not force:
                continue
            content = {
                "folder": str(plan.run_folder.relative_to(out)),
                "label": plan.cell.label,
                "run_key": plan.run_key,
                "fit_key": plan.fit_key,
                "identity": plan.identity,
            }
            file.write(json.dumps(content) + "\n")
    path = path.replace(path.with_name(f"{name.hexdigest()[:16]}.jsonl"))
    with locks.beating(lambda: os.utime(path)):
        yield
    path.unlink(missing_ok=True)
