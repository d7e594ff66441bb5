"""Leases: one at a time, whoever holds them, and taken over from the dead."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adbench.utils import locks
from adbench.utils.locks import LEASE, STALE, gone, held, me


def _add_one(folder: str, times: int) -> None:
    for _ in range(times):
        with held(Path(folder), poll=0.001):
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
    assert [path.name for path in tmp_path.iterdir()] == ["value"]


def test_the_dead_are_known_at_once(tmp_path: Path) -> None:
    holder = "import sys, os; from adbench.utils.locks import held; from pathlib import Path\nwith held(Path(sys.argv[1])): os._exit(9)"
    subprocess.run([sys.executable, "-c", holder, tmp_path], check=False)
    assert (tmp_path / LEASE).exists()
    begin = time.monotonic()
    with held(tmp_path) as waited:
        assert not waited
        assert json.loads((tmp_path / LEASE).read_text())["pid"] == os.getpid()
    assert time.monotonic() - begin < 2
    assert not (tmp_path / LEASE).exists()


def test_a_process_number_that_was_given_again_is_another_process() -> None:
    now = time.time()
    assert not gone(me(), now)
    assert gone({**me(), "born": "1"}, now)


def test_another_machine_is_believed_for_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = {**me(), "machine": "another", "host": "far", "token": "theirs"}
    lease = tmp_path / LEASE
    lease.write_text(json.dumps(elsewhere))
    seen: list[str] = []

    def meanwhile(owner: str) -> None:
        seen.append(owner)
        if len(seen) == 3:
            os.utime(lease, (time.time() - STALE - 5,) * 2)

    with held(tmp_path, meanwhile, poll=0.01) as waited:
        assert waited
        assert seen == [f"process {os.getpid()} on far"] * 3
        assert json.loads(lease.read_text())["token"] != "theirs"


def test_a_half_written_lease_is_waited_for_and_then_cleared(tmp_path: Path) -> None:
    lease = tmp_path / LEASE
    lease.write_text('{"host": "fa')

    def meanwhile(owner: str) -> None:
        assert owner == "another process"
        os.utime(lease, (time.time() - STALE - 5,) * 2)

    with held(tmp_path, meanwhile, poll=0.01) as waited:
        assert waited


def test_clearing_takes_nobodys_fresh_lease(tmp_path: Path) -> None:
    lease = tmp_path / LEASE
    fresh = json.dumps({**me(), "token": "fresh"})
    lease.write_text(fresh)
    locks._clear(lease, {**me(), "token": "stale"})
    assert lease.read_text() == fresh


def test_signs_of_life_stop_with_the_block() -> None:
    beats: list[float] = []
    with locks.beating(lambda: beats.append(time.monotonic()), every=0.01):
        time.sleep(0.2)
    count = len(beats)
    assert count >= 3
    time.sleep(0.05)
    assert len(beats) == count
