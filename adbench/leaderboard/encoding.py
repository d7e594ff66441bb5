"""Histograms and numbers as short texts of a JSON file: steps between integers, bytes by significance, xz, base64."""

from __future__ import annotations

import base64
import lzma
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from adbench.errors import UserError
from adbench.metrics.histogram import FORMAT, SubjectHistograms
from adbench.utils.limits import BINS, SUBJECTS

_WIDTH = 4  # bytes of one stored count
_XZ = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 0, "pb": 0, "dict_size": 1 << 23}]
_XZ_MEMORY = 64 << 20  # bytes that decompression may use


class Strict(BaseModel):
    """Values from an untrusted file: unknown fields and numbers that are not finite are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class EncodedIntegers(Strict):
    """Ascending integers; see :func:`encode_ascending`."""

    count: Annotated[int, Field(ge=0, le=BINS)]
    data: str  # base64 of xz of the steps between them


class EncodedHistograms(Strict):
    """Histograms of some subjects; see :func:`encode_histograms`."""

    subjects: Annotated[list[str], Field(max_length=SUBJECTS)]
    keys: EncodedIntegers  # of all bins
    cells: EncodedIntegers  # the partition of the scores into bins: cells with joined scores
    edges: EncodedIntegers  # and the edges within them
    bins: list[Annotated[int, Field(ge=0, le=BINS)]]  # of each subject
    data: str  # base64 of xz of three columns: steps between numbers of bins, lesion voxels, background voxels


def encode_values(values: np.ndarray) -> str:
    """(n,) numbers as base64 of little-endian float64."""
    return base64.b64encode(values.astype("<f8").tobytes()).decode()


def decode_values(text: str) -> np.ndarray:
    """(n,) float64 of :func:`encode_values`.

    Raises:
        ValueError: it is no base64, or its length is no multiple of eight bytes.
    """
    return np.frombuffer(base64.b64decode(text, validate=True), "<f8").astype(np.float64)


def encode_histograms(histograms: SubjectHistograms) -> dict[str, Any]:
    """Histograms as JSON values, see :class:`EncodedHistograms`.

    The keys of all subjects together are stored once; the bins of a subject are the steps between their positions among
    these. The bytes of each column are stored by significance, so that xz finds most of them equal.

    Raises:
        UserError: a bin holds more than 2^32 voxels.
    """
    arrays = histograms.to_arrays()
    keys, ends = arrays["keys"], arrays["ends"]
    every, place = np.unique(keys, return_inverse=True)
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    steps = np.diff(place, prepend=0)
    filled = starts[starts < ends]
    steps[filled] = place[filled]
    columns = [steps, arrays["positive"], arrays["negative"]]
    if max(int(column.max(initial=0)) for column in columns) >= 1 << (8 * _WIDTH):
        raise UserError("A bin holds more than 2^32 voxels: such a histogram cannot be published.")
    return {
        "subjects": histograms.subjects,
        "keys": encode_ascending(every),
        "cells": encode_ascending(arrays["cells"]),
        "edges": encode_ascending(arrays["edges"]),
        "bins": np.diff(ends, prepend=0).tolist(),
        "data": encode_bytes(b"".join(_by_significance(column, _WIDTH) for column in columns)),
    }


def decode_histograms(encoded: EncodedHistograms) -> SubjectHistograms:
    """The histograms of :func:`encode_histograms`.

    Raises:
        ValueError: it cannot be decompressed, or the counts are impossible.
    """
    bins = np.array(encoded.bins, np.int64)
    total = int(bins.sum())
    if total > BINS:
        raise ValueError(f"{total} bins; a submission has at most {BINS}")
    if any("\0" in subject for subject in encoded.subjects):
        raise ValueError("a subject id holds a zero byte")
    steps, positive, negative = _integers(encoded.data, _WIDTH, 3, total).astype(np.int64)
    every = decode_ascending(encoded.keys)
    ends = np.cumsum(bins)
    place = np.cumsum(steps)  # over all subjects; each starts at zero again
    before = np.concatenate([[0], place])[ends - bins]
    place -= np.repeat(before, bins)
    if place.max(initial=-1) >= len(every):
        raise ValueError("a bin has no key")
    return SubjectHistograms.from_arrays(
        {
            "header": np.array([FORMAT]),
            "subjects": np.frombuffer("\0".join(encoded.subjects).encode(), np.uint8),
            "ends": ends,
            "keys": every[place],
            "positive": positive,
            "negative": negative,
            "cells": decode_ascending(encoded.cells),
            "edges": decode_ascending(encoded.edges),
        }
    )


def encode_ascending(values: np.ndarray) -> dict[str, Any]:
    """(n,) ascending int64 as JSON values, see :class:`EncodedIntegers`."""
    steps = np.diff(values.astype(np.uint64), prepend=np.uint64(0))  # modulo 2^64, like the sum that decodes them
    return {"count": len(values), "data": encode_bytes(_by_significance(steps, 8))}


def decode_ascending(encoded: EncodedIntegers) -> np.ndarray:
    """(n,) int64 of :func:`encode_ascending`.

    Raises:
        ValueError: it cannot be decompressed, or does not ascend.
    """
    (steps,) = _integers(encoded.data, 8, 1, encoded.count)
    values = np.cumsum(steps).astype(np.int64)
    if (values[1:] <= values[:-1]).any():
        raise ValueError("its integers do not ascend")
    return values


def encode_bytes(data: bytes) -> str:
    """``data`` as base64 of xz."""
    return base64.b64encode(lzma.compress(data, lzma.FORMAT_XZ, filters=_XZ)).decode()


def decode_bytes(text: str, most: int) -> bytes:
    """The bytes of :func:`encode_bytes`; never more than ``most`` are decompressed.

    Raises:
        ValueError: it is damaged, larger than ``most``, or followed by other data.
    """
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
    try:
        data = decompressor.decompress(base64.b64decode(text, validate=True), max_length=most + 1)
    except (lzma.LZMAError, EOFError) as error:
        raise ValueError(f"it does not unpack ({error})") from None
    if len(data) > most:
        raise ValueError(f"it unpacks to more than {most} bytes")
    if not decompressor.eof or decompressor.unused_data:
        raise ValueError("it does not end where it should")
    return data


def _by_significance(values: np.ndarray, width: int) -> bytes:
    """(n,) integers of ``width`` bytes: the lowest byte of all, then the next."""
    return values.astype(f"<u{width}").view(np.uint8).reshape(-1, width).T.tobytes()


def _integers(text: str, width: int, columns: int, count: int) -> np.ndarray:
    """(columns, count) unsigned integers of :func:`_by_significance`, each column by itself."""
    size = columns * width * count
    data = np.frombuffer(decode_bytes(text, size), np.uint8)
    if len(data) != size:
        raise ValueError(f"{count} integers but {len(data)} bytes instead of {size}")
    by_value = np.ascontiguousarray(data.reshape(columns, width, count).transpose(0, 2, 1))
    return by_value.view(f"<u{width}")[..., 0]
