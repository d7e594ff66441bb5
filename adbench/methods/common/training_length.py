"""How long a network is trained: in steps, in passes over the data, or in minutes. The same two parameters for every method."""

from __future__ import annotations

import math
from typing import Self

from pydantic import model_validator

from adbench.params import ParamSet, param


class TrainedParams(ParamSet):
    """Parameters of a method that is trained; ``steps`` (its own) counts unless one of these is given."""

    epochs: float | None = param(
        None, "Passes over the training slices, in place of steps.", unit="epochs", source="adbench", gt=0
    )
    minutes: float | None = param(
        None,
        "Training time, in place of steps; how far it gets, and so every number, depends on the machine.",
        unit="minutes",
        source="adbench",
        gt=0,
    )

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if self.epochs is not None and self.minutes is not None:
            raise ValueError("give epochs or minutes, not both")
        return self

    @property
    def counted(self) -> bool:
        """Whether the parameters alone say how many optimiser steps a fit takes."""
        return self.epochs is None and self.minutes is None

    def length(self, samples: int, steps: int, batch: int) -> int:
        """Optimiser steps of a stage over ``samples`` slices, ``batch`` a step, that has ``steps`` of its own."""
        return steps if self.epochs is None else max(1, math.ceil(self.epochs * samples / batch))

    def seconds(self, share: float = 1.0) -> float | None:
        """Wall-clock budget of a stage that gets ``share`` of the whole; None: it is counted in steps."""
        return None if self.minutes is None else 60 * self.minutes * share
