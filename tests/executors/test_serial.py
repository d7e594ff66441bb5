"""Two commands that want the same: the work is done once, and goes on when one of them is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from adbench.errors import CellFailed, UserError
from adbench.executors import serial
from adbench.executors.launch import Launch
from adbench.utils.locks import acquire
from adbench.utils.signals import as_interrupts

STEPS = 30


@pytest.fixture
def command(plugin: dict[str, str], slices: Path, tmp_path: Path) -> list[str]:
    return [
        sys.executable, "-m", "adbench.cli", "run", "--method", "slow", "--dataset", "folder", "--data-root", str(slices),
        "--device", "cpu", "--out", str(tmp_path / "runs"), "--set", f"slow.steps={STEPS}", "--json", "--quiet",
    ]  # fmt: skip


def steps(folder: Path) -> list[tuple[int, int]]:
    try:
        lines = next(folder.glob("fits/*/log")).read_text().splitlines()
    except StopIteration:
        return []
    return [tuple(map(int, line.split())) for line in lines]  # type: ignore[misc]


@pytest.mark.parametrize("kill", [False, True])
def test_two_commands_do_the_work_once(command: list[str], plugin: dict[str, str], tmp_path: Path, kill: bool) -> None:
    first = subprocess.Popen(command, env=plugin, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(steps(tmp_path / "runs")) < 3:
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    second = subprocess.Popen(command, env=plugin, stdout=subprocess.PIPE, text=True)
    if kill:
        first.send_signal(signal.SIGKILL)
    answers = [process.communicate()[0] for process in (first, second)]
    assert second.returncode == 0
    done = steps(tmp_path / "runs")
    assert [number for _, number in done] == list(range(1, STEPS + 1))
    assert len({process for process, _ in done}) == 1 + kill
    if not kill:
        assert json.loads(answers[0]) == json.loads(answers[1])
    assert len(list((tmp_path / "runs").rglob("record.json"))) == 1
    assert not list((tmp_path / "runs").rglob("status.json"))


def test_whatever_ends_a_cell_is_its_failure_and_the_others_go_on(
    command: list[str], plugin: dict[str, str], tmp_path: Path
) -> None:
    command[command.index("slow")] = "detached,interrupting,closing,endless,exits,patching,histeq"
    del command[command.index("--set") : command.index("--json")]
    ran = subprocess.run(command, env=plugin, capture_output=True, text=True)
    assert ran.returncode == 1, ran.stderr
    said = json.loads(ran.stdout)
    assert [row["method"] for board in said["boards"] for row in board["rows"]] == ["histeq"]
    assert len(said["failures"]) == 6, "what patching has spoilt did not reach histeq"
    assert "Thank you for using exits!" in ran.stderr
    assert "from a C library" in ran.stderr
    reasons = {}
    for method in ("exits", "detached", "interrupting", "closing", "endless"):
        (folder,) = tmp_path.glob(f"runs/*/*/{method}-*")
        failure = json.loads((folder / "failure.json").read_text())
        reasons[method] = failure["phase"], failure["message"]
        assert not list(folder.glob("status.json"))
    assert reasons["exits"] == ("fit", "enough")
    assert "SIGSEGV" in reasons["detached"][1]
    assert reasons["interrupting"][1] == "it has interrupted itself (SIGTERM)"
    assert reasons["closing"][1] == "it has closed files that adbench had opened"
    assert "[... 19996000 characters ...]" in reasons["endless"][1]
    assert sum(len(one["error"]) for one in said["failures"]) < 6000
    assert max(path.stat().st_size for path in tmp_path.rglob("failure.json")) < 50_000
    assert "Traceback" not in ran.stderr
    assert not psutil.pid_exists(int((tmp_path / "runs" / "detached").read_text()))


@pytest.mark.usefixtures("plugin")
def test_a_fit_that_swallows_an_interrupt_is_not_complete(grid: Callable[..., Launch], tmp_path: Path) -> None:
    with as_interrupts(), pytest.raises(KeyboardInterrupt):
        list(serial(grid("swallowing,histeq").plan()))
    left = {path.name for path in (tmp_path / "runs").rglob("*.json")}
    assert "status.json" in left
    assert not left & {"fit.json", "record.json", "failure.json"}


def test_a_command_says_for_whom_it_waits(
    grid: Callable[..., Launch], command: list[str], plugin: dict[str, str], tmp_path: Path
) -> None:
    (plan,) = grid("slow", f"slow.steps={STEPS}").plan()
    with acquire(plan.run_folder):
        waiting = subprocess.Popen(
            command[:-1], env=plugin, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert waiting.stderr is not None
        said = next((line for line in waiting.stderr if "wait for" in line), "")
    assert f"wait for process {os.getpid()} on" in said
    waiting.communicate()
    assert waiting.returncode == 0
    assert plan.record() is not None


@pytest.mark.usefixtures("plugin")
def test_from_python_a_plug_in_has_a_process_of_its_own(slices: Path, tmp_path: Path) -> None:
    from adbench import api
    from adbench.context import Progress
    from adbench.datasets.slices import SliceBatch

    class Seen(Progress):
        def __init__(self) -> None:
            self.steps: list[tuple[str, int]] = []
            self.stop_at = 0

        def update(self, phase: str, done: int, total: int, **figures: object) -> None:
            self.steps.append((phase, done))
            if phase == "count" and done == self.stop_at:
                raise KeyboardInterrupt

    common = {"data_root": str(slices), "device": "cpu", "out": tmp_path / "runs", "cache": tmp_path / "cache"}
    moved, seen = SliceBatch.to, Seen()
    with pytest.raises(CellFailed) as failed:
        api.run("patching,killed,raising,histeq", "folder", progress=seen, **common)
    assert SliceBatch.to is moved
    assert not isinstance(failed.value, UserError)
    (folder,) = (tmp_path / "runs").glob("*/*/killed-*")
    assert "SIGKILL" in json.loads((folder / "failure.json").read_text())["message"]
    with pytest.raises(CellFailed, match="ValueError: no such luck") as told:
        api.run("raising", "folder", **common)
    assert "misfits.py" in "".join(told.value.__notes__)
    (histeq,) = api.run("histeq", "folder", **common)
    assert histeq.record.metrics["auprc"].value > 0
    seen.steps.clear()
    seen.stop_at = 2
    with pytest.raises(KeyboardInterrupt):
        api.run("slow", "folder", set={"slow": {"steps": 3}}, progress=seen, **common)
    seen.stop_at = 0
    (slow,) = api.run("slow", "folder", set={"slow": {"steps": 3}}, progress=seen, **common)
    done = steps(tmp_path / "runs")
    assert [number for _, number in done] == [1, 2, 3]
    assert len({process for process, _ in done} | {os.getpid()}) == 3
    assert ("count", 3) in seen.steps
    assert slow.record.method.name == "slow"
    assert not list((tmp_path / "runs").rglob("status.json"))
    with pytest.raises(CellFailed, match="took longer than --time-limit"):
        api.run("slow", "folder", set={"slow": {"steps": 1000}}, time_limit=1.0, **common)


def test_from_a_module_without_a_guard(slices: Path, tmp_path: Path) -> None:
    """``python -m mine``: the process of a cell does not run the module again."""
    (tmp_path / "mine.py").write_text(
        "import sys\n"
        "import adbench\n"
        "print('once', flush=True)\n"
        "(run,) = adbench.run('constant', 'folder', data_root=sys.argv[1], device='cpu', out='runs', time_limit=300.0)\n"
        "assert run.record.method.name == 'constant'\n"
    )
    paths = [str(tmp_path), str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "ADBENCH_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "mine", str(slices)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("once") == 1
