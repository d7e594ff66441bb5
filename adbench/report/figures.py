"""The charts of a report."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import isfinite
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from adbench.config.sweep import MEMBERS, params_text, value_text
from adbench.errors import UserError
from adbench.metrics import plots
from adbench.metrics.plots import GRID, STROKES, beside, colour, grid_of, legend, plain, point, tilt
from adbench.metrics.spec import HEADLINE, RANKED_BY, SPECS
from adbench.report.collect import Report, ShownRun
from adbench.results.format import several
from adbench.results.record import Number
from adbench.utils.seeds import derive

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
        jitter = np.zeros(len(values))
        if len(places) == 1:
            jitter = np.random.default_rng(derive(0, "report", "jitter")).uniform(-0.13, 0.13, len(values))
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
    panels_of = [(grouping, metric) for grouping in groupings for metric in HEADLINE]
    if not panels_of:
        return None
    figure, panels = grid_of(len(panels_of), "", "", columns=2)
    for axes, (grouping, metric) in zip(panels, panels_of, strict=True):
        groups = groupings[grouping]
        sizes: dict[str, int] = {}
        for index, part in enumerate(report.parts):
            offset = beside(index, len(report.parts))
            for place, group in enumerate(groups):
                number = part.run.record.strata.get(grouping, {}).get(group, {}).get(metric)
                if number is None or number.value is None:
                    continue
                sizes[group] = number.n
                label = part.label if not place else None
                point(axes, place + offset, number.value, (number.low, number.high), index, label)
        shown = [f"{group}\n{several(sizes.get(group, 0), 'subject')}" for group in groups]
        axes.set_xticks(range(len(groups)), shown, **tilt(len(groups)))
        axes.set(ylim=(-0.02, 1.02), xlim=(-0.5, len(groups) - 0.5), title=f"{metric} by {grouping.replace('_', ' ')}")
        axes.grid(axis="x", visible=False)
    legend(panels[0])
    return figure


def lesions(report: Report) -> Figure | None:
    """Lesion recall by lesion size at the chosen threshold, and against false components a volume (FROC)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.2, 4.0), layout="constrained")
    missing = 0
    for axes, draw in zip(figure.subplots(1, 2), (plots.lesion_recall, plots.froc), strict=True):
        try:
            draw(axes, report.parts)
        except UserError:  # no lesion, or no threshold: the reason stands in the notes of the runs
            axes.remove()
            missing += 1
    return figure if missing < 2 else None


def cost(report: Report) -> Figure | None:
    """AUPRC against the time that a volume takes and that the training took; with two runs or more."""
    runs = [(index, part, part.run.record.metrics.get(RANKED_BY)) for index, part in enumerate(report.parts)]
    defined = [(index, part, number) for index, part, number in runs if number is not None and number.value is not None]
    panels_of = []
    for title, seconds in (
        ("seconds a volume (scoring)", volume_seconds),
        ("seconds of training", lambda part: spent if (spent := part.run.record.timing["fit"]) >= 0.01 else None),
    ):
        found = [(index, part, number, cost) for index, part, number in defined if (cost := seconds(part)) is not None]
        if len(found) > 1:
            panels_of.append((title, found))
    if not panels_of:
        return None
    figure, panels = grid_of(len(panels_of), "", "AUPRC", columns=2)
    for axes, (title, found) in zip(panels, panels_of, strict=True):
        for index, part, number, cost in found:
            point(axes, cost, number.value or 0.0, (number.low, number.high), index, part.label)
        axes.set_xscale("log")
        plain(axes.xaxis)
        axes.set(ylim=(0, 1.02), xlabel=title)
    panels[0].set_title("What it costs")
    legend(panels[-1])
    return figure


def sweep(report: Report) -> Figure | None:
    """The headline numbers against each swept parameter: a panel a method, parameter and number.

    Runs that differ in nothing but that parameter and their seed are one line, through the means of the seeds.
    """
    methods: dict[str, list[ShownRun]] = {}
    for part in report.parts:
        method = part.run.record.method
        methods.setdefault(f"{method.name} [{method.preset}]", []).append(part)
    panels_of = [
        (title, name, [part for part in group if name in part.differs], metric)
        for title, group in methods.items()
        for name in dict.fromkeys(name for part in group for name in part.differs)
        for metric in HEADLINE
    ]
    if not panels_of:
        return None
    figure, panels = grid_of(len(panels_of), "", "", columns=2)
    for axes, (title, name, group, metric) in zip(panels, panels_of, strict=True):
        values = list({repr(part.differs[name]): part.differs[name] for part in group}.values())
        numeric = all(map(_is_number, values))
        text = partial(value_text, members=name == MEMBERS)
        values.sort(key=None if numeric else text)
        place = {repr(value): float(value) if numeric else at for at, value in enumerate(values)}
        lines: dict[str, dict[float, list[Number]]] = {}
        for part in group:
            number = part.run.record.metrics.get(metric)
            if number is not None and number.value is not None:
                others = params_text({key: value for key, value in part.differs.items() if key != name})
                lines.setdefault(others, {}).setdefault(place[repr(part.differs[name])], []).append(number)
        for index, (others, numbers) in enumerate(lines.items()):
            means = [float(np.mean([number.value for number in numbers[x]])) for x in sorted(numbers)]
            axes.plot(sorted(numbers), means, **plots.line(index), label=others or None)
            for x, own in numbers.items():
                for number in own:
                    point(axes, x, number.value or 0.0, (number.low, number.high), index)
        if not numeric:
            axes.set_xticks(range(len(values)), [*map(text, values)], **tilt(len(values)))
        elif min(values) > 0 and max(values) >= 10 * min(values):
            axes.set_xscale("log")
            plain(axes.xaxis)
        axes.set(xlabel=name, ylabel=SPECS[metric].heading, ylim=(-0.02, 1.02), title=title)
        legend(axes)
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


CHARTS: dict[str, tuple[Callable[[Report], Figure | None], str]] = {
    "pr": (lambda report: plots.pr(report.parts), "Precision against recall over all test brain voxels. Band: 95 % of 200 resamples of the subjects. Dot: threshold chosen on validation; star: oracle, that of the best pooled Dice on the test split."),
    "roc": (lambda report: plots.roc(report.parts), "True-positive against false-positive rate over all test brain voxels, marks as on the left."),
    "dice": (lambda report: plots.dice(report.parts), "Mean Dice per volume against the threshold, in units of each run's map. The dotted line is an oracle: the threshold of the best mean Dice on the test split."),
    "sweep": (sweep, "A point a run with its interval over subjects; the line joins the means of the seeds. A parameter chosen here was chosen on the test split: choose with `adbench tune`."),
    "subjects": (subjects, "Lesion-bearing test subjects, one dot each."),
    "strata": (strata, "Subjects grouped; small: up to the 25th percentile of lesion voxels, large: above the 75th. Line: 95 % interval over subjects."),
    "lesions": (lesions, "A lesion is a 26-connected component; it is found when one of its voxels reaches the threshold."),
    "cost": (cost, "Seconds are those of the machine of each run."),
    "losses": (losses, "Logged while training; val: on validation slices without lesion."),
}  # fmt: skip


def volume_seconds(part: ShownRun) -> float | None:
    """Seconds of scoring a test subject takes on average."""
    record = part.run.record
    per_slice = record.timing.get("score_per_slice")
    if per_slice is None or not record.test.subjects or not per_slice > 0:
        return None
    return per_slice * record.test.slices / record.test.subjects


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
