"""One search from its definition to its result: begin or resume, let Ray run the trials, keep the best."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from adbench.config import run_config as configs
from adbench.config.cell import TunedFrom
from adbench.config.run_config import RunConfig
from adbench.config.sweep import differing
from adbench.context import Progress
from adbench.datasets.synthetic_lesions import SyntheticLesionParams
from adbench.errors import UserError, unknown
from adbench.params import build
from adbench.results.explain import differences
from adbench.runner import keys
from adbench.runner.fit import fitted
from adbench.runner.plan import Data, FitPlan, plan
from adbench.tune import space
from adbench.tune.task import OBJECTIVES, TASK, Role, SearchOptions, Task, fewer, slices_for
from adbench.tune.trials import FACTOR, RUNGS, STARTUP, STATE, Trial, count, hours, ranked, write_plots, write_table
from adbench.tune.worker import fit_folder, trial_folder
from adbench.utils.cluster import check, connect
from adbench.utils.files import scratch, write_text
from adbench.utils.hashing import digest
from adbench.utils.locks import LOCK, acquire, is_locked
from adbench.utils.processes import GRACE

BEST = "best.yaml"
RAY_TUNE = {  # environment that Ray Tune reads when it is imported or started; a value that the user has set stays
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the table of trials is ours
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the search at once
    "TUNE_GLOBAL_CHECKPOINT_S": "1",  # seconds between two saves of its state
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths among the parameters keep their meaning
    "RAY_AIR_NEW_OUTPUT": "0",  # with it verbose=0 still prints a table
}


@dataclass(frozen=True)
class SearchResult:
    """The result of a search so far.

    Attributes:
        trials: in order of their numbers.
        config: the YAML file that ``adbench run --config`` takes; None while no trial is complete.
    """

    folder: Path
    task: Task
    trials: tuple[Trial, ...]
    config: Path | None

    @property
    def best(self) -> Trial | None:
        """The best complete trial, the earliest among equals; None while no trial is complete."""
        return next(iter(ranked(self.trials, self.task.mode)), None)

    @property
    def default(self) -> float | None:
        """The objective with the default parameters (trial 0), None while that is not complete."""
        return self.trials[0].value if self.trials and self.trials[0].state == "complete" else None

    def to_json(self) -> dict[str, Any]:
        """The search in JSON values, for ``--json``."""
        best, (cpu_hours, gpu_hours) = self.best, hours(self.trials)
        return {
            "search": self.folder.name,
            "folder": str(self.folder),
            "method": self.task.cell.method,
            "objective": self.task.objective,
            "mode": self.task.mode,
            "what": OBJECTIVES[self.task.objective][1],
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
                for trial in self.trials
            ],
            "best": None if best is None else {"number": best.number, "value": best.value, "params": best.params},
            "default": self.default,
            "cpu_hours": cpu_hours,
            "gpu_hours": gpu_hours,
            "config": None if self.config is None else str(self.config),
        }


def search(
    config: RunConfig,
    options: SearchOptions,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> SearchResult:
    """Search, or go on searching: one method on one dataset, modality and seed; what ``config`` sets is not searched.

    ``say`` is told about every trial that ends.

    Raises:
        UserError: anything unknown or missing; a search of this name that is another one, or is running; no Ray.
    """
    progress = progress or Progress()
    check(options.address)
    task, data, folder = folder_of(config, options, progress)
    with acquire(folder, partial(_running, folder.name)):
        _check_folder(folder, task, options)  # again: another command may have begun and ended in between
        task.write(folder)
        trials: list[Trial] = []
        for name, value in RAY_TUNE.items():
            os.environ.setdefault(name, value)
        try:
            with connect(options.address) as cluster:
                from adbench.tune.driver import Driver

                Driver(folder, task, options, trials, progress, say).run(cluster)
        finally:
            _wait_for_saves(folder, trials)
            if trials:
                result = _conclude(folder, task, tuple(trials), config, data)
            elif not (folder / STATE).exists():  # Ray could not be reached: nothing has begun
                shutil.rmtree(folder, ignore_errors=True)
    return result


def folder_of(config: RunConfig, options: SearchOptions, progress: Progress) -> tuple[Task, Data, Path]:
    """The search that is asked for, its data, and where it lies or will lie; nothing is written there.

    Raises:
        UserError: anything unknown or missing, or another search of this name.
    """
    if options.trials < 1:
        raise UserError("--trials must be at least 1.")
    if options.name is not None and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", options.name):
        raise UserError(f"--name {options.name!r} names a folder: letters, digits, '.', '_' and '-' only.")
    task, data = define(config, options, progress)
    folder = (Path(config.out) / "searches" / (options.name or _name(task))).resolve()
    _check_folder(folder, task, options)
    return task, data, folder


def _wait_for_saves(folder: Path, trials: list[Trial]) -> None:
    """Let the trials that were interrupted save their training, which they do once Ray's workers are gone."""
    late = time.monotonic() + GRACE
    for trial in trials:
        while trial.state == "waiting" and is_locked(trial_folder(folder, trial.number)) and time.monotonic() < late:
            time.sleep(GRACE / 50)


