"""From per-subject histograms to numbers with intervals: the one place where a metric gets its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from adbench.errors import UserError
from adbench.metrics import bootstrap, jackknife
from adbench.metrics import keys as _keys
from adbench.metrics.base import Metric, Subject, check_names, measured
from adbench.metrics.curves import Curve
from adbench.metrics.histogram import ScoreHistogram, SubjectHistograms

if TYPE_CHECKING:
    from adbench.metrics.spatial import SpatialAccumulator

ORACLE = frozenset({"dice@best", "dice_pooled@best", "dice@subject_best"})
_AT = {"dice@val": "val", "dice@fpr1": "fpr1", "dice@fpr5": "fpr5"}
_MEANS = {"auprc_subject": "auprc", **{name: name for name in _AT}, "dice@subject_best": "dice@subject_best"}
NAMES = ("auprc", "auroc", "auprc_subject", *_AT, "dice@best", "dice_pooled@best", "dice@subject_best")
NO_LESION = "no lesion voxel in the whole test split"


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
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    oracle: bool = False
    reason: str = ""
    n_all: int = 0


@dataclass
class Evaluation:
    """All numbers of one method on one test split. Plain values only: ``asdict`` gives JSON.

    Attributes:
        metrics: name -> estimate, names as in ``docs/metrics.md``.
        thresholds: rule -> threshold (``val``, ``fpr1``, ``fpr5``; oracles ``best``, ``pooled_best``). A voxel is
            positive when its float32 score is ``>=`` it. A rule without a threshold is absent.
        subjects: one row a test subject: id, voxels, and its own metrics (None where undefined).
        prevalence: share of lesion among the test voxels, the chance level of ``auprc``.
        notes: what a reader must know beside the numbers.
        brackets: name -> (low, high) between which the pooled number of the unbinned scores provably lies; empty when
            the histograms are exact.
        strata: grouping -> group -> name -> estimate; see ``groups`` of :func:`evaluate`.
    """

    metrics: dict[str, Estimate]
    thresholds: dict[str, float]
    subjects: list[dict[str, Any]]
    prevalence: float
    notes: list[str]
    brackets: dict[str, tuple[float, float]] = field(default_factory=dict)
    strata: dict[str, dict[str, dict[str, Estimate]]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values (no NaN, no NumPy types)."""
        return asdict(self)


def choose_thresholds(val: SubjectHistograms | None) -> tuple[dict[str, float], dict[str, str]]:
    """Thresholds that may be used on a test split: chosen without it.

    ``val`` maximises the pooled Dice over all validation voxels (the highest threshold among equals); ``fpr1`` and
    ``fpr5`` are the lowest observed scores with at most 1 % and 5 % of the voxels of lesion-free validation subjects
    at or above them.

    Args:
        val: validation subjects, or None.

    Returns:
        (rule -> threshold, rule -> why there is none).
    """
    if val is None or not len(val):
        return {}, dict.fromkeys(("val", "fpr1", "fpr5"), "no validation split was given")
    chosen, missing = {}, {}
    pool = val.pooled()
    if pool.n_positive:
        chosen["val"] = Curve(pool).best_dice()[1]
    else:
        missing["val"] = "the validation split has no lesion, so no threshold maximises its Dice"
    healthy = val.subset([subject for subject, histogram in val.items() if not histogram.n_positive]).pooled()
    for rule, rate in (("fpr1", 0.01), ("fpr5", 0.05)):
        if healthy.n_negative:
            chosen[rule] = Curve(healthy).at_fpr(rate).threshold
        else:
            missing[rule] = "the validation split has no lesion-free subject to set a false-positive rate on"
    return chosen, missing


