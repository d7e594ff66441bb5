"""Histograms and numbers as short texts of a JSON file: steps between integers, bytes by significance, xz, base64."""

from __future__ import annotations

import base64
import lzma
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from adbench.errors import UserError
from adbench.metrics.histogram import FORMAT, SubjectHistograms

MAX_BINS = 1 << 23  # of all subjects together
MAX_SUBJECTS = 20_000
_PLANES = 4  # bytes of one stored integer
_XZ = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 0, "pb": 0, "dict_size": 1 << 23}]
_XZ_MEMORY = 64 << 20  # bytes that unpacking may need


class Part(BaseModel):
    """Values from a stranger: unknown fields and numbers that are not finite are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Packed(Part):
    """Ascending integers; see :func:`pack_ascending`."""

    count: Annotated[int, Field(ge=0, le=MAX_BINS)]
    data: str  # base64 of xz of the steps between them


class Counts(Part):
    """Histograms of some subjects; see :func:`pack_histograms`."""

    subjects: Annotated[list[str], Field(max_length=MAX_SUBJECTS)]
    keys: Packed  # of all bins
    cells: Packed  # the partition of the scores into bins: cells with joined scores
    edges: Packed  # and the edges within them
    bins: list[Annotated[int, Field(ge=0, le=MAX_BINS)]]  # of each subject
    data: str  # base64 of xz of three columns: steps between numbers of bins, lesion voxels, background voxels


def pack_values(values: np.ndarray) -> str:
    """(n,) numbers as text."""
    return base64.b64encode(values.astype("<f8").tobytes()).decode()


def unpack_values(text: str) -> np.ndarray:
    """(n,) float64: what :func:`pack_values` packed.

    Raises:
        ValueError: it is no base64, or holds no whole numbers of eight bytes.
    """
    return np.frombuffer(base64.b64decode(text, validate=True), "<f8").astype(np.float64)


def pack_histograms(histograms: SubjectHistograms) -> dict[str, Any]:
    """Histograms as JSON values.

    The keys of all subjects together are stored once; the bins of a subject are the steps between their numbers among
    them. The bytes of each column are stored by significance. xz then finds most of them equal.
    """
    arrays = histograms.to_arrays()
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
        "data": pack_bytes(planes),
    }


def pack_ascending(values: np.ndarray) -> dict[str, Any]:
    """(n,) ascending int64 as JSON values: the bytes of the steps between them, by significance."""
    steps = np.diff(values.astype(np.uint64), prepend=np.uint64(0))  # modulo 2^64, as they are added up again
    return {"count": len(values), "data": pack_bytes(steps.astype("<u8").view(np.uint8).reshape(-1, 8).T.tobytes())}


def unpack_ascending(packed: Packed) -> np.ndarray:
    """What :func:`pack_ascending` packed.

    Raises:
        ValueError: it does not unpack, or does not ascend.
    """
    planes = np.frombuffer(unpack_bytes(packed.data, 8 * packed.count), np.uint8)
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
    planes = np.frombuffer(unpack_bytes(counts.data, size), np.uint8)
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
    return SubjectHistograms.from_arrays(
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


def pack_bytes(data: bytes) -> str:
    """``data`` as base64 of xz."""
    return base64.b64encode(lzma.compress(data, lzma.FORMAT_XZ, filters=_XZ)).decode()


def unpack_bytes(text: str, most: int) -> bytes:
    """What :func:`_pack` packed; never more than ``most`` bytes are unpacked."""
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
    try:
        data = unpacker.decompress(base64.b64decode(text, validate=True), max_length=most + 1)
    except (lzma.LZMAError, EOFError) as error:
        raise ValueError(f"it does not unpack ({error})") from None
    if len(data) > most:
        raise ValueError(f"it unpacks to more than {most} bytes")
    if not unpacker.eof or unpacker.unused_data:
        raise ValueError("it does not end where it should")
    return data
