"""A small search, and a driver that runs its trials in this process: everything but Ray."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from adbench.config import run_config
from adbench.config.run_config import RunConfig
from adbench.context import Progress
from adbench.executors.gpu_sharing import ResourceRequest
from adbench.tune import course as courses
from adbench.tune import drive as driving
from adbench.tune import worker
from adbench.tune.search import Result, search
from adbench.tune.table import Table
from adbench.tune.task import Options, Task

PHANTOM = ("n_train=4", "n_val=4", "n_test=2", "slices=2", "resolution=3.4")
SMALL = ("image_size=32", "channels=[8, 16]", "latent=8", "steps=20", "batch=4", "warmup=0")


class _Stopped(BaseException):
    """Stands for Ray ending a trial's process."""


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., RunConfig]:
    """Configuration of a cheap method on a small phantom: ``settings("ae", "method.lr=1e-3")``."""

    def make(method: str = "ae", *assignments: str) -> RunConfig:
        sets = [f"dataset.{text}" for text in PHANTOM]
        sets += [f"method.{text}" for text in SMALL] if method == "ae" else []
        flags = {"method": (method,), "dataset": ("phantom",), "device": "cpu", "out": str(tmp_path / "runs")}
        return run_config.load(None, flags, [*sets, *assignments])

    return make


def in_this_process(
    folder: Path, task: Task, table: Table, options: Options, progress: Progress, say: Callable[[str], None]
) -> None:
    """What :func:`adbench.tune.drive.drive` does, one trial after the other."""
    course = courses.Course(folder, task, table, options.trials, ResourceRequest(1.0, 0.0), progress, say)
    while (trial := course.next()) is not None:

        def report(result: dict[str, Any], number: int = trial.number) -> None:
            if course.reported(number, result):
                raise _Stopped

        with suppress(_Stopped):
            worker.run(folder, trial.number, trial.params, list(trial.reports), report)
        course.ended(trial.number, crashed=False)


@pytest.fixture
def tune(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """``tune(settings, trials=5, ...)``: a search without Ray."""
    monkeypatch.setattr(driving, "drive", in_this_process)
    return lambda settings, **options: search(settings, Options(**options))
