"""The Python API: run methods, open finished runs, look at their maps and histograms, compare them.

::

    from adbench import api

    a, b = api.run(method="histeq,zscore", dataset="phantom", out="runs")
    print(a.label, a.record.metrics["auprc"].value)
    print(api.compare([a, b]).differences[0])

The command line is a thin layer over these functions and the modules they call.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adbench.config import registry, run_config
from adbench.context import Context, Progress
from adbench.datasets.slices import LabelledSet, SliceBatch
from adbench.errors import UserError
from adbench.evaluation import runs as evaluation
from adbench.metrics.base import Metric
from adbench.metrics.compare import Samples, Table, Trained, sample_method
from adbench.metrics.compare import compare as compare_samples
from adbench.metrics.evaluate import Evaluation, evaluate
from adbench.metrics.histogram import ScoreHistogram, SubjectHistograms
from adbench.metrics.spatial import SpatialAccumulator
from adbench.results import record as records
from adbench.results import rundir
from adbench.results.record import Record
from adbench.runner.fit import fitted, load_fit
from adbench.utils.hashing import digest

if TYPE_CHECKING:
    from adbench.datasets.store.slice_store import SliceStore
    from adbench.methods.base import Method
    from adbench.runner.inference import ScoredVolume
    from adbench.runner.keys import CellSpec
    from adbench.runner.plan import Data

__all__ = ["Run", "VolumeMaps", "compare", "load", "run", "same_test"]


@dataclass
class VolumeMaps:
    """One test volume of one run, S slices on the prepared grid.

    Attributes:
        volume: its case id.
        subject: whose volume it is; the same id where the subject has one volume.
        positions: (S,) positions in the test set.
        slices: (S,) slice indices.
        image: (S, H, W) float32 in [0, 1].
        brain: (S, H, W) bool.
        lesion: (S, H, W) bool.
        maps: (S, H, W) float32, higher is more anomalous.
        reconstruction: (S, H, W) float32, or None when the method makes none (or its fit is gone).
        drift: how far the scores are from those that were measured: the largest difference of their cumulative shares
            of brain voxels, [0, 1]. 0 for maps that were saved; clearly above 0 when code or device made other maps.
    """

    volume: str
    subject: str
    positions: np.ndarray
    slices: np.ndarray
    image: np.ndarray
    brain: np.ndarray
    lesion: np.ndarray
    maps: np.ndarray
    reconstruction: np.ndarray | None
    drift: float


class Part(LabelledSet):
    """Some positions of a labelled set, which says what is on them (slices may carry inserted lesions).

    Args:
        store: of the set.
        whole: the set.
        positions: ascending.
    """

    def __init__(self, store: SliceStore, whole: LabelledSet, positions: np.ndarray) -> None:
        super().__init__(store, whole.rows[positions])
        self._whole, self._positions = whole, positions

    def batch(self, positions: np.ndarray | slice) -> SliceBatch:
        return self._whole.batch(self._positions[positions])


class Run:
    """A finished run: its record and, read when they are asked for, the files beside it.

    Args:
        folder: the run's folder, or its ``record.json``.
        cache: folder of prepared slice stores; None: the default one.
        device: where a fit is loaded to score again: "auto", "cpu", "cuda".
        progress: receives the progress of preparing data and of scoring.

    Raises:
        UserError: there is no record, or it is not a valid one.
    """

    def __init__(
        self, folder: Path | str, *, cache: Path | None = None, device: str = "auto", progress: Progress | None = None
    ) -> None:
        self.folder = Path(folder) if Path(folder).is_dir() else Path(folder).parent
        self.record: Record = records.read(Path(folder))
        self._cache = cache or run_config.default_cache()
        self._device = device
        self._progress = progress or Progress()

    def __repr__(self) -> str:
        return f"<Run {self.label} on {self.record.test.name} {self.record.test.modality}>"

    @property
    def label(self) -> str:
        """Method, preset and seed in a few words."""
        return f"{self.record.method.name} [{self.record.method.preset}] seed {self.record.seed}"

    @cached_property
    def histograms(self) -> SubjectHistograms:
        """Scores of the brain voxels of every test volume, lesion and background apart."""
        return SubjectHistograms.from_npz(self._file("histograms.npz"))

    @cached_property
    def val_histograms(self) -> SubjectHistograms | None:
        """The same for the validation subjects, which chose the threshold; None when there are none."""
        name = "val_histograms.npz"
        return SubjectHistograms.from_npz(self._file(name)) if name in self.record.files else None

    @cached_property
    def spatial(self) -> SpatialAccumulator:
        """Counts of lesions, false components and slices of every test volume, and whose volume each is."""
        found = SpatialAccumulator.from_json(self._file("spatial.json"))
        found.metrics = tuple(metric for metric in self.metrics if metric.needs_maps)
        return found

    def evaluation(self, *, intervals: bool = True) -> Evaluation:
        """Every metric, computed again from the histograms.

        Args:
            intervals: False gives values alone.
        """
        return evaluate(
            self.histograms,
            self.val_histograms,
            intervals=intervals,
            level=float(self.record.protocol["level"]),
            spatial=self.spatial,
            metrics=self.metrics,
            strata=True,
        )

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics that the run was asked for, where they are installed here as they were."""
        return tuple(registry.load("metrics", name)() for name in evaluation.measured(self.record))

    @cached_property
    def cell(self) -> CellSpec:
        """What was run, every parameter spelled out."""
        cell = evaluation.stored_cell(self.folder)
        return cell.model_copy(update={"device": run_config.resolve_device(self._device)})

    @cached_property
    def data(self) -> Data:
        """The slices of the run by role; prepared again if their store is gone.

        Raises:
            UserError: the data cannot be found, or are not those of the run any more.
        """
        return evaluation.stored_data(self.cell, self.record, self._cache, self._progress)

    @property
    def subjects(self) -> list[str]:
        """The test subjects, sorted."""
        return sorted(set(self.spatial.subject_of.values()))

    @property
    def fit_folder(self) -> Path:
        """Where the fit of this run lies if it was kept: ``OUT/fits/<method>-<key>``."""
        out = self.folder.resolve().parents[2] if len(self.folder.resolve().parents) > 2 else self.folder
        return rundir.fit_folder(out, self.record.method.name, self.record.fit_key)

    def method(self) -> Method | None:
        """The fitted method, loaded anew from :attr:`fit_folder`; None when the fit was not kept."""
        fit = fitted(self.fit_folder, self.record.fit_key)
        if fit is None:
            return None
        context = Context(self.cell.device, self.record.seed, self.fit_folder, progress=self._progress)
        return load_fit(registry.load("methods", self.record.method.name), self.fit_folder, fit, context)

    @cached_property
    def maps(self) -> np.ndarray | None:
        """(N, H, W) float32 maps in the order of ``data.test``, memory-mapped; None unless run with ``--save-maps``."""
        if rundir.MAPS not in self.record.files:
            return None
        maps = np.load(self._file(rundir.MAPS), mmap_mode="r")
        expected = (self.record.test.slices, *self.record.test.grid)
        if maps.shape != expected:
            raise UserError(f"{self.folder / rundir.MAPS} holds maps of shape {maps.shape}, expected {expected}.")
        return maps

    def each(self, subjects: Sequence[str] | None = None, *, reconstructions: bool = True) -> Iterator[VolumeMaps]:
        """Images, masks, maps and reconstructions of test volumes, one volume in memory at a time.

        Saved maps are read; others are made again with the saved fit, which also gives the reconstructions.

        Args:
            subjects: which, by id of subject or of volume; None: every one. They come in the order of the test set.
            reconstructions: False skips them, and with saved maps nothing is scored.

        Raises:
            UserError: an unknown subject; neither maps nor fit were kept; the data are gone or changed.
        """
        test = self.data.test
        owner = test.subject_of
        for name in subjects or ():
            if name not in owner and name not in owner.values():
                raise UserError(f"There is no test subject {name!r} in {self.folder}.")
        chosen = set(test.subjects if subjects is None else subjects)
        number = {case: index for index, case in enumerate(test.cases)}
        wanted = [case for case in test.cases if case in chosen or owner[case] in chosen]
        makes_some = self.record.metrics.get("recon_l1")
        score = self.maps is None or (reconstructions and makes_some is not None and makes_some.value is not None)
        method = self.method() if score else None
        if self.maps is None and method is None:
            raise UserError(
                f"{self.folder} has neither maps (run it with --save-maps) nor its fit ({self.fit_folder}): "
                "its maps cannot be shown."
            )
        scored: Iterator[ScoredVolume] = iter(())
        if method is not None:
            from adbench.runner.inference import score_volumes

            chosen_rows = np.isin(test.case_index, [number[case] for case in wanted])
            part = Part(self.data.test_store, test, np.flatnonzero(chosen_rows))
            scored = score_volumes(method, part, method.ctx, f"score {self.record.method.name}")
        for case in wanted:
            positions = np.flatnonzero(test.case_index == number[case])
            made = next(scored, None)
            maps = np.asarray(self.maps[positions]) if self.maps is not None else made.maps  # type: ignore[union-attr]
            brain, lesion = test.brains(positions), test.lesions(positions)
            counted = test.counted(positions)
            yield VolumeMaps(
                case,
                owner[case],
                positions,
                test.slice_numbers[positions],
                test.images(positions).astype(np.float32),
                brain,
                lesion,
                maps,
                None if made is None else made.reconstructions,
                self._drift(case, maps[counted], lesion[counted]),
            )

    def _drift(self, case: str, scores: np.ndarray, labels: np.ndarray) -> float:
        again = ScoreHistogram(self.histograms.partition)
        again.update(scores, labels, case)
        (own, *a), (new, *b) = self.histograms[case].counts(), again.counts()
        keys = np.union1d(own, new)
        shares = []
        for known, counts in ((own, a[0] + a[1]), (new, b[0] + b[1])):
            full = np.zeros(len(keys))
            full[np.searchsorted(keys, known)] = counts
            shares.append(np.cumsum(full) / max(1.0, full.sum()))
        return float(np.abs(shares[0] - shares[1]).max(initial=0.0))

    def _file(self, name: str) -> Path:
        if name not in self.record.files:
            raise UserError(f"The record in {self.folder} lists no {name}: the run is incomplete.")
        return evaluation.checked_file(self.folder, self.record, name)


