"""Which scores share a bin: a partition of the keys that follows the data.

At first every score has a bin of its own, and all numbers are those of the scores. When the bins of all subjects
together become too many, scores are joined where the numbers do not change. The unit is the *cell*: the scores that
share ten mantissa bits. A cell that holds little of what lies at or above it is made one bin. A cell that holds much of
it (all scores of a map that is offset by 1000, or the saturated end of a probability) is cut at quantiles instead. So the
width of a bin never depends on the size of the scores, and a float16 map, whose values are cells of their own, stays
exact. Bins only ever become wider, which is why counts stay exact counts of their bins, in whatever order they came.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np

from adbench.metrics import score_bins as _keys

Bins = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Counts by bin: (K,) int64 keys ascending, (K,) int64 lesion voxels, (K,) int64 background voxels."""
TIES = 5e-4
"""Width of the brackets of average precision that joining whole cells may leave (twice it for AUROC)."""
STEP = 2.0**-10
"""Share of the voxels at or above a bin that it may hold where a cell is cut."""
LIGHT = 2.0**-12
"""A score that is alone in its cell is given the whole cell when no larger share of the voxels at or above it has it."""
CROWDED = 2.0**-5
"""A cell that holds more of the voxels at or above it is always cut."""
_OWN = 2.0**-13
"""Error that a bin may add to the average precision of one subject."""
SINGLE, CUT, WHOLE = 0, 1, 2
"""Kinds of cells: every score its own bin, several bins, one bin."""


