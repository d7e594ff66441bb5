"""How planned cells are carried out. An executor is a function from plans to outcomes; it knows nothing of methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from adbench import ranks
from adbench.context import Progress
from adbench.planning import Plan
from adbench.results.record import Record
from adbench.results.rundir import MAPS
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
    save_maps: bool = False,
    tensorboard: bool = False,
    before: Callable[[int, Plan], None] = lambda number, plan: None,
) -> list[Outcome]:
    """Run the cells one after the other in this process; a failing cell does not stop the others.

    Args:
        plans: from :func:`adbench.runner.plan`.
        progress: receives progress.
        force: score again although records are there.
        checkpoint_seconds: a training in progress is saved at least this often.
        save_maps: keep every anomaly map beside its record.
        tensorboard: write loss curves for TensorBoard into the folders of the fits.
        before: called with the number (from 1) and the plan of each cell that really runs.
    """
    outcomes = []
    for number, plan in enumerate(plans, 1):
        try:
            stored = None if force else plan.record()
            if stored is not None and (MAPS in stored.files or not save_maps):
                outcomes.append(Outcome(plan, stored, reused=True))
                continue
            before(number, plan)
            record = run_cell(
                plan,
                progress,
                force=True,
                checkpoint_seconds=checkpoint_seconds,
                save_maps=save_maps,
                tensorboard=tensorboard,
            )
            outcomes.append(Outcome(plan, record))
        except Exception as error:  # reported by the caller, and in failure.json with its traceback
            if ranks.world() > 1:
                raise  # the other processes would wait for this one: the launcher ends them all
            outcomes.append(Outcome(plan, None, error))
    return outcomes