def evaluate(
    test: SubjectHistograms,
    val: SubjectHistograms | None = None,
    *,
    intervals: bool = True,
    level: float = 0.95,
    spatial: SpatialAccumulator | None = None,
    metrics: Sequence[Metric] = (),
    groups: Mapping[str, Mapping[str, str]] | None = None,
    strata: bool = False,
) -> Evaluation:
    """Every metric of one test split, with intervals over subjects.

    Args:
        test: brain voxels of the test subjects. One map a subject and voxel: stack modalities elsewhere.
        val: validation subjects, from which ``val``, ``fpr1`` and ``fpr5`` are chosen; they stay fixed when a subject is
            left out for an interval, oracle thresholds are chosen anew.
        intervals: False gives values alone.
        level: probability inside the interval.
        spatial: counts of the same subjects' maps, streamed with :func:`choose_thresholds` of the same ``val``; adds
            the metrics of :data:`adbench.metrics.spatial.NAMES` and its plug-in metrics.
        metrics: plug-in metrics. One that needs maps is measured while ``spatial`` is streamed.
        groups: grouping -> subject -> group, e.g. ``{"site": {"sub-1": "A"}}``; joined with those of ``spatial``.
        strata: whether to repeat every metric by lesion size (``small``, ``medium``, ``large``: up to the 25th, up to
            the 75th percentile of lesion voxels over lesion-bearing subjects, above) and by every grouping.

    Raises:
        UserError: no test subject, a subject without brain voxels, a subject in both splits, unequal mantissa bits,
            or ``spatial`` of other subjects or of another threshold.
    """
    from adbench.metrics.spatial import NAMES as SPATIAL_NAMES

    _check(test, val)
    check_names(metrics, (*NAMES, *SPATIAL_NAMES))
    thresholds, missing = choose_thresholds(val)
    if spatial is not None:
        _check_spatial(test, thresholds, spatial)
    run = _Run(thresholds, missing, intervals, level, tuple(metrics))
    result = _measure(test, spatial, run)
    result.notes = _notes(result.subjects, result.metrics, missing)
    _bracket(test, result)
    if strata:
        groupings: dict[str, dict[str, str]] = {"lesion_size": lesion_size_groups(test)}
        for row in spatial.rows if spatial is not None else ():
            for grouping, group in row.groups.items():
                groupings.setdefault(grouping, {})[row.subject] = group
        for grouping, members in (groups or {}).items():
            groupings.setdefault(grouping, {}).update({s: group for s, group in members.items() if s in test})
        for grouping, members in groupings.items():
            result.strata[grouping] = {}
            for group in dict.fromkeys(members.values()):
                chosen = [subject for subject in test if members.get(subject) == group]
                part = None if spatial is None else spatial.subset(chosen)
                result.strata[grouping][group] = _measure(test.subset(chosen), part, run).metrics
    return result


def lesion_size_groups(test: SubjectHistograms) -> dict[str, str]:
    """Lesion-bearing subject -> ``small``, ``medium`` or ``large`` by the 25th and 75th percentile of lesion voxels."""
    sizes = {subject: histogram.n_positive for subject, histogram in test.items() if histogram.n_positive}
    if not sizes:
        return {}
    low, high = np.percentile(list(sizes.values()), [25, 75])
    names = {s: "small" if n <= low else "medium" if n <= high else "large" for s, n in sizes.items()}
    return dict(sorted(names.items(), key=lambda item: ("small", "medium", "large").index(item[1])))


@dataclass(frozen=True)
class _Run:
    thresholds: dict[str, float]
    missing: dict[str, str]
    intervals: bool
    level: float
    metrics: tuple[Metric, ...]


def _measure(test: SubjectHistograms, spatial: SpatialAccumulator | None, run: _Run) -> Evaluation:
    points, rows, oracles = _points(test, run.thresholds)
    bearing = sum(row["lesion_voxels"] > 0 for row in rows)
    prevalence = sum(row["lesion_voxels"] for row in rows) / sum(row["brain_voxels"] for row in rows)
    draws = jackknife.weights(len(test)) if run.intervals else None
    left_out = sample(test, rows, draws) if draws is not None else {}
    metrics = {}
    for name in NAMES:
        reason = _why_undefined(name, test, bearing, run.missing)
        metrics[name] = estimate(
            points.get(name), left_out.get(name), bearing, run.level, name in ORACLE, reason, n_all=len(test)
        )
    metrics |= _plugins(test, spatial, run, draws)
    if spatial is not None:
        from adbench.metrics.spatial import OVER_ALL, sample_spatial

        own = {metric.name: metric for metric in spatial.metrics}
        for name, one in sample_spatial(spatial, draws).items():
            metrics[name] = estimate(
                one.value,
                one.samples,
                one.n,
                run.level,
                name in own and own[name].oracle,
                one.reason,
                n_all=len(test),
                lesions=name not in own and name not in OVER_ALL,
                bounds=bounds_of(own[name]) if name in own else jackknife.UNIT,
            )
        for row, extra in zip(rows, spatial.rows, strict=True):
            row |= {"lesions": len(extra.lesion_sizes), "recon_l1": extra.recon_l1, "recon_ssim": extra.recon_ssim}
    return Evaluation(metrics, run.thresholds | oracles, rows, prevalence, [])


def _plugins(
    test: SubjectHistograms, spatial: SpatialAccumulator | None, run: _Run, draws: np.ndarray | None
) -> dict[str, Estimate]:
    streamed = {metric.name for metric in spatial.metrics} if spatial is not None else set()
    result = {}
    for metric in run.metrics:
        if metric.name in streamed:
            continue
        if metric.needs_maps:
            result[metric.name] = Estimate(None, None, None, 0, metric.oracle, "it needs maps, and none were streamed")
            continue
        pairs = [measured(metric, Subject(s, histogram, run.thresholds)) for s, histogram in test.items()]
        above, below = np.array([pair or (0.0, 0.0) for pair in pairs]).T
        value = bootstrap.ratio(above, below, np.ones((1, len(pairs))))[0]
        result[metric.name] = estimate(
            None if np.isnan(value) else float(value),
            bootstrap.ratio(above, below, draws) if draws is not None else None,
            sum(pair is not None for pair in pairs),
            run.level,
            metric.oracle,
            "no subject has it" if np.isnan(value) else "",
            n_all=len(test),
            lesions=False,
            bounds=bounds_of(metric),
        )
    return result


