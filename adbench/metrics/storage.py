"""Histograms on disk: a plain ``.npz`` without pickle, read with suspicion."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from adbench.errors import UserError
from adbench.files import replacing

if TYPE_CHECKING:
    from adbench.metrics.histogram import SubjectHistograms

FORMAT = 1
_MAX_BYTES = 1 << 30  # more than this, unpacked, is not a histogram file of this package
_MEMBERS = {  # name: (dtype kinds, dimensions)
    "header": ("i", 1),  # format, mantissa_bits
    "subjects": ("u", 1),  # UTF-8, ids separated by a zero byte
    "exact": ("b", 1),  # (n,)
    "ends": ("i", 1),  # (n,) end of each subject's bins in the three vectors below
    "keys": ("i", 1),
    "positive": ("u", 1),
    "negative": ("u", 1),
}


def to_arrays(histograms: SubjectHistograms) -> dict[str, np.ndarray]:
    """``histograms`` as flat arrays, one after another the bins of all subjects; see :func:`from_arrays`."""
    counts = [histogram.counts() for _, histogram in histograms.items()]
    columns = [np.concatenate([c[i] for c in counts] or [np.zeros(0, np.int64)]) for i in range(3)]
    return {
        "header": np.array([FORMAT, histograms.mantissa_bits], np.int64),
        "subjects": np.frombuffer("\0".join(histograms.subjects).encode(), np.uint8),
        "exact": np.array([histogram.exact for _, histogram in histograms.items()], np.bool_),
        "ends": np.cumsum([len(c[0]) for c in counts], dtype=np.int64),
        "keys": columns[0].astype(np.int32),
        "positive": _smallest(columns[1]),
        "negative": _smallest(columns[2]),
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
    if len(header) != 2 or header[0] != FORMAT:
        raise ValueError(f"its header is {header}, not [{FORMAT}, mantissa bits]")
    bits = header[1]
    if not 0 <= bits <= 23:
        raise ValueError(f"{bits} mantissa bits")
    text = arrays["subjects"].tobytes().decode()  # UnicodeDecodeError is a ValueError
    subjects = text.split("\0") if text else []
    ends, keys, exact = arrays["ends"], arrays["keys"], arrays["exact"]
    positive, negative = arrays["positive"], arrays["negative"]
    if subjects != sorted(set(subjects)) or "" in subjects:
        raise ValueError("its subject ids are not distinct, sorted and non-empty")
    if not len(subjects) == len(ends) == len(exact):
        raise ValueError(f"{len(subjects)} subjects but {len(ends)} ends and {len(exact)} exactness flags")
    starts = np.concatenate([[0], ends])
    if (np.diff(starts) < 0).any() or starts[-1] != len(keys):
        raise ValueError("its subjects do not divide its bins")
    if not len(keys) == len(positive) == len(negative):
        raise ValueError(f"{len(keys)} keys but {len(positive)} and {len(negative)} counts")
    if len(keys):
        lowest, highest = int(keys.min()), int(keys.max())
        if lowest < -(0x7F800000 >> (23 - bits)) or highest >= (0x7F800000 + (1 << (23 - bits)) - 1) >> (23 - bits):
            raise ValueError("a key is not that of a finite score")
        if max(int(positive.max()), int(negative.max())) > 1 << 53:
            raise ValueError("a count is larger than 2^53")
        if ((positive == 0) & (negative == 0)).any():
            raise ValueError("a bin is empty")
    histograms = SubjectHistograms(bits)
    for subject, start, end, flag in zip(subjects, starts[:-1], ends, exact, strict=True):
        own = keys[start:end]
        if (np.diff(own.astype(np.int64)) <= 0).any():
            raise ValueError(f"the bins of subject {subject!r} are not in order")
        one = ScoreHistogram.from_counts(own, positive[start:end], negative[start:end], bits, bool(flag))
        histograms._by_subject[subject] = one
    return histograms


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
