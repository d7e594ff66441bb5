"""The process of a cell: how it ends, what it leaves, what it inherits."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from adbench.executors import Options
from adbench.executors.job import Job, Result, mark
from adbench.executors.launch import Launch
from adbench.executors.node import reason
from adbench.executors.worker import Warm
from adbench.runner.plan import Plan


@pytest.fixture
def warm(plugin: dict[str, str]) -> Iterator[Warm]:
    process = Warm()
    yield process
    process.close()


def job(plan: Plan, launch: Launch) -> str:
    spec = plan.cell.to_json()
    return Job(spec, plan.run_key, str(launch.out), str(launch.cache), mark(launch.out), Options(), 1).to_json()


def test_a_cell_gets_a_process_of_its_own_and_the_next_one_starts_warm(warm: Warm, grid: Callable[..., Launch]) -> None:
    launch = grid("slow", "slow.steps=1", seed=(0, 1))
    plans = list(launch.plans())
    for plan in plans:
        code, result = warm.run(job(plan, launch))
        assert (code, Result.from_json(result).error) == (0, "")
        assert plan.record() is not None
    makers = {(plan.fit_folder / "log").read_text().split()[0] for plan in plans}
    assert len(makers) == 2
    assert warm._process is not None
    server = psutil.Process(warm._process.pid)
    assert str(server.pid) not in makers
    assert server.children() == []
    # One thread, or a fork might find a lock that nobody will open. (pyarrow's allocator has one and minds forks itself.)
    tasks = [Path(f"/proc/{server.pid}/task/{t.id}/comm").read_text().strip() for t in server.threads()]
    assert len([name for name in tasks if name != "jemalloc_bg_thd"]) == 1


def test_an_error_comes_back_with_its_traceback(warm: Warm, grid: Callable[..., Launch], mended: Path) -> None:
    launch = grid("raising")
    (plan,) = launch.plans()
    code, text = warm.run(job(plan, launch))
    result = Result.from_json(text)
    assert (code, result.error, result.message, result.expected) == (0, "ValueError", "no such luck", False)
    assert "misfits.py" in result.trace


def test_a_killed_cell_leaves_a_code_and_the_process_serves_on(
    warm: Warm, grid: Callable[..., Launch], mended: Path
) -> None:
    launch = grid("killed,slow", "slow.steps=1")
    killed, slow = launch.plans()
    assert warm.run(job(killed, launch)) == (-signal.SIGKILL, "")
    assert warm.run(job(slow, launch))[0] == 0


def test_nothing_survives_the_one_who_asked(warm: Warm, grid: Callable[..., Launch]) -> None:
    launch = grid("slow", "slow.steps=2000")
    (plan,) = launch.plans()
    answers: list[tuple[int, str]] = []
    asking = threading.Thread(target=lambda: answers.append(warm.run(job(plan, launch))))
    asking.start()
    log = plan.fit_folder / "log"
    deadline = time.monotonic() + 60
    while not log.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    cell = psutil.Process(int(log.read_text().split()[0]))
    assert warm._process is not None
    os.kill(warm._process.pid, signal.SIGKILL)
    asking.join()
    assert answers == [(-signal.SIGKILL, "")]
    psutil.wait_procs([cell], timeout=5)
    assert not cell.is_running()


def test_reasons() -> None:
    assert "memory" in reason(-signal.SIGKILL)
    assert "SIGSEGV" in reason(-signal.SIGSEGV)
    assert "exit code 3" in reason(3)
    assert json.loads(Result("E").to_json())["error"] == "E"
