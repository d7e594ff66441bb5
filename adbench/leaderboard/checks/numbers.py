"""Whether every number of a published result follows from its counts."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator
from functools import cache
from typing import Any, ClassVar

import numpy as np

from adbench.config import protocols, registry
from adbench.errors import UserError
from adbench.leaderboard.checks.consistency import check_validation, check_volume
from adbench.leaderboard.checks.issue import RecordIssue, differences
from adbench.leaderboard.submission import FROM_MAPS, Submission, ranking_left_out
from adbench.metrics.base import Metric, Subject
from adbench.metrics.evaluate import Evaluation, evaluate
from adbench.metrics.spatial import froc_thresholds
from adbench.metrics.spec import RANKED_BY, SPECS
from adbench.metrics.thresholds import choose_thresholds, slice_thresholds
from adbench.results.explain import CLOSE
from adbench.results.names import skeleton
from adbench.results.record import MetricPart, Number, Record

_METRIC_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,79}")
NUMBERS = ("metrics", "strata", "prevalence", "thresholds", "brackets", "subjects")  # of a record, from its counts


def check_numbers(submission: Submission) -> Iterator[RecordIssue]:
    """Every number of the record follows from the counts, and the counts fit each other."""
    record = submission.record
    for field, part in (
        ("histograms", "test"),
        ("validation", "validation"),
        ("spatial", "spatial"),
        ("ranking.left_out", "left_out"),
    ):
        try:
            getattr(submission, part)
        except ValueError as error:
            yield RecordIssue(field, why=str(error))
            return
    test, validation, spatial = submission.test, submission.validation, submission.spatial
    yield from check_validation(submission)
    with_lesion = sum(bool(histogram.n_positive) for _, histogram in test.items())
    yield from differences("test.lesion_subjects", record.test.lesion_subjects, with_lesion)
    for row in spatial.rows:
        if row.volume in test:
            yield from check_volume(row, test[row.volume], spatial, math.prod(record.test.grid))
    slices = sum(len(row.slice_lesion) for row in spatial.rows)
    if slices > record.test.slices:
        yield from differences("test.slices", record.test.slices, slices, "spatial counts")
    thresholds = choose_thresholds(validation)[0] | slice_thresholds(spatial.free)
    yield from differences("spatial.thresholds", spatial.thresholds, thresholds)
    own_froc = validation is None and record.method.origin == FROM_MAPS  # `eval` then spaces them by the test scores
    if not own_froc and spatial.froc != (froc_thresholds(validation) if validation is not None else []):
        stated = {rule: record.thresholds.get(rule) for rule in thresholds}
        yield from differences("thresholds", stated, thresholds)
        yield RecordIssue("spatial.froc", why="its thresholds are not those that the validation scores give")
        return
    if protocols.of_result(record.protocol.get("name")) is None:
        return  # check_protocol says so; without its rules there is nothing to compute
    unchecked = _not_installed(submission)
    for metric in unchecked:
        why = "this metric is not installed here: its value, interval and strata could not be checked"
        yield RecordIssue(f"metrics.{metric}", record.metrics[metric].value, why=why, unchecked=True)
    yield from _optional_facts(record)
    yield from _range(record)
    evaluation = recomputed(submission)
    stored, computed = numbers_without(record, unchecked), evaluation.as_dict()
    for field in NUMBERS:
        yield from differences(field, stored[field], computed[field])
    for note in evaluation.notes:
        if note not in record.notes:
            yield RecordIssue("notes", why=f"this one is missing: {note}")
    yield from _ranking(submission, evaluation.metrics[RANKED_BY].value is not None)


def recomputed(submission: Submission) -> Evaluation:
    """All numbers from the counts; a metric that is not installed here and left no sums is left out."""
    record, spatial, unchecked = submission.record, submission.spatial, _not_installed(submission)
    metrics = [_metric(name, record) for name in record.optional if name in record.metrics and name not in unchecked]
    spatial.metrics = tuple(metric for metric in metrics if metric.needs_maps)
    if (protocol := protocols.of_result(record.protocol.get("name"))) is None:
        raise UserError(f"this adbench knows no protocol {record.protocol.get('name')!r}")
    return evaluate(
        submission.test, submission.validation, level=protocol.level, spatial=spatial, metrics=metrics, strata=True
    )


def numbers_without(record: Record, metrics: Collection[str]) -> dict[str, Any]:
    """All that the counts decide, as JSON, without the named metrics."""
    content = record.model_dump(mode="json", include=set(NUMBERS))
    groups = (group for groups in content["strata"].values() for group in groups.values())
    for values in (content["metrics"], *groups):
        for name in metrics:
            values.pop(name, None)
    return content


def _ranking(submission: Submission, defined: bool) -> Iterator[RecordIssue]:
    stored, values = submission.content.ranking, submission.left_out
    if (stored is None) == defined:
        yield RecordIssue("ranking", why=f"{RANKED_BY} is {'defined' if defined else 'undefined'}")
    if stored is None or values is None or not defined:
        return
    yield from differences("ranking.metric", stored.metric, RANKED_BY)
    expected = ranking_left_out(submission.test, submission.spatial.subject_of)
    rtol, atol = CLOSE["rel_tol"], CLOSE["abs_tol"]
    if len(values) != len(expected) or not np.allclose(values, expected, rtol=rtol, atol=atol, equal_nan=True):
        yield RecordIssue("ranking.left_out", why="they are not the values that the histograms give")


def _not_installed(submission: Submission) -> list[str]:
    """The metrics whose code is not installed here and that left no sums, so that their numbers cannot be computed."""
    record = submission.record
    known = {*registry.entries("metrics"), *(name for row in submission.spatial.rows for name in row.measures)}
    return [
        name
        for name in record.optional
        if name not in known and name in record.metrics and record.metrics[name].value is not None
    ]


def _optional_facts(record: Record) -> Iterator[RecordIssue]:
    """What the record says about its optional metrics is what those that are installed here say."""
    for name in set(record.protocol.get("metrics", ())) - set(record.optional):
        yield RecordIssue(f"optional.{name}", why="the protocol measures it, and nothing is said about it")
    for name, part in record.optional.items():
        yield from _own_column(name, part)
        if name not in record.metrics:
            yield RecordIssue(f"metrics.{name}", why="it is missing")
        elif name in registry.entries("metrics"):
            for fact in ("less_is_better", "oracle", "unit"):
                expected = getattr(registry.metric_spec(name), fact)
                yield from differences(f"optional.{name}.{fact}", getattr(part, fact), expected, "the metric says so")


def _own_column(name: str, part: MetricPart) -> Iterator[RecordIssue]:
    """A metric of a package has a name that any program takes, and a column that reads like no built-in one."""
    if name in SPECS:
        if SPECS[name].group != "optional":
            yield RecordIssue(f"optional.{name}", why="every run has it: it is no metric that a run is asked for")
        return
    if not _METRIC_NAME.fullmatch(name):
        why = "a metric has 1 to 80 ASCII letters, digits and . _ @ + -, a letter or digit first"
        yield RecordIssue("optional", name, why=why)
    if not (0 < len(part.heading) <= 80 and part.heading.isascii() and part.heading.isprintable()):
        yield RecordIssue(
            f"optional.{name}.heading", part.heading, why="a heading has 1 to 80 printable ASCII characters"
        )
    for field, text in ((name, name), (f"{name}.heading", part.heading)):
        if (alike := _built_in_columns().get(_letters(text))) is not None:
            yield RecordIssue(f"optional.{field}", text, why=f"it reads like {alike!r}, a metric of adbench")


def _letters(text: str) -> str:
    return re.sub(r"\W", "", skeleton(text))


@cache
def _built_in_columns() -> dict[str, str]:
    return {_letters(text): one.name for one in SPECS.values() for text in (one.name, one.heading, one.column)}


def _range(record: Record) -> Iterator[RecordIssue]:
    """Values lie where those of their metric can lie."""
    for name, number in record.metrics.items():
        installed = name in SPECS or name in registry.entries("metrics")
        low, high = registry.metric_spec(name).bounds if installed else (-math.inf, math.inf)
        if number.value is not None and not low - 1e-6 <= number.value <= high + 1e-6:
            yield RecordIssue(f"metrics.{name}.value", number.value, why=f"it lies between {low:g} and {high:g}")


def _metric(name: str, record: Record) -> Metric:
    """The optional metric ``name``: as installed, or from the sums that it left when it looked at the maps."""
    if name in registry.entries("metrics"):
        found: Metric = registry.load("metrics", name)()
        return found
    return _summed(name, record.metrics[name])


def _summed(metric: str, number: Number) -> Metric:
    class Summed(Metric):
        """A metric whose sums were stored when the maps were looked at."""

        name: ClassVar[str] = metric
        oracle: ClassVar[bool] = number.oracle
        needs_maps: ClassVar[bool] = True
        undefined: ClassVar[str] = number.reason

        def measure(self, subject: Subject) -> tuple[float, float] | None:
            raise NotImplementedError

    return Summed()
