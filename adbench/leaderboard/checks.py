"""What can be held against a rule in one published result: its keys, protocol, subjects and hashes, and every number."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
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
from adbench.metrics.keys import key_of, predict
from adbench.metrics.lesion import VolumeRow
from adbench.metrics.spatial import SpatialAccumulator, froc_thresholds
from adbench.metrics.spec import spec
from adbench.results.record import Number, Record, lacking
from adbench.results.rundir import SPLITS, safe
from adbench.spec import METRICS_VERSION

RANKED_BY = "auprc"
SPATIAL = "spatial.json"
NUMBERS = ("metrics", "strata", "prevalence", "thresholds", "brackets", "subjects")  # of a record, from its counts
CLOSE = {"rel_tol": 1e-9, "abs_tol": 1e-12}  # the order of a sum differs between machines
LONGEST = 1000  # characters of a text
# What run_identity of adbench.spec adds to fit_identity.
RUN_FIELDS = frozenset({"protocol", "metrics_version", "threshold_slices", "test_slices"})


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
    for name in identity.keys() - stated.keys() - {"files", "metrics_version"}:
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
    known = set(submission.content.splits.threshold)
    if validation is not None:
        for name, histogram in validation.items():
            if bool(histogram.n_positive) != (name == files.WITH):
                found.add("validation", why=f"{name}: {histogram.n_positive} lesion voxels")
            if name != files.WITH and name not in known:
                found.add("validation", why=f"{name} is none of splits.threshold")
    with_lesion = sum(bool(h.n_positive) for _, h in test.items())
    found.same("test.lesion_subjects", record.test.lesion_subjects, with_lesion)
    ill = record.threshold.lesion_subjects or 0
    stored = validation.subjects if validation is not None else []
    found.same("validation.healthy", len(set(stored) - {files.WITH}), record.threshold.subjects - ill)
    found.same("validation.ill", files.WITH in stored, ill > 0)
    for row in spatial.rows:
        if row.volume in test:
            _check_spatial(row, test[row.volume], spatial, found)
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


def _check_spatial(row: VolumeRow, scores: ScoreHistogram, spatial: SpatialAccumulator, found: Findings) -> None:
    """What the lesions and slices of a volume have in common with its scores, and with each other."""
    where = f"spatial.{row.volume}"
    found.same(f"{where}.lesion_sizes", sum(row.lesion_sizes), scores.n_positive, "lesion voxels of the histogram")
    found.same(
        f"{where}.slice_lesion", any(row.slice_lesion), bool(scores.n_positive), "lesion voxels of the histogram"
    )
    keys, _, _ = scores.counts()
    bins = scores.partition.of(np.array([key_of(score) for score in row.slice_max], np.int64))
    if len(bins) and len(keys) and bins.max() != keys.max():
        found.add(f"{where}.slice_max", max(row.slice_max), why="the highest score of the histogram is another one")
    for place, threshold in enumerate([*(spatial.thresholds[rule] for rule in spatial.rules), *spatial.froc]):
        true, false = scores.positives_at(threshold)
        if row.found[place] > true or row.found[place] + row.false_components[place] > true + false:
            found.add(
                f"{where}.found", row.found[place], why=f"only {true} lesion voxels of {true + false} are predicted"
            )
            break
    if "val" in spatial.rules:
        shared = sum(iou * size for iou, size in zip(row.lesion_ious, row.lesion_sizes, strict=True))
        if shared > scores.positives_at(spatial.thresholds["val"])[0] * (1 + 1e-9):
            found.add(f"{where}.lesion_ious", why="their lesions overlap in more voxels than are predicted")
    over = {rule: predict(np.array(row.slice_max), spatial.thresholds[rule]) for rule in spatial.rules}
    alarms = {rule: int(np.sum(above & ~np.array(row.slice_lesion, bool))) for rule, above in over.items()}
    found.same(f"{where}.alarms", row.alarms, alarms, "from slice_max")


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


def _plugins(record: Record, found: Findings) -> list[Metric]:
    """The metrics that the record was asked for. One that looked at maps left its sums; the code of others must be here."""
    chosen: list[Metric] = []
    for name in set(record.protocol.get("metrics", ())) - set(record.optional):
        found.add(f"optional.{name}", why="the protocol measures it, and nothing is said about it")
    for name, part in record.optional.items():
        number = record.metrics.get(name)
        if number is None:
            found.add(f"metrics.{name}", why="it is missing")
        elif name in registry.entries("metrics"):
            facts = spec(name)
            for fact in ("less_is_better", "oracle", "unit"):
                found.same(f"optional.{name}.{fact}", getattr(part, fact), getattr(facts, fact), "the metric says so")
            chosen.append(registry.load("metrics", name)())
        else:
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
