"""One trial, in a process of its own: fit with the proposed parameters, measure the objective on the way and at the end."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from adbench.config.source import source_files
from adbench.context import Context
from adbench.datasets.slices import LabelledSet, SliceSet
from adbench.errors import CellFailed, UserError, in_words
from adbench.executors.worker import TookTooLong, in_process
from adbench.methods.base import Method
from adbench.metrics.curves import Curve
from adbench.metrics.histogram import SubjectHistograms
from adbench.results import provenance, rundir
from adbench.runner.fit import fit_method, fitted, seed_everything
from adbench.runner.fits import make_members
from adbench.runner.inference import score_volumes
from adbench.runner.plan import FitPlan
from adbench.tune.space import values
from adbench.tune.task import Task
from adbench.tune.trials import FULL, RUNGS
from adbench.utils import seeds, threads
from adbench.utils.files import write_json
from adbench.utils.locks import acquire
from adbench.utils.signals import insisting

Report = Callable[[dict[str, Any]], None]
ATTEMPTS = 2  # for a trial whose process dies
REPORTS = "reports.json"  # what a trial has reported
FITS = "fits"


def trial_folder(folder: Path, number: int) -> Path:
    """Folder of trial ``number`` of the search in ``folder``."""
    return Path(folder) / "trials" / f"{number:04d}"


def fit_folder(folder: Path, key: str) -> Path:
    """Folder of the fit with this key in the search in ``folder``: trials that differ in how they score alone have one."""
    return Path(folder) / FITS / key[:16]


def run_apart(
    folder: Path,
    number: int,
    point: dict[str, Any],
    report: Report,
    *,
    seconds: float | None,
    cores: int,
    memory: float | None,
    device: str = "cpu",
) -> None:
    """:func:`run_trial` in a process of its own: whatever ends that is the failure of this trial alone.

    Args:
        folder: of the search.
        number: of the trial.
        point: the proposal, in Optuna's terms.
        report: is called in this process.
        seconds: it may take; None: any.
        cores: threads that it computes with.
        memory: the part of the GPU's memory that it may fill; None: all.
        device: that it computes on.

    Raises:
        CellFailed: it has failed, which was reported, perhaps in an earlier call. A process that died got a second one first.
    """
    begin, home = time.perf_counter(), trial_folder(folder, number)
    home.mkdir(parents=True, exist_ok=True)
    told = _told(home)
    if told["error"]:
        _tell(home, told, report)
        raise CellFailed(told["error"])
    work = partial(_attempt, folder, number, point, cores, memory)
    for left in reversed(range(ATTEMPTS)):
        try:
            failed = in_process(work, report, seconds=seconds, device=device)
            break
        except CellFailed as error:
            if left and not isinstance(error, TookTooLong):
                continue
            failed = str(error)
            rundir.write_failure(home, error, "trial")
            told = _told(home)
            spent = told["seconds"] + time.perf_counter() - begin
            _tell(home, {**told, "seconds": spent, "error": failed}, report)
            break
    if failed:
        raise CellFailed(failed)


def _attempt(folder: Path, number: int, point: dict[str, Any], cores: int, memory: float | None, report: Report) -> str:
    """The main function of that process."""
    if memory is not None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.set_per_process_memory_fraction(memory)
    with threads.limited(cores):
        return run_trial(folder, number, point, report)


def run_trial(folder: Path, number: int, point: dict[str, Any], report: Report) -> str:
    """Fit and measure one trial, going on from where an earlier attempt stopped.

    Trial 0 has the default parameters, whatever ``point`` is. ``report`` receives ``share`` (percent of the training),
    ``value`` (of the objective), and ``reports``, ``seconds`` and ``error`` of all attempts.

    Returns:
        Why it failed, which was reported; "" when it did not.
    """
    begin, home = time.perf_counter(), trial_folder(folder, number)
    with acquire(home):  # a killed search's worker may take a moment to die
        earlier = _told(home)
        done: list[tuple[float, float]] = []

        def tell(share: float, value: float) -> None:
            done.append((share, value))
            say()

        def say(error: str = "") -> None:
            spent = earlier["seconds"] + time.perf_counter() - begin
            _tell(home, {"reports": done, "seconds": spent, "error": error}, report)

        for share_done, value in earlier["reports"]:
            tell(share_done, value)
        if done and done[-1][0] >= FULL:
            return ""
        try:
            task = Task.read(folder)
            params = values(task.space, point) if number else task.defaults
            with insisting():
                _fit_and_measure(
                    task, folder, params, [rung for rung in RUNGS if all(rung > at for at, _ in done)], tell
                )
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a method may be anybody's, and raise anything, SystemExit included
            rundir.write_failure(home, error, "trial")
            say(in_words(error))
            return in_words(error)
        return ""


def _told(home: Path) -> dict[str, Any]:
    """Earlier reports of the trial in ``home``: ``reports``, ``seconds``, ``error``."""
    path = home / REPORTS
    content: dict[str, Any] = {"reports": [], "seconds": 0.0, "error": ""}
    return json.loads(path.read_text()) if path.exists() else content


def _tell(home: Path, content: dict[str, Any], report: Report) -> None:
    """Report, and keep what was reported: the last of ``reports``, unless there is an ``error``."""
    write_json(home / REPORTS, content)
    share, value = (0.0, math.nan) if content["error"] else content["reports"][-1]
    report({"share": share, "value": value, **content})


def _fit_and_measure(
    task: Task, folder: Path, params: dict[str, Any], due: list[float], tell: Callable[[float, float], None]
) -> None:
    device = "cuda" if task.cell.device.startswith("cuda") else task.cell.device  # Ray says which, and shows no other
    cell = replace(task.cell.with_params(params), device=device)
    (train, val), select = task.learned(), task.select.open()
    plan = FitPlan.of(cell, train, val, folder.parents[1])  # of OUT/searches/NAME
    home = fit_folder(folder, plan.key)
    ctx = Context(device=cell.device, seed=cell.seed, workdir=home, **cell.post.json_values)

    def watch(method: Method, done: float) -> None:
        share_done = 100 * done
        if due and due[0] <= share_done < FULL:
            while due and due[0] <= share_done:
                due.pop(0)
            tell(share_done, measure(task.objective, method, select, ctx))

    with acquire(home):  # of trials that differ in how they score, one trains
        members = [] if fitted(home, plan.key) else make_members(plan, ctx)  # once, in OUT/fits, whoever asks first
        provenance.sign(home, device, source_files("methods", cell.method))
        looked = watch if task.identity["halving"] else None
        method, _ = fit_method(cell.method_class, cell.params, train, val, home, plan.key, ctx, looked, members)
    seed_everything(seeds.derive(cell.seed, "score"))
    tell(FULL, measure(task.objective, method, select, ctx))


def measure(objective: str, method: Method, slices: SliceSet, ctx: Context) -> float:
    """``objective`` of a method that can score.

    Raises:
        UserError: ``recon`` of a method that makes no reconstruction; scores that are not finite.
    """
    if objective == "recon":
        return _reconstruction_error(method, slices, ctx.device)
    assert isinstance(slices, LabelledSet)
    histograms = SubjectHistograms()
    for scored in score_volumes(method, slices, ctx, "score validation"):
        brain = slices.brains(scored.positions)
        histograms.update(scored.subject, scored.maps[brain], slices.lesions(scored.positions)[brain])
    return Curve(histograms.pooled()).average_precision()


def _reconstruction_error(method: Method, slices: SliceSet, device: str) -> float:
    import torch

    total, voxels = 0.0, 0
    for batch in slices.batches(32):
        moved = batch.to(device)
        with torch.inference_mode():
            recon = method.reconstruct(moved)
        if recon is None:
            raise UserError(f"{method.name} makes no reconstruction: use --objective val_auprc or pseudo.")
        error = (recon.float() - moved.image).abs()[moved.brain]
        total += float(error.double().sum())
        voxels += int(moved.brain.sum())
    value = total / max(voxels, 1)
    if not np.isfinite(value):
        raise UserError(f"{method.name} gave a reconstruction that is not finite.")
    return value
