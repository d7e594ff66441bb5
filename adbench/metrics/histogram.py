"""Scores reduced to sparse per-subject counts: little memory whatever the number of voxels, exact to merge in any order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from adbench.errors import UserError
from adbench.metrics import keys as _keys
from adbench.metrics.bins import Partition, coarser, contains

_PENDING_BINS = 1 << 18  # partial counts are folded together when they reach this many bins
_DENSE_BINS = 1 << 22  # widest key range that is counted in a dense vector
MOST_BINS = 1 << 18  # of all subjects together, before scores are joined
MANY_BINS = 1 << 22  # the same where maps take longer to make than to count: about 100 MB
FEW_BINS = 1 << 16  # what :meth:`SubjectHistograms.compact` leaves alone
Bins = tuple[np.ndarray, np.ndarray, np.ndarray]


class ScoreHistogram:
    """Lesion and background voxels of one subject (or one pool), counted by the bin of their score.

    A bin is named by the key of the lowest score in it (:mod:`adbench.metrics.keys`). Which scores share a bin is said by
    the partition (:mod:`adbench.metrics.bins`); at first none do.
    """

    def __init__(self, partition: Partition | None = None) -> None:
        self.partition = partition or Partition()
        """The bins; shared by all subjects of a set."""
        self._alone = partition is None  # no set joins the bins when there are too many
        self._limit = MOST_BINS
        self._bins: Bins = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64))
        self._pending: list[Bins] = []
        self._pending_bins = 0
        self._loose = 0  # bins that do not begin where a cell does: only those can become fewer
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
            scores: any shape, array or torch tensor (counted on its device), finite; higher is more anomalous. Floats of
                any width and integers keep their order.
            labels: same shape, bool or 0/1: whether the voxel belongs to a lesion.
            case: the subject, for messages.

        Raises:
            UserError: shapes differ, a label is not 0 or 1, a score is NaN or infinite, or float64 cannot hold it.
        """
        where = f"case {case!r}" if case else "a case"
        if _keys.is_tensor(scores):
            if scores.device.type != "cpu":
                self._push(*_counted_on_device(scores, labels, where, self.partition))
                self._join_if_many()
                return
            scores = scores.detach()
            scores = (scores.float() if str(scores.dtype) == "torch.bfloat16" else scores).numpy()
        labels = as_bool(labels, where)
        scores = np.asarray(scores)
        _check_shapes(scores.shape, labels.shape, where)
        scores = _keys.as_float(scores, where)
        if scores.size == 0:
            return
        narrow = scores.dtype == np.float32
        ordered = _keys.ordered(scores.ravel())
        lowest, highest = int(ordered.min()), int(ordered.max())
        if not _keys.is_finite_range(lowest, highest, narrow=narrow):
            raise _not_finite(int(np.count_nonzero(~np.isfinite(scores))), scores.size, where)
        labels = labels.ravel()
        shift = _keys.NARROW_SHIFT if narrow else _keys.CELL_SHIFT
        in_cells = narrow and not np.any(ordered & np.int32((1 << shift) - 1))  # as float16 maps are
        if in_cells:
            keys, positive, negative = _counted(ordered >> shift, labels)
            keys = self.partition.of(_keys.widened((keys << shift).astype(np.int32)))
        elif len(self.partition.seen):
            keys, positive, negative = self._counted_by_cell(ordered, labels, shift)
        else:
            keys, positive, negative = _counted(ordered, labels)
            keys = _keys.widened(keys)
        self._push(*_grouped(keys, positive, negative))
        self._join_if_many()

    def _counted_by_cell(self, ordered: np.ndarray, labels: np.ndarray, shift: int) -> Bins:
        """Count whole cells as such, and look at single scores only in the others."""
        cell = ordered >> shift
        found, positive, negative = _counted(cell, labels)
        lower = _keys.widened((found << shift).astype(ordered.dtype))
        wide = lower >> _keys.CELL_SHIFT
        odd, zero = np.zeros(len(found), bool), np.zeros(len(found), bool)
        if shift == _keys.NARROW_SHIFT:
            # Below its normal numbers, float32 has cells wider than those of float64. Its 0 is mostly alone in one.
            odd = (found >= -(1 << _keys.CELL_BITS)) & (found < 1 << _keys.CELL_BITS)
            if odd.any() and not np.any((ordered > 0) & (ordered < 1 << shift)):
                zero = found == 0
                odd &= ~zero
        # Cells that nobody had a score in when scores were joined stay single scores until they are joined again.
        apart = (odd | ~self.partition.kinds(wide)[0]) & ~zero
        if not apart.any():
            return lower, positive, negative
        keys, lesion, background = _counted(*_inside(ordered, labels, cell, found, positive + negative, apart))
        return (
            np.concatenate([lower[~apart], self.partition.of(_keys.widened(keys))]),
            np.concatenate([positive[~apart], lesion]),
            np.concatenate([negative[~apart], background]),
        )

    def merge(self, other: ScoreHistogram) -> None:
        """Add the counts of ``other``; any order of merges gives the same bits.

        Where the bins of the two differ, those that both can be told by are taken.
        """
        self.rebin(self.partition.meet(other.partition))
        keys, positive, negative = other.counts()
        self._push(*_grouped(self.partition.of(keys), positive, negative))
        self._join_if_many()

    def rebin(self, partition: Partition) -> None:
        """Take over the bins of ``partition``, which are those of today or unions of them."""
        if partition is self.partition:
            return
        self.partition = partition
        self._bins = _grouped(partition.of(self.counts()[0]), *self._bins[1:])
        self._loose = _loose(self._bins[0])

    def compact(self, thresholds: Iterable[float] = ()) -> None:
        """Join scores where no number feels it, see :func:`adbench.metrics.bins.coarser`."""
        self.rebin(coarser([self], self.partition, thresholds))

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

        For a threshold within a bin of several scores, those of the bin count as below it; see :meth:`positives_within`.
        """
        keys, positive, negative = self.counts()
        first = np.searchsorted(keys, _keys.key_of(threshold))
        return int(positive[first:].sum()), int(negative[first:].sum())

    def positives_within(self, threshold: float) -> tuple[int, int]:
        """(lesion, background) voxels whose bin says neither that they reach ``threshold`` nor that they do not."""
        keys, positive, negative = self.counts()
        key = np.array([_keys.key_of(threshold)], np.int64)
        own = self.partition.of(key)
        place = np.searchsorted(keys, own)[0]
        if own[0] == key[0] or place == len(keys) or keys[place] != own[0]:
            return 0, 0
        return int(positive[place]), int(negative[place])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ScoreHistogram):
            return NotImplemented
        return np.array_equal(self.joined, other.joined) and all(
            np.array_equal(a, b) for a, b in zip(self.counts(), other.counts(), strict=True)
        )

    __hash__ = None  # type: ignore[assignment]

    def _push(self, keys: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> None:
        self._pending.append((keys, positive, negative))
        self._pending_bins += len(keys)
        self._loose += _loose(keys)
        if self._pending_bins > max(_PENDING_BINS, len(self._bins[0])):
            self._fold()

    def _fold(self) -> None:
        parts = [part for part in (self._bins, *self._pending) if len(part[0])]
        self._pending, self._pending_bins = [], 0
        if len(parts) < 2:
            self._bins = parts[0] if parts else self._bins
            return
        self._bins = _added(parts)
        self._loose = _loose(self._bins[0])

    def _join_if_many(self) -> None:
        if self._alone and self._loose > self._limit:
            self.compact()
            self._limit = max(MOST_BINS, 2 * self._loose)


class SubjectHistograms:
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
        """Count voxels of ``subject``; see :meth:`ScoreHistogram.update`. Nothing to count still registers the id."""
        histogram = self._of(subject)
        if self._current is not None and self._current is not histogram:
            self._current.counts()  # folds the partial counts of the subject just finished: memory stays flat
            self._finished += self._current._loose
        self._current = histogram
        histogram.update(scores, labels, case=subject)
        if self._finished + histogram._loose > self._limit:
            self._join()

    def merge(self, other: SubjectHistograms) -> None:
        """Add another set: subjects of both are added up, the others joined. Any order gives the same bits."""
        self.thresholds = tuple(sorted({*self.thresholds, *other.thresholds}))
        self._rebin(self.partition.meet(other.partition))
        for subject, histogram in other.items():
            keys, positive, negative = histogram.counts()
            self._of(subject)._push(*_grouped(self.partition.of(keys), positive, negative))
        self._current, self._finished = None, sum(histogram._loose for _, histogram in self.items())
        if self._finished > self._limit:
            self._join()

    def compact(self, thresholds: Iterable[float] = ()) -> None:
        """Join scores where no number feels it, unless there are few; see :func:`adbench.metrics.bins.coarser`.

        Args:
            thresholds: more scores that stay edges, besides those given at first.
        """
        self.thresholds = tuple(sorted({*self.thresholds, *thresholds}))
        if sum(len(histogram.counts()[0]) for _, histogram in self.items()) > FEW_BINS:
            self._join()

    def pooled(self) -> ScoreHistogram:
        """All subjects in one histogram."""
        parts = [histogram.counts() for _, histogram in self.items()]
        return ScoreHistogram.from_counts(*_added(parts), self.partition) if parts else ScoreHistogram()

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

    def items(self) -> Iterator[tuple[str, ScoreHistogram]]:
        """(subject, histogram), sorted by subject."""
        return ((subject, self._by_subject[subject]) for subject in self.subjects)

    def __len__(self) -> int:
        return len(self._by_subject)

    def __iter__(self) -> Iterator[str]:
        return iter(self.subjects)

    def __contains__(self, subject: object) -> bool:
        return subject in self._by_subject

    def __getitem__(self, subject: str) -> ScoreHistogram:
        if subject not in self._by_subject:
            raise KeyError(f"no subject {subject!r} among {len(self)}")
        return self._by_subject[subject]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SubjectHistograms):
            return NotImplemented
        return self.subjects == other.subjects and all(self[subject] == other[subject] for subject in self.subjects)

    __hash__ = None  # type: ignore[assignment]

    def to_npz(self, path: str | Path) -> None:
        """Write atomically to ``path``; equal histograms give equal bytes."""
        from adbench.metrics.storage import write_histograms

        write_histograms(Path(path), self)

    @classmethod
    def from_npz(cls, path: str | Path) -> SubjectHistograms:
        """Read what :meth:`to_npz` wrote, checking everything: the file may come from a stranger.

        Raises:
            UserError: the file is missing, damaged, or says something impossible.
        """
        from adbench.metrics.storage import read_histograms

        return read_histograms(Path(path))

    def _of(self, subject: str) -> ScoreHistogram:
        if not isinstance(subject, str) or not subject:
            raise UserError(f"A subject id is {subject!r}: give a non-empty string.")
        return self._by_subject.setdefault(subject, ScoreHistogram(self.partition))

    def _join(self) -> None:
        members = [histogram for _, histogram in self.items()]
        self._rebin(coarser(members, self.partition, self.thresholds))
        self._current, self._finished = None, sum(member._loose for member in members)
        self._limit = max(self._most, 2 * self._finished)

    def _rebin(self, partition: Partition) -> None:
        self.partition = partition
        for histogram in self._by_subject.values():
            histogram.rebin(partition)


def _counted(keys: np.ndarray, labels: np.ndarray) -> Bins:
    """(K,) distinct keys ascending, lesion and background voxels of each.

    Args:
        keys: (n,) integers.
        labels: (n,) bool.
    """
    if not len(keys):
        return keys, np.zeros(0, np.int64), np.zeros(0, np.int64)
    lowest, highest = int(keys.min()), int(keys.max())
    width = highest - lowest + 1
    if width <= max(4 * keys.size, 1 << 14):
        places = np.subtract(keys, lowest, dtype=np.intp)
        every = np.bincount(places, minlength=width)
        found = np.flatnonzero(every > 0)  # far faster than on the counts
        lesion = np.bincount(places[labels], minlength=width)[found]
        return (found + lowest).astype(keys.dtype), lesion, every[found] - lesion
    found = np.sort(keys)
    first = np.flatnonzero(np.append(True, found[1:] != found[:-1]))
    found, every = found[first], np.diff(first, append=len(keys))
    lesion = np.bincount(np.searchsorted(found, keys[labels]), minlength=len(found))
    return found, lesion, every - lesion


def _inside(
    ordered: np.ndarray, labels: np.ndarray, cell: np.ndarray, found: np.ndarray, mass: np.ndarray, apart: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The ordered integers, and their labels, of voxels in the cells ``found[apart]``."""
    # Most often these are the lowest and the highest scores: what lies between is passed over by comparing.
    places = np.flatnonzero(apart)
    below = np.append(np.cumsum(mass)[places], len(cell))  # voxels up to each of them, and all
    gap = int(np.argmax(np.diff(below, prepend=0)))
    if gap == 0:
        outside = cell >= found[places[0]]
    elif gap == len(places):
        outside = cell <= found[places[-1]]
    else:
        outside = (cell <= found[places[gap - 1]]) | (cell >= found[places[gap]])
    candidates = np.flatnonzero(outside)
    wanted = contains(found[places], cell[candidates]) if len(candidates) < len(cell) // 8 else None
    if wanted is None:
        low, width = int(found[0]), int(found[-1]) - int(found[0]) + 1
        if width > _DENSE_BINS:
            wanted = contains(found[places], cell[candidates])
        else:
            table = np.zeros(width, bool)
            table[found[places].astype(np.int64) - low] = True
            wanted = table[np.subtract(cell[candidates], low, dtype=np.intp)]
    chosen = candidates[wanted]
    return ordered[chosen], labels[chosen]


