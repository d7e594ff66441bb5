"""What a search leaves for people: a table of trials (CSV), parallel coordinates and the importance of parameters (PNG)."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adbench.tune.halving import RUNGS, rung_of
from adbench.tune.objective import OBJECTIVES
from adbench.tune.space import Space, distributions, label, proposal
from adbench.tune.table import FULL, Table, Trial
from adbench.utils.files import replacing, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from adbench.tune.task import Task

TABLE, PARALLEL, IMPORTANCE = "trials.csv", "parallel.png", "importance.png"
WHITE = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.6}
ENOUGH = 5  # complete trials below which importance is not estimated


def write_report(folder: Path, task: Task, table: Table) -> None:
    """Write everything that the trials allow; a picture that they do not allow any more is removed."""
    write_text(folder / TABLE, trial_csv(task.space, table))
    _picture(folder / PARALLEL, _parallel, task, table, bool(table.in_state("complete", "stopped")))
    _picture(folder / IMPORTANCE, _importance, task, table, len(_comparable(task.space, table)) >= ENOUGH)


def trial_csv(space: Space, table: Table) -> str:
    """One row a trial: number, state, objective, share of training done, time, parameters, objective at each rung."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    rungs = [f"objective_at_{rung:.0f}" for rung in RUNGS]
    writer.writerow(
        ["trial", "state", "objective", "trained_percent", "seconds", "cpus", "gpus", *space, *rungs, "error"]
    )
    for trial in table.trials:
        at = {rung_of(share): value for share, value in trial.reports.items() if share < FULL}
        row = [
            trial.number,
            trial.state,
            _text(trial.value),
            _text(max(trial.reports, default=None)),
            f"{trial.seconds:.1f}",
        ]
        row += [_text(trial.cpus), _text(trial.gpus)]
        row += [_text(label(trial.params[name])) for name in space]
        writer.writerow([*row, *(_text(at.get(rung)) for rung in RUNGS), _harmless(trial.error)])
    return out.getvalue()


def _text(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else _harmless(str(value))


def _harmless(text: str) -> str:
    """A text that a spreadsheet does not take for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def importance(space: Space, table: Table, seed: int = 0) -> dict[str, float]:
    """Share of the variance of the objective that each parameter explains among complete trials (fANOVA, Hutter et al. 2014)."""
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances
    from optuna.trial import create_trial

    study = optuna.create_study(direction="maximize" if table.mode == "max" else "minimize")
    axes = distributions(space)
    for trial, known in _comparable(space, table):
        study.add_trial(create_trial(value=trial.value, params=known, distributions=axes))
    found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=seed))
    return {name: float(share) for name, share in found.items()}


def _comparable(space: Space, table: Table) -> list[tuple[Trial, dict[str, Any]]]:
    """Complete trials inside the space: stopped ones were measured earlier and would compare training times."""
    pairs = [(trial, proposal(space, trial.params)) for trial in table.in_state("complete")]
    return [(trial, known) for trial, known in pairs if known is not None]


def _picture(path: Path, draw: Any, task: Task, table: Table, possible: bool) -> None:
    path.unlink(missing_ok=True)
    if not possible:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6.0, 1.7 * len(task.space) + 2.5), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    if draw(figure.add_subplot(), task, table):
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=130, format="png")


def _parallel(axes: Axes, task: Task, table: Table) -> bool:
    """A line a trial over the parameters to the objective; complete ones coloured by it, stopped ones grey."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    complete = table.in_state("complete")
    values = [trial.value for trial in complete if trial.value is not None]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    colours = ScalarMappable(
        Normalize(low, high if high > low else low + 1e-9), "viridis" if table.mode == "max" else "viridis_r"
    )
    names = list(task.space)
    for trial in table.in_state("stopped", "complete"):
        heights = [_height(task.space[name], trial.params[name]) for name in names]
        done = trial.state == "complete"
        best = trial is table.best
        axes.plot(
            range(len(names)),
            heights,
            color=colours.to_rgba(np.array(trial.value)) if done else "0.8",
            linewidth=2.6 if best else 1.2 if done else 0.7,
            zorder=3 if best else 2 if done else 1,
        )
        if best:
            axes.plot(
                range(len(names)),
                heights,
                "o",
                color="crimson",
                markersize=5,
                zorder=4,
                label=f"best (trial {trial.number})",
            )
        if trial.number == 0:
            axes.plot(
                range(len(names)), heights, "x", color="black", markersize=6, zorder=4, label="as it comes (trial 0)"
            )
    for at, name in enumerate(names):
        axes.axvline(at, color="0.4", linewidth=0.8, zorder=0)
        for height, text in _ticks(task.space[name]):
            axes.text(at + 0.03, height, text, fontsize=7, color="0.25", va="center", zorder=5, bbox=WHITE)
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.15, len(names) - 1 + 0.45)
    axes.set_ylim(-0.06, 1.06)
    axes.set_yticks([])
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    stopped = len(table.in_state("stopped"))
    axes.set_title(
        f"{task.cell.method}: {len(complete)} complete trials"
        + (f", {stopped} stopped early (grey)" if stopped else ""),
        fontsize=10,
        loc="left",
    )
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2, frameon=False, fontsize=8)
    if values:
        axes.figure.colorbar(
            colours, ax=axes, label=f"{task.objective} ({'higher' if table.mode == 'max' else 'lower'} is better)"
        )
    return True


