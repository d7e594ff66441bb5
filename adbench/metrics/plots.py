"""Charts of evaluations, one or several beside each other, and how all charts look. Matplotlib is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from adbench.utils.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

BAND = 200  # resamples of the subjects behind a band
_RECALL = np.linspace(0, 1, 201)
_DRAWN = 1e300  # scores beyond leave matplotlib no room for the limits of an axis
INK, MUTED, GRID, PAPER = "#1c2530", "#5b6672", "#dde2e8", "#fefefe"
SERIES = ("#2463c8", "#d0480b", "#2b8541", "#9534b0", "#c0265a", "#0b7d90", "#84600a", "#5f3ec2", "#4d5966", "#a33b2f")
STYLE: dict[Any, Any] = {
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 10,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.unicode_minus": False,
    "font.family": ["DejaVu Sans"],
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,  # names may hold a $
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}
RULES = {  # how each threshold of a record was chosen
    "val": "chosen on validation",
    "fpr1": "1 % false-positive voxels on healthy validation subjects",
    "fpr5": "5 % false-positive voxels on healthy validation subjects",
    "conformal05": "5 % of healthy subjects may fail (split-conformal)",
    "conformal10": "10 % of healthy subjects may fail (split-conformal)",
    "best": "oracle: best mean Dice on test",
    "pooled_best": "oracle: best pooled Dice on test",
}
STROKES = ("-", "--", ":", "-.")


@dataclass(eq=False)
class Shown:
    """One evaluation in a chart.

    Attributes:
        label: its name in legends; "" where it is alone.
        histograms: of its test subjects.
        evaluation: their numbers.
        spatial: their spatial counts, or None.
        seed: of the resamples behind bands.
    """

    label: str
    histograms: SubjectHistograms
    evaluation: Evaluation
    spatial: SpatialAccumulator | None = None
    seed: int = 0

    @cached_property
    def curve(self) -> Curve:
        """Pooled over the test subjects."""
        return Curve(self.histograms.pooled())

    @cached_property
    def _sampled(self) -> bootstrap.Curves:
        """The curves of the split itself, and under the resamples of its subjects that have a lesion."""
        owner = {} if self.spatial is None else self.spatial.subject_of
        owners = [owner.get(volume, volume) for volume in self.histograms]
        draws = np.ones((1, len(owners)))
        if len(set(owners)) > 1:
            draws = np.concatenate([draws, bootstrap.weights_of(owners, BAND, self.seed)])
        found = bootstrap.curves(self.histograms, draws)
        some = found.tp[:, -1] > 0
        return bootstrap.Curves(found.keys, found.tp[some], found.fp[some], found.dice[some])

    @cached_property
    def band(self) -> bootstrap.Curves | None:
        """The curves under resamples; None with a single subject."""
        own = self._sampled
        return bootstrap.Curves(own.keys, own.tp[1:], own.fp[1:], own.dice[1:]) if len(own.tp) > 1 else None

    @property
    def mean_dice(self) -> tuple[np.ndarray, np.ndarray]:
        """(K,) thresholds descending, (K,) mean per-volume Dice."""
        return edges(self._sampled.keys), self._sampled.dice[0]

    def named(self, metric: str) -> str:
        """The label with the number, and its interval where there is one."""
        number = self.evaluation.metrics[metric]
        if number.value is None:
            return self.label
        ends = "" if number.low is None else f" [{number.low:.3f}, {number.high:.3f}], n = {number.n}"
        return f"{self.label or metric}  {number.value:.3f}{ends}"


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
    import matplotlib as mpl

    shown = Shown("", test, evaluation, spatial, seed)
    if not shown.curve.n_positive:
        return [f"No plot was drawn: {NO_LESION}."]
    why = {
        "roc": f"No ROC plot was drawn: {evaluation.metrics['auroc'].reason}.",
        "dice": f"No plot of Dice against the threshold was drawn: scores of {_DRAWN:g} and more have no axis.",
    }
    notes = []
    with mpl.rc_context(STYLE):
        for name, draw in (("pr", pr), ("dice", dice), ("roc", roc)):
            figure = draw([shown])
            if figure is None:
                notes.append(why[name])
            else:
                png(figure, Path(folder) / f"{name}.png")
        panels: tuple[tuple[str, Callable[[Axes, Sequence[Shown]], None]], ...] = (
            ("lesion_recall", lesion_recall),
            ("froc", froc),
        )
        for name, panel in panels if spatial is not None else ():
            figure, axes = one("", "")
            try:
                panel(axes, [shown])
            except UserError as error:
                notes.append(str(error))
            else:
                png(figure, Path(folder) / f"{name}.png")
    return notes


def pr(parts: Sequence[Shown]) -> Figure | None:
    """Pooled precision against recall with a band over subjects; chance, chosen and oracle thresholds."""
    some = [(index, part) for index, part in enumerate(parts) if part.curve.n_positive]
    if not some:
        return None
    figure, axes = one("recall", "precision")
    for index, part in some:
        curve, band = part.curve, part.band
        if band is not None:
            recall = band.tp / np.maximum(band.tp[:, -1:], 1)
            precision = band.tp / np.maximum(band.tp + band.fp, 1)
            rows = [
                p[np.minimum(np.searchsorted(r, _RECALL), len(r) - 1)] for r, p in zip(recall, precision, strict=True)
            ]
            shade(axes, _RECALL, np.stack(rows), index, len(some))
        at = np.minimum(np.searchsorted(curve.recall, _RECALL), len(curve.recall) - 1)
        axes.plot(_RECALL, curve.precision[at], **line(index), label=part.named("auprc"))
        _mark_thresholds(axes, part, curve.recall, curve.precision, index, named=len(some) == 1)
    chance = some[0][1].evaluation.prevalence
    axes.axhline(chance, color=MUTED, linestyle=":", linewidth=1.2, label=f"chance {chance:.3g}")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), title="Precision and recall, all test voxels")
    legend(axes)
    return figure


def roc(parts: Sequence[Shown]) -> Figure | None:
    """Pooled true-positive against false-positive rate, drawn as :func:`pr`."""
    some = [(index, part) for index, part in enumerate(parts) if part.curve.n_positive and part.curve.n_negative]
    if not some:
        return None
    figure, axes = one("false-positive rate", "true-positive rate")
    for index, part in some:
        curve, band = part.curve, part.band
        if band is not None:
            recall, fpr = (x / np.maximum(x[:, -1:], 1) for x in (band.tp, band.fp))
            rows = [np.interp(_RECALL, np.r_[0, x], np.r_[0, y]) for x, y in zip(fpr, recall, strict=True)]
            shade(axes, _RECALL, np.stack(rows), index, len(some))
        rate = np.interp(_RECALL, np.r_[0, curve.fpr], np.r_[0, curve.recall])
        axes.plot(_RECALL, rate, **line(index), label=part.named("auroc"))
        _mark_thresholds(axes, part, curve.fpr, curve.recall, index, named=len(some) == 1)
    axes.plot([0, 1], [0, 1], color=MUTED, linestyle=":", linewidth=1.2, label="chance")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), title="ROC, all test voxels")
    legend(axes)
    return figure


def dice(parts: Sequence[Shown]) -> Figure | None:
    """Mean per-volume Dice against the threshold, a panel a run: their maps have scales of their own."""
    some = [
        (index, part)
        for index, part in enumerate(parts)
        if part.curve.n_positive and max(abs(part.curve.thresholds[[0, -1]])) < _DRAWN
    ]
    if not some:
        return None
    figure, panels = grid_of(len(some), "threshold", "mean Dice per volume", share_y=True)
    top = max(float(part.mean_dice[1].max()) for _, part in some)
    for axes, (index, part) in zip(panels, some, strict=True):
        thresholds, means = part.mean_dice
        low, high = _interesting(part, thresholds, means)
        kept = _thin(thresholds, low, high)
        if part.band is not None:
            shade(axes, thresholds[kept], part.band.dice[:, kept], index, 1)
        axes.plot(thresholds[kept], means[kept], **line(index), marker="o" if len(kept) < 3 else None)
        for rule, style, metric in (("val", "-", "dice@val"), ("best", ":", "dice@best")):
            if rule in part.evaluation.thresholds:
                threshold, value = part.evaluation.thresholds[rule], part.evaluation.metrics[metric].value or 0.0
                label = f"{RULES[rule]}: {value:.3f}"
                axes.axvline(
                    threshold, ymax=0.83, color=INK, linestyle=style, linewidth=1, label=label
                )  # below the legend
        axes.set(xlim=(low, high), ylim=(0, min(1.02, 1.6 * top + 0.05)), title=part.label)
        axes.title.set_color(colour(index))
        legend(axes, "upper right")
    return figure


def lesion_recall(axes: Axes, parts: Sequence[Shown]) -> None:
    """Lesion recall by lesion size at the chosen threshold.

    Raises:
        UserError: it is defined for none of ``parts``, and why.
    """
    bins, why = {}, [f"No plot of lesion recall by size was drawn: {NO_LESION}."]
    for index, part in enumerate(parts):
        try:
            if part.spatial is not None:
                bins[index] = recall_by_size(part.spatial, BAND, part.seed)
        except UserError as error:
            why.insert(0, str(error))
    if not bins:
        raise UserError(why[0])
    for index, sizes in bins.items():
        for place, (_, count, share, ends) in enumerate(sizes):
            if count:
                point(axes, place + beside(index, len(parts)), share, ends or (None, None), index)
    named = next(iter(bins.values()))
    axes.set_xticks(range(len(named)), [f"≥ {size.split('-')[0]}\nn={count}" for size, count, _, _ in named])
    axes.set(ylim=(-0.02, 1.02), xlabel="lesion size (voxels)", ylabel="share of lesions found")
    axes.set_title("Lesion recall at the chosen threshold")
    axes.grid(axis="x", visible=False)


def froc(axes: Axes, parts: Sequence[Shown]) -> None:
    """Lesion recall against false components a volume, 95 % interval of recall at each threshold.

    Raises:
        UserError: it is defined for none of ``parts``, and why.
    """
    given = [(i, part, part.spatial) for i, part in enumerate(parts) if part.spatial is not None and part.spatial.froc]
    some = [(i, part, own) for i, part, own in given if any(row.lesion_sizes for row in own.rows)]
    if not some:
        raise UserError(f"No FROC plot was drawn: {'no lesion' if given else 'no FROC thresholds were given'}.")
    for index, part, spatial in some:
        recall, false = froc_curve(spatial, np.ones((1, len(spatial.rows))))
        owners = list(spatial.subject_of.values())
        if len(set(owners)) > 1 and len(some) <= 4:
            shade(
                axes, false[0], froc_curve(spatial, bootstrap.weights_of(owners, BAND, part.seed))[0], index, len(some)
            )
        axes.plot(false[0], recall[0], **line(index), marker=".", label=part.named("froc"))
    axes.set_xscale("symlog", linthresh=1)
    plain(axes.xaxis)
    axes.set(xlim=(0, None), ylim=(-0.02, 1.02), xlabel="false components a volume", ylabel="share of lesions found")
    axes.set_title("FROC")
    legend(axes)


def _mark_thresholds(axes: Axes, part: Shown, x: np.ndarray, y: np.ndarray, index: int, *, named: bool) -> None:
    """Mark the threshold chosen on validation and the oracle on a pooled curve."""
    chosen = part.evaluation.thresholds
    for rule, marker in (("val", "o"), ("pooled_best", "*")):
        if rule in chosen:
            place = int(np.searchsorted(-part.curve.thresholds, -chosen[rule], side="right")) - 1
            if place >= 0:
                axes.plot(x[place], y[place], marker, label=RULES[rule] if named else None, **mark(index, marker))


def _interesting(part: Shown, thresholds: np.ndarray, means: np.ndarray) -> tuple[float, float]:
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


def _thin(x: np.ndarray, low: float, high: float, count: int = 500) -> np.ndarray:
    """At most ``count`` positions of ``x`` (monotone), spread over [low, high], the neighbours beyond the ends too."""
    inside = np.flatnonzero((x >= low) & (x <= high))
    if not len(inside):
        return np.arange(min(len(x), 2))
    first, last = max(0, inside[0] - 1), min(len(x) - 1, inside[-1] + 1)
    return np.unique(np.linspace(first, last, min(count, last - first + 1)).astype(int))


def colour(index: int) -> str:
    """The colour of the part at ``index``."""
    return SERIES[index % len(SERIES)]


def stroke(index: int) -> str:
    """Its line style: more parts than colours differ in their dashes."""
    return STROKES[index // len(SERIES) % len(STROKES)]


def beside(index: int, count: int) -> float:
    """Position of the part at ``index`` of ``count`` within a group that is 1 wide."""
    return (index - (count - 1) / 2) * min(0.14, 0.7 / count)


def png(figure: Figure, path: Path) -> None:
    """Write ``figure`` on white, and fix its layout."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE), replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    figure.set_layout_engine("none")  # what follows takes the same layout and need not compute it again


