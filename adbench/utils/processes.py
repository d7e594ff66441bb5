"""Processes that end together: what a cell starts ends with it, whatever session it has made for itself."""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

GRACE = 5.0  # seconds that a process has to save what it is doing
_LOOK = 0.2  # seconds between two looks at whether another process is alive
_PARENT_ENDS = 1  # PR_SET_PDEATHSIG of prctl(2)
_ADOPT = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)


def exit_reason(code: int) -> str:
    """What the exit code of a process that left no result means, in words."""
    if code >= 0:
        return f"its process ended by itself with exit code {code}, without a result"
    name = signal.Signals(-code)
    why = {
        signal.SIGKILL: ": the kernel does this when memory runs out",
        signal.SIGABRT: ": libraries do this when they get no more memory",
    }
    return f"its process was ended by signal {-code} ({name.name}{why.get(name, '')})"


def in_child(work: Callable[[], Any], seconds: float) -> tuple[Any, str]:
    """What ``work`` gives in a copy of this process, whatever that does to the copy.

    Args:
        work: gives a JSON value, and not None.
        seconds: that it may take.

    Returns:
        The value, and ""; or None, and why there is none.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writer, (json.dumps(work()) + "\n").encode())
        finally:
            os._exit(0)
    os.close(writer)
    end, said, late = time.monotonic() + seconds, b"", False
    try:
        with os.fdopen(reader, "rb", buffering=0) as pipe:
            while not said.endswith(b"\n"):  # the end of the file waits for all that the copy has started
                late = not select.select([pipe], [], [], max(0.0, end - time.monotonic()))[0]
                if late or not (more := pipe.read(1 << 16)):
                    break
                said += more
    finally:
        os.kill(child, signal.SIGKILL)  # a thread may keep it, or an interrupt ends this process
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if late:
        return None, f"it takes more than {seconds:.0f} s"
    return (json.loads(said), "") if said.endswith(b"\n") else (None, exit_reason(code))


def adopt() -> None:
    """From now on a process below this one becomes its child when its parent ends (Linux), so that it can be found."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_ADOPT, 1)


def wake_with_parent() -> None:
    """When the parent of this process ends, this one goes on if it was stopped (Linux), so that it can end too."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_ENDS, signal.SIGCONT)


def children() -> set[int]:
    """The processes that are children of this one now."""
    import psutil

    return {child.pid for child in psutil.Process().children()}


def end_descendants(keep: Collection[int] = ()) -> None:
    """Kill every process below this one, those that are started meanwhile too.

    Args:
        keep: children that stay, with all that is below them.
    """
    import psutil

    for _ in range(5):
        below = []
        for child in psutil.Process().children():
            if child.pid not in keep:
                with suppress(psutil.NoSuchProcess):
                    below += [p for p in (child, *child.children(True)) if p.status() != psutil.STATUS_ZOMBIE]
        if not below:
            return
        for process in below:
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                process.kill()
        psutil.wait_procs(below, timeout=1)  # collects those that are children of this one


def end_unless(needed: Callable[[], bool]) -> None:
    """Stop this process in order as soon as ``needed`` says no; what is left after :data:`GRACE` is killed."""

    def watch() -> None:
        while needed():
            time.sleep(_LOOK)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        end_descendants()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="adbench-parent").start()
