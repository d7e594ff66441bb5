"""What executors are told and what they give back."""

from __future__ import annotations

from dataclasses import dataclass

from adbench.errors import UserError
from adbench.results.record import Record
from adbench.runner.plan import Plan


@dataclass(frozen=True)
class Options:
    """How cells are run; nothing here changes a number.

    Attributes:
        force: score again although records are there (fits are kept).
        checkpoint_seconds: a training in progress is saved at least this often.
        save_maps: keep every anomaly map beside its record.
        tensorboard: write loss curves for TensorBoard into the folders of the fits.
    """

    force: bool = False
    checkpoint_seconds: float = 60.0
    save_maps: bool = False
    tensorboard: bool = False


class Failed(Exception):
    """A cell failed in another process; the text says how, ``failure.json`` has the traceback."""


@dataclass(frozen=True)
class Outcome:
    """What became of one cell: a record, or the error that ended it.

    Attributes:
        error: None when the record is there.
        reused: it was there already and nothing ran.
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
        said = str(self.error)
        plain = isinstance(self.error, (UserError, Failed))
        return said if plain else f"{type(self.error).__name__}: {said}"

    @property
    def record(self) -> Record | None:
        """The record, read from disk: a grid of ten thousand cells does not hold ten thousand of them."""
        return None if self.error is not None else self.plan.record()