def _loose(keys: np.ndarray) -> int:
    return int(np.count_nonzero(keys & ((1 << _keys.CELL_SHIFT) - 1)))


def _added(parts: list[Bins]) -> Bins:
    """The sum of several counts, each with distinct ascending keys."""
    edge = (1 << _keys.CELL_SHIFT) - 1
    occupied = [part[0] for part in parts if len(part[0])]
    lowest = min((int(keys[0]) for keys in occupied), default=0) >> _keys.CELL_SHIFT
    width = (max((int(keys[-1]) for keys in occupied), default=0) >> _keys.CELL_SHIFT) - lowest + 1
    if len(parts) < 3 or width > _DENSE_BINS:
        return _grouped(*(np.concatenate([part[i] for part in parts]) for i in range(3)))
    # Most bins begin where a cell does: those are added in dense vectors, the others sorted.
    total, rest = np.zeros((2, width), np.int64), []
    for keys, positive, negative in parts:
        cells = (keys & edge) == 0
        place = (keys[cells] >> _keys.CELL_SHIFT) - lowest
        total[0][place] += positive[cells]  # the keys of one part are distinct
        total[1][place] += negative[cells]
        rest.append((keys[~cells], positive[~cells], negative[~cells]))
    found = np.flatnonzero(total.any(axis=0))
    rest.append((found + lowest << _keys.CELL_SHIFT, total[0][found], total[1][found]))
    return _grouped(*(np.concatenate([part[i] for part in rest]) for i in range(3)))


