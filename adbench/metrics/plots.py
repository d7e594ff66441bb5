"""Plots of an evaluation. Matplotlib is imported when one is drawn, without a display."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adbench.errors import UserError
from adbench.metrics import bootstrap
from adbench.metrics.curves import Curve
from adbench.metrics.evaluate import NO_LESION, Evaluation
from adbench.metrics.histogram import SubjectHistograms
from adbench.metrics.score_bins import edges
from adbench.metrics.spatial import SpatialAccumulator, froc_curve, recall_by_size
from adbench.metrics.spec import FROC_RATES
from adbench.utils.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKS = {"val": ("o", "chosen on validation"), "pooled_best": ("*", "oracle, chosen on test")}
_LINES = {"val": ("-", "chosen on validation", "dice@val"), "best": ("--", "oracle, chosen on test", "dice@best")}
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
    drawn = _Drawn(test, evaluation, seed)
    if not drawn.curve.n_positive:
        return [f"No plot was drawn: {NO_LESION}."]
    notes = []
    _pr(drawn, folder / "pr.png")
    if max(abs(drawn.curve.thresholds[[0, -1]])) < _DRAWN:
        _dice(drawn, folder / "dice.png")
    else:
        notes.append(f"No plot of Dice against the threshold was drawn: scores of {_DRAWN:g} and more have no axis.")
    if evaluation.metrics["auroc"].value is None:
        notes.append(f"No ROC plot was drawn: {evaluation.metrics['auroc'].reason}.")
    else:
        _roc(drawn, folder / "roc.png")
    if spatial is not None:
        for draw, name in ((_lesion_recall, "lesion_recall"), (_froc, "froc")):
            try:
                draw(spatial, folder / f"{name}.png", seed)
            except UserError as error:
                notes.append(str(error))
    return notes


class _Drawn:
    """What the plots of one evaluation share: its pooled curve, and that of resampled subjects."""

    def __init__(self, test: SubjectHistograms, evaluation: Evaluation, seed: int) -> None:
        self.test, self.evaluation, self.seed = test, evaluation, seed
        self.curve = Curve(test.pooled())

    @cached_property
    def band(self) -> bootstrap.Curves | None:
        """The pooled counts of the resamples that have a lesion; None for a single subject."""
        if len(self.test) < 2:
            return None
        sampled = bootstrap.curves(self.test, bootstrap.weights(len(self.test), _BAND, self.seed))
        some = sampled.tp[:, -1] > 0
        return bootstrap.Curves(sampled.keys, sampled.tp[some], sampled.fp[some], sampled.dice[some])

    def marks(self) -> list[tuple[int, str, str]]:
        """(place on the curve, marker, label) of each threshold that is shown."""
        chosen = {rule: self.evaluation.thresholds[rule] for rule in _MARKS if rule in self.evaluation.thresholds}
        places = {
            rule: int(np.searchsorted(-self.curve.thresholds, -value, side="right")) - 1
            for rule, value in chosen.items()
        }
        return [
            (place, _MARKS[rule][0], f"{_MARKS[rule][1]}: {chosen[rule]:.4g}")
            for rule, place in places.items()
            if place >= 0
        ]

    def title(self, name: str) -> str:
        """The metric with its interval."""
        metric = self.evaluation.metrics[name]
        if metric.value is None:
            return f"{name}: {metric.reason}"
        ends = "" if metric.low is None else f" [{metric.low:.3f}, {metric.high:.3f}]"
        return f"{name} {metric.value:.3f}{ends}{', oracle' if metric.oracle else ''}, {metric.n} subjects"


def _pr(drawn: _Drawn, path: Path) -> None:
    """Pooled precision against recall, 95 % band over subjects, chance level, chosen and oracle thresholds."""
    curve, axes = drawn.curve, _canvas("recall", "precision")
    if drawn.band is not None:
        recall = drawn.band.tp / np.maximum(drawn.band.tp[:, -1:], 1)
        precision = drawn.band.tp / np.maximum(drawn.band.tp + drawn.band.fp, 1)
        place = [np.minimum(np.searchsorted(row, _GRID), len(row) - 1) for row in recall]
        _shade(axes, _GRID, np.stack([row[i] for row, i in zip(precision, place, strict=True)]))
    axes.plot(np.r_[0, curve.recall], np.r_[curve.precision[0], curve.precision], drawstyle="steps-pre", color="C0")
    chance = drawn.evaluation.prevalence
    axes.axhline(chance, color="0.6", linestyle=":", label=f"chance {chance:.3g}")
    for index, marker, label in drawn.marks():
        axes.plot(curve.recall[index], curve.precision[index], marker, color="C3", label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), title=drawn.title("auprc"))
    _save(axes, path)


def _roc(drawn: _Drawn, path: Path) -> None:
    """Pooled true-positive against false-positive rate, drawn as :func:`_pr`."""
    curve, axes = drawn.curve, _canvas("false-positive rate", "true-positive rate")
    if drawn.band is not None:
        recall, fpr = (counts / np.maximum(counts[:, -1:], 1) for counts in (drawn.band.tp, drawn.band.fp))
        rows = [np.interp(_GRID, np.r_[0, x], np.r_[0, y]) for x, y in zip(fpr, recall, strict=True)]
        _shade(axes, _GRID, np.stack(rows))
    axes.plot(np.r_[0, curve.fpr], np.r_[0, curve.recall], color="C0")
    axes.plot([0, 1], [0, 1], color="0.6", linestyle=":", label="chance")
    for index, marker, label in drawn.marks():
        axes.plot(curve.fpr[index], curve.recall[index], marker, color="C3", label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), title=drawn.title("auroc"))
    _save(axes, path)


def _dice(drawn: _Drawn, path: Path) -> None:
    """Mean per-volume Dice against the threshold; chosen and oracle thresholds as vertical lines."""
    axes = _canvas("threshold", "mean per-volume Dice")
    if drawn.band is not None:
        _shade(axes, edges(drawn.band.keys), drawn.band.dice)
    keys, means = bootstrap.mean_dice(drawn.test)
    axes.plot(edges(keys), means, color="C0")
    for rule, (style, label, name) in _LINES.items():
        if rule in drawn.evaluation.thresholds:
            value, metric = drawn.evaluation.thresholds[rule], drawn.evaluation.metrics[name].value
            axes.axvline(value, color="C3", linestyle=style, label=f"{label}: {value:.4g}, Dice {metric or 0:.3f}")
    axes.set(ylim=(0, 1.02), title=drawn.title("dice@val"))
    _save(axes, path)


def _lesion_recall(spatial: SpatialAccumulator, path: Path, seed: int) -> None:
    bins = recall_by_size(spatial, _BAND, seed)
    axes = _canvas("lesion size (voxels)", "lesion recall at the val threshold")
    for place, (_, count, share, ends) in enumerate(bins):
        if count:
            error = None if ends is None else [[max(0.0, share - ends[0])], [max(0.0, ends[1] - share)]]
            axes.bar(place, share, yerr=error, color="C0", alpha=0.8, capsize=3)
    axes.set_xticks(range(len(bins)), [f"{size}\nn={count}" for size, count, _, _ in bins], fontsize="small")
    axes.set(ylim=(0, 1.05), title="lesion recall by size")
    _save(axes, path)


def _froc(spatial: SpatialAccumulator, path: Path, seed: int) -> None:
    """Lesion recall against false components a volume, 95 % interval of recall at each threshold."""
    rows = spatial.rows
    if not spatial.froc or not any(row.lesion_sizes for row in rows):
        raise UserError(f"No FROC plot was drawn: {'no lesion' if spatial.froc else 'no FROC thresholds were given'}.")
    recall, false = froc_curve(spatial, np.ones((1, len(rows))))
    axes = _canvas("false components a volume", "lesion recall")
    owners = list(spatial.subject_of.values())
    if len(set(owners)) > 1:
        _shade(axes, false[0], froc_curve(spatial, bootstrap.weights_of(owners, _BAND, seed))[0])
    axes.plot(false[0], recall[0], ".-", color="C0")
    for rate in FROC_RATES:
        axes.axvline(rate, color="0.6", linestyle=":")
    axes.set_xscale("symlog", linthresh=1)
    axes.set(xlim=(0, None), ylim=(0, 1.02), title="FROC")
    _save(axes, path)


def _shade(axes: Axes, x: np.ndarray, rows: np.ndarray) -> None:
    low, high = np.nanquantile(rows, [0.025, 0.975], axis=0)
    axes.fill_between(x, low, high, color="C0", alpha=0.2, linewidth=0, label="95 % over subjects")


def _canvas(x: str, y: str) -> Axes:
    from matplotlib.figure import Figure

    axes = Figure(figsize=(5, 4.2), layout="constrained").add_subplot()
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.25)
    return axes


def _save(axes: Axes, path: Path) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small", framealpha=0.8)
    figure: Any = axes.figure
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=140, metadata={"Software": None})
