"""One trial, in a worker process: fit with the proposed parameters, look at the objective on the way and at the end."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from adbench.config.source import source_files
from adbench.context import Context
from adbench.methods.base import Method
from adbench.results import provenance, rundir
from adbench.runner import keys as specs
from adbench.tune import objective
from adbench.tune.halving import RUNGS
from adbench.tune.table import FULL
from adbench.tune.task import Task
from adbench.utils import seeds, threads
from adbench.utils.hashing import digest
from adbench.utils.locks import acquire

Report = Callable[[dict[str, Any]], object]


def fit_folder(folder: Path, number: int) -> Path:
    """Where trial ``number`` keeps its fit."""
    return Path(folder) / "trials" / f"{number:04d}"


def trial(config: dict[str, Any]) -> None:
    """What Ray calls. ``config`` holds a path, a number and the parameters, nothing large."""
    from ray import tune

    _take_share(config["memory"])
    with threads.limited(config["threads"]):
        run(Path(config["folder"]), config["number"], config["params"], config["reported"], tune.report)


def run(folder: Path, number: int, params: dict[str, Any], reported: list[float], report: Report) -> None:
    """Fit and measure one trial; a failure is reported, not raised: other trials go on.

    Args:
        folder: of the search.
        number: of the trial.
        params: the proposed parameters.
        reported: shares of the training at which an earlier attempt has reported.
        report: receives share (percent), value and seconds, or an error.
    """
    begin = time.perf_counter()

    def tell(share: float, value: float, **more: Any) -> None:
        report({"share": share, "value": value, "seconds": time.perf_counter() - begin, **more})

    home = fit_folder(folder, number)
    home.mkdir(parents=True, exist_ok=True)
    try:
        with acquire(home):  # a killed search's worker may take a moment to die
            _fit_and_measure(Task.read(folder), home, params, reported, tell)
    except Exception as error:  # of any kind: a method may be a stranger's
        rundir.write_failure(home, error, "trial")
        tell(0.0, math.nan, error=f"{type(error).__name__}: {error}")


def _take_share(memory: float | None) -> None:
    """Fill no more of the GPU than the trial holds."""
    import torch

    if memory is not None and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(memory)


def _fit_and_measure(
    task: Task, home: Path, params: dict[str, Any], reported: list[float], tell: Callable[..., None]
) -> None:
    from adbench.runner.fit import fit_method, seed_everything

    device = "cuda" if task.cell.device.startswith("cuda") else task.cell.device  # Ray says which, and shows no other
    spec = replace(task.cell.with_params(params), device=device)
    train = task.train.open()
    val = task.val.open() if task.val else None
    select = task.select.open()
    ctx = Context(device=spec.device, seed=spec.seed, workdir=home)
    due = [rung for rung in RUNGS if rung > max(reported, default=0.0)] if task.halving else []

    def watch(method: Method, done: float) -> None:
        share = 100 * done
        if due and due[0] <= share < FULL:
            while due and due[0] <= share:
                due.pop(0)
            with _generators_kept():
                value = objective.measure(task.objective, method, select, ctx)
            tell(share, value)

    key = digest(specs.fit_identity(spec, train, val))
    provenance.sign(home, device, source_files("methods", spec.method))
    method, _ = fit_method(spec.method_class, spec.params, train, val, home, key, ctx, watch)
    seed_everything(seeds.derive(spec.seed, "score"))
    tell(FULL, objective.measure(task.objective, method, select, ctx))


@contextmanager
def _generators_kept() -> Iterator[None]:
    """The global generators are afterwards as before: a fit that is watched gives the same bits as one that is not."""
    import torch

    before = random.getstate(), np.random.get_state()  # noqa: NPY002 - a stranger's method may use it
    with torch.random.fork_rng():
        yield
    random.setstate(before[0])
    np.random.set_state(before[1])  # noqa: NPY002
