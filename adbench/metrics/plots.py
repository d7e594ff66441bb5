"""Plots of an evaluation. Matplotlib is imported when one is drawn, without a display."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adbench.errors import UserError
from adbench.files import replacing
from adbench.metrics.curves import Curve
from adbench.metrics.evaluate import NO_LESION, Evaluation
from adbench.metrics.histogram import SubjectHistograms

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKS = {"val": ("o", "chosen on validation"), "pooled_best": ("*", "oracle, chosen on test")}


def pr_plot(test: SubjectHistograms, evaluation: Evaluation, path: str | Path) -> None:
    """Pooled precision against recall, with the chance level and the chosen and oracle thresholds.

    Args:
        test: the subjects that were evaluated.
        evaluation: their numbers.
        path: image to write (``.png``, ``.svg`` or ``.pdf``).

    Raises:
        UserError: there is no lesion, so there is no curve.
    """
    curve = _curve(test)
    figure, axes = _canvas("recall", "precision")
    axes.plot(np.r_[0, curve.recall], np.r_[curve.precision[0], curve.precision], drawstyle="steps-pre", color="C0")
    axes.axhline(evaluation.prevalence, color="0.6", linestyle=":", label=f"chance {evaluation.prevalence:.3g}")
    for rule, (marker, label) in _MARKS.items():
        if rule in evaluation.thresholds:
            index = int(np.searchsorted(-curve.thresholds, -evaluation.thresholds[rule], side="right")) - 1
            if index >= 0:
                where = (curve.recall[index], curve.precision[index])
                axes.plot(*where, marker, color="C3", label=f"{label}: {evaluation.thresholds[rule]:.4g}")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), title=_title("auprc", evaluation))
    _save(figure, axes, path)


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
