"""The Python API: run methods, open finished runs, look at their maps and histograms, compare them.

::

    import adbench

    a, b = adbench.run(method="histeq,zscore", dataset="phantom", out="runs")
    print(a.label, a.record.metrics["auprc"].value)
    print(adbench.compare([a, b]).differences[0])

The command line is a thin layer over these functions and the modules they call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from adbench.config import run_config
from adbench.config.shared_fit import RUN_RECORD, is_shared, read_shared
from adbench.context import Progress
from adbench.errors import UserError
from adbench.evaluation.compare import compare, method_groups, same_test
from adbench.evaluation.prediction_files import Prediction
from adbench.evaluation.run import Run, VolumeMaps
from adbench.executors import Options
from adbench.executors.launch import Launch
from adbench.results.record import RECORD
from adbench.results.result import to_frame
from adbench.utils.signals import as_interrupts

__all__ = ["Run", "VolumeMaps", "compare", "load", "method_groups", "run", "same_test", "to_frame"]


def run(
    method: str | Sequence[str],
    dataset: str | Sequence[str],
    *,
    set: dict[str, dict[str, Any]] | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> list[Run]:
    """Train and score a grid, as ``adbench run`` does; what is done already is answered from its record.

    Built-in methods run in this process. A cell with a plug-in (a method or a metric), or with a time limit, runs in one of
    its own, so that a crash, or what it changes in a library, is its own; when it is killed, so are the processes that this
    one has started meanwhile. Under a launcher of several processes (``torchrun``) every cell runs in them.

    Args:
        method: one or more methods.
        dataset: one or more datasets.
        set: parameters by scope, e.g. ``{"madad": {"steps": 300}, "dataset": {"n_test": 8}}``.
        progress: receives the progress of cells that run one after the other; ``adbench.utils.console.LiveProgress`` draws bars.
        **settings: the other fields of :class:`adbench.config.run_config.RunConfig` (``modality``, ``seed``, ``out``, ...), and
            those of :class:`adbench.executors.Options`: ``save_maps=True`` keeps every anomaly map beside its record,
            ``executor="ray"`` runs cells on all cores and GPUs.

    Returns:
        One run a cell, in the order of the grid.

    Raises:
        UserError: anything unknown, missing or out of range, before anything runs.
        Exception: what the first failing method raised, of a cell in another process a ``CellFailed`` with its words and its
            traceback; the other cells are done, and answered from their records.
    """
    options = Options(**{name: settings.pop(name) for name in [f.name for f in fields(Options)] if name in settings})
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    chosen: run_config.RunConfig = run_config.load(
        None, {"method": method, "dataset": dataset, "set": set, **plain}, []
    )
    launch = Launch(chosen, options)
    with launch.connected():
        plans = launch.plan(progress)
        with as_interrupts():
            errors = {outcome.plan.run_key: outcome.error for outcome in launch.outcomes(progress)}
    for plan in plans:
        if (error := errors[plan.run_key]) is not None:
            raise error
    return [Run(plan.run_folder, cache=chosen.cache_folder, device=chosen.device, progress=progress) for plan in plans]


class Runs(list[Run]):
    """Open runs; what one run can do, a list of one can."""

    def predict(self, images: Path | str, out: Path | str, **chosen: Any) -> list[Prediction]:
        """:meth:`adbench.evaluation.run.Run.predict` of the only run.

        Raises:
            UserError: there are several.
        """
        if len(self) != 1:
            raise UserError(
                f"Prediction is for one run, and there are {len(self)}: name one of {', '.join(str(r.folder) for r in self[:3])}"
                f"{', ...' if len(self) > 3 else ''}."
            )
        return self[0].predict(images, out, **chosen)


def load(*paths: Path | str, cache: Path | None = None, device: str = "auto", progress: Progress | None = None) -> Runs:
    """Open finished runs.

    Args:
        *paths: run folders, or folders with runs somewhere below; a run that is found twice is opened once. A shared fit is
            opened as the run that it comes from.
        cache: folder of prepared slice stores; None: the default one.
        device: where fits are loaded to score again.
        progress: receives progress.

    Raises:
        UserError: a path does not exist or holds no run.
    """
    found: dict[str, Run] = {}
    for path in map(Path, paths):
        if is_shared(path) or path.suffix.lower() == ".zip":  # which says how to bring it in
            path = read_shared(path).folder / RUN_RECORD
        folders = [path] if not path.is_dir() or (path / RECORD).exists() else []
        folders = folders or [file.parent for file in sorted(path.rglob(RECORD))]
        if not folders:
            raise UserError(f"There is no run in {path}: a run's folder holds a {RECORD}.")
        for folder in folders:
            opened = Run(folder, cache=cache, device=device, progress=progress)
            found.setdefault(opened.record.run_key, opened)
    return Runs(found.values())
