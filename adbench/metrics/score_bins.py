"""Integer keys in the order of the scores, so that a histogram needs no range beforehand.

The IEEE-754 bits of a float, read as sign and magnitude, give an integer in the order of the floats (-0 equals +0). Keys
are those of float64, whatever the type of the scores: float16, float32 and integers up to 2^53 lose nothing on the way,
so maps of different types have one order. Scores that arrive as float32 are counted by their 32 bits and only the keys
that occur are widened.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from adbench.errors import UserError

CELL_BITS = 10
"""Mantissa bits of a cell, the coarsest bin there is: every float16 value is the lower edge of a cell of its own."""
CELL_SHIFT = 52 - CELL_BITS
NARROW_SHIFT = 23 - CELL_BITS
ODD = 1 << CELL_BITS
"""Cells of float32 from -ODD to below ODD hold what is not a normal number."""
HALF = 1 << 31 - NARROW_SHIFT
"""Cells of float32 on either side of 0."""
BIAS = 896 << CELL_BITS
"""A cell of float32 that holds normal numbers is the cell of float64 so much farther from 0: 1023 less 127 exponents."""
INFINITY = 0x7FF0000000000000


def is_tensor(value: Any) -> bool:
    """Whether ``value`` is a torch tensor, found out without importing torch."""
    return type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "detach")


def as_array(value: Any) -> np.ndarray:
    """An array or a torch tensor (copied to the host) as an array, in its own type; bfloat16 becomes float32."""
    if is_tensor(value):
        tensor = value.detach().cpu()
        value = (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
    return np.asarray(value)


def as_float(scores: np.ndarray, where: str) -> np.ndarray:
    """``scores`` as float32 where that loses nothing, else as float64.

    Args:
        scores: any shape; booleans, integers or floats.
        where: what they belong to, for the message ("case 'a'").

    Raises:
        UserError: not numbers, or numbers that float64 cannot tell apart.
    """
    kind, size = scores.dtype.kind, scores.dtype.itemsize
    if kind not in "fiub":
        raise UserError(f"Scores of {where} are of type {scores.dtype}, not numbers.")
    if (kind == "f" and size <= 4) or size <= 2:
        return scores.astype(np.float32, copy=False)
    wide = scores.astype(np.float64, copy=False)
    if wide.dtype != scores.dtype:
        with np.errstate(invalid="ignore"):  # 2^64 back to an integer
            lost = wide.astype(scores.dtype) != scores
        if kind == "f":
            lost &= ~np.isnan(scores)
        elif scores.size and (scores.max() > 1 << 53 or (kind == "i" and scores.min() < -(1 << 53))):
            lost |= np.abs(wide) > 1 << 53
        if lost.any():
            raise UserError(
                f"Scores of {where} are of type {scores.dtype} and hold {int(lost.sum())} values that float64 cannot "
                "tell from their neighbours: store ranks, or a monotone transform that float64 holds."
            )
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = wide.astype(np.float32)
    return narrow if np.array_equal(narrow, wide, equal_nan=True) else wide


def ordered(scores: np.ndarray) -> np.ndarray:
    """The integer in the order of each score: int32 for float32 scores, int64 for float64."""
    integers = np.int32 if scores.dtype == np.float32 else np.int64
    bits = np.ascontiguousarray(scores).view(integers)
    return _flipped(bits) if bits.size and bits.min() < 0 else bits


def widened(ordered: np.ndarray) -> np.ndarray:
    """Keys (int64, of float64) of the ordered integers of float32 or float64 scores."""
    if ordered.dtype == np.int64:
        return ordered
    bits = _flipped(ordered)
    return _of_floats(bits.astype(np.int32).view(np.float32).astype(np.float64))


def wide_cells(cells: np.ndarray) -> np.ndarray:
    """(n,) int64 cells of float64 (keys shifted by :data:`CELL_SHIFT`) of cells of float32 (ordered integers, shifted).

    Ascending, and only of normal numbers and of 0: below, a cell of float32 is several of float64, see :data:`ODD`.
    """
    cells = cells.astype(np.int64)
    below, above = np.searchsorted(cells, (-ODD, ODD))
    cells[:below] -= BIAS
    cells[above:] += BIAS
    return cells


def edges(keys: np.ndarray) -> np.ndarray:
    """(n,) float64: the score of each key, the lower edge of its bin."""
    whole = np.minimum(np.maximum(np.asarray(keys, dtype=np.int64), 1 - INFINITY), INFINITY)
    return _flipped(whole).view(np.float64)


def key_of(threshold: float) -> int:
    """The key of ``threshold``: scores at or above it have at least this key."""
    value = np.float64(threshold)
    if np.isnan(value):
        raise UserError("A threshold is NaN.")
    return int(_of_floats(value.reshape(1))[0])


def predict(scores: Any, threshold: float) -> Any:
    """``scores >= threshold`` without rounding either: the one rule by which a threshold is applied in this package.

    Args:
        scores: array or tensor of scores, any numeric type.
        threshold: as stored in a record (float64); one chosen on a histogram gives the very counts of the histogram.

    Returns:
        A boolean array (or tensor) of the same shape.
    """
    if is_tensor(scores):
        import torch

        if scores.dtype in (torch.float64, torch.int64, torch.int32):
            return scores.double() >= float(threshold)
        return scores.float() >= float(_narrow_from(threshold))
    scores = np.asarray(scores)
    if scores.dtype.kind == "f" and scores.dtype.itemsize <= 4:
        return scores.astype(np.float32, copy=False) >= _narrow_from(threshold)
    return scores.astype(np.float64, copy=False) >= np.float64(threshold)


def _narrow_from(threshold: float) -> np.float32:
    """The lowest float32 at or above ``threshold``: float32 scores reach the one exactly when they reach the other."""
    with np.errstate(over="ignore"):
        narrow = np.float32(threshold)
    return narrow if np.float64(narrow) >= threshold else np.nextafter(narrow, np.float32(np.inf))


def _of_floats(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values, np.float64).view(np.int64)
    return _flipped(bits)


def _flipped(integers: np.ndarray) -> np.ndarray:
    """Sign and magnitude to two's complement, or back."""
    return np.where(integers < 0, np.iinfo(integers.dtype).min - integers, integers)
