"""The data of a report, gathered from runs: curves, per-subject numbers, and slices of chosen subjects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from adbench.context import Progress
from adbench.errors import UserError
from adbench.evaluation.compare import compare, method_groups, same_test
from adbench.evaluation.run import Run, VolumeMaps
from adbench.metrics.compare import Table
from adbench.metrics.histogram import ScoreHistogram
from adbench.metrics.plots import Shown
from adbench.metrics.score_bins import edges
from adbench.metrics.spec import HEADLINE, RANKED_BY
from adbench.results.names import row_names
from adbench.utils import seeds

SUBJECTS_BY = HEADLINE[::-1]  # the first that every run has
DRIFT = 0.01  # maps made again may differ by this much before the reader is told


@dataclass(eq=False, kw_only=True)
class ShownRun(Shown):
    """One run of the report; its numbers, computed from the histograms, have no intervals: the record has them.

    Attributes:
        run: the open run.
        group: the method it belongs to when there are several seeds.
        differs: its parameters that other runs of the method have other values of.
        window: scores that a map is shown between: the 1st and 99.5th percentile over the test brain voxels.
        drift: largest :attr:`adbench.evaluation.run.VolumeMaps.drift` among the volumes shown.
    """

    run: Run
    group: str
    differs: dict[str, Any]
    window: tuple[float, float]
    drift: float = 0.0


@dataclass
class ShownSlice:
    """One slice of one volume, (H, W) arrays; maps and reconstructions by the label of the part that has one."""

    number: int
    image: np.ndarray
    brain: np.ndarray
    lesion: np.ndarray
    maps: dict[str, np.ndarray] = field(default_factory=dict)
    reconstructions: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass
class Portrait:
    """One volume of the report: a subject, or one session of a subject that has several.

    Attributes:
        subject: id of the volume.
        reason: why it is shown: "best", "median", "worst", "random" or "asked for".
        lesion_voxels: in its whole volume.
        values: label of a part -> the volume's own number (see :attr:`Report.ranked_by`), None where undefined.
        slices: what is shown of it.
    """

    subject: str
    reason: str
    lesion_voxels: int
    values: dict[str, float | None]
    slices: list[ShownSlice] = field(default_factory=list)


@dataclass
class Report:
    """Everything that the page is rendered from.

    Attributes:
        parts: the runs, best AUPRC first.
        comparison: of the methods by AUPRC; None for a single method or where it is undefined.
        portraits: the subjects shown.
        ranked_by: the per-subject number that chose them.
        notes: what the reader must know.
    """

    parts: list[ShownRun]
    comparison: Table | None
    portraits: list[Portrait]
    ranked_by: str
    notes: list[str]


def collect(
    runs: Sequence[Run],
    *,
    count: int = 2,
    slices: int = 3,
    subjects: Sequence[str] = (),
    visit: Callable[[Run, VolumeMaps], None] | None = None,
    visit_all: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Gather what a report of ``runs`` shows.

    Args:
        runs: on one test set.
        count: how many subjects of each kind: best, median, worst, random.
        slices: of each subject.
        subjects: more subjects to show, by id; of one with several volumes, all or the one whose id is given.
        visit: called with every volume that is scored or read (for exports); an error in the maps then ends the report.
        visit_all: visit every test volume, not only those shown.
        progress: receives progress.

    Raises:
        UserError: no run, different test sets, an unknown subject, or (with ``visit``) maps that cannot be made.
    """
    if not runs:
        raise UserError("Name at least one run: a folder that `adbench run` wrote, with a record.json.")
    for run in runs:
        run.check_plain()
    same_test(runs)
    progress = progress or Progress()
    parts = _parts(runs, progress)
    notes: list[str] = []
    comparison = _compare(parts, notes, progress)
    portraits, ranked_by = choose(parts, count, subjects)
    for done, part in enumerate(parts):
        try:
            _look(part, portraits, slices, visit, visit_all)
        except UserError as error:
            if visit is not None or subjects:
                raise
            notes.append(f"{part.label} is not in the pictures: {error}")
        if part.drift > DRIFT:
            notes.append(
                f"The maps of {part.label} were made again from its saved fit and are not those that were measured: up to "
                f"{part.drift:.1%} of a subject's brain voxels changed their rank. Its code, data or device changed since."
            )
        progress.update("subjects", done + 1, len(parts))
    return Report(parts, comparison, [p for p in portraits if p.slices], ranked_by, notes)


def _parts(runs: Sequence[Run], progress: Progress) -> list[ShownRun]:
    parts = []
    groups = method_groups(runs)
    names = row_names([members[0].record for members in groups.values()])
    for (group, members), name in zip(groups.items(), names, strict=True):
        seeds_differ = len({run.record.seed for run in members}) == len(members)
        for number, run in enumerate(members):
            tail = f" seed {run.record.seed}" if seeds_differ else f" run {number + 1}"
            label = group + (tail if len(members) > 1 else "")
            found, counts = run.evaluation(intervals=False), run.histograms
            shown = window(counts.pooled())
            parts.append(
                ShownRun(label, counts, found, run.spatial, run=run, group=group, differs=name.differs, window=shown)
            )
            progress.update("numbers", len(parts), len(runs))
    return sorted(parts, key=lambda part: (-(_value(part, RANKED_BY) or -1.0), part.label))


def _value(part: ShownRun, metric: str) -> float | None:
    number = part.run.record.metrics.get(metric)
    return number.value if number else None


