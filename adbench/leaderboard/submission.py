"""The file of one published result: a record with the counts that all of its numbers follow from.

::

    {
      "submission": 2,            version of this layout
      "digest": "…",              SHA-256 of the canonical JSON of everything else
      "record": {…},              record.json of the run
      "splits": {…},              subjects by role, splits.json of the run
      "histograms": {…},          test scores, subject by subject
      "validation": {…} or null,  validation scores of all subjects with a lesion, and of each without one
      "spatial": "…",             spatial.json of the run
      "ranking": {…} or null      the metric that ranks, without one subject each
    }

Thresholds depend on the sum over validation subjects with a lesion and on the healthy ones alone, so nothing more of
that split is kept. Such a file
comes from a stranger: its size, what it unpacks to, and every type and value are checked before anything is computed,
and nothing in it is ever executed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import lzma
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adbench.errors import UserError
from adbench.hashing import digest
from adbench.metrics.histogram import SubjectHistograms
from adbench.metrics.spatial import SpatialAccumulator
from adbench.metrics.storage import FORMAT, from_arrays, to_arrays
from adbench.results.record import SCHEMA, Record
from adbench.results.rundir import safe

VERSION = 2
MAX_FILE = 32 << 20  # bytes
MAX_BINS = 1 << 23  # of all subjects together
MAX_SUBJECTS = 20_000
_MAX_SPATIAL = 64 << 20  # bytes, unpacked
_PLANES = 4  # bytes of one stored integer
_XZ = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 0, "pb": 0, "dict_size": 1 << 23}]
_XZ_MEMORY = 64 << 20  # bytes that unpacking may need
WITH = "validation subjects with a lesion"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Packed(_Part):
    """Ascending integers; see :func:`pack_ascending`."""

    count: Annotated[int, Field(ge=0, le=MAX_BINS)]
    data: str  # base64 of xz of the steps between them


class Counts(_Part):
    """Histograms of some subjects; see :func:`pack_histograms`."""

    subjects: Annotated[list[str], Field(max_length=MAX_SUBJECTS)]
    keys: Packed  # of all bins
    cells: Packed  # the partition of the scores into bins: cells with joined scores
    edges: Packed  # and the edges within them
    bins: list[Annotated[int, Field(ge=0, le=MAX_BINS)]]  # of each subject
    data: str  # base64 of xz of three columns: steps between numbers of bins, lesion voxels, background voxels


class Ranking(_Part):
    """A metric without one subject each, so that methods are compared without opening a histogram."""

    metric: str
    left_out: str  # base64 of little-endian float64


class Splits(_Part):
    """Subjects by role."""

    train: list[str]
    val: list[str]
    threshold: list[str]
    test: list[str]


class Content(_Part):
    """Everything in the file."""

    submission: Literal[2]
    digest: str
    record: Record
    splits: Splits
    histograms: Counts
    validation: Counts | None
    spatial: str
    ranking: Ranking | None


_Count = Annotated[int, Field(ge=0, le=1 << 53)]
_Share = Annotated[list[float], Field(min_length=2, max_length=2)]


class _SpatialRow(_Part):
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


class _Spatial(_Part):
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
        """Validation scores: :data:`WITH` a lesion as one pseudo-subject, the others as they are; None without any."""
        return unpack_histograms(self.content.validation) if self.content.validation is not None else None

    @cached_property
    def spatial_bytes(self) -> bytes:
        """The bytes of spatial.json."""
        return _unpack(self.content.spatial, _MAX_SPATIAL)

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
        return np.frombuffer(_decoded(self.content.ranking.left_out), "<f8").astype(np.float64)

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
    raw: dict[str, Any] = {
        "submission": VERSION,
        "digest": "",
        "record": record,
        "splits": splits,
        "histograms": pack_histograms(histograms),
        "validation": None if validation is None else pack_histograms(for_thresholds(validation)),
        "spatial": _pack(spatial),
        "ranking": None if ranking is None else {"metric": ranking[0], "left_out": pack_values(ranking[1])},
    }
    raw["digest"] = own_digest(raw)
    return raw


def own_digest(raw: dict[str, Any]) -> str:
    """What ``digest`` must say."""
    return digest({key: value for key, value in raw.items() if key != "digest"})


def for_thresholds(validation: SubjectHistograms) -> SubjectHistograms:
    """The sum over validation subjects with a lesion, and each without one: all that a threshold depends on."""
    healthy = validation.subset([s for s, histogram in validation.items() if not histogram.n_positive])
    ill = [s for s in validation if s not in healthy]
    if ill:
        healthy._by_subject[WITH] = validation.subset(ill).pooled()
    return healthy


def pack_values(values: np.ndarray) -> str:
    """(n,) numbers as text."""
    return base64.b64encode(values.astype("<f8").tobytes()).decode()


def pack_histograms(histograms: SubjectHistograms) -> dict[str, Any]:
    """Histograms as JSON values.

    The keys of all subjects together are stored once; the bins of a subject are the steps between their numbers among
    them. The bytes of each column are stored by significance. xz then finds most of them equal.
    """
    arrays = to_arrays(histograms)
    keys, ends = arrays["keys"], arrays["ends"]
    every, place = np.unique(keys, return_inverse=True)
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    steps = np.diff(place, prepend=0)
    filled = starts[starts < ends]
    steps[filled] = place[filled]
    columns = [steps, arrays["positive"], arrays["negative"]]
    if max(int(column.max(initial=0)) for column in columns) >= 1 << (8 * _PLANES):
        raise UserError("A bin holds more than 2^32 voxels: such a histogram cannot be published.")
    planes = b"".join(c.astype("<u4").view(np.uint8).reshape(-1, _PLANES).T.tobytes() for c in columns)
    return {
        "subjects": histograms.subjects,
        "keys": pack_ascending(every),
        "cells": pack_ascending(arrays["cells"]),
        "edges": pack_ascending(arrays["edges"]),
        "bins": np.diff(ends, prepend=0).tolist(),
        "data": _pack(planes),
    }


def pack_ascending(values: np.ndarray) -> dict[str, Any]:
    """(n,) ascending int64 as JSON values: the bytes of the steps between them, by significance."""
    steps = np.diff(values.astype(np.uint64), prepend=np.uint64(0))  # modulo 2^64, as they are added up again
    return {"count": len(values), "data": _pack(steps.astype("<u8").view(np.uint8).reshape(-1, 8).T.tobytes())}


def unpack_ascending(packed: Packed) -> np.ndarray:
    """What :func:`pack_ascending` packed.

    Raises:
        ValueError: it does not unpack, or does not ascend.
    """
    planes = np.frombuffer(_unpack(packed.data, 8 * packed.count), np.uint8)
    if len(planes) != 8 * packed.count:
        raise ValueError(f"{packed.count} integers but {len(planes)} bytes")
    steps = np.ascontiguousarray(planes.reshape(8, packed.count).T).view("<u8")[:, 0].astype(np.uint64)
    values = np.cumsum(steps).astype(np.int64)
    if (values[1:] <= values[:-1]).any():
        raise ValueError("its integers do not ascend")
    return values


def unpack_histograms(counts: Counts) -> SubjectHistograms:
    """What :func:`pack_histograms` packed.

    Raises:
        ValueError: it does not unpack, or says what no histogram can.
    """
    bins = np.array(counts.bins, np.int64)
    total = int(bins.sum())
    if total > MAX_BINS:
        raise ValueError(f"{total} bins; a submission has at most {MAX_BINS}")
    size = 3 * _PLANES * total
    planes = np.frombuffer(_unpack(counts.data, size), np.uint8)
    if len(planes) != size:
        raise ValueError(f"{total} bins but {len(planes)} bytes instead of {size}")
    if any("\0" in subject for subject in counts.subjects):
        raise ValueError("a subject id holds a zero byte")
    steps, positive, negative = (
        np.ascontiguousarray(column.T).view("<u4")[:, 0].astype(np.int64)
        for column in planes.reshape(3, _PLANES, total)
    )
    every = unpack_ascending(counts.keys)
    ends = np.cumsum(bins)
    place = np.cumsum(steps)  # over all subjects; each begins anew
    before = np.concatenate([[0], place])[ends - bins]
    place -= np.repeat(before, bins)
    if place.max(initial=-1) >= len(every):
        raise ValueError("a bin has no key")
    return from_arrays(
        {
            "header": np.array([FORMAT]),
            "subjects": np.frombuffer("\0".join(counts.subjects).encode(), np.uint8),
            "ends": ends,
            "keys": every[place],
            "positive": positive,
            "negative": negative,
            "cells": unpack_ascending(counts.cells),
            "edges": unpack_ascending(counts.edges),
        }
    )


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
    if not isinstance(raw, dict) or raw.get("submission") != VERSION:
        found = raw.get("submission") if isinstance(raw, dict) else type(raw).__name__
        older = isinstance(found, int) and 0 < found < VERSION
        advice = ": make it again from its run with `adbench leaderboard submit`" if older else ""
        raise UserError(f"{path}: submission: layout {found!r}; this adbench reads layout {VERSION}{advice}.")
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


def _pack(data: bytes) -> str:
    return base64.b64encode(lzma.compress(data, lzma.FORMAT_XZ, filters=_XZ)).decode()


def _unpack(text: str, most: int) -> bytes:
    """What :func:`_pack` packed; never more than ``most`` bytes are unpacked."""
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
    try:
        data = unpacker.decompress(_decoded(text), max_length=most + 1)
    except (lzma.LZMAError, EOFError) as error:
        raise ValueError(f"it does not unpack ({error})") from None
    if len(data) > most:
        raise ValueError(f"it unpacks to more than {most} bytes")
    if not unpacker.eof or unpacker.unused_data:
        raise ValueError("it does not end where it should")
    return data


def _decoded(text: str) -> bytes:
    return base64.b64decode(text, validate=True)  # binascii.Error is a ValueError


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
