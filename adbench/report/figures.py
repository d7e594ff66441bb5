"""The charts of a report."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from adbench.errors import UserError
from adbench.metrics import bootstrap
from adbench.metrics.score_bins import edges
from adbench.metrics.spatial import froc_curve, recall_by_size
from adbench.report.collect import BAND, Report, ShownRun
from adbench.report.drawing import (
    GRID,
    INK,
    MUTED,
    STROKES,
    Draw,
    colour,
    grid_of,
    legend,
    line,
    mark,
    one,
    plain,
    point,
    shade,
    tilt,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RECALL = np.linspace(0, 1, 201)


def pr(report: Report) -> Figure | None:
    """Pooled precision against recall with a band over subjects; chance and chosen thresholds."""
    parts = [part for part in report.parts if part.curve.n_positive]
    if not parts:
        return None
    figure, axes = one("recall", "precision")
    for index, part in _numbered(report, parts):
        curve, band = part.curve, part.band
        if band is not None:
            recall = band.tp / np.maximum(band.tp[:, -1:], 1)
            precision = band.tp / np.maximum(band.tp + band.fp, 1)
            rows = [
                p[np.minimum(np.searchsorted(r, _RECALL), len(r) - 1)] for r, p in zip(recall, precision, strict=True)
            ]
            shade(axes, _RECALL, np.stack(rows), index, len(parts))
        at = np.minimum(np.searchsorted(curve.recall, _RECALL), len(curve.recall) - 1)
        axes.plot(_RECALL, curve.precision[at], **line(index), label=_named(part, "auprc"))
        for place, marker in _marks(part):
            axes.plot(curve.recall[place], curve.precision[place], marker, **mark(index, marker))
    chance = parts[0].evaluation.prevalence
    axes.axhline(chance, color=MUTED, linestyle=":", linewidth=1.2, label=f"chance {chance:.3g}")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), title="Precision and recall, all test voxels")
    legend(axes)
    return figure


def roc(report: Report) -> Figure | None:
    """Pooled true-positive against false-positive rate with a band over subjects."""
    parts = [part for part in report.parts if part.curve.n_positive and part.curve.n_negative]
    if not parts:
        return None
    figure, axes = one("false-positive rate", "true-positive rate")
    for index, part in _numbered(report, parts):
        curve, band = part.curve, part.band
        if band is not None:
            recall, fpr = (x / np.maximum(x[:, -1:], 1) for x in (band.tp, band.fp))
            rows = [np.interp(_RECALL, np.r_[0, x], np.r_[0, y]) for x, y in zip(fpr, recall, strict=True)]
            shade(axes, _RECALL, np.stack(rows), index, len(parts))
        rate = np.interp(_RECALL, np.r_[0, curve.fpr], np.r_[0, curve.recall])
        axes.plot(_RECALL, rate, **line(index), label=_named(part, "auroc"))
        for place, marker in _marks(part):
            axes.plot(curve.fpr[place], curve.recall[place], marker, **mark(index, marker))
    axes.plot([0, 1], [0, 1], color=MUTED, linestyle=":", linewidth=1.2, label="chance")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), title="ROC, all test voxels")
    legend(axes)
    return figure


def dice(report: Report) -> Figure | None:
    """Mean per-volume Dice against the threshold, a panel a run: their maps have scales of their own."""
    parts = [part for part in report.parts if part.curve.n_positive]
    if not parts:
        return None
    figure, panels = grid_of(len(parts), "threshold", "mean Dice per volume", share_y=True)
    top = max(float(part.mean_dice[1].max()) for part in parts)
    for axes, (index, part) in zip(panels, _numbered(report, parts), strict=True):
        thresholds, means = part.mean_dice
        low, high = _interesting(part, thresholds, means)
        if part.band is not None:
            x = edges(part.band.keys)
            some = thin(x, low, high, 150)
            shade(axes, x[some], part.band.dice[:, some], index, 1)
        kept = thin(thresholds, low, high)
        axes.plot(thresholds[kept], means[kept], **line(index), marker="o" if len(kept) < 3 else None)
        rules = {"val": ("-", "chosen on validation", "dice@val"), "best": (":", "oracle", "dice@best")}
        for rule, (style, meaning, metric) in rules.items():
            if rule in part.evaluation.thresholds:
                value = part.evaluation.metrics[metric].value or 0.0
                axes.axvline(
                    part.evaluation.thresholds[rule],
                    color=INK,
                    linestyle=style,
                    linewidth=1,
                    label=f"{meaning}: {value:.3f}",
                )
        axes.set(xlim=(low, high), ylim=(0, min(1.02, 1.6 * top + 0.05)), title=part.label)
        axes.title.set_color(colour(index))
        legend(axes, "upper right")
    return figure


def subjects(report: Report) -> Figure | None:
    """Every lesion-bearing subject's own number, joined across runs, and against its lesion volume."""
    columns = [(part, _rows(part, report.ranked_by)) for part in report.parts]
    if not any(len(rows) for _, rows in columns):
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.2, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    known = [rows for _, rows in columns if rows]
    shared = sorted(set.intersection(*(set(rows) for rows in known)))
    places = [place for place, (_, rows) in enumerate(columns) if rows]
    if len(places) > 1:
        for subject in shared:
            left.plot(places, [columns[place][1][subject][1] for place in places], color=GRID, linewidth=0.8, zorder=1)
    for index, (part, rows) in enumerate(columns):
        if not rows:
            continue
        volumes, values = np.array(list(rows.values()), float).T
        jitter = (
            np.random.default_rng(0).uniform(-0.13, 0.13, len(values)) if len(places) == 1 else np.zeros(len(values))
        )
        left.plot(
            index + jitter, values, "o", markersize=4.5, color=colour(index), alpha=0.7, markeredgewidth=0, zorder=2
        )
        quartiles = np.quantile(values, [0.25, 0.5, 0.75])
        left.vlines(index + 0.26, quartiles[0], quartiles[2], color=colour(index), linewidth=5, alpha=0.35, zorder=2)
        left.plot(index + 0.26, quartiles[1], "_", markersize=13, markeredgewidth=2.5, color=colour(index), zorder=3)
        right.plot(
            volumes, values, "o", markersize=5, color=colour(index), alpha=0.75, markeredgewidth=0, label=part.label
        )
    left.set_xticks(range(len(columns)), [part.label for part, _ in columns], **tilt(len(columns)))
    left.set(xlim=(-0.6, len(columns) - 0.4), ylim=(-0.02, 1.02), ylabel=f"{report.ranked_by} of a subject")
    left.set_title("Each subject; bar: quartiles, line: median")
    left.grid(axis="x", visible=False)
    right.set_xscale("log")
    plain(right.xaxis)
    right.set(ylim=(-0.02, 1.02), xlabel="lesion voxels of the subject", ylabel=f"{report.ranked_by} of a subject")
    right.set_title("Against lesion volume")
    legend(right)
    return figure


