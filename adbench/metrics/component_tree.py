"""Connected components of a map at many thresholds, found in one pass over its voxels.

The components of a lower threshold are unions of those of the higher ones and of what lies between them. So every voxel is
first led uphill, to a peak that it is connected with at its own level already; what is left is a small graph of peaks, whose
edges are joined level by level, from the highest down.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

_BLOCK = 1 << 15  # voxels whose neighbours are looked up together: what that needs stays in a processor cache
_MOST_EDGES = 1 << 22  # edges before equal ones are joined


@dataclass(frozen=True)
class Peaks:
    """Voxels, the peaks that they belong to, and between which peaks there are edges.

    Voxels are in the order of their level, the highest first, and equal ones in scan order; so are the peaks.

    Attributes:
        order: (N,) place of each voxel in scan order.
        peak: (N,) peak of each voxel.
        voxel_ends: (K + 1,) how many voxels have a level above K, of K or more, ..., of 1 or more.
        peak_ends: (K + 1,) the same of peaks.
        edges: (E, 2) two peaks.
        edge_ends: (K + 1,) the same of edges, whose level is the lower one of two neighbouring voxels.
    """

    order: np.ndarray
    peak: np.ndarray
    voxel_ends: np.ndarray
    peak_ends: np.ndarray
    edges: np.ndarray
    edge_ends: np.ndarray


@dataclass(frozen=True)
class Level:
    """The components of all voxels of at least one level.

    Attributes:
        voxels: (n,) those of exactly this level, counted in the order of :attr:`Peaks.order`.
        count: components.
        component: (peaks so far,) the component of each peak, named by one of its peaks.
        size: (peaks so far,) voxels of the component of that name.
        first: (peaks so far,) its first voxel in scan order.
    """

    voxels: slice
    count: int
    component: np.ndarray
    size: np.ndarray
    first: np.ndarray


def find_peaks(inside: np.ndarray, level: np.ndarray, highest: int, cuts: np.ndarray) -> Peaks:
    """Lead every voxel to a peak.

    A voxel goes on to the neighbour of the highest level, of equal ones to the first in scan order, until it is that itself.

    Args:
        inside: (S, H, W) bool.
        level: (N,) of its voxels in scan order, from 1 to ``highest``.
        highest: K, the highest level that there may be.
        cuts: (k,) places p such that nothing is joined between the planes p - 1 and p.
    """
    padded = spread(inside, cuts)[2]
    places = np.flatnonzero(padded)
    grid = np.full(padded.shape, len(places), np.int32)  # N: no voxel
    depth = (highest - level).astype(np.min_scalar_type(highest))  # sorted by radix where it has 8 or 16 bits
    order = np.argsort(depth, kind="stable").astype(np.int32)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order), dtype=np.int32)
    grid.ravel()[places] = rank
    peak, tops = _uphill(grid, places, rank)
    edges, edge_depth = _edges(grid, places, peak[rank], depth)
    depth = depth[order]
    ends = [np.searchsorted(each, np.arange(highest), "right") for each in (depth, depth[tops], edge_depth)]
    voxel_ends, peak_ends, edge_ends = (np.append(0, each) for each in ends)
    return Peaks(order, peak, voxel_ends, peak_ends, edges, edge_ends)


def levels(found: Peaks) -> Iterator[Level]:
    """The components of each level, from the highest down. Arrays are reused: look at one before you ask for the next."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    number = int(found.peak_ends[-1])
    component = np.arange(number, dtype=np.int32)
    size, first = np.zeros(number, np.int64), np.full(number, len(found.order), np.int64)
    count = 0
    for place in range(1, len(found.voxel_ends)):
        peak_count = int(found.peak_ends[place])
        count += peak_count - int(found.peak_ends[place - 1])
        own = component[:peak_count]
        ends = own[found.edges[found.edge_ends[place - 1] : found.edge_ends[place]]]
        ends = ends[ends[:, 0] != ends[:, 1]]
        if len(ends):
            touched, pairs = np.unique(ends, return_inverse=True)
            pairs = pairs.reshape(-1, 2)
            graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(len(touched),) * 2)
            groups, group = connected_components(graph, directed=False)
            name = np.empty(groups, np.int32)
            name[group] = touched
            size[name] = np.bincount(group, size[touched])
            earliest = np.full(groups, len(found.order))
            np.minimum.at(earliest, group, first[touched])
            first[name] = earliest
            moved = np.arange(peak_count, dtype=np.int32)
            moved[touched] = name[group]
            own[:] = moved[own]
            count -= len(touched) - groups
        new = slice(int(found.voxel_ends[place - 1]), int(found.voxel_ends[place]))
        at = own[found.peak[new]]
        size[:peak_count] += np.bincount(at, minlength=peak_count)
        earliest = np.full(peak_count, len(found.order))
        earliest[at[::-1]] = found.order[new][::-1]  # the last that is written stays
        np.minimum(first[:peak_count], earliest, out=first[:peak_count])
        yield Level(new, count, own, size[:peak_count], first[:peak_count])


