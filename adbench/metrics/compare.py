"""Methods against each other on the same resamples: paired differences, Holm's correction, ranks with ties."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from adbench.errors import UserError, unknown
from adbench.metrics import bootstrap
from adbench.metrics.evaluate import Estimate, estimate, evaluate, sample
from adbench.metrics.histogram import SubjectHistograms
from adbench.metrics.spatial import sample_spatial
from adbench.metrics.spec import spec

if TYPE_CHECKING:
    from adbench.metrics.spatial import SpatialAccumulator


@dataclass(frozen=True)
class Trained:
    """The scores of one training seed of a method.

    Attributes:
        test: its test histograms.
        val: its validation histograms, or None.
        spatial: its spatial counts, or None.
    """

    test: SubjectHistograms
    val: SubjectHistograms | None = None
    spatial: SpatialAccumulator | None = None


@dataclass(frozen=True)
class Samples:
    """Every metric of one method under the same resamples as every other method.

    Attributes:
        cohort: (volume, lesion voxels, background voxels) of each test volume: what must agree to compare.
        seed: of the resamples.
        seeds: how many training seeds were averaged.
        values: metric -> value, mean over training seeds.
        draws: metric -> (R,) replicates, NaN where undefined.
        n: metric -> subjects it is taken over.
    """

    cohort: tuple[tuple[str, int, int], ...]
    seed: int
    seeds: int
    values: dict[str, float]
    draws: dict[str, np.ndarray]
    n: dict[str, int]

    def estimates(self, level: float = 0.95) -> dict[str, Estimate]:
        """Metric -> value and interval, training seeds included."""
        return {
            name: estimate(value, self.draws[name], self.n[name], level, spec(name).oracle)
            for name, value in self.values.items()
        }


def sample_method(runs: Sequence[Trained], *, replicates: int = 1000, seed: int = 0) -> Samples:
    """Resample subjects, and training seeds within each replicate when there are several.

    A replicate draws subjects once for all seeds, takes the metric of every seed on them, and averages as many seeds,
    drawn with replacement: subjects are the first level, seeds the second. A metric that one seed leaves undefined is
    left out.

    Args:
        runs: one entry a training seed, all scored on the same test subjects.
        replicates: R.
        seed: of the resamples; give every method the same.

    Raises:
        UserError: no run, or the runs were scored on different voxels.
    """
    if not runs:
        raise UserError("There is no run to resample.")
    cohorts = [_cohort(run.test) for run in runs]
    for cohort in cohorts[1:]:
        _same_cohort("one training seed", cohorts[0], "another", cohort)
    owners = runs[0].spatial.subject_of if runs[0].spatial is not None else {}
    draws = bootstrap.weights_of([owners.get(volume, volume) for volume, *_ in cohorts[0]], replicates, seed)
    values: list[dict[str, float]] = []
    samples: list[dict[str, np.ndarray]] = []
    n: dict[str, int] = {}
    for run in runs:
        point = evaluate(run.test, run.val, replicates=0, spatial=run.spatial)
        found = sample(run.test, point.subjects, draws)
        if run.spatial is not None:
            found |= {
                k: one.samples for k, one in sample_spatial(run.spatial, draws).items() if one.samples is not None
            }
        defined = {name: metric for name, metric in point.metrics.items() if metric.value is not None}
        values.append({name: metric.value for name, metric in defined.items() if metric.value is not None})
        samples.append(found)
        n |= {name: metric.n for name, metric in defined.items()}
    names = [name for name in values[0] if all(name in one for one in values)]
    mixed = {name: over_seeds([one[name] for one in samples], seed) for name in names}
    means = {name: float(np.mean([one[name] for one in values])) for name in names}
    return Samples(cohorts[0], seed, len(runs), means, mixed, {name: n[name] for name in names})


def over_seeds(samples: Sequence[np.ndarray], seed: int = 0) -> np.ndarray:
    """(R,) replicates of the mean over training seeds: in each replicate as many seeds as there are, with replacement.

    Args:
        samples: (R,) replicates of each training seed, all under the same draws of subjects.
        seed: of the draws of training seeds; the same for every method.
    """
    count, replicates = len(samples), len(samples[0])
    shares = np.random.default_rng([seed, 1]).multinomial(count, np.full(count, 1 / count), replicates)
    return np.einsum("rk,kr->r", shares / count, np.stack(samples))


@dataclass(frozen=True)
class Difference:
    """Method ``a`` minus method ``b`` on the same resamples.

    Attributes:
        a: name of the first method.
        b: name of the second.
        value: difference of the metric.
        low: lower end of its percentile interval.
        high: upper end.
        p: two-sided bootstrap p-value, ``(1 + replicates on the rarer side of 0, ties included) * 2 / (R + 1)``; where no
            replicate lies there, the tail of Student's t with the mean and spread of the replicates, if that is less.
        p_holm: ``p`` after Holm's correction over all pairs of the table.
    """

    a: str
    b: str
    value: float
    low: float
    high: float
    p: float
    p_holm: float


@dataclass(frozen=True)
class Table:
    """A comparison of methods by one metric.

    Attributes:
        metric: its name.
        ranks: method -> rank, best first. Methods that cannot be told from the best of the rest share its rank.
        differences: every pair, the better method first.
    """

    metric: str
    ranks: dict[str, int]
    differences: list[Difference]


def compare(
    methods: Mapping[str, Samples], metric: str, *, level: float = 0.95, less_is_better: bool | None = None
) -> Table:
    """Paired differences between all methods, and ranks.

    Ranks: the method with the best value leads; every method whose Holm-corrected p-value against it is above
    ``1 - level`` shares its rank. The best of the remaining ones leads the next rank, which counts all methods above.

    Args:
        methods: name -> samples of :func:`sample_method`, with the same subjects, seed and replicates.
        metric: what to compare.
        level: 1 - level is the error rate of the whole table.
        less_is_better: None decides by the metric (errors and false alarms).

    Raises:
        UserError: fewer than two methods, a method without the metric, or resamples that do not match.
    """
    if len(methods) < 2:
        raise UserError(f"A comparison needs two methods, not {len(methods)}.")
    names = list(methods)
    first = methods[names[0]]
    for name in names:
        own = methods[name]
        if metric not in own.values:
            raise unknown(f"metric of {name}", metric, own.values)
        _same_cohort(names[0], first.cohort, name, own.cohort)
        if (own.seed, len(own.draws[metric])) != (first.seed, len(first.draws[metric])):
            raise UserError(
                f"{names[0]} and {name} were resampled differently (seed {first.seed} and {own.seed}, "
                f"{len(first.draws[metric])} and {len(own.draws[metric])} replicates): use the same for both."
            )
    sign = -1 if (spec(metric).less_is_better if less_is_better is None else less_is_better) else 1
    order = sorted(names, key=lambda name: (-sign * methods[name].values[metric], name))
    pairs = [(a, b) for i, a in enumerate(order) for b in order[i + 1 :]]
    raw = [_difference(methods[a].draws[metric] - methods[b].draws[metric], level, first.n[metric]) for a, b in pairs]
    corrected = holm([p for _, _, p in raw])
    differences = [
        Difference(a, b, methods[a].values[metric] - methods[b].values[metric], low, high, p, adjusted)
        for (a, b), (low, high, p), adjusted in zip(pairs, raw, corrected, strict=True)
    ]
    apart = {(d.a, d.b) for d in differences if d.p_holm <= 1 - level}
    ranks: dict[str, int] = {}
    left = order
    while left:
        leader, rank = left[0], len(ranks) + 1
        ranks |= {name: rank for name in left if (leader, name) not in apart}
        left = [name for name in left if name not in ranks]
    return Table(metric, ranks, differences)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979, Scand J Stat 6:65): the family-wise error rate of all tests together.

    Args:
        p: raw p-values, any order.

    Returns:
        Corrected p-values in the same order, each at most 1 and monotone in the raw ones.
    """
    order = np.argsort(p, kind="stable")
    stepped = np.asarray(p, float)[order] * np.arange(len(p), 0, -1)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1) if len(p) else stepped
    return corrected.tolist()


