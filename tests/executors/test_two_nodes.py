"""Two real Ray nodes; a worker process and then a node die in the middle of a grid."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from adbench.executors import serial
from adbench.executors.launch import Launch
from adbench.results.record import RECORD, read_record


@pytest.mark.timeout(600)
def test_every_cell_is_complete_once_and_has_the_serial_numbers(
    plugin: dict[str, str], grid: Callable[..., Launch], tmp_path: Path
) -> None:
    wanted = ("slow", "slow.steps=40", "slow.pause=0.1")
    there = grid(*wanted, seed=(0, 1, 2, 3), out="ray")
    (tmp_path / "grid.yaml").write_text(there.settings.to_yaml())
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("two_nodes.py"), tmp_path / "grid.yaml"],
        env=plugin,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["nodes"], told["left"]) == (2, 1)
    assert len(set(told["killed"])) == 2
    assert [(cell["reason"], cell["reused"]) for cell in told["cells"]] == [("", False)] * 4
    records = {read_record(path).seed: read_record(path) for path in (tmp_path / "ray").rglob(RECORD)}
    assert len(list((tmp_path / "ray").rglob(RECORD))) == len(records) == 4
    for cell in told["cells"]:
        steps = [line.split() for line in (Path(cell["fit"]) / "log").read_text().splitlines()]
        assert [int(number) for _, number in steps] == list(range(1, 41))  # each step made once, none twice
        assert len({process for process, _ in steps}) == (2 if cell["folder"] in told["killed"] else 1)
    here = grid(*wanted[:2], "slow.pause=0", seed=(0, 1, 2, 3), out="serial")
    for outcome in serial(here.plan()):
        assert outcome.record is not None
        assert outcome.record.metrics == records[outcome.record.seed].metrics
        assert outcome.record.subjects == records[outcome.record.seed].subjects
