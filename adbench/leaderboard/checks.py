"""What can be checked in one published result: its keys, protocol, subjects and hashes, and every number.

A check takes a submission and yields what is wrong with it. :data:`CHECKS` is the list of all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from adbench.config import protocols, registry
from adbench.datasets.io.filename_patterns import person, shared_patients
from adbench.errors import UserError
from adbench.leaderboard import released
from adbench.leaderboard.consistency import check_costs, check_texts, check_validation, check_volume
from adbench.leaderboard.issues import CLOSE, Issue, differences
from adbench.leaderboard.submission import SPATIAL, Submission, own_digest, ranking_left_out, sha256
from adbench.metrics.base import Metric, Subject
from adbench.metrics.evaluate import evaluate
from adbench.metrics.spatial import froc_thresholds
from adbench.metrics.spec import RANKED_BY
from adbench.metrics.thresholds import choose_thresholds
from adbench.results.record import Number, Record
from adbench.results.rundir import SPLITS
from adbench.runner.keys import METRICS_VERSION
from adbench.utils.hashing import digest

NUMBERS = ("metrics", "strata", "prevalence", "thresholds", "brackets", "subjects")  # of a record, from its counts
# What run_identity of adbench.runner.keys adds to fit_identity.
RUN_FIELDS = frozenset({"protocol", "metrics_version", "measure_source", "threshold_slices", "test_slices"})


def check(submission: Submission) -> list[Issue]:
    """What is wrong with ``submission`` by itself."""
    issues: list[Issue] = []
    for one in CHECKS:
        try:
            issues.extend(one(submission))
        except (UserError, ValueError, ArithmeticError, IndexError, KeyError, TypeError) as error:
            issues.append(Issue("file", why=f"its {one.__name__.removeprefix('check_')} cannot be checked: {error}"))
    return [replace(issue, file=str(submission.path)) for issue in issues]


def check_keys(submission: Submission) -> Iterator[Issue]:
    """The digest and the keys are the hashes of what they name, and the identity says what the record says."""
    record = submission.record
    identity = record.identity
    yield from differences("digest", submission.raw["digest"], own_digest(submission.raw))
    yield from differences("run_key", record.run_key, digest(identity))
    fit = {name: value for name, value in identity.items() if name not in RUN_FIELDS}
    yield from differences("fit_key", record.fit_key, digest(fit))
    stated = {
        "method": record.method.name,
        "method_version": record.method.version,
        "method_source": record.method.source,
        "preset": record.method.preset,
        "params": record.method.params,
        "seed": record.seed,
        "modality": record.test.modality,
        "train_slices": record.train.digest,
        "val_slices": record.val.digest if record.val is not None else None,
        "protocol": record.protocol,
        "threshold_slices": record.threshold.digest,
        "test_slices": record.test.digest,
    }
    for name, value in stated.items():
        if name not in identity:
            yield Issue(f"identity.{name}", why="it is missing")
        else:
            yield from differences(f"identity.{name}", identity[name], value, "the rest of the record says so")
    for name in identity.keys() - stated.keys() - {"files", "metrics_version", "measure_source"}:
        yield Issue(f"identity.{name}", why="it is no part of the identity of a run")
    if not isinstance(identity.get("files"), list):
        yield Issue("identity.files", why="it must be a list")
    version = identity.get("metrics_version")
    yield from differences("identity.metrics_version", version, METRICS_VERSION, "numbers of other definitions")


def check_protocol(submission: Submission) -> Iterator[Issue]:
    """The protocol is that of this adbench, field by field, and the data fit it."""
    record, name = submission.record, submission.record.protocol.get("name")
    for role in ("train", "val", "threshold"):
        if (part := getattr(record, role)) is not None:
            yield from differences(f"{role}.modality", part.modality, record.test.modality)
    yield from differences("threshold.name", record.threshold.name, record.test.name)
    if not isinstance(name, str) or name not in protocols.PROTOCOLS:
        yield Issue("protocol.name", name, why=f"this adbench knows {', '.join(protocols.PROTOCOLS)}")
        return
    protocol = protocols.get(name)
    yield from differences("protocol", record.protocol, protocol.as_dict(), f"protocol {name} of this adbench")
    if protocol.datasets and record.test.name not in protocol.datasets:
        yield Issue("test.name", record.test.name, why=f"protocol {name} tests on {' or '.join(protocol.datasets)}")
    if protocol.train_on and record.train.name != protocol.train_on:
        yield Issue("train.name", record.train.name, why=f"protocol {name} trains on {protocol.train_on}")


def check_splits(submission: Submission) -> Iterator[Issue]:
    """The lists of subjects have the lengths that the record states, and no subject has two roles."""
    record, splits = submission.record, submission.content.splits
    for role in ("train", "val", "threshold", "test"):
        part, subjects = getattr(record, role), getattr(splits, role)
        if subjects != sorted(set(subjects)):
            yield Issue(f"splits.{role}", why="its subjects are not sorted and distinct")
        stated = part.subjects if part is not None else 0
        yield from differences(f"{role}.subjects", stated, len(subjects), f"length of splits.{role}")
        if part is None:
            continue
        if part.slices < part.subjects:
            yield Issue(f"{role}.slices", part.slices, why=f"fewer than {part.subjects} subjects")
        if not 0 <= (part.lesion_subjects or 0) <= part.subjects:
            yield Issue(f"{role}.lesion_subjects", part.lesion_subjects, why=f"of {part.subjects} subjects")
        if min(part.grid) < 1:
            yield Issue(f"{role}.grid", list(part.grid), why="a slice has at least one pixel")
    train, fitted, threshold, test = (
        {person(subject): subject for subject in own}
        for own in (splits.train, [*splits.val, *splits.train], splits.threshold, splits.test)
    )
    for field, one, other in (
        ("splits.train", fitted, test),
        ("splits.train", train, threshold),
        ("splits.threshold", threshold, test),
    ):
        both = sorted(one.keys() & other.keys())
        if both:
            names = sorted({repr(one[both[0]]), repr(other[both[0]])})
            yield Issue(field, why=f"{len(both)} subjects have two roles, e.g. {' and '.join(names)}")
    shared = shared_patients(set(fitted.values()), {*test.values(), *threshold.values()})
    if shared:
        yield Issue("splits.train", why=f"{shared[0]} and {shared[1]} share patients under different names")
    subjects = sorted({str(row.get("subject")) for row in record.subjects})
    volumes = [row.get("volume", row.get("subject")) for row in record.subjects]
    for field, stored, expected, what in (
        ("subjects", subjects, splits.test, "subjects of splits.test"),
        ("histograms.subjects", submission.content.histograms.subjects, volumes, "volumes of subjects"),
    ):
        if stored != expected:
            odd = sorted({str(s) for s in stored} ^ {str(s) for s in expected}) or ["the order, or one is there twice"]
            yield Issue(field, why=f"they are not the {what}: {odd[0]}")


def check_hashes(submission: Submission) -> Iterator[Issue]:
    """The files that the submission holds are those that the record lists."""
    listed = submission.record.files
    splits = json.dumps(submission.raw["splits"], indent=1) + "\n"
    yield from differences(f"files.{SPLITS}", listed.get(SPLITS), sha256(splits.encode()))
    try:
        yield from differences(f"files.{SPATIAL}", listed.get(SPATIAL), sha256(submission.spatial_bytes))
    except ValueError as error:
        yield Issue("spatial", why=str(error))


def check_numbers(submission: Submission) -> Iterator[Issue]:
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
            yield Issue(field, why=str(error))
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
    thresholds = choose_thresholds(validation)[0]
    yield from differences("spatial.thresholds", spatial.thresholds, thresholds)
    if spatial.froc != (froc_thresholds(validation) if validation is not None else []):
        stated = {rule: record.thresholds.get(rule) for rule in thresholds}
        yield from differences("thresholds", stated, thresholds)
        yield Issue("spatial.froc", why="its thresholds are not those that the validation scores give")
        return
    name = record.protocol.get("name")
    if not isinstance(name, str) or name not in protocols.PROTOCOLS:
        return  # check_protocol says so; without its rules there is nothing to compute
    unchecked = _not_installed(submission)
    for metric in unchecked:
        why = "this metric is not installed here: its value, interval and strata could not be checked"
        yield Issue(f"metrics.{metric}", record.metrics[metric].value, why=why)
    yield from _optional_facts(record)
    metrics = [_metric(name, record) for name in record.optional if name in record.metrics and name not in unchecked]
    spatial.metrics = tuple(metric for metric in metrics if metric.needs_maps)
    evaluation = evaluate(
        test, validation, level=protocols.get(name).level, spatial=spatial, metrics=metrics, strata=True
    )
    stored, recomputed = numbers_without(record, unchecked), evaluation.as_dict()
    for field in NUMBERS:
        yield from differences(field, stored[field], recomputed[field])
    for note in evaluation.notes:
        if note not in record.notes:
            yield Issue("notes", why=f"this one is missing: {note}")
    yield from _ranking(submission, evaluation.metrics[RANKED_BY].value is not None)


def numbers_without(record: Record, metrics: Collection[str]) -> dict[str, Any]:
    """All that the counts decide, as JSON, without the named metrics."""
    content = record.model_dump(mode="json", include=set(NUMBERS))
    groups = (group for groups in content["strata"].values() for group in groups.values())
    for values in (content["metrics"], *groups):
        for name in metrics:
            values.pop(name, None)
    return content


def _ranking(submission: Submission, defined: bool) -> Iterator[Issue]:
    stored, values = submission.content.ranking, submission.left_out
    if (stored is None) == defined:
        yield Issue("ranking", why=f"{RANKED_BY} is {'defined' if defined else 'undefined'}")
    if stored is None or values is None or not defined:
        return
    yield from differences("ranking.metric", stored.metric, RANKED_BY)
    expected = ranking_left_out(submission.test, submission.spatial.subject_of)
    rtol, atol = CLOSE["rel_tol"], CLOSE["abs_tol"]
    if len(values) != len(expected) or not np.allclose(values, expected, rtol=rtol, atol=atol, equal_nan=True):
        yield Issue("ranking.left_out", why="they are not the values that the histograms give")


def _not_installed(submission: Submission) -> list[str]:
    """The metrics whose code is not installed here and that left no sums, so that their numbers cannot be computed."""
    record = submission.record
    known = {*registry.entries("metrics"), *(name for row in submission.spatial.rows for name in row.measures)}
    return [
        name
        for name in record.optional
        if name not in known and name in record.metrics and record.metrics[name].value is not None
    ]


def _optional_facts(record: Record) -> Iterator[Issue]:
    """What the record says about its optional metrics is what those that are installed here say."""
    for name in set(record.protocol.get("metrics", ())) - set(record.optional):
        yield Issue(f"optional.{name}", why="the protocol measures it, and nothing is said about it")
    for name, part in record.optional.items():
        if name not in record.metrics:
            yield Issue(f"metrics.{name}", why="it is missing")
        elif name in registry.entries("metrics"):
            for fact in ("less_is_better", "oracle", "unit"):
                expected = getattr(registry.metric_spec(name), fact)
                yield from differences(f"optional.{name}.{fact}", getattr(part, fact), expected, "the metric says so")


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


CHECKS: tuple[Callable[[Submission], Iterator[Issue]], ...] = (
    check_keys,
    check_texts,
    check_costs,
    released.check_method,
    check_protocol,
    check_splits,
    check_hashes,
    released.check_data,
    check_numbers,
)
