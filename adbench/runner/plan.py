"""From a cell to a plan: prepare the data, check that no subject has two roles, compute the keys. Nothing is trained here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from adbench.config import registry
from adbench.config.cell import Cell, Source
from adbench.config.protocols import Protocol
from adbench.config.shared_fit import SharedFit
from adbench.context import Progress
from adbench.datasets import selection
from adbench.datasets.base import Dataset
from adbench.datasets.io.patient_names import person
from adbench.datasets.issues import warn
from adbench.datasets.slices import LabelledSet, SliceSet
from adbench.datasets.splits import nothing_to_test, nothing_to_train
from adbench.datasets.store.prepare import prepare
from adbench.datasets.store.slice_store import SliceStore
from adbench.errors import UserError
from adbench.methods.base import Resources
from adbench.results import rundir
from adbench.results.format import several
from adbench.results.record import Record, missing_metrics, write
from adbench.runner.keys import fit_identity, key_of, run_identity
from adbench.runner.overlap import check_names, check_pixels, overlapping_ids, sets_of
from adbench.runner.shared_fits import data_parts, install

SAME_SCALE = 1.1  # sizes of a pixel whose ratio is below this are one size


@dataclass(frozen=True)
class Data:
    """The slices of one cell, by role; shared by every cell on the same data.

    Attributes:
        train: healthy slices to learn from.
        val: healthy slices to choose a checkpoint with; None when there are none.
        threshold: labelled validation slices that choose thresholds (may be empty).
        test: labelled test slices.
        threshold_store: the one of these two that ``threshold`` is of.
        fit: a shared fit, which learned from slices that are not here; ``train`` is then empty.
    """

    train: SliceSet
    val: SliceSet | None
    threshold: LabelledSet
    test: LabelledSet
    train_store: SliceStore
    test_store: SliceStore
    threshold_store: SliceStore
    fit: SharedFit | None = None

    def id_lists(self) -> dict[str, list[str]]:
        """Subjects by role, sorted."""
        roles = {"train": self.train, "val": self.val, "threshold": self.threshold, "test": self.test}
        lists = {role: sorted(data.subjects) if data is not None else [] for role, data in roles.items()}
        return lists | ({role: sorted(names) for role, names in self.fit.subjects.items()} if self.fit else {})


@dataclass(frozen=True)
class FitPlan:
    """A fit whose slices and key are known.

    Attributes:
        train: healthy slices to learn from.
        val: healthy slices to choose a checkpoint with; None when there are none.
        key: hash of what decides it.
        folder: where it is kept.
    """

    cell: Cell
    train: SliceSet
    val: SliceSet | None
    key: str
    folder: Path

    @classmethod
    def of(cls, cell: Cell, train: SliceSet, val: SliceSet | None, out: Path) -> FitPlan:
        """The fit of ``cell`` on these slices, kept below the output folder ``out``."""
        key = key_of(fit_identity(cell, train, val), cell)
        return cls(cell, train, val, key, rundir.fit_folder(out, cell.method, key))

    @property
    def trainer(self) -> FitPlan | None:
        """The fit of the method that trains for this one; None: it is trained by itself."""
        return None if (cell := self.cell.trainer) is None else self._beside(cell)

    @property
    def members(self) -> list[FitPlan]:
        """The fits that this one is made of."""
        return [self._beside(cell) for cell in self.cell.members]

    def _beside(self, cell: Cell) -> FitPlan:
        return FitPlan.of(cell, self.train, self.val, self.folder.parents[1])


@dataclass(frozen=True)
class Plan:
    """A cell whose data is prepared and whose keys are known.

    Attributes:
        identity: everything that decides its numbers, see :mod:`adbench.runner.keys`.
        fit_key: hash of the part of it that decides the fit.
        run_key: hash of all of it.
        fit_folder: where the fit is kept.
        run_folder: where the record is kept.
    """

    cell: Cell
    data: Data
    identity: dict[str, Any]
    fit_key: str
    run_key: str
    fit_folder: Path
    run_folder: Path

    @property
    def resources(self) -> Resources:
        """The resources that the method asks for."""
        asked: Resources = self.cell.method_class.resources(self.cell.params)
        return asked

    @property
    def fit_plan(self) -> FitPlan:
        """Its fit alone."""
        return FitPlan(self.cell, self.data.train, self.data.val, self.fit_key, self.fit_folder)

    def done(self, *, save_maps: bool = False) -> bool:
        """Whether there is a complete record with every metric that was asked for (and, with ``save_maps``, the maps).

        Only the two ends of the record are read, unless metrics were asked for beside those that the protocol measures.
        """
        if save_maps and not (self.run_folder / rundir.MAPS).exists():
            return False
        if not rundir.recorded(self.run_folder, self.run_key):
            return False
        return set(self.cell.metrics) <= set(self.cell.protocol.metrics) or self.record() is not None

    def record(self) -> Record | None:
        """The complete record of this cell with every metric that was asked for, as its source is now, if there is one.

        The same parameters may have been run before a search chose them: the record then learns where they come from.
        """
        record = rundir.complete(self.run_folder, self.run_key)
        if record is None or missing_metrics(record, self.cell.metrics):
            return None
        if self.cell.origin not in (None, record.tuned_from):
            record = record.model_copy(update={"tuned_from": self.cell.origin})
            write(record, self.run_folder)
        return record

    def stored(self) -> Record | None:
        """The complete record of this cell, whatever metrics it has; None where there is none, or a damaged one."""
        try:
            return rundir.complete(self.run_folder, self.run_key)
        except UserError:
            return None

    def with_metrics_of(self, record: Record | None) -> Plan:
        """This plan, with the additional metrics of ``record`` too, where they are still installed."""
        usable = {name for name, entry in registry.entries("metrics").items() if not registry.status(entry)}
        names = {*self.cell.metrics, *(usable & set(record.optional if record is not None else ()))}
        return replace(self, cell=replace(self.cell, metrics=tuple(sorted(names))))


def open_store(source: Source, modality: str, cache: Path, progress: Progress) -> SliceStore:
    """The slice store of ``source``, prepared if need be; doubtful files are warned of."""
    dataset: Dataset = source.open()
    store = prepare(dataset, modality, cache, progress)
    for finding in (*dataset.faults(), *dataset.scales(modality)):
        if finding.severity == "warning":
            warn(finding.message)
    return store


def labelled(train: SliceStore, test: SliceStore, protocol: Protocol) -> tuple[LabelledSet, LabelledSet]:
    """The slices that choose the threshold and those that are scored, as ``protocol`` says.

    Raises:
        UserError: healthy subjects of the training source are to choose it, and its validation split has none.
    """
    rules: dict[str, Any] = {
        "healthy": protocol.healthy,
        "inserted": protocol.inserted,
        "domain": protocol.domain,
    }
    scored = selection.scored(test, "test", protocol.slices, **rules)
    if protocol.threshold_on == "test":
        return selection.scored(test, "val", protocol.slices, **rules), scored
    threshold = selection.of_healthy(train, "val", protocol.slices, protocol.domain)
    if not len(threshold):
        raise UserError(
            f"The protocol {protocol.name} sets its thresholds on healthy validation subjects of the training source, and "
            f"none of {train.manifest['dataset']} {train.modality} is without lesion: train on a healthy set (--train-on), or "
            "choose another protocol."
        )
    return threshold, scored


def gather(
    test: Source,
    train: Source | None,
    modality: str,
    protocol: Protocol,
    cache: Path,
    progress: Progress,
    fit: SharedFit | None = None,
) -> Data:
    """Prepare the stores and pick the slices of every role.

    Raises:
        UserError: no healthy slice to train on, no labelled slice to test on, training and test on different grids,
            slices whose pixels differ in size by more than 10 %, or a subject on both sides.
    """
    test_store = open_store(test, modality, cache, progress)
    train_store = open_store(train, modality, cache, progress) if train else test_store
    learned, val = (selection.learned(train_store, split, protocol.learns) for split in ("train", "val"))
    if fit is not None:
        learned = val = SliceSet(test_store, np.empty(0, np.int64))
    learned_from, scored_from = (str(source.root or source.dataset) for source in (train or test, test))
    if not len(learned) and fit is None:
        raise UserError(nothing_to_train(modality, learned_from))
    threshold, scored = labelled(train_store, test_store, protocol)
    threshold_store = test_store if protocol.threshold_on == "test" else train_store
    if not len(scored):
        lesion = " with a lesion" if protocol.slices == "largest-lesion" else " with a lesion mask"
        raise UserError(nothing_to_test(modality, scored_from, "" if protocol.healthy else lesion))
    if learned.shape != scored.shape:
        raise UserError(
            f"Training slices are {learned.shape[0]}x{learned.shape[1]} and test slices {scored.shape[0]}x{scored.shape[1]} "
            "pixels: bring both to one grid with --set dataset.size=N --set train.size=N."
        )
    _check_scale(train_store, test_store, train or test, test, (learned, val), (threshold, scored))
    if fit is not None:
        _check_fit(fit, threshold, scored)
    own, other = sets_of(train or test, test, train_store, test_store)
    sets = (own, own, own if threshold_store is train_store else other, other)
    check_names(learned, val, threshold, scored, sets)
    check_pixels((train_store, threshold_store, test_store), learned, val, threshold, scored, sets)
    return Data(learned, val if len(val) else None, threshold, scored, train_store, test_store, threshold_store, fit)


def _check_scale(
    train_store: SliceStore,
    test_store: SliceStore,
    train: Source,
    test: Source,
    learned: Sequence[SliceSet],
    scored: Sequence[SliceSet],
) -> None:
    """Refuse cases whose pixels differ in size: a lesion, a gyrus and a blur of so many pixels would be others.

    Raises:
        UserError: names the two cases that differ most, and their mm a pixel.
    """
    sizes = [
        (mm, f"{case} ({source.title})", "dataset" if source is test else "train", "mm" in source.params.json_values)
        for store, source, sets in ((train_store, train, learned), (test_store, test, scored))
        for data in sets
        for case, mm in store.pixel_sizes(data.rows).items()
        if mm is not None
    ]
    for axis in range(2 if sizes else 0):
        (small, one, *_), (large, other, *_) = (
            choose(sizes, key=lambda found: found[0][axis]) for choose in (min, max)
        )
        if large[axis] > SAME_SCALE * small[axis]:
            settable = sorted({scope for _, _, scope, can in sizes if can})
            # The largest pixel makes the widest square: no head that fits now is cut.
            fixed = [found[axis] for found, _, _, can in sizes if not can]
            mm = math.ceil(100 * round(max(fixed or [large[axis]]), 4)) / 100
            flags = " ".join(f"--set {scope}.mm={mm:g}" for scope in settable)
            raise UserError(
                f"A pixel of {one} is {small[0]:.3g} x {small[1]:.3g} mm and one of {other} {large[0]:.3g} x {large[1]:.3g} mm: "
                f"they differ by more than {100 * (SAME_SCALE - 1):.0f} %. Prepare volumes with pixels of one size: {flags}, "
                f"in place of any field_of_view; the square is then {mm * scored[0].shape[-1]:g} mm wide."
            )


def _check_fit(fit: SharedFit, threshold: LabelledSet, scored: LabelledSet) -> None:
    """Refuse slices of another grid than a shared fit learned from, and subjects that it learned from, by their names."""
    learned, _ = data_parts(fit)
    if tuple(learned.grid) != scored.shape:
        raise UserError(
            f"The fit in {fit.folder} learned from slices of {learned.grid[0]}x{learned.grid[1]} pixels, and test slices have "
            f"{scored.shape[0]}x{scored.shape[1]}: bring them to its grid with --set dataset.size={learned.grid[0]}."
        )
    train, val = ({person(name): name for name in fit.subjects.get(role, [])} for role in ("train", "val"))
    threshold_subjects, test_subjects = ({person(name): name for name in data.subjects} for data in (threshold, scored))
    if overlaps := overlapping_ids(train, val, threshold_subjects, test_subjects):
        one = person(overlaps[0][0])
        roles = {
            f"a training subject of the fit in {fit.folder}": train,
            f"a validation subject of the fit in {fit.folder}": val,
            "a validation subject here, which chooses the threshold": threshold_subjects,
            "a test subject here": test_subjects,
        }
        said = [f"{names[one]!r} is {role}" for role, names in roles.items() if one in names]
        count = f"{several(len(overlaps), 'subject')} {'has' if len(overlaps) == 1 else 'have'} two roles"
        raise UserError(
            f"{count}: {', and '.join(said)}. Leave what the fit has seen out with --set dataset.exclude=[ID], or rename "
            "subjects that are different people."
        )


def plan(cells: Iterable[Cell], out: Path, cache: Path, progress: Progress | None = None) -> list[Plan]:
    """Plan every cell, with runs and fits below ``out`` and slice stores in ``cache``; shared data are opened and hashed once.

    Raises:
        UserError: from :func:`gather`.
    """
    shared: dict[tuple[Any, ...], Data] = {}
    plans = []
    for cell in cells:
        if cell.data_key not in shared:
            shared[cell.data_key] = gather(
                cell.test, cell.train, cell.modality, cell.protocol, cache, progress or Progress(), cell.fit
            )
        data = shared[cell.data_key]
        if cell.fit is not None:
            cell = replace(cell, fit=install(cell.fit, out))
        fit = cell.fit.identity if cell.fit else fit_identity(cell, data.train, data.val)
        identity = run_identity(fit, cell, data.threshold, data.test)
        fit_key, run_key = key_of(fit, cell), key_of(identity, cell)
        if cell.fit is not None and {**fit["params"], **cell.params.scoring_values} != cell.params.json_values:
            raise UserError(
                f"The parameters in the identity of the fit in {cell.fit.folder} are not those of {cell.method}."
            )
        names = cell.protocol.name, cell.test.title, cell.modality, cell.method, cell.preset, cell.seed
        fold = "" if cell.fold is None else f"{cell.fold}of{cell.test.params.json_values['folds']}"
        folder = rundir.run_folder(out, *names, run_key, fold)
        fits = rundir.fit_folder(out, cell.method, fit_key)
        plans.append(Plan(cell, data, identity, fit_key, run_key, fits, folder))
    return plans