def _compare(parts: list[ShownRun], notes: list[str], progress: Progress) -> Table | None:
    if len({part.group for part in parts}) < 2:
        return None
    lacking = next((part for part in parts if _value(part, RANKED_BY) is None), None)
    if lacking is not None:
        number = lacking.run.record.metrics.get(RANKED_BY)
        why = number.reason if number is not None else f"{lacking.label} has no {RANKED_BY}"
        notes.append(f"Methods were not compared: {RANKED_BY} is undefined, because there is {why}.")
        return None
    try:
        return compare([part.run for part in parts], progress=progress)
    except UserError as error:  # a metric that is undefined leaves a report without comparison, not without page
        notes.append(f"Methods were not compared: {error}")
        return None


def window(pooled: ScoreHistogram, low: float = 0.01, high: float = 0.995) -> tuple[float, float]:
    """The scores at two shares of all voxels; never an empty interval."""
    keys, positive, negative = pooled.counts()
    share = np.cumsum(positive + negative) / max(1, pooled.n_positive + pooled.n_negative)
    at = np.minimum(np.searchsorted(share, [low, high]), len(keys) - 1)
    ends = edges(keys[at])
    return float(ends[0]), float(max(ends[1], ends[0] + max(1e-6, 1e-3 * abs(ends[0]))))


def choose(parts: Sequence[ShownRun], count: int, asked: Sequence[str] = ()) -> tuple[list[Portrait], str]:
    """The volumes to show: ``count`` best, median, worst by their mean over the runs, and as many at random.

    Best, median and worst are taken among lesion-bearing volumes by the first of :data:`SUBJECTS_BY` that every run has;
    random ones among all that are left, by the hash of the test set, so that every report on it shows the same.

    Args:
        parts: on one test set.
        count: of each kind; fewer when the subjects do not suffice.
        asked: ids of subjects or volumes that are shown in any case.

    Returns:
        The volumes without slices, and the number that ranked them.
    """
    ranked_by = next(
        (name for name in SUBJECTS_BY if all(_value(part, name) is not None for part in parts)), SUBJECTS_BY[-1]
    )
    rows = {part.label: {row.get("volume", row["subject"]): row for row in part.evaluation.subjects} for part in parts}
    everyone = next(iter(rows.values()))
    values = {s: {label: own[s][ranked_by] for label, own in rows.items()} for s in everyone}
    means = {s: float(np.mean(list(own.values()))) for s, own in values.items() if None not in own.values()}
    order = sorted(means, key=lambda subject: (-means[subject], subject))
    known = {name: [name] for name in everyone}
    for name, row in everyone.items():
        if name != row["subject"]:
            known.setdefault(row["subject"], []).append(name)
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise UserError(f"There is no test subject {unknown[0]!r} in {parts[0].run.folder}.")
    reasons: dict[str, str] = dict.fromkeys([volume for name in asked for volume in known[name]], "asked for")
    middle = max(0, (len(order) - count) // 2)
    for reason, chosen in (
        ("best", order[:count]),
        ("median", order[middle : middle + count]),
        ("worst", order[len(order) - count :] if count else []),
    ):
        for subject in chosen:
            reasons.setdefault(subject, reason)
    seed = seeds.derive(0, "report", parts[0].run.record.test.digest)
    left = [subject for subject in sorted(everyone) if subject not in reasons]
    for subject in np.random.default_rng(seed).permutation(left)[:count].tolist():
        reasons[subject] = "random"
    portraits = [Portrait(s, reason, everyone[s]["lesion_voxels"], values[s]) for s, reason in reasons.items()]
    return portraits, ranked_by


def choose_slices(volume: VolumeMaps, count: int) -> list[int]:
    """Indices of the slices to show: the one with the largest lesion, then others spread over the lesion.

    Without a lesion they are spread over the volume. The choice looks at the masks only.
    """
    area = volume.lesion.sum(axis=(1, 2))
    bearing = np.flatnonzero(area)
    if not len(bearing):
        at = np.linspace(0, len(area) - 1, min(count, len(area)) + 2)[1:-1]
        return sorted(set(at.round().astype(int).tolist()))
    chosen = [int(np.argmax(area))]
    for index in np.linspace(0, len(bearing) - 1, min(count, len(bearing))).round().astype(int):
        if len(chosen) < count and bearing[index] not in chosen:
            chosen.append(int(bearing[index]))
    return sorted(chosen)


def _look(
    part: ShownRun,
    portraits: Sequence[Portrait],
    count: int,
    visit: Callable[[Run, VolumeMaps], None] | None,
    visit_all: bool,
) -> None:
    wanted = {portrait.subject: portrait for portrait in portraits}
    if not wanted and not (visit and visit_all):
        return
    for volume in part.run.each(None if visit and visit_all else list(wanted)):
        if visit is not None:
            visit(part.run, volume)
        portrait = wanted.get(volume.volume)
        if portrait is None:
            continue
        part.drift = max(part.drift, volume.drift)
        chosen = choose_slices(volume, count)
        if not portrait.slices:
            portrait.slices = [
                ShownSlice(int(volume.slices[i]), volume.image[i], volume.brain[i], volume.lesion[i]) for i in chosen
            ]
        for shown, index in zip(portrait.slices, chosen, strict=True):
            shown.maps[part.label] = volume.maps[index]
            if volume.reconstruction is not None:
                shown.reconstructions[part.label] = volume.reconstruction[index]
