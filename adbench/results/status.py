"""What a run is doing, in a small file beside its record: written while it runs, read from any process or machine."""

from __future__ import annotations

import json
import math
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from adbench.context import Progress
from adbench.utils.files import replacing
from adbench.utils.locks import is_locked

STATUS = "status.json"
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
    doing = read(folder)
    if doing is not None:
        _write(Path(folder) / STATUS, {**doing, "state": "interrupted"})


def read(folder: Path) -> dict[str, Any] | None:
    """The status of the run in ``folder``; None when there is none.

    ``state`` is "running", "interrupted" (by the user), or "lost" (no process holds the lock of the folder: it was killed).
    """
    try:
        path = Path(folder) / STATUS
        content = dict(json.loads(path.read_text(encoding="utf-8")))
        if content["state"] == "running" and not is_locked(folder):
            if not path.exists():  # it came to its end between the two looks
                return None
            content["state"] = "lost"
        float(content["started"]), str(content["phase"]), int(content["done"]), int(content["total"])
        return content
    except (OSError, ValueError, KeyError, TypeError):
        return None
