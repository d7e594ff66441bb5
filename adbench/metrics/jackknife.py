"""Intervals from leaving out one subject at a time: a t-interval on the log-odds scale that holds its level with few.

Lesion sizes are skewed, so a pooled number hangs on few subjects. The percentile bootstrap is then too narrow and BCa no
better (``benchmarks/statistics.py`` has the study); what holds is to measure the spread by leaving out subjects, which
never has a downward bias, to take the degrees of freedom from how evenly subjects contribute, and to build the interval
where a share has no ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from adbench.errors import UserError
from adbench.metrics.spec import WIDE

MINIMUM = 6  # subjects, below which there is neither an interval nor a rank: 2 / 2^5 sign flips exceed 0.05
MOST = 500  # subjects left out one at a time; of more, groups are, since the cost grows with the square
UNIT = (0.0, 1.0)


@dataclass(frozen=True)
class Estimate:
    """One number with its interval.

    Attributes:
        value: the metric on the test split; None when undefined.
        low: lower end of its interval; None when undefined.
        high: upper end.
        n: lesion-bearing subjects; for a metric that needs no lesion, the subjects that it is taken over.
        oracle: whether a threshold was chosen on the test split itself.
        reason: why ``value`` or the interval is undefined; empty otherwise.
        n_all: subjects of the split, with and without a lesion.
        spread: width of the bracket in which the number of the single scores lies, see :attr:`adbench.metrics.evaluate.Evaluation.brackets`.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    oracle: bool = False
    reason: str = ""
    n_all: int = 0
    spread: float = 0.0


def groups(n: int) -> np.ndarray:
    """(n,) which subjects are left out together: each alone up to :data:`MOST` of them, then in that many groups."""
    return np.arange(n) % min(n, MOST)


def weights(n: int) -> np.ndarray:
    """(g, n) float64: row ``i`` takes every subject once and leaves out those of group ``i`` of :func:`groups`."""
    kept: np.ndarray = groups(n) != np.arange(min(n, MOST))[:, None]
    return kept.astype(np.float64)


def weights_of(owners: Sequence[str]) -> np.ndarray:
    """(g, V) float64: rows of :func:`weights`, with all volumes of a subject left out together; subjects by name.

    Args:
        owners: subject of each of V volumes, in the order of the volumes.
    """
    subjects, place = np.unique(np.asarray(owners, dtype=np.str_), return_inverse=True)
    return weights(len(subjects))[:, place]


def estimate(
    value: float | None,
    left_out: np.ndarray | None,
    n: int,
    level: float,
    oracle: bool = False,
    reason: str = "",
    *,
    n_all: int = 0,
    lesions: bool = True,
    bounds: tuple[float, float] = UNIT,
    bracket: tuple[float, float] | None = None,
    values: np.ndarray | None = None,
) -> Estimate:
    """An :class:`Estimate` from a value and what it is without one subject each.

    Args:
        value: on the sample itself; None when undefined.
        left_out: (m,) the value without one subject each, or (S, m) for S training seeds, NaN where undefined; None when
            no interval was asked for.
        n: subjects that the number is taken over; below :data:`MINIMUM` there is no interval.
        level: probability inside the interval.
        oracle: whether a threshold was chosen on the test split.
        reason: why ``value`` is None.
        n_all: subjects of the split.
        lesions: whether ``n`` counts lesion-bearing subjects.
        bounds: natural range of the metric.
        bracket: ends between which the number of the unbinned scores lies; one wider than :data:`adbench.metrics.spec.WIDE`
            widens the interval by as much, a narrower one is no more than the rounding of a table.
        values: (S,) of each training seed, with ``value`` their mean; None for one seed.
    """
    if value is None:
        return Estimate(None, None, None, n, oracle, reason, n_all)
    value = float(value)
    spread = bracket[1] - bracket[0] if bracket is not None else 0.0
    why = ""
    if left_out is None:
        why = "no interval was asked for"
    elif n < MINIMUM:
        why = too_few(n, "an interval", lesions)
    elif np.isnan(left_out).any():
        why = "undefined without one of its subjects"
    if why or left_out is None:
        return Estimate(value, None, None, n, oracle, why, n_all, spread)
    low, high = interval(np.array([value]) if values is None else values, np.atleast_2d(left_out), n, level, bounds)
    if bracket is not None and spread > WIDE:
        low = max(bounds[0], low - max(0.0, value - bracket[0]))
        high = min(bounds[1], high + max(0.0, bracket[1] - value))
    return Estimate(value, low, high, n, oracle, "", n_all, spread)


def too_few(n: int, what: str, lesions: bool = True) -> str:
    """The sentence for ``n`` subjects that do not suffice: "3 subjects with lesions: an interval needs 6"."""
    who = f"subject{'' if n == 1 else 's'}{' with lesions' if lesions else ''}"
    return f"{n} {who}: {what} needs {MINIMUM}"


