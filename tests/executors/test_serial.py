"""Two commands that want the same: the work is done once, and goes on when one of them is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
    assert {process for process, _ in done} == ({first.pid, second.pid} if kill else {first.pid})
    if not kill:
        assert json.loads(answers[0]) == json.loads(answers[1])
    assert len(list((tmp_path / "runs").rglob("record.json"))) == 1
    assert not list((tmp_path / "runs").rglob(".lease"))


def test_the_end_of_a_grid_with_failures(
    cluster: Any, cli: Callable[..., tuple[int, str, str]], slices: Path, tmp_path: Path, mended: Path
) -> None:
    flags = (
        "--dataset",
        "folder",
        "--data-root",
        slices,
        "--device",
        "cpu",
        "--out",
        tmp_path / "runs",
        "--executor",
        "ray",
    )
    code, out, err = cli("run", "--method", "raising,constant,undefined", *flags)
    assert code == 1
    assert "constant [tiny]" in out
    shown = " ".join(out.split("failed", 1)[1].split())
    assert "ValueError: no such luck" in shown
    assert "[2/3]" in err
    assert "2 of 3 cells failed; the same command tries them again." in err
    mended.touch()
    code, out, _ = cli("run", "--method", "raising,constant,undefined", *flags, "--json", "--quiet")
    assert code == 0
    assert json.loads(out)["failures"] == []
    assert len(json.loads(out)["boards"][0]["rows"]) == 3
