"""The trials of a search, with a table (CSV) and two plots (PNG) of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from adbench.tune.space import distributions, label, nearest, values
from adbench.tune.task import Mode, Task
from adbench.utils.console import csv_cell
from adbench.utils.files import replacing, write_text

FULL = 100.0  # share of the training, in percent
RUNGS = (10.0, 30.0)  # at which a trial may be stopped: successive halving by FACTOR from the first one on
FACTOR = 3
STARTUP = 10  # proposals drawn at random before the estimator takes over: Optuna's own default
STATE = "state.zip"  # what a search is resumed from
TABLE, PARALLEL, IMPORTANCE = "trials.csv", "parallel.png", "importance.png"
MIN_TRIALS = 5  # complete ones, for an estimate of the importance of parameters
State = Literal["waiting", "complete", "stopped", "failed"]


@dataclass(frozen=True)
class Trial:
    """One point of the search space.

    Attributes:
        number: 0 has the default parameters.
        params: the searched parameters.
        state: "waiting" (interrupted, or still running), "complete", "stopped" (by successive halving) or "failed".
        reports: share of the training (percent) -> objective, in order; the last one of a complete trial is at 100.
        seconds: wall-clock time over all attempts, as far as reported.
        cpus: cores that it held.
        gpus: GPUs that it held.
        error: why it failed.
    """

    number: int
    params: dict[str, Any]
    state: State
    reports: dict[float, float] = field(default_factory=dict)
    seconds: float = 0.0
    cpus: float = 0.0
    gpus: float = 0.0
    error: str = ""

    @property
    def value(self) -> float | None:
        """The last objective reported; None before the first."""
        return list(self.reports.values())[-1] if self.reports else None


def count(trials: Sequence[Trial], state: str) -> int:
    """How many of ``trials`` are in ``state``."""
    return sum(trial.state == state for trial in trials)


def ranked(trials: Sequence[Trial], mode: Mode) -> list[Trial]:
    """The complete trials, the best first, the earlier of equals first."""
    sign = -1 if mode == "max" else 1
    complete = (trial for trial in trials if trial.state == "complete")
    return sorted(complete, key=lambda trial: (sign * (trial.value or 0.0), trial.number))


def hours(trials: Sequence[Trial]) -> tuple[float, float]:
    """CPU-core-hours and GPU-hours that ``trials`` held."""
    return (
        sum(trial.seconds * trial.cpus for trial in trials) / 3600,
        sum(trial.seconds * trial.gpus for trial in trials) / 3600,
    )


def write_table(folder: Path, trials: Sequence[Trial]) -> None:
    """Write the table of trials: state, objective, share of the training done, time, parameters, objective at each rung."""
    import pandas as pd

    rows = []
    for trial in trials:
        row: dict[str, Any] = {
            "trial": trial.number,
            "state": trial.state,
            "objective": trial.value,
            "trained_percent": max(trial.reports, default=None),
            "seconds": round(trial.seconds, 1),
            "cpus": trial.cpus,
            "gpus": trial.gpus,
            **{name: label(value) for name, value in trial.params.items()},
        }
        for rung, end in zip(RUNGS, (*RUNGS[1:], FULL), strict=True):
            row[f"objective_at_{rung:.0f}"] = next(
                (v for share, v in trial.reports.items() if rung <= share < end), None
            )
        rows.append({name: csv_cell(value) for name, value in {**row, "error": trial.error}.items()})
    write_text(folder / TABLE, pd.DataFrame(rows).to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def write_plots(folder: Path, task: Task, trials: Sequence[Trial]) -> None:
    """Draw the complete trials over their parameters, and how much each parameter matters (fANOVA, Hutter et al. 2014).

    Stopped trials are left out: they were measured earlier in their training. A plot that the trials do not allow (none
    complete; fewer than five, or all of one value, for the importance) is removed.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    from optuna.importance import FanovaImportanceEvaluator
    from optuna.visualization import matplotlib as plots

    study = optuna.create_study(direction="maximize" if task.mode == "max" else "minimize")
    axes = distributions(task.space)
    for trial in ranked(trials, task.mode):
        inside = nearest(task.space, trial.params)
        if values(task.space, inside) == trial.params:  # the method's defaults may lie outside the space
            study.add_trial(optuna.trial.create_trial(value=trial.value, params=inside, distributions=axes))
    complete = len(study.trials)
    title = f"{task.cell.method}: {complete} complete trials"
    evaluator = FanovaImportanceEvaluator(seed=0)
    _plot(
        folder / PARALLEL,
        title,
        complete > 0,
        lambda: plots.plot_parallel_coordinate(study, target_name=task.objective),
    )
    _plot(
        folder / IMPORTANCE,
        f"{title}, share of the variance of {task.objective} explained",
        complete >= MIN_TRIALS and len({trial.value for trial in study.trials}) > 1,
        lambda: plots.plot_param_importances(study, evaluator=evaluator, target_name=task.objective),
    )


def _plot(path: Path, title: str, possible: bool, draw: Callable[[], Any]) -> None:
    path.unlink(missing_ok=True)
    if not possible:
        return
    import warnings

    import matplotlib

    if "matplotlib.pyplot" not in sys.modules:
        matplotlib.use("agg")  # no window is wanted
    from matplotlib import pyplot

    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.simplefilter("ignore")  # Optuna calls its plots experimental
        drawn = draw()
        drawn.set_title("", loc="center")
        drawn.set_title(title, fontsize=10, loc="left", pad=12)
        drawn.figure.set_size_inches(9, 4.5)
        with replacing(path) as temporary:
            drawn.figure.savefig(temporary, dpi=130, format="png", bbox_inches="tight")
        pyplot.close(drawn.figure)