def _check_spatial(test: SubjectHistograms, thresholds: dict[str, float], spatial: SpatialAccumulator) -> None:
    own = {row.subject for row in spatial.rows}
    odd = sorted(own.symmetric_difference(test))
    if odd:
        side = "histograms" if odd[0] in test else "spatial counts"
        raise UserError(f"Subject {odd[0]!r} ({len(odd)} in all) has only {side}: stream the same subjects into both.")
    if spatial.thresholds.get("val") != thresholds.get("val"):
        raise UserError(
            f"The maps were streamed with the val threshold {spatial.thresholds.get('val')} but the validation "
            f"histograms give {thresholds.get('val')}: stream them again."
        )


def sample(test: SubjectHistograms, rows: Sequence[dict[str, Any]], draws: np.ndarray) -> dict[str, np.ndarray]:
    """Every histogram metric under each weighting of the subjects.

    Args:
        test: n subjects.
        rows: their rows as in :attr:`Evaluation.subjects`, which hold the per-subject values at fixed thresholds.
        draws: (R, n) weights, such as :func:`adbench.metrics.jackknife.weights` or those of a bootstrap.

    Returns:
        name -> (R,) values, NaN where a row of weights leaves it undefined.
    """
    result = bootstrap.pooled(test, draws)
    for name, column in _MEANS.items():
        values = [row[column] if row["lesion_voxels"] else None for row in rows]
        above = np.array([0.0 if value is None else value for value in values])
        below = np.array([float(value is not None) for value in values])
        result[name] = bootstrap.ratio(above, below, draws)
    return result


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
    bounds: tuple[float, float] = jackknife.UNIT,
    bracket: tuple[float, float] | None = None,
    values: np.ndarray | None = None,
) -> Estimate:
    """An :class:`Estimate` from a value and what it is without one subject each.

    Args:
        value: on the sample itself; None when undefined.
        left_out: (m,) the value without one subject each, or (S, m) for S training seeds, NaN where undefined; None when
            no interval was asked for.
        n: subjects that the number is taken over; below :data:`adbench.metrics.jackknife.MINIMUM` there is no interval.
        level: probability inside the interval.
        oracle: whether a threshold was chosen on the test split.
        reason: why ``value`` is None.
        n_all: subjects of the split.
        lesions: whether ``n`` counts lesion-bearing subjects.
        bounds: natural range of the metric.
        bracket: ends between which the number of the unbinned scores lies; the interval is widened by as much.
        values: (S,) of each training seed, with ``value`` their mean; None for one seed.
    """
    if value is None:
        return Estimate(None, None, None, n, oracle, reason, n_all)
    value = float(value)
    if left_out is None:
        return Estimate(value, None, None, n, oracle, "no interval was asked for", n_all)
    if n < jackknife.MINIMUM:
        return Estimate(value, None, None, n, oracle, too_few(n, "an interval", lesions), n_all)
    if np.isnan(left_out).any():
        return Estimate(value, None, None, n, oracle, "undefined without one of its subjects", n_all)
    low, high = jackknife.interval(
        np.array([value]) if values is None else values, np.atleast_2d(left_out), n, level, bounds
    )
    if bracket is not None:
        low = max(bounds[0], low - max(0.0, value - bracket[0]))
        high = min(bounds[1], high + max(0.0, bracket[1] - value))
    return Estimate(value, low, high, n, oracle, n_all=n_all)


def too_few(n: int, what: str, lesions: bool = True) -> str:
    """The sentence for ``n`` subjects that do not suffice: "3 subjects with lesions: an interval needs 6"."""
    who = f"subject{'' if n == 1 else 's'}{' with lesions' if lesions else ''}"
    return f"{n} {who}: {what} needs {jackknife.MINIMUM}"


def bounds_of(metric: Metric) -> tuple[float, float]:
    """The natural range that a plug-in metric states in ``bounds``; without one, any number."""
    low, high = getattr(metric, "bounds", (-np.inf, np.inf))
    return float(low), float(high)


def dice_at(histogram: ScoreHistogram, threshold: float) -> float:
    """Dice of one volume whose voxels with ``score >= threshold`` are predicted; the volume bears a lesion."""
    tp, fp = histogram.positives_at(threshold)
    return 2 * tp / (tp + fp + histogram.n_positive)