def strata(report: Report) -> Figure | None:
    """AUPRC and Dice by lesion size and every other grouping of the subjects."""
    groupings: dict[str, list[str]] = {}
    for part in report.parts:
        for grouping, members in part.run.record.strata.items():
            if len(members) > 1:
                named = groupings.setdefault(grouping, [])
                named += [group for group in members if group not in named]
    panels_of = [(grouping, metric) for grouping in groupings for metric in ("auprc", "dice@val")]
    if not panels_of:
        return None
    figure, panels = grid_of(len(panels_of), "", "", columns=2)
    for axes, (grouping, metric) in zip(panels, panels_of, strict=True):
        groups = groupings[grouping]
        sizes: dict[str, int] = {}
        for index, part in enumerate(report.parts):
            offset = _offset(index, report)
            for place, group in enumerate(groups):
                number = part.run.record.strata.get(grouping, {}).get(group, {}).get(metric)
                if number is None or number.value is None:
                    continue
                sizes[group] = number.n
                label = part.label if not place else None
                point(axes, place + offset, number.value, (number.low, number.high), index, label)
        shown = [f"{group}\n{sizes.get(group, 0)} subjects" for group in groups]
        axes.set_xticks(range(len(groups)), shown, **tilt(len(groups)))
        axes.set(ylim=(-0.02, 1.02), xlim=(-0.5, len(groups) - 0.5), title=f"{metric} by {grouping.replace('_', ' ')}")
        axes.grid(axis="x", visible=False)
    legend(panels[0])
    return figure


