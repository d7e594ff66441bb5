"""The record of one run: the one definition of what is stored and what each field means."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from adbench.config.attribution import first_error
from adbench.config.cell import TunedFrom
from adbench.config.registry import metric_spec
from adbench.config.shared_fit import Weights
from adbench.config.source import source_digest
from adbench.errors import UserError
from adbench.metrics.spec import SPECS, MetricSpec
from adbench.utils.files import write_json
from adbench.utils.limits import RECORD_BYTES
from adbench.utils.plain_files import read_json

SCHEMA = 1
RECORD = "record.json"
MAX_SECONDS = 1e9  # 32 years
MAX_COUNT = 10**12  # of weights, of slices
CONFORMANCE = ("", "passed", "failed", "not run")  # "": made before records said it


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Number(_Part):
    """A metric with its interval over test subjects."""

    value: float | None  # None: undefined, see reason
    low: float | None  # ends of the interval over subjects, at the level of the protocol
    high: float | None
    n: int  # lesion-bearing subjects; for a metric that needs no lesion, those that it is taken over
    oracle: bool = False  # True: a threshold was chosen on the test split
    reason: str = ""  # why value, or the interval, is None
    n_all: int = 0  # subjects of the split
    spread: float = (
        0.0  # width of the bracket of the single scores; above .001 marked ≈, and the interval is wider by it
    )


class MetricPart(_Part):
    """A metric that was measured because it was asked for: what tables of machines without it need to know."""

    source: str  # hash of its source files
    heading: str  # of its column
    definition: str  # one line
    less_is_better: bool
    oracle: bool
    unit: str  # "" for none


class MethodPart(_Part):
    """The method of a run."""

    name: str
    version: str
    origin: str  # "built-in", or the distribution that provides it
    source: str  # hash of the method's source files
    preset: str
    params: dict[str, Any]  # every parameter, defaults included
    parameters: int  # number of weights
    conformance: str = ""  # whether this source passed `adbench test` on the machine of the run, one of CONFORMANCE


class DataPart(_Part):
    """The slices of a run in one role."""

    name: str
    modality: str
    digest: str  # hash of ids, pixels and masks that were used
    subjects: int
    slices: int
    lesion_subjects: int | None = None  # None: no lesion mask was looked at (training)
    params: dict[str, Any] = {}
    grid: tuple[int, int]  # (H, W) in pixels
    mm: tuple[float, float] | None = None  # from row to row and from column to column, median over cases; None: unknown
    store_remarks: int = 0  # number of remarks in the store's manifest (slices left out, and why)


class Record(_Part):
    """The result of one run. Written last, atomically: a run without it did not happen."""

    schema_version: int = SCHEMA
    run_key: str  # hash of identity
    fit_key: str  # hash of the part of identity that decides the fit
    identity: dict[str, Any]  # everything that decides the numbers
    created: str  # UTC, ISO 8601
    method: MethodPart
    train: DataPart  # healthy slices learned from
    val: DataPart | None  # healthy slices that chose the checkpoint
    threshold: DataPart  # labelled validation slices that chose the threshold
    test: DataPart
    protocol: dict[str, Any]
    post: dict[str, Any] = {}  # what was done to the maps of the method before they were counted
    seed: int
    metrics: dict[str, Number]
    optional: dict[str, MetricPart] = {}  # of the metrics, those that are not measured in every run
    strata: dict[str, dict[str, dict[str, Number]]]  # grouping (lesion_size, site) -> group -> metrics of its subjects
    prevalence: float  # share of lesion voxels among the test brain voxels: the chance level of auprc
    brackets: dict[str, tuple[float, float]]  # where the number of the unbinned scores provably lies
    thresholds: dict[str, float]  # by rule ("val", "best", ...), in units of the map
    subjects: list[dict[str, Any]]  # one row a test subject
    notes: list[str]  # remarks of the evaluation
    fit: dict[str, Any]  # steps, best checkpoint, loss curves, how each stage was computed
    timing: dict[str, float]  # seconds by phase (measure: those that scoring waited for the counting); score_per_slice
    memory: dict[str, float]  # peak in GiB: host, gpu
    provenance: dict[str, Any]  # versions, platform, device, git revision, how networks were called in scoring
    files: dict[str, str]  # files beside the record -> SHA-256
    tuned_from: TunedFrom | None = None  # the search that chose method.params, if one did
    weights: Weights | None = None  # whose they are, when they were fitted elsewhere


def facts(name: str, *records: Record) -> MetricSpec:
    """Facts about the metric ``name``: built in, as one of ``records`` says, or as the plug-in here says."""
    if name in SPECS:
        return SPECS[name]
    part = next((record.optional[name] for record in records if name in record.optional), None)
    if part is None:
        return metric_spec(name)
    return MetricSpec(
        name,
        part.heading,
        part.definition,
        "subject mean",
        less_is_better=part.less_is_better,
        oracle=part.oracle,
        unit=part.unit,
        low=float("-inf"),
        high=None,
        group="optional",
    )


def metric_part(name: str) -> MetricPart:
    """The entry of the installed metric ``name`` in a record."""
    about = metric_spec(name)
    return MetricPart(
        source=source_digest("metrics", name),
        heading=about.heading,
        definition=about.definition,
        less_is_better=about.less_is_better,
        oracle=about.oracle,
        unit=about.unit,
    )


def missing_metrics(record: Record, wanted: Iterable[str]) -> list[str]:
    """Those of ``wanted``, additional metrics by name, that ``record`` lacks or has from another source than here."""
    return [
        name
        for name in wanted
        if name not in record.optional or record.optional[name].source != source_digest("metrics", name)
    ]


def asked(*records: Record) -> tuple[str, ...]:
    """The metrics that some of ``records`` were asked for beside those of every run."""
    return tuple(dict.fromkeys(name for record in records for name in record.optional))


def lacking(record: Record) -> str:
    """What every table needs and the record lacks, or has such as no run can, as "field: why"; empty when all is there."""
    for name in ("name", "version"):
        if not isinstance(record.protocol.get(name), str):
            return f"protocol.{name}: it is missing"
    level = record.protocol.get("level")
    if not isinstance(level, float) or not 0 < level < 1:
        return f"protocol.level: {level!r} is not between 0 and 1"
    for name in ("fit", "score_per_slice"):
        if name not in record.timing:
            return f"timing.{name}: it is missing"
    for name, value in record.timing.items():
        if not 0 <= value <= MAX_SECONDS:
            return f"timing.{name}: {value} is not a number of seconds"
    if not (record.test.subjects > 0 and record.subjects):
        return f"{'subjects' if record.test.subjects > 0 else 'test.subjects'}: no subject was tested"
    return _impossible(record)


def _impossible(record: Record) -> str:
    """The first count that cannot be one, as :func:`lacking` says it."""
    counts: dict[str, tuple[int, int]] = {"method.parameters": (record.method.parameters, MAX_COUNT)}
    parts = {"train": record.train, "val": record.val, "threshold": record.threshold, "test": record.test}
    for role, part in parts.items():
        if part is not None:
            counts[f"{role}.slices"] = part.slices, MAX_COUNT
            counts[f"{role}.subjects"] = part.subjects, part.slices
            counts[f"{role}.lesion_subjects"] = part.lesion_subjects or 0, part.subjects
            counts[f"{role}.store_remarks"] = part.store_remarks, MAX_COUNT
    groups = {f"strata.{name}.{group}": own for name, of in record.strata.items() for group, own in of.items()}
    for where, metrics in (("metrics", record.metrics), *groups.items()):
        for name, number in metrics.items():
            counts[f"{where}.{name}.n"] = number.n, record.test.subjects
            counts[f"{where}.{name}.n_all"] = number.n_all, record.test.subjects
    for where, (count, most) in counts.items():
        if not 0 <= count <= most:
            return f"{where}: {count} is not between 0 and {most}"
    if not 0 <= record.prevalence <= 1:
        return f"prevalence: {record.prevalence} is not between 0 and 1"
    return ""


def optimiser_steps(record: Record) -> int:
    """Optimiser steps of the training; 0 for a method that takes none or does not say."""
    count = record.fit.get("steps")
    return count if isinstance(count, int) and not isinstance(count, bool) else 0


def named_contents(record: Record) -> list[list[str]]:
    """Hashes of the files that the parameters of the method name, and of those that each member of an ensemble names."""
    members = record.identity.get("members")
    parts = [record.identity, *(members if isinstance(members, list) else [])]
    return [part.get("files") or [] for part in parts if isinstance(part, dict)]


def write(record: Record, folder: Path) -> None:
    """Write ``record`` into ``folder`` atomically."""
    write_json(folder / RECORD, record.model_dump(mode="json"))


def read_record(path: Path) -> Record:
    """Read a record. It may come from an unknown author: size, schema and every type are checked.

    Raises:
        UserError: not a record, of another schema, damaged, or larger than a record may be.
    """
    path = Path(path)
    path = path / RECORD if path.is_dir() else path
    try:
        content = read_json(path, RECORD_BYTES)
        if not isinstance(content, dict) or content.get("schema_version") != SCHEMA:
            found = content.get("schema_version") if isinstance(content, dict) else type(content).__name__
            raise UserError(f"{path} has record schema {found!r:.60}; this adbench reads schema {SCHEMA}.")
        record = Record(**content)
    except FileNotFoundError:
        raise UserError(f"There is no record at {path}.") from None
    except ValidationError as error:
        raise UserError(f"{path} is not a valid record: {first_error(error)}.") from None
    if problem := lacking(record):
        raise UserError(f"{path} is not a valid record: {problem}.")
    return record
