"""False alarms on healthy subjects: how much of a healthy brain lies above a threshold that was set on other healthy ones.

On a test set without a lesion these are the numbers; precision, Dice and their areas are undefined there.
"""

from __future__ import annotations

from typing import ClassVar

from adbench.metrics.base import Metric, Subject


class FalseAlarms(Metric):
    """Mean share of the lesion-free voxels of a test subject at or above the threshold ``rule`` (less is better)."""

    rule: ClassVar[str]

    def measure(self, subject: Subject) -> tuple[float, float] | None:
        """Share of this subject, and 1 for a mean over subjects."""
        if self.rule not in subject.thresholds or not subject.histogram.n_negative:
            return None
        _, false = subject.histogram.positives_at(subject.thresholds[self.rule])
        return false / subject.histogram.n_negative, 1.0


class FalseAlarms1(FalseAlarms):
    """Share of lesion-free test voxels above the threshold that 1 % of healthy validation voxels exceed (less is better)."""

    name: ClassVar[str] = "alarms@fpr1"
    rule: ClassVar[str] = "fpr1"


class FalseAlarms5(FalseAlarms):
    """Share of lesion-free test voxels above the threshold that 5 % of healthy validation voxels exceed (less is better)."""

    name: ClassVar[str] = "alarms@fpr5"
    rule: ClassVar[str] = "fpr5"
