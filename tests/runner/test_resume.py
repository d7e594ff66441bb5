"""kill -9 in mid-training, the same command again: the same numbers as a run that was never disturbed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

BUDGET = {
    "ae": ("ae.steps=80", "ae.batch=4", "ae.channels=[8,8,16]", "ae.image_size=32"),
    "madad": (
        "madad.image_size=64",
        "madad.ae_channels=[16,16]",
        "madad.ae_steps=40",
        "madad.steps=12",
        "madad.batch=4",
    ),
}


def options(method: str, slices: Path, out: Path) -> list[str]:
    return [
        "run", "--method", method, "--dataset", "folder", "--data-root", str(slices), "--device", "cpu", "--out", str(out),
        "--json", *(f"--set={text}" for text in BUDGET[method]),
    ]  # fmt: skip


@pytest.mark.parametrize("method", sorted(BUDGET))
def test_killed_training_goes_on_to_the_same_numbers(
    method: str, slices: Path, tmp_path: Path, cli: Callable[..., tuple[int, str, str]]
) -> None:
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "adbench.cli", *options(method, slices, killed), "--checkpoint-seconds", "0"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(killed.rglob("checkpoint.json")):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    (worker,) = psutil.Process(process.pid).children()
    process.kill()
    worker.kill()  # before it sees that its parent is gone, and stops in order
    process.wait()
    worker.wait(30)
    checkpoint = json.loads(next(killed.rglob("checkpoint.json")).read_text())
    assert checkpoint["figures"]["step"] > 0
    assert not checkpoint["figures"]["finished"]  # it stopped in the middle
    assert list(killed.rglob("record.json")) == []

    rows = []
    for out in (killed, tmp_path / "whole"):
        code, said, err = cli(*options(method, slices, out))
        assert code == 0, err
        rows += json.loads(said)["boards"][0]["rows"]
    assert rows[0]["metrics"] == rows[1]["metrics"]
    assert rows[0]["run_key"] == rows[1]["run_key"]
