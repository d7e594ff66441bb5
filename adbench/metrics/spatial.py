"""Metrics that need the map and not only its histogram: lesions, slices, reconstruction; streamed volume by volume."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from adbench.errors import UserError
from adbench.metrics import bootstrap, lesion
from adbench.metrics.base import Metric, Subject, check_names, measured, spec_of
from adbench.metrics.curves import Curve
from adbench.metrics.histogram import ScoreHistogram, SubjectHistograms
from adbench.metrics.lesion import Volume, VolumeRow, checked_volume
from adbench.metrics.spec import FROC_RATES, MAP_METRICS, SPECS, MetricSpec
from adbench.utils.files import write_json

_COUNTED = ("val", "conformal05", "conformal10")  # rules at whose thresholds components and alarms are counted


def froc_thresholds(histograms: SubjectHistograms, count: int = 32) -> list[float]:
    """Thresholds of a FROC curve, descending.

    Their shares of background voxels run from 1e-6 to 0.05 in equal ratios. Up to eight more lie above the highest
    background score, where lesions have higher ones: they divide the lesion voxels there into equal parts. All are
    scores that occur and depend on their order alone, so an increasing function of a map changes no number.

    Args:
        histograms: validation subjects (or any others whose scores are on the same scale).
        count: thresholds of either kind at most; equal ones are merged.
    """
    pool = histograms.pooled()
    if not pool.n_negative:
        return []
    curve = Curve(pool)
    found = {curve.at_fpr(float(rate)).threshold for rate in np.geomspace(1e-6, 0.05, count)}
    clear = int(np.count_nonzero(curve.fp == 0))  # thresholds that no background voxel reaches
    if clear and curve.tp[clear - 1]:
        shares = curve.tp[clear - 1] * np.arange(1, 9) / 8
        found |= {float(curve.thresholds[place]) for place in np.searchsorted(curve.tp[:clear], shares)}
    return sorted(found, reverse=True)


class SpatialAccumulator:
    """Keeps counts, never maps: memory is a few kilobytes a volume.

    Args:
        thresholds: rule -> threshold chosen on validation; lesions are counted at ``val``, false alarms at it and at
            ``conformal05`` and ``conformal10``.
        froc: thresholds of the FROC curve, see :func:`froc_thresholds`; empty for no FROC.
        metrics: plug-in metrics that need maps.
        free: highest score of each lesion-free validation slice, from which ``slice05`` and ``slice10`` in ``thresholds``
            follow (:func:`adbench.metrics.thresholds.slice_thresholds`); empty where no metric asks for them.
    """

    def __init__(
        self,
        thresholds: Mapping[str, float],
        froc: Sequence[float] = (),
        *,
        metrics: Iterable[Metric] = (),
        free: Iterable[float] = (),
    ) -> None:
        self.free = [float(score) for score in free]
        self.thresholds = dict(thresholds)
        self.froc = [float(threshold) for threshold in froc]
        self.metrics = tuple(metrics)
        check_names(self.metrics, MAP_METRICS)
        self._rows: dict[str, VolumeRow] = {}

    @property
    def rows(self) -> list[VolumeRow]:
        """One row a volume, sorted by id."""
        return [self._rows[volume] for volume in sorted(self._rows)]

    @property
    def subject_of(self) -> dict[str, str]:
        """Volume -> its subject, sorted by volume."""
        return {row.volume: row.subject for row in self.rows}

    def add_volume(
        self,
        volume: str,
        maps: Any,
        lesion_mask: Any,
        brain: Any,
        slices: Sequence[int] | np.ndarray | None = None,
        *,
        subject: str = "",
        recon: Any = None,
        image: Any = None,
        spacing: tuple[float, float, float] | None = None,
        **groups: str | None,
    ) -> None:
        """Measure one volume, all of its slices at once.

        Args:
            volume: its id; given once.
            maps: (S, H, W) scores, array or tensor.
            lesion_mask: (S, H, W) bool or 0/1.
            brain: (S, H, W) bool or 0/1.
            slices: (S,) slice indices, or positions in mm; None for 0, 1, 2, ...
            subject: whose volume it is; "" where the volume is its subject's only one.
            recon: (S, H, W) pseudo-healthy image in [0, 1], or None.
            image: (S, H, W) input in [0, 1], or None.
            spacing: mm from one slice index to the next, from row to row, from column to column; None where unknown.
            **groups: strata, e.g. ``site="A"``, ``modality="FLAIR"``; None is left out.

        Raises:
            UserError: the volume was added before, or see :func:`adbench.metrics.lesion.checked_volume`.
        """
        self._refuse_known(volume)
        checked = checked_volume(volume, maps, lesion_mask, brain, slices, recon, image, spacing)
        self.keep(self.row(volume, checked, subject, **groups), checked)

    def row(self, name: str, volume: Volume, subject: str = "", /, **groups: str | None) -> VolumeRow:
        """Everything that is counted in a volume but what plug-in metrics measure; several threads may call this at once.

        Args:
            name: its id.
            volume: from :func:`adbench.metrics.lesion.checked_volume`.
            subject: as for :meth:`add_volume`.
            **groups: as for :meth:`add_volume`.
        """
        row = VolumeRow(
            name, subject or name, {grouping: group for grouping, group in groups.items() if group is not None}
        )
        row.slice_lesion, row.slice_max, row.slice_top = lesion.slice_scores(volume)
        thresholds = [self.thresholds[rule] for rule in self.rules]
        row.lesion_sizes, detections = lesion.detect(volume, [*thresholds, *self.froc])
        row.found = [one.found for one in detections]
        row.false_components = [one.false for one in detections]
        if "val" in self.thresholds:
            row.lesion_ious = detections[0].ious
        row.alarms = {rule: lesion.alarms(volume, self.thresholds[rule]) for rule in self.rules}
        row.recon_l1, row.recon_ssim = lesion.reconstruction(volume)
        return row

    def keep(self, row: VolumeRow, volume: Volume) -> None:
        """Let plug-in metrics measure the volume that ``row`` was counted in, and keep the row.

        Raises:
            UserError: the volume was added before, or a metric returns what none may.
        """
        self._refuse_known(row.volume)
        if self.metrics:
            histogram = ScoreHistogram()
            histogram.update(volume.scores, volume.lesion[volume.brain], row.volume)
            given = Subject(row.volume, histogram, self.thresholds, volume)
            for metric in self.metrics:
                found = measured(metric, given)
                if found is not None:
                    row.measures[metric.name] = found
        self._rows[row.volume] = row

    def _refuse_known(self, volume: str) -> None:
        if volume in self._rows:
            raise UserError(f"Volume {volume!r} was added before: give all of its slices at once.")

    def merge(self, other: SpatialAccumulator) -> None:
        """Take over the volumes of ``other``, which was made with the same thresholds.

        Raises:
            UserError: thresholds differ, or a volume is in both.
        """
        mine, its = (self.thresholds, self.froc), (other.thresholds, other.froc)
        if mine != its:
            raise UserError(f"Spatial counts at thresholds {mine} and {its} cannot be merged.")
        both = sorted(set(self._rows) & set(other._rows))
        if both:
            raise UserError(f"Spatial counts of {', '.join(both[:5])} are on both sides of a merge.")
        self._rows |= other._rows

    def subset(self, volumes: Iterable[str]) -> SpatialAccumulator:
        """The given volumes only."""
        chosen = SpatialAccumulator(self.thresholds, self.froc, metrics=self.metrics, free=self.free)
        chosen._rows = {volume: self._rows[volume] for volume in volumes}
        return chosen

    def to_json(self, path: str | Path) -> None:
        """Write everything but the plug-in objects (their measures are kept)."""
        rows = [asdict(row) for row in self.rows]
        free = {"free": self.free} if self.free else {}
        write_json(Path(path), {"thresholds": self.thresholds, "froc": self.froc, **free, "rows": rows})

    @classmethod
    def from_json(cls, path: str | Path) -> SpatialAccumulator:
        """Read what :meth:`to_json` wrote.

        Raises:
            UserError: the file is missing or damaged.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path} does not hold spatial counts: {error}. Make it again from the maps.") from None
        return cls.from_values(data, str(path))

    @classmethod
    def from_values(cls, data: Any, where: str) -> SpatialAccumulator:
        """What :meth:`to_json` wrote, already parsed.

        Args:
            data: the JSON value.
            where: it comes from, for the message.

        Raises:
            UserError: it is not what :meth:`to_json` writes.
        """
        try:
            found = cls(data["thresholds"], data["froc"], free=data.get("free", ()))
            for values in data["rows"]:
                if set(values) != {f.name for f in fields(VolumeRow)}:
                    raise ValueError(f"a row has the fields {sorted(values)}")
                row = VolumeRow(**values)
                row.measures = {name: (float(pair[0]), float(pair[1])) for name, pair in row.measures.items()}
                found._rows[row.volume] = row
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise UserError(f"{where} does not hold spatial counts: {error}. Make it again from the maps.") from None
        return found

    @property
    def groups(self) -> dict[str, dict[str, str]]:
        """Grouping -> volume -> group."""
        found: dict[str, dict[str, str]] = {}
        for row in self.rows:
            for grouping, group in row.groups.items():
                found.setdefault(grouping, {})[row.volume] = group
        return found

    @property
    def rules(self) -> list[str]:
        """The rules at whose thresholds components are counted, before those of the FROC curve; ``val`` first."""
        return [rule for rule in _COUNTED if rule in self.thresholds]


