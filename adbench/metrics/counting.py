"""From scores and labels to counts by bin: the inner loop of :mod:`adbench.metrics.histogram`.

Allocating large arrays for each map costs more than the counting itself, so arrays of a fixed size are reused.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from adbench.errors import UserError
from adbench.metrics import score_bins as _keys
from adbench.metrics.partition import WHOLE, Bins, Partition, contains

PIECE = 1 << 19  # voxels at a time, for a caller to give to :func:`counted`
_BLOCK = 1 << 16  # voxels whose places in a dense vector are computed together: they stay in a processor cache
DENSE = 1 << 22  # widest range of cells that is counted in a dense vector


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
    """The bins of ``partition`` that occur in (n,) scores, ascending, and their lesion and background voxels."""
    ordered = _keys.ordered(scores)
    narrow = ordered.dtype == np.int32
    shift = _keys.NARROW_SHIFT if narrow else _keys.CELL_SHIFT
    lesion = np.flatnonzero(labels)
    if narrow and _in_cells(ordered, (1 << shift) - 1):  # as float16 maps are
        cell = np.right_shift(ordered, shift, out=_work("cell", len(ordered), ordered.dtype))
        found, positive, negative = count(cell, lesion)
        keys = partition.of(_keys.widened((found << shift).astype(np.int32)))
    elif len(partition.seen):
        keys, positive, negative = _counted_by_cell(ordered, labels, lesion, partition, shift)
    else:
        found, positive, negative = count(ordered, lesion)
        keys = _keys.widened(found)
    return grouped(keys, positive, negative)


def _in_cells(ordered: np.ndarray, below: int) -> bool:
    if np.any(ordered[:64] & below):
        return False
    return not np.any(
        np.bitwise_and(ordered, ordered.dtype.type(below), out=_work("cell", len(ordered), ordered.dtype))
    )


def _counted_by_cell(
    ordered: np.ndarray, labels: np.ndarray, lesion: np.ndarray, partition: Partition, shift: int
) -> Bins:
    """Count whole cells as such, and look at single scores only in the others."""
    cell = np.right_shift(ordered, shift, out=_work("cell", len(ordered), ordered.dtype))
    found, positive, negative = count(cell, lesion)
    narrow = shift == _keys.NARROW_SHIFT
    wide = _keys.wide_cells(found) if narrow else found
    whole = partition.kinds(wide) == WHOLE
    if narrow and found[0] < _keys.ODD and found[-1] >= -_keys.ODD:
        # Below its normal numbers, float32 has cells wider than those of float64. Its 0 is mostly alone in one.
        zeros = whole & (found == 0)
        whole[(found >= -_keys.ODD) & (found < _keys.ODD)] = False
        if zeros.any() and len(ordered) - np.count_nonzero(ordered) == (positive + negative)[zeros]:
            whole |= zeros
    keys = wide << _keys.CELL_SHIFT
    if whole.all():
        return keys, positive, negative
    inside = _inside(cell, found, positive + negative, ~whole)
    single, more, background = count(ordered[inside], np.flatnonzero(labels[inside]))
    others = grouped(partition.of(_keys.widened(single)), more, background)
    if not whole.any():
        return others
    # Both are sorted: where each of the others goes is looked up, once for the three arrays.
    size = int(np.count_nonzero(whole))
    goes = np.searchsorted(keys[whole], others[0]) + np.arange(len(others[0]))
    rest = np.ones(size + len(goes), np.bool_)
    rest[goes] = False
    stays, comes = np.flatnonzero(whole), np.flatnonzero(rest)
    merged = np.empty((3, len(rest)), np.int64)
    for target, own, other in zip(merged, (keys, positive, negative), others, strict=True):
        target[comes] = own[stays]
        target[goes] = other
    return merged[0], merged[1], merged[2]


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
    if width <= max(4 * values.size, 1 << 14):
        every = np.zeros(width, np.intp)
        for start in range(0, len(values), _BLOCK):
            every += np.bincount(np.subtract(values[start : start + _BLOCK], lowest), minlength=width)
        found = np.flatnonzero(every > 0)  # far faster than on the counts
        positive = np.bincount(np.subtract(values[lesion], lowest), minlength=width)[found]
        return (found + lowest).astype(values.dtype), positive, every[found] - positive
    found = np.sort(values)
    first = np.flatnonzero(np.append(True, found[1:] != found[:-1]))
    found, every = found[first], np.diff(first, append=len(values))
    positive = np.bincount(np.searchsorted(found, values[lesion]), minlength=len(found))
    return found, positive, every - positive


def _inside(cell: np.ndarray, found: np.ndarray, mass: np.ndarray, apart: np.ndarray) -> np.ndarray:
    """Places of the voxels in the cells ``found[apart]``.

    Args:
        cell: (n,) cell of each voxel.
        found: (K,) the cells that occur, ascending.
        mass: (K,) voxels in each.
        apart: (K,) bool, at least one of them.
    """
    # Most often these are the lowest and the highest scores: what lies between is passed over by comparing.
    places = np.flatnonzero(apart)
    below = np.append(np.cumsum(mass)[places], len(cell))  # voxels up to each of them, and all
    gap = int(np.argmax(np.diff(below, prepend=0)))
    outside = _work("outside", len(cell), np.bool_)
    if gap == len(places):
        np.less_equal(cell, found[places[-1]], out=outside)
    else:
        np.greater_equal(cell, found[places[gap]], out=outside)
        if gap:
            outside |= np.less_equal(cell, found[places[gap - 1]], out=_work("below", len(cell), np.bool_))
    candidates = np.flatnonzero(outside)
    lowest, width = int(found[0]), int(found[-1]) - int(found[0]) + 1
    if width > DENSE:
        return np.asarray(candidates[contains(found[places], cell[candidates])])
    table = np.zeros(width, np.bool_)
    table[found[places].astype(np.int64) - lowest] = True
    return np.asarray(candidates[table[np.subtract(cell[candidates], lowest, dtype=np.intp)]])


def grouped(keys: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> Bins:
    """Counts of equal keys added up, keys ascending."""
    # Compared, not subtracted: the difference of two int64 keys may not be one.
    if (keys[1:] > keys[:-1]).all():
        return keys, positive, negative
    if not (keys[1:] >= keys[:-1]).all():
        order = np.argsort(keys, kind="stable")
        keys, positive, negative = keys[order], positive[order], negative[order]
    first = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    return keys[first], np.add.reduceat(positive, first), np.add.reduceat(negative, first)


def added(parts: list[Bins], partition: Partition) -> Bins:
    """The sum of several counts, each with distinct ascending keys that begin bins of ``partition``."""
    if len(parts) < 3:
        return grouped(*(np.concatenate([part[i] for part in parts]) for i in range(3)))
    total, rest = np.zeros((2, len(partition.edges))), []
    for batch in _batches(parts):
        keys, positive, negative = (np.concatenate([part[i] for part in batch]) for i in range(3))
        number = partition.numbers(keys)
        single = number < 0
        if single.any():
            rest.append((keys[single], positive[single], negative[single]))
            number, positive, negative = number[~single], positive[~single], negative[~single]
        total[0] += np.bincount(number, positive, total.shape[1])  # float64 holds whole numbers up to 2^53
        total[1] += np.bincount(number, negative, total.shape[1])
    found = np.flatnonzero(total.any(axis=0))
    counts = total[:, found].astype(np.int64)
    rest.append((partition.edges[found], counts[0], counts[1]))
    return grouped(*(np.concatenate([part[i] for part in rest]) for i in range(3)))


def _batches(parts: list[Bins], bins: int = 1 << 17) -> Iterator[list[Bins]]:
    """Parts that together have about so many bins."""
    batch, size = [], 0
    for part in parts:
        batch.append(part)
        size += len(part[0])
        if size >= bins:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


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
