"""Cells on Ray: the serial executor's numbers, whatever dies on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from adbench.errors import UserError
from adbench.executors import serial
from adbench.executors.job import check_mark, mark
from adbench.executors.launch import Launch, Placement
from adbench.executors.ray import Packed
from adbench.results import rundir, status
from adbench.runner.plan import Plan

pytestmark = pytest.mark.timeout(600)
SHORT = ("slow.steps=3", "slow.pause=0.01")


def packed(launch: Launch, cluster: Any, **more: Any) -> Packed:
    return Packed(cluster, launch.out, launch.cache, launch.options, **more)


def log(plan: Plan) -> list[tuple[int, int]]:
    """Process and number of every step of the method ``slow``."""
    return [tuple(map(int, line.split())) for line in (plan.fit_folder / "log").read_text().splitlines()]  # type: ignore[misc]


def test_the_numbers_of_the_serial_executor(cluster: Any, grid: Callable[..., Launch]) -> None:
    here = grid("histeq,zscore,slow", *SHORT, out="serial")
    there = grid("histeq,zscore,slow", *SHORT, out="ray")
    expected = {outcome.plan.run_key: outcome.record for outcome in serial(here.plans())}
    outcomes = list(packed(there, cluster).run(there.plans()))
    assert [outcome.reason for outcome in outcomes] == [""] * 3
    assert {outcome.plan.run_key for outcome in outcomes} == set(expected)
    for outcome in outcomes:
        made, same = outcome.record, expected[outcome.plan.run_key]
        assert made is not None
        assert same is not None
        assert made.metrics == same.metrics
        assert made.subjects == same.subjects
        assert {name: made.files[name] for name in made.files if name.endswith((".npz", ".json"))} == {
            name: same.files[name] for name in same.files if name.endswith((".npz", ".json"))
        }
    again = list(packed(there, cluster).run(there.plans()))
    assert all(outcome.reused for outcome in again)


def test_what_fails_is_told_and_tried_again_alone(cluster: Any, grid: Callable[..., Launch], mended: Path) -> None:
    launch = grid("raising,histeq,killed,undefined,constant")
    reasons = {o.plan.cell.method: o.reason for o in packed(launch, cluster).run(launch.plans())}
    assert reasons["histeq"] == reasons["constant"] == ""
    assert reasons["raising"] == "ValueError: no such luck"
    assert "SIGKILL: the kernel does this when memory runs out), 3 times" in reasons["killed"]
    assert "val00" in reasons["undefined"]
    for plan in launch.plans():
        if reasons[plan.cell.method]:
            failure = json.loads((plan.run_folder / rundir.FAILURE).read_text())
            assert failure["phase"] == {"undefined": "score", "raising": "fit", "killed": "start"}[plan.cell.method]
            assert not (plan.run_folder / status.STATUS).exists()
    mended.touch()
    again = {o.plan.cell.method: o for o in packed(launch, cluster).run(launch.plans())}
    assert {name for name, outcome in again.items() if outcome.reused} == {"histeq", "constant"}
    assert [outcome.reason for outcome in again.values()] == [""] * 5


def test_a_killed_process_starts_again_where_it_was(cluster: Any, grid: Callable[..., Launch]) -> None:
    launch = grid("slow", "slow.steps=25")
    (plan,) = launch.plans()
    victims: list[int] = []

    def kill() -> None:
        doing = status.read(plan.run_folder)
        if not victims and doing is not None and doing["done"] >= 3:
            victims.append(doing["pid"])
            os.kill(doing["pid"], signal.SIGKILL)

    (outcome,) = packed(launch, cluster).run([plan], kill)
    assert outcome.reason == ""
    steps = log(plan)
    assert [number for _, number in steps] == list(range(1, 26))
    assert steps[0][0] == victims[0]
    assert len({process for process, _ in steps}) == 2


def test_one_fit_for_several_test_sets_is_trained_once(
    cluster: Any, grid: Callable[..., Launch], slices: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(slices, tmp_path / "other")
    for file in (other / "test").glob("test00*"):
        file.unlink()
    both = [
        next(grid("slow", "slow.steps=5", data_root=str(root), train_on="folder", train_root=str(slices)).plans())
        for root in (slices, other)
    ]
    assert both[0].fit_key == both[1].fit_key
    executor = Packed(cluster, both[0].run_folder.parents[2], tmp_path / "cache")
    assert [outcome.reason for outcome in executor.run(both)] == ["", ""]
    assert len(log(both[0])) == 5
    assert len({process for process, _ in log(both[0])}) == 1


def test_out_of_memory_gets_a_whole_gpu_once(
    cluster: Any, grid: Callable[..., Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = grid("hungry")
    executor = packed(launch, cluster, gpus=0.25)
    shares = []
    submit = Packed._submit

    def note(self: Packed, plan: Plan, whole: bool = False) -> None:
        submit(self, plan, whole)
        shares.append(self.running[-1].share.gpus)

    monkeypatch.setattr(Packed, "_submit", note)
    (outcome,) = executor.run(launch.plans())
    assert outcome.reason == ""
    assert shares == [0.25, 1.0]

    shares.clear()
    again = grid("hungry", seed=1)
    (outcome,) = packed(again, cluster, gpus=1.0).run(again.plans())
    assert "OutOfMemoryError" in outcome.reason  # it had a whole one already
    assert shares == [1.0]


def test_asking_for_more_than_there_is(cluster: Any, grid: Callable[..., Launch]) -> None:
    launch = grid("histeq")
    with pytest.raises(UserError, match=r"asks for 2 GPU and .* has 1: lower --gpus-per-run"):
        list(packed(launch, cluster, gpus=2.0).run(launch.plans()))
    with pytest.raises(UserError, match=r"asks for 64 CPU cores and .* has 2: lower --cpus-per-run"):
        list(packed(launch, cluster, cpus=64.0).run(launch.plans()))


def test_a_node_must_see_the_same_folder(cluster: Any, grid: Callable[..., Launch], tmp_path: Path) -> None:
    check_mark(str(tmp_path), mark(tmp_path))
    for elsewhere in (tmp_path / "nowhere", tmp_path / "another"):
        if elsewhere.name == "another":
            mark(elsewhere)
        with pytest.raises(UserError, match=r"does not see the folder .* every node mounts at the same path"):
            check_mark(str(elsewhere), mark(tmp_path))
    launch = grid("constant")
    executor = packed(launch, cluster)
    executor._mark = "the mark of another folder"
    (outcome,) = executor.run(launch.plans())
    assert "does not see the folder" in outcome.reason
    (plan,) = launch.plans()
    assert json.loads((plan.run_folder / rundir.FAILURE).read_text())["phase"] == "plan"


def test_only_this_machine_can_reach_it(cluster: Any) -> None:
    here = psutil.Process()
    ours = {here.pid, *(child.pid for child in here.children(recursive=True))}
    listening = [
        (process.name(), connection.laddr.ip)
        for pid in ours
        for process in [psutil.Process(pid)]
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {name for name, _ in listening} >= {"gcs_server", "raylet"}
    assert {ip.removeprefix("::ffff:") for _, ip in listening} == {"127.0.0.1"}
    assert os.environ.get("RAY_AUTH_MODE") == "token"


def _lives(process: psutil.Process) -> bool:
    """Whether a process runs; one that has ended but that nobody has waited for does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_ctrl_c_stops_everything_and_says_how_to_go_on(
    plugin: dict[str, str], slices: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    command = [
        sys.executable, "-m", "adbench.cli", "run", "--method", "slow", "--dataset", "folder", "--data-root", str(slices),
        "--device", "cpu", "--out", str(tmp_path / "runs"), "--executor", "ray", "--set", "slow.steps=2000",
    ]  # fmt: skip
    process = subprocess.Popen(command, env=plugin, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.append(process.stderr.read()))  # type: ignore[union-attr]
    reader.start()
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/fits/*/log")):
        if process.poll() is not None:
            reader.join()
        assert process.poll() is None, f"it ended before it could be stopped: {said}"
        assert time.monotonic() < deadline
        time.sleep(0.1)
    worker = psutil.Process(int(next(iter(tmp_path.glob("runs/fits/*/log"))).read_text().split()[0]))
    while True:  # what a worker says reaches the folder a moment after it does it
        _, shown, _ = cli("status", "--out", tmp_path / "runs", "--json")
        seen = json.loads(shown)
        if seen["counts"]["running"] == 1 and seen["runs"][0]["phase"] == "count":
            break
        assert time.monotonic() < deadline, shown
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    reader.join()
    assert "Run the same command again: it goes on where it stopped." in said[0]
    while _lives(worker):  # its raylet has just gone: it notices within a second or two
        assert time.monotonic() < deadline, "the worker goes on after the command has ended"
        time.sleep(0.1)
    _, shown, _ = cli("status", "--out", tmp_path / "runs", "--json")
    (run,) = json.loads(shown)["runs"]
    assert run["state"] == "interrupted"
    assert run["phase"] == "count"


def test_flags_that_belong_together() -> None:
    with pytest.raises(UserError, match="--gpus-per-run is for --executor ray"):
        Placement("serial", gpus=0.5)
    with pytest.raises(UserError, match="Did you mean 'ray'"):
        Placement("rey")
