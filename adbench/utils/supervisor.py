"""Run the cells of a command in a child process, so that a crash ends one cell and not the command.

Whatever the child has started, Ray's own processes too, ends with it.

The child has a session of its own: a signal that it sends to its group does not reach this process, and one that the user
sends here, from a terminal too, is passed on. A child that is interrupted without a request from the user has interrupted
itself, and its cell has failed.

The child is forked before anything heavy is imported, so that it costs nothing. It says which cell it is at; when it dies,
or takes too long, that cell has failed, and another child goes on with the rest. So it does when the child asks for it,
because a plug-in may have changed what the next cell would compute.
"""

from __future__ import annotations

import atexit
import json
import math
import mmap
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NoReturn

from adbench.errors import UserError, trace_of
from adbench.utils.distributed import world
from adbench.utils.files import Descriptor
from adbench.utils.processes import GRACE, adopt, end_descendants, end_unless, exit_reason, wake_with_parent

_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP)
_TICK = 0.1  # seconds between two looks at a child that says nothing
_ONE_WISH = 1.0  # seconds in which several signals are one wish of the user
_PATIENCE = 60.0  # seconds after a signal in which a training may end its step and save it
_DEAF = 74  # exit code of a child whose way to its parent was closed by other code
_child = 0  # the process id of this process where it is a child


@dataclass(frozen=True)
class Ended:
    """The end of a cell.

    Attributes:
        reason: why it has no record, in one line; "" when it has.
        seconds: it took.
        died: its process did, and could not leave a ``failure.json``.
    """

    reason: str = ""
    seconds: float = 0.0
    died: bool = False


class HandedOver(SystemExit):
    """Ends a child: another one goes on."""


@dataclass
class Journal:
    """Progress of a command, kept when the process that works dies.

    Attributes:
        ended: the cells that earlier children have run, by key.
        shared: why the cells have no child to run in, where that is not plain; "" otherwise.
    """

    ended: dict[str, Ended] = field(default_factory=dict)
    shared: str = ""
    _pipe: Descriptor | None = None
    _time_limit: float | None = None
    _begun: float = 0.0
    _told: mmap.mmap | None = None  # one byte that the parent shares: 1 once it has asked its child to stop
    _parent: int = 0

    def begin(self, key: str) -> None:
        """The cell ``key`` begins."""
        self._begun = time.monotonic()
        self._write({"begin": key})

    def end(self, key: str, reason: str = "", seconds: float = 0.0) -> None:
        """It has ended, as in :class:`Ended`."""
        self._begun = 0.0
        self._write({"end": key, "reason": reason, "seconds": seconds})

    def leave(self) -> None:
        """No cell is at work any more, because the user stops the command."""
        self._write({"begin": ""})

    def hand_over(self) -> None:
        """Let another child go on with the cells that are left; in a process that is no child this one goes on."""
        if self._pipe is not None:
            self._write({"again": True})
            raise HandedOver

    @property
    def overdue(self) -> bool:
        """Whether the cell at work has used up its time, so that an interrupt is not the user's."""
        return bool(self._time_limit and self._begun and time.monotonic() - self._begun > self._time_limit)

    @property
    def unasked(self) -> bool:
        """Whether an interrupt of this process comes from its own code, and not from the user or the end of the parent."""
        return self._told is not None and not self._told[0] and os.getppid() == self._parent

    def _write(self, entry: dict[str, object]) -> None:
        if self._pipe is None:
            return
        try:
            os.write(self._pipe.check(), (json.dumps(entry) + "\n").encode())
        except BrokenPipeError:
            pass  # the parent was killed: this process is about to be stopped
        except OSError:  # the parent is gone: what this process does from now on is not reported
            os._exit(_DEAF)


def supervised(time_limit: float | None = None, *, resume: str = "Run the same command again to resume.") -> Journal:
    """From here on, work in a child process; this one waits for it, and ends with its exit code.

    Args:
        time_limit: seconds that a cell may take.
        resume: what the user can do after a child that was interrupted had to be killed.

    Returns:
        In the child: where it says what it does. In a process that already computes, and under a launcher of several
        processes, in that process itself: a crash is then the end of it.

    Raises:
        UserError: a time limit, where no child can be started.
    """
    global _child
    if world() > 1:
        if time_limit is not None:
            raise UserError("--time-limit ends a process: it is not for a launcher of several processes.")
        return Journal()
    if "numpy" in sys.modules:
        loaded = "numpy was loaded before adbench began (by sitecustomize, a .pth file or the calling program)"
        if time_limit is not None:
            raise UserError(f"--time-limit ends a process of its own, but {loaded}: start adbench without that.")
        return Journal(shared=f"{loaded}: the cells share this process, and one that crashes ends the command.")
    import psutil  # noqa: F401 - which ends descendants: a child may have no memory left to import it

    adopt()
    ended: dict[str, Ended] = {}
    parent = os.getpid()
    while True:
        told = mmap.mmap(-1, 1)
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(reader)
            os.setsid()
            wake_with_parent()
            adopt()
            _child = os.getpid()
            atexit.register(end_descendants)
            end_unless(lambda: os.getppid() == parent)
            return Journal(ended, "", Descriptor(writer), time_limit, _told=told, _parent=parent)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            watched = _Child(child, ended, told)
            code = watched.follow(pipe.fileno(), time_limit)
        end_descendants()
        if watched.asked and (watched.at or watched.again or code < 0):
            _exit(128 + watched.asked, f"Interrupted. {resume}")
        if not watched.at and not watched.again:
            stopped = f"The command has stopped: {_reason(code)}." if code < 0 or code == _DEAF else ""
            _exit(code if code >= 0 else 128 - code, stopped)
        if watched.at:
            ended.setdefault(watched.at, Ended(_reason(code), time.monotonic() - watched.begun, died=True))


