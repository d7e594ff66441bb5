"""What can be checked in one published result: keys, protocol, subjects, hashes, every number, and what this release knows.

A check takes a submission and yields what is wrong with it. :data:`CHECKS` is the list of all.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import cache
from itertools import islice
from typing import Any, ClassVar

import numpy as np

from adbench.config import protocols, registry
from adbench.config.cell import Post
from adbench.errors import UserError
from adbench.leaderboard.consistency import (
    Issue,
    check_costs,
    check_texts,
    check_validation,
    check_volume,
    differences,
    skeleton,
)
from adbench.leaderboard.data_checks import check_data, check_splits
from adbench.leaderboard.from_maps import check_from_maps, check_submitted
from adbench.leaderboard.method_checks import check_method
from adbench.leaderboard.submission import FROM_MAPS, SPATIAL, Submission, own_digest, ranking_left_out, sha256
from adbench.metrics.base import Metric, Subject
from adbench.metrics.evaluate import Evaluation, evaluate
from adbench.metrics.spatial import froc_thresholds
from adbench.metrics.spec import RANKED_BY, SPECS
from adbench.metrics.thresholds import choose_thresholds, slice_thresholds
from adbench.results.explain import CLOSE
from adbench.results.record import DataPart, MetricPart, Number, Record
from adbench.results.rundir import SPLITS
from adbench.runner.keys import METRICS_VERSION
from adbench.utils.hashing import digest
from adbench.utils.limits import ISSUES

_METRIC_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,79}")
NUMBERS = ("metrics", "strata", "prevalence", "thresholds", "brackets", "subjects")  # of a record, from its counts
# What run_identity of adbench.runner.keys adds to fit_identity.
RUN_FIELDS = frozenset(
    {"protocol", "post", "metrics_version", "measure_source", "threshold_slices", "test_slices", "scored_with"}
)


def check(submission: Submission) -> list[Issue]:
    """What is wrong with ``submission`` by itself."""
    issues: list[Issue] = []
    for one in CHECKS_OF_MAPS if submission.record.method.origin == FROM_MAPS else CHECKS:
        try:
            issues.extend(islice(one(submission), ISSUES - len(issues)))
        except (UserError, ValueError, ArithmeticError, IndexError, KeyError, TypeError) as error:
            issues.append(Issue("file", why=f"its {one.__name__.removeprefix('check_')} cannot be checked: {error}"))
    if len(issues) == ISSUES:
        issues.append(Issue("file", why=f"more than {ISSUES} things are wrong: no more are listed"))
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
    yield from differences("identity.post", identity.get("post", {}), record.post, "the rest of the record says so")
    if record.post != Post(**record.post).done or ("post" in identity and not record.post):
        yield Issue("post", record.post, why="it must say what was done to the maps, and nothing else")
    for name in (
        identity.keys()
        - stated.keys()
        - {"files", "post", "members", "metrics_version", "measure_source", "scored_with"}
    ):
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
    from_maps = record.method.origin == FROM_MAPS
    if (protocol := _protocol(name)) is None or (protocol is protocols.MAPS and not from_maps):
        yield Issue("protocol.name", name, why=f"this adbench knows {', '.join(protocols.PROTOCOLS)}")
        return
    yield from differences("protocol", record.protocol, protocol.as_dict(), f"protocol {name} of this adbench")
    if not from_maps:
        side = record.test if protocol.threshold_on == "test" else record.train
        yield from differences("threshold.name", record.threshold.name, side.name)
    if protocol.datasets and not any(_may_be(record.test, dataset) for dataset in protocol.datasets):
        yield Issue("test.name", record.test.name, why=f"protocol {name} tests on {' or '.join(protocol.datasets)}")
    if protocol.train_on and not from_maps and not _may_be(record.train, protocol.train_on):
        yield Issue("train.name", record.train.name, why=f"protocol {name} trains on {protocol.train_on}")


def _protocol(name: object) -> protocols.Protocol | None:
    """The protocol of a result by its name; None when this adbench has none."""
    if name == protocols.MAPS.name:
        return protocols.MAPS
    return protocols.PROTOCOLS.get(name) if isinstance(name, str) else None


def _may_be(part: DataPart, dataset: str) -> bool:
    """Whether the data of ``part`` can be of ``dataset``: by its name, or by one of their own where it takes one."""
    takes_names = "name" in registry.load("datasets", dataset).Params.model_fields
    return part.name == dataset or (takes_names and part.name == part.params.get("name"))


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
    thresholds = choose_thresholds(validation)[0] | slice_thresholds(spatial.free)
    yield from differences("spatial.thresholds", spatial.thresholds, thresholds)
    own_froc = validation is None and record.method.origin == FROM_MAPS  # `eval` then spaces them by the test scores
    if not own_froc and spatial.froc != (froc_thresholds(validation) if validation is not None else []):
        stated = {rule: record.thresholds.get(rule) for rule in thresholds}
        yield from differences("thresholds", stated, thresholds)
        yield Issue("spatial.froc", why="its thresholds are not those that the validation scores give")
        return
    if _protocol(record.protocol.get("name")) is None:
        return  # check_protocol says so; without its rules there is nothing to compute
    unchecked = _not_installed(submission)
    for metric in unchecked:
        why = "this metric is not installed here: its value, interval and strata could not be checked"
        yield Issue(f"metrics.{metric}", record.metrics[metric].value, why=why, unchecked=True)
    yield from _optional_facts(record)
    yield from _range(record)
    evaluation = recomputed(submission)
    stored, computed = numbers_without(record, unchecked), evaluation.as_dict()
    for field in NUMBERS:
        yield from differences(field, stored[field], computed[field])
    for note in evaluation.notes:
        if note not in record.notes:
            yield Issue("notes", why=f"this one is missing: {note}")
    yield from _ranking(submission, evaluation.metrics[RANKED_BY].value is not None)


def recomputed(submission: Submission) -> Evaluation:
    """All numbers from the counts; a metric that is not installed here and left no sums is left out."""
    record, spatial, unchecked = submission.record, submission.spatial, _not_installed(submission)
    metrics = [_metric(name, record) for name in record.optional if name in record.metrics and name not in unchecked]
    spatial.metrics = tuple(metric for metric in metrics if metric.needs_maps)
    if (protocol := _protocol(record.protocol.get("name"))) is None:
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
        yield from _own_column(name, part)
        if name not in record.metrics:
            yield Issue(f"metrics.{name}", why="it is missing")
        elif name in registry.entries("metrics"):
            for fact in ("less_is_better", "oracle", "unit"):
                expected = getattr(registry.metric_spec(name), fact)
                yield from differences(f"optional.{name}.{fact}", getattr(part, fact), expected, "the metric says so")


def _own_column(name: str, part: MetricPart) -> Iterator[Issue]:
    """A metric of a package has a name that any program takes, and a column that reads like no built-in one."""
    if name in SPECS:
        if SPECS[name].group != "optional":
            yield Issue(f"optional.{name}", why="every run has it: it is no metric that a run is asked for")
        return
    if not _METRIC_NAME.fullmatch(name):
        why = "a metric has 1 to 80 ASCII letters, digits and . _ @ + -, a letter or digit first"
        yield Issue("optional", name, why=why)
    if not (0 < len(part.heading) <= 80 and part.heading.isascii() and part.heading.isprintable()):
        yield Issue(f"optional.{name}.heading", part.heading, why="a heading has 1 to 80 printable ASCII characters")
    for field, text in ((name, name), (f"{name}.heading", part.heading)):
        if (alike := _built_in_columns().get(_letters(text))) is not None:
            yield Issue(f"optional.{field}", text, why=f"it reads like {alike!r}, a metric of adbench")


def _letters(text: str) -> str:
    return re.sub(r"\W", "", skeleton(text))


@cache
def _built_in_columns() -> dict[str, str]:
    return {_letters(text): one.name for one in SPECS.values() for text in (one.name, one.heading, one.column)}


def _range(record: Record) -> Iterator[Issue]:
    """Values lie where those of their metric can lie."""
    for name, number in record.metrics.items():
        installed = name in SPECS or name in registry.entries("metrics")
        low, high = registry.metric_spec(name).bounds if installed else (-math.inf, math.inf)
        if number.value is not None and not low - 1e-6 <= number.value <= high + 1e-6:
            yield Issue(f"metrics.{name}.value", number.value, why=f"it lies between {low:g} and {high:g}")


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
    check_submitted,
    check_texts,
    check_costs,
    check_method,
    check_protocol,
    check_splits,
    check_hashes,
    check_data,
    check_numbers,
)
CHECKS_OF_MAPS: tuple[Callable[[Submission], Iterator[Issue]], ...] = (
    check_from_maps,
    *(one for one in CHECKS if one not in (check_keys, check_costs, check_method)),
)