def _points(
    test: SubjectHistograms, thresholds: dict[str, float]
) -> tuple[dict[str, float], list[dict[str, Any]], dict[str, float]]:
    pool = Curve(test.pooled())
    points: dict[str, float] = {}
    oracles: dict[str, float] = {}
    if pool.n_positive:
        points["auprc"] = pool.average_precision()
        points["dice_pooled@best"], oracles["pooled_best"] = pool.best_dice()
        keys, means = bootstrap.mean_dice(test)
        best = int(np.argmax(means))
        points["dice@best"] = float(means[best])
        oracles["best"] = float(_keys.edges(keys[best : best + 1], test.mantissa_bits)[0])
        if pool.n_negative:
            points["auroc"] = pool.auroc()
    rows = [_row(subject, histogram, thresholds, oracles.get("best")) for subject, histogram in test.items()]
    for name, column in _MEANS.items():
        values = [row[column] for row in rows if row[column] is not None]
        if values:
            points[name] = float(np.mean(values))
    return points, rows, oracles


def _row(subject: str, histogram: ScoreHistogram, thresholds: dict[str, float], best: float | None) -> dict[str, Any]:
    curve = Curve(histogram)
    row: dict[str, Any] = {
        "subject": subject,
        "brain_voxels": curve.n_positive + curve.n_negative,
        "lesion_voxels": curve.n_positive,
        "auprc": None,
        "auroc": None,
        **dict.fromkeys(_AT),
        "dice@best": None,
        "dice@subject_best": None,
    }
    if not curve.n_positive:
        return row
    row["auprc"] = curve.average_precision()
    row["dice@subject_best"] = curve.best_dice()[0]
    if curve.n_negative:
        row["auroc"] = curve.auroc()
    for name, rule in _AT.items():
        if rule in thresholds:
            row[name] = dice_at(histogram, thresholds[rule])
    if best is not None:
        row["dice@best"] = dice_at(histogram, best)
    return row


def _why_undefined(name: str, test: SubjectHistograms, bearing: int, missing: dict[str, str]) -> str:
    if not bearing:
        return NO_LESION
    if name == "auroc" and not any(histogram.n_negative for _, histogram in test.items()):
        return "no background voxel in the whole test split"
    return missing.get(_AT.get(name, ""), "")


def _check(test: SubjectHistograms, val: SubjectHistograms | None) -> None:
    if not len(test):
        raise UserError("The test split has no subject: there is nothing to evaluate.")
    for split, histograms in (("test", test), ("validation", val)):
        for subject, histogram in histograms.items() if histograms is not None else ():
            if not len(histogram.counts()[0]):
                raise UserError(
                    f"Subject {subject!r} of the {split} split has no brain voxel: its brain mask is empty. "
                    "Correct the mask or leave the subject out of the split."
                )
    if val is None:
        return
    if val.mantissa_bits != test.mantissa_bits:
        raise UserError(
            f"The test histograms have {test.mantissa_bits} mantissa bits and the validation histograms "
            f"{val.mantissa_bits}: a threshold of one would not be a bin edge of the other."
        )
    both = [subject for subject in test if subject in val]
    if both:
        raise UserError(
            f"{len(both)} subject(s) are in the validation and in the test split: {', '.join(both[:5])}"
            f"{', ...' if len(both) > 5 else ''}. A threshold chosen on them would be an oracle."
        )


def _notes(rows: list[dict[str, Any]], metrics: dict[str, Estimate], missing: dict[str, str]) -> list[str]:
    notes = []
    free = sum(not row["lesion_voxels"] for row in rows)
    if free == len(rows):
        undefined = ", ".join(name for name in NAMES if metrics[name].value is None)
        notes.append(f"Undefined, because there is {NO_LESION}: {undefined}.")
    elif free:
        notes.append(f"{free} of {len(rows)} test subjects bear no lesion and are not in the per-volume means.")
    for why in dict.fromkeys(missing.values()):
        rules = [rule for rule, reason in missing.items() if reason == why]
        notes.append(f"No {' or '.join(rules)} threshold: {why}.")
    return notes


def _bracket(test: SubjectHistograms, result: Evaluation) -> None:
    pool = test.pooled()
    if pool.exact or not pool.n_positive:
        return
    curve = Curve(pool)
    ways: dict[str, Callable[[], tuple[float, float]]] = {
        "auprc": curve.average_precision_bracket,
        "dice_pooled@best": curve.best_dice_bracket,
    }
    if pool.n_negative:
        ways["auroc"] = curve.auroc_bracket
    result.brackets = {name: way() for name, way in ways.items()}
    shown = ", ".join(f"{name} [{low:.6f}, {high:.6f}]" for name, (low, high) in result.brackets.items())
    result.notes.append(
        f"Scores were binned to {test.mantissa_bits} mantissa bits; the numbers of the unbinned scores lie in {shown}."
    )