def _difference(draws: np.ndarray, level: float, n: int) -> tuple[float, float, float]:
    defined = draws[~np.isnan(draws)]
    ends = bootstrap.interval(draws, level)
    if ends is None:
        raise UserError("More than half of the replicates leave a difference undefined: there are too few lesions.")
    rarer = min(np.count_nonzero(defined <= 0), np.count_nonzero(defined >= 0))
    p = float(min(1.0, 2 * (1 + rarer) / (len(defined) + 1)))
    if n < 2:
        return ends[0], ends[1], 1.0  # every resample is the same subject again
    spread = float(defined.std())
    if rarer == 0 and spread > 0:
        # R replicates cannot say how far below 2 / (R + 1) p lies: with 1000, no table of eight methods (28 pairs) could
        # ever tell two of them apart after Holm's correction.
        p = min(p, two_sided(abs(float(defined.mean())) / spread, n - 1))
    return ends[0], ends[1], p


def two_sided(t: float, freedom: int) -> float:
    """Probability that Student's t lies outside ``[-t, t]``.

    For whole degrees of freedom it is a finite sum (Abramowitz & Stegun 1964, 26.7.3 and 26.7.4). Where that leaves no
    digits, the tail is summed instead. SciPy has it, and takes longer to import than all of adbench.

    Args:
        t: at least 0.
        freedom: degrees of freedom, at least 1.
    """
    root = math.sqrt(freedom)
    length = math.hypot(t, root)
    sine, cosine = t / length, root / length
    odd = freedom % 2
    term, angle, scale = (cosine, math.atan2(t, root), 2 / math.pi) if odd else (1.0, 0.0, 1.0)
    inner = 0.0
    for j in range(odd, freedom - 1, 2):
        inner += term
        term *= (j + 1) / (j + 2) * cosine**2
    inside = scale * (angle + sine * inner)
    if inside < 0.99:
        return 1 - inside
    outer, j = 0.0, freedom  # what the finite sum leaves of the series of the whole, all of it positive
    while term > 1e-18 * outer:
        outer += term
        term *= (j + 1) / (j + 2) * cosine**2
        j += 2
    return scale * sine * outer


def _cohort(test: SubjectHistograms) -> tuple[tuple[str, int, int], ...]:
    return tuple((subject, histogram.n_positive, histogram.n_negative) for subject, histogram in test.items())


def _same_cohort(
    a: str, first: tuple[tuple[str, int, int], ...], b: str, second: tuple[tuple[str, int, int], ...]
) -> None:
    if first == second:
        return
    odd = sorted(set(first) ^ set(second))[0]
    raise UserError(
        f"{a} and {b} were not scored on the same voxels: subject {odd[0]!r} with {odd[1]} lesion and {odd[2]} "
        "background voxels is on one side only. A paired comparison needs the same test split."
    )