class Partition:
    """Bins of some cells; in all others every score is its own bin.

    Attributes:
        cells: (C,) int64 ascending, cells (keys shifted by :data:`adbench.metrics.score_bins.CELL_SHIFT`) with joined scores.
        edges: (E,) int64 ascending, the keys at which a bin begins, in those cells; the lower edge of each among them.
        seen: (S,) int64 ascending, cells that held a score when it was made.
    """

    def __init__(
        self, cells: np.ndarray | None = None, edges: np.ndarray | None = None, seen: np.ndarray | None = None
    ) -> None:
        self.cells = np.zeros(0, np.int64) if cells is None else cells
        self.edges = np.zeros(0, np.int64) if edges is None else edges
        self.seen = self.cells if seen is None else united(seen, self.cells)

    @classmethod
    def from_arrays(cls, cells: np.ndarray, inner: np.ndarray) -> Partition:
        """The partition with these :attr:`cells` and :attr:`inner_edges`, checked.

        Raises:
            ValueError: they are not distinct, ascending and finite, or an edge lies in none of the cells.
        """
        cells, inner = cells.astype(np.int64), inner.astype(np.int64)
        limit = _keys.INFINITY >> _keys.CELL_SHIFT
        if len(cells) and ((cells[1:] <= cells[:-1]).any() or cells[0] < -limit or cells[-1] >= limit):
            raise ValueError("its cells are not distinct, ascending and finite")
        if len(inner) and ((inner[1:] <= inner[:-1]).any() or not contains(cells, inner >> _keys.CELL_SHIFT).all()):
            raise ValueError("an edge lies in none of its cells, or the edges are not ascending")
        if (inner & ((1 << _keys.CELL_SHIFT) - 1) == 0).any():
            raise ValueError("an edge is the lowest of its cell")
        return cls(cells, np.union1d(inner, cells << _keys.CELL_SHIFT))

    @cached_property
    def _table(self) -> tuple[int, np.ndarray, np.ndarray]:
        """Lowest cell with joined scores less one; of every cell from there to above the highest its kind and first edge."""
        lowest = int(self.cells[0]) - 1 if len(self.cells) else 0
        width = int(self.cells[-1]) - lowest + 2 if len(self.cells) else 1
        kinds, edge = np.zeros(width, np.uint8), np.full(width, -1, np.int32)
        first = np.searchsorted(self.edges, self.cells << _keys.CELL_SHIFT)
        kinds[self.cells - lowest] = np.where(np.diff(first, append=len(self.edges)) == 1, WHOLE, CUT)
        edge[self.cells - lowest] = first
        return lowest, kinds, edge

    def _places(self, cells: np.ndarray) -> np.ndarray:
        lowest, kinds, _ = self._table
        places = cells - lowest
        if len(cells) and (places.min() < 0 or places.max() >= len(kinds)):  # far faster than np.clip
            places = np.minimum(np.maximum(places, 0), len(kinds) - 1)
        return places

    def kinds(self, cells: np.ndarray) -> np.ndarray:
        """(n,) uint8: whether each of ``cells`` is :data:`SINGLE`, :data:`CUT` or :data:`WHOLE`."""
        return np.asarray(self._table[1][self._places(cells)])

    def whole(self, lowest: int, width: int) -> np.ndarray:
        """(width,) bool: which of the cells from ``lowest`` on are :data:`WHOLE`."""
        first, kinds, _ = self._table
        found = np.zeros(width, np.bool_)
        start, stop = max(lowest, first), min(lowest + width, first + len(kinds))
        if start < stop:
            np.equal(kinds[start - first : stop - first], WHOLE, out=found[start - lowest : stop - lowest])
        return found

    @cached_property
    def _narrow(self) -> np.ndarray:
        """(2 HALF,) bool: of each cell of float32 whether it is one of float64 that is :data:`WHOLE`."""
        found = np.zeros(2 * _keys.HALF, np.bool_)
        side = _keys.HALF - _keys.ODD
        found[:side] = self.whole(-_keys.HALF - _keys.BIAS, side)
        found[-side:] = self.whole(_keys.ODD + _keys.BIAS, side)
        return found

    def whole_narrow(self, lowest: int, width: int) -> np.ndarray:
        """(width,) bool, not to be written to: as :meth:`whole`, of cells of float32. Those below its normal numbers are not."""
        return self._narrow[lowest + _keys.HALF :][:width]

    def numbers(self, bins: np.ndarray) -> np.ndarray:
        """(n,) which of the edges begins each of ``bins``; -1 for single scores."""
        _, kinds, edge = self._table
        places = self._places(bins >> _keys.CELL_SHIFT)
        numbers: np.ndarray = edge[places]
        cut = (kinds[places] == CUT).nonzero()[0]
        if len(cut):
            numbers[cut] = np.searchsorted(self.edges, bins[cut])
        return numbers

    @property
    def inner_edges(self) -> np.ndarray:
        """Those of the edges that are not the lowest of their cell."""
        return np.asarray(self.edges[(self.edges & ((1 << _keys.CELL_SHIFT) - 1)) != 0])

    def of(self, keys: np.ndarray) -> np.ndarray:
        """The bin of each key: the key at which it begins. Fastest where keys ascend."""
        if not len(self.cells) or not len(keys):
            return keys
        cells = keys >> _keys.CELL_SHIFT
        kinds = self.kinds(cells)
        bins = np.where(kinds == WHOLE, cells << _keys.CELL_SHIFT, keys)
        cut = np.flatnonzero(kinds == CUT)
        bins[cut] = self.edges[np.searchsorted(self.edges, keys[cut], side="right") - 1]
        return bins

    @cached_property
    def _ends(self) -> np.ndarray:
        """(E,) the key just above the highest that the bin of each edge may hold."""
        last = ((self.edges >> _keys.CELL_SHIFT) + 1) << _keys.CELL_SHIFT
        last[:-1] = np.minimum(last[:-1], self.edges[1:])
        return last

    def free(self, bins: np.ndarray) -> np.ndarray:
        """Places of the bins that a coarser partition may still join with others: those that are not whole cells."""
        return np.flatnonzero(self.kinds(bins >> _keys.CELL_SHIFT) != WHOLE)

    def ends(self, bins: np.ndarray) -> np.ndarray:
        """(n,) the key just above the highest that each of ``bins`` may hold."""
        number = self.numbers(bins)
        ends: np.ndarray = bins + 1
        several = (number >= 0).nonzero()[0]
        ends[several] = self._ends[number[several]]
        return ends

    def joined(self, bins: np.ndarray) -> np.ndarray:
        """(n,) bool: which bins may hold different scores; in the others all scores are equal."""
        joined: np.ndarray = self.ends(bins) - bins > 1
        return joined

    def meet(self, other: Partition) -> Partition:
        """The finest partition of which both are refinements; any order of meetings ends at the same one."""
        if self == other or not len(other.cells):
            return self
        if not len(self.cells):
            return other
        own = contains(self.cells, other.edges >> _keys.CELL_SHIFT)  # edges of other in cells of both
        theirs = contains(other.cells, self.edges >> _keys.CELL_SHIFT)
        both = self.edges[theirs]
        both = both[contains(other.edges[own], both)]
        edges = np.concatenate([self.edges[~theirs], other.edges[~own], both])
        return Partition(united(self.cells, other.cells), np.sort(edges), united(self.seen, other.seen))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Partition):
            return NotImplemented
        return np.array_equal(self.cells, other.cells) and np.array_equal(self.edges, other.edges)

    __hash__ = None  # type: ignore[assignment]


