"""What is trained and how: a :class:`Stage` and its :class:`Plan`, and the :class:`StageResult` that comes back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from adbench.methods.base import FitReport

Batch = dict[str, torch.Tensor]
LOGGED = 20  # logged points of a curve, at least
VALIDATIONS = 10  # of a stage, about
# Compiling a UNet takes about a minute and halves its steps, which take tens of milliseconds.
COMPILES_FROM_STEPS, COMPILES_FROM_SECONDS = 10_000, 300.0
RISE = 0.1  # of a wall-clock budget, at most, is warm-up


@dataclass(frozen=True)
class Plan:
    """How long and how a stage is trained.

    Attributes:
        steps: optimiser steps.
        batch: samples per step (over all devices and micro-batches).
        lr: peak learning rate.
        seconds: wall-clock budget in place of ``steps``, interrupted attempts included; the schedule follows the time spent.
        optimizer: "adamw" or "adam".
        weight_decay: of AdamW.
        schedule: "cosine" (to 0) or "constant", after the warm-up.
        warmup: steps of linear warm-up; the first step has ``lr / warmup``, never 0. It ends with the first tenth of ``seconds``.
        clip: largest gradient norm; 0 does not clip.
        ema: decay of the exponential moving average of the weights; 0 keeps none.
        accumulate: micro-batches per step, to save memory; doubled when a CUDA device runs out.
    """

    steps: int
    batch: int
    lr: float
    seconds: float | None = None
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    schedule: str = "cosine"
    warmup: int = 0
    clip: float = 1.0
    ema: float = 0.0
    accumulate: int = 1

    def lr_at(self, step: int, spent: float = 0.0) -> float:
        """Learning rate of optimiser step ``step`` (0-based); ``spent`` is the share of ``seconds`` that is gone."""
        if step < self.warmup and (self.seconds is None or spent < RISE):
            risen = (step + 1) / self.warmup
            return self.lr * (risen if self.seconds is None else max(risen, spent / RISE))
        if self.schedule == "constant":
            return self.lr
        done = (step - self.warmup) / max(1, self.steps - self.warmup) if self.seconds is None else min(1.0, spent)
        return self.lr * 0.5 * (1 + math.cos(math.pi * done))

    @property
    def pays_to_compile(self) -> bool:
        """Whether the stage is long enough to win back the time that compiling takes; the plan decides, no clock does."""
        return self.steps >= COMPILES_FROM_STEPS if self.seconds is None else self.seconds >= COMPILES_FROM_SECONDS

    def due(self, step: int, before: float, spent: float) -> tuple[bool, bool, bool]:
        """Whether the stage is finished, validates and logs when ``step`` steps are done.

        The last step took the share of ``seconds`` from ``before`` to ``spent``. Counted in steps, these moments are fixed
        steps, so that a continued run logs the same ones.
        """
        if self.seconds is not None:
            finished = spent >= 1
            validates = finished or int(spent * VALIDATIONS) > int(before * VALIDATIONS)
            return finished, validates, validates or int(spent * LOGGED) > int(before * LOGGED)
        interval = max(1, -(-self.steps // VALIDATIONS))
        finished = step >= self.steps
        validates = finished or step % interval == 0
        return finished, validates, validates or step % max(1, min(interval, self.steps // LOGGED, 100)) == 0


@dataclass
class Opponent:
    """A second network trained in turn with the first (the discriminator of a GAN).

    Attributes:
        module: its network.
        loss: (module, opponent, batch) -> scalar, minimised over the opponent alone.
        start: first step at which it learns.
        lr: its learning rate, constant.
    """

    module: nn.Module
    loss: Callable[[nn.Module, nn.Module, Batch], torch.Tensor]
    start: int
    lr: float


@dataclass
class Stage:
    """What is trained.

    Attributes:
        name: names the stage in progress, curves, seeds and the checkpoint folder.
        module: trained in place.
        samples: training samples to draw from.
        draw: (indices (B,), generator) -> tensors with first axis B. Every random draw of the step but dropout's is made here,
            from the CPU generator, for the whole batch at once: it does not depend on micro-batches, device or processes.
            Masks of dropout are drawn by the network, anew for each micro-batch, seeded by the step.
            It reads nothing that the training changes: on a GPU it runs in a thread, a step ahead.
        loss: (module, batch, step) -> scalar mean over the samples of ``batch``, which may be a part of a step's batch.
        plan: how.
        validate: (module in evaluation mode with the averaged weights) -> figure to minimise, or None: keep the last weights.
            A dict has that figure as "val_loss" and others that belong into the curve beside it.
        identity: whatever else the numbers depend on; a checkpoint with another identity is not continued.
        opponent: see :class:`Opponent`.
        watched_from: share of the whole training that was done before this stage, for ``Context.watch``; None: the method
            cannot score yet while the stage runs.
        steady: ``loss`` does the same at every step, with tensors of the batch's device alone: a GPU may record a step once
            and replay it. It then calls no Python in between, copies nothing from the host and looks at no number.
    """

    name: str
    module: nn.Module
    samples: int
    draw: Callable[[torch.Tensor, torch.Generator], Batch]
    loss: Callable[[nn.Module, Batch, int], torch.Tensor]
    plan: Plan
    validate: Callable[[nn.Module], float | dict[str, float]] | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    opponent: Opponent | None = None
    watched_from: float | None = 0.0
    steady: bool = False


@dataclass
class StageResult:
    """What came out of a stage; the module holds the weights that were kept.

    Attributes:
        steps: optimiser steps.
        curve: logged points: step, loss (mean since the last point), lr, and val_loss (and figures beside it) where it was taken.
        best_step: optimiser steps done when the kept weights were taken.
        best_loss: their validation figure; None without validation.
        earlier_seconds: time spent on the stage by interrupted attempts that it continued.
        note: what a reader of its numbers must know; "" when there is nothing.
        computed: see :class:`~adbench.methods.base.FitReport`.
    """

    steps: int
    curve: list[dict[str, float]]
    best_step: int
    best_loss: float | None
    earlier_seconds: float
    note: str = ""
    computed: list[dict[str, Any]] = field(default_factory=list)


def report(stages: list[tuple[str, StageResult]], modules: list[nn.Module]) -> FitReport:
    """The :class:`~adbench.methods.base.FitReport` of a method trained in ``stages`` that consists of ``modules``."""
    best: dict[str, float] = {}
    for name, result in stages:
        best[f"{name}.step"] = result.best_step
        if result.best_loss is not None:
            best[f"{name}.val_loss"] = result.best_loss
    return FitReport(
        steps=sum(result.steps for _, result in stages),
        parameters=sum(p.numel() for module in modules for p in module.parameters()),
        best=best,
        curves={name: result.curve for name, result in stages},
        earlier_seconds=sum(result.earlier_seconds for _, result in stages),
        notes=[result.note for _, result in stages if result.note],
        computed={name: result.computed for name, result in stages},
    )
