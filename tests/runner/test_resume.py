"""kill -9 in mid-training, the same command again: the same numbers as a run that was never disturbed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

BUDGET = {
    "ae": ("ae.steps=250", "ae.batch=8", "ae.channels=[8,8,16]", "ae.image_size=32"),
    "madad": (
        "madad.image_size=64",
        "madad.ae_channels=[16,16]",
        "madad.ae_steps=40",
        "madad.steps=40",
        "madad.batch=4",
    ),
}


def command(method: str, slices: Path, out: Path) -> list[str]:
    return [
        sys.executable, "-m", "adbench.cli", "run", "--method", method, "--dataset", "folder", "--data-root", str(slices),
        "--device", "cpu", "--out", str(out), "--checkpoint-seconds", "0", "--json", *(part for text in BUDGET[method] for part in ("--set", text)),
    ]  # fmt: skip


@pytest.mark.parametrize("method", sorted(BUDGET))
def test_killed_training_goes_on_to_the_same_numbers(method: str, slices: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole = subprocess.Popen(
        command(method, slices, tmp_path / "whole"),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )

    killed = tmp_path / "killed"
    process = subprocess.Popen(
        command(method, slices, killed), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
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

    again = subprocess.run(command(method, slices, killed), env=environment, capture_output=True, text=True, check=True)
    rows = [json.loads(said)["boards"][0]["rows"][0] for said in (whole.communicate()[0], again.stdout)]
    assert rows[0]["metrics"] == rows[1]["metrics"]
    assert rows[0]["run_key"] == rows[1]["run_key"]
