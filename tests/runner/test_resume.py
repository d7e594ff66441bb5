"""kill -9 in mid-training, the same command again: the same numbers as a run that was never disturbed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import fork

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
    killed, rows = tmp_path / "killed", []

    def run(out: Path, *more: str) -> None:
        code, said, err = cli(*options(method, slices, out), *more)
        assert code == 0, err
        rows.extend(json.loads(said)["boards"][0]["rows"])

    run(tmp_path / "whole")
    process = fork(lambda: run(killed, "--checkpoint-seconds", "0"))
    deadline = time.monotonic() + 120
    while not list(killed.rglob("checkpoint.json")):
        assert os.waitpid(process, os.WNOHANG) == (0, 0), "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    checkpoint = json.loads(next(killed.rglob("checkpoint.json")).read_text())
    assert checkpoint["figures"]["step"] > 0
    assert not checkpoint["figures"]["finished"]  # it stopped in the middle
    assert list(killed.rglob("record.json")) == []

    run(killed)
    assert rows[0]["metrics"] == rows[1]["metrics"]
    assert rows[0]["run_key"] == rows[1]["run_key"]
