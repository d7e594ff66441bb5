"""Fits that need others: of a method that another one trains, and one that is made of several. Each is made once, in its own folder."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields, replace
from typing import Any

from adbench.config.source import source_files
from adbench.context import Context, Progress
from adbench.methods.base import FitReport, Method
from adbench.results import provenance
from adbench.runner.fit import commit_fit, fit_method, fitted
from adbench.runner.plan import FitPlan
from adbench.utils import distributed, threads
from adbench.utils.files import sweep
from adbench.utils.locks import LOCK, acquire


def make_fit(
    plan: FitPlan, ctx: Context, watch: Callable[[Method, float], None] | None = None
) -> tuple[Method, dict[str, Any]]:
    """The fitted method of ``plan``, and the content of its ``fit.json``: as it is there, or made now from those it needs.

    Processes that ask for the same fit make it once; the others wait.
    """
    cell, folder = plan.cell, plan.folder
    ready = fitted(folder, plan.key) is not None
    alone = distributed.rank() > 0 or (ready and not (folder / LOCK).exists())
    with nullcontext() if alone else acquire(folder, waits(ctx.progress)):
        if not alone:
            sweep(folder)
        if not alone and not ready:
            provenance.sign(folder, ctx.device, source_files("methods", cell.method))
        if not ready and (trainer := plan.trainer) is not None:
            _take_over(plan, trainer, ctx)
        members = [] if ready else make_members(plan, ctx)
        return fit_method(cell.method_class, cell.params, plan.train, plan.val, folder, plan.key, ctx, watch, members)


def make_members(plan: FitPlan, ctx: Context) -> list[tuple[Method, FitReport]]:
    """The fits that the one of ``plan`` is made of, as runs of their own would make them."""
    return [_member(member, ctx) for member in plan.members]


def _member(plan: FitPlan, ctx: Context) -> tuple[Method, FitReport]:
    own = replace(ctx, seed=plan.cell.seed, workdir=plan.folder, watch=None)
    with threads.limited(threads.count(plan.cell.method_class.resources(plan.cell.params).cpus)):
        method, fit = make_fit(plan, own)
    said = {field.name: fit[field.name] for field in fields(FitReport) if field.name in fit}
    return method, FitReport(**{**said, "earlier_seconds": fit["seconds"]})


def _take_over(plan: FitPlan, trainer: FitPlan, ctx: Context) -> None:
    """Make the fit of ``plan`` from that of its trainer, which is made first where it is not there."""
    learned, fit = make_fit(trainer, replace(ctx, workdir=trainer.folder))
    if distributed.rank() == 0 and fitted(plan.folder, plan.key) is None:
        method = plan.cell.method_class(plan.cell.params, ctx)
        method.load_notes(learned.notes())
        method.load_state(learned.state())
        commit_fit(plan.folder, method, {**fit, "fit_key": plan.key})
    distributed.wait()


def waits(progress: Progress) -> Callable[[str], None]:
    """What says on ``progress`` that a folder is waited for, and who has it."""
    return lambda owner: progress.update(f"wait for {owner}", 0, 0)
