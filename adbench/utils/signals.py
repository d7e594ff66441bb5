"""Stopping in order: SIGTERM and SIGHUP act like Ctrl-C, and a training ends its step before it stops."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ONE_WISH = 1.0  # seconds in which several signals are one wish: a terminal and a parent may both send theirs
_last: int = signal.SIGINT  # that raised; Ray raises a KeyboardInterrupt of its own in the place of another
_raised = 0  # interrupts so far
_counted = False  # whether every interrupt is one of them


def exit_code() -> int:
    """The exit code of a process that a ``KeyboardInterrupt`` ends: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."""
    return 128 + _last


def signal_name() -> str:
    """The name of the signal behind the last ``KeyboardInterrupt``."""
    return signal.Signals(_last).name


def _stop(number: int) -> None:
    global _last, _raised
    _last, _raised = number, _raised + 1
    raise KeyboardInterrupt


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None], *, handled: bool = False) -> Iterator[None]:
    """Within the block ``handler`` gets the signals that are not ignored, or only those that are ``handled`` already."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in _ALL}
    before = {n: old for n, old in before.items() if callable(old) or (old == signal.SIG_DFL and not handled)}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def as_interrupts() -> Iterator[None]:
    """Within the block SIGINT, SIGTERM and SIGHUP raise a ``KeyboardInterrupt``, once a second at most."""
    global _last, _counted
    _last, last, before = signal.SIGINT, -math.inf, _counted

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal last
        if time.monotonic() - last >= _ONE_WISH:
            last = time.monotonic()
            _stop(number)

    with _handling(stop):
        _counted = threading.current_thread() is threading.main_thread()
        try:
            yield
        finally:
            _counted = before


@contextmanager
def insisting() -> Iterator[None]:
    """A block of somebody else's code, which ends with an interrupt if there was one, even if that code caught it.

    A copy of this process that the code has forked, and lets out of the block, ends here.

    Raises:
        RuntimeError: the code raised a ``KeyboardInterrupt`` though there was no signal.
    """
    process, raised, handler = os.getpid(), _raised, signal.getsignal(signal.SIGINT)
    try:
        yield
    except KeyboardInterrupt as stop:
        if _counted and _raised == raised and signal.getsignal(signal.SIGINT) is handler:
            raise RuntimeError("KeyboardInterrupt was raised, but nobody has interrupted") from stop
        raise
    finally:
        if os.getpid() != process:
            os._exit(1)
        if _raised > raised:
            raise KeyboardInterrupt


class Held:
    """The signal that waits; true when there is one."""

    def __init__(self) -> None:
        self._number, self._since = 0, 0.0

    def __bool__(self) -> bool:
        return self._number > 0

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self and time.monotonic() - self._since >= _ONE_WISH:
            self.end()
        if not self:
            self._number, self._since = number, time.monotonic()

    def end(self) -> None:
        """Raise the ``KeyboardInterrupt`` that waits, if there is one."""
        if self:
            _stop(self._number)


@contextmanager
def held() -> Iterator[Held]:
    """Within the block an interrupt waits for the end of the block, unless it comes again a second later.

    Yields:
        What is true as soon as one waits: the block then saves what is worth it, and calls :meth:`Held.end`.
    """
    waiting = Held()
    with _handling(waiting._take, handled=True):
        yield waiting
    waiting.end()
