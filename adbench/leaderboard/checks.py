"""What can be held against a rule in one published result: its keys, protocol, subjects and hashes, and every number."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, ClassVar

import numpy as np

from adbench import protocols, registry
from adbench.datasets.names import person, shared_patients
from adbench.errors import UserError
from adbench.hashing import digest
from adbench.leaderboard import submission as files
from adbench.leaderboard.submission import Submission
from adbench.metrics import bootstrap, jackknife
from adbench.metrics.base import Metric, Subject
from adbench.metrics.evaluate import Evaluation, choose_thresholds, evaluate
from adbench.metrics.histogram import ScoreHistogram, SubjectHistograms
from adbench.metrics.keys import ordered
from adbench.metrics.lesion import VolumeRow
from adbench.metrics.spatial import froc_thresholds
from adbench.results.record import Record, lacking
from adbench.results.rundir import SPLITS, safe
from adbench.spec import METRICS_VERSION

RANKED_BY = "auprc"
SPATIAL = "spatial.json"
NUMBERS = ("metrics", "strata", "prevalence", "thresholds", "brackets", "subjects")  # of a record, from its counts
CLOSE = {"rel_tol": 1e-9, "abs_tol": 1e-12}  # the order of a sum differs between machines
LONGEST = 1000  # characters of a text
# What run_identity of adbench.spec adds to fit_identity.
RUN_FIELDS = frozenset({"protocol", "metrics_version", "plugin_metrics", "threshold_slices", "test_slices"})


@dataclass(frozen=True)
class Finding:
    """Something in a file that is not as it must be.

    Attributes:
        file: where.
        field: which, with dots: "metrics.auprc.value".
        stored: what the file says.
        expected: what it must say; what was recomputed.
        why: in words, when the two values do not say it.
    """

    file: str
    field: str
    stored: Any = None
    expected: Any = None
    why: str = ""

    @property
    def sentence(self) -> str:
        """The finding in one line."""
        values = f"stored {_shown(self.stored)}, recomputed {_shown(self.expected)}"
        if self.why and self.expected is None:  # only words say what is wrong
            values = "" if self.stored is None else f"stored {_shown(self.stored)}"
        return f"{self.field}: {values}{f' ({self.why})' if values and self.why else self.why}"


def as_rows(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """Findings for JSON."""
    return [{k: repr(v) if isinstance(v, _Absent) else v for k, v in asdict(finding).items()} for finding in findings]


def check(submission: Submission) -> list[Finding]:
    """What is wrong with ``submission`` by itself."""
    where = str(submission.path)
    found = Findings(where)
    found.same("digest", submission.raw["digest"], files.own_digest(submission.raw))
    _check_texts(submission, found)
    _check_keys(submission.record, found)
    _check_protocol(submission.record, found)
    _check_splits(submission, found)
    _check_hashes(submission, found)
    try:
        _check_numbers(submission, found)
    except (UserError, ValueError, ArithmeticError, IndexError, KeyError, TypeError) as error:
        found.add("histograms", why=f"they cannot be evaluated: {error}")
    return found.list


class Findings:
    """Collects what is wrong with one file."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.list: list[Finding] = []

    def add(self, field: str, stored: Any = None, expected: Any = None, why: str = "") -> None:
        """Something is wrong with ``field``."""
        self.list.append(Finding(self.where, field, stored, expected, why))

    def same(self, field: str, stored: Any, expected: Any, why: str = "") -> None:
        """Compare two JSON values, going into dictionaries and lists; numbers may differ by rounding."""
        if isinstance(stored, dict) and isinstance(expected, dict):
            for key in [*expected, *(key for key in stored if key not in expected)]:
                self.same(f"{field}.{key}", stored.get(key, _ABSENT), expected.get(key, _ABSENT), why)
        elif isinstance(stored, (list, tuple)) and isinstance(expected, (list, tuple)) and len(stored) == len(expected):
            for index, (one, other) in enumerate(zip(stored, expected, strict=True)):
                self.same(f"{field}.{index}", one, other, why)
        elif not _equal(stored, expected):
            self.add(field, stored, expected, why)


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


_ABSENT = _Absent()


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return a == b or (isinstance(a, float) and isinstance(b, (int, float)) and math.isclose(a, b, **CLOSE))
    return bool(type(a) is type(b) and a == b)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _check_texts(submission: Submission, found: Findings) -> None:
    """Names that a page or a path will show, and figures that nothing else holds against anything."""
    record = submission.record
    names = {
        "method.name": record.method.name,
        "method.version": record.method.version,
        "method.origin": record.method.origin,
        "method.preset": record.method.preset,
        "test.name": record.test.name,
        "test.modality": record.test.modality,
        "train.name": record.train.name,
    }
    for field, name in names.items():
        if not name or len(name) > 80 or not name.isprintable():
            found.add(field, name, why="a name has 1 to 80 printable characters")
    shown = record.model_dump(mode="json", exclude={"subjects", "fit"})  # subjects are held against the splits
    for field, text in _texts(shown):
        if field not in names and not (len(text) <= LONGEST and text.isprintable()):
            found.add(field, text, why=f"a text has at most {LONGEST} printable characters")
    for name in record.files:
        if name != safe(name) or name.startswith("."):
            found.add(f"files.{name}", why="it is not the plain name of a file beside the record")
    if problem := lacking(record):
        field, _, why = problem.partition(": ")
        found.add(field, why=why)
    for name, value in record.memory.items():
        if not (math.isfinite(value) and value >= 0):
            found.add(f"memory.{name}", value, why="it must be a number that is not negative")
    if record.method.parameters < 0:
        found.add("method.parameters", record.method.parameters, why="a method has no negative number of weights")
    try:
        datetime.fromisoformat(record.created)
    except ValueError:
        found.add("created", record.created, why="it is no ISO 8601 time")


