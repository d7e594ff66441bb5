"""One cell after the other in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from adbench.config import registry
from adbench.config.cell import Cell
from adbench.context import Progress
from adbench.errors import CellFailed
from adbench.evaluation.pictures import illustrate
from adbench.executors.base import Options, Outcome
from adbench.results import status
from adbench.runner.plan import Plan
from adbench.utils import distributed
from adbench.utils.supervisor import HandedOver, Journal


def serial(
    plans: Iterable[Plan],
    progress: Progress | None = None,
    options: Options | None = None,
    *,
    before: Callable[[Plan], None] = lambda plan: None,
    journal: Journal | None = None,
) -> Iterator[Outcome]:
    """Run the cells one after the other, each when its outcome is asked for; a failing cell does not stop the others.

    Args:
        plans: from :func:`adbench.runner.plan.plan`.
        progress: receives progress.
        options: how; None: the defaults.
        before: called with the plan of each cell that really runs.
        journal: what an earlier process has done of this, and where this one says what it does.
    """
    options, journal = options or Options(), journal or Journal()
    foreign = ""  # the first method here with a plug-in at work, its own or a metric's
    for plan in plans:
        if (earlier := journal.ended.get(plan.run_key)) is not None:
            there = not earlier.reason or (earlier.died and options.done(plan))
            failed = None if there else CellFailed(earlier.reason)
            if failed and earlier.died:
                status.write_death(plan.run_folder, failed)
            yield Outcome(plan, failed, seconds=earlier.seconds)
            continue
        begin = time.perf_counter()
        outcome = Outcome(plan)
        try:
            if options.done(plan):
                plan.trace()
                illustrate(plan.run_folder, progress)
                outcome = Outcome(plan, reused=True)
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
            journal.leave()
            raise
        except BaseException as error:  # a plug-in may raise anything, SystemExit included
            if distributed.world() > 1:
                raise  # the other processes would wait for this one: the launcher ends them all
            outcome = Outcome(plan, error if isinstance(error, Exception) else CellFailed(f"{error!r} was raised"))
        if not outcome.reused:
            outcome = replace(outcome, seconds=time.perf_counter() - begin)
            journal.end(plan.run_key, outcome.reason, outcome.seconds)
        yield outcome


def _foreign(cell: Cell) -> str:
    """The method of ``cell`` where it or one of the metrics is a plug-in, which may change what this process computes."""
    parts: list[tuple[registry.Kind, str]] = [("methods", cell.method), *(("metrics", name) for name in cell.metrics)]
    return cell.method if any(registry.entries(kind)[name].origin != "built-in" for kind, name in parts) else ""
