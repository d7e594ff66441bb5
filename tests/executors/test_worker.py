"""The process of a cell: how it ends, what it leaves, what it inherits."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest

from adbench.errors import CellFailed
from adbench.executors import Options
from adbench.executors.launch import Launch
from adbench.executors.resources import mark
from adbench.executors.worker import PRELOAD, Job, JobResult, Tell, in_process, run_in_process
from adbench.results import rundir
from adbench.runner.plan import Plan
from adbench.utils.processes import exit_reason

pytestmark = pytest.mark.usefixtures("plugin")


def job(plan: Plan, launch: Launch) -> Job:
    spec = plan.cell.to_json()
    return Job(spec, plan.run_key, str(launch.out), str(launch.cache), mark(launch.out), Options(), 1)


def server_of(cell: int) -> psutil.Process:
    """The fork server: the child of this process that is no tracker of resources."""
    (server,) = (child for child in psutil.Process().children() if "forkserver" in " ".join(child.cmdline()))
    assert server.pid != cell
    return server


def test_a_cell_gets_a_process_of_its_own_from_one_server(grid: Callable[..., Launch]) -> None:
    launch = grid("slow", "slow.steps=1", seed=(0, 1))
    for plan in launch.plan():
        result = run_in_process(job(plan, launch))
        assert result.error == "", result.trace
        assert plan.record() is not None
    makers = {int((plan.fit_folder / "log").read_text().split()[0]) for plan in launch.plans}
    assert len(makers) == 2
    assert os.getpid() not in makers
    server = server_of(0)
    assert server.pid not in makers
    assert server.children() == []
    # One thread, or a fork might find a lock that stays closed. (pyarrow's allocator has one and minds forks itself.)
    tasks = [Path(f"/proc/{server.pid}/task/{t.id}/comm").read_text().strip() for t in server.threads()]
    assert len([name for name in tasks if name != "jemalloc_bg_thd"]) == 1


def _parent(tell: Tell) -> int:
    tell("begun")
    return os.getppid()


def test_a_gpu_gets_a_new_python_and_no_fork_of_the_server() -> None:
    heard: list[object] = []
    assert in_process(_parent, heard.append) == server_of(0).pid
    assert in_process(_parent, heard.append, device="cuda:0") == os.getpid()
    assert heard == ["begun", "begun"]
    with pytest.raises(CellFailed, match="exit code 3"):
        in_process(partial(_leave, 3), device="cuda")


def _leave(code: int, tell: Tell) -> None:
    os._exit(code)


def test_a_cell_has_the_environment_of_the_one_who_asks(
    grid: Callable[..., Launch], repaired: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = grid("raising")
    (plan,) = launch.plan()
    result = run_in_process(job(plan, launch))
    assert (result.error, result.message, result.expected) == ("ValueError", "ValueError: no such luck", False)
    assert "misfits.py" in result.trace
    other = repaired.with_name("elsewhere")
    other.touch()
    monkeypatch.setenv("MISFITS_REPAIRED", str(other))  # the server has started with another value
    assert run_in_process(job(plan, launch)).error == ""


def test_a_killed_cell_leaves_a_reason_and_the_server_goes_on(grid: Callable[..., Launch], repaired: Path) -> None:
    launch = grid("killed,slow", "slow.steps=1")
    killed, slow = launch.plan()
    result = run_in_process(job(killed, launch))
    assert result.again
    assert "SIGKILL: the kernel does this when memory runs out" in result.message
    assert run_in_process(job(slow, launch)).error == ""


def wait_for_step(plan: Plan) -> int:
    """The process of a cell that has begun."""
    log = plan.fit_folder / "log"
    deadline = time.monotonic() + 60
    while not log.exists() or not log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return int(log.read_text().split()[0])


def gone(*pids: int) -> bool:
    """Whether none of the processes is alive within a few seconds."""
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_a_cell_ends_with_its_server(grid: Callable[..., Launch]) -> None:
    launch = grid("slow", "slow.steps=2000")
    (plan,) = launch.plan()
    results: list[JobResult] = []
    asking = threading.Thread(target=lambda: results.append(run_in_process(job(plan, launch))))
    asking.start()
    cell = wait_for_step(plan)
    server_of(cell).kill()
    asking.join(30)
    assert [result.again for result in results] == [True]
    assert gone(cell)


def test_nothing_survives_the_one_who_asked(grid: Callable[..., Launch]) -> None:
    launch = grid("slow", "slow.steps=2000")
    (plan,) = launch.plan()
    asking = multiprocessing.get_context("spawn").Process(target=run_in_process, args=(job(plan, launch),))
    asking.start()
    cell = wait_for_step(plan)
    family = [child.pid for child in psutil.Process(asking.pid).children(recursive=True)]
    assert cell in family
    asking.kill()
    asking.join()
    assert gone(*family)


def test_what_the_server_imports_exists() -> None:
    """The server leaves out a module that is not there, and each cell would take longer."""
    assert [name for name in PRELOAD if importlib.util.find_spec(name) is None] == []


def test_a_cell_that_takes_too_long_or_leaves_a_session_behind_has_failed(
    grid: Callable[..., Launch], tmp_path: Path
) -> None:
    launch = grid("slow,exits,detached", "slow.steps=2000")
    slow, exits, detached = launch.plan()
    result = run_in_process(replace(job(slow, launch), options=Options("ray", time_limit=0.5)))
    assert (result.error, result.died) == ("TimeLimit", True)
    assert "longer than --time-limit (0.5 s)" in result.message
    result = run_in_process(job(exits, launch))
    assert (result.error, result.phase) == ("SystemExit", "")
    assert "SystemExit: enough" in (exits.run_folder / rundir.FAILURE).read_text()
    result = run_in_process(job(detached, launch))
    assert (result.died, result.again) == (True, True)
    assert "SIGSEGV" in result.message
    assert gone(int((launch.out / "detached").read_text()))


def test_reasons() -> None:
    assert "memory" in exit_reason(-signal.SIGKILL)
    assert "SIGSEGV" in exit_reason(-signal.SIGSEGV)
    assert "exit code 3" in exit_reason(3)