@dataclass
class Sampled:
    """One metric of a split.

    Attributes:
        spec: its facts.
        value: on the split itself; None when undefined.
        samples: (R,) under each weighting of the subjects, NaN where undefined; None where none was asked for.
        n: subjects that it is taken over.
        reason: why it is undefined.
    """

    spec: MetricSpec
    value: float | None = None
    samples: np.ndarray | None = None
    n: int = 0
    reason: str = ""


def ratios(spatial: SpatialAccumulator) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Metric -> (V,) numerator and (V,) denominator of each volume, of all metrics that are a ratio of such sums.

    Metrics at a threshold that does not exist are left out. Panoptic quality (Kirillov et al. 2019, CVPR:9404) is
    recognition quality, here ``lesion_f1@val``, times the mean IoU of the lesions that are found.
    """
    rows, rules = spatial.rows, spatial.rules
    lesions = np.array([len(row.lesion_sizes) for row in rows], float)
    free = np.array([row.slice_lesion.count(False) for row in rows], float)
    healthy = (lesions == 0).astype(float)
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    if "val" in rules:
        matched = np.array([row.found[0] for row in rows], float)
        false = np.array([row.false_components[0] for row in rows], float)
        iou = np.array([sum(row.lesion_ious) for row in rows], float)
        found["lesion_recall@val"] = matched, lesions
        found["lesion_f1@val"] = 2 * matched, matched + false + lesions
        found["lesion_iou@val"] = iou, lesions
        found["pq@val"] = 2 * iou, matched + false + lesions
    for place, rule in enumerate(rules):
        name = "fa_slice" if rule == "val" else f"fa_slice@{rule}"
        found[name] = np.array([row.alarms[rule] for row in rows], float), free
        if f"fa_scan@{rule}" in SPECS:
            found[f"fa_scan@{rule}"] = (
                np.array([row.false_components[place] for row in rows], float) * healthy,
                healthy,
            )
    for name in ("recon_l1", "recon_ssim"):
        values = [getattr(row, name) for row in rows]
        found[name] = np.array([value or 0.0 for value in values]), np.array([v is not None for v in values], float)
    return found


def sample_spatial(spatial: SpatialAccumulator, draws: np.ndarray | None) -> dict[str, Sampled]:
    """Every spatial metric of the accumulated volumes.

    Args:
        spatial: V volumes.
        draws: (R, V) weights, columns in the order of ``spatial.rows``; None for values alone.
    """
    rows = spatial.rows
    every = np.ones((1, len(rows)))
    weights = every if draws is None else np.concatenate([every, draws])  # the first row is the split itself

    def subjects(counts: np.ndarray) -> int:
        """How many subjects have a volume that counts."""
        return len({row.subject for row, count in zip(rows, counts, strict=True) if count})

    lesions = np.array([len(row.lesion_sizes) for row in rows], float)
    bearing, drawn = subjects(lesions), weights @ lesions > 0
    values: dict[str, np.ndarray] = {}
    over: dict[str, int] = {}
    for name, (above, below) in ratios(spatial).items():
        values[name] = bootstrap.ratio(above, below, weights)
        if SPECS[name].over_lesions:
            values[name] = np.where(drawn, values[name], np.nan)
        else:
            over[name] = subjects(below)
    values |= _froc(spatial, weights) | _images(rows, weights)
    result = {}
    for name in MAP_METRICS:
        facts = SPECS[name]
        if name in values:
            result[name] = sampled(facts, values[name], over.get(name, bearing))
        else:
            rule = f"no {facts.rule} threshold was known while the maps were streamed"
            result[name] = Sampled(facts, reason=rule if facts.rule else "no FROC thresholds were given")
    for metric in spatial.metrics:
        pairs = [row.measures.get(metric.name, (0.0, 0.0)) for row in rows]
        has = np.array([metric.name in row.measures for row in rows])
        above, below = np.array(pairs, float).reshape(-1, 2).T
        found = bootstrap.ratio(above, below, weights)
        if metric.of_all and not has.all():
            found[:] = np.nan
        facts = spec_of(metric)
        over_these = has & (lesions > 0) if facts.over_lesions else has
        result[metric.name] = sampled(facts, found, subjects(over_these), metric.undefined)
    return result


def sampled(facts: MetricSpec, values: np.ndarray, n: int, undefined: str = "") -> Sampled:
    """The metric with (1 + R,) ``values``, the first on the split itself; undefined where that one is NaN."""
    if np.isnan(values[0]):
        return Sampled(facts, n=n, reason=undefined or facts.undefined)
    return Sampled(facts, float(values[0]), values[1:] if len(values) > 1 else None, n)


def _froc(spatial: SpatialAccumulator, weights: np.ndarray) -> dict[str, np.ndarray]:
    if not spatial.froc:
        return {}
    recall, false = froc_curve(spatial, weights)
    at = {}
    for rate in FROC_RATES:
        best = np.where(false <= rate, recall, 0.0).max(axis=1)
        at[f"froc@{rate}"] = np.where(np.isnan(recall[:, 0]), np.nan, best)  # NaN recall: no lesion was drawn
    return {"froc": np.mean(list(at.values()), axis=0), **at}


def _images(rows: Sequence[VolumeRow], weights: np.ndarray) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for column, suffix in (("slice_top", ""), ("slice_max", "@max")):
        histograms = SubjectHistograms()
        for row in rows:
            histograms.update(row.volume, np.array(getattr(row, column)), np.array(row.slice_lesion, bool))
        pooled = bootstrap.pooled(histograms, weights)
        if np.isnan(pooled["auroc"][0]):  # only one kind of slices
            pooled["auprc"][:] = np.nan
        found |= {f"image_{area}{suffix}": pooled[area] for area in ("auroc", "auprc")}
    return found


def froc_curve(spatial: SpatialAccumulator, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """((R, T) lesion recall, (R, T) false components a volume) at the T thresholds of ``spatial.froc``.

    Args:
        spatial: V volumes.
        weights: (R, V); one row of ones for the sample itself.
    """
    rows, first = spatial.rows, len(spatial.rules)
    found = np.array([row.found[first:] for row in rows], float)
    false = np.array([row.false_components[first:] for row in rows], float)
    below = (weights @ np.array([len(row.lesion_sizes) for row in rows], float))[:, None]
    recall = np.divide(weights @ found, below, out=np.full((len(weights), found.shape[1]), np.nan), where=below > 0)
    volumes = weights.sum(axis=1, keepdims=True)  # none where the only subject is left out
    return recall, np.divide(weights @ false, volumes, out=np.full(recall.shape, np.nan), where=volumes > 0)


def recall_by_size(
    spatial: SpatialAccumulator, replicates: int = 200, seed: int = 0
) -> list[tuple[str, int, float, tuple[float, float] | None]]:
    """Share of lesions found at the val threshold by lesion size, in factors of four.

    Args:
        spatial: counts of the volumes.
        replicates: resamples of the subjects behind the intervals.
        seed: of them.

    Returns:
        For each size up to the largest: its voxels as text, how many lesions it has, the share found (NaN without any)
        and the 95 % percentile interval (None without one).

    Raises:
        UserError: there is no val threshold or no lesion.
    """
    rows = spatial.rows
    sizes = [np.array(row.lesion_sizes, int) for row in rows]
    largest = max((int(own.max()) for own in sizes if len(own)), default=0)
    if "val" not in spatial.thresholds or not largest:
        why = "no lesion" if not largest else "no threshold was chosen on validation"
        raise UserError(f"No plot of lesion recall by size was drawn: {why}.")
    owners = list(spatial.subject_of.values())
    draws = bootstrap.weights_of(owners, replicates, seed)
    bins: list[tuple[str, int, float, tuple[float, float] | None]] = []
    low = 1
    while low <= largest:
        inside = [(low <= own) & (own < 4 * low) for own in sizes]
        count = np.array([own.sum() for own in inside], float)
        pairs = zip(inside, rows, strict=True)
        found = np.array([np.count_nonzero(own & (np.array(row.lesion_ious) > 0)) for own, row in pairs], float)
        share, ends = float("nan"), None
        if count.any():
            share = float(found.sum() / count.sum())
            drawn = bootstrap.ratio(found, count, draws)
            if len(set(owners)) > 1 and np.isnan(drawn).mean() <= 0.5:
                ends = tuple(np.nanquantile(drawn, [0.025, 0.975]).tolist())
        bins.append((f"{low}-{4 * low - 1}", int(count.sum()), share, ends))
        low *= 4
    return bins
