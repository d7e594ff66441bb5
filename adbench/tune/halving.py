"""Asynchronous successive halving (Li et al. 2020, MLSys, arXiv 1810.05934) as a function of the table of trials.

A trial reports at the first validation at or after 10 % and 30 % of its training. It goes on while it is among the best
third of the trials that came as far before it. Nothing is paused: a paused trial would hold on to its share of the GPU.
"""

from __future__ import annotations

import numpy as np

from adbench.tune.table import FULL, Table, Trial

FACTOR = 3
RUNGS = (10.0, 30.0)  # percent of the training


def rung_of(share: float) -> float | None:
    """The highest rung that a report at ``share`` percent has reached; None below the first."""
    return max((rung for rung in RUNGS if share >= rung), default=None)


def _at(trial: Trial, rung: float) -> float | None:
    """What ``trial`` reported at ``rung``."""
    return next((value for share, value in trial.reports.items() if share < FULL and rung_of(share) == rung), None)


def falls_short(table: Table, trial: Trial) -> bool:
    """Whether ``trial``, which has just reported, is to be stopped.

    The method as it comes (trial 0) never is: every search ends knowing what it improved upon.
    """
    share = max(trial.reports)
    rung = rung_of(share)
    if trial.number == 0 or rung is None or share >= FULL:
        return False
    others = [value for other in table.trials if other is not trial and (value := _at(other, rung)) is not None]
    if not others:
        return False
    sign = 1 if table.mode == "max" else -1
    cutoff = np.percentile([sign * value for value in others], 100 * (1 - 1 / FACTOR))
    return bool(sign * trial.reports[share] < cutoff)
