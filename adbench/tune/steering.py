"""Two small objects through which Ray Tune asks the :class:`~adbench.tune.course.Course` what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

if TYPE_CHECKING:
    from adbench.tune.course import Course


class Proposals(Searcher):
    """Gives Ray the next trial. What it proposes follows from the table, so there is no state of its own to save."""

    def __init__(self, course: Course, threads: int, memory: float | None) -> None:
        super().__init__(metric="value", mode=course.task.mode)
        self._course, self._share = course, {"threads": threads, "memory": memory}
        self._number: dict[str, int] = {}  # of Ray's trials

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        trial = self._course.next()
        if trial is None:
            return Searcher.FINISHED  # type: ignore[return-value]
        self._number[trial_id] = trial.number
        return {
            "folder": str(self._course.folder),
            "number": trial.number,
            "params": trial.params,
            "reported": list(trial.reports),
            **self._share,
        }

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._course.ended(self._number[trial_id], error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the table is."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


class Stops(FIFOScheduler):
    """Tells Ray which trials to stop."""

    def __init__(self, course: Course) -> None:
        super().__init__()
        self._course = course

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if "share" not in result:
            return TrialScheduler.CONTINUE
        stop = self._course.reported(trial.config["number"], result)
        return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE
