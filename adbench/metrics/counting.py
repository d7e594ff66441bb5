"""From scores and labels to counts by bin: the inner loop of :mod:`adbench.metrics.histogram`.

Allocating large arrays for each map costs more than the counting itself, so arrays of a fixed size are reused.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from adbench.errors import UserError
from adbench.metrics import score_bins as _keys
from adbench.metrics.partition import Bins, Partition

PIECE = 1 << 19  # voxels at a time, for a caller to give to :func:`counted`
_BLOCK = 1 << 16  # voxels whose places in a dense vector are computed together: they stay in a processor cache


class _Work(threading.local):
    """One array a name, as long as the longest so far."""

    def __init__(self) -> None:
        self._arrays: dict[str, np.ndarray] = {}

    def __call__(self, name: str, size: int, dtype: Any) -> np.ndarray:
        array = self._arrays.get(name)
        if array is None or array.dtype != dtype or len(array) < size:
            array = self._arrays[name] = (
                np.empty(min(PIECE, 2 * size), dtype) if size <= PIECE else np.empty(size, dtype)
            )
        return array[:size]


_work = _Work()


def checked(scores: Any, labels: Any, where: str) -> tuple[np.ndarray, np.ndarray]:
    """One array as :func:`counted` takes it, all of it checked.

    Args:
        scores: any shape, array or torch tensor (copied to the host), see
            :meth:`adbench.metrics.histogram.ScoreHistogram.update`.
        labels: same shape, bool or 0/1.
        where: what they belong to, for messages ("case 'a'").

    Returns:
        (n,) scores, float32 or float64, and (n,) labels, bool.

    Raises:
        UserError: shapes differ, a label is not 0 or 1, a score is NaN or infinite, or float64 cannot hold it.
    """
    scores, labels = _keys.as_array(scores), as_bool(labels, where)
    if scores.shape != labels.shape:
        raise UserError(
            f"Scores of {where} have shape {scores.shape} but its labels have shape {labels.shape}: "
            "give one label for each score."
        )
    scores, labels = np.ascontiguousarray(_keys.as_float(scores, where)).ravel(), labels.ravel()
    if scores.size and not (np.isfinite(scores.min()) and np.isfinite(scores.max())):
        wrong = int(np.count_nonzero(~np.isfinite(scores)))
        raise UserError(
            f"Scores of {where} hold {wrong} NaN or infinite value{'s' if wrong > 1 else ''} of {scores.size}: "
            "repair the map; nothing is replaced silently."
        )
    return scores, labels


def counted(scores: np.ndarray, labels: np.ndarray, partition: Partition) -> Bins:
    """The bins of ``partition`` that occur in (n,) scores, and their lesion and background voxels."""
    ordered = _keys.ordered(scores)
    narrow = ordered.dtype == np.int32
    lesion = np.flatnonzero(labels)
    if narrow and _in_cells(ordered):  # as float16 maps are
        cell = np.right_shift(ordered, _keys.NARROW_SHIFT, out=_work("cell", len(ordered), ordered.dtype))
        found, positive, negative = count(cell, lesion)
        keys = _keys.widened((found << _keys.NARROW_SHIFT).astype(np.int32))
        return grouped(partition.of(keys), positive, negative)
    found_by_cell = _counted_by_cell(ordered, labels, lesion, partition) if len(partition.seen) else None
    return found_by_cell or _counted_by_score(ordered, lesion, partition)


def _in_cells(ordered: np.ndarray) -> bool:
    below = np.int32((1 << _keys.NARROW_SHIFT) - 1)
    if (ordered[:64] & below).any():
        return False
    return not np.bitwise_and(ordered, below, out=_work("cell", len(ordered), ordered.dtype)).any()


def _counted_by_score(ordered: np.ndarray, lesion: np.ndarray, partition: Partition) -> Bins:
    found, positive, negative = count(ordered, lesion)
    return grouped(partition.of(_keys.widened(found)), positive, negative)


def _counted_by_cell(ordered: np.ndarray, labels: np.ndarray, lesion: np.ndarray, partition: Partition) -> Bins | None:
    """Count whole cells as such, and look at single scores only in the others; None where cells are too far apart."""
    narrow = ordered.dtype == np.int32
    shift = _keys.NARROW_SHIFT if narrow else _keys.CELL_SHIFT
    cell = np.right_shift(ordered, shift, out=_work("cell", len(ordered), ordered.dtype))
    lowest, highest = int(cell.min()), int(cell.max())
    width = highest - lowest + 1
    if width > _widest(len(cell)):
        return None
    whole = partition.whole_narrow(lowest, width) if narrow else partition.whole(lowest, width)
    # Float32 has one cell around 0, which is wider than those of float64. A 0 is mostly alone in it.
    if narrow and lowest <= 0 <= highest and np.count_nonzero(cell) == np.count_nonzero(ordered):
        whole = whole.copy()
        whole[-lowest] = partition.whole(0, 1)[0]
    apart = ~whole
    every, inside = np.zeros(width, np.intp), []
    for start in range(0, len(cell), _BLOCK):
        block = cell[start : start + _BLOCK]
        place = np.subtract(block, lowest, out=_work("place", len(block), np.intp), casting="unsafe")
        every += np.bincount(place, minlength=width)
        inside.append(np.flatnonzero(apart[place]) + start)
    found = np.flatnonzero((every > 0) & whole)
    positive = np.bincount(np.subtract(cell[lesion], lowest), minlength=width)[found]
    keys = (_keys.wide_cells(found + lowest) if narrow else found + lowest) << _keys.CELL_SHIFT
    bins = keys, positive, every[found] - positive
    single = np.concatenate(inside)
    if not len(single):
        return bins
    if len(single) < len(found):  # as is usual: sorted with the others
        ill = labels[single].astype(np.int64)
        others: Bins = partition.of(_keys.widened(ordered[single])), ill, 1 - ill
    else:
        others = _counted_by_score(ordered[single], np.flatnonzero(labels[single]), partition)
    return added([bins, others], partition)


def _widest(voxels: int) -> int:
    """The widest range of integers that is counted in a dense vector."""
    return max(4 * voxels, 1 << 14)


def count(values: np.ndarray, lesion: np.ndarray) -> Bins:
    """(K,) distinct values ascending, lesion and background voxels of each.

    Args:
        values: (n,) integers.
        lesion: (m,) places of the lesion voxels among them.
    """
    if not len(values):
        return values, np.zeros(0, np.int64), np.zeros(0, np.int64)
    lowest, highest = int(values.min()), int(values.max())
    width = highest - lowest + 1
    if width <= _widest(len(values)):
        every = np.zeros(width, np.intp)
        for start in range(0, len(values), _BLOCK):
            every += np.bincount(np.subtract(values[start : start + _BLOCK], lowest), minlength=width)
        found = np.flatnonzero(every > 0)  # far faster than on the counts
        positive = np.bincount(np.subtract(values[lesion], lowest), minlength=width)[found]
        return (found + lowest).astype(values.dtype), positive, every[found] - positive
    found = np.sort(values)
    ends = np.append(found[1:] != found[:-1], True).nonzero()[0]
    found, every = found[ends], np.diff(ends, prepend=-1)
    positive = np.bincount(np.searchsorted(found, values[lesion]), minlength=len(found))
    return found, positive, every - positive


def grouped(keys: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> Bins:
    """Counts of equal keys added up, keys ascending."""
    # Compared, not subtracted: the difference of two int64 keys may not be one.
    if (keys[1:] > keys[:-1]).all():
        return keys, positive, negative
    if not (keys[1:] >= keys[:-1]).all():
        order = np.argsort(keys, kind="stable")
        keys, positive, negative = keys[order], positive[order], negative[order]
        if (keys[1:] > keys[:-1]).all():
            return keys, positive, negative
    last = np.flatnonzero(np.append(keys[1:] != keys[:-1], True))
    return keys[last], _sums(positive, last), _sums(negative, last)


def _sums(counts: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Sums of runs of ``counts``, each up to one of ``last``; with short runs several times faster than ``reduceat``."""
    sums: np.ndarray = np.cumsum(counts)[last]
    sums[1:] -= sums[:-1].copy()
    return sums