def _grouped(keys: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> Bins:
    """Counts of equal keys added up, keys ascending."""
    # Compared, not subtracted: the difference of two int64 keys may not be one.
    if (keys[1:] > keys[:-1]).all():
        return keys, positive, negative
    if not (keys[1:] >= keys[:-1]).all():
        order = np.argsort(keys, kind="stable")
        keys, positive, negative = keys[order], positive[order], negative[order]
    first = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    return keys[first], np.add.reduceat(positive, first), np.add.reduceat(negative, first)


def _counted_on_device(scores: Any, labels: Any, where: str, partition: Partition) -> Bins:
    """Counts of a torch tensor, on the device where it lives; only the scores that occur leave it."""
    import torch

    labels = torch.as_tensor(labels, device=scores.device)
    _check_shapes(tuple(scores.shape), tuple(labels.shape), where)
    if labels.dtype != torch.bool:
        wrong = labels[(labels != 0) & (labels != 1)]
        if wrong.numel():
            raise _not_labels(torch.unique(wrong).tolist(), where)
    if not scores.is_floating_point():
        scores = torch.from_numpy(_keys.as_float(scores.cpu().numpy(), where)).to(scores.device)
    scores = scores if scores.dtype == torch.float64 else scores.float()
    wrong = int((~torch.isfinite(scores)).sum())
    if wrong:
        raise _not_finite(wrong, scores.numel(), where)
    coded = _keys.ordered_tensor(scores).reshape(-1).long()
    wide = scores.dtype == torch.float64
    found, place = torch.unique(coded, return_inverse=True)
    counts = torch.bincount(place * 2 + labels.reshape(-1).bool(), minlength=2 * len(found)).reshape(-1, 2)
    negative, positive = counts.T.cpu().numpy()
    keys = _keys.widened(found.cpu().numpy().astype(np.int64 if wide else np.int32))
    return _grouped(partition.of(keys), positive, negative)


def as_bool(labels: Any, where: str) -> np.ndarray:
    """``labels`` as a bool array.

    Args:
        labels: array or tensor of bool or 0/1, any shape.
        where: what they belong to, for the message ("case 'a'").

    Raises:
        UserError: a value is neither 0 nor 1.
    """
    array = labels.detach().cpu().numpy() if _keys.is_tensor(labels) else np.asarray(labels)
    if array.dtype == np.bool_:
        return array
    if array.dtype.kind not in "iuf":
        raise UserError(f"Labels of {where} are of type {array.dtype}: give booleans, or 0 and 1.")
    if array.dtype == np.uint8:
        if array.size == 0 or array.max() <= 1:
            return np.ascontiguousarray(array).view(np.bool_)
    elif bool(np.all((array == 0) | (array == 1))):
        return array.astype(np.bool_)
    raise _not_labels(np.unique(array[(array != 0) & (array != 1)]).tolist(), where)


def _check_shapes(scores: tuple[int, ...], labels: tuple[int, ...], where: str) -> None:
    if scores != labels:
        raise UserError(
            f"Scores of {where} have shape {tuple(scores)} but its labels have shape {tuple(labels)}: "
            "give one label for each score."
        )


def _not_labels(values: list[Any], where: str) -> UserError:
    shown = ", ".join(f"{value:g}" for value in values[:5]) + (", ..." if len(values) > 5 else "")
    return UserError(
        f"Labels of {where} hold the value{'s' if len(values) > 1 else ''} {shown}: give 0 and 1, "
        "or say which values are lesion."
    )


def _not_finite(count: int, size: int, where: str) -> UserError:
    return UserError(
        f"Scores of {where} hold {count} NaN or infinite value{'s' if count > 1 else ''} of {size}: "
        "repair the map; nothing is replaced silently."
    )
