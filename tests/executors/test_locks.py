"""Locks on folders: one holder at a time, known by name, and free as soon as the holder is killed."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from adbench.utils.locks import LOCK, acquire, is_locked


def _add_one(folder: str, times: int) -> None:
    for _ in range(times):
        with acquire(Path(folder)):
            value = int((Path(folder) / "value").read_text())
            time.sleep(0.001)
            (Path(folder) / "value").write_text(str(value + 1))


def test_processes_take_turns(tmp_path: Path) -> None:
    (tmp_path / "value").write_text("0")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_add_one, args=(str(tmp_path), 15)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert (tmp_path / "value").read_text() == "60"
    assert not is_locked(tmp_path)
    assert not (tmp_path / LOCK).exists()


HOLD = """
import sys, time
from pathlib import Path
from adbench.utils.locks import acquire
with acquire(Path(sys.argv[1])):
    print("holds", flush=True)
    time.sleep(60)
"""


def test_a_killed_holder_blocks_for_less_than_a_second(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "holds\n"
    assert is_locked(tmp_path)
    seen: list[str] = []
    killed: list[float] = []

    def waiting(owner: str) -> None:
        seen.append(owner)
        if len(seen) == 2:
            holder.send_signal(signal.SIGKILL)
            killed.append(time.monotonic())

    with acquire(tmp_path, waiting):
        assert time.monotonic() - killed[0] < 1
        assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on ")
    assert seen[0].startswith(f"process {holder.pid} on ")
    holder.wait()
    with acquire(tmp_path, lambda owner: pytest.fail(f"{owner} still has it")):
        pass


def test_what_the_callback_raises_ends_the_wait(tmp_path: Path) -> None:
    def refuse(owner: str) -> None:
        raise RuntimeError(owner)

    with acquire(tmp_path):
        with pytest.raises(RuntimeError, match=f"process {os.getpid()} on"), acquire(tmp_path, refuse):
            raise AssertionError("two have the lock")
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)


def test_somebody_who_may_only_read_sees_who_is_at_work(tmp_path: Path) -> None:
    assert not is_locked(tmp_path)
    with acquire(tmp_path):
        (tmp_path / LOCK).chmod(0o444)
        tmp_path.chmod(0o555)
        assert is_locked(tmp_path)
        tmp_path.chmod(0o755)
    assert not is_locked(tmp_path / "nothing there")


def test_asking_keeps_nobody_waiting(tmp_path: Path) -> None:
    (tmp_path / LOCK).touch()
    asks, done = threading.Event(), threading.Event()

    def ask() -> None:  # as is_locked does, only slower
        while not done.is_set():
            with open(tmp_path / LOCK, "a+b") as file:  # a lock that is released takes its file away
                fcntl.flock(file, fcntl.LOCK_SH)
                asks.set()
                time.sleep(0.005)
            asks.clear()
            time.sleep(0.005)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        for _ in range(5):
            asks.wait()
            with acquire(tmp_path, lambda owner: pytest.fail(f"waits for {owner}")):
                pass
    finally:
        done.set()
        thread.join()
