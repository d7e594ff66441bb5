"""A finished run with its data and its fit: compute or load its maps, apply the presets of papers, check the masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from adbench.config import registry, run_config
from adbench.config.cell import Cell, Source
from adbench.context import Progress
from adbench.datasets.base import Dataset
from adbench.datasets.slices import LabelledSet, SliceBatch
from adbench.datasets.store.prepare import store_folder
from adbench.datasets.store.slice_store import SliceStore
from adbench.errors import UserError
from adbench.evaluation.predict import load_method, predict
from adbench.evaluation.prediction_files import Prediction
from adbench.methods.base import Method
from adbench.metrics.base import Metric, spec_of
from adbench.metrics.evaluate import Evaluation
from adbench.metrics.histogram import ScoreHistogram
from adbench.metrics.lesion import free_maxima
from adbench.metrics.presets import PRESETS, PresetCase, PresetResult, evaluate_preset
from adbench.metrics.spatial import SpatialAccumulator
from adbench.metrics.thresholds import SLICES, choose_thresholds, slice_thresholds
from adbench.results import rundir
from adbench.results.record import DataPart
from adbench.results.result import Result
from adbench.runner.inference import ScoredVolume, score_volumes
from adbench.runner.plan import Data, gather, labelled
from adbench.utils.plain_files import open_plain


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
    """Some positions of a labelled set, with the pixels that the set shows there (slices may carry synthetic lesions)."""

    def __init__(self, store: SliceStore, whole: LabelledSet, positions: np.ndarray) -> None:
        super().__init__(store, whole.rows[positions])
        self._whole, self._positions = whole, positions

    def batch(self, positions: np.ndarray | slice) -> SliceBatch:
        """The given positions of this part as one batch on the CPU."""
        return self._whole.batch(self._positions[positions])


@dataclass(frozen=True)
class _SavedMaps:
    """Saved maps with the masks of their cases, for a preset: can be iterated repeatedly, one volume in memory."""

    maps: np.ndarray
    data: LabelledSet

    def __iter__(self) -> Iterator[PresetCase]:
        for index, case in enumerate(self.data.cases):
            where = np.flatnonzero(self.data.case_index == index)
            yield PresetCase(case, np.asarray(self.maps[where]), self.data.lesions(where), self.data.brains(where))


class Run(Result):
    """A finished run: its record and, read when they are asked for, its counts, maps, data and fit.

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
        super().__init__(folder)
        self._cache = cache or run_config.default_cache()
        self._device = device
        self._progress = progress or Progress()

    @cached_property
    def cell(self) -> Cell:
        """The cell of this run, every parameter spelled out, on the device that is there now.

        Raises:
            UserError: its ``config.yaml`` is missing, or names something that does not exist any more.
        """
        path = self.folder / rundir.CONFIG
        with suppress(FileNotFoundError):  # which the configuration says in its own words
            open_plain(path).close()
        (cell,) = run_config.cells(run_config.load(path, {"device": self._device}, []))
        return cell

    @cached_property
    def data(self) -> Data:
        """The slices of the run by role; prepared again if their store is gone.

        Raises:
            UserError: the data cannot be found, or are not those of the run any more.
        """
        cell = self.cell
        data = gather(cell.test, cell.train, cell.modality, cell.protocol, self._cache, self._progress, cell.fit)
        self._check_slices(data.threshold, data.test)
        return data

    def method(self) -> Method | None:
        """The fitted method, loaded from :attr:`fit_folder`; None when the fit was not kept."""
        device = run_config.resolve_device(self._device)
        return load_method(self.record, self.fit_folder, device, self._progress)

    def predict(
        self, images: Path | str, out: Path | str, *, threshold: str | float = "val", settings: Sequence[str] = ()
    ) -> list[Prediction]:
        """Predict on unlabelled scans with this run; its own data are not needed.

        The scans are prepared as the test data of the run were, scored with its fit, and what is found is written on each
        scan's own grid: for volumes ``sub-ID/anat/sub-ID_space-orig_desc-METHOD_anomaly.nii.gz`` with ``..._mask``,
        ``...Recon_MODALITY`` and the brain mask, for PNG slices ``IMAGE-METHOD-anomaly.png`` with ``-mask`` and ``-recon``
        (16 bits; the JSON file beside it says which scores black and white are); and ``summary.csv``. Interrupted and
        called again, it goes on with the scans that are missing.

        Args:
            images: folder of NIfTI volumes or PNG slices, named as for the dataset ``folder``; lesion masks are not read.
            out: folder to write to.
            threshold: at and above which a voxel is marked: a rule of the record that never saw its test split ("val",
                "fpr5", "conformal10", ...), or a score.
            settings: parameters of the dataset ``folder`` as texts, e.g. ``dataset.exclude=[p07]``.

        Returns:
            One a scan, in the order of their names.

        Raises:
            ScansFailed: some scans cannot be read or scored; all others were answered, and are its ``found``.
            UserError: no fit, no such threshold; scans of another modality; no scan that can be read.
            Exception: what the method raises, where it can score none.
        """
        method = self.method()
        if method is None:
            raise UserError(
                f"The fit of {self.folder} was not kept ({self.fit_folder}): make the run again with the command "
                f"`adbench run --config {self.folder / rundir.CONFIG} --force`."
            )
        return predict(
            self.record,
            method,
            Path(images),
            Path(out),
            threshold=threshold,
            settings=settings,
            cache=self._cache,
            progress=self._progress,
        )

    @cached_property
    def maps(self) -> np.ndarray | None:
        """(N, H, W) float32 maps in the order of ``data.test``, memory-mapped; None unless run with ``--save-maps``."""
        if rundir.MAPS not in self.record.files:
            return None
        return self._saved(rundir.MAPS, self.record.test)

    def _saved(self, name: str, part: DataPart) -> np.ndarray:
        """The maps in the file ``name``, memory-mapped, one for each slice of ``part``.

        Raises:
            UserError: another file than the record describes, or no such maps.
        """
        path, expected = self.file(name), (part.slices, *part.grid)
        found: Any = None
        try:
            found = np.load(path, mmap_mode="r")
            what = "arrays" if not isinstance(found, np.ndarray) else f"{found.dtype} of shape {found.shape}"
        except (OSError, ValueError, TypeError, OverflowError, EOFError) as error:
            what = f"no array that can be read ({str(error).split('. ')[0]})"
        if not isinstance(found, np.ndarray) or found.dtype.kind != "f" or found.shape != expected:
            raise UserError(
                f"{path} holds {what}, expected maps of shape {expected}: run again with --save-maps --force."
            )
        return found

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
        wanted = [case for case in test.cases if case in chosen or owner[case] in chosen]
        positions = {case: np.flatnonzero(test.case_index == index) for index, case in enumerate(test.cases)}
        scored = self._scored([positions[case] for case in wanted], reconstructions)
        for case in wanted:
            at = positions[case]
            made = next(scored, None)
            if self.maps is not None:
                maps = np.asarray(self.maps[at])
            else:
                assert made is not None
                maps = made.maps
            lesion, counted = test.lesions(at), test.counted(at)
            yield VolumeMaps(
                case,
                owner[case],
                at,
                test.slice_numbers[at],
                test.images(at).astype(np.float32),
                test.brains(at),
                lesion,
                maps,
                None if made is None else made.reconstructions,
                self._drift(case, maps[counted], lesion[counted]),
            )

    def _scored(self, positions: list[np.ndarray], reconstructions: bool) -> Iterator[ScoredVolume]:
        """The test volumes at ``positions`` scored with the saved fit; none where saved maps are all that is wanted."""
        makes_some = self.record.metrics.get("recon_l1")
        wanted = self.maps is None or (reconstructions and makes_some is not None and makes_some.value is not None)
        method = self.method() if wanted else None
        if method is None and self.maps is None:
            raise UserError(
                f"{self.folder} has neither maps (run it with --save-maps) nor its fit ({self.fit_folder}): "
                "its maps cannot be shown."
            )
        if method is None or not positions:
            return iter(())
        part = Part(self.data.test_store, self.data.test, np.sort(np.concatenate(positions)))
        return score_volumes(method, part, method.ctx, f"score {self.record.method.name}")

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

    def evaluate_again(self, metrics: Sequence[str] = ()) -> Evaluation:
        """Every metric from the histograms, or from the saved maps where a metric that the run did not measure needs them.

        Args:
            metrics: optional and plug-in metrics to add to those of the run, by name.

        Raises:
            UserError: files that differ from their hashes in the record, masks too where the data are prepared here;
                maps are needed and were not saved.
        """
        added: list[Metric] = [registry.load("metrics", name)() for name in dict.fromkeys(metrics)]
        self.check_files()
        measured = {metric.name for metric in self.metrics}
        spatial = None
        if any(metric.needs_maps and metric.name not in measured for metric in added):
            spatial = self._count_maps([*added, *(metric for metric in self.metrics if metric.name not in metrics)])
        unchecked = self._check_masks()
        found = self.evaluation(metrics=added, spatial=spatial)
        found.notes += [unchecked] if unchecked else []
        return found

    def preset(self, name: str) -> PresetResult:
        """The saved maps by a paper's own rule.

        Args:
            name: of the rule, one of :data:`adbench.metrics.presets.PRESETS`.

        Raises:
            UserError: no such rule, no saved maps, or files or masks that are not those of the run any more.
        """
        if name not in PRESETS:
            evaluate_preset(name, [])  # raises the error that lists them
        self._need_maps()
        self.check_files()
        data = self.data
        test = _SavedMaps(self._saved(rundir.MAPS, self.record.test), data.test)
        if rundir.VAL_MAPS not in self.record.files:
            return evaluate_preset(name, test, None)
        return evaluate_preset(
            name, test, _SavedMaps(self._saved(rundir.VAL_MAPS, self.record.threshold), data.threshold)
        )

    def _need_maps(self) -> None:
        if rundir.MAPS not in self.record.files:
            raise UserError(f"{self.folder} has no maps, only histograms: run it again with --save-maps --force.")

    def _count_maps(self, metrics: Sequence[Metric]) -> SpatialAccumulator:
        """What those of ``metrics`` that need maps count in the saved ones."""
        self._need_maps()
        test = self.data.test
        needing = [metric for metric in metrics if metric.needs_maps]
        free = self.spatial.free or self._free_maxima(needing)
        thresholds = choose_thresholds(self.val_histograms)[0] | slice_thresholds(free)
        counted = SpatialAccumulator(thresholds, self.spatial.froc, metrics=needing, free=free)
        for volume in self.each(reconstructions=False):
            inside, first = test.counted(volume.positions), int(volume.positions[0])
            counted.add_volume(
                volume.volume,
                volume.maps,
                volume.lesion & inside,
                inside,
                volume.slices,
                subject=volume.subject,
                spacing=test.spacing_at(first),
                **test.groups_at(first),
            )
        return counted

    def _free_maxima(self, metrics: Sequence[Metric]) -> list[float]:
        """The highest scores of the lesion-free validation slices, where one of ``metrics`` has its threshold from them."""
        if rundir.VAL_MAPS not in self.record.files or not any(spec_of(metric).rule in SLICES for metric in metrics):
            return []
        maps, data = self._saved(rundir.VAL_MAPS, self.record.threshold), self.data.threshold
        every = (np.flatnonzero(data.case_index == index) for index in range(len(data.cases)))
        return [top for at in every for top in free_maxima(maps[at], data.lesions(at), data.counted(at))]

    def _check_masks(self) -> str:
        """Check the lesion masks against the record, where the data are prepared on this machine.

        Returns:
            Why they were not checked; "" when they were.

        Raises:
            UserError: they are not those that the run was measured with.
        """
        unchecked = "The masks were not looked at, only what was counted with them:"
        try:
            cell = self.cell
            sources = {"test": cell.test, "healthy": cell.train_source}
            used = {role: sources[role] for role in ("test", cell.protocol.threshold_on)}
            places = {role: self._place(source) for role, source in used.items()}
        except (UserError, OSError) as error:
            return f"{unchecked} {error}"
        for role, place in places.items():
            if not place.exists():
                return (
                    f"{unchecked} {used[role].dataset} as it is now is not prepared in {self._cache}. If its files did not "
                    "change, prepare it with `adbench data prepare`."
                )
        stores = {role: SliceStore.open(place) for role, place in places.items()}
        threshold, test = labelled(stores[cell.protocol.threshold_on], stores["test"], cell.protocol)
        self._check_slices(threshold, test)
        for store, data in ((stores[cell.protocol.threshold_on], threshold), (stores["test"], test)):
            firsts = data.rows[np.unique(data.case_index, return_index=True)[1]]
            store.lesions[firsts]  # reading the first row of a case checks all of it
        return ""

    def _place(self, source: Source) -> Path:
        """Where the store of ``source`` is, or would be."""
        dataset: Dataset = source.open()
        return store_folder(dataset, self.cell.modality, self._cache)[1]

    def _check_slices(self, threshold: LabelledSet, test: LabelledSet) -> None:
        for role, data, part in (
            ("validation", threshold, self.record.threshold),
            ("test", test, self.record.test),
        ):
            if data.digest != part.digest:
                raise UserError(
                    f"The {role} slices or masks of {part.name} are not those of the run any more: they have the digest "
                    f"{data.digest[:16]}, its record says {part.digest[:16]}. Bring the old files back, or run it again."
                )
