"""How long and how a stage is trained: budget, learning rate, and the moments to log and to validate."""

from __future__ import annotations

import math
from dataclasses import dataclass

POINTS = 20  # logged points of a curve, at least
CHECKS = 10  # validations, unless the plan says otherwise


@dataclass(frozen=True)
class Plan:
    """How long and how a stage is trained.

    Attributes:
        steps: optimiser steps.
        batch: samples a step (over all devices and micro-batches).
        lr: peak learning rate.
        seconds: wall-clock budget in place of ``steps``, interrupted attempts included; the schedule follows the time spent.
        optimizer: "adamw" or "adam".
        weight_decay: of AdamW.
        schedule: "cosine" (to ``final_lr`` times the peak) or "constant", after the warm-up.
        warmup: steps of linear warm-up; the first step has ``lr / warmup``, never 0.
        final_lr: end of the cosine as a share of the peak.
        clip: largest gradient norm; 0 does not clip.
        ema: decay of the exponential moving average of the weights; 0 keeps none.
        accumulate: micro-batches a step, to save memory; doubled by itself when a CUDA device runs out.
        validate_every: steps between validations; 0 means about ten in all.
    """

    steps: int
    batch: int
    lr: float
    seconds: float | None = None
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    schedule: str = "cosine"
    warmup: int = 0
    final_lr: float = 0.0
    clip: float = 1.0
    ema: float = 0.0
    accumulate: int = 1
    validate_every: int = 0

    def lr_at(self, step: int, spent: float = 0.0) -> float:
        """Learning rate of optimiser step ``step`` (0-based); ``spent`` is the share of ``seconds`` that is gone."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.schedule == "constant":
            return self.lr
        done = (step - self.warmup) / max(1, self.steps - self.warmup) if self.seconds is None else min(1.0, spent)
        return self.lr * (self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * done)))

    @property
    def validation_interval(self) -> int:
        return self.validate_every or max(1, -(-self.steps // CHECKS))


@dataclass(frozen=True)
class Moment:
    """What is due after a step."""

    finished: bool
    validates: bool
    logs: bool


def moment(plan: Plan, step: int, before: float, spent: float) -> Moment:
    """What is due when ``step`` steps are done; the last one took the share of ``plan.seconds`` from ``before`` to ``spent``.

    Counted in steps the moments are fixed steps, so that a continued run logs the same ones.
    """
    if plan.seconds is not None:
        finished = spent >= 1
        validates = finished or int(spent * CHECKS) > int(before * CHECKS)
        return Moment(finished, validates, validates or int(spent * POINTS) > int(before * POINTS))
    interval = plan.validation_interval
    finished = step >= plan.steps
    validates = finished or step % interval == 0
    return Moment(finished, validates, validates or step % max(1, min(interval, plan.steps // POINTS, 100)) == 0)
