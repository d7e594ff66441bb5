"""Options of an executor, and the outcome of a cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adbench.context import Progress
from adbench.errors import UserError, in_words, unknown
from adbench.evaluation.pictures import illustrate
from adbench.results.record import Record
from adbench.runner.plan import Plan
from adbench.runner.run_cell import run_cell
from adbench.utils.tracking import check_tracker

EXECUTORS = ("serial", "ray")


@dataclass(frozen=True)
class Options:
    """Where and how cells are run; nothing here changes a number.

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
        track: write loss curves to this tracker too, one of :data:`adbench.utils.tracking.TRACKERS`; "" for none.

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
    checkpoint_seconds: float = 60.0
    save_maps: bool = False
    track: str = ""

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise unknown("executor", self.executor, EXECUTORS)
        if self.track:
            check_tracker(self.track)
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

    def done(self, plan: Plan) -> bool:
        """Whether nothing is left to do for ``plan``."""
        return not self.force and plan.done(save_maps=self.save_maps)

    def run(self, plan: Plan, progress: Progress | None = None, **facts: Any) -> None:
        """Run a cell that is not done, in this process.

        Args:
            plan: the cell.
            progress: receives progress.
            **facts: shown beside the progress by ``adbench status``.

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
    """How a cell ended: with a record, or with the error that ended it.

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
        if self.error is None:
            return ""
        return in_words(self.error)

    @property
    def record(self) -> Record | None:
        """The record, read from disk: a grid of ten thousand cells does not hold ten thousand of them."""
        return None if self.error is not None else self.plan.record()
