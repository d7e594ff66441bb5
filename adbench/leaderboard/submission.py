"""The file of one published result: a record with the counts that all of its numbers follow from.

::

    {
      "submission": 3,            version of this layout
      "digest": "…",              SHA-256 of the canonical JSON of everything else
      "record": {…},              record.json of the run
      "splits": {…},              subjects by role, splits.json of the run
      "histograms": {…},          test scores, subject by subject
      "validation": {…} or null,  validation scores of all subjects with a lesion together, and of all without one
      "healthy_scores": "…",      of each of the latter, the score that at most 1 % of its voxels reach
      "spatial": "…",             spatial.json of the run
      "ranking": {…} or null      the metric that ranks, without one subject each
    }

Thresholds depend on nothing more of the validation split (:class:`adbench.metrics.evaluate.ThresholdCounts`). Such a file
comes from a stranger: its size, what it unpacks to, and every type and value are checked before anything is computed,
and nothing in it is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from adbench.errors import UserError
from adbench.leaderboard.encoding import (
    Counts,
    Part,
    pack_bytes,
    pack_histograms,
    pack_values,
    unpack_bytes,
    unpack_histograms,
    unpack_values,
)
from adbench.metrics.histogram import SubjectHistograms
from adbench.metrics.spatial import SpatialAccumulator
from adbench.metrics.thresholds import ThresholdCounts
from adbench.results.record import SCHEMA, Record
from adbench.results.rundir import safe
from adbench.utils.hashing import digest

VERSION = 3
READ = (2, 3)  # layouts that can be read; layout 2 keeps the counts of each healthy validation subject
MAX_FILE = 32 << 20  # bytes
_MAX_SPATIAL = 64 << 20  # bytes, unpacked
WITH = "validation subjects with a lesion"
WITHOUT = "validation subjects without a lesion"


class Ranking(Part):
    """A metric without one subject each, so that methods are compared without opening a histogram."""

    metric: str
    left_out: str  # base64 of little-endian float64


class Splits(Part):
    """Subjects by role."""

    train: list[str]
    val: list[str]
    threshold: list[str]
    test: list[str]


class Content(Part):
    """Everything in the file."""

    submission: Literal[2, 3]
    digest: str
    record: Record
    splits: Splits
    histograms: Counts
    validation: Counts | None
    healthy_scores: str | None = None  # layout 3: base64 of little-endian float64
    spatial: str
    ranking: Ranking | None


_Count = Annotated[int, Field(ge=0, le=1 << 53)]
_Share = Annotated[list[float], Field(min_length=2, max_length=2)]


class _SpatialRow(Part):
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
    measures: dict[str, _Share]


class _Spatial(Part):
    thresholds: dict[str, float]
    froc: list[float]
    rows: list[_SpatialRow]


@dataclass(frozen=True)
class Submission:
    """A submission whose types are right; whether its numbers are is for :mod:`adbench.leaderboard.verify` to say.

    Attributes:
        content: what is in it, typed.
        path: the file it was read from, or the run it was packed from.
        data: the bytes of the file.
    """

    content: Content
    path: Path
    data: bytes = field(repr=False)

    @cached_property
    def raw(self) -> dict[str, Any]:
        """The JSON value, in its own order."""
        return _parsed(self.data, self.path)

    @property
    def record(self) -> Record:
        """The record."""
        return self.content.record

    @cached_property
    def test(self) -> SubjectHistograms:
        """Test scores; a ``ValueError`` when the stored counts are impossible."""
        return unpack_histograms(self.content.histograms)

    @cached_property
    def validation(self) -> SubjectHistograms | None:
        """Validation scores, as :class:`ThresholdCounts` or, in layout 2, of each healthy subject; None without any.

        Raises:
            ValueError: the stored counts are impossible.
        """
        if self.content.validation is None:
            return None
        counts = unpack_histograms(self.content.validation)
        if self.content.submission == 2:
            return counts
        if not set(counts) <= {WITH, WITHOUT}:
            raise ValueError(f"the validation subjects are {counts.subjects}")
        ill, healthy = (counts[name] if name in counts else None for name in (WITH, WITHOUT))  # noqa: SIM401
        return ThresholdCounts(
            ill,
            healthy,
            unpack_values(self.content.healthy_scores or "").tolist(),
            names=(WITH, WITHOUT),
        )

    @cached_property
    def spatial_bytes(self) -> bytes:
        """The bytes of spatial.json."""
        return unpack_bytes(self.content.spatial, _MAX_SPATIAL)

    @cached_property
    def spatial(self) -> SpatialAccumulator:
        """The spatial counts.

        Raises:
            ValueError: they do not unpack, or are of other types or lengths than they must be.
        """
        return _spatial(self.spatial_bytes)

    @cached_property
    def left_out(self) -> np.ndarray | None:
        """(n,) float64: the ranking metric without one test subject each, NaN where undefined; None when it is undefined."""
        if self.content.ranking is None:
            return None
        return unpack_values(self.content.ranking.left_out)

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
    """The name of the file of ``record`` in a leaderboard; it says what is in it and can only name a plain file."""
    parts = (
        record.test.name,
        record.test.modality.lower(),
        record.method.name,
        record.method.preset,
        f"seed{record.seed}",
        record.run_key[:10],
    )
    return "-".join(safe(part)[:40] for part in parts).lstrip(".") + ".json"


def compose(
    record: dict[str, Any],
    splits: dict[str, Any],
    histograms: SubjectHistograms,
    validation: SubjectHistograms | None,
    spatial: bytes,
    ranking: tuple[str, np.ndarray] | None,
) -> dict[str, Any]:
    """The JSON value of a submission.

    Args:
        record: content of record.json.
        splits: content of splits.json.
        histograms: test scores.
        validation: validation scores.
        spatial: bytes of spatial.json.
        ranking: metric and its (n,) values without one subject each, or None when it is undefined.
    """
    kept = None if validation is None else ThresholdCounts.of(validation, names=(WITH, WITHOUT))
    raw: dict[str, Any] = {
        "submission": VERSION,
        "digest": "",
        "record": record,
        "splits": splits,
        "histograms": pack_histograms(histograms),
        "validation": None if kept is None else pack_histograms(kept),
        "healthy_scores": None if kept is None else pack_values(np.array(kept.healthy_scores)),
        "spatial": pack_bytes(spatial),
        "ranking": None if ranking is None else {"metric": ranking[0], "left_out": pack_values(ranking[1])},
    }
    raw["digest"] = own_digest(raw)
    return raw


def own_digest(raw: dict[str, Any]) -> str:
    """What ``digest`` must say."""
    return digest({key: value for key, value in raw.items() if key != "digest"})


def read(path: Path) -> Submission:
    """The submission in ``path``.

    Raises:
        UserError: no such file, too large, not JSON, of another layout or record schema, or a value of the wrong type.
    """
    return parse(_bytes(path), Path(path))


def parse(data: bytes, path: Path) -> Submission:
    """The submission in ``data``; see :func:`read`.

    Args:
        data: content of the file.
        path: for messages.
    """
    raw = _parsed(data, path)
    submission = Submission(_typed(data, path), path, data)
    submission.__dict__["raw"] = raw
    return submission


def glance(path: Path) -> Submission:
    """The submission in ``path`` for a quick look: types are checked, oddities of its JSON and its digest are not."""
    data = _bytes(path)
    return Submission(_typed(data, Path(path)), Path(path), data)


def _bytes(path: Path) -> bytes:
    path = Path(path)
    try:
        if not path.is_file():
            raise UserError(f"There is no file {path}.")
        with open(path, "rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
    if len(data) > MAX_FILE:
        raise UserError(f"{path} has more than {MAX_FILE} bytes: that is no submission.")
    return data


def _parsed(data: bytes, path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_distinct,
            parse_constant=_refuse,
            parse_float=_finite,
            parse_int=_small,
        )
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a readable submission: {error}.") from None
    if not isinstance(raw, dict) or raw.get("submission") not in READ:
        found = raw.get("submission") if isinstance(raw, dict) else type(raw).__name__
        older = isinstance(found, int) and 0 < found < READ[0]
        advice = ": make it again from its run with `adbench leaderboard submit`" if older else ""
        raise UserError(
            f"{path}: submission: layout {found!r}; this adbench reads layouts {READ[0]} to {VERSION}{advice}."
        )
    record = raw.get("record")
    if not isinstance(record, dict) or record.get("schema_version") != SCHEMA:
        found = record.get("schema_version") if isinstance(record, dict) else type(record).__name__
        raise UserError(f"{path}: record.schema_version: {found!r}; this adbench reads schema {SCHEMA}.")
    return raw


def _typed(data: bytes, path: Path) -> Content:
    try:
        return Content.model_validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise UserError(f"{path}: {where}: {first['msg']}.") from None


def _spatial(data: bytes) -> SpatialAccumulator:
    try:
        typed = _Spatial.model_validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    try:
        spatial = SpatialAccumulator.from_values(typed.model_dump(), "the file")
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


def sha256(data: bytes) -> str:
    """SHA-256 (hex) of ``data``."""
    return hashlib.sha256(data).hexdigest()


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for index, (key, _) in enumerate(pairs) if key in dict(pairs[:index]))
        raise ValueError(f"the key {twice!r} occurs twice")
    return found


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is not finite")
    return value


def _small(text: str) -> int:
    if len(text) > 19:
        raise ValueError(f"the number {text[:40]} is too large")
    return int(text)
