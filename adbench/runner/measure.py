"""Scoring both labelled splits and counting what every number of a record is computed from.

What this module imports, the metrics among it, counts into the key of every run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adbench.context import Context
from adbench.datasets.slices import LabelledSet
from adbench.errors import UserError
from adbench.methods.base import Method
from adbench.metrics.base import Metric, spec_of
from adbench.metrics.evaluate import Evaluation, compact, evaluate
from adbench.metrics.histogram import MANY_BINS, SubjectHistograms
from adbench.metrics.lesion import free_maxima
from adbench.metrics.spatial import SpatialAccumulator, froc_thresholds
from adbench.metrics.thresholds import SLICES, choose_thresholds, slice_thresholds
from adbench.runner.fit import seed_everything
from adbench.runner.inference import Clock, ScoredVolume, score_volumes
from adbench.utils import seeds


@dataclass
class Counts:
    """What remains of the maps after scoring.

    Attributes:
        threshold: scores of the validation subjects; None when there are none.
        test: scores of the test volumes.
        spatial: counts of lesions and components, which need whole maps.
    """

    threshold: SubjectHistograms | None
    test: SubjectHistograms
    spatial: SpatialAccumulator


class _MapFile:
    """Maps of a set in its order and in their own type, written as they come."""

    def __init__(self, path: Path, data: LabelledSet) -> None:
        self._path, self._shape = path, (len(data), *data.shape)
        self._maps: np.ndarray | None = None

    def write(self, scored: ScoredVolume) -> None:
        if self._maps is None:
            self._maps = np.lib.format.open_memmap(self._path, "w+", scored.maps.dtype, self._shape)
        elif not np.can_cast(scored.maps.dtype, self._maps.dtype):
            raise UserError(
                f"The method gives maps of type {self._maps.dtype} and of type {scored.maps.dtype} (case "
                f"{scored.volume!r}): maps of one method are saved in one type."
            )
        self._maps[scored.positions] = scored.maps

    def close(self) -> None:
        assert isinstance(self._maps, np.memmap)
        self._maps.flush()


def measure(
    method: Method,
    threshold_data: LabelledSet,
    test_data: LabelledSet,
    ctx: Context,
    clock: Clock,
    metrics: Sequence[Metric] = (),
    keep_in: tuple[Path, Path] | None = None,
    show: Callable[[ScoredVolume], None] = lambda scored: None,
) -> Counts:
    """Score validation, choose the thresholds, score test, count.

    Args:
        method: fitted.
        threshold_data: labelled validation slices; may be empty.
        test_data: labelled test slices.
        ctx: surroundings, the seed among them.
        clock: learns what took how long.
        metrics: optional and plug-in metrics that are measured too.
        keep_in: files for all maps of test and of validation, (N, H, W) in the order of the set; None keeps none.
        show: is called with every test volume.
    """
    seed_everything(seeds.derive(ctx.seed, "score"))
    keep = _MapFile(keep_in[0], test_data) if keep_in else None
    keep_val = _MapFile(keep_in[1], threshold_data) if keep_in and len(threshold_data) else None
    threshold, free = None, list[float]()
    planned = len(threshold_data) + len(test_data)
    by_slices = any(spec_of(metric).rule in SLICES for metric in metrics)
    if len(threshold_data):
        threshold = SubjectHistograms(most=MANY_BINS)
        for scored in score_volumes(method, threshold_data, ctx, "score validation", planned=planned):
            if keep_val:
                keep_val.write(scored)
            brain, lesion = threshold_data.counted(scored.positions), threshold_data.lesions(scored.positions)
            threshold.update(scored.subject, scored.maps[brain], lesion[brain])
            free += free_maxima(scored.maps, lesion, brain) if by_slices else []
    # The thresholds are known before the first test map, so every map is looked at once and dropped.
    spatial = SpatialAccumulator(
        choose_thresholds(threshold)[0] | slice_thresholds(free),
        froc_thresholds(threshold) if threshold is not None else (),
        metrics=[metric for metric in metrics if metric.needs_maps],
        free=free,
    )
    test = SubjectHistograms([*spatial.thresholds.values(), *spatial.froc], most=MANY_BINS)
    for scored in score_volumes(method, test_data, ctx, "score test", clock=clock, planned=planned):
        if keep:
            keep.write(scored)
        brain, lesion = test_data.counted(scored.positions), test_data.lesions(scored.positions)
        with clock.phase("measure"):
            test.update(scored.volume, scored.maps[brain], lesion[brain])
            spatial.add_volume(
                scored.volume,
                scored.maps,
                lesion & brain,
                brain,
                test_data.slice_numbers[scored.positions],
                subject=scored.subject,
                recon=scored.reconstructions,
                image=test_data.images(scored.positions).astype(np.float32),
                spacing=test_data.spacing_at(int(scored.positions[0])),
                **test_data.groups_at(int(scored.positions[0])),
            )
        show(scored)
    for file in (keep, keep_val):
        if file:
            file.close()
    with clock.phase("measure"):
        compact(test, threshold, [*spatial.froc, *slice_thresholds(free).values()], spatial.groups)
    return Counts(threshold, test, spatial)


def numbers(counts: Counts, level: float, metrics: Sequence[Metric] = ()) -> Evaluation:
    """Every number of a record, from the counts.

    Args:
        counts: of both splits.
        level: probability inside the intervals.
        metrics: as given to :func:`measure`.
    """
    return evaluate(counts.test, counts.threshold, level=level, spatial=counts.spatial, metrics=metrics, strata=True)
