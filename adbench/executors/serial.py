"""One cell after the other in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from adbench.context import Progress
from adbench.evaluation.pictures import illustrate
from adbench.executors.base import Options, Outcome
from adbench.runner.plan import Plan
from adbench.utils import distributed


def serial(
    plans: Iterable[Plan],
    progress: Progress | None = None,
    options: Options | None = None,
    *,
    before: Callable[[Plan], None] = lambda plan: None,
) -> Iterator[Outcome]:
    """Run the cells one after the other, each when its outcome is asked for; a failing cell does not stop the others.

    Args:
        plans: from :func:`adbench.runner.plan.plan`.
        progress: receives progress.
        options: how; None: the defaults.
        before: called with the plan of each cell that really runs.
    """
    options = options or Options()
    for plan in plans:
        begin = time.perf_counter()
        try:
            if options.done(plan):
                plan.trace()
                illustrate(plan.run_folder, progress)
                yield Outcome(plan, reused=True)
                continue
            before(plan)
            options.run(plan, progress)
        except Exception as error:  # reported by the caller, and in failure.json with its traceback
            if distributed.world() > 1:
                raise  # the other processes would wait for this one: the launcher ends them all
            yield Outcome(plan, error, seconds=time.perf_counter() - begin)
        else:
            yield Outcome(plan, seconds=time.perf_counter() - begin)
