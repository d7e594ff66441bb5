"""What a run is doing, in a small file beside its record: written as it goes, read by whoever asks, from any machine."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from adbench.context import Progress
from adbench.utils import locks
from adbench.utils.files import replacing

STATUS = "status.json"
_EVERY = 1.0  # seconds between two looks whether there is something new to write


class Reported(Progress):
    """Passes progress on and remembers the latest, for the file.

    Args:
        to: receives the progress too.
        facts: what does not change: label, share of the GPU, ...
    """

    def __init__(self, to: Progress, **facts: Any) -> None:
        self._to = to
        self._facts = {**facts, **locks.me(), "started": time.time()}
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

    def write(self, path: Path, state: str = "running") -> None:
        """Bring the file up to date; a sign of life even when nothing changed."""
        content = {"state": state, **self._facts, **self._now}
        if content == self._written:
            with suppress(FileNotFoundError):
                os.utime(path)
            return
        self._written = content
        with replacing(path, durable=False) as temporary:
            temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _plain(value: Any) -> float | str:
    """A JSON value: a loss that became NaN is a text."""
    return value if isinstance(value, float) and math.isfinite(value) else str(value)


@contextmanager
def reported(folder: Path, progress: Progress, **facts: Any) -> Iterator[Progress]:
    """While the block runs, ``folder`` says so; afterwards the file is gone, or says that the run was interrupted.

    Args:
        folder: of the run.
        progress: receives the progress too.
        **facts: stored beside it.

    Yields:
        The progress to report to.
    """
    path = folder / STATUS
    report = Reported(progress, **facts)
    report.write(path)
    try:
        with locks.beating(lambda: report.write(path), every=_EVERY):
            yield report
    except (KeyboardInterrupt, SystemExit):
        report.write(path, "interrupted")
        raise
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    path.unlink(missing_ok=True)


def interrupt(folder: Path) -> None:
    """Say that the run in ``folder`` was interrupted by the user, on behalf of its process, which had no time to."""
    doing = read(folder)
    if doing is not None:
        with replacing(Path(folder) / STATUS, durable=False) as temporary:
            temporary.write_text(json.dumps({**doing, "state": "interrupted"}, indent=1) + "\n", encoding="utf-8")


def read(folder: Path) -> dict[str, Any] | None:
    """What the run in ``folder`` is doing; None when it does not say.

    ``state`` is "running", "interrupted" (by the user), or "lost" (its process is gone: killed, or its machine is).
    """
    path = Path(folder) / STATUS
    try:
        content = dict(json.loads(path.read_text(encoding="utf-8")))
        touched = path.stat().st_mtime
        if content["state"] == "running" and locks.gone(content, touched):
            content["state"] = "lost"
        float(content["started"]), str(content["phase"]), int(content["done"]), int(content["total"])
        return content
    except (OSError, ValueError, KeyError, TypeError):
        return None