def _height(entry: dict[str, Any], value: Any) -> float:
    """Where ``value`` stands on its axis, 0 to 1; a default outside the range stands at its end."""
    if "choices" in entry:
        choices = entry["choices"]
        return (choices.index(value) if value in choices else 0) / max(len(choices) - 1, 1)
    low, high, value = (
        math.log(x) if entry["log"] else x for x in (entry["low"], entry["high"], max(value, entry["low"]))
    )
    return float(min((value - low) / (high - low), 1.0))


def _ticks(entry: dict[str, Any]) -> list[tuple[float, str]]:
    if "choices" in entry:
        choices = entry["choices"]
        return [(number / max(len(choices) - 1, 1), str(label(choice))[:12]) for number, choice in enumerate(choices)]
    low, high = entry["low"], entry["high"]
    spaced = np.geomspace(low, high, 5) if entry["log"] else np.linspace(low, high, 5)
    return [(_height(entry, float(value)), f"{value:.3g}") for value in spaced]


def _importance(axes: Axes, task: Task, table: Table) -> bool:
    try:
        shares = importance(task.space, table)
    except (ValueError, RuntimeError):  # every trial gave the same value: nothing explains it
        return False
    ordered = sorted(shares.items(), key=lambda pair: pair[1])
    axes.barh([name for name, _ in ordered], [share for _, share in ordered], color="#35608d")
    for row, (_, share) in enumerate(ordered):
        axes.text(share, row, f" {share:.2f}", va="center", fontsize=8)
    axes.set_xlim(0, 1.08 * max(max(shares.values()), 1e-9))
    axes.set_xlabel(f"share of the variance of {task.objective} explained (fANOVA)")
    count = len(_comparable(task.space, table))
    axes.set_title(f"{task.cell.method}: importance over {count} complete trials", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    return True


def summary(task: Task, table: Table, folder: Path, config: Path | None) -> dict[str, Any]:
    """The search in JSON values, for ``--json``."""
    best = table.best
    return {
        "search": folder.name,
        "folder": str(folder),
        "method": task.cell.method,
        "objective": task.objective,
        "mode": task.mode,
        "what": OBJECTIVES[task.objective][1],
        "trials": [
            {
                "number": trial.number,
                "state": trial.state,
                "value": trial.value,
                "reports": {f"{share:g}": value for share, value in trial.reports.items()},
                "params": trial.params,
                "seconds": trial.seconds,
                "error": trial.error,
            }
            for trial in table.trials
        ],
        "best": None if best is None else {"number": best.number, "value": best.value, "params": best.params},
        "default": table.trials[0].value if table.trials and table.trials[0].state == "complete" else None,
        "cpu_hours": table.cpu_hours,
        "gpu_hours": table.gpu_hours,
        "config": None if config is None else str(config),
    }


def shown(value: Any) -> str:
    """A parameter value as a person reads it."""
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
