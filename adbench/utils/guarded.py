"""Run a function on untrusted files in processes with limits on memory and time and no network; a crash ends one item only."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from time import monotonic
from typing import Any, Generic, TypeVar

from adbench.errors import UserError
from adbench.utils.processes import end_unless, exit_reason

_OURS = "that `ulimit -v` allows: raise that limit"
_NEW_USER, _NEW_NET = 0x10000000, 0x40000000  # CLONE_NEWUSER and CLONE_NEWNET of unshare(2)
Item = TypeVar("Item")
Value = TypeVar("Value")


@dataclass(frozen=True)
class GuardedResult(Generic[Item, Value]):
    """The outcome of one item: a result, or why there is none."""

    item: Item
    result: Value | None
    why: str = ""


def each(
    function: Callable[[Item], Value],
    items: Sequence[Item],
    *,
    memory: int,
    seconds: float,
    workers: int | None = None,
) -> Iterator[GuardedResult[Item, Value]]:
    """``function`` of each item, in processes of this machine.

    Args:
        function: of a module; an exception that it raises is the outcome.
        items: one after the other.
        memory: bytes of address space that a process may take beyond what it starts with.
        seconds: that an item may take.
        workers: processes; default: one a core.

    Yields:
        One outcome an item, in their order. Whatever ends a process is the outcome of its item alone.
    """
    count = min(workers or os.cpu_count() or 1, len(items))
    waiting, done, turn = deque(range(len(items))), {}, 0
    idle: list[_Worker] = []
    busy: dict[Connection, tuple[_Worker, int, float]] = {}
    try:
        while turn < len(items):
            while waiting and len(busy) < count:
                worker = idle.pop() if idle else _Worker(function, memory)
                number = waiting.popleft()
                worker.pipe.send(items[number])
                busy[worker.pipe] = (worker, number, monotonic() + seconds)
            ready = wait(list(busy), max(0.0, min(end for _, _, end in busy.values()) - monotonic()))
            for pipe, (worker, number, end) in list(busy.items()):
                if pipe in ready:
                    answer = worker.receive()
                elif monotonic() >= end:
                    answer = None, f"it takes more than {seconds:.0f} s"
                    worker.stop()
                else:
                    continue
                del busy[pipe]
                if worker.alive:
                    idle.append(worker)
                done[number] = GuardedResult(items[number], *answer)
            while turn in done:
                yield done.pop(turn)
                turn += 1
    finally:
        for worker in (*idle, *(worker for worker, _, _ in busy.values())):
            worker.stop()


class _Worker:
    """A process that computes one result after another."""

    def __init__(self, function: Callable[..., object], memory: int) -> None:
        context = get_context()
        self.pipe, theirs = context.Pipe()
        most, self._most = _address_space(memory)
        self._process: BaseProcess = context.Process(
            target=_serve, args=(function, theirs, self.pipe, most, self._most, os.getpid()), daemon=True
        )
        self._process.start()
        theirs.close()
        self.alive = True

    def receive(self) -> tuple[Any, str]:
        """The result, or why there is none."""
        try:
            answer: tuple[Any, str] = self.pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode or 0
            self.stop()
            why = exit_reason(code)
            if -code == signal.SIGABRT or self._most.endswith(_OURS):
                why += f"; it gets no more than {self._most}"
            return None, why
        return answer

    def stop(self) -> None:
        self.alive = False
        self._process.kill()
        self._process.join()
        self.pipe.close()


def leave_network() -> bool:
    """From now on this process, of one thread, reaches no network, its own machine's neither; whether the system let it."""
    if sys.platform != "linux":
        return False
    unshare = ctypes.CDLL(None).unshare
    return any(
        unshare(what) == 0 for what in (_NEW_NET, _NEW_USER | _NEW_NET)
    )  # who is not root needs users of its own


def _address_space(memory: int) -> tuple[int | None, str]:
    """Address space of a process that may take ``memory`` beyond what it starts with, in bytes (None: any), and in words."""
    with suppress(ImportError):  # systems without limits on processes
        import resource

        import psutil

        most = psutil.Process().memory_info().vms + memory
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        if hard != resource.RLIM_INFINITY and hard < most:
            return hard, f"the {hard >> 20} MiB {_OURS}"
        return most, f"{memory >> 20} MiB of memory"
    return None, ""


def _serve(
    function: Callable[..., object], pipe: Connection, theirs: Connection, most: int | None, words: str, asked: int
) -> None:
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # of libraries that are imported later
    from threadpoolctl import threadpool_limits

    theirs.close()
    leave_network()
    end_unless(lambda: os.getppid() == asked)  # a file that takes for ever does not outlive a command that was killed
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the outcome says what is wrong; a library that dies would say it raw
    threadpool_limits(1)  # processes share the cores: with BLAS threads of each, all take three times as long
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started this one gets it, and ends this one
    if most is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
    with suppress(EOFError, OSError):
        while True:
            item = pipe.recv()
            try:
                pipe.send((function(item), ""))
            except MemoryError:
                pipe.send((None, f"it takes more than {words}"))
            except UserError as error:
                pipe.send((None, str(error)))
            except Exception as error:
                pipe.send((None, f"reading it failed with {type(error).__name__}: {error}"))
