"""Metrics that need the map and not only its histogram: lesions, slices, reconstruction; streamed subject by subject."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from adbench.errors import UserError
from adbench.files import write_json
from adbench.metrics import bootstrap, lesion
from adbench.metrics.base import Metric, Subject, check_names, measured
from adbench.metrics.curves import Curve
from adbench.metrics.histogram import ScoreHistogram, SubjectHistograms
from adbench.metrics.keys import edges, key_of
from adbench.metrics.lesion import VolumeRow

FROC_RATES = (1, 2, 4, 8)
NAMES = (
    "lesion_recall@val",
    "lesion_f1@val",
    "froc",
    *(f"froc@{rate}" for rate in FROC_RATES),
    "fa_slice",
    "image_auroc",
    "image_auprc",
    "image_auroc@max",
    "image_auprc@max",
    "recon_l1",
    "recon_ssim",
)
LESS_IS_BETTER = frozenset({"fa_slice", "recon_l1"})
OVER_ALL = frozenset({"fa_slice", "recon_l1", "recon_ssim"})  # taken over subjects whether they bear a lesion or not
_NO_VAL = "no val threshold was known while the maps were streamed"
_NO_LESION = "no lesion in the test split"


def froc_thresholds(histograms: SubjectHistograms, count: int = 32) -> list[float]:
    """Thresholds of a FROC curve, descending.

    Their shares of background voxels run from 1e-6 to 0.05 in equal ratios. Eight more lie above, a quarter of an
    octave apart, because test scores may exceed every validation score.

    Args:
        histograms: validation subjects (or any others whose scores are on the same scale).
        count: thresholds within the range of scores at most; equal ones are merged.
    """
    pool = histograms.pooled()
    if not pool.n_negative:
        return []
    curve = Curve(pool)
    found = {curve.at_fpr(float(rate)).threshold for rate in np.geomspace(1e-6, 0.05, count)}
    bits = pool.mantissa_bits
    above = key_of(max(found), bits) + np.arange(1, 9) * max(1, 2**bits // 4)
    found |= {float(edge) for edge in edges(above, bits) if np.isfinite(edge)}
    return sorted(found, reverse=True)


class SpatialAccumulator:
    """Keeps counts, never maps: memory is a few kilobytes a subject.

    Args:
        thresholds: rule -> threshold chosen on validation; ``val`` is used for lesions and false alarms.
        froc: thresholds of the FROC curve, see :func:`froc_thresholds`; empty for no FROC.
        metrics: plug-in metrics that need maps.
        step: index distance of neighbouring slices in the prepared grid; a component does not cross a larger gap.
    """

    def __init__(
        self,
        thresholds: Mapping[str, float],
        froc: Sequence[float] = (),
        *,
        metrics: Iterable[Metric] = (),
        step: int = 1,
    ) -> None:
        self.thresholds = dict(thresholds)
        self.froc = [float(threshold) for threshold in froc]
        self.metrics = tuple(metrics)
        check_names(self.metrics, NAMES)
        self.step = step
        self._rows: dict[str, VolumeRow] = {}

    @property
    def rows(self) -> list[VolumeRow]:
        """One row a subject, sorted by id."""
        return [self._rows[subject] for subject in sorted(self._rows)]

    def add_subject(
        self,
        subject: str,
        maps: Any,
        lesion_mask: Any,
        brain: Any,
        slices: Sequence[int] | np.ndarray | None = None,
        *,
        recon: Any = None,
        image: Any = None,
        **groups: str | None,
    ) -> None:
        """Measure one subject, all of its slices at once.

        Args:
            subject: its id; given once.
            maps: (S, H, W) scores, array or tensor.
            lesion_mask: (S, H, W) bool or 0/1.
            brain: (S, H, W) bool or 0/1.
            slices: (S,) slice indices; None for 0, 1, 2, ...
            recon: (S, H, W) pseudo-healthy image in [0, 1], or None.
            image: (S, H, W) input in [0, 1], or None.
            **groups: strata, e.g. ``site="A"``, ``modality="FLAIR"``; None is left out.

        Raises:
            UserError: the subject was added before, or see :func:`adbench.metrics.lesion.checked_volume`.
        """
        if subject in self._rows:
            raise UserError(f"Subject {subject!r} was added before: give all of its slices at once.")
        volume = lesion.checked_volume(subject, maps, lesion_mask, brain, slices, recon, image)
        row = VolumeRow(subject, {name: group for name, group in groups.items() if group is not None})
        row.slice_lesion, row.slice_max, row.slice_top = lesion.slice_scores(volume)
        row.lesion_sizes, row.lesion_scores = lesion.lesions(volume, self.step)
        row.false_components = lesion.false_components(volume, self._component_thresholds, self.step)
        if "val" in self.thresholds:
            row.alarms = lesion.alarms(volume, self.thresholds["val"])
        row.recon_l1, row.recon_ssim = lesion.reconstruction(volume)
        if self.metrics:
            histogram = ScoreHistogram()
            histogram.update(volume.maps[volume.brain], volume.lesion[volume.brain], subject)
            given = Subject(subject, histogram, self.thresholds, volume)
            for metric in self.metrics:
                found = measured(metric, given)
                if found is not None:
                    row.measures[metric.name] = found
        self._rows[subject] = row

    def merge(self, other: SpatialAccumulator) -> None:
        """Take over the subjects of ``other``, which was made with the same thresholds.

        Raises:
            UserError: thresholds differ, or a subject is in both.
        """
        mine, its = (self.thresholds, self.froc, self.step), (other.thresholds, other.froc, other.step)
        if mine != its:
            raise UserError(f"Spatial counts at thresholds {mine} and {its} cannot be merged.")
        both = sorted(set(self._rows) & set(other._rows))
        if both:
            raise UserError(f"Spatial counts of {', '.join(both[:5])} are on both sides of a merge.")
        self._rows |= other._rows

    def subset(self, subjects: Iterable[str]) -> SpatialAccumulator:
        """The given subjects only."""
        chosen = SpatialAccumulator(self.thresholds, self.froc, metrics=self.metrics, step=self.step)
        chosen._rows = {subject: self._rows[subject] for subject in subjects}
        return chosen

    def to_json(self, path: str | Path) -> None:
        """Write everything but the plug-in objects (their measures are kept)."""
        rows = [asdict(row) for row in self.rows]
        write_json(Path(path), {"thresholds": self.thresholds, "froc": self.froc, "step": self.step, "rows": rows})

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
            found = cls(data["thresholds"], data["froc"], step=int(data["step"]))
            for values in data["rows"]:
                if set(values) != {f.name for f in fields(VolumeRow)}:
                    raise ValueError(f"a row has the fields {sorted(values)}")
                row = VolumeRow(**values)
                row.measures = {name: (float(pair[0]), float(pair[1])) for name, pair in row.measures.items()}
                found._rows[row.subject] = row
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise UserError(f"{where} does not hold spatial counts: {error}. Make it again from the maps.") from None
        return found

    @property
    def _component_thresholds(self) -> list[float]:
        return ([self.thresholds["val"]] if "val" in self.thresholds else []) + self.froc


@dataclass
class Sampled:
    """One spatial metric: its value, that under each weighting, over how many subjects, or why it is undefined."""

    value: float | None = None
    samples: np.ndarray | None = None
    n: int = 0
    reason: str = ""


def sample_spatial(spatial: SpatialAccumulator, draws: np.ndarray | None) -> dict[str, Sampled]:
    """Every spatial metric of the accumulated subjects.

    Args:
        spatial: n subjects.
        draws: (R, n) weights, columns in the order of ``spatial.rows``; None for values alone.
    """
    rows = spatial.rows
    every = np.ones((1, len(rows)))
    weights = every if draws is None else np.concatenate([every, draws])
    table = _Table(spatial, weights, draws is not None)
    lesion_count = np.array([len(row.lesion_sizes) for row in rows], float)
    bearing = int(np.count_nonzero(lesion_count))
    result: dict[str, Sampled] = {}
    if "val" not in spatial.thresholds:
        result |= {name: Sampled(reason=_NO_VAL) for name in ("lesion_recall@val", "lesion_f1@val", "fa_slice")}
    else:
        val = spatial.thresholds["val"]
        found = np.array([sum(score >= np.float32(val) for score in row.lesion_scores) for row in rows], float)
        false = np.array([row.false_components[0] for row in rows], float)
        alarm = np.array([row.alarms for row in rows], float)
        free = np.array([row.slice_lesion.count(False) for row in rows], float)
        result["lesion_recall@val"] = table.ratio(found, lesion_count, bearing, _NO_LESION)
        f1 = bootstrap.ratio(2 * found, found + false + lesion_count, weights)
        result["lesion_f1@val"] = table.split(np.where(weights @ lesion_count > 0, f1, np.nan), bearing, _NO_LESION)
        result["fa_slice"] = table.ratio(alarm, free, int(np.count_nonzero(free)), "every slice has a lesion")
    result |= table.froc(lesion_count, bearing)
    result |= table.images(bearing)
    for name in ("recon_l1", "recon_ssim"):
        values = [getattr(row, name) for row in rows]
        known = np.array([value is not None for value in values], float)
        above = np.array([value or 0.0 for value in values])
        result[name] = table.ratio(above, known, int(known.sum()), "the method gives no reconstruction")
    for metric in spatial.metrics:
        pairs = [row.measures.get(metric.name, (0.0, 0.0)) for row in rows]
        above, below = np.array(pairs, float).reshape(-1, 2).T
        n = sum(metric.name in row.measures for row in rows)
        result[metric.name] = table.ratio(above, below, n, "no subject has it")
    return result


@dataclass
class _Table:
    spatial: SpatialAccumulator
    weights: np.ndarray  # its first row is the sample itself
    sampled: bool
    rows: list[VolumeRow] = field(init=False)

    def __post_init__(self) -> None:
        self.rows = self.spatial.rows

    def split(self, values: np.ndarray, n: int, reason: str) -> Sampled:
        if np.isnan(values[0]):
            return Sampled(n=n, reason=reason)
        return Sampled(float(values[0]), values[1:] if self.sampled else None, n)

    def ratio(self, above: np.ndarray, below: np.ndarray, n: int, reason: str) -> Sampled:
        return self.split(bootstrap.ratio(above, below, self.weights), n, reason)

    def froc(self, lesion_count: np.ndarray, bearing: int) -> dict[str, Sampled]:
        names = ["froc", *(f"froc@{rate}" for rate in FROC_RATES)]
        if not self.spatial.froc:
            return {name: Sampled(reason="no FROC thresholds were given") for name in names}
        recall, false = froc_curve(self.spatial, self.weights)
        result, at = {}, []
        for rate in FROC_RATES:
            best = np.where(false <= rate, recall, 0.0).max(axis=1)  # NaN recall (no lesion drawn) stays NaN
            at.append(np.where(np.isnan(recall[:, 0]), np.nan, best))
            result[f"froc@{rate}"] = self.split(at[-1], bearing, _NO_LESION)
        return {"froc": self.split(np.mean(at, axis=0), bearing, _NO_LESION), **result}

    def images(self, bearing: int) -> dict[str, Sampled]:
        result: dict[str, Sampled] = {}
        for column, suffix in (("slice_top", ""), ("slice_max", "@max")):
            histograms = SubjectHistograms(mantissa_bits=23)
            for row in self.rows:
                histograms.update(
                    row.subject, np.array(getattr(row, column), np.float32), np.array(row.slice_lesion, bool)
                )
            values = bootstrap.pooled(histograms, self.weights)
            reason = "not both kinds of slices, with and without lesion, in the test split"
            both = ~np.isnan(values["auroc"][0])
            for metric in ("auroc", "auprc"):
                one = self.split(values[metric], bearing, reason)
                result[f"image_{metric}{suffix}"] = one if both else Sampled(n=bearing, reason=reason)
        return result


def froc_curve(spatial: SpatialAccumulator, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """((R, T) lesion recall, (R, T) false components a volume) at the T thresholds of ``spatial.froc``.

    Args:
        spatial: n subjects.
        weights: (R, n); one row of ones for the sample itself.
    """
    rows = spatial.rows
    scores = [np.array(row.lesion_scores, np.float32) for row in rows]
    thresholds = np.array(spatial.froc, np.float32)
    found = np.array([[np.count_nonzero(own >= t) for t in thresholds] for own in scores], float)
    lesion_count = np.array([len(own) for own in scores], float)
    skip = int("val" in spatial.thresholds)
    false = np.array([row.false_components[skip:] for row in rows], float)
    below = (weights @ lesion_count)[:, None]
    recall = np.divide(weights @ found, below, out=np.full((len(weights), len(thresholds)), np.nan), where=below > 0)
    return recall, weights @ false / weights.sum(axis=1, keepdims=True)
