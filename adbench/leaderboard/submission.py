"""The file of one published result: a record with the counts that all of its numbers follow from.

::

    {
      "submission": 3,            version of this layout
      "digest": "…",              SHA-256 of the canonical JSON of everything else
      "submitted": {…},           who submits it, its licence and links; results merged straight from a run may lack it
      "record": {…},              record.json of the run
      "splits": {…},              subjects by role, splits.json of the run
      "histograms": {…},          test scores, subject by subject
      "validation": {…} or null,  validation scores of all subjects with a lesion together, and of all without one
      "healthy_scores": "…",      of each of the latter, the score that at most 1 % of its voxels reach
      "spatial": "…",             spatial.json of the run
      "ranking": {…} or null      the metric that ranks, without one subject each
    }

Thresholds depend on nothing more of the validation split (:class:`adbench.metrics.thresholds.ThresholdCounts`). Such a
file is untrusted: its size, what it decompresses to, and every type and value are checked before anything is computed,
and nothing in it is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from adbench.config import registry
from adbench.config.attribution import Licence, Link, first_error, is_seen
from adbench.errors import UserError
from adbench.leaderboard.encoding import (
    EncodedHistograms,
    Strict,
    decode_bytes,
    decode_histograms,
    decode_values,
    encode_bytes,
    encode_histograms,
    encode_values,
)
from adbench.metrics import bootstrap, jackknife
from adbench.metrics.histogram import SubjectHistograms
from adbench.metrics.spatial import SpatialAccumulator
from adbench.metrics.spec import RANKED_BY, SPECS
from adbench.metrics.thresholds import ThresholdCounts
from adbench.results import record as records
from adbench.results.record import SCHEMA, Record
from adbench.results.result import Result
from adbench.results.rundir import SPLITS, safe
from adbench.utils.hashing import digest
from adbench.utils.limits import (
    GROUPINGS,
    GROUPS,
    RECORD_BYTES,
    RECORD_VALUES,
    SPATIAL_BYTES,
    SPATIAL_VALUES,
    exceeded,
)
from adbench.utils.plain_files import check_json, parse_json, read_json, read_plain

VERSION = 3
SPATIAL = "spatial.json"
JSON_TABLE = "table.json"  # of a leaderboard, beside its records
WITH = "validation subjects with a lesion"
WITHOUT = "validation subjects without a lesion"
_GLANCE_BYTES = 1 << 20  # a larger file is read with all care: so many unknown keys fill the memory with messages
_ROUNDING = 1e-6  # by which a sum may leave the range of its metric


class Ranking(Strict):
    """A metric without one subject each, so that methods are compared without opening a histogram."""

    metric: str
    left_out: str  # base64 of little-endian float64


class Splits(Strict):
    """Subjects by role."""

    train: list[str]
    val: list[str]
    threshold: list[str]
    test: list[str]


class Submitted(Strict):
    """The submitter of a result, as stated.

    Attributes:
        submitter: a person or group.
        licence: under which the file is given, an identifier such as CC-BY-4.0.
        code: https address of the code that made it; "" for none.
        paper: https address of the paper that describes the method; "" for none.
    """

    submitter: Annotated[str, Field(max_length=200)]
    licence: Licence
    code: Link = ""
    paper: Link = ""


FROM_MAPS = "scored from maps"  # the origin of a method that was not run here; no distribution has such a name


class Content(Strict):
    """Everything in the file."""

    submission: Literal[3]
    digest: str
    submitted: Submitted | None = None
    record: Record
    splits: Splits
    histograms: EncodedHistograms
    validation: EncodedHistograms | None
    healthy_scores: str | None  # base64 of little-endian float64
    spatial: str
    ranking: Ranking | None


_Count = Annotated[int, Field(ge=0, le=1 << 53)]


class _SpatialRow(Strict):
    """One volume of spatial.json, with the types it must have."""

    volume: str
    subject: str
    groups: dict[str, str]
    slice_lesion: list[bool]
    slice_max: list[float]
    slice_top: list[float]
    lesion_sizes: list[_Count]
    lesion_ious: list[Annotated[float, Field(ge=0, le=1)]]
    found: list[_Count]
    false_components: list[_Count]
    alarms: dict[str, _Count]
    recon_l1: float | None
    recon_ssim: float | None
    measures: dict[str, Annotated[list[float], Field(min_length=2, max_length=2)]]


class _Spatial(Strict):
    thresholds: dict[str, float]
    froc: list[float]
    free: Annotated[list[float], Field(default_factory=list, max_length=SPATIAL_VALUES)]
    rows: list[_SpatialRow]


@dataclass(frozen=True)
class Submission:
    """A submission whose types are right; whether its numbers are is for :mod:`adbench.leaderboard.verify` to say.

    Attributes:
        content: what is in it, typed.
        path: the file it was read from, or the run it was packed from.
        raw: the JSON value in its own order; empty after a :func:`glance`.
    """

    content: Content
    path: Path
    raw: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def record(self) -> Record:
        """The record."""
        return self.content.record

    @cached_property
    def test(self) -> SubjectHistograms:
        """Test scores; a ``ValueError`` when the stored counts are impossible."""
        return decode_histograms(self.content.histograms)

    @cached_property
    def validation(self) -> ThresholdCounts | None:
        """Validation scores; None without any.

        Raises:
            ValueError: the stored counts are impossible.
        """
        if self.content.validation is None:
            return None
        counts = decode_histograms(self.content.validation)
        if not set(counts) <= {WITH, WITHOUT}:
            raise ValueError(f"the validation subjects are {counts.subjects}")
        ill, healthy = (counts[name] if name in counts else None for name in (WITH, WITHOUT))  # noqa: SIM401
        scores = decode_values(self.content.healthy_scores or "").tolist()
        return ThresholdCounts(ill, healthy, scores, names=(WITH, WITHOUT))

    @cached_property
    def spatial_bytes(self) -> bytes:
        """The bytes of spatial.json."""
        return decode_bytes(self.content.spatial, SPATIAL_BYTES)

    @cached_property
    def spatial(self) -> SpatialAccumulator:
        """The spatial counts.

        Raises:
            ValueError: they cannot be decompressed, or have other types, lengths, ranges or metrics than they must have.
        """
        spatial = _spatial(self.spatial_bytes)
        _check_measures(spatial, self.record)
        return spatial

    @cached_property
    def left_out(self) -> np.ndarray | None:
        """(n,) float64: the ranking metric without one test subject each, NaN where undefined; None when it is undefined."""
        return None if self.content.ranking is None else decode_values(self.content.ranking.left_out)

    @property
    def text(self) -> str:
        """The file: one line a part, and one a field of the record, so that two versions can be compared."""
        lines = []
        for key, value in self.raw.items():
            if key == "record":
                fields = ",\n".join(f'  "{name}": {_compact(part)}' for name, part in value.items())
                lines.append(f' "{key}": {{\n{fields}\n }}')
            else:
                lines.append(f' "{key}": {_compact(value)}')
        return "{\n" + ",\n".join(lines) + "\n}\n"


def file_name(record: Record) -> str:
    """The name of the file of ``record`` in a leaderboard; it describes the run and can only name a plain file."""
    test, method = record.test, record.method
    parts = (test.name, test.modality.lower(), method.name, method.preset, f"seed{record.seed}", record.run_key[:10])
    return "-".join(safe(part)[:40] for part in parts).lstrip(".") + ".json"


def published_files(root: Path) -> list[Path]:
    """The results of the leaderboards in ``root``, or of the one that it is, in path order."""
    return sorted([*Path(root).glob("records/*.json"), *Path(root).glob("*/records/*.json")])


def own_digest(raw: Mapping[str, Any]) -> str:
    """The correct value of the field ``digest`` of a submission."""
    return digest({key: value for key, value in raw.items() if key != "digest"})


def ranking_left_out(test: SubjectHistograms, subject_of: Mapping[str, str]) -> np.ndarray:
    """(n,) the ranking metric without one subject each; ``subject_of`` says whose each volume is."""
    return bootstrap.pooled(test, jackknife.weights_of([subject_of[volume] for volume in test]))[RANKED_BY]


def said(submitter: str, licence: str, code: str = "", paper: str = "") -> Submitted:
    """Statements of a submitter.

    Raises:
        UserError: no name or licence, a name of several lines or with invisible characters, a licence of several words, or a
            link that is no https address.
    """
    missing = [option for option, text in (("submitter", submitter), ("licence", licence)) if not text.strip()]
    if missing:
        needed = " and ".join(f"a {name}" for name in missing)
        options = " and ".join(_EXAMPLE[name] for name in missing)
        raise UserError(f"A submission has {needed}: give {options}.")
    if not is_seen(submitter.strip()):
        raise UserError(f"--submitter {submitter.strip()!a}: write it in one line of printable characters.")
    try:
        return Submitted(submitter=submitter.strip(), licence=licence.strip(), code=code.strip(), paper=paper.strip())
    except ValidationError as error:
        raise UserError(f"--{first_error(error)}.") from None


_EXAMPLE = {"submitter": '--submitter "A. Researcher, Some University"', "licence": "--licence CC-BY-4.0 (say)"}


def pack(run: Path, submitted: Submitted | None = None) -> Submission:
    """The run in a folder as a submission.

    Raises:
        UserError: no such run, a file that differs from its hash in the record, or a run without its lists of subjects.
    """
    result = Result(run)
    record = result.record
    if SPLITS not in record.files:
        raise UserError(f"{run} was made before runs kept their lists of subjects: run it again with --force.")
    files = {name: result.file(name) for name in ("histograms.npz", SPATIAL, SPLITS)}
    test = SubjectHistograms.from_npz(files["histograms.npz"])
    kept, left_out = None, None
    if "val_histograms.npz" in record.files:
        validation = SubjectHistograms.from_npz(result.file("val_histograms.npz"))
        kept = ThresholdCounts.of(validation, names=(WITH, WITHOUT))
    if record.metrics[RANKED_BY].value is not None:
        left_out = ranking_left_out(test, result.spatial.subject_of)
    record_json = read_json(result.folder / records.RECORD, RECORD_BYTES)
    splits = read_json(files[SPLITS], RECORD_BYTES)
    spatial = read_plain(files[SPATIAL], SPATIAL_BYTES)
    return sealed(result.folder, record_json, splits, (test, kept), spatial, left_out, submitted)


def sealed(
    path: Path,
    record: Mapping[str, Any],
    splits: Mapping[str, Any],
    counts: tuple[SubjectHistograms, ThresholdCounts | None],
    spatial: bytes,
    left_out: np.ndarray | None,
    submitted: Submitted | None,
) -> Submission:
    """A submission of these parts, see the top of this file.

    Args:
        path: for messages.
        record: as JSON values.
        splits: subjects by role.
        counts: of the test split, and of the validation split where there is one.
        spatial: content of ``spatial.json``.
        left_out: of :func:`ranking_left_out`; None where the ranking metric is undefined.
        submitted: who submits it.
    """
    test, kept = counts
    raw: dict[str, Any] = {
        "submission": VERSION,
        "digest": "",
        **({} if submitted is None else {"submitted": submitted.model_dump()}),
        "record": record,
        "splits": splits,
        "histograms": encode_histograms(test),
        "validation": None if kept is None else encode_histograms(kept),
        "healthy_scores": None if kept is None else encode_values(np.array(kept.healthy_scores)),
        "spatial": encode_bytes(spatial),
        "ranking": None if left_out is None else {"metric": RANKED_BY, "left_out": encode_values(left_out)},
    }
    raw["digest"] = own_digest(raw)
    return parse(json.dumps(raw).encode(), path)


def read_or_pack(path: Path) -> Submission:
    """The submission in a file, or the run in a folder as one; see :func:`read_submission` and :func:`pack`."""
    return pack(path) if Path(path).is_dir() else read_submission(path)


def read_submission(path: Path) -> Submission:
    """The submission in ``path``.

    Raises:
        UserError: no such file, too large, not JSON, of another layout or record schema, or a value of the wrong type.
    """
    return parse(_bytes(path), Path(path))


def glance(path: Path) -> Submission:
    """The submission in ``path`` for a quick look: types are checked; duplicate keys and the digest are not."""
    data = _bytes(path)
    if f'"submission": {VERSION},'.encode() not in data[:64] or len(data) > _GLANCE_BYTES:
        return parse(data, Path(path))  # of another layout, or written by another program: this says what it is
    try:
        check_json(data, RECORD_VALUES)
    except ValueError as error:
        raise UserError(f"{path} is not a readable submission: {error}.") from None
    return Submission(_typed(data, Path(path)), Path(path))


def parse(data: bytes, path: Path) -> Submission:
    """The submission in ``data``; see :func:`read_submission`."""
    raw = _json(data, path)
    return Submission(_typed(data, path), path, raw)


def _bytes(path: Path) -> bytes:
    try:
        return read_plain(path, RECORD_BYTES)
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.") from None


def _json(data: bytes, path: Path) -> dict[str, Any]:
    try:
        raw = parse_json(data, RECORD_VALUES)
    except ValueError as error:
        raise UserError(f"{path} is not a readable submission: {error}.") from None
    layout = raw.get("submission") if isinstance(raw, dict) else type(raw).__name__
    if layout != VERSION:
        older = isinstance(layout, int) and 0 < layout < VERSION
        advice = ": make it again from its run with `adbench leaderboard submit`" if older else ""
        raise UserError(f"{path}: submission: layout {layout!r:.60}; this adbench reads layout {VERSION}{advice}.")
    record = raw.get("record")
    if not isinstance(record, dict) or record.get("schema_version") != SCHEMA:
        found = record.get("schema_version") if isinstance(record, dict) else type(record).__name__
        raise UserError(f"{path}: record.schema_version: {found!r:.60}; this adbench reads schema {SCHEMA}.")
    return dict(raw)


def _typed(data: bytes, path: Path) -> Content:
    try:
        return Content.model_validate_json(data, strict=True)
    except ValidationError as error:
        raise UserError(f"{path}: {first_error(error)}.") from None


def _spatial(data: bytes) -> SpatialAccumulator:
    check_json(data, SPATIAL_VALUES)
    try:
        typed = _Spatial.model_validate_json(data, strict=True)
        spatial = SpatialAccumulator.from_values({**vars(typed), "rows": [vars(row) for row in typed.rows]}, "the file")
    except ValidationError as error:
        raise ValueError(first_error(error)) from None
    except UserError as error:
        raise ValueError(str(error)) from None
    if [row.volume for row in typed.rows] != [row.volume for row in spatial.rows]:
        raise ValueError("its volumes are not distinct and sorted")
    count, val = len(spatial.rules) + len(typed.froc), "val" in typed.thresholds
    for row in typed.rows:
        slices, lesions = len(row.slice_lesion), len(row.lesion_sizes)
        if (len(row.slice_max), len(row.slice_top), len(row.lesion_ious)) != (slices, slices, lesions * val):
            raise ValueError(f"the lists of volume {row.volume!r} differ in length")
        if (len(row.found), len(row.false_components), list(row.alarms)) != (count, count, spatial.rules):
            raise ValueError(f"volume {row.volume!r} is not counted at each threshold")
        if max(row.found, default=0) > lesions:
            raise ValueError(f"volume {row.volume!r} has {lesions} lesions and {max(row.found)} that are found")
        if val and row.found[0] != sum(iou > 0 for iou in row.lesion_ious):
            raise ValueError(f"the lesions of volume {row.volume!r} that are found are not those with an overlap")
    return spatial


def _check_measures(spatial: SpatialAccumulator, record: Record) -> None:
    """Refuse sums of what was not asked for, sums that no map gives, and more groups than anybody compares.

    Raises:
        ValueError: names the metric or the groups.
    """
    groups = [len(set(own.values())) for own in spatial.groups.values()]
    for found, limit in ((len(groups), GROUPINGS), (sum(groups), GROUPS)):
        if problem := exceeded("it", "divides its subjects into", found, limit):
            raise ValueError(problem)
    for name in sorted({name for row in spatial.rows for name in row.measures}):
        if name not in record.optional or not _from_maps(name):
            raise ValueError(f"it has sums of {name!r}, which is no metric of its own that this run was asked for")
    for row in spatial.rows:
        own = {name: (value, 1.0) for name in ("recon_l1", "recon_ssim") if (value := getattr(row, name)) is not None}
        for name, (above, below) in {**own, **row.measures}.items():
            low, high = SPECS[name].bounds if name in SPECS else (-math.inf, math.inf)
            least = low * below if math.isfinite(low) else -math.inf
            most = high * below if math.isfinite(high) else math.inf
            slack = _ROUNDING * max(1.0, below)
            if below < 0 or not least - slack <= above <= most + slack:
                why = f"{name} lies between {low:g} and {high:g}" if name in SPECS else "a divisor is not negative"
                raise ValueError(f"volume {row.volume!r} has {above:g} by {below:g} as {name}: {why}")


def _from_maps(name: str) -> bool:
    """Whether a metric leaves sums: it is asked for by name and looks at maps, as far as that is known here."""
    if name in SPECS and SPECS[name].group != "optional":
        return False
    entry = registry.entries("metrics").get(name)
    return entry is None or bool(registry.status(entry)) or bool(registry.load("metrics", name).needs_maps)


def sha256(data: bytes) -> str:
    """SHA-256 (hex) of ``data``."""
    return hashlib.sha256(data).hexdigest()


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
