"""A command whose cells may crash: it works in a child process, and a child that dies takes one cell with it.

Whatever the child has started, Ray's own processes too, ends with it.

The child is forked before anything heavy is imported, so that it costs nothing. It says which cell it is at; when it dies,
or takes too long, that cell has failed, and another child goes on with the rest.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import NoReturn

from adbench.errors import UserError
from adbench.utils.distributed import world
from adbench.utils.processes import GRACE, adopt, end_descendants, end_unless, exit_reason

_TICK = 0.1  # seconds between two looks at a child that says nothing


@dataclass(frozen=True)
class Ended:
    """How a cell ended.

    Attributes:
        reason: why it has no record, in one line; "" when it has.
        seconds: it took.
        died: its process did, and could not leave a ``failure.json``.
    """

    reason: str = ""
    seconds: float = 0.0
    died: bool = False


@dataclass
class Journal:
    """What one command has done: kept beyond the death of the process that works.

    Attributes:
        ended: the cells that earlier children have run, by key.
    """

    ended: dict[str, Ended] = field(default_factory=dict)
    _pipe: int | None = None

    def begin(self, key: str) -> None:
        """The cell ``key`` begins."""
        self._write({"begin": key})

    def end(self, key: str, reason: str = "", seconds: float = 0.0) -> None:
        """It has ended, as in :class:`Ended`."""
        self._write({"end": key, "reason": reason[:2000], "seconds": seconds})

    def leave(self) -> None:
        """No cell is at work any more, because the user stops the command."""
        self._write({"begin": ""})

    def _write(self, entry: dict[str, object]) -> None:
        if self._pipe is not None:
            with suppress(BrokenPipeError):  # the parent was killed: this process is about to be stopped
                os.write(self._pipe, (json.dumps(entry) + "\n").encode())


def supervised(time_limit: float | None = None) -> Journal:
    """From here on, work in a child process; this one waits for it, and ends with its exit code.

    Args:
        time_limit: seconds that a cell may take.

    Returns:
        In the child: where it says what it does. In a process that already computes (a notebook), and under a launcher of
        several processes, in that process itself: a crash is then the end of it.

    Raises:
        UserError: a time limit, where no child can be started.
    """
    if "numpy" in sys.modules or world() > 1:
        if time_limit is not None:
            raise UserError(
                "--time-limit ends a process: it is for `adbench run` without a launcher of several processes."
            )
        return Journal()
    adopt()
    ended: dict[str, Ended] = {}
    parent = os.getpid()
    while True:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(reader)
            adopt()
            atexit.register(end_descendants)
            end_unless(lambda: os.getppid() == parent)
            return Journal(ended, writer)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            at, begun, code = _follow(child, pipe.fileno(), ended, time_limit)
        end_descendants()
        if not at:
            _exit(code)
        ended.setdefault(at, Ended(exit_reason(code), time.monotonic() - begun, died=True))


def _exit(code: int) -> NoReturn:
    if code < 0:
        from adbench.utils.console import complain

        complain(f"The command has stopped: {exit_reason(code)}.")
    sys.exit(code if code >= 0 else 128 - code)


def _follow(child: int, pipe: int, ended: dict[str, Ended], time_limit: float | None) -> tuple[str, float, int]:
    """Take in what a child says until it is dead; end it when a cell takes too long.

    Returns:
        The cell that it died at ("" for none), when that began, and the exit code of the child.
    """

    def forward(number: int, frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            os.kill(child, number)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    before = {number: old for number, old in before.items() if old != signal.SIG_IGN}
    for number in before:
        signal.signal(number, forward)
    at, begun, text, listening, overdue = "", 0.0, b"", True, 0.0
    try:
        while True:
            if select.select([pipe] if listening else [], [], [], _TICK)[0]:
                said = os.read(pipe, 1 << 16)
                listening = bool(said)
                *lines, text = (text + said).split(b"\n")
                for line in map(json.loads, lines):
                    if "end" in line:
                        ended.setdefault(line["end"], Ended(line["reason"], line["seconds"]))
                    if not overdue:
                        at, begun = line.get("begin", ""), time.monotonic()
                continue
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return at, begun, os.waitstatus_to_exitcode(status)
            now = time.monotonic()
            if overdue and now - overdue > GRACE:
                os.kill(child, signal.SIGKILL)
            elif at and not overdue and time_limit is not None and now - begun > time_limit:
                overdue = now
                ended[at] = Ended(f"it took longer than --time-limit ({time_limit:g} s)", now - begun, died=True)
                os.kill(child, signal.SIGTERM)
    finally:
        for number, old in before.items():
            signal.signal(number, old)
