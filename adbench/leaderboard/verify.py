"""Every number of a published result, computed again from its counts; and all else in it that can be held against a rule.

What this shows: the numbers follow from the counts, the counts belong to the subjects, the keys to what they are made
of. What it cannot show is that the counts came out of the method: for that, anyone may repeat the run, and its keys and
seeds say how.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from adbench import protocols, registry
from adbench.datasets.names import person, shared_patients
from adbench.errors import UserError
from adbench.hashing import digest
from adbench.leaderboard import submission as files
from adbench.leaderboard.submission import Submission
from adbench.metrics import bootstrap
from adbench.metrics.base import Metric, Subject
from adbench.metrics.evaluate import Evaluation, choose_thresholds, evaluate
from adbench.metrics.spatial import froc_thresholds
from adbench.results.record import RECORD, Record
from adbench.results.rundir import SPLITS, safe
from adbench.spec import METRICS_VERSION

RANKED_BY = "auprc"
SPATIAL = "spatial.json"
NUMBERS = ("metrics", "strata", "prevalence", "thresholds", "brackets", "subjects")  # of a record, from its counts
CLOSE = {"rel_tol": 1e-9, "abs_tol": 1e-12}  # the order of a sum differs between machines
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
        stored, expected, why = shown(self)
        values = f"stored {stored}, recomputed {expected}" if expected else f"stored {stored}" if stored else ""
        return f"{self.field}: {values}{f' ({why})' if values and why else why}"


def shown(finding: Finding) -> tuple[str, str, str]:
    """(stored, recomputed, remark) of a finding as texts; empty where only words say what is wrong."""
    if finding.why and finding.expected is None:
        return "" if finding.stored is None else _shown(finding.stored), "", finding.why
    return _shown(finding.stored), _shown(finding.expected), finding.why


def verify(paths: Sequence[Path], progress: Callable[[int, int], None] | None = None) -> tuple[int, list[Finding]]:
    """Verify submissions, whole leaderboards, or runs.

    Args:
        paths: files, folders of leaderboards, or run folders.
        progress: called with how many are done, and of how many.

    Returns:
        (how many results were looked at, what is wrong).

    Raises:
        UserError: there is nothing at a path.
    """
    examined = examine_all([target for path in paths for target in targets(path)], progress)
    findings = [finding for one in examined for finding in one.findings]
    return len(examined), findings + across([one.facts for one in examined if one.facts is not None])


def targets(path: Path) -> list[Path]:
    """The submissions (files) and runs (folders) at ``path``.

    Raises:
        UserError: there are none.
    """
    path = Path(path)
    if path.is_file():
        return [path.parent if path.name == RECORD else path]
    if not path.is_dir():
        raise UserError(f"There is nothing at {path}: name a submission, a folder of leaderboards or a run.")
    found = sorted([*path.glob("records/*.json"), *path.glob("*/records/*.json")])
    found = found or sorted(record.parent for record in path.rglob(RECORD))
    if not found:
        raise UserError(f"There is no result at {path}: neither records/*.json of a leaderboard nor a run.")
    return found


def load(path: Path) -> Submission:
    """The submission in ``path``, or the run there as one."""
    if path.is_dir():
        from adbench.leaderboard.submit import pack

        return pack(path)
    return files.read(path)


@dataclass(frozen=True)
class Facts:
    """What must agree between the results of a leaderboard."""

    file: str
    run_key: str
    test_digest: str
    train_digest: str
    cohort: str
    train_subjects: str
    numbers: str


@dataclass(frozen=True)
class Examined:
    """One result, looked at by itself.

    Attributes:
        path: the file, or the folder of the run.
        findings: what is wrong.
        facts: what must agree with others; None when it cannot be read.
        name: of its file in a leaderboard.
        text: of that file.
    """

    path: Path
    findings: list[Finding]
    facts: Facts | None = None
    name: str = ""
    text: str = ""


def examine_all(paths: Sequence[Path], progress: Callable[[int, int], None] | None = None) -> list[Examined]:
    """:func:`examine` each path, on all cores when there are many.

    Args:
        paths: of :func:`targets`.
        progress: called with how many are done, and of how many.
    """
    workers = min(os.cpu_count() or 1, len(paths))
    examined: list[Examined] = []

    def collect(results: Iterable[Examined]) -> list[Examined]:
        for one in results:
            examined.append(one)
            if progress:
                progress(len(examined), len(paths))
        return examined

    if workers < 2 or len(paths) < 4:
        return collect(map(examine, paths))
    with ProcessPoolExecutor(workers) as pool:
        return collect(pool.map(examine, paths))


def examine(path: Path) -> Examined:
    """One submission or run by itself."""
    try:
        submission = load(path)
    except UserError as error:
        return Examined(path, [Finding(str(path), "file", why=str(error))])
    findings = check(submission)
    if path.is_file():
        findings += place(path, submission.record)
    return Examined(path, findings, facts_of(submission), files.file_name(submission.record), submission.text)


def facts_of(submission: Submission) -> Facts:
    """What must agree between ``submission`` and others."""
    record = submission.record
    return Facts(
        str(submission.path),
        record.run_key,
        record.test.digest,
        record.train.digest,
        digest([[row.get(name) for name in ("subject", "brain_voxels", "lesion_voxels")] for row in record.subjects]),
        digest(submission.content.splits.train),
        numbers(record),
    )


def numbers(record: Record) -> str:
    """Hash of all that the counts decide; two results of one run key must agree in it."""
    content = record.model_dump(mode="json")
    return digest({name: content[name] for name in NUMBERS})


def across(facts: Sequence[Facts]) -> list[Finding]:
    """What the results of a leaderboard contradict each other in."""
    findings = []
    for key, what, why in (
        ("run_key", "numbers", "the same run_key has other numbers in {}"),
        ("test_digest", "cohort", "the same test slices have other subjects or voxels in {}"),
        ("train_digest", "train_subjects", "the same training slices have other subjects in {}"),
    ):
        first: dict[str, Facts] = {}
        for one in facts:
            other = first.setdefault(getattr(one, key), one)
            field = {"run_key": "run_key", "test_digest": "subjects", "train_digest": "splits.train"}[key]
            if getattr(other, what) != getattr(one, what):
                findings.append(Finding(one.file, field, why=why.format(other.file)))
            elif key == "run_key" and other is not one:
                findings.append(Finding(one.file, field, why=f"the same run is also in {other.file}"))
    return findings


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
    for name in record.files:
        if name != safe(name) or name.startswith("."):
            found.add(f"files.{name}", why="it is not the plain name of a file beside the record")
    for group in ("timing", "memory"):
        for name, value in getattr(record, group).items():
            if not (math.isfinite(value) and value >= 0):
                found.add(f"{group}.{name}", value, why="it must be a number that is not negative")
    for name in ("fit", "score_per_slice"):
        if name not in record.timing:
            found.add(f"timing.{name}", why="it is missing")
    if record.method.parameters < 0:
        found.add("method.parameters", record.method.parameters, why="a method has no negative number of weights")
    try:
        datetime.fromisoformat(record.created)
    except ValueError:
        found.add("created", record.created, why="it is no ISO 8601 time")


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
    found.same(
        "identity.metrics_version", identity.get("metrics_version"), METRICS_VERSION, "numbers of other definitions"
    )
    found.same("train.modality", record.train.modality, record.test.modality)
    found.same("threshold.modality", record.threshold.modality, record.test.modality)
    found.same("threshold.name", record.threshold.name, record.test.name)


def _check_protocol(record: Record, found: Findings) -> None:
    name = record.protocol.get("name")
    if name not in protocols.PROTOCOLS:
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
    import json

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
        ("ranking.draws", lambda: submission.draws),
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
        if row.subject in test and sum(row.lesion_sizes) != test[row.subject].n_positive:
            found.same(f"spatial.{row.subject}.lesion_sizes", sum(row.lesion_sizes), test[row.subject].n_positive)
    slices = sum(len(row.slice_lesion) for row in spatial.rows)
    if slices > record.test.slices:
        found.same("test.slices", record.test.slices, slices, "spatial counts")
    thresholds = choose_thresholds(validation)[0]
    froc = froc_thresholds(validation) if validation is not None else []
    found.same("spatial.thresholds", spatial.thresholds, thresholds)
    if spatial.froc != froc:
        found.add("spatial.froc", why="its thresholds are not those that the validation scores give")
        return
    metrics = _plugins(record, found)
    spatial.metrics = tuple(metric for metric in metrics if metric.needs_maps)
    evaluation = evaluate(
        test,
        validation,
        replicates=int(record.protocol["replicates"]),
        level=float(record.protocol["level"]),
        spatial=spatial,
        metrics=metrics,
        strata=True,
    )
    _compare(record, evaluation, found)
    _check_ranking(submission, evaluation, found)


def _compare(record: Record, evaluation: Evaluation, found: Findings) -> None:
    stored = record.model_dump(mode="json")
    recomputed = evaluation.as_dict()
    for name in NUMBERS:
        found.same(name, stored[name], recomputed[name])
    for note in evaluation.notes:
        if note not in record.notes:
            found.add("notes", why=f"this one is missing: {note}")


def _check_ranking(submission: Submission, evaluation: Evaluation, found: Findings) -> None:
    stored, draws = submission.content.ranking, ranking_draws(submission.test, evaluation, submission.record)
    if (stored is None) != (draws is None):
        found.add("ranking", why=f"{RANKED_BY} is {'undefined' if draws is None else 'defined'}")
    if stored is None or draws is None or submission.draws is None:
        return
    found.same("ranking.metric", stored.metric, RANKED_BY)
    if len(submission.draws) != len(draws) or not np.allclose(
        submission.draws, draws, rtol=1e-6, atol=0, equal_nan=True
    ):
        found.add("ranking.draws", why="they are not the replicates that the histograms give")


def ranking_draws(test: Any, evaluation: Any, record: Record) -> np.ndarray | None:
    """(R,) replicates of the ranking metric; None when it is undefined."""
    if evaluation.metrics[RANKED_BY].value is None:
        return None
    return bootstrap.pooled(test, bootstrap.weights(len(test), int(record.protocol["replicates"]), 0))[RANKED_BY]


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


def place(path: Path, record: Record) -> list[Finding]:
    """A file in a leaderboard must lie where its record says."""
    if path.parent.name != "records":
        return []
    findings = []
    name, folder = files.file_name(record), safe(str(record.protocol.get("name")))
    if path.name != name:
        findings.append(Finding(str(path), "file", path.name, name, "the name that its record gives"))
    if path.absolute().parent.parent.name != folder:
        findings.append(Finding(str(path), "protocol.name", path.absolute().parent.parent.name, folder, "its folder"))
    if path.is_symlink():
        findings.append(Finding(str(path), "file", why="it is a link, not a file"))
    return findings


def as_rows(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """Findings for JSON."""
    return [{k: repr(v) if isinstance(v, _Absent) else v for k, v in asdict(finding).items()} for finding in findings]
