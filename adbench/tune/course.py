"""The course of a search: what is tried next, what is stopped, what is kept. Ray only carries it out."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adbench.context import Progress
from adbench.executors.gpu_sharing import ResourceRequest
from adbench.results import rundir
from adbench.tune.halving import falls_short
from adbench.tune.table import FULL, Table, Trial, defaults, propose
from adbench.tune.task import Task
from adbench.tune.worker import fit_folder

HOPELESS = 5  # trials that fail before the first success; more of them would fail too
LABELS = {"complete": "done", "stopped": "stopped early", "failed": "failed"}


class Course:
    """The search while it runs: the only writer of the table."""

    def __init__(
        self,
        folder: Path,
        task: Task,
        table: Table,
        trials: int,
        portion: ResourceRequest,
        progress: Progress,
        say: Callable[[str], None],
    ) -> None:
        self.folder, self.task, self.table, self.wanted, self.portion = folder, task, table, trials, portion
        self.progress, self.say = progress, say

    def next(self) -> Trial | None:
        """The trial to run now: an interrupted one, the method as it comes, or a new proposal; None: no more."""
        table = self.table
        waiting = table.in_state("waiting")
        if self.hopeless:
            return None
        if waiting:
            trial = waiting[0]
        elif len(table.trials) >= self.wanted:
            return None
        else:
            number = len(table.trials)
            task = self.task
            params = (
                propose(task.space, task.mode, task.seed, number, table.trials)
                if number
                else defaults(task.space, task.cell.params.json_values)
            )
            trial = Trial(number, params)
            table.trials.append(trial)
        trial.state, trial.cpus, trial.gpus = "running", self.portion.cpus, self.portion.gpus
        table.save()
        return trial

    def reported(self, number: int, result: dict[str, Any]) -> bool:
        """Take in a report; True when the trial is to be stopped."""
        trial = self.table.trials[number]
        if trial.state != "running":  # Ray repeats the last report of a trial when it ends
            return False
        trial.seconds = trial.earlier + result["seconds"]
        if result.get("error"):
            trial.state, trial.error = "failed", str(result["error"])
        else:
            trial.reports[float(result["share"])] = float(result["value"])
            if result["share"] >= FULL:
                trial.state = "complete"
            elif self.task.halving and falls_short(self.table, trial):
                trial.state = "stopped"
        self.table.save()
        return trial.state == "stopped"

    def ended(self, number: int, crashed: bool) -> None:
        """The trial's worker is gone."""
        trial = self.table.trials[number]
        if crashed and trial.state == "running":
            trial.state = "failed"
            trial.error = "its worker process died, for example because the machine ran out of memory"
        self.table.save()
        if trial.state not in LABELS:
            return  # the time is up: it waits for the next session
        keep_best(self.folder, self.table)
        best = self.table.best
        ended = len(self.table.in_state("complete", "stopped", "failed"))
        what = trial.error if trial.state == "failed" else f"{self.task.objective} {trial.value:.4f}"
        at = f" at {max(trial.reports):.0f} %" if trial.state == "stopped" else ""
        leader = f"; best {best.value:.4f} (trial {best.number})" if best is not None and best is not trial else ""
        self.say(
            f"  trial {number} {LABELS[trial.state]}{at}: {what}{leader}{' (best so far)' if best is trial else ''}"
        )
        self.progress.update("trials", ended, max(self.wanted, len(self.table.trials)))

    @property
    def left(self) -> int:
        """How many trials are still to be run."""
        return left(self.table, self.wanted)

    @property
    def hopeless(self) -> bool:
        """Whether so many trials have failed, and none has not, that more would fail too."""
        failed = self.table.in_state("failed")
        return len(failed) >= HOPELESS and len(failed) == len(self.table.trials)


def left(table: Table, trials: int) -> int:
    """How many of ``trials`` are still to be run, interrupted ones included."""
    return max(trials - len(table.trials), 0) + len(table.in_state("waiting"))


def keep_best(folder: Path, table: Table) -> None:
    """Remove the fits of ended trials but the best one's, and of failed ones all but the traceback."""
    best = table.best
    for trial in table.in_state("complete", "stopped", "failed"):
        home = fit_folder(folder, trial.number)
        if trial is best or not home.exists():
            continue
        if trial.state == "failed" and (home / rundir.FAILURE).exists():
            for item in home.iterdir():
                if item.is_dir():
                    shutil.rmtree(item, ignore_errors=True)
                elif item.name != rundir.FAILURE:
                    item.unlink(missing_ok=True)
        else:
            shutil.rmtree(home, ignore_errors=True)
