"""The contract of a metric that a plug-in brings: entry-point group ``adbench.metrics``."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from adbench.errors import UserError
from adbench.metrics.histogram import ScoreHistogram
from adbench.metrics.lesion import Volume as Volume
from adbench.metrics.spec import SPECS, MetricSpec


@dataclass(frozen=True)
class Subject:
    """What a metric is given of one volume: of a subject, or of one session of a subject that has several.

    Attributes:
        subject: id of the volume, which is the subject's where it has one volume.
        histogram: counts of its brain voxels by score.
        thresholds: rule -> threshold chosen on validation (``val``, ``fpr1``, ``conformal10``, ..., where defined).
        volume: its stacked maps; None unless the metric sets ``needs_maps``.
    """

    subject: str
    histogram: ScoreHistogram
    thresholds: Mapping[str, float]
    volume: Volume | None = None


class Metric(ABC):
    """A number that is a ratio of sums over subjects, so that its interval needs no second pass.

    The first line of a subclass's docstring is its definition in lists and tables.

    Attributes:
        name: key in records and tables, such as ``lesion_volume_error``.
        heading: of its column; "" for its name.
        less_is_better: whether a lower value is the better one; tables say so and sort by it.
        unit: of its value, such as "mm"; "" for none.
        bounds: natural range of the value, which its interval does not leave; either end may be infinite.
        oracle: whether it looks at the test split to choose something.
        needs_maps: whether :meth:`measure` needs :attr:`Subject.volume`; otherwise stored histograms are enough.
        undefined: why there is no value when :meth:`measure` left every subject out.
        over_lesions: whether subjects with a lesion are what it is about: their number then decides whether there is an
            interval, however many others count in it.
        of_all: whether one subject that is left out leaves the whole metric without a value.
    """

    name: ClassVar[str]
    heading: ClassVar[str] = ""
    less_is_better: ClassVar[bool] = False
    unit: ClassVar[str] = ""
    bounds: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    oracle: ClassVar[bool] = False
    needs_maps: ClassVar[bool] = False
    undefined: ClassVar[str] = "no subject has it"
    of_all: ClassVar[bool] = False
    over_lesions: ClassVar[bool] = False

    @abstractmethod
    def measure(self, subject: Subject) -> tuple[float, float] | None:
        """``(above, below)`` of one subject; the metric is ``sum(above) / sum(below)`` over subjects.

        For a mean over subjects return ``(value, 1.0)``. None leaves the subject out.
        """


def spec_of(metric: type[Metric] | Metric, name: str = "") -> MetricSpec:
    """The facts of a metric: those of the table for a built-in one, those that the class of a plug-in states otherwise.

    Args:
        metric: the class, or an object of it.
        name: that it was found by; "" for its own.
    """
    own = name or metric.name
    if own in SPECS:
        return SPECS[own]
    return MetricSpec(
        own,
        metric.heading or own,
        (metric.__doc__ or "").strip().split("\n")[0],
        "pooled" if metric.over_lesions else "subjects",
        less_is_better=bool(metric.less_is_better),
        oracle=bool(metric.oracle),
        unit=metric.unit,
        low=metric.bounds[0],
        high=None if metric.bounds[1] == math.inf else metric.bounds[1],
        group="optional",
        rule=own.partition("@")[2],
        needs_maps=metric.needs_maps,
        undefined=metric.undefined,
    )


def measured(metric: Metric, subject: Subject) -> tuple[float, float] | None:
    """``metric.measure(subject)``, checked.

    Raises:
        UserError: the result is not None or two finite numbers; names the metric and the subject.
    """
    found = metric.measure(subject)
    if found is None:
        return None
    try:
        above, below = (float(part) for part in found)
    except (TypeError, ValueError):
        above = below = float("nan")
    if not np.isfinite([above, below]).all() or below < 0:
        raise UserError(
            f"Metric {metric.name!r} measured {found!r} on subject {subject.subject!r}: "
            "it must return None or two finite numbers, the second not negative."
        )
    return above, below


def check_names(metrics: Iterable[Metric], taken: Iterable[str]) -> None:
    """Every metric has a name that is free.

    Raises:
        UserError: a metric has no name, or one that a built-in metric or another one uses.
    """
    used = set(taken)
    for metric in metrics:
        name = getattr(metric, "name", None)
        if not isinstance(name, str) or not name:
            raise UserError(f"The metric {type(metric).__name__} has no name: set its class attribute `name`.")
        if name in used:
            raise UserError(f"The metric name {name!r} of {type(metric).__name__} is taken: choose another.")
        used.add(name)
