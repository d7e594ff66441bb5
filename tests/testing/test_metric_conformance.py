"""The contract of metrics: each rule finds the metric that breaks it, and the built-in ones break none."""

from __future__ import annotations

import itertools

import pytest

from adbench.config import registry
from adbench.metrics.base import Metric, Subject
from adbench.testing import check_metric


class Good(Metric):
    """Share of voxels with a lesion."""

    name = "good_share"
    bounds = (0.0, 1.0)

    def measure(self, subject: Subject) -> tuple[float, float] | None:
        histogram = subject.histogram
        return histogram.n_positive, histogram.n_positive + histogram.n_negative


class Undocumented(Good):
    __doc__ = None


class Taken(Good):
    """Named like a built-in one."""

    name = "auprc"


class Needy(Good):
    """Wants a threshold that is not always there."""

    def measure(self, subject: Subject) -> tuple[float, float] | None:
        return subject.thresholds["val"], 1.0


class Beyond(Good):
    """Leaves its bounds."""

    def measure(self, subject: Subject) -> tuple[float, float] | None:
        return 3.0, 2.0


class Counting(Good):
    """Another number each time."""

    calls = itertools.count()

    def measure(self, subject: Subject) -> tuple[float, float] | None:
        return 1.0, 1.0 + next(self.calls)


class Writing(Good):
    """Changes the map."""

    needs_maps = True

    def measure(self, subject: Subject) -> tuple[float, float] | None:
        assert subject.volume is not None
        subject.volume.maps[0, 5, 5] += 1
        return 1.0, 1.0


class Mapless(Good):
    """Looks at maps that it did not ask for."""

    def measure(self, subject: Subject) -> tuple[float, float] | None:
        assert subject.volume is not None, "no maps"
        return 1.0, 1.0


class Silent(Good):
    """Leaves everyone out."""

    def measure(self, subject: Subject) -> tuple[float, float] | None:
        return None


@pytest.mark.parametrize(
    ("metric", "rules"),
    [
        (Good, set()),
        (Undocumented, {"says_what_it_is"}),
        (Taken, {"says_what_it_is"}),
        (Beyond, {"stays_within_its_bounds"}),
        (Counting, {"gives_the_same_again"}),
        (Writing, {"changes_nothing"}),
        (Mapless, {"asks_for_maps"}),
        (Silent, {"measures_every_subject"}),
    ],
)
def test_each_rule_finds_what_breaks_it(metric: type[Metric], rules: set[str]) -> None:
    assert {finding.rule for finding in check_metric(metric) if finding.problem} == rules


def test_what_a_metric_raises_is_reported() -> None:
    (first, *_) = [finding for finding in check_metric(Needy) if finding.problem]
    assert (first.rule, first.problem) == ("measures_every_subject", "raised KeyError: 'val'")


@pytest.mark.parametrize("name", list(registry.entries("metrics")))
def test_built_in_metrics_hold_it(name: str) -> None:
    assert not [finding for finding in check_metric(registry.load("metrics", name)) if finding.problem]