def _reason(code: int) -> str:
    """Why a child that ended with ``code`` has left no result."""
    return "it has closed files that adbench had opened" if code == _DEAF else exit_reason(code)


def _exit(code: int, message: str) -> NoReturn:
    if message:
        from adbench.utils.console import complain

        complain(message)
    sys.exit(code)


@contextmanager
def ending() -> Iterator[None]:
    """The block is all that this process does: a child is gone behind it, whatever threads a plug-in has left running."""
    try:
        yield
    except BaseException as error:
        if os.getpid() != _child:
            raise
        code = error.code if isinstance(error, SystemExit) else 1
        if not isinstance(error, SystemExit):
            with suppress(OSError, ValueError):
                print(trace_of(error), end="", file=sys.stderr)
        elif not isinstance(code, int | None):
            print(code, file=sys.stderr)
            code = 1
        try:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):  # closed by a plug-in, or by who reads it
                    stream.flush()
            end_descendants()
        finally:  # where memory is short, the parent finds the descendants
            os._exit(int(code or 0))


class _Child:
    """A child at work, seen from its parent.

    Attributes:
        at: the cell that it is at; "" for none.
        begun: when that began.
        again: it has asked for another child to go on.
        asked: the signal by which the user has asked it to stop; 0 for none.
    """

    def __init__(self, pid: int, ended: dict[str, Ended], told: mmap.mmap) -> None:
        self.at, self.begun, self.again, self.asked = "", 0.0, False, 0
        self._pid, self._ended, self._told = pid, ended, told
        self._overdue = False
        self._wished, self._late = -math.inf, math.inf  # when the user last asked; when it is killed

    def follow(self, pipe: int, time_limit: float | None) -> int:
        """Take in what it says until it is dead; end it when a cell takes too long, or when it does not listen.

        Returns:
            Its exit code.
        """
        before = {number: signal.getsignal(number) for number in _PASSED_ON}
        before = {number: old for number, old in before.items() if old != signal.SIG_IGN}
        for number in before:
            signal.signal(number, self._pause if number == signal.SIGTSTP else self._forward)
        text, listening = b"", True
        try:
            while True:
                if select.select([pipe] if listening else [], [], [], _TICK)[0]:
                    said = os.read(pipe, 1 << 16)
                    listening = bool(said)
                    *lines, text = (text + said).split(b"\n")
                    for line in map(json.loads, lines):
                        self._hear(line)
                    continue
                done, status = os.waitpid(self._pid, os.WNOHANG)
                if done:
                    return os.waitstatus_to_exitcode(status)
                now = time.monotonic()
                if now > self._late:
                    os.kill(self._pid, signal.SIGKILL)
                elif self.at and not self._overdue and time_limit is not None and now - self.begun > time_limit:
                    self._overdue, self._late = True, min(self._late, now + GRACE)
                    reason = f"it took longer than --time-limit ({time_limit:g} s)"
                    self._ended[self.at] = Ended(reason, now - self.begun, died=True)
                    self._told[0] = 1
                    os.kill(self._pid, signal.SIGTERM)
        finally:
            for number, old in before.items():
                signal.signal(number, old)

    def _hear(self, line: dict[str, Any]) -> None:
        self.again = "again" in line
        if "end" in line:
            self._ended.setdefault(line["end"], Ended(line["reason"], line["seconds"]))
        if not self._overdue:
            self.at, self.begun = line.get("begin", ""), time.monotonic()

    def _pause(self, number: int, frame: FrameType | None) -> None:
        """Stop with all that the child has started, as a shell stops a job at Ctrl-Z, and go on together."""
        begun = time.monotonic()
        with suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGSTOP)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        signal.signal(number, self._pause)
        self.begun += time.monotonic() - begun
        with suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGCONT)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._wished >= _ONE_WISH:
            self._late = min(self._late, now + (GRACE if self.asked else _PATIENCE))
            self._wished = now
        self.asked, self._told[0] = self.asked or number, 1
        with suppress(ProcessLookupError):
            os.kill(self._pid, number)
