"""Who is at work on a folder, and whether they still are.

A process that works on a folder holds a *lease*: a file that says which process it is, touched every few seconds. On the
same machine a process that ended is known at once; from elsewhere a lease counts as left behind when nobody has touched it
for :data:`STALE` seconds by the clock of the file system. A lease that was left behind is taken over.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

LEASE = ".lease"
BEAT = 5.0  # seconds between two signs of life
STALE = 60.0  # seconds without one


@cache
def _machine() -> str:
    """The place where a process number means the same process: host, boot, process namespace."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8])
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))  # noqa: PTH115 - it links to no path
    return " ".join(parts)


def _born(pid: int) -> str | None:
    """When process ``pid`` of this machine started, in ticks; None when there is none (or no longer)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return ""
    return None if fields[0] in "ZX" else fields[19]


def me() -> dict[str, Any]:
    """This process, for a file that others read."""
    return {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid(), "born": _born(os.getpid())}


def gone(owner: dict[str, Any], touched: float, now: float | None = None) -> bool:
    """Whether the process that wrote ``owner`` works no more.

    Args:
        owner: from :func:`me`, with or without other keys.
        touched: modification time of the file it came from, in seconds.
        now: the present by the same clock; None: this machine's.
    """
    if owner.get("machine") == _machine():
        return _born(int(owner["pid"])) != owner["born"]
    return (time.time() if now is None else now) - touched > STALE


@contextmanager
def beating(*tasks: Callable[[], object], every: float = BEAT) -> Iterator[None]:
    """Call ``tasks`` every few seconds in the background; a full disk or an unreachable one does not stop the work."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(every):
            for task in tasks:
                with suppress(OSError):
                    task()

    thread = threading.Thread(target=beat, daemon=True, name="adbench-beat")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def held(folder: Path, waiting: Callable[[str], None] = lambda owner: None, poll: float = 0.5) -> Iterator[bool]:
    """Work on ``folder`` alone among all processes that ask in this way, on this machine or another one.

    Args:
        folder: is made if need be.
        waiting: called now and then while another process has it, with the process in words.
        poll: seconds between two looks.

    Yields:
        Whether there was a wait: what one wants to do may have been done by then.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lease = folder / LEASE
    mine = json.dumps({**me(), "token": uuid4().hex})
    waited = False
    while not _take(lease, mine):
        owner = _read(lease)
        if _left_behind(lease, owner):
            _clear(lease, owner)
            continue
        waited = True
        waiting(f"process {owner['pid']} on {owner['host']}" if owner else "another process")
        time.sleep(poll)
    try:
        with beating(lambda: os.utime(lease)):
            yield waited
    finally:
        if (_read(lease) or {}).get("token") == json.loads(mine)["token"]:
            lease.unlink(missing_ok=True)


def _take(lease: Path, content: str) -> bool:
    try:
        handle = os.open(lease, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w") as file:
        file.write(content)
    return True


def _read(lease: Path) -> dict[str, Any] | None:
    """What the lease says; None when it is not there or only half written."""
    try:
        return dict(json.loads(lease.read_text()))
    except (OSError, ValueError):
        return None


def _now(folder: Path) -> float:
    """The present by the clock that dates the files in ``folder``."""
    probe = folder / f".now.{uuid4().hex}"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink()


def _left_behind(lease: Path, owner: dict[str, Any] | None) -> bool:
    try:
        touched = lease.stat().st_mtime
    except FileNotFoundError:
        return False
    now = _now(lease.parent)
    return now - touched > STALE if owner is None else gone(owner, touched, now)


def _clear(lease: Path, owner: dict[str, Any] | None) -> None:
    """Remove the lease of ``owner``, and only that one: somebody else may have taken over in the meantime."""
    aside = lease.with_name(f"{lease.name}.{uuid4().hex}")
    try:
        os.rename(lease, aside)
    except FileNotFoundError:
        return
    if (_read(aside) or {}).get("token") != (owner or {}).get("token"):
        with suppress(OSError):
            os.link(aside, lease)  # refuses to overwrite a third one's
    aside.unlink()
