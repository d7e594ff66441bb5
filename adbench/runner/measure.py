"""Scoring both labelled splits and counting what every number of a record is computed from.

What this module imports, the metrics among it, counts into the key of every run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from adbench.context import Context
from adbench.datasets.slices import LabelledSet
from adbench.errors import UserError
from adbench.methods.base import Method
from adbench.metrics.base import Metric, spec_of
from adbench.metrics.evaluate import Evaluation, compact, evaluate
from adbench.metrics.histogram import MANY_BINS, SubjectHistograms
from adbench.metrics.lesion import Volume, VolumeRow, checked_volume, free_maxima
from adbench.metrics.spatial import SpatialAccumulator, froc_thresholds
from adbench.metrics.thresholds import SLICES, choose_thresholds, slice_thresholds
from adbench.runner.fit import seed_everything
from adbench.runner.inference import Clock, ScoredVolume, score_volumes
from adbench.utils import seeds

MOST_COUNTING = 4  # threads; each holds a volume, and these count as fast as a GPU gives maps


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


class _Beside:
    """Counts volumes in threads, beside the scoring, and keeps their rows in the order in which the volumes came.

    A row depends on its volume alone, so the number of threads changes nothing. No more volumes wait than there are threads,
    and plug-in metrics, which may keep a state, measure in the thread of the caller.

    Args:
        spatial: keeps the rows.
        threads: 0 counts at once.
    """

    def __init__(self, spatial: SpatialAccumulator, threads: int) -> None:
        self._spatial, self._threads = spatial, threads
        self._pool = ThreadPoolExecutor(threads, "adbench-count") if threads else None
        self._waiting: deque[tuple[Volume, Future[VolumeRow]]] = deque()

    def __enter__(self) -> _Beside:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def add(self, volume: Volume, count: Callable[[], VolumeRow]) -> None:
        """Have a volume counted; waits for the earliest one where as many wait as may."""
        if self._pool is None:
            self._spatial.keep(count(), volume)
            return
        self._waiting.append((volume, self._pool.submit(count)))
        while self._waiting and (len(self._waiting) > self._threads or self._waiting[0][1].done()):
            self._keep_first()

    def finish(self) -> None:
        """Wait for all of them."""
        while self._waiting:
            self._keep_first()

    def _keep_first(self) -> None:
        volume, row = self._waiting.popleft()
        self._spatial.keep(row.result(), volume)


def counting_threads(device: str) -> int:
    """How many threads count beside a scoring on ``device``: those of the run; none where one core does both."""
    import torch

    own = torch.get_num_threads()
    return 0 if own == 1 and not device.startswith("cuda") else min(own, MOST_COUNTING)


def _volume(scored: ScoredVolume, data: LabelledSet, *, pictured: bool) -> Volume:
    return checked_volume(
        scored.volume,
        scored.maps,
        data.lesions(scored.positions),
        data.counted(scored.positions),
        data.slice_numbers[scored.positions],
        scored.reconstructions,
        data.images(scored.positions).astype(np.float32) if pictured else None,
        data.spacing_at(int(scored.positions[0])),
    )


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
        clock: learns what took how long; of the counting ("measure") what the scoring waited for.
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
    with _Beside(spatial, counting_threads(ctx.device)) as rows:
        for scored in score_volumes(method, test_data, ctx, "score test", clock=clock, planned=planned):
            if keep:
                keep.write(scored)
            with clock.phase("measure"):
                volume = _volume(
                    scored, test_data, pictured=bool(spatial.metrics) or scored.reconstructions is not None
                )
                test.update(scored.volume, volume.scores, volume.lesion[volume.brain])
                groups = test_data.groups_at(int(scored.positions[0]))
                rows.add(volume, partial(spatial.row, scored.volume, volume, scored.subject, **groups))
            show(scored)
        with clock.phase("measure"):
            rows.finish()
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
