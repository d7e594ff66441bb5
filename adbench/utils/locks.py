"""Locks on folders: one process works on a folder, the others wait and can say which one has it.

A lock is held by the operating system for as long as its process lives, so a killed process never leaves one behind. On
NFS version 4, and version 3 with its lock service, locks hold between machines too; there the lock of a machine that lost
its power or its network is freed by the file server after its grace period, usually 90 seconds. A file system without locks
(``flock``) gets a lock file that names its process: one left by a killed process is removed on the same machine only.
"""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"  # in the folder while it is locked; one that a killed process left is taken at once
_POLL = 0.1  # seconds between two attempts
_ASKING = 0.05  # seconds in which a lock that was only asked about (:func:`is_locked`) is surely free again


@contextmanager
def acquire(folder: Path, waiting: Callable[[str], None] = lambda owner: None) -> Iterator[None]:
    """Work on ``folder`` alone among all processes and threads that ask in this way.

    Args:
        folder: is created if need be.
        waiting: called twice a second while another process has the lock, with that process in words; what it raises ends
            the wait.
    """
    from filelock import FileLock, SoftFileLock, Timeout

    path = Path(folder) / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    timeout, interval = _ASKING, _ASKING / 10
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flock not supported")
        while True:
            try:
                lock.acquire(timeout=timeout, poll_interval=interval)
                break
            except Timeout:
                timeout, interval = 5 * _POLL, _POLL
                waiting(_owner(path))
    by_system = not isinstance(lock, SoftFileLock)  # else the file is the lock, and filelock writes it
    try:
        if by_system:
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        if by_system:
            path.unlink(missing_ok=True)  # who has opened it meanwhile sees that it has no name, and opens a new one
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether a process that is alive holds the lock of ``folder``; asking needs no permission to write there."""
    import fcntl

    try:
        with open(Path(folder) / LOCK, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            except OSError:  # a file system without locks: the file is there while the lock is held
                return True
            return False
    except OSError:
        return False


def _owner(path: Path) -> str:
    """The process that wrote its name into the lock file, in words."""
    try:
        words = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        words = ""
    return words if words.startswith("process ") else "another process"
