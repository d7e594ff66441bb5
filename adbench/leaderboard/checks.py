"""What can be held against a rule in one published result: its keys, protocol, subjects and hashes, and every number."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import numpy as np

from adbench.config import protocols, registry
from adbench.datasets.io.filename_patterns import person, shared_patients
from adbench.errors import UserError
from adbench.leaderboard import released
from adbench.leaderboard import submission as files
from adbench.leaderboard.consistency import check_costs, check_texts, check_validation, check_volume
from adbench.leaderboard.issues import CLOSE, Finding, Findings
from adbench.leaderboard.submission import Submission
from adbench.metrics import bootstrap, jackknife
from adbench.metrics.base import Metric, Subject
from adbench.metrics.evaluate import Evaluation, evaluate
from adbench.metrics.histogram import SubjectHistograms
from adbench.metrics.spatial import SpatialAccumulator, froc_thresholds
from adbench.metrics.thresholds import choose_thresholds
from adbench.results.record import Number, Record
from adbench.results.rundir import SPLITS
from adbench.runner.keys import METRICS_VERSION
from adbench.utils.hashing import digest

RANKED_BY = "auprc"
SPATIAL = "spatial.json"
NUMBERS = ("metrics", "strata", "prevalence", "thresholds", "brackets", "subjects")  # of a record, from its counts
# What run_identity of adbench.runner.keys adds to fit_identity.
RUN_FIELDS = frozenset({"protocol", "metrics_version", "measure_source", "threshold_slices", "test_slices"})


def check(submission: Submission) -> list[Finding]:
    """What is wrong with ``submission`` by itself."""
    where = str(submission.path)
    found = Findings(where)
    found.same("digest", submission.raw["digest"], files.own_digest(submission.raw))
    check_texts(submission.record, found)
    check_costs(submission.record, found)
    released.check_method(submission.record, found)
    _check_keys(submission.record, found)
    _check_protocol(submission.record, found)
    _check_splits(submission, found)
    _check_hashes(submission, found)
    released.check_data(submission, found)
    try:
        _check_numbers(submission, found)
    except (UserError, ValueError, ArithmeticError, IndexError, KeyError, TypeError) as error:
        found.add("histograms", why=f"they cannot be evaluated: {error}")
    return found.list


def _check_keys(record: Record, found: Findings) -> None:
    identity = record.identity
    found.same("run_key", record.run_key, digest(identity))
    found.same("fit_key", record.fit_key, digest({k: v for k, v in identity.items() if k not in RUN_FIELDS}))
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
            found.add(f"identity.{name}", why="it is missing")
        else:
            found.same(f"identity.{name}", identity[name], value, "the rest of the record says so")
    for name in identity.keys() - stated.keys() - {"files", "metrics_version", "measure_source"}:
        found.add(f"identity.{name}", why="it is no part of what a run is known by")
    if not isinstance(identity.get("files"), list):
        found.add("identity.files", why="it must be a list")
    found.same(
        "identity.metrics_version", identity.get("metrics_version"), METRICS_VERSION, "numbers of other definitions"
    )
    found.same("train.modality", record.train.modality, record.test.modality)
    if record.val is not None:
        found.same("val.modality", record.val.modality, record.test.modality)
    found.same("threshold.modality", record.threshold.modality, record.test.modality)
    found.same("threshold.name", record.threshold.name, record.test.name)


def _check_protocol(record: Record, found: Findings) -> None:
    name = record.protocol.get("name")
    if not isinstance(name, str) or name not in protocols.PROTOCOLS:
        found.add("protocol.name", name, why=f"this adbench knows {', '.join(protocols.PROTOCOLS)}")
        return
    protocol = protocols.get(name)
    found.same("protocol", record.protocol, protocol.as_dict(), f"protocol {name} of this adbench")
    if protocol.datasets and record.test.name not in protocol.datasets:
        found.add("test.name", record.test.name, why=f"protocol {name} tests on {' or '.join(protocol.datasets)}")
    if protocol.train_on and record.train.name != protocol.train_on:
        found.add("train.name", record.train.name, why=f"protocol {name} learns from {protocol.train_on}")


def _check_splits(submission: Submission, found: Findings) -> None:
    record, splits = submission.record, submission.content.splits
    roles = {"train": record.train, "val": record.val, "threshold": record.threshold, "test": record.test}
    for role, part in roles.items():
        subjects = getattr(splits, role)
        if subjects != sorted(set(subjects)):
            found.add(f"splits.{role}", why="its subjects are not sorted and distinct")
        found.same(
            f"{role}.subjects", part.subjects if part is not None else 0, len(subjects), f"length of splits.{role}"
        )
        if part is not None and part.slices < part.subjects:
            found.add(f"{role}.slices", part.slices, why=f"fewer than {part.subjects} subjects")
        if part is not None and not 0 <= (part.lesion_subjects or 0) <= part.subjects:
            found.add(f"{role}.lesion_subjects", part.lesion_subjects, why=f"of {part.subjects} subjects")
        if part is not None and min(part.grid) < 1:
            found.add(f"{role}.grid", list(part.grid), why="a slice has a pixel")
    taught = {person(s): s for s in (*splits.val, *splits.train)}
    learn, choose, tested = ({person(s): s for s in own} for own in (splits.train, splits.threshold, splits.test))
    for field, one, other in (
        ("splits.train", taught, tested),
        ("splits.train", learn, choose),
        ("splits.threshold", choose, tested),
    ):
        both = sorted(one.keys() & other.keys())
        if both:
            a, b = one[both[0]], other[both[0]]
            name = repr(a) if a == b else f"{a!r} and {b!r}"
            found.add(field, why=f"{len(both)} subjects have two roles, e.g. {name}")
    shared = shared_patients(set(taught.values()), set(tested.values()) | set(choose.values()))
    if shared:
        found.add("splits.train", why=f"{shared[0]} and {shared[1]} share patients under different names")
    subjects = [row.get("subject") for row in record.subjects]
    volumes = [row.get("volume", row.get("subject")) for row in record.subjects]
    for field, stored, expected, what in (
        ("subjects", sorted({str(s) for s in subjects}), splits.test, "subjects of splits.test"),
        ("histograms.subjects", submission.content.histograms.subjects, volumes, "volumes of subjects"),
    ):
        if stored != expected:
            odd = sorted({str(s) for s in stored} ^ {str(s) for s in expected}) or ["the order, or one is there twice"]
            found.add(field, why=f"they are not the {what}: {odd[0]}")


def _check_hashes(submission: Submission, found: Findings) -> None:
    listed = submission.record.files
    splits = json.dumps(submission.raw["splits"], indent=1) + "\n"
    found.same(f"files.{SPLITS}", listed.get(SPLITS), files.sha256(splits.encode()))
    try:
        found.same(f"files.{SPATIAL}", listed.get(SPATIAL), files.sha256(submission.spatial_bytes))
    except ValueError as error:
        found.add("spatial", why=str(error))


def _check_numbers(submission: Submission, found: Findings) -> None:
    record = submission.record
    for field, unpack in (
        ("histograms", lambda: submission.test),
        ("validation", lambda: submission.validation),
        ("spatial", lambda: submission.spatial),
        ("ranking.left_out", lambda: submission.left_out),
    ):
        try:
            unpack()
        except ValueError as error:
            found.add(field, why=str(error))
            return
    test, validation, spatial = submission.test, submission.validation, submission.spatial
    check_validation(submission, found)
    with_lesion = sum(bool(h.n_positive) for _, h in test.items())
    found.same("test.lesion_subjects", record.test.lesion_subjects, with_lesion)
    for row in spatial.rows:
        if row.volume in test:
            check_volume(row, test[row.volume], spatial, math.prod(record.test.grid), found)
    slices = sum(len(row.slice_lesion) for row in spatial.rows)
    if slices > record.test.slices:
        found.same("test.slices", record.test.slices, slices, "spatial counts")
    thresholds = choose_thresholds(validation)[0]
    froc = froc_thresholds(validation) if validation is not None else []
    found.same("spatial.thresholds", spatial.thresholds, thresholds)
    if spatial.froc != froc:
        found.same("thresholds", {rule: record.thresholds.get(rule) for rule in thresholds}, thresholds)
        found.add("spatial.froc", why="its thresholds are not those that the validation scores give")
        return
    which = record.protocol.get("name")
    if not isinstance(which, str) or which not in protocols.PROTOCOLS:
        return  # said above; without its rules there is nothing to compute
    protocol = protocols.get(which)
    unchecked = _not_installed(record, spatial, found)
    metrics = _plugins(record, unchecked, found)
    spatial.metrics = tuple(metric for metric in metrics if metric.needs_maps)
    evaluation = evaluate(
        test,
        validation,
        level=protocol.level,
        spatial=spatial,
        metrics=metrics,
        strata=True,
    )
    _compare(record, evaluation, unchecked, found)
    _check_ranking(submission, evaluation, found)


def numbers_without(record: Record, metrics: Collection[str]) -> dict[str, Any]:
    """All that the counts decide, as JSON, without the named metrics."""
    content = record.model_dump(mode="json", include=set(NUMBERS))
    groups = (group for groups in content["strata"].values() for group in groups.values())
    for values in (content["metrics"], *groups):
        for name in metrics:
            values.pop(name, None)
    return content


def _compare(record: Record, evaluation: Evaluation, unchecked: Collection[str], found: Findings) -> None:
    stored = numbers_without(record, unchecked)
    recomputed = evaluation.as_dict()
    for name in NUMBERS:
        found.same(name, stored[name], recomputed[name])
    for note in evaluation.notes:
        if note not in record.notes:
            found.add("notes", why=f"this one is missing: {note}")


def _check_ranking(submission: Submission, evaluation: Evaluation, found: Findings) -> None:
    stored = submission.content.ranking
    defined = evaluation.metrics[RANKED_BY].value is not None
    if (stored is None) == defined:
        found.add("ranking", why=f"{RANKED_BY} is {'defined' if defined else 'undefined'}")
    if stored is None or not defined or submission.left_out is None:
        return
    found.same("ranking.metric", stored.metric, RANKED_BY)
    left_out = ranking_left_out(submission.test, submission.spatial.subject_of)
    if len(submission.left_out) != len(left_out) or not np.allclose(
        submission.left_out, left_out, rtol=CLOSE["rel_tol"], atol=CLOSE["abs_tol"], equal_nan=True
    ):
        found.add("ranking.left_out", why="they are not the values that the histograms give")


def ranking_left_out(test: SubjectHistograms, subject_of: Mapping[str, str]) -> np.ndarray:
    """(n,) the ranking metric without one subject each.

    Args:
        test: volumes.
        subject_of: volume -> its subject.
    """
    return bootstrap.pooled(test, jackknife.weights_of([subject_of[volume] for volume in test]))[RANKED_BY]


def _not_installed(record: Record, spatial: SpatialAccumulator, found: Findings) -> list[str]:
    """The metrics whose numbers nothing that is here gives."""
    measured = {name for row in spatial.rows for name in row.measures}
    names = [
        name
        for name in record.optional
        if name in record.metrics and record.metrics[name].value is not None
        if name not in measured and name not in registry.entries("metrics")
    ]
    for name in names:
        why = "this metric is not installed here: its value, interval and strata could not be checked"
        found.add(f"metrics.{name}", record.metrics[name].value, why=why)
    return names


def _plugins(record: Record, unchecked: Collection[str], found: Findings) -> list[Metric]:
    """The metrics that the record was asked for. One that looked at maps left its sums; the code of others must be here."""
    chosen: list[Metric] = []
    for name in set(record.protocol.get("metrics", ())) - set(record.optional):
        found.add(f"optional.{name}", why="the protocol measures it, and nothing is said about it")
    for name, part in record.optional.items():
        number = record.metrics.get(name)
        if number is None:
            found.add(f"metrics.{name}", why="it is missing")
        elif name in registry.entries("metrics"):
            facts = registry.metric_spec(name)
            for fact in ("less_is_better", "oracle", "unit"):
                found.same(f"optional.{name}.{fact}", getattr(part, fact), getattr(facts, fact), "the metric says so")
            chosen.append(registry.load("metrics", name)())
        elif name not in unchecked:
            chosen.append(_summed(name, number))
    return chosen


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
