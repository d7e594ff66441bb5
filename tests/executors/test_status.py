"""``adbench status``, ``adbench why``, ``--dry-run`` and ``--retry-failed``: what there is, told from files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import fork

from adbench.context import Progress
from adbench.executors import monitor
from adbench.executors.launch import Launch
from adbench.results import rundir, status
from adbench.results.format import duration
from adbench.utils.locks import acquire

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(cli: Cli, slices: Path, tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    flags = ("--dataset", "folder", "--data-root", slices, "--device", "cpu", "--out", tmp_path / "runs", "--quiet")
    return lambda method, *more: cli("run", "--method", method, *flags, *more)


def states(cli: Cli, out: Path) -> dict[str, int]:
    counts = json.loads(cli("status", "--out", out, "--json")[1])["counts"]
    return {state: count for state, count in counts.items() if count}


def test_a_run_says_what_it_does_and_falls_silent(tmp_path: Path) -> None:
    with acquire(tmp_path), status.reported(tmp_path, Progress(), label="a run", gpus=0.25) as report:
        report.update("train", 3, 10, loss=float("nan"), best=1)
        time.sleep(1.5)
        doing = status.read_status(tmp_path)
        assert doing is not None
        assert (doing["state"], doing["phase"], doing["done"], doing["total"]) == ("running", "train", 3, 10)
        assert doing["figures"] == {"loss": "nan", "best": 1}
        row = monitor.row("a run", doing, doing["phase_started"] + 30)
        assert row[2:] == ("train", "3/10", "loss nan  best 1", "1.2 min", "0.25")
    assert status.read_status(tmp_path) is None
    with pytest.raises(KeyboardInterrupt), status.reported(tmp_path, Progress(), label="a run"):
        raise KeyboardInterrupt
    assert (status.read_status(tmp_path) or {})["state"] == "interrupted"


def test_a_run_whose_process_died_is_lost(tmp_path: Path, cli: Cli) -> None:
    folder = tmp_path / "runs" / "protocol" / "data" / "run-abc"
    folder.mkdir(parents=True)
    content = {"state": "running", "label": "x", "phase": "fit", "done": 1, "total": 2, "started": 0.0, "figures": {}}
    (folder / status.STATUS).write_text(json.dumps(content))
    with acquire(folder):
        assert states(cli, tmp_path / "runs") == {"running": 1}
    assert states(cli, tmp_path / "runs") == {"lost": 1}
    with acquire(folder):
        (folder / status.STATUS).write_text("{")  # damaged
        assert states(cli, tmp_path / "runs") == {}


def test_failed_runs_are_listed_and_tried_alone(run: Any, cli: Cli, slices: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    assert run("histeq")[0] == 0
    (done,) = [seen.folder for seen in status.runs(out)]
    failed = done.with_name("histeq-tiny-seed1-0123456789")
    failed.mkdir()
    rundir.write_failure(failed, ValueError("no such luck"), "fit")
    assert states(cli, out) == {"complete": 1, "failed": 1}
    shown = cli("status", "--out", out)[1]
    assert "ValueError: no such luck" in " ".join(shown.split())
    assert "complete" not in shown
    code, _, err = run("constant", "--retry-failed")
    assert code == 2
    assert "No cell has failed" in err
    code, answer, _ = run("histeq,constant", "--dry-run", "--json")
    assert code == 0
    assert {cell["cell"].split()[0]: cell["state"] for cell in json.loads(answer)} == {
        "histeq": "complete",
        "constant": "to run",
    }
    plan = next(cell for cell in json.loads(answer) if cell["state"] == "to run")
    assert (plan["cpus"], plan["gpus"]) == (1.0, 0.0)
    Path(plan["folder"]).mkdir(parents=True)
    rundir.write_failure(Path(plan["folder"]), ValueError("no such luck"), "fit")
    code, answer, _ = run("histeq,constant,zscore", "--retry-failed", "--json")
    assert code == 0
    assert {row["method"] for row in json.loads(answer)["boards"][0]["rows"]} == {"histeq", "constant"}
    assert not list(out.glob(f"{status.PLANS}/*"))


def test_an_interrupted_dry_run_has_nothing_to_resume(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: Launch, progress: Progress) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Launch, "plan", stop)
    code, said, err = run("histeq", "--dry-run")
    assert code == 130
    assert "Interrupted: nothing was run." in said + err
    assert "resume" not in said + err


def test_cells_to_come_are_known_while_somebody_is_at_them(run: Any, tmp_path: Path, cli: Cli) -> None:
    process = fork(lambda: run("ae,histeq,constant", "--set", "ae.steps=100000"))
    deadline = time.monotonic() + 120
    while not list((tmp_path / "runs").rglob(status.STATUS)):
        assert os.waitpid(process, os.WNOHANG) == (0, 0)
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert states(cli, tmp_path / "runs") == {"running": 1, "waiting": 2}
    waiting = [seen for seen in status.runs(tmp_path / "runs") if seen.state == "waiting"]
    why = json.loads(cli("why", waiting[0].folder.name, "--out", tmp_path / "runs", "--json")[1])
    assert why["differences"][0]["field"] == "method"
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    assert states(cli, tmp_path / "runs") == {"lost": 1, "interrupted": 2}
    assert "takes up what is failed, interrupted or lost" in cli("status", "--out", tmp_path / "runs")[2]


def test_why_names_the_field(run: Any, cli: Cli, slices: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    run("histeq")
    (first,) = [seen.folder for seen in status.runs(out)]
    alone = cli("why", first)
    assert "the only run here" in alone[2]
    run("histeq", "--set", "histeq.sigma=1.25")
    run("constant", "--seed", "3")
    second = next(seen.folder for seen in status.runs(out) if "histeq" in seen.folder.name and seen.folder != first)
    answer = json.loads(cli("why", second, "--json")[1])
    assert Path(answer["other"]).name == first.name
    assert [(d["field"], d["this"]) for d in answer["differences"]] == [("scoring.sigma", 1.25)]
    assert answer["same_fit"]
    masks = sorted((slices / "test").glob("*-segmentation.png"))
    other = next(mask for mask in masks if mask.read_bytes() != masks[0].read_bytes())
    shutil.copy(other, masks[0])
    run("histeq")
    third = max(
        (seen.folder for seen in status.runs(out)), key=lambda folder: (folder / "record.json").stat().st_mtime_ns
    )
    answer = json.loads(cli("why", third.name.rpartition("-")[2], "--out", out, "--json")[1])
    assert [d["field"] for d in answer["differences"]] == ["test_slices"]
    assert "lesion masks" in answer["differences"][0]["meaning"]
    assert answer["same_fit"]
    for name, message in (("nothing", "names no run"), ("histeq-tiny-seed0-", "names no run")):
        code, _, err = cli("why", name, "--out", out)
        assert code == 2
        assert message in err


def test_durations() -> None:
    assert [duration(s) for s in (45, 150, 7200, 260000)] == ["45 s", "2.5 min", "2.0 h", "3.0 days"]


def test_flags_refuse_each_other(run: Any, tmp_path: Path) -> None:
    for flags, message in (
        (("--gpus-per-run", "0.5"), "--gpus-per-run is for --executor ray"),
        (("--executor", "dask"), "Unknown executor 'dask'"),
        (("--executor", "ray", "--gpus-per-run", "1.5"), "whole ones"),
        (("--executor", "ray", "--address", "nowhere"), "not of the form host:port"),
        (("--executor", "ray", "--address", "127.0.0.1:9"), "No Ray cluster answers at 127.0.0.1:9"),
        (("--cache", "s3://bucket/cache"), "must be a folder"),
        (("--grid", tmp_path / "none.yaml"), "cannot be read"),
    ):
        code, _, err = run("histeq", *flags)
        assert code == 2
        assert message in " ".join(err.split())