def distinct(values: np.ndarray) -> np.ndarray:
    """``values`` ascending, each once; on integers many times faster than ``np.unique``, which hashes them."""
    ordered = np.sort(values)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])] if len(ordered) else ordered


def united(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The distinct values of both, ascending; ``first`` is so already."""
    return distinct(np.concatenate([first, second])) if len(second) else first


def contains(sorted_values: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(n,) bool: which ``values`` are among ``sorted_values`` (ascending)."""
    if not len(sorted_values):
        return np.zeros(len(values), bool)
    places = np.minimum(np.searchsorted(sorted_values, values), len(sorted_values) - 1)
    return np.asarray(sorted_values[places] == values)


def coarser(
    pool: Bins,
    members: Sequence[Bins],
    partition: Partition,
    thresholds: Iterable[float] = (),
) -> Partition:
    """A partition with fewer bins that leaves the numbers of ``members`` as they are.

    Whole cells are joined, those first that widen the brackets of the pooled average precision and AUROC least, until
    the brackets are :data:`TIES` wide. The others are cut so that a bin holds at most :data:`STEP` of the voxels at or
    above it; a score that alone holds more is a bin of its own. Where a bin would blur the average precision of one
    subject, its scores there keep bins of their own.

    Args:
        pool: counts of all members together.
        members: counts of the subjects, all binned by ``partition``.
        partition: the present bins.
        thresholds: scores that stay edges, because something is counted there.
    """
    cells, positive, negative, several, rounded = _by_cell(*pool)
    pins = distinct(np.array([_keys.key_of(threshold) for threshold in thresholds], np.int64))
    pins = pins[partition.of(pins) == pins]  # scores within a bin can no longer be separated
    cut = _to_cut(positive, negative)
    cut |= contains(pins >> _keys.CELL_SHIFT, cells)
    several |= contains(partition.cells, cells)
    mass = positive + negative
    # One score alone in its cell may get neighbours. Where there are as many of it as of a tie, or where it is a float16
    # value, it stays one.
    several |= rounded & (mass <= LIGHT * np.cumsum(mass[::-1])[::-1])
    kept = partition.cells[~contains(cells, partition.cells)]  # no score of the members is there: unchanged
    edges = [
        partition.edges[contains(kept, partition.edges >> _keys.CELL_SHIFT)],
        cells[several] << _keys.CELL_SHIFT,
        _cuts(pool[0], pool[1] + pool[2], partition, cells, cut & several, mass, pins),
    ]
    seen = united(partition.seen, cells)
    found = Partition(united(kept, cells[several]), distinct(np.concatenate(edges)), seen)
    extra = [own for member in members if len(own := _blurred(member, partition, found))]
    if extra:
        found = Partition(found.cells, distinct(np.concatenate([found.edges, *extra])), seen)
    return found


def _by_cell(keys: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, ...]:
    """(C,) cells ascending, their lesion and background voxels, whether there are several keys, and one within them."""
    if not len(keys):
        return keys, positive, negative, np.zeros(0, bool), np.zeros(0, bool)
    cell = keys >> _keys.CELL_SHIFT
    first = np.flatnonzero(np.append(True, cell[1:] != cell[:-1]))
    several = np.diff(first, append=len(keys)) > 1
    last = keys[np.append(first[1:], len(keys)) - 1]
    within = last > cell[first] << _keys.CELL_SHIFT
    return cell[first], np.add.reduceat(positive, first), np.add.reduceat(negative, first), several, within


def _to_cut(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """(C,) bool: cells that cannot be joined without widening the brackets too much."""
    mass = positive + negative
    tail = np.cumsum(mass[::-1])[::-1]
    total = mass.sum()
    if positive.any() and negative.any():
        tp, fp = np.cumsum(positive[::-1])[::-1], np.cumsum(negative[::-1])[::-1]
        highest = tp / np.maximum(tp + fp - negative, 1)
        middle = tp - (positive - 1) / 2
        lowest = middle / np.maximum(middle + fp, 1)
        share = positive / positive.sum()
        widths = [share * np.maximum(highest - lowest, 0) / TIES, share * negative / negative.sum() / (2 * TIES)]
    else:  # as if any of the voxels might turn out to be a lesion
        widths = [mass / max(total, 1) * mass / np.maximum(tail, 1) / (8 * TIES)]
    cut: np.ndarray = mass > CROWDED * tail  # whatever is seen so far: more of the highest scores may follow
    for width in widths:
        order = np.argsort(width)
        cut[order] |= np.cumsum(width[order]) > 1
    return cut


def _cuts(
    keys: np.ndarray,
    counts: np.ndarray,
    partition: Partition,
    cells: np.ndarray,
    cut: np.ndarray,
    mass: np.ndarray,
    pins: np.ndarray,
) -> np.ndarray:
    """Keys at which the bins of the cells to be cut begin."""
    chosen = cells[cut]
    inside = contains(chosen, keys >> _keys.CELL_SHIFT)
    keys, counts = keys[inside], counts[inside]
    if not len(keys):
        return keys
    # Voxels at or above each key: those of the cells above its own, and those of its own cell from it upwards.
    above_cell = np.append(np.cumsum(mass[::-1])[::-1], 0)
    place = np.searchsorted(cells, keys >> _keys.CELL_SHIFT)
    running = np.cumsum(counts[::-1])[::-1]
    ends = np.searchsorted(keys >> _keys.CELL_SHIFT, keys >> _keys.CELL_SHIFT, side="right")
    tail = above_cell[place + 1] + running - np.append(running, 0)[ends]
    heavy = counts > STEP / 2 * tail
    step = np.floor(np.log(np.maximum(tail - counts, 1)) / STEP)  # equal for keys that share a bin
    begins = np.ones(len(keys), bool)
    begins[1:] = (step[1:] != step[:-1]) | heavy[1:] | heavy[:-1]
    alone = keys[heavy & ~partition.joined(keys)]
    pinned = pins[contains(chosen, pins >> _keys.CELL_SHIFT)]
    return np.concatenate([keys[begins], alone + 1, pinned])


def _blurred(member: Bins, before: Partition, partition: Partition) -> np.ndarray:
    """Keys of a subject in bins of ``partition``, coarser than ``before``, that would blur its own average precision."""
    keys, positive, negative = member
    total = positive.sum()
    free = before.free(keys)
    bins = partition.of(keys[free])
    same = bins[1:] == bins[:-1]
    joined = np.flatnonzero(np.append(same, False) | np.append(False, same))
    if not total or not len(joined):
        return np.zeros(0, np.int64)
    bins, joined = bins[joined], free[joined]
    first = np.flatnonzero(np.append(True, bins[1:] != bins[:-1]))
    lesion, background = np.add.reduceat(positive[joined], first), np.add.reduceat(negative[joined], first)
    tail = np.cumsum((positive + negative)[::-1])[::-1]
    blurred = (background > 0) & (lesion / total * (lesion + background) / tail[joined[first]] > _OWN)
    return np.asarray(keys[joined[np.repeat(blurred, np.diff(first, append=len(joined)))]])
