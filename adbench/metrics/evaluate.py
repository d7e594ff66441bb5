"""From per-subject histograms to numbers with intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from adbench.errors import UserError
from adbench.metrics import bootstrap, jackknife
from adbench.metrics import score_bins as _keys
from adbench.metrics.base import Metric, Subject, check_names, measured, spec_of
from adbench.metrics.curves import Curve, best_mean_dice
from adbench.metrics.histogram import SubjectHistograms
from adbench.metrics.jackknife import Estimate as Estimate
from adbench.metrics.jackknife import estimate as estimate
from adbench.metrics.spatial import Sampled, SpatialAccumulator, sample_spatial, sampled
from adbench.metrics.spec import HISTOGRAM_METRICS, MAP_METRICS, RANKED_BY, SPECS, WIDE, MetricSpec
from adbench.metrics.thresholds import AT, CONFORMAL, HEALTHY_FPR, choose_thresholds, healthy_scores, slice_thresholds

_HEALTHY = {f"fpr_healthy@{rule}": rule for rule in CONFORMAL}
NO_LESION = SPECS[RANKED_BY].undefined
_MEANS = {"auprc_subject": "auprc", **{name: name for name in AT}, "dice@subject_best": "dice@subject_best"}


@dataclass
class Evaluation:
    """All numbers of one method on one test split. Plain values only: ``asdict`` gives JSON.

    Attributes:
        metrics: name -> estimate, names as in ``docs/metrics.md``.
        thresholds: rule -> threshold (``val``, ``fpr1``, ``fpr5``, ``conformal05``, ``conformal10``; where a metric asks for
            them ``slice05``, ``slice10``; oracles ``best``, ``pooled_best``). A voxel is positive when its score is ``>=`` it. A rule without a threshold is absent.
        subjects: one row a test volume, sorted by its id: ``subject``, ``volume`` where its id is another one, voxels,
            and its own metrics (None where undefined). ``fpr@conformal05`` and ``fpr@conformal10`` are of the whole
            subject, and only of one without a lesion.
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


