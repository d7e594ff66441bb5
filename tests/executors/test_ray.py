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
import small_brats
import torch

from adbench.datasets.store.prepare import prepare_all
from adbench.errors import UserError
from adbench.executors import Options, serial
from adbench.executors.launch import Launch
from adbench.executors.ray import RayExecutor
from adbench.executors.resources import ResourceRequest, check_mark, mark
from adbench.methods.base import WEIGHTS
from adbench.results import rundir, status
from adbench.results.record import RECORD
from adbench.runner.plan import Plan
from adbench.runner.run_cell import run_cell
from adbench.utils import threads
from adbench.utils.cluster import _keep_token, connect

pytestmark = pytest.mark.timeout(600)
FEW = ("ae.steps=6", "ae.batch=4", "ae.image_size=64")


def on_ray(launch: Launch, cluster: Any, **options: Any) -> RayExecutor:
    return RayExecutor(cluster, launch.out, launch.cache, Options("ray", **options))


def log(plan: Plan) -> list[tuple[int, int]]:
    """Process and number of every step of the method ``slow``."""
    return [tuple(map(int, line.split())) for line in (plan.fit_folder / "log").read_text().splitlines()]  # type: ignore[misc]


def test_serial_and_ray_end_in_the_same_bits(
    cluster: Any, grid: Callable[..., Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(threads.VARIABLE)
    before = torch.get_num_threads()
    here, there = (grid("histeq,ae", *FEW, out=out) for out in ("serial", "ray"))
    assert [outcome.reason for outcome in serial(here.plan())] == ["", ""]
    assert torch.get_num_threads() == before
    # Ray keeps fewer cores for a run than it has threads.
    outcomes = list(on_ray(there, cluster, cpus=1).run(there.plan()))
    assert [(outcome.reason, outcome.reused) for outcome in outcomes] == [("", False)] * 2
    for plan, same in zip(here.plans, there.plans, strict=True):
        record, elsewhere = plan.record(), same.record()
        assert record is not None
        assert elsewhere is not None
        assert elsewhere.run_key == record.run_key
        assert elsewhere.metrics == record.metrics
        assert elsewhere.subjects == record.subjects
        counted = [name for name in record.files if name.endswith((".npz", ".json"))]
        assert [elsewhere.files[name] for name in counted] == [record.files[name] for name in counted]
        for part in ("threads", "cpu", "gpu", "precision", "fit"):
            assert elsewhere.provenance[part] == record.provenance[part]
        assert not any("CPU thread" in note for note in record.notes)
    assert all(outcome.reused for outcome in on_ray(there, cluster).run(there.plans))

    ae, on_worker = here.plans[1], there.plans[1]
    weights = (ae.fit_folder / WEIGHTS).read_bytes()
    assert (on_worker.fit_folder / WEIGHTS).read_bytes() == weights
    record = ae.record()
    assert record is not None
    assert record.provenance["threads"] == 2, "what ae asks for, however many cores there are"

    monkeypatch.setenv(threads.VARIABLE, "1")
    one = grid("ae", *FEW, out="one")
    (outcome,) = serial(one.plan())
    assert outcome.reason == ""
    assert (outcome.plan.fit_folder / WEIGHTS).read_bytes() != weights, "or this test would see nothing"
    told = outcome.record
    assert told is not None
    assert told.run_key == record.run_key
    assert (told.provenance["threads"], told.provenance["precision"]) == (1, "float32")
    assert told.provenance["fit"][0]["threads"] == 1
    (note,) = [note for note in told.notes if "CPU thread" in note]
    assert note.startswith("Computed with 1 CPU thread (OMP_NUM_THREADS) where ae asks for 2")


@pytest.mark.usefixtures("pictures_drawn")
def test_a_cell_that_was_killed_before_its_pictures_gets_them(cluster: Any, grid: Callable[..., Launch]) -> None:
    launch = grid("histeq")
    (plan,) = launch.plan()
    run_cell(plan)
    (outcome,) = on_ray(launch, cluster).run([plan])
    assert outcome.reused
    assert (plan.run_folder / "samples.png").exists()
    assert not (plan.run_folder / rundir.SAMPLES).exists()


def test_what_fails_is_told_and_tried_again_alone(
    cluster: Any, cli: Callable[..., tuple[int, str, str]], slices: Path, tmp_path: Path, repaired: Path
) -> None:
    out = tmp_path / "runs"
    command = ("run", "--method", "raising,histeq,killed,undefined,constant", "--dataset", "folder", "--device", "cpu")
    command += ("--data-root", str(slices), "--out", str(out), "--executor", "ray")
    code, shown, err = cli(*command)
    assert code == 1
    assert "constant [tiny]" in shown
    failures = " ".join(shown.split("failed", 1)[1].split())
    assert "ValueError: no such luck" in failures
    assert "[4/5]" in err
    assert "3 of 5 cells failed; the same command tries them again." in err
    assert "Traceback" not in err + shown
    said = {"raising": "no such luck", "undefined": "val00"}
    said["killed"] = "SIGKILL: the kernel does this when memory runs out), 3 times"
    phases = {"undefined": "score", "raising": "fit", "killed": "start"}
    for method, text in said.items():
        (folder,) = out.glob(f"*/*/{method}-*")
        failure = json.loads((folder / rundir.FAILURE).read_text())
        assert failure["phase"] == phases[method]
        assert text in failure["message"]
        assert not (folder / status.STATUS).exists()
    made = {path: path.stat().st_mtime_ns for path in out.rglob(RECORD)}
    assert {path.parent.name.split("-")[0] for path in made} == {"histeq", "constant"}

    repaired.touch()
    code, shown, _ = cli(*command, "--json", "--quiet")
    assert code == 0
    assert json.loads(shown)["failures"] == []
    assert len(json.loads(shown)["boards"][0]["rows"]) == 5
    assert {path: path.stat().st_mtime_ns for path in made} == made, "what was complete was made again"


def test_a_killed_process_starts_again_where_it_was(cluster: Any, grid: Callable[..., Launch]) -> None:
    launch = grid("slow", "slow.steps=25")
    (plan,) = launch.plan()
    victims: list[int] = []

    def kill() -> None:
        doing = status.read_status(plan.run_folder)
        if not victims and doing is not None and doing["done"] >= 3:
            victims.append(doing["pid"])
            os.kill(doing["pid"], signal.SIGKILL)

    (outcome,) = on_ray(launch, cluster).run([plan], kill)
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
        grid("slow", "slow.steps=5", data_root=str(root), train_on="folder", train_root=str(slices)).plan()[0]
        for root in (slices, other)
    ]
    assert both[0].fit_key == both[1].fit_key
    executor = RayExecutor(cluster, both[0].run_folder.parents[2], tmp_path / "cache")
    assert [outcome.reason for outcome in executor.run(both)] == ["", ""]
    assert len(log(both[0])) == 5
    assert len({process for process, _ in log(both[0])}) == 1


def test_out_of_memory_gets_a_whole_gpu_once(
    cluster: Any, grid: Callable[..., Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = grid("hungry")
    executor = on_ray(launch, cluster, gpus=0.25)
    shares = []
    submit = RayExecutor._submit

    def note(self: RayExecutor, plan: Plan, wanted: ResourceRequest) -> None:
        submit(self, plan, wanted)
        shares.append(wanted.gpus)

    monkeypatch.setattr(RayExecutor, "_submit", note)
    (outcome,) = executor.run(launch.plan())
    assert outcome.reason == ""
    assert shares == [0.25, 1.0]

    shares.clear()
    again = grid("hungry", seed=1)
    (outcome,) = on_ray(again, cluster, gpus=1.0).run(again.plan())
    assert "OutOfMemoryError" in outcome.reason  # it had a whole one already
    assert shares == [1.0]


def test_a_store_is_the_same(cluster: Any, tmp_path: Path) -> None:
    import ray

    dataset = small_brats.dataset(small_brats.write(tmp_path / "Läsionen of Zoë"))
    there = prepare_all(dataset, ("FLAIR", "T1"), tmp_path / "ray", workers=2, executor="ray")
    assert ray.is_initialized(), "whoever has connected to Ray still is"
    for name, store in prepare_all(dataset, ("FLAIR", "T1"), tmp_path / "serial", workers=1).items():
        assert there[name].manifest == store.manifest
        assert [file.read_bytes() for file in there[name].files] == [file.read_bytes() for file in store.files]


def test_asking_for_more_than_there_is(cluster: Any, grid: Callable[..., Launch]) -> None:
    launch = grid("histeq")
    with pytest.raises(UserError, match=r"asks for 2 GPU and .* has 1: lower --gpus-per-run"):
        list(on_ray(launch, cluster, gpus=2.0).run(launch.plan()))
    with pytest.raises(UserError, match=r"asks for 64 CPU cores and .* has 2: lower --cpus-per-run"):
        list(on_ray(launch, cluster, cpus=64.0).run(launch.plan()))


def test_a_machine_too_busy_to_start_ray_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray gives a node half a minute, and then raises what no class tells from anything else."""
    import ray

    def late(**arguments: Any) -> None:
        raise Exception("The current node timed out during startup. The GCS has become overloaded.")

    ended = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", late)
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(True))  # the other tests go on with theirs
    with pytest.raises(UserError, match=r"Ray cannot be started on this machine: .* timed out"), connect("local"):
        pass
    assert ended


def test_a_node_must_see_the_same_folder(cluster: Any, grid: Callable[..., Launch], tmp_path: Path) -> None:
    check_mark(str(tmp_path), mark(tmp_path))
    for elsewhere in (tmp_path / "nowhere", tmp_path / "another"):
        if elsewhere.name == "another":
            mark(elsewhere)
        with pytest.raises(UserError, match=r"does not see the folder .* every node mounts at the same path"):
            check_mark(str(elsewhere), mark(tmp_path))
    launch = grid("constant")
    executor = on_ray(launch, cluster)
    executor._mark = "the mark of another folder"
    (outcome,) = executor.run(launch.plan())
    assert "does not see the folder" in outcome.reason
    (plan,) = launch.plan()
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


def test_nobody_else_may_read_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    token = tmp_path / ".ray" / "auth_token"
    _keep_token(token, make=False)
    assert not token.exists()
    _keep_token(token, make=True)
    made = token.read_text()
    assert len(bytes.fromhex(made)) == 32
    token.chmod(0o644)  # as Ray itself makes it
    _keep_token(token, make=True)
    assert token.read_text() == made
    assert token.stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 64)
    _keep_token(tmp_path / "other" / "auth_token", make=True)
    assert not (tmp_path / "other").exists()


def _lives(process: psutil.Process) -> bool:
    """Whether a process runs; one that has ended but that nobody has waited for does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_is_stopped_or_killed_leaves_nothing_running(
    plugin: dict[str, str], slices: Path, tmp_path: Path, cli: Callable[..., Any], number: signal.Signals
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
    while True:  # what a worker says reaches the folder a moment after it does it
        assert process.poll() is None, f"it ended before it could be stopped: {said}"
        assert time.monotonic() < deadline
        time.sleep(0.2)
        if list(tmp_path.glob("runs/fits/*/log")):
            seen = json.loads(cli("status", "--out", tmp_path / "runs", "--json")[1])
            if seen["counts"]["running"] == 1 and seen["runs"][0]["phase"] == "count":
                break
    family = psutil.Process(process.pid).children(recursive=True)
    assert int(next(tmp_path.glob("runs/fits/*/log")).read_text().split()[0]) in {one.pid for one in family}
    assert {"raylet", "gcs_server"} <= {one.name() for one in family}
    process.send_signal(number)
    assert process.wait(60) == (143 if number == signal.SIGTERM else -signal.SIGKILL)
    deadline = time.monotonic() + 10
    while alive := [one for one in family if _lives(one)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.1)
    reader.join()
    assert "Run the same command again to resume." in said[0]
    (run,) = json.loads(cli("status", "--out", tmp_path / "runs", "--json")[1])["runs"]
    assert (run["state"], run["phase"]) == ("interrupted", "count")


def test_flags_that_belong_together() -> None:
    with pytest.raises(UserError, match="--gpus-per-run is for --executor ray"):
        Options("serial", gpus=0.5)
    with pytest.raises(UserError, match="Did you mean 'ray'"):
        Options("rey")