def plain(axis: Axis) -> None:
    """Write the numbers of a logarithmic axis in full, and enough of them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    if 0 < low < high < 50 * low:  # less than two decades: powers of ten alone would be too few
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def line(index: int) -> dict[str, Any]:
    """Style of the curve of the part at ``index``, as keyword arguments of ``plot``."""
    return {"color": colour(index), "linestyle": stroke(index)}


def mark(index: int, marker: str) -> dict[str, Any]:
    """Style of a marker on the curve of the part at ``index``, as keyword arguments of ``plot``."""
    size = 13 if marker == "*" else 8  # a star of one size with a dot looks smaller
    return {"color": colour(index), "markersize": size, "markeredgecolor": PAPER, "markeredgewidth": 0.8, "zorder": 4}


def point(
    axes: Axes, x: float, y: float, ends: tuple[float | None, float | None], index: int, label: str | None = None
) -> None:
    """A number of the part at ``index`` with its interval, where both ends are known."""
    low, high = ends
    if low is not None and high is not None:
        axes.vlines(x, low, high, color=colour(index), linewidth=2.2, alpha=0.45)
    axes.plot(x, y, "o", markersize=5.5, color=colour(index), label=label)


def shade(axes: Axes, x: np.ndarray, rows: np.ndarray, index: int, crowd: int) -> None:
    """The band between the 2.5 % and 97.5 % quantiles of (R, K) resampled curves.

    Args:
        axes: to draw on.
        x: (K,) abscissae.
        rows: (R, K) ordinates; NaN is left out.
        index: of the part.
        crowd: how many bands share the axes: more are paler.
    """
    low, high = np.nanquantile(rows, [0.025, 0.975], axis=0)
    alpha = 0.18 if crowd <= 2 else 0.1 if crowd <= 4 else 0.05
    axes.fill_between(x, low, high, color=colour(index), alpha=alpha, linewidth=0)


def one(x: str, y: str) -> tuple[Figure, Axes]:
    """A figure with one panel and its axes' labels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 4.4), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=x, ylabel=y)
    return figure, axes


def grid_of(count: int, x: str, y: str, *, columns: int = 4, share_y: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` panels in at most ``columns`` columns, labelled at their outer sides."""
    from matplotlib.figure import Figure

    columns = 3 if columns > 3 and count in (3, 5, 6, 9) else min(columns, count)
    rows = -(-count // columns)
    figure = Figure(
        figsize=(5.6 if columns == 1 else 11.2, {1: 4.4, 2: 4.0, 3: 3.5, 4: 3.1}[columns] * rows), layout="constrained"
    )
    grid = figure.subplots(rows, columns, squeeze=False, sharey=share_y)
    flat = list(grid.flat)
    for axes in flat[count:]:
        axes.remove()
    for place, axes in enumerate(flat[:count]):
        axes.set_xlabel(x)
        if place % columns == 0:
            axes.set_ylabel(y)
    return figure, flat[:count]


def tilt(count: int) -> dict[str, Any]:
    """Style of the tick labels of ``count`` groups: many are tilted."""
    return {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if count > 4 else {}


def legend(axes: Axes, place: Any = "best") -> None:
    """Draw a legend unless it would be empty, or too long to be read."""
    handles, labels = axes.get_legend_handles_labels()
    if handles and len(labels) <= 12:
        axes.legend(loc=place)
