"""Evaluate a folder of anomaly maps against masks: metrics with intervals, a JSON file and plots."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from adbench import __version__
from adbench.errors import UserError
from adbench.evaluation.map_files import CaseFolder, External
from adbench.metrics import plots
from adbench.metrics.base import Metric
from adbench.metrics.boxes import BoxAP, BoxF1, BoxF1Alarms
from adbench.metrics.columns import FALSE_ALARMS
from adbench.metrics.evaluate import Evaluation, compact, evaluate
from adbench.metrics.histogram import MANY_BINS, SubjectHistograms
from adbench.metrics.presets import PRESETS, PresetCase, evaluate_preset
from adbench.metrics.spatial import SpatialAccumulator, froc_thresholds
from adbench.metrics.spec import WIDE
from adbench.metrics.thresholds import choose_thresholds
from adbench.results.rundir import write_counts
from adbench.utils.files import write_json

Folder = str | Path
METRICS = "metrics.json"  # of the folder that evaluate_folders writes


def evaluate_folders(
    maps: Folder,
    masks: Folder,
    brain: Folder | None = None,
    *,
    out: Folder,
    labels: Collection[int] | None = None,
    val_maps: Folder | None = None,
    val_masks: Folder | None = None,
    val_brain: Folder | None = None,
    level: float = 0.95,
    seed: int = 0,
    strata: bool = True,
    metrics: Sequence[Metric] = (),
    presets: Sequence[str] = (),
) -> Evaluation:
    """Evaluate maps that lie in a folder.

    Files are matched by case id, see :class:`adbench.evaluation.map_files.CaseFolder`. One case is in memory at a time.

    Args:
        maps: score maps, NIfTI or PNG; higher is more anomalous, on any scale.
        masks: lesion masks on the same grid, or a CSV file of boxes; with boxes, the metrics of
            :mod:`adbench.metrics.boxes` are added, and numbers of voxels take a box for a lesion that fills it.
        brain: brain masks; None counts every voxel of the image, background included.
        out: folder for ``metrics.json``, ``histograms.npz``, ``val_histograms.npz``, ``spatial.json`` and the plots.
        labels: mask values that are lesion; None for 1 (and 255 in a PNG).
        val_maps: maps of other cases, on which thresholds are chosen; without them only threshold-free and oracle
            numbers are defined.
        val_masks: their lesion masks; a case without lesion is healthy.
        val_brain: their brain masks; needed where ``brain`` is given.
        level: probability inside the intervals.
        seed: of the resamples behind the bands of the plots.
        strata: whether to repeat every metric by lesion size.
        metrics: plug-in metrics.
        presets: names of presets to add to the JSON; they need finite scores everywhere.

    Raises:
        UserError: unmatched cases, unlike grids or affines, wrong labels, empty brain masks, non-finite scores, a case
            on both sides; each names the case.
    """
    for name in presets:
        if name not in PRESETS:
            evaluate_preset(name, [])  # raises the error that lists them
    test_cases = CaseFolder(maps, masks, brain, labels)
    val_cases = _validation(val_maps, val_masks, val_brain, labels, test_cases.has_brain)
    notes: list[str] = []
    if not test_cases.has_brain:
        notes.append("No brain masks were given: every voxel of the image counts, background included.")
    if test_cases.has_boxes:
        notes.append("Boxes were given, no masks: numbers of voxels and lesions take a box for a lesion that fills it.")
        asked = {metric.name for metric in metrics}
        metrics = [*metrics, *(one() for one in (BoxAP, BoxF1, BoxF1Alarms) if one.name not in asked)]
    val_again = None if val_cases is None else _Cases(val_cases)
    chosen = [asdict(evaluate_preset(name, _Cases(test_cases), val_again)) for name in presets]  # some need validation
    facts = {"test": CaseFacts(), "val": CaseFacts()}
    val = None if val_cases is None else _histograms(val_cases, None, [], facts["val"], by_subject=True)
    thresholds = choose_thresholds(val)[0]
    spatial_metrics = [metric for metric in metrics if metric.needs_maps]
    if val is not None:
        spatial = SpatialAccumulator(thresholds, froc_thresholds(val), metrics=spatial_metrics)
        test = _histograms(test_cases, spatial, notes, facts["test"])
    else:
        test = _histograms(test_cases, None, notes, facts["test"])
        spatial = SpatialAccumulator(thresholds, froc_thresholds(test), metrics=spatial_metrics)
        for case in test_cases:
            _count(spatial, case)
        notes.append("The thresholds of the FROC curve are spaced by the test split's own background scores.")
    notes += [note for cases in (test_cases, val_cases) if cases is not None for note in cases.odd_headers]
    compact(test, val, spatial.froc, spatial.groups)
    result = evaluate(test, val, level=level, spatial=spatial, metrics=metrics, strata=strata)
    result.notes += notes
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    write_counts(folder, test, val, spatial)
    for problem in plots.all_plots(test, result, folder, spatial=spatial, seed=seed):
        result.notes.append(problem)
    inputs: dict[str, Any] = {"maps": str(maps), "masks": str(masks), "brain": None if brain is None else str(brain)}
    inputs |= {"val_maps": None if val_maps is None else str(val_maps)}
    inputs |= {"boxes": test_cases.has_boxes}
    settings = {"level": level, "seed": seed, "labels": sorted(labels) if labels else None}
    about = {
        "adbench": __version__,
        "inputs": inputs,
        "settings": settings,
        "cases": {role: one.as_dict() for role, one in facts.items() if one.slices},
        "presets": chosen,
    }
    write_json(folder / METRICS, {**about, **result.as_dict()})
    return result


@dataclass
class CaseFacts:
    """Fingerprint of a folder's cases, the same for all maps that are compared with them.

    Attributes:
        slices: in all.
        grid: (H, W) of the largest, pixels.
        hash: of ids, lesion masks and brain masks.
    """

    slices: int = 0
    grid: tuple[int, int] = (0, 0)
    hash: Any = field(default_factory=hashlib.sha256)

    def add(self, case: External) -> None:
        """Count one case."""
        height, width = case.maps.shape[1:]
        self.slices += len(case.maps)
        self.grid = (max(self.grid[0], height), max(self.grid[1], width))
        self.hash.update(f"{case.volume}\0{case.maps.shape}{case.slices.tolist()}".encode(errors="surrogateescape"))
        for mask in (case.lesion & case.brain, case.brain):
            self.hash.update(np.packbits(mask).tobytes())

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"digest": self.hash.hexdigest(), "slices": self.slices, "grid": list(self.grid)}


COLUMNS = ("metric", "value", "interval", "subjects", "remark")


def rows(result: Evaluation) -> list[list[str]]:
    """The numbers of an evaluation as text, one metric a row, in the order of :data:`COLUMNS`."""
    found = []
    for name, metric in result.metrics.items():
        ends = "" if metric.low is None or metric.high is None else f"[{metric.low:.4f}, {metric.high:.4f}]"
        about = "≈" if metric.spread > WIDE else ""
        value = "—" if metric.value is None else f"{about}{metric.value:.4f}"
        remark = ", ".join(part for part in ("oracle" if metric.oracle else "", metric.reason) if part)
        over = (
            ""
            if metric.value is None
            else str(metric.n)
            if metric.n == metric.n_all
            else f"{metric.n} of {metric.n_all}"
        )
        found.append([name, value, ends, over, remark])
    return found


def alarms_by_stratum(result: Evaluation) -> tuple[list[str], list[list[str]]]:
    """False alarms in every stratum but those of lesion size.

    Returns:
        Headings, and a row a group with its subjects and as many of
        :data:`adbench.metrics.columns.FALSE_ALARMS` as some group has a value of; no row where there is one group alone.
    """
    strata = {
        f"{grouping}: {group}": metrics
        for grouping, groups in result.strata.items()
        for group, metrics in groups.items()
        if grouping != "lesion_size" and len(groups) > 1
    }
    names = [name for name in FALSE_ALARMS if any(name in m and m[name].value is not None for m in strata.values())]
    found = []
    for title, metrics in strata.items():
        values = [metrics[name].value if name in metrics else None for name in names]
        subjects = max(metric.n_all for metric in metrics.values())
        found.append([title, str(subjects), *("—" if value is None else f"{value:.4f}" for value in values)])
    return ["stratum", "subjects", *names], found if names else []


def caption(result: Evaluation) -> str:
    """A caption for the numbers: the chance level of auprc."""
    return f"lesion prevalence {result.prevalence:.6f}: the chance level of auprc"


def table(result: Evaluation) -> str:
    """The numbers of an evaluation as aligned text, one metric a line, then the notes."""
    lines = [list(COLUMNS), *rows(result)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    texts = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*texts, caption(result), *result.notes])


class _Cases:
    """The cases of a folder as a preset reads them; can be iterated repeatedly."""

    def __init__(self, folder: CaseFolder) -> None:
        self._folder = folder

    def __iter__(self) -> Iterator[PresetCase]:
        return (PresetCase(case.volume, case.maps, case.lesion, case.brain) for case in self._folder)


def _validation(
    maps: Folder | None, masks: Folder | None, brain: Folder | None, labels: Collection[int] | None, needs_brain: bool
) -> CaseFolder | None:
    if maps is None and masks is None and brain is None:
        return None
    if maps is None or masks is None or (brain is None) == needs_brain:
        want = "val_maps, val_masks and val_brain" if needs_brain else "val_maps and val_masks, without val_brain"
        raise UserError(f"Thresholds are chosen on the same kind of voxels as they are used on: give {want}.")
    return CaseFolder(maps, masks, brain, labels)


def _histograms(
    cases: CaseFolder,
    spatial: SpatialAccumulator | None,
    notes: list[str],
    facts: CaseFacts,
    *,
    by_subject: bool = False,
) -> SubjectHistograms:
    pins = () if spatial is None else (*spatial.thresholds.values(), *spatial.froc)
    histograms = SubjectHistograms(pins, most=MANY_BINS)
    outside: dict[str, int] = {}
    for case in cases:
        if not case.brain.any():
            raise UserError(f"Case {case.volume!r} has no brain voxel: its brain mask is empty. Correct the mask.")
        facts.add(case)
        inside = case.maps[case.brain]
        histograms.update(case.subject if by_subject else case.volume, inside, case.lesion[case.brain])
        if spatial is not None:
            _count(spatial, case)
        beyond = int(np.count_nonzero(case.lesion & ~case.brain))
        if beyond:
            outside[case.volume] = beyond
    if outside:
        first = next(iter(outside))
        notes.append(
            f"{sum(outside.values())} lesion voxels of {len(outside)} case(s) lie outside the brain mask and are not "
            f"counted (the first: {outside[first]} of {first!r})."
        )
    return histograms


def _count(spatial: SpatialAccumulator, case: External) -> None:
    spatial.add_volume(
        case.volume, case.maps, case.lesion, case.brain, case.slices, subject=case.subject, spacing=case.spacing
    )