def compact(
    test: SubjectHistograms,
    val: SubjectHistograms | None = None,
    froc: Sequence[float] = (),
    groups: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Join scores where it changes no number, so that the counts of both splits can be stored.

    Every threshold that is chosen on the single scores, on validation or as an oracle on test or in a stratum of it, stays
    the edge of a bin.

    Args:
        test: volumes of the test split.
        val: validation subjects, or None.
        froc: thresholds of the FROC curve, and others that counts are read at.
        groups: grouping -> volume -> group: strata besides those of lesion size.
    """
    chosen = [*choose_thresholds(val)[0].values(), *froc]
    if val is not None:
        val.compact([*chosen, *healthy_scores(val)])
    best = [Curve(histogram).best_dice()[1] for histogram in test.values() if histogram.n_positive]
    parts = [test]
    for members in (lesion_size_groups(test), *(groups or {}).values()):
        parts += [test.subset([v for v in test if members.get(v) == name]) for name in sorted(set(members.values()))]
    for part in parts:
        pool = Curve(part.pooled())
        if pool.n_positive:
            best += [pool.best_dice()[1], best_mean_dice([Curve(own) for own in part.values()], pool)[1]]
    test.compact([*chosen, *best])


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
    subject_of: Mapping[str, str] | None = None,
) -> Evaluation:
    """Every metric of one test split, with intervals over subjects.

    Args:
        test: brain voxels of the test volumes, one for each session of a subject; their ids are the subjects' where each
            has one volume. One map a volume and voxel: stack modalities elsewhere.
        val: validation subjects, from which the thresholds are chosen, see :func:`choose_thresholds`; they stay fixed
            when a subject is left out for an interval, oracle thresholds are chosen again.
        intervals: False gives values alone.
        level: probability inside the interval.
        spatial: counts of the same volumes' maps, streamed with :func:`choose_thresholds` of the same ``val``; adds
            the metrics of :data:`adbench.metrics.spec.MAP_METRICS` and its plug-in metrics.
        metrics: plug-in metrics. One that needs maps is measured while ``spatial`` is streamed.
        groups: grouping -> volume -> group, e.g. ``{"site": {"sub-1": "A"}}``; joined with those of ``spatial``.
        strata: whether to repeat every metric by lesion size (``small``, ``medium``, ``large``: up to the 25th, up to
            the 75th percentile of lesion voxels over lesion-bearing volumes, above) and by every grouping.
        subject_of: volume -> subject. None: as ``spatial`` says, without which each volume is a subject.

    Raises:
        UserError: no test subject, a subject without brain voxels, a subject in both splits,
            or ``spatial`` of other subjects or of another threshold.
    """
    owners = dict(subject_of or (spatial.subject_of if spatial is not None else {}))
    owners = {volume: owners.get(volume, volume) for volume in test}
    _check(test, val, owners)
    check_names(metrics, (*HISTOGRAM_METRICS, *MAP_METRICS))
    thresholds, missing = choose_thresholds(val)
    if spatial is not None:
        thresholds |= slice_thresholds(spatial.free)
        _check_spatial(test, thresholds, spatial)
    run = _Run(thresholds, missing, intervals, level, tuple(metrics), owners)
    result = _evaluated(test, spatial, run)
    result.notes = _notes(result.subjects, result.metrics, missing)
    wide = {name: ends for name, ends in result.brackets.items() if ends[1] - ends[0] > WIDE}
    if wide:
        shown = ", ".join(f"{name} [{low:.4f}, {high:.4f}]" for name, (low, high) in wide.items())
        result.notes.append(f"Many scores are so close that they were counted together; one by one: {shown}.")
    if strata:
        groupings: dict[str, dict[str, str]] = {"lesion_size": lesion_size_groups(test)}
        groupings |= spatial.groups if spatial is not None else {}
        for grouping, members in (groups or {}).items():
            groupings.setdefault(grouping, {}).update({v: group for v, group in members.items() if v in test})
        for grouping, members in groupings.items():
            result.strata[grouping] = {}
            for group in dict.fromkeys(members.values()):
                chosen = [volume for volume in test if members.get(volume) == group]
                part = None if spatial is None else spatial.subset(chosen)
                result.strata[grouping][group] = _evaluated(test.subset(chosen), part, run).metrics
    return result


def lesion_size_groups(test: SubjectHistograms) -> dict[str, str]:
    """Lesion-bearing volume -> ``small``, ``medium`` or ``large`` by the 25th and 75th percentile of lesion voxels."""
    sizes = {volume: histogram.n_positive for volume, histogram in test.items() if histogram.n_positive}
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
    subject_of: dict[str, str]


@dataclass
class Measured:
    """All metrics of one test split before they get intervals.

    Attributes:
        metrics: name -> value, what it is without one subject each, subjects.
        subjects: rows as in :attr:`Evaluation.subjects`.
        oracles: rule -> threshold chosen on the test split itself.
        brackets: as :attr:`Evaluation.brackets`.
    """

    metrics: dict[str, Sampled]
    subjects: list[dict[str, Any]]
    oracles: dict[str, float]
    brackets: dict[str, tuple[float, float]]


def measure(
    test: SubjectHistograms,
    spatial: SpatialAccumulator | None,
    metrics: Sequence[Metric],
    subject_of: Mapping[str, str],
    chosen: tuple[Mapping[str, float], Mapping[str, str]],
    draws: np.ndarray | None,
) -> Measured:
    """Every metric of one test split, and under each weighting of its subjects.

    Args:
        test: V volumes.
        spatial: counts of their maps, or None.
        metrics: plug-in metrics.
        subject_of: volume -> subject.
        chosen: from :func:`adbench.metrics.thresholds.choose_thresholds`: thresholds, and why others are missing.
        draws: (R, V) weights, such as :func:`adbench.metrics.jackknife.weights_of`; None for values alone.
    """
    thresholds, missing = chosen
    owners = [subject_of[volume] for volume in test]
    points, rows, oracles, brackets = _points(test, thresholds, owners)
    ill = {row["subject"] for row in rows if row["lesion_voxels"]}
    samples = sample(test, rows, draws) if draws is not None else {}
    found = {}
    for name in HISTOGRAM_METRICS:
        n = len(set(owners)) - len(ill) if name in _HEALTHY else len(ill)
        why = "" if name in points else _why_undefined(SPECS[name], test, ill, missing)
        found[name] = Sampled(SPECS[name], points.get(name), samples.get(name), n, why)
    streamed = {metric.name for metric in spatial.metrics} if spatial is not None else set()
    for metric in metrics:
        if metric.name not in streamed:
            found[metric.name] = _sampled_plugin(metric, test, thresholds, owners, draws)
    if spatial is not None:
        for name, one in sample_spatial(spatial, draws).items():
            if one.value is None:
                one.reason = missing.get(one.spec.rule, one.reason)
            found[name] = one
        for row, extra in zip(rows, spatial.rows, strict=True):
            row |= {"lesions": len(extra.lesion_sizes), "recon_l1": extra.recon_l1, "recon_ssim": extra.recon_ssim}
    return Measured(found, rows, oracles, brackets)


def _evaluated(test: SubjectHistograms, spatial: SpatialAccumulator | None, run: _Run) -> Evaluation:
    owners = [run.subject_of[volume] for volume in test]
    draws = jackknife.weights_of(owners) if run.intervals else None
    found = measure(test, spatial, run.metrics, run.subject_of, (run.thresholds, run.missing), draws)
    n_all = len(set(owners))
    metrics = {}
    for name, one in found.metrics.items():
        facts, bracket = one.spec, found.brackets.get(name)
        metrics[name] = estimate(
            one.value,
            one.samples,
            one.n,
            run.level,
            facts.oracle,
            one.reason,
            n_all=n_all,
            lesions=facts.over_lesions,
            bounds=facts.bounds,
            bracket=bracket,
        )
    lesion, brain = (sum(row[f"{what}_voxels"] for row in found.subjects) for what in ("lesion", "brain"))
    return Evaluation(metrics, run.thresholds | found.oracles, found.subjects, lesion / brain, [], found.brackets)


def _sampled_plugin(
    metric: Metric,
    test: SubjectHistograms,
    thresholds: Mapping[str, float],
    owners: Sequence[str],
    draws: np.ndarray | None,
) -> Sampled:
    """A plug-in metric that was not measured while maps were streamed."""
    facts = spec_of(metric)
    if metric.needs_maps:
        return Sampled(facts, reason="it needs maps, and none were streamed")
    pairs = [measured(metric, Subject(volume, histogram, thresholds)) for volume, histogram in test.items()]
    above, below = np.array([pair or (0.0, 0.0) for pair in pairs]).T
    values = bootstrap.ratio(above, below, np.ones((1, len(pairs))))
    if metric.of_all and None in pairs:
        values[:] = np.nan
    if draws is not None:
        values = np.concatenate([values, bootstrap.ratio(above, below, draws)])
    over = {
        owner
        for owner, pair, own in zip(owners, pairs, test.values(), strict=True)
        if pair is not None and (own.n_positive or not facts.over_lesions)
    }
    n = len(over)
    return sampled(facts, values, n, metric.undefined)


def _check_spatial(test: SubjectHistograms, thresholds: dict[str, float], spatial: SpatialAccumulator) -> None:
    own = {row.volume for row in spatial.rows}
    alone = sorted(own.symmetric_difference(test))
    if alone:
        side = "histograms" if alone[0] in test else "spatial counts"
        raise UserError(
            f"Volume {alone[0]!r} ({len(alone)} in all) has only {side}: stream the same volumes into both."
        )
    for rule in ("val", *CONFORMAL):
        if spatial.thresholds.get(rule) != thresholds.get(rule):
            raise UserError(
                f"The maps were streamed with the {rule} threshold {spatial.thresholds.get(rule)} but the validation "
                f"histograms give {thresholds.get(rule)}: stream them again."
            )


def sample(test: SubjectHistograms, rows: Sequence[dict[str, Any]], draws: np.ndarray) -> dict[str, np.ndarray]:
    """Every histogram metric under each weighting of the subjects.

    Args:
        test: V volumes.
        rows: their rows as in :attr:`Evaluation.subjects`, which hold the per-volume values at fixed thresholds.
        draws: (R, V) weights, such as :func:`adbench.metrics.jackknife.weights_of` or those of a bootstrap.

    Returns:
        name -> (R,) values, NaN where a row of weights leaves it undefined.
    """
    result = bootstrap.pooled(test, draws)
    for name, column in _MEANS.items():
        values = [row[column] if row["lesion_voxels"] else None for row in rows]
        above = np.array([0.0 if value is None else value for value in values])
        below = np.array([float(value is not None) for value in values])
        result[name] = bootstrap.ratio(above, below, draws)
    for name, rule in _HEALTHY.items():
        result[name] = bootstrap.ratio(*healthy_failures(rows, rule), draws)
    return result


def healthy_failures(rows: Sequence[dict[str, Any]], rule: str) -> tuple[np.ndarray, np.ndarray]:
    """Which lesion-free subjects have more than 1 % false-positive voxels at the threshold of ``rule``.

    Args:
        rows: of V volumes, as in :attr:`Evaluation.subjects`.
        rule: ``conformal05`` or ``conformal10``.

    Returns:
        (V,) failures and (V,) lesion-free subjects, each subject divided among its volumes; all 0 without a threshold.
    """
    volumes = Counter(row["subject"] for row in rows)
    shares = np.array([1 / volumes[row["subject"]] for row in rows])
    rates = np.array([np.nan if (rate := row[f"fpr@{rule}"]) is None else rate for row in rows], float)
    return shares * (rates > HEALTHY_FPR), shares * ~np.isnan(rates)


def _points(
    test: SubjectHistograms, thresholds: Mapping[str, float], owners: Sequence[str]
) -> tuple[dict[str, float], list[dict[str, Any]], dict[str, float], dict[str, tuple[float, float]]]:
    """Values by metric, rows by volume, oracle thresholds, and brackets by metric."""
    pool, curves = Curve(test.pooled()), {volume: Curve(histogram) for volume, histogram in test.items()}
    points: dict[str, float] = {}
    oracles: dict[str, float] = {}
    if pool.n_positive:
        points["auprc"] = pool.average_precision()
        points["dice_pooled@best"], oracles["pooled_best"] = pool.best_dice()
        points["dice@best"], oracles["best"] = best_mean_dice(list(curves.values()), pool)
        if pool.n_negative:
            points["auroc"] = pool.auroc()
    at = {name: thresholds[rule] for name, rule in AT.items() if rule in thresholds}
    at |= {"dice@best": oracles["best"]} if oracles else {}
    keys = np.array([_keys.key_of(threshold) for threshold in at.values()], np.int64)
    bins = test.partition.of(keys)
    rows, ends = [], dict[str, list[tuple[float, float]]]()
    exact = pool.exact
    for owner, (volume, curve) in zip(owners, curves.items(), strict=True):
        names = {"subject": owner, **({} if owner == volume else {"volume": volume})}
        rows.append(names | _row(curve, list(at), keys))
        if not exact and curve.n_positive:
            for name, bracket in _volume_brackets(curve, list(at), keys, bins).items():
                ends.setdefault(name, []).append(bracket)
    for rule in CONFORMAL:
        rates = _healthy_rates(curves.values(), owners, thresholds.get(rule))
        for row in rows:
            row[f"fpr@{rule}"] = rates.get(row["subject"])
        failures, subjects = healthy_failures(rows, rule)
        if subjects.any():
            points[f"fpr_healthy@{rule}"] = float(failures.sum() / subjects.sum())
    for name, column in _MEANS.items():
        values = [row[column] for row in rows if row[column] is not None]
        if values:
            points[name] = float(np.mean(values))
    return points, rows, oracles, _brackets(pool, ends)


def _healthy_rates(curves: Iterable[Curve], owners: Sequence[str], threshold: float | None) -> dict[str, float]:
    """Lesion-free subject -> share of its voxels, of all volumes together, at or above the threshold."""
    if threshold is None:
        return {}
    key = np.array([_keys.key_of(threshold)])
    false: Counter[str] = Counter()
    voxels: Counter[str] = Counter()
    ill = set()
    for owner, curve in zip(owners, curves, strict=True):
        false[owner] += int(curve.reaching(key)[1][0])
        voxels[owner] += curve.n_negative
        if curve.n_positive:
            ill.add(owner)
    return {owner: false[owner] / count for owner, count in voxels.items() if owner not in ill}


def _row(curve: Curve, names: Sequence[str], keys: np.ndarray) -> dict[str, Any]:
    """The numbers of one volume; ``names`` are those of the Dice at the thresholds ``keys``."""
    row: dict[str, Any] = {
        "brain_voxels": curve.n_positive + curve.n_negative,
        "lesion_voxels": curve.n_positive,
        "auprc": None,
        "auroc": None,
        **dict.fromkeys(AT),
        "dice@best": None,
        "dice@subject_best": None,
    }
    if not curve.n_positive:
        return row
    row["auprc"] = curve.average_precision()
    row["dice@subject_best"] = curve.best_dice()[0]
    if curve.n_negative:
        row["auroc"] = curve.auroc()
    tp, fp = curve.reaching(keys)
    return row | dict(zip(names, (2 * tp / (tp + fp + curve.n_positive)).tolist(), strict=True))


def _why_undefined(facts: MetricSpec, test: SubjectHistograms, ill: set[str], missing: Mapping[str, str]) -> str:
    if facts.over_lesions and not ill:
        return facts.undefined
    if facts.name == "auroc" and not any(histogram.n_negative for histogram in test.values()):
        return "no background voxel in the whole test split"
    return missing.get(facts.rule, facts.undefined)


def _check(test: SubjectHistograms, val: SubjectHistograms | None, subject_of: Mapping[str, str]) -> None:
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
    both = sorted({subject for subject in subject_of.values() if subject in val})
    if both:
        raise UserError(
            f"{len(both)} subject(s) are in the validation and in the test split: {', '.join(both[:5])}"
            f"{', ...' if len(both) > 5 else ''}. A threshold chosen on them would be an oracle."
        )


def _notes(rows: list[dict[str, Any]], metrics: dict[str, Estimate], missing: dict[str, str]) -> list[str]:
    notes = []
    free = sum(not row["lesion_voxels"] for row in rows)
    subjects = len({row["subject"] for row in rows})
    what = "subjects" if subjects == len(rows) else "volumes"
    if free == len(rows):
        undefined = ", ".join(name for name in HISTOGRAM_METRICS if metrics[name].reason == NO_LESION)
        notes.append(f"Undefined, because there is {NO_LESION}: {undefined}.")
    elif free:
        notes.append(f"{free} of {len(rows)} test {what} bear no lesion and are not in the per-volume means.")
    if subjects < len(rows):
        notes.append(f"{len(rows)} volumes of {subjects} test subjects: scored by volume, resampled by subject.")
    for why in dict.fromkeys(missing.values()):
        rules = [rule for rule, reason in missing.items() if reason == why]
        notes.append(f"No {' or '.join(rules)} threshold: {why}.")
    return notes


def _volume_brackets(
    curve: Curve, names: Sequence[str], keys: np.ndarray, bins: np.ndarray
) -> dict[str, tuple[float, float]]:
    """Metric -> (low, high) between which the number of one volume lies for the scores before they were joined.

    Args:
        curve: of the volume.
        names: of the Dice at fixed thresholds.
        keys: (T,) keys of these thresholds.
        bins: (T,) the bins in which they lie.
    """
    found = {"auprc_subject": curve.average_precision_bracket(), "dice@subject_best": curve.best_dice_bracket()}
    if (bins == keys).all():
        return found  # every threshold is the edge of a bin
    (tp, fp), (tp_bin, fp_bin) = curve.reaching(keys), curve.reaching(bins)
    low, high = (2 * p / (p + n + curve.n_positive) for p, n in ((tp, fp_bin), (tp_bin, fp)))
    return found | dict(zip(names, zip(low.tolist(), high.tolist(), strict=True), strict=True))


def _brackets(pool: Curve, ends: Mapping[str, list[tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    """The brackets that are not a single number; a mean over volumes lies between the means of their ends."""
    if not pool.n_positive or pool.exact:
        return {}
    found = {"auprc": pool.average_precision_bracket(), "dice_pooled@best": pool.best_dice_bracket()}
    if pool.n_negative:
        found["auroc"] = pool.auroc_bracket()
    for name, own in ends.items():
        found[name] = (float(np.mean([low for low, _ in own])), float(np.mean([high for _, high in own])))
    return {name: (low, high) for name, (low, high) in found.items() if high > low}
