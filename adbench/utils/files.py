"""Writing files so that a reader sees the old one or the new one, never half of one."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import socket
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_NAME = 50  # characters of a file's name in that of its temporary file: together they fit in what a folder takes
_swept: set[Path] = set()  # folders that this process has looked at


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success flush it to disk and rename it into place.

    On any error (a full disk, an interrupt) the temporary file is removed and ``path`` stays as it was. Those of processes
    that were killed go when a process first writes to their folder.

    Args:
        path: the file.
        durable: False saves the flush, for what may be lost with the power.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        if durable:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # an error of writing does not say where
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``, for what becomes that file or folder; it is removed behind the block."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = _temporary(path)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _temporary(path: Path) -> Path:
    """A name beside ``path`` that no other process uses, after what killed processes left there is gone."""
    folder = path.parent.absolute()
    if folder not in _swept:
        _swept.add(folder)
        _sweep_dead(folder)
    return path.with_name(f".{path.name[:_NAME]}.{_place()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _place() -> str:
    """What tells the machine, and the container on it, in which a process id means a process."""
    name = socket.gethostname()
    with suppress(OSError):
        name += str(Path("/proc/self/ns/pid").readlink())
    return f"{zlib.crc32(name.encode()):08x}"


def _sweep_dead(folder: Path) -> None:
    ours = re.compile(rf"\..*\.{_place()}-(\d+)-[0-9a-f]{{8}}\.tmp", re.DOTALL)
    for path in folder.glob(".*.tmp"):
        if (found := ours.fullmatch(path.name)) and not _lives(int(found[1])):
            _remove(path)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it is another user's
        pass
    return True


_LEFT = re.compile(r"\.tmp.*|\..*\.tmp")  # names of safetensors' own temporary files, and of ours


def sweep(folder: Path) -> None:
    """Remove all temporary files below ``folder``, those of other machines too; the caller has its lock."""
    for path in [path for path in folder.rglob(".*") if _LEFT.fullmatch(path.name)]:
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


class Descriptor:
    """The number of an open file that other code in this process may close, and that another file may then be given."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._file = self._now()

    def _now(self) -> tuple[int, int]:
        state = os.fstat(self.number)
        return state.st_dev, state.st_ino

    def check(self) -> int:
        """The number.

        Raises:
            OSError: it is not that of the file any more.
        """
        if self._now() != self._file:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self.number


def write_text(path: Path, text: str) -> None:
    """Atomically write ``text`` (UTF-8)."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Atomically write ``value`` as indented JSON in its own order; NaN and infinities are refused (they are not JSON)."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")
