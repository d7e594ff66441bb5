"""Structural similarity of two images: Wang et al. 2004 (IEEE TIP 13:600), Gaussian window of 11 x 11 with sigma 1.5."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np

RADIUS, SIGMA = 5, 1.5  # px
C1, C2 = 0.01**2, 0.03**2  # data range 1
_STRIP = 64  # rows at a time: what is computed of them stays in a processor cache
_BLOCK = 16  # rows or columns that one product filters; small enough that BLAS takes one thread, whatever it may


@cache
def _window() -> np.ndarray:
    """(_BLOCK, _BLOCK + 10) that filters _BLOCK neighbouring pixels."""
    weights = np.exp(-0.5 * (np.arange(-RADIUS, RADIUS + 1) / SIGMA) ** 2)
    weights /= weights.sum()
    window = np.zeros((_BLOCK, _BLOCK + 2 * RADIUS))
    for row in range(_BLOCK):
        window[row, row : row + len(weights)] = weights
    return window


def ssim_map(
    first: np.ndarray, second: np.ndarray, rows: slice = slice(None), columns: slice = slice(None)
) -> np.ndarray:
    """Structural similarity of two (H, W) images in [0, 1], float64; edges are mirrored.

    Where a pixel that is not finite lies in the window of another, that one is NaN.

    Args:
        first: an image.
        second: another.
        rows: which ones are wanted, of all.
        columns: which ones are wanted, of all.

    Returns:
        (h, w), as many as are wanted.
    """
    ends = [part.indices(size)[:2] for part, size in zip((rows, columns), first.shape, strict=True)]
    x, y = _framed(first, ends), _framed(second, ends)
    bad = ~(np.isfinite(x) & np.isfinite(y))
    if bad.any():  # a product with a window would carry them far
        x, y = np.where(bad, 0, x), np.where(bad, 0, y)
    height, width = (stop - start for start, stop in ends)
    found = np.empty((height, width))
    for top in range(0, height, _STRIP):
        count = min(_STRIP, height - top)
        part = slice(top, top + count + 2 * RADIUS)
        found[top : top + count] = _similarity(x[part], y[part])
    if bad.any():
        near = [
            bad[row : row + height, column : column + width] for row, column in product(range(2 * RADIUS + 1), repeat=2)
        ]
        found[np.logical_or.reduce(near)] = np.nan
    return found


def _framed(image: np.ndarray, ends: list[tuple[int, int]]) -> np.ndarray:
    """The box between ``ends`` of an image, and as much around it as a window reaches."""
    kept = [
        (max(start - RADIUS, 0), min(stop + RADIUS, size))
        for (start, stop), size in zip(ends, image.shape, strict=True)
    ]
    box = image[tuple(slice(*one) for one in kept)]
    lacking = [
        (RADIUS - start + low, stop + RADIUS - high) for (start, stop), (low, high) in zip(ends, kept, strict=True)
    ]
    return np.pad(box, lacking, "symmetric") if any(map(any, lacking)) else box


def _similarity(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(h, w) similarity in two framed (h + 10, w + 10) images."""
    fields = np.empty((4, *x.shape))
    fields[0], fields[1] = x, y
    np.multiply(fields[0], fields[0], out=fields[2])
    np.multiply(fields[1], fields[1], out=fields[3])
    fields[2] += fields[3]
    np.multiply(fields[0], fields[1], out=fields[3])
    mean_x, mean_y, squares, product_ = _smoothed(fields)
    products = mean_x * mean_y
    mean_x *= mean_x
    mean_y *= mean_y
    mean_x += mean_y
    squares -= mean_x  # both variances
    squares += C2
    mean_x += C1
    mean_x *= squares
    product_ -= products  # the covariance
    product_ *= 2
    product_ += C2
    products *= 2
    products += C1
    products *= product_
    return np.asarray(products / mean_x)


def _smoothed(fields: np.ndarray) -> np.ndarray:
    """(n, h, w) of (n, h + 10, w + 10) fields: sums under the window, as products with a band of weights."""
    window = _window()
    count, rows, columns = fields.shape
    height, width = rows - 2 * RADIUS, columns - 2 * RADIUS
    across, down = np.empty((count, rows, width)), np.empty((count, height, width))
    lines, filtered = fields.reshape(-1, columns), across.reshape(-1, width)
    for start in range(0, width, _BLOCK):
        some = min(_BLOCK, width - start)
        weights = window[:some, : some + 2 * RADIUS].T
        np.matmul(lines[:, start : start + len(weights)], weights, out=filtered[:, start : start + some])
    for start in range(0, height, _BLOCK):
        some = min(_BLOCK, height - start)
        weights = window[:some, : some + 2 * RADIUS]
        np.matmul(weights, across[:, start : start + weights.shape[1]], out=down[:, start : start + some])
    return down