def spread(mask: np.ndarray, cuts: np.ndarray) -> tuple[tuple[slice, slice, slice], np.ndarray, np.ndarray]:
    """The box of what is true, with a margin of one voxel and an empty plane in each cut: neighbours there are neighbours.

    Args:
        mask: (S, H, W) bool, something in it true.
        cuts: (k,) places p such that nothing is joined between the planes p - 1 and p.

    Returns:
        The box in the mask, (s,) where its planes are in the third, and (s + 2 or more, h + 2, w + 2) bool.
    """
    box = planes, rows, columns = span(mask, (1, 2)), span(mask, (0, 2)), span(mask, (0, 1))
    planes_of = np.arange(planes.start, planes.stop)
    place = 1 + np.arange(len(planes_of)) + np.searchsorted(cuts[cuts > planes.start], planes_of, "right")
    padded = np.zeros((place[-1] + 2, rows.stop - rows.start + 2, columns.stop - columns.start + 2), bool)
    padded[place, 1:-1, 1:-1] = mask[box]
    return box, place, padded


def span(mask: np.ndarray, others: int | tuple[int, int]) -> slice:
    """From the first to the last index of an axis that has something true in the ``others``."""
    found = np.flatnonzero(mask.any(axis=others))
    return slice(int(found[0]), int(found[-1]) + 1)


def _uphill(grid: np.ndarray, places: np.ndarray, rank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) the peak of each voxel, in the order of rank, and the rank of each peak."""
    above, size = np.empty_like(rank), grid[0].size
    ends = np.searchsorted(places, np.arange(len(grid) + 1) * size)
    least = np.full(grid[0].shape, len(rank), np.int32)
    before, here = (_least(plane) for plane in grid[:2])
    for plane in range(1, len(grid) - 1):
        after = _least(grid[plane + 1])
        np.minimum(np.minimum(before, here), after, out=least[1:-1, 1:-1])
        part = slice(ends[plane], ends[plane + 1])
        above[rank[part]] = least.ravel().take(places[part] - plane * size)
        before, here = here, after
    while not np.array_equal(higher := above.take(above), above):
        above = higher
    top = above == np.arange(len(above), dtype=above.dtype)
    number = np.cumsum(top, dtype=np.int32)
    number -= 1
    return number[above], np.flatnonzero(top)


def _least(plane: np.ndarray) -> np.ndarray:
    """The least of 3 x 3, without the margin."""
    rows = np.minimum(np.minimum(plane[:-2], plane[1:-1]), plane[2:])
    return np.asarray(np.minimum(np.minimum(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:]))


def _edges(grid: np.ndarray, places: np.ndarray, peak: np.ndarray, depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(E, 2) all pairs of neighbouring peaks, and (E,) the least depth at which they touch, ascending.

    Args:
        grid: (D, H, W) int32, overwritten.
        places: (N,) of the voxels in it, flat.
        peak: (N,) of each voxel, in scan order.
        depth: (N,) of each voxel, in scan order.
    """
    low, high = int(depth.max()).bit_length(), int(peak.max()).bit_length()
    height, width = grid.shape[1:]
    steps = [(z * height + y) * width + x for z, y, x in product((0, 1), (-1, 0, 1), (-1, 0, 1))]
    steps = [step for step in steps if step > 0]  # to the 13 neighbours that come later
    grid.fill(-1)
    grid.ravel()[places] = peak
    depths = np.zeros(grid.size, depth.dtype)
    depths[places] = depth
    found, size = [np.zeros(0, np.int64)], 0
    for start in range(0, len(places), _BLOCK):
        block = slice(start, start + _BLOCK)
        at, mine, reached = places[block], peak[block], depth[block]
        for step in steps:
            other = grid.ravel()[step:].take(at)
            across = np.flatnonzero((other != mine) & (other >= 0))
            if len(across):
                pair = mine[across], other[across]
                code = np.minimum(*pair).astype(np.int64) << high
                code |= np.maximum(*pair)
                code <<= low
                code |= np.maximum(reached[across], depths[step:].take(at[across]))
                found.append(code)
                size += len(code)
        if size > _MOST_EDGES:
            found = [_distinct(np.concatenate(found), low)]
            size = len(found[0])
    codes = _distinct(np.concatenate(found), low)
    edge_depth = (codes & ((1 << low) - 1)).astype(depth.dtype)
    order = np.argsort(edge_depth, kind="stable")
    codes = codes[order] >> low
    return np.stack([codes >> high, codes & ((1 << high) - 1)], axis=1).astype(np.int32), edge_depth[order]


def _distinct(codes: np.ndarray, low: int) -> np.ndarray:
    """One code a pair, the lowest; ``low``: bits of the depth."""
    codes = np.sort(codes)
    pairs = codes >> low
    return codes[np.append(True, pairs[1:] != pairs[:-1])] if len(codes) else codes
