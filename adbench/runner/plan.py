"""From a cell to a plan: prepare the data, check that no subject has two roles, compute the keys. Nothing is trained here."""

from __future__ import annotations

from collections.abc import Iterable
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
from adbench.datasets.io.filename_patterns import person
from adbench.datasets.issues import warn
from adbench.datasets.slices import LabelledSet, SliceSet
from adbench.datasets.splits import nothing_to_test, nothing_to_train
from adbench.datasets.store.prepare import prepare
from adbench.datasets.store.slice_store import SliceStore
from adbench.errors import UserError
from adbench.methods.base import Resources
from adbench.results import rundir
from adbench.results.record import Record, missing_metrics, write
from adbench.runner.keys import fit_identity, key_of, run_identity
from adbench.runner.overlap import check_names, check_pixels, overlapping_ids
from adbench.runner.shared_fits import data_parts, install


@dataclass(frozen=True)
class Data:
    """The slices of one cell, by role; shared by every cell on the same data.

    Attributes:
        train: healthy slices to learn from.
        val: healthy slices to choose a checkpoint with; None when there are none.
        threshold: labelled validation slices of the test dataset (may be empty).
        test: labelled test slices.
        fit: somebody's fit, which learned from slices that are not here; ``train`` is then empty.
    """

    train: SliceSet
    val: SliceSet | None
    threshold: LabelledSet
    test: LabelledSet
    train_store: SliceStore
    test_store: SliceStore
    fit: SharedFit | None = None

    def id_lists(self) -> dict[str, list[str]]:
        """Subjects by role, sorted."""
        roles = {"train": self.train, "val": self.val, "threshold": self.threshold, "test": self.test}
        lists = {role: sorted(data.subjects) if data is not None else [] for role, data in roles.items()}
        return lists | ({role: sorted(names) for role, names in self.fit.subjects.items()} if self.fit else {})


@dataclass(frozen=True)
class Plan:
    """A cell whose data is prepared and whose keys are known.

    Attributes:
        cell: what is run.
        data: its slices.
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
        """What the method asks for."""
        asked: Resources = self.cell.method_class.resources(self.cell.params)
        return asked

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
        if self.cell.tuned_from not in (None, record.tuned_from):
            record = record.model_copy(update={"tuned_from": self.cell.tuned_from})
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

    def trace(self) -> None:
        """Tell the record of a run that was made before a search chose its parameters about the search."""
        if self.cell.tuned_from is not None:
            self.record()


def open_store(source: Source, modality: str, cache: Path, progress: Progress) -> SliceStore:
    """The slice store of ``source``, prepared if need be; doubtful files are warned of."""
    dataset: Dataset = source.open()
    store = prepare(dataset, modality, cache, progress)
    for finding in dataset.faults():
        if finding.severity == "warning":
            warn(finding.message)
    return store


def labelled(store: SliceStore, protocol: Protocol) -> tuple[LabelledSet, LabelledSet]:
    """The slices of ``store`` that choose the threshold and those that are scored, as ``protocol`` says."""
    rules: dict[str, Any] = {
        "healthy": protocol.healthy,
        "inserted": protocol.inserted,
        "domain": protocol.domain,
    }
    threshold = selection.scored(store, "val", protocol.slices, **rules)
    return threshold, selection.scored(store, "test", protocol.slices, **rules)


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
            or a subject on both sides.
    """
    test_store = open_store(test, modality, cache, progress)
    train_store = open_store(train, modality, cache, progress) if train else test_store
    learned, val = train_store.healthy("train"), train_store.healthy("val")
    if fit is not None:
        learned = val = SliceSet(test_store, np.empty(0, np.int64))
    threshold, scored = labelled(test_store, protocol)
    learned_from, scored_from = (str(source.root or source.dataset) for source in (train or test, test))
    if not len(learned) and fit is None:
        raise UserError(nothing_to_train(modality, learned_from))
    if not len(scored):
        lesion = " with a lesion" if protocol.slices == "largest-lesion" else " with a lesion mask"
        raise UserError(nothing_to_test(modality, scored_from, "" if protocol.healthy else lesion))
    if learned.shape != scored.shape:
        raise UserError(
            f"Training slices are {learned.shape[0]}x{learned.shape[1]} and test slices {scored.shape[0]}x{scored.shape[1]} "
            "pixels: bring both to one grid with --set dataset.size=N --set train.size=N."
        )
    if fit is not None:
        _check_fit(fit, threshold, scored)
    check_names(learned, val, threshold, scored)
    check_pixels(train_store, test_store, learned, val, threshold, scored)
    return Data(learned, val if len(val) else None, threshold, scored, train_store, test_store, fit)


def _check_fit(fit: SharedFit, threshold: LabelledSet, scored: LabelledSet) -> None:
    """Refuse slices of another grid than a shared fit learned from, and subjects that it learned from, by their names."""
    learned, _ = data_parts(fit)
    if tuple(learned.grid) != scored.shape:
        raise UserError(
            f"The fit in {fit.folder} learned from slices of {learned.grid[0]}x{learned.grid[1]} pixels, and test slices have "
            f"{scored.shape[0]}x{scored.shape[1]}: bring them to its grid with --set dataset.size={learned.grid[0]}."
        )
    train, val = ({person(name): name for name in fit.subjects.get(role, [])} for role in ("train", "val"))
    choosing, tested = ({person(name): name for name in data.subjects} for data in (threshold, scored))
    if overlaps := overlapping_ids(train, val, choosing, tested):
        raise UserError(
            f"{len(overlaps)} subjects have two roles: the fit in {fit.folder} learned from {' or '.join(map(repr, overlaps[0]))}, "
            "which this dataset tests or chooses the threshold with. Leave them out with --set dataset.exclude=[ID], or rename "
            "them if they are different people."
        )


def plan(cells: Iterable[Cell], out: Path, cache: Path, progress: Progress | None = None) -> list[Plan]:
    """Plan every cell; data that cells share are opened and hashed once.

    Args:
        cells: from :func:`adbench.config.run_config.cells` or :func:`adbench.config.grid.cells`.
        out: folder of runs and fits.
        cache: folder of slice stores.
        progress: receives the progress of preparation.

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
        if cell.fit is not None and fit_key != cell.fit.fit_key:
            raise UserError(
                f"The parameters in the identity of the fit in {cell.fit.folder} are not those of {cell.method}."
            )
        folder = rundir.run_folder(
            out, cell.protocol.name, cell.test.title, cell.modality, cell.method, cell.preset, cell.seed, run_key
        )
        fits = rundir.fit_folder(out, cell.method, fit_key)
        plans.append(Plan(cell, data, identity, fit_key, run_key, fits, folder))
    return plans