def define(config: RunConfig, options: SearchOptions, progress: Progress) -> tuple[Task, Data]:
    """The search that ``config`` and ``options`` ask for, and its data (prepared if need be).

    Raises:
        UserError: anything unknown or missing, several cells, nothing to search, no slices for the objective.
    """
    if options.objective not in OBJECTIVES:
        raise unknown("objective", options.objective, OBJECTIVES)
    scopes = dict(config.set)
    lesions = build(SyntheticLesionParams, "pseudo (the synthetic lesions)", scopes.pop("pseudo", {}))
    assert isinstance(lesions, SyntheticLesionParams)
    if "pseudo" in config.set and options.objective != "pseudo":
        raise UserError(
            "--set pseudo.… sets the synthetic lesions of --objective pseudo, and this objective is another."
        )
    if config.fit is not None:
        raise UserError(f"The fit in {config.fit} is trained already: leave `fit` out of what is searched.")
    cells = configs.cells(config.model_copy(update={"set": scopes, "tuned_from": None}))
    swept = differing([cell.given for cell in cells])[0] if len({cell.method for cell in cells}) == 1 else {}
    if swept:
        name = next(iter(swept))
        raise UserError(
            f"{name} has several values ({', '.join(dict.fromkeys(str(c.given[name]) for c in cells))}), a sweep for "
            f"`adbench run`. A search chooses values itself: set one, or name its choices in a file for --space, {name}: "
            "{choices: [...]}."
        )
    if len(cells) != 1:
        raise UserError(
            f"A search tunes one method on one dataset, modality and seed; this asks for {len(cells)}: "
            f"{', '.join(cell.label for cell in cells[:3])}…"
        )
    (cell,) = cells
    fixed = {**config.set.get("method", {}), **config.set.get(cell.method, {})}
    wanted, values = space.build_space(cell.method_class, cell.given, fixed, options.space)
    cell = cell.with_params(values)
    (planned,) = plan([cell], config.out_folder, config.cache_folder, progress)
    data = planned.data
    select = fewer(slices_for(options.objective, data, lesions), options.slices)
    identity = {
        **keys.fit_identity(cell, data.train, data.val),
        **keys.scoring_identity(cell),
        "protocol": cell.protocol.as_dict(),
        "objective": options.objective,
        "select_slices": select.digest,
        "space": wanted,
        "search_seed": options.seed,
        "startup": STARTUP,
        "halving": {"rungs": list(RUNGS), "factor": FACTOR} if options.halving else {},
    }
    task = Task(
        identity=json.loads(json.dumps(identity)),  # as it is read back
        cell=cell,
        train=Role.of(data.train, data.train_store),
        val=Role.of(data.val, data.train_store) if data.val is not None else None,
        select=Role.of(select, data.test_store if options.objective == "val_auprc" else data.train_store),
    )
    return task, data


def _name(task: Task) -> str:
    cell = task.cell
    parts = (cell.method, cell.preset, cell.test.title, cell.modality.lower(), task.objective)
    return re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(parts))


def _check_folder(folder: Path, task: Task, options: SearchOptions) -> None:
    """Check that the wanted search fits what lies in ``folder``.

    Raises:
        UserError: it is there and not resumed, or not there and resumed, or another one.
    """
    before = Task.read(folder) if (folder / TASK).exists() else None
    if before is None:
        if options.resume:
            raise UserError(f"There is no search to resume in {folder}: leave out --resume, or give the --name it has.")
        return
    if not options.resume:
        raise UserError(
            f"The search {folder.name} exists already ({folder}): continue it with --resume, or start another with --name."
        )
    changed = next(iter(differences(task.identity, before.identity)), None)
    if changed is not None:
        how = changed.meaning or f"was {changed.other!r}, now {changed.this!r}"
        raise UserError(
            f"The search {folder.name} was started with other settings ({changed.field}: {how}): resume it as it was, or "
            "start another with --name."
        )


def _running(name: str, owner: str) -> None:
    raise UserError(f"The search {name} is running ({owner}): wait for it, or stop it.")


def _conclude(folder: Path, task: Task, trials: tuple[Trial, ...], config: RunConfig, data: Data) -> SearchResult:
    """Write the best configuration, the table and the plots; hand the best fit to ``adbench run``."""
    write_table(folder, trials)
    write_plots(folder, task, trials)
    result = SearchResult(folder, task, trials, None)
    best = result.best
    if best is None:
        return result
    cell = replace(task.cell.with_params(best.params), tuned_from=_origin(result, best))
    # Where it runs is no matter of the choice.
    found = configs.from_cell(cell).model_copy(update={"device": "auto", "out": config.out, "cache": config.cache})
    write_text(folder / BEST, found.to_yaml())
    _hand_over(folder, FitPlan.of(cell, data.train, data.val, Path(config.out)))
    return SearchResult(folder, task, trials, folder / BEST)


def _origin(result: SearchResult, best: Trial) -> TunedFrom:
    """The search, as records of its best configuration state it."""
    assert best.value is not None
    task, trials, (cpu_hours, gpu_hours) = result.task, result.trials, hours(result.trials)
    return TunedFrom(
        search=result.folder.name,
        method=task.cell.method,
        objective=task.objective,
        value=best.value,
        default=result.default,
        params=best.params,
        trials=len(trials),
        complete=count(trials, "complete"),
        stopped=count(trials, "stopped"),
        failed=count(trials, "failed"),
        cpu_hours=cpu_hours,
        gpu_hours=gpu_hours,
        seed=task.seed,
        slices=task.identity["select_slices"],
        identity=digest(task.identity),
        table=digest([[t.number, t.params, t.state, list(t.reports.items())] for t in trials]),
    )


def _hand_over(folder: Path, best: FitPlan) -> None:
    """Copy the best fit to where ``adbench run`` looks for it, so that it is not trained a second time."""
    home = fit_folder(folder, best.key)
    if fitted(home, best.key) is None or best.folder.exists():
        return
    with scratch(best.folder) as copy:
        shutil.copytree(home, copy, ignore=shutil.ignore_patterns(LOCK), dirs_exist_ok=True)
        copy.rename(best.folder)
