"""The rules that a metric must keep, and the check of a metric against them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from adbench.metrics.base import Metric, Subject, check_names, measured, spec_of
from adbench.metrics.histogram import ScoreHistogram
from adbench.metrics.lesion import Volume
from adbench.metrics.spec import SPECS
from adbench.testing.rules import Finding, apply, require
from adbench.utils.seeds import derive

SHAPE = (3, 24, 24)  # slices, rows, columns


@dataclass
class MetricUnderTest:
    """The subject of the rules of a metric: the metric, and test subjects of every kind."""

    metric: Metric

    @cached_property
    def subjects(self) -> dict[str, Subject]:
        """By what is special about them."""
        rng = np.random.default_rng(derive(0, "metric under test"))
        brain = np.zeros(SHAPE, bool)
        brain[:, 3:-3, 4:-4] = True
        lesion = np.zeros(SHAPE, bool)
        lesion[1:, 8:13, 9:14] = True
        noise = rng.random(SHAPE).astype(np.float32)
        good = (noise + lesion).astype(np.float32)
        thresholds = {
            "val": 1.0,
            "fpr1": 0.99,
            "fpr5": 0.95,
            "conformal05": 0.97,
            "conformal10": 0.96,
            "slice05": 0.98,
            "slice10": 0.95,
        }
        none = np.zeros(SHAPE, bool)
        return {
            "with a lesion": _subject(good, lesion, brain, thresholds),
            "with a lesion that the map misses": _subject(noise - lesion, lesion, brain, thresholds),
            "without a lesion": _subject(noise, none, brain, thresholds),
            "without a threshold": _subject(good, lesion, brain, {}),
            "with a constant map": _subject(np.full(SHAPE, 0.5, np.float32), lesion, brain, thresholds),
            "that is all lesion": _subject(good, brain, brain, thresholds),
            "with scores far from 0": _subject(good * 1e6 - 5e5, lesion, brain, {"val": 5e5}),
        }

    def measurements(self) -> Iterator[tuple[str, tuple[float, float]]]:
        """(what is special, above and below) of every subject that is not left out."""
        for what, subject in self.subjects.items():
            found = measured(self.metric, subject)
            if found is not None:
                yield what, found


def _subject(maps: np.ndarray, lesion: np.ndarray, brain: np.ndarray, thresholds: dict[str, float]) -> Subject:
    histogram = ScoreHistogram()
    histogram.update(maps[brain], lesion[brain])
    image = np.where(brain, 0.5, 0).astype(np.float32)
    volume = Volume(maps, lesion, brain, np.arange(SHAPE[0]), image, image, (3.0, 1.0, 1.0))
    return Subject("sub", histogram, thresholds, volume)


def rule_says_what_it_is(trial: MetricUnderTest) -> None:
    """Its class has a docstring whose first line defines it, a free name, and bounds in order."""
    metric = trial.metric
    spec = spec_of(metric)
    require(spec.definition, f"{type(metric).__name__} has no docstring: its first line is the definition in tables")
    if spec.name not in SPECS or type(metric).__module__.split(".")[0] != "adbench":
        check_names([metric], SPECS)
    low, high = spec.bounds
    require(low < high, f"bounds = ({low}, {high}) hold no value")


def rule_measures_every_subject(trial: MetricUnderTest) -> None:
    """measure returns None or two finite numbers, the second not negative, whatever the subject and its thresholds."""
    require(list(trial.measurements()), "measure leaves out every subject, also one with a lesion that the map finds")


def rule_stays_within_its_bounds(trial: MetricUnderTest) -> None:
    """Each subject alone has a value within the bounds that the class states."""
    low, high = spec_of(trial.metric).bounds
    for what, (above, below) in trial.measurements():
        if below:
            value = above / below
            require(low - 1e-9 <= value <= high + 1e-9, f"{value:.6g} of a subject {what} is not in [{low}, {high}]")


def rule_gives_the_same_again(trial: MetricUnderTest) -> None:
    """The same subject has the same numbers again, whatever was measured in between."""
    first = dict(trial.measurements())
    require(dict(reversed(list(trial.measurements()))) == first, "two measurements of one subject differ")


def rule_changes_nothing(trial: MetricUnderTest) -> None:
    """measure leaves the maps and masks that it is given as they are: other metrics look at them too."""
    for what, subject in trial.subjects.items():
        volume = subject.volume
        assert volume is not None
        arrays = (volume.maps, volume.lesion, volume.brain)
        before = [array.tobytes() for array in arrays]
        measured(trial.metric, subject)
        require(before == [array.tobytes() for array in arrays], f"the arrays of a subject {what} have changed")


def rule_asks_for_maps(trial: MetricUnderTest) -> None:
    """A metric that looks at maps sets needs_maps; others do without them, as stored histograms have none."""
    if trial.metric.needs_maps:
        return
    for subject in trial.subjects.values():
        measured(trial.metric, Subject(subject.subject, subject.histogram, subject.thresholds))


RULES = [rule for name, rule in list(globals().items()) if name.startswith("rule_")]


def check_metric(metric: type[Metric]) -> list[Finding]:
    """Check a metric against every rule.

    Returns:
        One finding per rule, in order; ``problem`` is empty where the rule holds.
    """
    return apply(RULES, MetricUnderTest(metric()))
