"""Histograms on disk: a plain ``.npz`` without pickle, read with suspicion."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from adbench.errors import UserError
from adbench.metrics.partition import Partition, contains
from adbench.metrics.score_bins import CELL_SHIFT, INFINITY
from adbench.utils.files import replacing

if TYPE_CHECKING:
    from adbench.metrics.histogram import SubjectHistograms

FORMAT = 2
_MAX_BYTES = 1 << 30  # more than this, unpacked, is not a histogram file of this package
_MEMBERS = {  # name: (dtype kinds, dimensions)
    "header": ("i", 1),  # format
    "subjects": ("u", 1),  # UTF-8, ids separated by a zero byte
    "ends": ("i", 1),  # (n,) end of each subject's bins in the three vectors below
    "keys": ("i", 1),
    "positive": ("u", 1),
    "negative": ("u", 1),
    "cells": ("i", 1),  # the partition: cells with joined scores
    "edges": ("i", 1),  # the keys within them, other than their lowest, at which a bin begins
}


def to_arrays(histograms: SubjectHistograms) -> dict[str, np.ndarray]:
    """``histograms`` as flat arrays, one after another the bins of all subjects; see :func:`from_arrays`."""
    counts = [histogram.counts() for _, histogram in histograms.items()]
    columns = [np.concatenate([c[i] for c in counts] or [np.zeros(0, np.int64)]) for i in range(3)]
    return {
        "header": np.array([FORMAT], np.int64),
        "subjects": np.frombuffer("\0".join(histograms.subjects).encode(), np.uint8),
        "ends": np.cumsum([len(c[0]) for c in counts], dtype=np.int64),
        "keys": columns[0],
        "positive": _smallest(columns[1]),
        "negative": _smallest(columns[2]),
        "cells": histograms.partition.cells,
        "edges": histograms.partition.inner_edges,
    }


def write_histograms(path: Path, histograms: SubjectHistograms) -> None:
    """Write ``histograms`` to ``path`` atomically; equal histograms give equal bytes."""
    arrays = to_arrays(histograms)
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy")  # its date is fixed, 1980-01-01
            member.compress_type = zipfile.ZIP_DEFLATED
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, array, allow_pickle=False)
            archive.writestr(member, buffer.getvalue(), compresslevel=1)


def read_histograms(path: Path) -> SubjectHistograms:
    """Read what :func:`write_histograms` wrote.

    Raises:
        UserError: the file is missing, damaged, of another format, or its arrays contradict each other.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {name: _member(archive, name, *expected) for name, expected in _MEMBERS.items()}
    except FileNotFoundError:
        raise UserError(f"There is no histogram file {path}.") from None
    except (OSError, EOFError, ValueError, KeyError, NotImplementedError, RuntimeError) as error:
        raise _damaged(path, str(error)) from None
    except (zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, str(error)) from None
    try:
        return from_arrays(arrays)
    except ValueError as error:
        raise _damaged(path, str(error)) from None


def from_arrays(arrays: dict[str, np.ndarray]) -> SubjectHistograms:
    """The histograms of which :func:`to_arrays` gave ``arrays``, checked as those of a stranger.

    Raises:
        ValueError: the arrays contradict each other, or say what no histogram can.
    """
    from adbench.metrics.histogram import ScoreHistogram, SubjectHistograms

    header = arrays["header"].tolist()
    if header != [FORMAT]:
        raise ValueError(
            f"its header is {header}, not [{FORMAT}]: an earlier version wrote it, or it is something else"
        )
    partition = _partition(arrays["cells"], arrays["edges"])
    text = arrays["subjects"].tobytes().decode()  # UnicodeDecodeError is a ValueError
    subjects = text.split("\0") if text else []
    ends, keys = arrays["ends"], arrays["keys"].astype(np.int64)
    positive, negative = arrays["positive"], arrays["negative"]
    if subjects != sorted(set(subjects)) or "" in subjects:
        raise ValueError("its subject ids are not distinct, sorted and non-empty")
    if len(subjects) != len(ends):
        raise ValueError(f"{len(subjects)} subjects but {len(ends)} ends")
    starts = np.concatenate([[0], ends])
    if (np.diff(starts) < 0).any() or starts[-1] != len(keys):
        raise ValueError("its subjects do not divide its bins")
    if not len(keys) == len(positive) == len(negative):
        raise ValueError(f"{len(keys)} keys but {len(positive)} and {len(negative)} counts")
    if len(keys):
        if int(keys.min()) <= -INFINITY or int(keys.max()) >= INFINITY:
            raise ValueError("a key is not that of a finite score")
        if (partition.of(keys) != keys).any():
            raise ValueError("a key lies within a bin and not at its beginning")
        if max(int(positive.max()), int(negative.max())) > 1 << 53:
            raise ValueError("a count is larger than 2^53")
        if ((positive == 0) & (negative == 0)).any():
            raise ValueError("a bin is empty")
    histograms = SubjectHistograms()
    histograms.partition = partition
    for subject, start, end in zip(subjects, starts[:-1], ends, strict=True):
        own = keys[start:end]
        if (own[1:] <= own[:-1]).any():
            raise ValueError(f"the bins of subject {subject!r} are not in order")
        one = ScoreHistogram.from_counts(own, positive[start:end], negative[start:end], partition)
        histograms._by_subject[subject] = one
    return histograms


def _partition(cells: np.ndarray, inner: np.ndarray) -> Partition:
    cells, inner = cells.astype(np.int64), inner.astype(np.int64)
    limit = INFINITY >> CELL_SHIFT
    if len(cells) and ((cells[1:] <= cells[:-1]).any() or cells[0] < -limit or cells[-1] >= limit):
        raise ValueError("its cells are not distinct, ascending and finite")
    if len(inner) and ((inner[1:] <= inner[:-1]).any() or not contains(cells, inner >> CELL_SHIFT).all()):
        raise ValueError("an edge lies in none of its cells, or the edges are not ascending")
    if (inner & ((1 << CELL_SHIFT) - 1) == 0).any():
        raise ValueError("an edge is the lowest of its cell")
    return Partition(cells, np.union1d(inner, cells << CELL_SHIFT))


def _member(archive: zipfile.ZipFile, name: str, kinds: str, dimensions: int) -> np.ndarray:
    info = archive.getinfo(f"{name}.npy")
    if info.file_size > _MAX_BYTES:
        raise ValueError(f"{name} unpacks to {info.file_size} bytes")
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"{name} is of .npy version {version}")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype.hasobject or dtype.kind not in kinds or len(shape) != dimensions:
            raise ValueError(f"{name} has type {dtype} and shape {shape}")
        body = file.read()
    if len(body) != dtype.itemsize * shape[0]:
        raise ValueError(f"{name} says {shape[0]} values and holds {len(body)} bytes")
    return np.frombuffer(body, dtype)


def _smallest(counts: np.ndarray) -> np.ndarray:
    return counts.astype(np.min_scalar_type(int(counts.max(initial=0))))


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path} is not a histogram file, or it is damaged: {why}. Make it again from the maps.")
