"""Integer keys in the order of float32 scores, so that a histogram needs no range beforehand.

The IEEE-754 bits of a float32, read as sign and magnitude, give an integer in the order of the floats (-0 equals +0).
Its low ``23 - mantissa_bits`` bits are dropped by an arithmetic shift, which rounds towards minus infinity: a bin is
``[edge, next edge)`` on both sides of zero, and its lower edge is a score of at most ``mantissa_bits`` mantissa bits.
Every float16 value is a lower edge when ``mantissa_bits >= 10``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from adbench.errors import UserError

MANTISSA_BITS = 10
_INFINITY = 0x7F800000
_SIGN = np.int32(-0x80000000)


def is_tensor(value: Any) -> bool:
    """Whether ``value`` is a torch tensor, found out without importing torch."""
    return type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "detach")


def check_bits(mantissa_bits: int) -> int:
    """``mantissa_bits`` itself when it is an integer from 0 to 23; otherwise a ``UserError``."""
    if isinstance(mantissa_bits, bool) or not isinstance(mantissa_bits, int) or not 0 <= mantissa_bits <= 23:
        raise UserError(f"mantissa_bits = {mantissa_bits!r} is not valid: give an integer from 0 to 23.")
    return mantissa_bits


def ordered(scores: np.ndarray) -> np.ndarray:
    """The int32 in the order of each score.

    Args:
        scores: float32, any shape, any finite value.
    """
    bits = np.ascontiguousarray(scores, dtype=np.float32).view(np.int32)
    if bits.size and bits.min() < 0:
        return np.where(bits < 0, _SIGN - bits, bits)
    return bits


def ordered_tensor(scores: Any) -> Any:
    """:func:`ordered` for a torch tensor, on the device where it lives."""
    import torch

    bits = scores.detach().to(torch.float32).contiguous().view(torch.int32)
    return torch.where(bits < 0, torch.iinfo(torch.int32).min - bits, bits)


def is_finite_range(lowest: int, highest: int) -> bool:
    """Whether ordered integers from ``lowest`` to ``highest`` are all finite scores."""
    return lowest > -_INFINITY and highest < _INFINITY


def count_non_finite(ordered: np.ndarray) -> int:
    """How many ordered integers are those of NaN or an infinity."""
    return int(np.count_nonzero((ordered >= _INFINITY) | (ordered <= -_INFINITY)))


def edges(keys: np.ndarray, mantissa_bits: int) -> np.ndarray:
    """(n,) float32: the lower edge of each bin.

    Args:
        keys: (n,) integer keys, that is ordered integers shifted right by ``23 - mantissa_bits``.
        mantissa_bits: as the keys were made.
    """
    whole = np.asarray(keys, dtype=np.int64) << (23 - mantissa_bits)
    whole = np.clip(whole, 1 - _INFINITY, _INFINITY)  # the lowest bin starts at the lowest finite score
    bits = np.where(whole < 0, -0x80000000 - whole, whole)
    return bits.astype(np.int32).view(np.float32)


def key_of(threshold: float, mantissa_bits: int) -> int:
    """The lowest key whose bin lies wholly at or above ``threshold``.

    For a threshold that is a lower edge (all that this package chooses) these are exactly the scores ``>= threshold``.
    """
    value = np.float32(threshold)
    if np.isnan(value):
        raise UserError("A threshold is NaN.")
    whole = int(ordered(value.reshape(1))[0])
    if whole <= 1 - _INFINITY:
        whole = -_INFINITY  # the lower edge of the lowest bin is written as the lowest finite score
    return -((-whole) >> (23 - mantissa_bits))


def predict(scores: Any, threshold: float) -> Any:
    """``scores >= threshold``, both as float32: the one rule by which a threshold is applied in this package.

    Args:
        scores: array or tensor of scores, any float type.
        threshold: as stored in a record; a threshold chosen on a histogram gives the very counts of the histogram.

    Returns:
        A boolean array (or tensor) of the same shape.
    """
    if is_tensor(scores):
        return scores.float() >= float(np.float32(threshold))
    return np.asarray(scores, dtype=np.float32) >= np.float32(threshold)