def _texts(value: Any, field: str = "") -> Iterator[tuple[str, str]]:
    """Every text within a JSON value, names of fields among them, with where it stands."""
    if isinstance(value, str):
        yield field, value
    elif isinstance(value, dict):
        for name, part in value.items():
            yield field, name
            yield from _texts(part, f"{field}.{name}" if field else name)
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _texts(part, f"{field}.{index}")


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
    for name in identity.keys() - stated.keys() - {"files", "metrics_version", "plugin_metrics"}:
        found.add(f"identity.{name}", why="it is no part of what a run is known by")
    if not isinstance(identity.get("files"), list):
        found.add("identity.files", why="it must be a list")
    if not isinstance(identity.get("plugin_metrics"), dict):
        found.add("identity.plugin_metrics", why="it must say the source of each metric by name")
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
    rows = [row.get("subject") for row in record.subjects]
    stored = submission.content.histograms.subjects
    for field, subjects in (("subjects", rows), ("histograms.subjects", stored)):
        if subjects != splits.test:
            odd = sorted({str(s) for s in subjects} ^ set(splits.test)) or [
                "the order, or a subject that is there twice"
            ]
            found.add(field, why=f"they are not the subjects of splits.test: {odd[0]}")


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
    if validation is not None:
        for name, histogram in validation.items():
            if bool(histogram.n_positive) != (name == files.WITH):
                found.add("validation", why=f"{name}: {histogram.n_positive} lesion voxels")
    with_lesion = sum(bool(h.n_positive) for _, h in test.items())
    found.same("test.lesion_subjects", record.test.lesion_subjects, with_lesion)
    sums = {files.WITH: record.threshold.lesion_subjects or 0, files.WITHOUT: record.threshold.subjects}
    sums[files.WITHOUT] -= sums[files.WITH]
    expected = [name for name, count in sums.items() if count]
    found.same("validation.subjects", validation.subjects if validation is not None else [], expected)
    for row in spatial.rows:
        if row.subject in test:
            _check_spatial(row, test[row.subject], spatial.thresholds.get("val"), found)
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
    metrics = _plugins(record, found)
    spatial.metrics = tuple(metric for metric in metrics if metric.needs_maps)
    evaluation = evaluate(
        test,
        validation,
        level=protocol.level,
        spatial=spatial,
        metrics=metrics,
        strata=True,
    )
    _compare(record, evaluation, found)
    _check_ranking(submission, evaluation, found)


def _check_spatial(row: VolumeRow, scores: ScoreHistogram, val: float | None, found: Findings) -> None:
    """What the lesions and slices of a subject have in common with its scores, and with each other."""
    where = f"spatial.{row.subject}"
    found.same(f"{where}.lesion_sizes", sum(row.lesion_sizes), scores.n_positive, "lesion voxels of the histogram")
    found.same(
        f"{where}.slice_lesion", any(row.slice_lesion), bool(scores.n_positive), "lesion voxels of the histogram"
    )
    keys, positive, _ = scores.counts()
    for name, highest, own in (
        ("slice_max", row.slice_max, keys),
        ("lesion_scores", row.lesion_scores, keys[positive > 0]),
    ):
        bins = ordered(np.array(highest, np.float32)) >> (23 - scores.mantissa_bits)
        if len(bins) and len(own) and bins.max() != own.max():
            found.add(f"{where}.{name}", max(highest), why="the highest score of the histogram is another one")
    if val is not None:
        alarms = sum(
            top >= np.float32(val) and not lesion for top, lesion in zip(row.slice_max, row.slice_lesion, strict=True)
        )
        found.same(f"{where}.alarms", row.alarms, int(alarms), "from slice_max")


def _compare(record: Record, evaluation: Evaluation, found: Findings) -> None:
    stored = record.model_dump(mode="json")
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
    left_out = ranking_left_out(submission.test)
    if len(submission.left_out) != len(left_out) or not np.allclose(
        submission.left_out, left_out, rtol=CLOSE["rel_tol"], atol=CLOSE["abs_tol"], equal_nan=True
    ):
        found.add("ranking.left_out", why="they are not the values that the histograms give")


def ranking_left_out(test: SubjectHistograms) -> np.ndarray:
    """(n,) the ranking metric without one subject each."""
    return bootstrap.pooled(test, jackknife.weights(len(test)))[RANKED_BY]


def _plugins(record: Record, found: Findings) -> list[Metric]:
    """The plug-in metrics of the record. One that looked at maps left its sums; the code of others must be here."""
    chosen: list[Metric] = []
    for name in record.identity.get("plugin_metrics") or {}:
        number = record.metrics.get(name)
        if number is None:
            found.add(f"metrics.{name}", why="it is missing")
        elif name in registry.entries("metrics") and not registry.load("metrics", name).needs_maps:
            chosen.append(registry.load("metrics", name)())
        else:
            chosen.append(_summed(name, number.oracle))
    return chosen


def _summed(metric: str, is_oracle: bool) -> Metric:
    class Summed(Metric):
        """A metric whose sums were stored when the maps were looked at."""

        name: ClassVar[str] = metric
        oracle: ClassVar[bool] = is_oracle
        needs_maps: ClassVar[bool] = True

        def measure(self, subject: Subject) -> tuple[float, float] | None:
            raise NotImplementedError

    return Summed()
