"""One item may end its process in any way; the others do not notice."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from contextlib import suppress

import psutil

from adbench.errors import UserError
from adbench.utils import guarded


def _act(what: str) -> str:
    if what == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "exit":
        os._exit(3)
    if what == "hang":
        time.sleep(60)
    if what == "eat":
        bytearray(1 << 30)
    if what.startswith("connect"):
        with suppress(OSError), socket.create_connection(("127.0.0.1", int(what.split()[1])), 1):
            return "reached"
        return "away"
    if what == "refuse":
        raise UserError("x.json: no.")
    if what == "fault":
        raise KeyError("left out")
    return what.upper()


def test_whatever_ends_a_process_is_the_outcome_of_its_item_alone() -> None:
    items = ["a", "crash", "b", "exit", "hang", "c", "eat", "refuse", "d", "fault", "e"]
    start = time.monotonic()
    found = list(guarded.each(_act, items, memory=256 << 20, seconds=1.0, workers=2))
    assert time.monotonic() - start < 10
    assert [one.item for one in found] == items
    assert [one.result for one in found if one.result] == list("ABCDE")
    assert {one.item: one.why for one in found if one.result is None} == {
        "crash": "its process was ended by signal 9 (SIGKILL: the kernel does this when memory runs out)",
        "exit": "its process ended by itself with exit code 3, without a result",
        "hang": "it takes more than 1 s",
        "eat": "it takes more than 256 MiB of memory",
        "refuse": "x.json: no.",
        "fault": "reading it failed with KeyError: 'left out'",
    }


def test_a_reader_reaches_no_network() -> None:
    probe = os.fork()
    if not probe:
        os._exit(not guarded.leave_network())
    allowed = os.waitstatus_to_exitcode(os.waitpid(probe, 0)[1]) == 0
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert _act(f"connect {port}") == "reached"
        (found,) = guarded.each(_act, [f"connect {port}"], memory=1 << 28, seconds=30.0)
    assert found.result == ("away" if allowed else "reached")


def test_nothing_to_do_and_a_reader_that_stops_early() -> None:
    assert list(guarded.each(_act, [], memory=1 << 28, seconds=1.0)) == []
    outcomes = guarded.each(_act, ["a", "hang", "hang"], memory=1 << 28, seconds=60.0, workers=2)
    assert next(outcomes).result == "A"
    start = time.monotonic()
    outcomes.close()  # type: ignore[attr-defined]
    assert time.monotonic() - start < 5


def _hang() -> None:
    list(guarded.each(_act, ["hang"], memory=1 << 28, seconds=60.0))


def test_no_worker_outlives_a_command_that_is_killed() -> None:
    command = multiprocessing.get_context("spawn").Process(target=_hang)
    command.start()
    assert command.pid is not None
    deadline, workers = time.monotonic() + 60, []
    while not workers and time.monotonic() < deadline:
        time.sleep(0.05)
        workers = psutil.Process(command.pid).children()
    command.kill()
    command.join()
    assert workers
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
