"""How planned cells are carried out. An executor is a function from plans to outcomes; it knows nothing of methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from adbench.context import Progress
from adbench.planning import Plan
from adbench.results.record import Record
from adbench.runner import run_cell


@dataclass(frozen=True)
class Outcome:
    """What became of one cell: a record, or the error that ended it.

    Attributes:
        reused: the record was there already and nothing ran.
    """

    plan: Plan
    record: Record | None
    error: Exception | None = None
    reused: bool = False


def serial(
    plans: Sequence[Plan],
    progress: Progress | None = None,
    *,
    force: bool = False,
    checkpoint_seconds: float = 60.0,
    before: Callable[[int, Plan], None] = lambda number, plan: None,
) -> list[Outcome]:
    """Run the cells one after the other in this process; a failing cell does not stop the others.

    Args:
        plans: from :func:`adbench.runner.plan`.
        progress: receives progress.
        force: score again although records are there.
        checkpoint_seconds: a training in progress is saved at least this often.
        before: called with the number (from 1) and the plan of each cell that really runs.
    """
    outcomes = []
    for number, plan in enumerate(plans, 1):
        try:
            stored = None if force else plan.record()
            if stored is None:
                before(number, plan)
            record = stored or run_cell(plan, progress, force=force, checkpoint_seconds=checkpoint_seconds)
            outcomes.append(Outcome(plan, record, reused=stored is not None))
        except Exception as error:  # reported by the caller, and in failure.json with its traceback
            outcomes.append(Outcome(plan, None, error))
    return outcomes
