"""Methods against each other on the same subjects: paired differences, and ranks that account for how the best was found.

Which method leads is chosen on the data, and the gap between the first and the rest of equally good methods grows with
their number. So the reference distribution repeats the choice: the signs of the subjects' differences are flipped, the
best of the flipped values is chosen again, and the largest gap to it counts. Rows drop out one at a time, the clearest
first, and the rest is held against a smaller set. This is the model confidence set of Hansen, Lunde and Nason (2011,
Econometrica 79:453) with the gap to the leader as its statistic, or multiple comparisons with the best (Hsu 1984, Ann
Stat 12:1136) with a stepwise maximum over sign flips (Romano and Wolf 2005, JASA 100:94) as its critical value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from adbench.errors import UserError, unknown
from adbench.metrics import jackknife
from adbench.metrics.base import Metric
from adbench.metrics.evaluate import measure
from adbench.metrics.histogram import SubjectHistograms
from adbench.metrics.jackknife import Estimate, estimate, too_few
from adbench.metrics.spatial import Sampled, SpatialAccumulator
from adbench.metrics.spec import RANKED_BY, SPECS, MetricSpec
from adbench.metrics.thresholds import choose_thresholds

EXACT = 12  # subjects up to which every pattern of signs is looked at
FLIPS = 2000  # patterns beyond that, from a fixed seed
NOT_ABOVE_CHANCE = "not above chance"
BELOW_CHANCE_ROW = "below a row that is not above chance"
_ODD = 0x51_6E5  # seed of the patterns: the same for every comparison


@dataclass(frozen=True)
class Trained:
    """The scores of one training seed of a method.

    Attributes:
        test: its test histograms.
        val: its validation histograms, or None.
        spatial: its spatial counts, or None.
        metrics: that it was asked for; those that need maps are measured in ``spatial``.
    """

    test: SubjectHistograms
    val: SubjectHistograms | None = None
    spatial: SpatialAccumulator | None = None
    metrics: tuple[Metric, ...] = ()


@dataclass(frozen=True)
class MethodSamples:
    """Every metric of one method, of each training seed, on all m subjects and without one subject each.

    Attributes:
        cohort: (volume, lesion voxels, background voxels) of each test volume: what must agree to compare.
        values: metric -> (S,) value of each training seed.
        left_out: metric -> (S, m) the same without one subject each, NaN where undefined.
        n: metric -> subjects it is taken over, as in :class:`adbench.metrics.evaluate.Estimate`.
        owners: subject of each volume; empty where each volume is a subject.
        specs: metric -> its facts; may be empty where all metrics are built in.
        brackets: metric -> ends between which the value of the unbinned scores lies, the mean over training seeds; metrics
            that are exact are left out.
    """

    cohort: tuple[tuple[str, int, int], ...]
    values: dict[str, np.ndarray]
    left_out: dict[str, np.ndarray]
    n: dict[str, int]
    owners: tuple[str, ...] = ()
    specs: Mapping[str, MetricSpec] = field(default_factory=dict)
    brackets: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def spec(self, metric: str) -> MetricSpec:
        """The facts of a metric."""
        return self.specs[metric] if metric in self.specs else SPECS[metric]

    def value(self, metric: str) -> float:
        """The mean over training seeds."""
        return float(np.mean(self.values[metric]))

    def estimates(self, level: float = 0.95) -> dict[str, Estimate]:
        """Metric -> value and interval, training seeds included."""
        return {name: self.estimate(name, level) for name in self.values}

    def estimate(self, metric: str, level: float = 0.95) -> Estimate:
        """Value and interval of one metric, training seeds included."""
        return estimate(
            self.value(metric),
            self.left_out[metric],
            self.n[metric],
            level,
            self.spec(metric).oracle,
            n_all=len(set(self.owners or self.cohort)),
            lesions=self.spec(metric).over_lesions,
            bounds=self.spec(metric).bounds,
            bracket=self.brackets.get(metric),
            values=self.values[metric],
        )

    def blur(self, metric: str) -> float:
        """How far the value of the unbinned scores may be from the one that is known."""
        low, high = self.brackets.get(metric, (self.value(metric),) * 2)
        return max(high - self.value(metric), self.value(metric) - low, 0.0)

    @property
    def lesions(self) -> np.ndarray:
        """(m,) lesion voxels of what ``left_out`` leaves out, in its order."""
        names = self.owners or tuple(volume for volume, *_ in self.cohort)
        voxels: dict[str, int] = dict.fromkeys(sorted(set(names)), 0)
        for name, (_, positive, _) in zip(names, self.cohort, strict=True):
            voxels[name] += positive
        return np.bincount(jackknife.groups(len(voxels)), np.array(list(voxels.values()), float))


def sample_method(runs: Sequence[Trained]) -> MethodSamples:
    """Measure every training seed of a method, with and without each subject.

    A metric that one seed leaves undefined is left out.

    Args:
        runs: one entry a training seed, all scored on the same test subjects.

    Raises:
        UserError: no run, or the runs were scored on different voxels.
    """
    if not runs:
        raise UserError("There is no run to compare.")
    cohorts = [_cohort(run.test) for run in runs]
    for cohort in cohorts[1:]:
        _same_cohort("one training seed", cohorts[0], "another", cohort)
    owners = runs[0].spatial.subject_of if runs[0].spatial is not None else {}
    names_of = tuple(owners.get(volume, volume) for volume, *_ in cohorts[0])
    draws = jackknife.weights_of(names_of)
    found = []
    for run in runs:
        owner_of = dict(zip(run.test, names_of, strict=True))
        found.append(measure(run.test, run.spatial, run.metrics, owner_of, choose_thresholds(run.val), draws))
    names = [
        name
        for name in found[0].metrics
        if all(name in one.metrics and one.metrics[name].value is not None for one in found)
    ]

    def every(name: str) -> list[Sampled]:
        return [one.metrics[name] for one in found]

    return MethodSamples(
        cohorts[0],
        {name: np.array([one.value for one in every(name)]) for name in names},
        {name: np.stack([one.samples for one in every(name) if one.samples is not None]) for name in names},
        {name: found[-1].metrics[name].n for name in names},
        names_of,
        {name: found[0].metrics[name].spec for name in names},
    )


@dataclass(frozen=True)
class Difference:
    """Method ``a`` minus method ``b`` on the same subjects.

    Attributes:
        a: name of the better method: the leader of a rank.
        b: name of one below.
        value: difference of the metric.
        low: lower end of the interval of this difference alone.
        high: upper end.
        p: two-sided p-value of sign flips for this pair alone.
        p_rank: p-value against the leader that ranks use: the choice of the leader and all rows below accounted for.
    """

    a: str
    b: str
    value: float
    low: float
    high: float
    p: float
    p_rank: float


@dataclass(frozen=True)
class Table:
    """A comparison of methods by one metric.

    Attributes:
        metric: its name.
        ranks: method -> rank, best first, None without one. A higher value never has a lower rank; methods that cannot
            be told from the best of the remaining ones share its rank, and the next rank counts all methods above.
        differences: the leader of each rank against every ranked row below it.
        reasons: method -> why it has no rank.
    """

    metric: str
    ranks: dict[str, int | None]
    differences: list[Difference]
    reasons: dict[str, str] = field(default_factory=dict)


def compare(
    methods: Mapping[str, MethodSamples],
    metric: str,
    *,
    level: float = 0.95,
    above_chance: bool = True,
) -> Table:
    """Ranks, and the paired differences behind them.

    The best value leads a rank. From the lowest row up, rows whose ``p_rank`` is at most ``1 - level`` differ
    from it; the first that does not and all above it share its rank. ``auprc`` and ``auroc`` have a chance level (the
    prevalence, 1/2): a method whose interval reaches it has no rank. By a metric without one, such as false alarms, a map
    that says nothing may look best: there a method that is not above chance by ``auprc`` has no rank.

    Args:
        methods: name -> samples of :func:`sample_method`, of the same subjects.
        metric: what to compare.
        level: 1 - level is the probability that methods that are equally good do not share one rank.
        above_chance: False ranks also methods whose interval reaches chance.

    Raises:
        UserError: fewer than two methods, a method without the metric, different subjects, or fewer than 6 subjects.
    """
    _check_comparable(methods, metric)
    facts = next(iter(methods.values())).spec(metric)
    sign = -1 if facts.less_is_better else 1
    values = {name: samples.value(metric) for name, samples in methods.items()}
    order = sorted(values, key=lambda name: (-sign * values[name], name))
    reasons = _near_chance(methods, order, metric, level) if above_chance else {}
    ranks: dict[str, int | None] = dict.fromkeys(order)
    left = [name for name in order if name not in reasons]
    if not left:
        return Table(metric, ranks, [], reasons)
    ranked = _Ranked(methods, left, metric, sign, level)
    differences: list[Difference] = []
    start = 0
    while start < len(left):
        end, own = ranked.behind(start)
        ranks |= dict.fromkeys(left[start:end], start + 1)
        differences += own
        start = end
    return Table(metric, ranks, differences, reasons)


def _check_comparable(methods: Mapping[str, MethodSamples], metric: str) -> None:
    """Refuse what :func:`compare` cannot compare."""
    if len(methods) < 2:
        raise UserError(f"A comparison needs two methods, not {len(methods)}.")
    leader, first = next(iter(methods.items()))
    for name, own in methods.items():
        if metric not in own.values:
            raise unknown(f"metric of {name}", metric, own.values)
        _same_cohort(leader, first.cohort, name, own.cohort)
        if own.n[metric] < jackknife.MINIMUM:
            raise UserError(too_few(own.n[metric], "a rank", own.spec(metric).over_lesions) + ".")
        if np.isnan(own.left_out[metric]).any():
            raise UserError(f"{metric} of {name} is undefined without one of its subjects: it cannot be compared.")


def _near_chance(
    methods: Mapping[str, MethodSamples], order: Sequence[str], metric: str, level: float
) -> dict[str, str]:
    """Name -> why it has no rank, of the methods that are not above chance; ``order`` begins with the best."""
    first = next(iter(methods.values()))
    chance = _chance(first.spec(metric), first.cohort)
    reasons: dict[str, str] = {}
    if chance is not None:
        for name in order:
            if not _above(methods[name], metric, chance, level):
                reasons[name] = NOT_ABOVE_CHANCE
            elif reasons:  # a higher value never stands behind a lower one
                reasons[name] = BELOW_CHANCE_ROW
    elif all(RANKED_BY in samples.values for samples in methods.values()):
        prevalence = _chance(first.spec(RANKED_BY), first.cohort)
        assert prevalence is not None
        for name in order:
            if not _above(methods[name], RANKED_BY, prevalence, level):
                reasons[name] = f"{NOT_ABOVE_CHANCE} by {RANKED_BY}"
    return reasons


class _Ranked:
    """The methods ``names``, best first, and what each subject contributes to the gaps between them."""

    def __init__(
        self, methods: Mapping[str, MethodSamples], names: Sequence[str], metric: str, sign: int, level: float
    ) -> None:
        samples = [methods[name] for name in names]
        leverage, self._influence = contributions(samples, metric)
        self._names, self._level = names, level
        self._values = np.array([own.value(metric) for own in samples])
        self._n = min(own.n[metric] for own in methods.values())
        self._seeds = np.array([_seed_variance(own.values[metric]) for own in samples])
        self._freedom = np.array([len(own.values[metric]) - 1 for own in samples])
        shares = sign * (leverage[:, None] * self._values + self._influence)
        blur = np.array([own.blur(metric) for own in samples])
        self._flipped = _Flipped(shares, self._seeds, self._freedom, self._n, blur)

    def behind(self, start: int) -> tuple[int, list[Difference]]:
        """The end of the rank that begins with row ``start``, and the differences of all rows below from that one."""
        rows = np.arange(start, len(self._names))
        against = self._flipped.against_leader
        alone = np.array([1.0, *(against(np.array([start, row]))[1] for row in rows[1:])])
        p_rank = np.maximum(against(rows), alone)  # the same but for the grain of drawn patterns
        worse = p_rank <= 1 - self._level
        end = len(self._names)
        while end > start + 1 and worse[end - 1 - start]:
            end -= 1
        at = [row - start for row in rows[1:]]
        return end, [self._difference(start, start + i, float(alone[i]), float(p_rank[i])) for i in at]

    def _difference(self, leader: int, row: int, p: float, p_rank: float) -> Difference:
        value = float(self._values[leader] - self._values[row])
        gap = self._influence[:, leader] - self._influence[:, row]
        parts = [(float(np.square(gap).sum()) * self._n / (self._n - 1), float(self._n - 1))]
        parts += [(float(self._seeds[i]), float(self._freedom[i])) for i in (leader, row)]
        half = jackknife.half_width(parts, self._level)
        return Difference(self._names[leader], self._names[row], value, value - half, value + half, p, p_rank)


def contributions(methods: Sequence[MethodSamples], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """What each subject contributes to the metric of each method: ``leverage * value + influence``.

    Exchanging the maps of two methods on one subject then changes the sign of that subject's difference: exactly where the
    metric is a mean, to first order where it comes from a pooled curve. The influence is the value less that without the
    subject, times ``1 - leverage``. Its mean is subtracted separately among lesion-bearing and lesion-free subjects, because
    exchanging maps leaves the cohort as it is.

    The leverage says how much of the metric is taken over a subject: its share of the lesion voxels for ``auroc``; equal
    shares of the lesion-bearing subjects for other pooled numbers, where a subject's false alarms weigh too, and for means
    over them; equal shares of the subjects that matter for the rest.

    Args:
        methods: M methods on the same m subjects.
        metric: which every method has.

    Returns:
        (m,) leverage, which sums to 1, and (m, M) influence, whose columns sum to 0.
    """
    lesion = methods[0].lesions
    values = np.array([one.value(metric) for one in methods])
    influence = values - np.stack([one.left_out[metric].mean(axis=0) for one in methods], axis=1)
    if metric == "auroc":
        leverage = lesion / lesion.sum()
    else:
        over = (np.abs(influence) > 1e-15).any(axis=1)
        if methods[0].spec(metric).over_lesions and (over & (lesion > 0)).any():
            over &= lesion > 0
        leverage = over / np.count_nonzero(over) if over.any() else np.full(len(over), 1 / len(over))
    influence *= 1 - leverage[:, None]
    for stratum in (lesion > 0, lesion == 0):
        if stratum.any():
            influence[stratum] -= influence[stratum].mean(axis=0)
    return leverage, influence


def _seed_variance(values: np.ndarray) -> float:
    """Variance of the mean over training seeds; with one seed the comparison is of that trained model."""
    return float(np.var(values, ddof=1)) / len(values) if len(values) > 1 else 0.0


class _Flipped:
    """Values of every row under sign flips of the subjects, and under new draws of training seeds.

    Seeds are too few to be permuted: their means are drawn from normal distributions with the variances that were seen,
    and those variances from the corresponding chi-squared distributions, as in a t-test.
    """

    def __init__(self, shares: np.ndarray, seeds: np.ndarray, freedom: np.ndarray, n: int, blur: np.ndarray) -> None:
        centred = shares - shares.mean(axis=1, keepdims=True)
        scale = np.abs(centred).max(initial=0.0)
        moving = centred[np.abs(centred).max(axis=1, initial=0.0) > 1e-12 * scale] if scale else centred[:0]
        rng = np.random.default_rng(_ODD)
        self.observed = shares.sum(axis=0)
        self.seeds = seeds
        self.blur = blur
        self.squares = _squares(shares)
        if len(moving) <= EXACT:
            self.signs = 1.0 - 2.0 * ((np.arange(2 ** len(moving))[:, None] >> np.arange(len(moving))) & 1)
            if seeds.any():  # each pattern several times, with other seeds
                self.signs = np.tile(self.signs, (math.ceil(FLIPS / len(self.signs)), 1))
        else:
            self.signs = np.where(rng.random((FLIPS, len(moving))) < 0.5, -1.0, 1.0)
        self.exact = len(moving) <= EXACT and not seeds.any()
        self.means = np.ascontiguousarray((self.signs @ moving).T)  # (M, patterns)
        self.drawn = np.zeros_like(self.means)
        for row in np.flatnonzero(seeds > 0):
            self.means[row] += rng.normal(0, math.sqrt(seeds[row]), len(self.signs))
            self.drawn[row] = seeds[row] * rng.chisquare(freedom[row], len(self.signs)) / freedom[row]
        self.least = 2.0 ** (1 - n)  # two of the 2^n patterns are as extreme as the clearest

    def against_leader(self, rows: np.ndarray) -> np.ndarray:
        """p-value of each of ``rows`` against the first of them, never falling as gaps become less clear; 1 for the first.

        A row's statistic is its gap to the leader, less what bins leave open, over the root of the sum of squared differences of the subjects, which
        orders sign patterns as the paired t does, and of the variances of seeds.

        Args:
            rows: ascending.
        """
        lead = rows[0]
        gap = np.maximum(self.observed[lead] - self.observed[rows] - self.blur[lead] - self.blur[rows], 0)
        spread = np.sqrt(self.squares[lead, rows] + self.seeds[lead] + self.seeds[rows])
        observed = np.divide(gap, spread, out=np.zeros(len(rows)), where=spread > 1e-15)
        p = np.ones(len(rows))
        clearest = 1 + np.argsort(-observed[1:], kind="stable")
        reached = self._reached(rows, clearest, observed)
        worst = 0.0
        for place in clearest:
            own = reached[place] / len(self.signs) if self.exact else (1 + reached[place]) / (1 + len(self.signs))
            worst = max(worst, own, self.least) if gap[place] > 0 else 1.0
            p[place] = min(1.0, worst)
        return p

    def _reached(self, rows: np.ndarray, clearest: np.ndarray, observed: np.ndarray) -> np.ndarray:
        """(len(rows),) under how many patterns the largest statistic of a row and all less clear ones reaches its own.

        From the least clear row on, each set is the one before and a row more: all its gaps are others only under the patterns
        in which that row leads. Computing the statistics of every set again would take the square of the number of rows.
        """
        reached = np.zeros(len(rows), np.int64)
        leader = np.full(len(self.signs), rows[0])
        highest, largest = self.means[rows[0]].copy(), np.zeros(len(self.signs))
        kept = [rows[0]]
        for place in clearest[::-1]:
            row = rows[place]
            own = self.means[row]
            leads = np.flatnonzero((own > highest) | ((own == highest) & (row < leader)))
            spread = self.squares[leader, row] + self.drawn[leader, np.arange(len(leader))] + self.drawn[row]
            np.maximum(largest, _squared(highest - own, spread), out=largest)
            leader[leads], highest[leads] = row, own[leads]
            others = np.ix_(kept, leads)
            spread = self.squares[kept, row][:, None] + self.drawn[row, leads] + self.drawn[others]
            largest[leads] = _squared(own[leads] - self.means[others], spread).max(axis=0)
            kept.append(row)
            reached[place] = np.count_nonzero(np.sqrt(largest) >= observed[place] * (1 - 1e-9))
        return reached


def _squared(gap: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """The squared statistic; 0 where nothing varies."""
    return np.asarray(np.divide(gap * gap, spread, out=np.zeros_like(gap), where=spread > 1e-30))


def _squares(shares: np.ndarray) -> np.ndarray:
    """(M, M) sum over subjects of squared differences between two rows."""
    return np.stack([((shares - shares[:, [k]]) ** 2).sum(axis=0) for k in range(shares.shape[1])])


def _above(samples: MethodSamples, metric: str, chance: float, level: float) -> bool:
    low = samples.estimate(metric, level).low
    return low is not None and low > chance


def _chance(facts: MetricSpec, cohort: Sequence[tuple[str, int, int]]) -> float | None:
    if facts.chance != "prevalence":
        return None if facts.less_is_better else facts.chance
    lesion = sum(positive for _, positive, _ in cohort)
    return lesion / sum(positive + negative for _, positive, negative in cohort)


def _cohort(test: SubjectHistograms) -> tuple[tuple[str, int, int], ...]:
    return tuple((subject, histogram.n_positive, histogram.n_negative) for subject, histogram in test.items())


def _same_cohort(
    a: str, first: tuple[tuple[str, int, int], ...], b: str, second: tuple[tuple[str, int, int], ...]
) -> None:
    if first == second:
        return
    differing = sorted(set(first) ^ set(second))[0]
    raise UserError(
        f"{a} and {b} were not scored on the same voxels: subject {differing[0]!r} with {differing[1]} lesion and "
        f"{differing[2]} "
        "background voxels is on one side only. A paired comparison needs the same test split."
    )
