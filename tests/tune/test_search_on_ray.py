"""The same search carried out by Ray: killed in the middle and resumed it ends where the undisturbed one ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from adbench.config.run_config import RunConfig
from adbench.results.record import read
from adbench.tune.search import Result
from adbench.tune.table import TRIALS

TRIALS_WANTED = 8


@pytest.fixture
def command(settings: Callable[..., RunConfig], tmp_path: Path) -> list[str]:
    """The command line of the search that the fixture ``tune`` does in this process."""
    path = tmp_path / "settings.yaml"
    path.write_text(settings().to_yaml())
    search = [sys.executable, "-m", "adbench.cli", "tune", "--config", str(path), "--name", "killed", "--trials"]
    return [*search, str(TRIALS_WANTED), "--max-concurrent", "1", "--cpus-per-run", "1"]


def _rows(folder: Path) -> list[dict[str, Any]]:
    try:
        return json.loads((folder / TRIALS).read_text())
    except FileNotFoundError:
        return []


@pytest.mark.timeout(1200)  # three starts of Ray and a process for each trial
def test_killed_and_resumed_it_ends_as_the_undisturbed_search(
    command: list[str],
    settings: Callable[..., RunConfig],
    tune: Callable[..., Result],
    cli: Callable[..., Any],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "runs" / "searches" / "killed"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 600
    while len(_rows(folder)) < 3 and time.monotonic() < deadline and first.poll() is None:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = _rows(folder)
    assert 3 <= len(before) < TRIALS_WANTED
    assert any(row["state"] == "running" for row in before)

    refused = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "go on with it by --resume" in refused.stderr
    resumed = subprocess.run([*command, "--resume", "--json"], env=environment, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    answer = json.loads(resumed.stdout)
    assert not (folder / "ray").exists()

    undisturbed = tune(settings(), trials=TRIALS_WANTED, name="undisturbed")
    rows = _rows(folder)
    assert [(row["params"], row["state"]) for row in rows] == [
        (trial.params, trial.state) for trial in undisturbed.table.trials
    ]
    for row, trial in zip(rows, undisturbed.table.trials, strict=True):
        assert {float(share): value for share, value in row["reports"].items()} == pytest.approx(trial.reports)
    assert any(row["state"] == "stopped" for row in rows)
    assert answer["best"]["number"] == undisturbed.best.number  # type: ignore[union-attr]
    assert answer["best"]["value"] > answer["default"]

    assert yaml.safe_load((folder / "best.yaml").read_text())["tuned_from"]["search"] == "killed"
    assert cli("run", "--config", folder / "best.yaml", "--quiet")[0] == 0
    (record,) = (tmp_path / "runs").rglob("record.json")
    assert read(record).tuned_from.search == "killed"  # type: ignore[union-attr]


def test_an_address_where_nobody_answers(command: list[str], tmp_path: Path) -> None:
    done = subprocess.run([*command, "--address", "127.0.0.1:9"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "No Ray cluster answers at 127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs" / "searches" / "killed").exists()  # nothing to resume: start it again as it was


def test_more_than_the_machine_has(command: list[str]) -> None:
    done = subprocess.run([*command, "--cpus-per-run", "10000"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "lower --cpus-per-run" in done.stderr
