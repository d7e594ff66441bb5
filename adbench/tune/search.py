"""One search from its definition to its result: begin or resume, let Ray run the trials, keep the best."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from adbench.config import run_config as configs
from adbench.config.cell import Cell, TunedFrom
from adbench.config.run_config import RunConfig
from adbench.context import Progress
from adbench.datasets.synthetic_lesions import PseudoParams
from adbench.errors import UserError
from adbench.params import build
from adbench.results import rundir
from adbench.runner import keys as specs
from adbench.runner.fit import fitted
from adbench.runner.plan import Data, plan
from adbench.tune import halving, objective, space
from adbench.tune.course import keep_best, left
from adbench.tune.data import Role, fewer
from adbench.tune.table import STARTUP, Table, Trial
from adbench.tune.task import TASK, Options, Task, difference
from adbench.tune.worker import fit_folder
from adbench.utils.files import write_text
from adbench.utils.hashing import digest
from adbench.utils.locks import LOCK, acquire

BEST = "best.yaml"


@dataclass(frozen=True)
class Result:
    """What a search found so far.

    Attributes:
        folder: of the search.
        best: None while no trial is complete.
        config: the YAML file that ``adbench run --config`` takes; None while no trial is complete.
    """

    folder: Path
    task: Task
    table: Table
    best: Trial | None
    config: Path | None


def seconds(text: str) -> float:
    """Seconds of a duration such as 8h, 90m, 1.5h or 45s.

    Raises:
        UserError: not of that form.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd])\s*", text)
    if found is None or float(found[1]) == 0:
        raise UserError(f"{text!r} is not a duration: write a number and s, m, h or d, e.g. 90m or 8h.")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


def search(
    config: RunConfig,
    options: Options,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Result:
    """Search, or go on searching.

    Args:
        config: one method on one dataset, modality and seed; what it sets is not searched.
        options: how.
        progress: receives the progress of preparation and of the trials.
        say: told about every trial that ends.

    Raises:
        UserError: anything unknown or missing; a search of this name that is another one, or is running; no Ray.
    """
    progress = progress or Progress()
    if options.trials < 1:
        raise UserError("--trials must be at least 1.")
    if options.name is not None and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", options.name):
        raise UserError(f"--name {options.name!r} names a folder: letters, digits, '.', '_' and '-' only.")
    task, data = _define(config, options, progress)
    folder = (Path(config.out) / "searches" / (options.name or _name(task))).resolve()
    _begin(folder, task, options)
    with acquire(folder, partial(_running, folder.name)):
        task.write(folder)
        table = Table.read(folder, task.mode)
        try:
            if left(table, options.trials):
                from adbench.tune.drive import drive

                drive(folder, task, table, options, progress, say)
        finally:
            if table.trials:
                result = _conclude(folder, task, table, config, data)
            else:  # Ray could not be reached: nothing has begun
                shutil.rmtree(folder, ignore_errors=True)
    return result


def _define(config: RunConfig, options: Options, progress: Progress) -> tuple[Task, Data]:
    """The search that ``config`` and ``options`` ask for, and its data."""
    mode = objective.mode_of(options.objective)
    scopes = dict(config.set)
    lesions = build(PseudoParams, "pseudo (the synthetic lesions)", scopes.pop("pseudo", {}))
    assert isinstance(lesions, PseudoParams)
    if "pseudo" in config.set and options.objective != "pseudo":
        raise UserError(
            "--set pseudo.… sets the synthetic lesions of --objective pseudo, and this objective is another."
        )
    cells = configs.cells(config.model_copy(update={"set": scopes, "tuned_from": None}))
    if len(cells) != 1:
        raise UserError(
            f"A search tunes one method on one dataset, modality and seed; this asks for {len(cells)}: "
            f"{', '.join(cell.label for cell in cells[:3])}…"
        )
    (cell,) = cells
    fixed = {**config.set.get("method", {}), **config.set.get(cell.method, {})}
    wanted, values = space.build(cell.method_class, cell.params.json_values, fixed, options.space)
    cell = cell.with_params(values)
    stores = Path(config.cache) if config.cache else configs.default_cache()
    (planned,) = plan([cell], Path(config.out), stores, progress)
    data = planned.data
    select = fewer(objective.slices_for(options.objective, data, lesions), options.slices)
    fit = specs.fit_identity(cell, data.train, data.val)
    identity = {
        **fit,
        "protocol": cell.protocol.as_dict(),
        "objective": options.objective,
        "select_slices": select.digest,
        "space": wanted,
        "search_seed": options.seed,
        "startup": STARTUP,
        "halving": {"rungs": list(halving.RUNGS), "factor": halving.FACTOR} if options.halving else {},
    }
    task = Task(
        identity=identity,
        cell=cell,
        objective=options.objective,
        mode=mode,
        space=wanted,
        seed=options.seed,
        halving=options.halving,
        train=Role.of(data.train, data.train_store),
        val=Role.of(data.val, data.train_store) if data.val is not None else None,
        select=Role.of(select, data.test_store if options.objective == "val_auprc" else data.train_store),
    )
    return task, data


def _name(task: Task) -> str:
    cell = task.cell
    parts = (cell.method, cell.preset, cell.test.dataset, cell.modality.lower(), task.objective)
    return re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(parts))


