"""The one training loop of every torch method.

A method describes a stage (:class:`Stage`): the module to train, how many samples there are, how a step's random draws are
made, the loss, and how it is validated. :func:`train_stage` does the rest: device, precision, several processes, AdamW or
Adam, per-step warm-up and cosine schedule, clipping, accumulation, EMA, validation, the best weights, checkpoints,
TensorBoard.

Every random number of step ``s`` comes from ``derive(seed, stage, ..., s)``, never from the state of a generator that
lives across steps. A run that was killed and continued therefore ends in the same bits as one that was not.

Launched as several processes, each computes its share of every batch and the gradients are added up: the numbers are those
of one process up to rounding, but for dropout and batch normalisation, which see their own share only.
"""

from __future__ import annotations

from adbench.methods.training.memory import Portions
from adbench.methods.training.run import Run, train_stage
from adbench.methods.training.stage import Batch, Opponent, Plan, Stage, StageResult, report
from adbench.methods.training.step import batch_indices, device_of, forked, generator, seeded

__all__ = [
    "Batch",
    "Opponent",
    "Plan",
    "Portions",
    "Run",
    "Stage",
    "StageResult",
    "batch_indices",
    "device_of",
    "forked",
    "generator",
    "report",
    "seeded",
    "train_stage",
]
