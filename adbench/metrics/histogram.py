"""Scores reduced to sparse per-subject counts: little memory whatever the number of voxels, exact to merge in any order."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adbench.errors import UserError
from adbench.metrics import score_bins as _keys
from adbench.metrics.counting import PIECE, added, checked, counted, grouped
from adbench.metrics.partition import Bins, Partition, coarser
from adbench.utils import limits
from adbench.utils.files import replacing

_PENDING_BINS = 1 << 18  # partial counts are folded together when they reach this many bins
MOST_BINS = 1 << 16  # of all subjects together, before scores are joined
_MORE_BINS = 1 << 15  # single scores in cells that were empty then, before they are joined too
MANY_BINS = 1 << 22  # the same in a run, for thresholds of single scores: about 100 MB, and 2 s a split
_FIRST_PIECE = 1 << 16  # voxels that are counted at a time while every score has a bin of its own
FORMAT = 2  # of the arrays in a file
_KINDS = {  # array -> kinds of its type
    "header": "i",  # FORMAT
    "subjects": "u",  # UTF-8, ids separated by a zero byte
    "ends": "i",  # (n,) end of each subject's bins in the three vectors below
    "keys": "i",
    "positive": "u",
    "negative": "u",
    "cells": "i",  # the partition: cells with joined scores
    "edges": "i",  # the keys within them, other than their lowest, at which a bin begins
}


class ScoreHistogram:
    """Lesion and background voxels of one subject (or one pool), counted by the bin of their score.

    A bin is named by the key of the lowest score in it (:mod:`adbench.metrics.score_bins`). The partition
    (:mod:`adbench.metrics.partition`) says which scores share a bin; at first none do.
    """

    def __init__(self, partition: Partition | None = None) -> None:
        self.partition = partition or Partition()
        """The bins; shared by all subjects of a set."""
        self._set: SubjectHistograms | None = None  # that joins the bins when there are too many
        self._limit = MOST_BINS
        self._bins: Bins = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64))
        self._pending: list[Bins] = []
        self._pending_bins = 0
        self._loose = 0  # bins that can become fewer
        self._joined: tuple[np.ndarray, np.ndarray] | None = None  # for which keys, and what

    @classmethod
    def from_counts(
        cls, keys: np.ndarray, positive: np.ndarray, negative: np.ndarray, partition: Partition | None = None
    ) -> ScoreHistogram:
        """A histogram of given counts.

        Args:
            keys: (K,) int64, ascending, distinct; each begins a bin of ``partition``.
            positive: (K,) lesion voxels by bin.
            negative: (K,) background voxels by bin; no bin is empty.
            partition: the bins; None when every key is a score of its own.
        """
        histogram = cls(partition)
        histogram._push(keys.astype(np.int64), positive.astype(np.int64), negative.astype(np.int64))
        return histogram

    @property
    def joined(self) -> np.ndarray:
        """(K,) bool: which of the bins may hold different scores."""
        keys = self.counts()[0]
        if self._joined is None or self._joined[0] is not keys:
            self._joined = keys, self.partition.joined(keys)
        return self._joined[1]

    @property
    def exact(self) -> bool:
        """Whether no bin may hold different scores: the counts then say all that the scores say."""
        return not self.joined.any()

    def update(self, scores: Any, labels: Any, case: str = "") -> None:
        """Count voxels.

        Args:
            scores: any shape, array or torch tensor, finite; higher is more anomalous. Floats of
                any width and integers keep their order.
            labels: same shape, bool or 0/1: whether the voxel belongs to a lesion.
            case: the subject, for messages.

        Raises:
            UserError: shapes differ, a label is not 0 or 1, a score is NaN or infinite, or float64 cannot hold it.
        """
        scores, labels = checked(scores, labels, f"case {case!r}" if case else "a case")
        end = 0
        while end < len(scores):
            start, end = end, end + (PIECE if len(self.partition.seen) else _FIRST_PIECE)
            self._push(*counted(scores[start:end], labels[start:end], self.partition))
            self._join_if_many()

    def _join_if_many(self) -> None:
        if self._set is not None:
            self._set._join_if_many()
        elif self._loose > self._limit:
            self.compact()
            self._limit = max(_MORE_BINS, 2 * self._loose)

    def merge(self, other: ScoreHistogram) -> None:
        """Add the counts of ``other``; any order of merges gives the same bits.

        Where the bins of the two differ, those that both can be told by are taken.
        """
        self.rebin(self.partition.meet(other.partition))
        keys, positive, negative = other.counts()
        self._push(*grouped(self.partition.of(keys), positive, negative))
        self._join_if_many()

    def rebin(self, partition: Partition) -> None:
        """Change to the bins of ``partition``, which are the present ones or unions of them."""
        if partition is self.partition:
            return
        keys, positive, negative = self.counts()  # folded by the old bins
        free = self.partition.free(keys)
        keys = keys.copy()
        keys[free] = partition.of(keys[free])
        self.partition = partition
        self._bins = grouped(keys, positive, negative)
        self._loose = _loose(self._bins[0], self.partition)

    def compact(self, thresholds: Iterable[float] = ()) -> None:
        """Join scores where it changes no number, see :func:`adbench.metrics.partition.coarser`."""
        self.rebin(coarser(self.counts(), [self.counts()], self.partition, thresholds))

    def counts(self) -> Bins:
        """(K,) int64 keys ascending, (K,) int64 lesion voxels, (K,) int64 background voxels; no bin is empty."""
        if self._pending:
            self._fold()
        return self._bins

    @property
    def n_positive(self) -> int:
        """Lesion voxels."""
        return int(self.counts()[1].sum())

    @property
    def n_negative(self) -> int:
        """Background voxels."""
        return int(self.counts()[2].sum())

    def positives_at(self, threshold: float) -> tuple[int, int]:
        """(true positives, false positives) among voxels with ``score >= threshold``.

        For a threshold within a bin of several scores, those of the bin count as below it.
        """
        keys, positive, negative = self.counts()
        first = np.searchsorted(keys, _keys.key_of(threshold))
        return int(positive[first:].sum()), int(negative[first:].sum())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ScoreHistogram):
            return NotImplemented
        return np.array_equal(self.joined, other.joined) and all(
            np.array_equal(a, b) for a, b in zip(self.counts(), other.counts(), strict=True)
        )

    __hash__ = None  # type: ignore[assignment]

    def _push(self, keys: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> None:
        self._loose += _loose(keys, self.partition)
        if not len(self._bins[0]) and not self._pending:
            self._bins = keys, positive, negative
            return
        self._pending.append((keys, positive, negative))
        self._pending_bins += len(keys)
        if self._pending_bins > max(_PENDING_BINS, len(self._bins[0])):
            self._fold()

    def _fold(self) -> None:
        parts = [part for part in (self._bins, *self._pending) if len(part[0])]
        self._pending, self._pending_bins = [], 0
        if len(parts) < 2:
            self._bins = parts[0] if parts else self._bins
            return
        self._bins = added(parts, self.partition)
        self._loose = _loose(self._bins[0], self.partition)


class SubjectHistograms(Mapping[str, ScoreHistogram]):
    """One :class:`ScoreHistogram` a subject, in the order of the subjects' ids whatever the order of arrival.

    All share one partition. Until ``most`` bins are occupied, every score has its own.

    Args:
        thresholds: scores at which something will be counted: they stay edges of bins.
        most: bins of all subjects together before scores are joined.
    """

    def __init__(self, thresholds: Iterable[float] = (), *, most: int = MOST_BINS) -> None:
        self.partition = Partition()
        self.thresholds = tuple(sorted(set(thresholds)))
        self._by_subject: dict[str, ScoreHistogram] = {}
        self._current: ScoreHistogram | None = None
        self._finished = 0  # loose bins of the subjects before the current one
        self._most = self._limit = most

    def update(self, subject: str, scores: Any, labels: Any) -> None:
        """Count voxels of ``subject``; see :meth:`ScoreHistogram.update`. An empty array registers the id."""
        histogram = self._of(subject)
        if self._current is not None and self._current is not histogram:
            self._current.counts()  # folds the partial counts of the subject just finished: memory stays flat
            self._finished += self._current._loose
        self._current = histogram
        histogram.update(scores, labels, case=subject)

    def merge(self, other: SubjectHistograms) -> None:
        """Add another set: subjects of both are added up, the others joined. Any order gives the same bits."""
        self.thresholds = tuple(sorted({*self.thresholds, *other.thresholds}))
        self._rebin(self.partition.meet(other.partition))
        for subject, histogram in other.items():
            keys, positive, negative = histogram.counts()
            self._of(subject)._push(*grouped(self.partition.of(keys), positive, negative))
        self._current, self._finished = None, sum(histogram._loose for histogram in self.values())
        self._join_if_many()

    def compact(self, thresholds: Iterable[float] = ()) -> None:
        """Join scores where it changes no number, unless there are few bins; see :func:`adbench.metrics.partition.coarser`.

        Args:
            thresholds: more scores that stay edges, besides those given at first.
        """
        self.thresholds = tuple(sorted({*self.thresholds, *thresholds}))
        if sum(len(histogram.counts()[0]) for histogram in self.values()) > MOST_BINS:
            self._join()

    def pooled(self) -> ScoreHistogram:
        """All subjects in one histogram."""
        parts = [histogram.counts() for histogram in self.values()]
        return ScoreHistogram.from_counts(*added(parts, self.partition), self.partition) if parts else ScoreHistogram()

    def subset(self, subjects: list[str]) -> SubjectHistograms:
        """The given subjects only (their histograms are shared, not copied)."""
        chosen = SubjectHistograms(self.thresholds)
        chosen.partition = self.partition
        chosen._by_subject = {subject: self[subject] for subject in subjects}
        return chosen

    @property
    def subjects(self) -> list[str]:
        """Subject ids, sorted."""
        return sorted(self._by_subject)

    def __len__(self) -> int:
        return len(self._by_subject)

    def __iter__(self) -> Iterator[str]:
        return iter(self.subjects)

    def __getitem__(self, subject: str) -> ScoreHistogram:
        if subject not in self._by_subject:
            raise KeyError(f"no subject {subject!r} among {len(self)}")
        return self._by_subject[subject]

    def to_npz(self, path: str | Path) -> None:
        """Write atomically to ``path``; equal histograms give equal bytes."""
        _write_arrays(Path(path), self.to_arrays())

    @classmethod
    def from_npz(cls, path: str | Path) -> SubjectHistograms:
        """Read what :meth:`to_npz` wrote; everything is checked, because the file may come from anywhere.

        Raises:
            UserError: the file is missing, damaged, or says something impossible.
        """
        arrays = _read_arrays(Path(path))
        try:
            return cls.from_arrays(arrays)
        except ValueError as error:
            raise _damaged(Path(path), error) from None

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Flat arrays, one after another the bins of all subjects; see :meth:`from_arrays`."""
        counts = [histogram.counts() for histogram in self.values()]
        keys, positive, negative = (np.concatenate([c[i] for c in counts] or [np.zeros(0, np.int64)]) for i in range(3))
        return {
            "header": np.array([FORMAT], np.int64),
            "subjects": np.frombuffer("\0".join(self.subjects).encode(), np.uint8),
            "ends": np.cumsum([len(c[0]) for c in counts], dtype=np.int64),
            "keys": keys,
            "positive": positive.astype(np.min_scalar_type(int(positive.max(initial=0)))),
            "negative": negative.astype(np.min_scalar_type(int(negative.max(initial=0)))),
            "cells": self.partition.cells,
            "edges": self.partition.inner_edges,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> SubjectHistograms:
        """The histograms of which :meth:`to_arrays` gave ``arrays``; everything is checked.

        Raises:
            ValueError: the arrays contradict each other, or say what no histogram can.
        """
        header = arrays["header"].tolist()
        if header != [FORMAT]:
            raise ValueError(
                f"its header is {header}, not [{FORMAT}]: an earlier version wrote it, or it is something else"
            )
        histograms = cls()
        histograms.partition = partition = Partition.from_arrays(arrays["cells"], arrays["edges"])
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
            if int(keys.min()) <= -_keys.INFINITY or int(keys.max()) >= _keys.INFINITY:
                raise ValueError("a key is not that of a finite score")
            if (partition.of(keys) != keys).any():
                raise ValueError("a key lies within a bin and not at its beginning")
            if max(int(positive.max()), int(negative.max())) > 1 << 53:
                raise ValueError("a count is larger than 2^53")
            if ((positive == 0) & (negative == 0)).any():
                raise ValueError("a bin is empty")
        for subject, start, end in zip(subjects, starts[:-1], ends, strict=True):
            own = keys[start:end]
            if (own[1:] <= own[:-1]).any():
                raise ValueError(f"the bins of subject {subject!r} are not in order")
            histograms._by_subject[subject] = ScoreHistogram.from_counts(
                own, positive[start:end], negative[start:end], partition
            )
        return histograms

    def _of(self, subject: str) -> ScoreHistogram:
        if not isinstance(subject, str) or not subject:
            raise UserError(f"A subject id is {subject!r}: give a non-empty string.")
        if subject not in self._by_subject:
            self._by_subject[subject] = ScoreHistogram(self.partition)
            self._by_subject[subject]._set = self
        return self._by_subject[subject]

    def _join_if_many(self) -> None:
        if self._finished + (self._current._loose if self._current is not None else 0) > self._limit:
            self._join()

    def _join(self) -> None:
        members = list(self.values())
        counts = [member.counts() for member in members]
        self._rebin(coarser(added(counts, self.partition), counts, self.partition, self.thresholds))
        self._finished = sum(member._loose for member in members if member is not self._current)
        self._limit = max(self._most, _MORE_BINS, 2 * sum(member._loose for member in members))

    def _rebin(self, partition: Partition) -> None:
        self.partition = partition
        for histogram in self._by_subject.values():
            histogram.rebin(partition)


def _loose(keys: np.ndarray, partition: Partition) -> int:
    """How many of the bins may still be joined: single scores that do not begin a cell."""
    begins = (keys & ((1 << _keys.CELL_SHIFT) - 1)) == 0
    if not len(partition.cells):
        return len(keys) - int(np.count_nonzero(begins))
    inner = keys[~begins]
    if not len(inner):
        return 0
    return len(inner) - int(np.count_nonzero(partition.kinds(inner >> _keys.CELL_SHIFT)))


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write 1-D ``arrays`` to ``path`` atomically; equal arrays give equal bytes."""
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy")  # its date is fixed, 1980-01-01
            member.compress_type = zipfile.ZIP_DEFLATED
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, array, allow_pickle=False)
            archive.writestr(member, buffer.getvalue(), compresslevel=1)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """What :func:`_write_arrays` wrote: a plain ``.npz`` of 1-D arrays of whole numbers, without pickle."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
            limits.check(path, "holds arrays of", unpacked, limits.ARRAY_BYTES)
            return {name: _member(archive, name, kind) for name, kind in _KINDS.items()}
    except FileNotFoundError:
        raise UserError(f"There is no histogram file {path}.") from None
    except (OSError, EOFError, ValueError, KeyError, NotImplementedError, RuntimeError) as error:
        raise _damaged(path, error) from None
    except (zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> UserError:
    why = " ".join(str(error).split())[:200]
    return UserError(f"{path} is not a histogram file, or it is damaged: {why}. Make it again from the maps.")


def _member(archive: zipfile.ZipFile, name: str, kinds: str) -> np.ndarray:
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"{name} is of .npy version {version}")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype.hasobject or dtype.kind not in kinds or len(shape) != 1:
            raise ValueError(f"{name} has type {dtype} and shape {shape}")
        body = file.read()  # not read_array, which believes the shape and takes the memory
    if len(body) != dtype.itemsize * shape[0]:
        raise ValueError(f"{name} says {shape[0]} values and holds {len(body)} bytes")
    return np.frombuffer(body, dtype)