def interval(
    values: np.ndarray, left_out: np.ndarray, n: int, level: float = 0.95, bounds: tuple[float, float] = UNIT
) -> tuple[float, float]:
    """(low, high), the mean of ``values`` between them and both within ``bounds``.

    On the scale ``g(x) = log((x - low bound) / (high bound - x))``, with ``u_i = g(value) - g(value without subject i)``,
    the variance is ``sum (u_i - mean u)^2``: the jackknife (Efron and Stein 1981, Ann Stat 9:586: its bias is upward)
    without its factor ``(n - 1) / n``. Degrees of freedom follow Satterthwaite: ``2 n / (kurtosis of u - 1)``, at most
    ``n - 1``. Training seeds add the variance of their mean with ``S - 1`` degrees of freedom, less what seeds do to single
    subjects, which leaving out subjects measures already; see :func:`half_width`.

    Where all subjects agree, both ends are the value. At an end of the range (every lesion found, say) that would claim too much: there
    the other end is that of Clopper and Pearson (1934) for ``n`` subjects all alike, which holds for any share.

    Args:
        values: (S,) the metric of each training seed.
        left_out: (S, m) the same without one subject each; m may exceed ``n`` by subjects that hardly matter.
        n: subjects that the number is taken over, at least 2; at most the rows left out count.
        level: probability inside, (0, 1).
        bounds: natural range of the metric; either end may be infinite.

    Raises:
        UserError: ``level`` is no probability.
    """
    if not 0 < level < 1:
        raise UserError(f"level = {level!r} is not valid: give a probability between 0 and 1, such as 0.95.")
    value = float(np.mean(values))
    n = min(n, left_out.shape[1])
    low, high = bounds
    at_end = value <= low or value >= high
    if at_end:
        if math.isinf(low) or math.isinf(high):
            return value, value
        reach = (high - low) * (1 - ((1 - level) / 2) ** (1 / n))
        return (value, value + reach) if value <= low else (value - reach, value)
    # A value without one subject may lie at an end; it is taken as 1 / n of the way from there, which is finite.
    inner = (
        low + (value - low) / n if math.isfinite(low) else low,
        high - (high - value) / n if math.isfinite(high) else high,
    )
    u = _open(np.array([value]), bounds) - _open(np.clip(np.mean(left_out, axis=0), *inner), bounds)
    u = u - u.mean()
    squares = u * u
    variance = float(squares.sum())
    freedom = float(n - 1)
    if variance > 0:
        kurtosis = n * float((squares * squares).sum()) / variance**2
        freedom = min(freedom, 2 * n / max(kurtosis - 1, 1e-9))
    parts = [(variance, freedom)]
    if len(values) > 1:
        own = values[:, None] - left_out
        own = own - own.mean(axis=1, keepdims=True)
        shared = float(np.var(own, axis=0, ddof=1).sum()) / len(
            values
        )  # of seeds on single subjects: in both variances
        between = max(0.0, float(np.var(values, ddof=1)) / len(values) - shared) * _slope(value, bounds) ** 2
        parts.append((between, len(values) - 1.0))
    if sum(part for part, _ in parts) <= 1e-24:
        return value, value
    half = half_width(parts, level)
    centre = float(_open(np.array([value]), bounds)[0])
    return min(value, _closed(centre - half, bounds)), max(value, _closed(centre + half, bounds))


def half_width(parts: Sequence[tuple[float, float]], level: float) -> float:
    """Half the interval of a sum of independent parts: the root of the sum of their own squared half widths.

    This is Howe's (1974, JASA 69:789). One t with Satterthwaite's degrees of freedom is too short where a part with few of
    them is by chance estimated as small, as the variance of three seeds often is.

    Args:
        parts: variance and degrees of freedom of each.
        level: probability inside.
    """
    return math.sqrt(sum(v * t_quantile((1 + level) / 2, freedom) ** 2 for v, freedom in parts if v > 0))


def _open(x: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    low, high = bounds
    if math.isinf(low):
        return x if math.isinf(high) else -np.log(high - x)
    return np.log(x - low) if math.isinf(high) else np.log((x - low) / (high - x))


def _slope(x: float, bounds: tuple[float, float]) -> float:
    low, high = bounds
    return (0.0 if math.isinf(low) else 1 / (x - low)) + (0.0 if math.isinf(high) else 1 / (high - x)) or 1.0


def _closed(y: float, bounds: tuple[float, float]) -> float:
    low, high = bounds
    y = min(max(y, -700.0), 700.0) if math.isfinite(low) or math.isfinite(high) else y
    if math.isinf(low):
        return y if math.isinf(high) else high - math.exp(-y)
    if math.isinf(high):
        return low + math.exp(y)
    return low + (high - low) / (1 + math.exp(-y))


@lru_cache(maxsize=4096)
def t_quantile(p: float, freedom: float) -> float:
    """The ``p`` quantile of Student's t with ``freedom`` degrees of freedom, which need not be a whole number."""
    from scipy.special import stdtrit  # what scipy.stats.t.ppf calls, in a quarter of its time to import

    return float(stdtrit(freedom, p))