def added(parts: list[Bins], partition: Partition) -> Bins:
    """The sum of several counts, each with distinct ascending keys that begin bins of ``partition``."""
    if len(parts) < 3 or not len(partition.cells):
        return grouped(*(np.concatenate([part[i] for part in parts]) for i in range(3)))
    lesion, background = np.zeros((2, len(partition.edges) + 1), np.int64)  # the last: of single scores, not used
    rest = []
    for keys, positive, negative in parts:
        number = partition.numbers(keys)
        background[number] += negative
        bearing = (positive != 0).nonzero()[0]
        lesion[number[bearing]] += positive[bearing]
        single = (number < 0).nonzero()[0]
        rest.append((keys[single], positive[single], negative[single]))
    lesion, background = lesion[:-1], background[:-1]
    found = np.flatnonzero((lesion != 0) | (background != 0))
    rest.append((partition.edges[found], lesion[found], background[found]))
    return grouped(*(np.concatenate([part[i] for part in rest]) for i in range(3)))


def as_bool(labels: Any, where: str) -> np.ndarray:
    """``labels`` as a bool array.

    Args:
        labels: array or tensor of bool or 0/1, any shape.
        where: what they belong to, for the message ("case 'a'").

    Raises:
        UserError: a value is neither 0 nor 1.
    """
    array = _keys.as_array(labels)
    if array.dtype == np.bool_:
        return array
    if array.dtype.kind not in "iuf":
        raise UserError(f"Labels of {where} are of type {array.dtype}: give booleans, or 0 and 1.")
    if array.dtype == np.uint8:
        if array.size == 0 or array.max() <= 1:
            return np.ascontiguousarray(array).view(np.bool_)
    elif bool(np.all((array == 0) | (array == 1))):
        return array.astype(np.bool_)
    values = np.unique(array[(array != 0) & (array != 1)]).tolist()
    shown = ", ".join(f"{value:g}" for value in values[:5]) + (", ..." if len(values) > 5 else "")
    raise UserError(
        f"Labels of {where} hold the value{'s' if len(values) > 1 else ''} {shown}: give 0 and 1, "
        "or say which values are lesion."
    )