def run(
    method: str | Sequence[str],
    dataset: str | Sequence[str],
    *,
    set: dict[str, dict[str, Any]] | None = None,
    save_maps: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> list[Run]:
    """Train and score a grid, as ``adbench run`` does; what is done already is answered from its record.

    Args:
        method: one or more methods.
        dataset: one or more datasets.
        set: parameters by scope, e.g. ``{"madad": {"steps": 300}, "dataset": {"n_test": 8}}``.
        save_maps: keep every anomaly map beside its record.
        progress: receives progress; ``adbench.utils.console.LiveProgress`` draws bars.
        **settings: the other fields of :class:`adbench.config.run_config.RunConfig`: ``modality``, ``seed``, ``out``, ...

    Returns:
        One run a cell, in the order of the grid.

    Raises:
        UserError: anything unknown, missing or out of range, before anything runs.
        Exception: what the first failing method raised; the other cells are done, and answered from their records.
    """
    from adbench.executors import Options, serial
    from adbench.runner.plan import plan

    flags = {
        "method": method,
        "dataset": dataset,
        **{k: str(v) if isinstance(v, Path) else v for k, v in settings.items()},
    }
    chosen = run_config.load(None, {**flags, "set": set}, [], run_config.RunConfig)
    cache = Path(chosen.cache) if chosen.cache else run_config.default_cache()
    plans = plan(list(run_config.cells(chosen)), Path(chosen.out), cache, progress)
    outcomes = list(serial(plans, progress, Options(save_maps=save_maps)))
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
    return [Run(o.plan.run_folder, cache=cache, device=chosen.device, progress=progress) for o in outcomes]


def load(
    *paths: Path | str, cache: Path | None = None, device: str = "auto", progress: Progress | None = None
) -> list[Run]:
    """Open finished runs.

    Args:
        *paths: run folders, or folders with runs somewhere below; a run that is found twice is opened once.
        cache: folder of prepared slice stores; None: the default one.
        device: where fits are loaded to score again.
        progress: receives progress.

    Raises:
        UserError: a path does not exist or holds no run.
    """
    found: dict[str, Run] = {}
    for path in map(Path, paths):
        folders = [path] if not path.is_dir() or (path / records.RECORD).exists() else []
        folders = folders or [file.parent for file in sorted(path.rglob(records.RECORD))]
        if not folders:
            raise UserError(f"There is no run in {path}: a run's folder holds a {records.RECORD}.")
        for folder in folders:
            opened = Run(folder, cache=cache, device=device, progress=progress)
            found.setdefault(opened.record.run_key, opened)
    return list(found.values())


def same_test(runs: Sequence[Run]) -> None:
    """Refuse runs whose numbers must not stand side by side.

    Raises:
        UserError: two runs differ in test slices or protocol; says which and how.
    """
    for other in runs[1:]:
        first, own = _board(runs[0].record), _board(other.record)
        if own != first:
            sides = [f"{r.label} in {r.folder} ({_describe(r.record)})" for r in (runs[0], other)]
            raise UserError(
                f"{sides[0]} and {sides[1]} were not measured on the same test slices under the same protocol: "
                "report or compare them separately."
            )


def compare(runs: Iterable[Run], metric: str = "auprc", *, progress: Progress | None = None) -> Table:
    """Paired comparison of the methods behind ``runs``; training seeds of one method are pooled.

    Args:
        runs: of two or more methods, all on the same test set.
        metric: as named in the record.
        progress: receives progress.

    Returns:
        Ranks, in which methods that cannot be told from the best are tied, and the paired differences behind them.

    Raises:
        UserError: fewer than two methods, different test sets, too few subjects, or a metric that a method lacks.
    """
    runs = list(runs)
    same_test(runs)
    groups = method_groups(runs)
    samples: dict[str, Samples] = {}
    for done, (name, members) in enumerate(groups.items(), 1):
        trained = [Trained(one.histograms, one.val_histograms, one.spatial, one.metrics) for one in members]
        samples[name] = sample_method(trained)
        (progress or Progress()).update("compare", done, len(groups))
    return compare_samples(samples, metric)


def method_groups(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs by what was run, seeds aside: name -> runs. Names say no more than is needed to tell methods apart."""
    groups: dict[str, list[Run]] = {}
    for one in runs:
        groups.setdefault(digest([one.record.method.model_dump(), one.record.train.digest]), []).append(one)
    named: dict[str, list[Run]] = {}
    for key, members in groups.items():
        part = members[0].record
        name = f"{part.method.name} [{part.method.preset}]"
        others = [g[0].record for k, g in groups.items() if k != key]
        alike = [o for o in others if (o.method.name, o.method.preset) == (part.method.name, part.method.preset)]
        if any(o.train.name != part.train.name for o in alike):
            name += f" on {part.train.name}"
        if any(o.train.name == part.train.name for o in alike):
            name += f" {part.fit_key[:6]}"
        named[name] = members
    return named


def _board(record: Record) -> tuple[Any, ...]:
    protocol = record.protocol
    return (protocol.get("name"), protocol.get("version"), record.test.name, record.test.modality, record.test.digest)


def _describe(record: Record) -> str:
    name, version, dataset, modality, test = _board(record)
    return f"protocol {name} v{version}, {dataset} {modality}, {record.test.slices} test slices {test[:8]}"