def lesions(report: Report) -> Figure | None:
    """Lesion recall by lesion size at the chosen threshold, and against false components a volume (FROC)."""
    from matplotlib.figure import Figure

    bins = {}
    for index, part in enumerate(report.parts):
        try:
            bins[index] = recall_by_size(part.run.spatial)
        except UserError:
            continue  # no lesion, or no threshold: the reason stands in the run's notes
    froc = [index for index, part in enumerate(report.parts) if part.run.spatial.froc and part.curve.n_positive]
    if not bins and not froc:
        return None
    figure = Figure(figsize=(11.2, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    for index, sizes in bins.items():
        offset = _offset(index, report)
        for place, (_, count, share, ends) in enumerate(sizes):
            if count:
                point(left, place + offset, share, ends or (None, None), index)
    if bins:
        named = next(iter(bins.values()))
        left.set_xticks(range(len(named)), [f"≥ {size.split('-')[0]}\nn={count}" for size, count, _, _ in named])
    left.set(
        ylim=(-0.02, 1.02),
        xlabel="lesion size (voxels)",
        ylabel="share of lesions found",
        title="Lesion recall at the chosen threshold",
    )
    left.grid(axis="x", visible=False)
    for index in froc:
        part, spatial = report.parts[index], report.parts[index].run.spatial
        recall, false = froc_curve(spatial, np.ones((1, len(spatial.rows))))
        owners = list(spatial.subject_of.values())
        if len(set(owners)) > 1 and len(froc) <= 4:
            sampled = froc_curve(spatial, bootstrap.weights_of(owners, BAND, 0))[0]
            low, high = np.nanquantile(sampled, [0.025, 0.975], axis=0)
            right.fill_between(false[0], low, high, color=colour(index), alpha=0.13, linewidth=0)
        right.plot(false[0], recall[0], **line(index), marker=".", label=_named(part, "froc"))
    right.set_xscale("symlog", linthresh=1)
    plain(right.xaxis)
    right.set(
        xlim=(0, None),
        ylim=(-0.02, 1.02),
        xlabel="false components a volume",
        ylabel="share of lesions found",
        title="FROC",
    )
    legend(right)
    return figure


def cost(report: Report) -> Figure | None:
    """AUPRC against the time a volume takes; only with three runs or more."""
    found = []
    for index, part in enumerate(report.parts):
        number, seconds = part.run.record.metrics.get("auprc"), volume_seconds(part)
        if number is not None and number.value is not None and seconds is not None:
            found.append((index, part, number.value, number, seconds))
    if len(found) < 3:
        return None
    figure, axes = one("seconds a volume (scoring)", "AUPRC")
    for index, part, value, number, seconds in found:
        point(axes, seconds, value, (number.low, number.high), index, part.label)
    axes.set_xscale("log")
    plain(axes.xaxis)
    axes.set(ylim=(0, 1.02), title="What it costs")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def losses(report: Report) -> Figure | None:
    """Training curves, a panel a stage."""
    panels_of = []
    for index, part in enumerate(report.parts):
        stages = part.run.record.fit.get("curves", {})
        for stage, points in stages.items() if isinstance(stages, dict) else ():
            lines = _lines(points)
            if lines:
                panels_of.append((index, f"{part.label}: {stage}", lines))
    if not panels_of:
        return None
    figure, panels = grid_of(len(panels_of), "step", "")
    for axes, (index, title, lines) in zip(panels, panels_of, strict=True):
        for number, (name, (steps, values)) in enumerate(lines.items()):
            style = "--" if name.startswith("val") else STROKES[number % len(STROKES)]
            axes.plot(
                steps, values, color=colour(index), linestyle=style, label=name, alpha=0.95 if number == 0 else 0.7
            )
        positive = [value for _, values in lines.values() for value in values if value > 0]
        if len(positive) == sum(len(values) for _, values in lines.values()) and max(positive) > 20 * min(positive):
            axes.set_yscale("log")
            plain(axes.yaxis)
        axes.set_title(title, color=colour(index))
        legend(axes, "upper right")
    return figure


CHARTS: dict[str, tuple[Draw, str]] = {
    "pr": (pr, "Precision against recall over all test brain voxels. Band: 95 % of 200 resamples of the subjects. Dot: threshold chosen on validation; star: oracle."),
    "roc": (roc, "True-positive against false-positive rate over all test brain voxels, marks as on the left."),
    "dice": (dice, "Mean Dice per volume against the threshold, in units of each run's map. The dotted line is an oracle: it was chosen on the test split."),
    "subjects": (subjects, "Lesion-bearing test subjects, one dot each."),
    "strata": (strata, "Subjects grouped; small: up to the 25th percentile of lesion voxels, large: above the 75th. Line: 95 % interval over subjects."),
    "lesions": (lesions, "A lesion is a 26-connected component; it is found when one of its voxels reaches the threshold."),
    "cost": (cost, "Seconds are those of the machine of each run."),
    "losses": (losses, "Logged while training; val: on validation slices without lesion."),
}  # fmt: skip


def _offset(index: int, report: Report) -> float:
    """Runs stand beside each other within a group of 1."""
    return (index - (len(report.parts) - 1) / 2) * min(0.14, 0.7 / len(report.parts))


def volume_seconds(part: ShownRun) -> float | None:
    """Seconds of scoring a test subject takes on average."""
    record = part.run.record
    per_slice = record.timing.get("score_per_slice")
    if per_slice is None or not record.test.subjects or not per_slice > 0:
        return None
    return per_slice * record.test.slices / record.test.subjects


def _numbered(report: Report, parts: Sequence[ShownRun]) -> list[tuple[int, ShownRun]]:
    return [(index, part) for index, part in enumerate(report.parts) if part in parts]


def _rows(part: ShownRun, metric: str) -> dict[str, tuple[float, float]]:
    """Volume -> (lesion voxels, its own number), where it has one."""
    rows = part.evaluation.subjects
    return {r.get("volume", r["subject"]): (r["lesion_voxels"], r[metric]) for r in rows if r[metric] is not None}


def _lines(points: Any) -> dict[str, tuple[list[float], list[float]]]:
    """Loss curves of one stage; a record is untrusted, so anything but numbers is left out."""
    lines: dict[str, tuple[list[float], list[float]]] = {}
    for entry in points if isinstance(points, list) else ():
        step = entry.get("step") if isinstance(entry, dict) else None
        if not _is_number(step):
            continue
        for name, value in entry.items():
            if name != "step" and "loss" in str(name) and _is_number(value):
                steps, values = lines.setdefault(str(name), ([], []))
                steps.append(float(step))
                values.append(float(value))
    return lines


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _named(part: ShownRun, metric: str) -> str:
    number = part.run.record.metrics.get(metric)
    return part.label if number is None or number.value is None else f"{part.label}  {number.value:.3f}"


def _marks(part: ShownRun) -> list[tuple[int, str]]:
    found = []
    for rule, marker in (("val", "o"), ("pooled_best", "*")):
        if rule in part.evaluation.thresholds:
            place = int(np.searchsorted(-part.curve.thresholds, -part.evaluation.thresholds[rule], side="right")) - 1
            if place >= 0:
                found.append((place, marker))
    return found


def _interesting(part: ShownRun, thresholds: np.ndarray, means: np.ndarray) -> tuple[float, float]:
    """Where the Dice curve is worth its ink: from where half of the brain is predicted to where almost nothing is."""
    curve = part.curve
    share = (curve.tp + curve.fp) / (curve.n_positive + curve.n_negative)
    low = float(curve.thresholds[min(int(np.searchsorted(share, 0.5)), len(share) - 1)])
    above = np.flatnonzero(means >= 0.02 * means.max())
    high = float(thresholds[above[0]])
    marks = [part.evaluation.thresholds[rule] for rule in ("val", "best") if rule in part.evaluation.thresholds]
    low, high = min([low, *marks]), max([high, *marks])
    margin = 0.03 * (high - low) or 0.05 * abs(low) or 0.5
    return low - margin, high + margin


def thin(x: np.ndarray, low: float, high: float, count: int = 500) -> np.ndarray:
    """At most ``count`` positions of ``x`` (monotone), spread over [low, high], the neighbours beyond the ends too."""
    inside = np.flatnonzero((x >= low) & (x <= high))
    if not len(inside):
        return np.arange(min(len(x), 2))
    first, last = max(0, inside[0] - 1), min(len(x) - 1, inside[-1] + 1)
    return np.unique(np.linspace(first, last, min(count, last - first + 1)).astype(int))
