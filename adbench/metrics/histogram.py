"""Scores reduced to sparse per-subject counts: constant memory in the number of voxels, exact to merge in any order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from adbench.errors import UserError
from adbench.metrics import keys as _keys

_PENDING_BINS = 1 << 18  # partial counts are folded together when they reach this many bins
_DENSE_BINS = 1 << 22  # widest key range that is counted in a dense vector
Bins = tuple[np.ndarray, np.ndarray, np.ndarray]


class ScoreHistogram:
    """Lesion and background voxels of one subject (or one pool), counted by order-preserving key of their score.

    Scores are read as float32. A score of more than ``mantissa_bits`` mantissa bits shares a bin with its neighbours;
    float16 maps are exact at 10 bits and more (see ``exact``).

    Args:
        mantissa_bits: 0 to 23; the relative width of a bin is ``2**-mantissa_bits``.
    """

    def __init__(self, mantissa_bits: int = _keys.MANTISSA_BITS) -> None:
        self.mantissa_bits = _keys.check_bits(mantissa_bits)
        self.exact = True
        """Whether no score lost a bit: the counts then say all that the scores say, and brackets have width 0."""
        self._bins: Bins = (np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.int64))
        self._pending: list[Bins] = []
        self._pending_bins = 0

    @classmethod
    def from_counts(
        cls, keys: np.ndarray, positive: np.ndarray, negative: np.ndarray, mantissa_bits: int, exact: bool
    ) -> ScoreHistogram:
        """A histogram of given counts.

        Args:
            keys: (K,) int32, ascending, distinct.
            positive: (K,) lesion voxels by bin.
            negative: (K,) background voxels by bin; no bin is empty.
            mantissa_bits: as the keys were made.
            exact: whether no score lost a bit.
        """
        histogram = cls(mantissa_bits)
        histogram.exact = exact
        histogram._push(keys.astype(np.int32), positive.astype(np.int64), negative.astype(np.int64))
        return histogram

    def update(self, scores: Any, labels: Any, case: str = "") -> None:
        """Count voxels.

        Args:
            scores: any shape, array or torch tensor (counted on its device), finite; higher is more anomalous.
            labels: same shape, bool or 0/1: whether the voxel belongs to a lesion.
            case: the subject, for messages.

        Raises:
            UserError: shapes differ, a label is not 0 or 1, or a score is NaN or infinite.
        """
        where = f"case {case!r}" if case else "a case"
        if _keys.is_tensor(scores):
            if scores.device.type != "cpu":
                self._update_on_device(scores, labels, where)
                return
            scores = scores.detach().float().numpy()
        labels = as_bool(labels, where)
        scores = np.asarray(scores)
        if scores.dtype.kind not in "fiub":
            raise UserError(f"Scores of {where} are of type {scores.dtype}, not numbers.")
        _check_shapes(scores.shape, labels.shape, where)
        if scores.size == 0:
            return
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite and is refused just below
            ordered = _keys.ordered(scores.astype(np.float32, copy=False).ravel())
        lowest, highest = int(ordered.min()), int(ordered.max())
        if not _keys.is_finite_range(lowest, highest):
            raise _not_finite(_keys.count_non_finite(ordered), scores.size, where)
        shift = 23 - self.mantissa_bits
        if self.exact and shift:
            self.exact = not np.any(ordered & np.int32((1 << shift) - 1))
        keys = ordered >> shift
        lowest, highest = lowest >> shift, highest >> shift
        positive = keys[labels.ravel()]
        if highest - lowest < max(4 * keys.size, 1 << 14):
            width = highest - lowest + 1
            every = np.bincount(np.subtract(keys, lowest, dtype=np.intp), minlength=width)
            found = np.flatnonzero(every > 0)  # far faster than on the counts
            lesion = np.bincount(np.subtract(positive, lowest, dtype=np.intp), minlength=width)[found]
            self._push((found + lowest).astype(np.int32), lesion, every[found] - lesion)
        else:
            found, every = np.unique(keys, return_counts=True)
            lesion = np.bincount(np.searchsorted(found, positive), minlength=len(found))
            self._push(found, lesion, every - lesion)

    def _update_on_device(self, scores: Any, labels: Any, where: str) -> None:
        import torch

        labels = torch.as_tensor(labels, device=scores.device)
        _check_shapes(tuple(scores.shape), tuple(labels.shape), where)
        if labels.dtype != torch.bool:
            wrong = labels[(labels != 0) & (labels != 1)]
            if wrong.numel():
                raise _not_labels(torch.unique(wrong).tolist(), where)
        if scores.numel() == 0:
            return
        ordered = _keys.ordered_tensor(scores).reshape(-1)
        lowest, highest = (int(end) for end in torch.aminmax(ordered))
        if not _keys.is_finite_range(lowest, highest):
            raise _not_finite(int((~torch.isfinite(scores.float())).sum()), scores.numel(), where)
        shift = 23 - self.mantissa_bits
        if self.exact and shift:
            self.exact = not bool((ordered & ((1 << shift) - 1)).any())
        keys = (ordered >> shift).long() - (lowest >> shift)
        labels = labels.reshape(-1).bool()
        width = (highest >> shift) - (lowest >> shift) + 1
        if width <= _DENSE_BINS:
            found = torch.bincount(keys * 2 + labels, minlength=2 * width).reshape(width, 2)
            occupied = found.sum(1).nonzero()[:, 0]
            negative, positive = found[occupied].T
        else:
            occupied, place = torch.unique(keys, return_inverse=True)
            negative = torch.bincount(place[~labels], minlength=len(occupied))
            positive = torch.bincount(place[labels], minlength=len(occupied))
        occupied = occupied + (lowest >> shift)
        self._push(occupied.cpu().numpy().astype(np.int32), positive.cpu().numpy(), negative.cpu().numpy())

    def merge(self, other: ScoreHistogram) -> None:
        """Add the counts of ``other``; any order of merges gives the same bits.

        Raises:
            UserError: the two were made with different ``mantissa_bits``.
        """
        if other.mantissa_bits != self.mantissa_bits:
            raise UserError(
                f"Histograms of {self.mantissa_bits} and {other.mantissa_bits} mantissa bits cannot be merged: "
                "make both with the same mantissa_bits."
            )
        self.exact = self.exact and other.exact
        self._push(*other.counts())

    def counts(self) -> Bins:
        """(K,) int32 keys ascending, (K,) int64 lesion voxels, (K,) int64 background voxels; no bin is empty."""
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
        """(true positives, false positives) among voxels with ``score >= threshold``, a lower edge of a bin."""
        keys, positive, negative = self.counts()
        first = np.searchsorted(keys, _keys.key_of(threshold, self.mantissa_bits))
        return int(positive[first:].sum()), int(negative[first:].sum())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ScoreHistogram):
            return NotImplemented
        same = self.mantissa_bits == other.mantissa_bits and self.exact == other.exact
        return same and all(np.array_equal(a, b) for a, b in zip(self.counts(), other.counts(), strict=True))

    __hash__ = None  # type: ignore[assignment]

    def _push(self, keys: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> None:
        self._pending.append((keys, positive, negative))
        self._pending_bins += len(keys)
        if self._pending_bins > _PENDING_BINS:
            self._fold()

    def _fold(self) -> None:
        parts = [part for part in (self._bins, *self._pending) if len(part[0])]
        self._pending, self._pending_bins = [], 0
        if len(parts) < 2:
            self._bins = parts[0] if parts else self._bins
            return
        lowest = min(int(part[0][0]) for part in parts)
        width = max(int(part[0][-1]) for part in parts) - lowest + 1
        if width <= _DENSE_BINS:
            total = np.zeros((2, width), np.int64)
            for keys, positive, negative in parts:
                total[0][keys - lowest] += positive  # the keys of one part are distinct
                total[1][keys - lowest] += negative
            found = np.flatnonzero(total.any(axis=0))
            self._bins = ((found + lowest).astype(np.int32), total[0][found], total[1][found])
        else:
            found, place = np.unique(np.concatenate([part[0] for part in parts]), return_inverse=True)
            total = np.zeros((2, len(found)), np.int64)
            np.add.at(total[0], place, np.concatenate([part[1] for part in parts]))
            np.add.at(total[1], place, np.concatenate([part[2] for part in parts]))
            self._bins = (found.astype(np.int32), total[0], total[1])


class SubjectHistograms:
    """One :class:`ScoreHistogram` a subject, in the order of the subjects' ids whatever the order of arrival.

    Args:
        mantissa_bits: 0 to 23, the same for every subject.
    """

    def __init__(self, mantissa_bits: int = _keys.MANTISSA_BITS) -> None:
        self.mantissa_bits = _keys.check_bits(mantissa_bits)
        self._by_subject: dict[str, ScoreHistogram] = {}
        self._current: ScoreHistogram | None = None

    def update(self, subject: str, scores: Any, labels: Any) -> None:
        """Count voxels of ``subject``; see :meth:`ScoreHistogram.update`. Nothing to count still registers the id."""
        histogram = self._of(subject)
        if self._current is not None and self._current is not histogram:
            self._current.counts()  # folds the partial counts of the subject just finished: memory stays flat
        self._current = histogram
        histogram.update(scores, labels, case=subject)

    def merge(self, other: SubjectHistograms) -> None:
        """Add another set: subjects of both are added up, the others joined. Any order gives the same bits."""
        for subject, histogram in other.items():
            self._of(subject).merge(histogram)

    def pooled(self) -> ScoreHistogram:
        """All subjects in one histogram."""
        pool = ScoreHistogram(self.mantissa_bits)
        for _, histogram in self.items():
            pool.merge(histogram)
        return pool

    def subset(self, subjects: list[str]) -> SubjectHistograms:
        """The given subjects only (their histograms are shared, not copied)."""
        chosen = SubjectHistograms(self.mantissa_bits)
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
        if self.mantissa_bits != other.mantissa_bits or self.subjects != other.subjects:
            return False
        return all(self[subject] == other[subject] for subject in self.subjects)

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
        return self._by_subject.setdefault(subject, ScoreHistogram(self.mantissa_bits))


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
        f"Scores of {where} hold {count} NaN or infinite value{'s' if count > 1 else ''} of {size} (read as float32): "
        "repair the map; nothing is replaced silently."
    )
