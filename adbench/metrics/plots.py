"""Plots of an evaluation. Matplotlib is imported when one is drawn, without a display."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adbench.errors import UserError
from adbench.metrics import bootstrap
from adbench.metrics.curves import Curve
from adbench.metrics.evaluate import NO_LESION, Evaluation
from adbench.metrics.histogram import SubjectHistograms
from adbench.metrics.score_bins import edges
from adbench.metrics.spatial import FROC_RATES, SpatialAccumulator, froc_curve
from adbench.utils.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKS = {"val": ("o", "chosen on validation"), "pooled_best": ("*", "oracle, chosen on test")}
_GRID = np.linspace(0, 1, 201)
_DRAWN = 1e300  # scores beyond leave matplotlib no room for the limits of an axis
_BAND = 200  # replicates behind a band


def all_plots(
    test: SubjectHistograms,
    evaluation: Evaluation,
    folder: str | Path,
    *,
    spatial: SpatialAccumulator | None = None,
    seed: int = 0,
) -> list[str]:
    """Draw every plot that is defined into ``folder``; why one is not drawn comes back as a note.

    Args:
        test: the subjects that were evaluated.
        evaluation: their numbers.
        folder: receives ``pr.png``, ``roc.png``, ``dice.png`` and, with ``spatial``, ``lesion_recall.png``, ``froc.png``.
        spatial: their spatial counts, or None.
        seed: of the resamples behind the bands.
    """
    folder = Path(folder)
    if not Curve(test.pooled()).n_positive:
        return [f"No plot was drawn: {NO_LESION}."]
    notes = []
    pr_plot(test, evaluation, folder / "pr.png", seed=seed)
    keys = test.pooled().counts()[0]
    if max(abs(edges(keys[[0, -1]]))) < _DRAWN:
        dice_plot(test, evaluation, folder / "dice.png", seed=seed)
    else:
        notes.append(f"No plot of Dice against the threshold was drawn: scores of {_DRAWN:g} and more have no axis.")
    if evaluation.metrics["auroc"].value is None:
        notes.append(f"No ROC plot was drawn: {evaluation.metrics['auroc'].reason}.")
    else:
        roc_plot(test, evaluation, folder / "roc.png", seed=seed)
    if spatial is not None:
        for draw, name in ((lesion_recall_plot, "lesion_recall"), (froc_plot, "froc")):
            try:
                draw(spatial, folder / f"{name}.png", seed=seed)
            except UserError as error:
                notes.append(str(error))
    return notes


def pr_plot(test: SubjectHistograms, evaluation: Evaluation, path: str | Path, *, seed: int = 0) -> None:
    """Pooled precision against recall, 95 % band over subjects, chance level, chosen and oracle thresholds.

    Args:
        test: the subjects that were evaluated.
        evaluation: their numbers.
        path: image to write (``.png``, ``.svg`` or ``.pdf``).
        seed: of the resamples behind the band.

    Raises:
        UserError: there is no lesion, so there is no curve.
    """
    curve = _curve(test)
    figure, axes = _canvas("recall", "precision")
    sampled = _sampled(test, seed)
    if sampled is not None:
        recall = sampled.tp / np.maximum(sampled.tp[:, -1:], 1)
        precision = sampled.tp / np.maximum(sampled.tp + sampled.fp, 1)
        place = [np.minimum(np.searchsorted(row, _GRID), len(row) - 1) for row in recall]
        _band(axes, _GRID, np.stack([row[i] for row, i in zip(precision, place, strict=True)]))
    axes.plot(np.r_[0, curve.recall], np.r_[curve.precision[0], curve.precision], drawstyle="steps-pre", color="C0")
    axes.axhline(evaluation.prevalence, color="0.6", linestyle=":", label=f"chance {evaluation.prevalence:.3g}")
    for index, marker, label in _marked(curve, evaluation):
        axes.plot(curve.recall[index], curve.precision[index], marker, color="C3", label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), title=_title("auprc", evaluation))
    _save(figure, axes, path)


def roc_plot(test: SubjectHistograms, evaluation: Evaluation, path: str | Path, *, seed: int = 0) -> None:
    """Pooled true-positive against false-positive rate; arguments as in :func:`pr_plot`."""
    curve = _curve(test)
    figure, axes = _canvas("false-positive rate", "true-positive rate")
    sampled = _sampled(test, seed)
    if sampled is not None:
        recall = sampled.tp / np.maximum(sampled.tp[:, -1:], 1)
        fpr = sampled.fp / np.maximum(sampled.fp[:, -1:], 1)
        rows = [np.interp(_GRID, np.r_[0, x], np.r_[0, y]) for x, y in zip(fpr, recall, strict=True)]
        _band(axes, _GRID, np.stack(rows))
    axes.plot(np.r_[0, curve.fpr], np.r_[0, curve.recall], color="C0")
    axes.plot([0, 1], [0, 1], color="0.6", linestyle=":", label="chance")
    for index, marker, label in _marked(curve, evaluation):
        axes.plot(curve.fpr[index], curve.recall[index], marker, color="C3", label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), title=_title("auroc", evaluation))
    _save(figure, axes, path)


def dice_plot(test: SubjectHistograms, evaluation: Evaluation, path: str | Path, *, seed: int = 0) -> None:
    """Mean per-volume Dice against the threshold, chosen and oracle thresholds marked; see :func:`pr_plot`."""
    _curve(test)
    keys, means = bootstrap.mean_dice(test)
    thresholds = edges(keys)
    figure, axes = _canvas("threshold", "mean per-volume Dice")
    sampled = _sampled(test, seed)
    if sampled is not None:
        _band(axes, edges(sampled.keys), sampled.dice)
    axes.plot(thresholds, means, color="C0")
    rules = {"val": ("-", "chosen on validation", "dice@val"), "best": ("--", "oracle, chosen on test", "dice@best")}
    for rule, (style, label, name) in rules.items():
        if rule in evaluation.thresholds:
            value, metric = evaluation.thresholds[rule], evaluation.metrics[name].value
            axes.axvline(value, color="C3", linestyle=style, label=f"{label}: {value:.4g}, Dice {metric or 0:.3f}")
    axes.set(ylim=(0, 1.02), title=_title("dice@val", evaluation))
    _save(figure, axes, path)


def recall_by_size(
    spatial: SpatialAccumulator, seed: int = 0
) -> list[tuple[str, int, float, tuple[float, float] | None]]:
    """Share of lesions found at the val threshold by lesion size, in factors of four.

    Returns:
        For each size up to the largest: its voxels as text, how many lesions it has, the share found (NaN without any)
        and the 95 % interval over subjects (None without one).

    Raises:
        UserError: there is no val threshold or no lesion.
    """
    rows = spatial.rows
    largest = max((size for row in rows for size in row.lesion_sizes), default=0)
    if "val" not in spatial.thresholds or not largest:
        why = "no lesion" if not largest else "no threshold was chosen on validation"
        raise UserError(f"No plot of lesion recall by size was drawn: {why}.")
    draws = bootstrap.weights_of(list(spatial.subject_of.values()), _BAND, seed)
    bins: list[tuple[str, int, float, tuple[float, float] | None]] = []
    for low in (4**k for k in range(int(np.log(largest) / np.log(4) + 1e-9) + 1)):
        inside = [
            [(low <= n < 4 * low, iou > 0) for n, iou in zip(r.lesion_sizes, r.lesion_ious, strict=True)] for r in rows
        ]
        found = np.array([sum(a and b for a, b in one) for one in inside], float)
        count = np.array([sum(a for a, _ in one) for one in inside], float)
        share = float(found.sum() / count.sum()) if count.any() else float("nan")
        some = count.any() and len(set(spatial.subject_of.values())) > 1
        ends = bootstrap.interval(bootstrap.ratio(found, count, draws)) if some else None
        bins.append((f"{low}-{4 * low - 1}", int(count.sum()), share, ends))
    return bins


def lesion_recall_plot(spatial: SpatialAccumulator, path: str | Path, *, seed: int = 0) -> None:
    """Share of lesions found at the val threshold by lesion size; see :func:`recall_by_size`."""
    bins = recall_by_size(spatial, seed)
    figure, axes = _canvas("lesion size (voxels)", "lesion recall at the val threshold")
    for place, (_, count, share, ends) in enumerate(bins):
        if count:
            error = None if ends is None else [[max(0.0, share - ends[0])], [max(0.0, ends[1] - share)]]
            axes.bar(place, share, yerr=error, color="C0", alpha=0.8, capsize=3)
    axes.set_xticks(range(len(bins)), [f"{size}\nn={count}" for size, count, _, _ in bins], fontsize="small")
    axes.set(ylim=(0, 1.05), title="lesion recall by size")
    _save(figure, axes, path)


def froc_plot(spatial: SpatialAccumulator, path: str | Path, *, seed: int = 0) -> None:
    """Lesion recall against false components a volume, 95 % interval of recall at each threshold.

    Raises:
        UserError: there are no FROC thresholds or no lesion.
    """
    rows = spatial.rows
    if not spatial.froc or not any(row.lesion_sizes for row in rows):
        raise UserError(f"No FROC plot was drawn: {'no lesion' if spatial.froc else 'no FROC thresholds were given'}.")
    recall, false = froc_curve(spatial, np.ones((1, len(rows))))
    figure, axes = _canvas("false components a volume", "lesion recall")
    owners = list(spatial.subject_of.values())
    if len(set(owners)) > 1:
        sampled = froc_curve(spatial, bootstrap.weights_of(owners, _BAND, seed))[0]
        low, high = np.nanquantile(sampled, [0.025, 0.975], axis=0)
        axes.fill_between(false[0], low, high, color="C0", alpha=0.2, linewidth=0, label="95 % over subjects")
    axes.plot(false[0], recall[0], ".-", color="C0")
    for rate in FROC_RATES:
        axes.axvline(rate, color="0.6", linestyle=":")
    axes.set_xscale("symlog", linthresh=1)
    axes.set(xlim=(0, None), ylim=(0, 1.02), title="FROC")
    _save(figure, axes, path)


def _sampled(test: SubjectHistograms, seed: int) -> bootstrap.Curves | None:
    if len(test) < 2:
        return None
    sampled = bootstrap.curves(test, bootstrap.weights(len(test), _BAND, seed))
    drawn = sampled.tp[:, -1] > 0
    return bootstrap.Curves(sampled.keys, sampled.tp[drawn], sampled.fp[drawn], sampled.dice[drawn])


def _band(axes: Axes, x: np.ndarray, rows: np.ndarray) -> None:
    low, high = np.quantile(rows, [0.025, 0.975], axis=0)
    axes.fill_between(x, low, high, color="C0", alpha=0.2, linewidth=0, label="95 % over subjects")


def _marked(curve: Curve, evaluation: Evaluation) -> list[tuple[int, str, str]]:
    found = []
    for rule, (marker, label) in _MARKS.items():
        if rule in evaluation.thresholds:
            index = int(np.searchsorted(-curve.thresholds, -evaluation.thresholds[rule], side="right")) - 1
            if index >= 0:
                found.append((index, marker, f"{label}: {evaluation.thresholds[rule]:.4g}"))
    return found


def _curve(test: SubjectHistograms) -> Curve:
    curve = Curve(test.pooled())
    if not curve.n_positive:
        raise UserError(f"There is no curve to draw: {NO_LESION}.")
    return curve


def _title(name: str, evaluation: Evaluation) -> str:
    metric = evaluation.metrics[name]
    if metric.value is None:
        return f"{name}: {metric.reason}"
    ends = "" if metric.low is None else f" [{metric.low:.3f}, {metric.high:.3f}]"
    return f"{name} {metric.value:.3f}{ends}{', oracle' if metric.oracle else ''}, {metric.n} subjects"


def _canvas(x: str, y: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.25)
    return figure, axes


def _save(figure: Figure, axes: Axes, path: str | Path) -> None:
    path = Path(path)
    kind = path.suffix.lstrip(".").lower()
    if kind not in {"png", "svg", "pdf"}:
        raise UserError(f"A plot cannot be written to {path}: end its name in .png, .svg or .pdf.")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small", framealpha=0.8)
    undated: dict[str, dict[str, Any]] = {
        "png": {"Software": None},
        "svg": {"Date": None},
        "pdf": {"CreationDate": None},
    }
    with replacing(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=140, metadata=undated[kind])