def _begin(folder: Path, task: Task, options: Options) -> None:
    """Hold the wanted search against the one that lies in ``folder``.

    Raises:
        UserError: it is there and not resumed, or not there and resumed, or another one.
    """
    there = (folder / TASK).exists()
    if options.resume and not there:
        raise UserError(f"There is no search to resume in {folder}: leave out --resume, or give the --name it has.")
    if there and not options.resume:
        raise UserError(
            f"The search {folder.name} is there already ({folder}): go on with it by --resume, or start another with --name."
        )
    if there:
        changed = difference(Task.read(folder).identity, json.loads(json.dumps(task.identity)))  # both as JSON has them
        if changed:
            raise UserError(
                f"The search {folder.name} was begun otherwise ({changed}): resume it as it was, or start another with --name."
            )
    folder.mkdir(parents=True, exist_ok=True)


def _running(name: str, owner: str) -> None:
    raise UserError(f"The search {name} is running ({owner}): wait for it, or stop it.")


def chosen_cell(task: Task, trial: Trial) -> Cell:
    """The cell with the parameters of ``trial``."""
    return task.cell.with_params(trial.params)


def origin(name: str, task: Task, table: Table, best: Trial) -> TunedFrom:
    """What a record says about this search."""
    assert best.value is not None
    first = table.trials[0]
    return TunedFrom(
        search=name,
        method=task.cell.method,
        objective=task.objective,
        value=best.value,
        default=first.value if first.state == "complete" else None,
        params=best.params,
        trials=len(table.trials),
        complete=len(table.in_state("complete")),
        stopped=len(table.in_state("stopped")),
        failed=len(table.in_state("failed")),
        cpu_hours=table.cpu_hours,
        gpu_hours=table.gpu_hours,
        seed=task.seed,
        slices=task.identity["select_slices"],
        identity=task.name,
        table=digest([[t.number, t.params, t.state, list(t.reports.items())] for t in table.trials]),
    )


def _conclude(folder: Path, task: Task, table: Table, config: RunConfig, data: Data) -> Result:
    """Write the best configuration and the report; hand the best fit to ``adbench run``."""
    from adbench.tune.report import write_report

    keep_best(folder, table)
    best, path = table.best, None
    if best is not None:
        cell = replace(chosen_cell(task, best), tuned_from=origin(folder.name, task, table, best))
        found = configs.from_cell(cell)
        path = folder / BEST
        # Where it runs is no matter of the choice.
        out = found.model_copy(update={"device": "auto", "out": config.out, "cache": config.cache})
        write_text(path, out.to_yaml())
        _hand_over(fit_folder(folder, best.number), cell, data, Path(config.out))
    write_report(folder, task, table)
    return Result(folder, task, table, best, path)


def _hand_over(home: Path, cell: Cell, data: Data, out: Path) -> None:
    """Copy the best fit to where ``adbench run`` looks for it, so that it is not trained a second time."""
    key = digest(specs.fit_identity(cell, data.train, data.val))
    target = rundir.fit_folder(out, cell.method, key)
    if fitted(home, key) is None or target.exists():
        return
    copy = target.with_name(f".{target.name}.partial")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(home, copy, ignore=shutil.ignore_patterns(LOCK))
    copy.rename(target)
