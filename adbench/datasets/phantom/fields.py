"""Smooth random fields given by cubic B-splines: cheap, C2, and the same at every resolution."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MARGIN = 40.0  # mm of control points beyond the template's grid on each side, so that every query has support
UNIT = (151 / 315) ** 1.5  # standard deviation of a field with standard normal coefficients, averaged over space


def power(base: np.ndarray, exponent: float) -> np.ndarray:
    """``base ** exponent`` by the C library, a value at a time.

    numpy's own loop takes AVX-512 where the CPU has it, and its last digit is another one there: the pixels of a phantom
    would depend on the CPU.
    """
    values, where = np.unique(base, return_inverse=True)
    return np.array([value**exponent for value in values], base.dtype)[where.reshape(base.shape)]


def _weights(positions: np.ndarray, origin: float, spacing: float, count: int) -> np.ndarray:
    """(P, count) matrix of cubic B-spline weights of ``positions`` (mm) on control points ``origin + i * spacing``."""
    distance = np.abs((positions[:, None] - origin) / spacing - np.arange(count)[None, :])
    near = 2 / 3 - distance**2 + power(distance, 3) / 2
    far = power(np.clip(2 - distance, 0, None), 3) / 6
    return np.where(distance < 1, near, far).astype(np.float32)


def apply_weights(weights: np.ndarray, field: np.ndarray, axis: int, taps: int) -> np.ndarray:
    """``weights @ field`` along ``axis``, for weights of which at most ``taps`` neighbouring ones a row are not 0.

    Terms are added one after another in a fixed order. A matrix product of BLAS adds them in an order that depends on
    its number of threads, and the pixels of a phantom would too.

    Args:
        weights: (P, N) float32.
        field: float32, N long along ``axis``.
        axis: of ``field``.
        taps: most entries between the first and the last that is not 0 in a row, both included.

    Returns:
        float32, P long along ``axis``.
    """
    taps = min(taps, weights.shape[1])
    first = np.minimum((weights != 0).argmax(axis=1), weights.shape[1] - taps)
    result = np.zeros((*field.shape[:axis], len(weights), *field.shape[axis + 1 :]), np.float32)
    planes, target = np.moveaxis(field, axis, 0), np.moveaxis(result, axis, 0)
    for row, start in enumerate(first):  # a plane at a time stays in the cache
        for tap in range(start, start + taps):
            target[row] += weights[row, tap] * planes[tap]
    return result


def control_shape(spacing: float, bounds: Sequence[tuple[float, float]]) -> tuple[int, ...]:
    """How many control points a field of ``spacing`` mm has along each axis of the box ``bounds`` (mm)."""
    return tuple(int(np.ceil((high - low + 2 * MARGIN) / spacing)) + 1 for low, high in bounds)


def evaluate_spline(
    coefficients: np.ndarray, axes: Sequence[np.ndarray], spacing: float, bounds: Sequence[tuple[float, float]]
) -> np.ndarray:
    """The spline with ``coefficients`` on the grid spanned by ``axes``.

    Args:
        coefficients: (A, B, C) values at the control points.
        axes: three coordinate vectors, mm.
        spacing: of the control points, mm.
        bounds: (low, high) of the box in mm along each axis, the same for every resolution.

    Returns:
        (len(axes[0]), len(axes[1]), len(axes[2])) float32.
    """
    field = np.asarray(coefficients, np.float32)
    for axis in (2, 1, 0):  # z first: where only a few planes are wanted, it leaves the least to do
        weights = _weights(axes[axis], bounds[axis][0] - MARGIN, spacing, coefficients.shape[axis])
        field = apply_weights(weights, field, axis, taps=4)
    return field


def random_field(
    rng: np.random.Generator, axes: Sequence[np.ndarray], spacing: float, bounds: Sequence[tuple[float, float]]
) -> np.ndarray:
    """A smooth field of zero mean and unit variance whose features are about ``spacing`` mm large."""
    coefficients = rng.standard_normal(control_shape(spacing, bounds), dtype=np.float32)
    return evaluate_spline(coefficients, axes, spacing, bounds) / np.float32(UNIT)
