"""Options of executors, outcomes of cells, and the executor that runs one cell after the other in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from adbench.config import registry
from adbench.config.cell import Cell
from adbench.context import Context, Progress
from adbench.errors import CellFailed, UserError, in_words, tellable, unknown
from adbench.evaluation.pictures import illustrate
from adbench.executors.resources import ResourceRequest, request
from adbench.results import status
from adbench.results.record import Record
from adbench.runner.plan import Plan
from adbench.runner.run_cell import run_cell
from adbench.utils import distributed
from adbench.utils.signals import signal_name
from adbench.utils.supervisor import Ended, HandedOver, Journal
from adbench.utils.tracking import check_trackers

EXECUTORS = ("serial", "ray")


@dataclass(frozen=True)
class Options:
    """Options of executors; nothing here changes a number.

    Attributes:
        executor: one of :data:`EXECUTORS`; what follows up to ``max_concurrent`` is for "ray" only.
        address: of a Ray cluster; None: ``RAY_ADDRESS``, else this machine.
        cpus: cores a run; None: what its method asks for.
        gpus: GPUs, or the fraction of one, a run; None: by the memory its method asks for.
        max_concurrent: runs at a time; None: as many as there is room for.
        time_limit: seconds that a cell may take; None: any. A serial grid is held to it by
            :func:`adbench.utils.supervisor.supervised`.
        force: score again although records are there (fits are kept).
        checkpoint_seconds: a training in progress is saved at least this often.
        save_maps: keep every anomaly map beside its record.
        track: write loss curves to these trackers too, of :data:`adbench.utils.tracking.TRACKERS`, with commas between; "": none.

    Raises:
        UserError: an executor that does not exist, an option that it does not have, or a tracker that is not installed.
    """

    executor: str = "serial"
    address: str | None = None
    cpus: float | None = None
    gpus: float | None = None
    max_concurrent: int | None = None
    time_limit: float | None = None
    force: bool = False
    checkpoint_seconds: float = Context.checkpoint_seconds
    save_maps: bool = False
    track: str = ""

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise unknown("executor", self.executor, EXECUTORS)
        check_trackers(self.track)
        given = {
            "--address": self.address,
            "--cpus-per-run": self.cpus,
            "--gpus-per-run": self.gpus,
            "--max-concurrent": self.max_concurrent,
        }
        for flag, value in given.items():
            if value is not None and self.executor != "ray":
                raise UserError(
                    f"{flag} is for --executor ray; the serial executor runs one cell at a time in this process."
                )

    def request(self, plan: Plan, *, gpu_memory_gb: float, most_cpus: float) -> ResourceRequest:
        """What the cell of ``plan`` gets, see :func:`adbench.executors.resources.request`."""
        return request(
            plan.resources,
            plan.cell.device,
            gpu_memory_gb=gpu_memory_gb,
            most_cpus=most_cpus,
            cpus=self.cpus,
            gpus=self.gpus,
        )

    def done(self, plan: Plan) -> bool:
        """Whether nothing is left to do for ``plan``."""
        return not self.force and plan.done(save_maps=self.save_maps)

    def reused(self, plan: Plan, progress: Progress | None = None) -> Outcome | None:
        """The outcome of a cell that is done already; None for any other."""
        if not self.done(plan):
            return None
        if plan.cell.tuned_from is not None:
            plan.record()  # one that was made before a search chose its parameters learns of the search
        illustrate(plan.run_folder, progress)
        return Outcome(plan, reused=True)

    def run(self, plan: Plan, progress: Progress | None = None, **facts: Any) -> None:
        """Run a cell that is not done, in this process; ``adbench status`` shows ``facts`` beside its progress.

        Raises:
            Exception: whatever ends the cell; ``failure.json`` has it with its traceback.
        """
        run_cell(
            plan,
            progress,
            force=True,
            checkpoint_seconds=self.checkpoint_seconds,
            save_maps=self.save_maps,
            track=self.track,
            facts=facts,
        )
        illustrate(plan.run_folder, progress)


@dataclass(frozen=True)
class Outcome:
    """The outcome of a cell: its record is written, or the error that ended it.

    Attributes:
        error: None when the record is there.
        reused: the record was there already and nothing ran.
        seconds: the cell took.
    """

    plan: Plan
    error: Exception | None = None
    reused: bool = False
    seconds: float = 0.0

    @property
    def reason(self) -> str:
        """Why there is no record, in one line; "" when there is one."""
        return "" if self.error is None else in_words(self.error)

    @property
    def record(self) -> Record | None:
        """The record, read from disk: a grid of ten thousand cells does not hold ten thousand of them."""
        return None if self.error is not None else self.plan.record()


def serial(
    plans: Iterable[Plan],
    progress: Progress | None = None,
    options: Options | None = None,
    *,
    before: Callable[[Plan], None] = lambda plan: None,
    journal: Journal | None = None,
    isolated: Callable[[Plan], Outcome] | None = None,
) -> Iterator[Outcome]:
    """Run the cells one after the other, each when its outcome is asked for; a failing cell does not stop the others.

    ``before`` is called with the plan of each cell that really runs; the ``journal`` says what an earlier process has done of
    this, and is told what this one does. ``isolated`` runs a cell in a process of its own, which those with a plug-in and
    those with a time limit get; without it all of them run in this process.
    """
    options, journal = options or Options(), journal or Journal()
    foreign = ""  # the first method here with a plug-in at work, its own or a metric's
    for plan in plans:
        if (earlier := journal.ended.get(plan.run_key)) is not None:
            yield _told(plan, earlier, options)
            continue
        begin = time.perf_counter()
        outcome = Outcome(plan)
        try:
            if (found := options.reused(plan, progress)) is not None:
                outcome = found
            elif isolated is not None and (options.time_limit is not None or _foreign(plan.cell)):
                before(plan)
                outcome = isolated(plan)
            else:
                if foreign not in ("", plan.cell.method):
                    journal.hand_over()
                foreign = foreign or _foreign(plan.cell)
                before(plan)
                journal.begin(plan.run_key)
                options.run(plan, progress)
        except HandedOver:
            raise
        except KeyboardInterrupt:
            if not journal.unasked:
                journal.leave()
                raise
            failed = CellFailed(f"it has interrupted itself ({signal_name()})")
            status.write_death(plan.run_folder, failed)
            journal.end(plan.run_key, str(failed), time.perf_counter() - begin)
            journal.hand_over()
        except BaseException as error:  # a plug-in may raise anything, SystemExit included
            if distributed.world() > 1:
                raise  # the other processes would wait for this one: the launcher ends them all
            outcome = Outcome(plan, tellable(error))
        if not outcome.reused:
            outcome = replace(outcome, seconds=time.perf_counter() - begin)
            journal.end(plan.run_key, outcome.reason, outcome.seconds)
        yield outcome


def _told(plan: Plan, earlier: Ended, options: Options) -> Outcome:
    """The outcome of a cell that an earlier process has run."""
    there = not earlier.reason or (earlier.died and options.done(plan))
    failed = None if there else CellFailed(earlier.reason)
    if failed and earlier.died:
        status.write_death(plan.run_folder, failed)
    return Outcome(plan, failed, seconds=earlier.seconds)


def _foreign(cell: Cell) -> str:
    """The method of ``cell`` where it or one of the metrics is a plug-in, which may change what this process computes."""
    methods = [cell.method, *(member.method for member in cell.members)]
    parts: list[tuple[registry.Kind, str]] = [("methods", name) for name in methods]
    parts += [("metrics", name) for name in cell.metrics]
    return cell.method if any(registry.entries(kind)[name].origin != "built-in" for kind, name in parts) else ""
