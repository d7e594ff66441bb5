"""From a cell to a plan: prepare the data, hold it against the rules, derive the keys. Nothing is trained here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adbench.config import protocols, registry
from adbench.config.protocols import Protocol
from adbench.context import Progress
from adbench.datasets import selection
from adbench.datasets.base import Dataset, Split
from adbench.datasets.io.filename_patterns import person, shared_patients
from adbench.datasets.issues import warn
from adbench.datasets.slices import LabelledSet, SliceSet
from adbench.datasets.splits import nothing_to_test, nothing_to_train
from adbench.datasets.store.prepare import prepare
from adbench.datasets.store.slice_store import SliceStore
from adbench.datasets.validation import similarity
from adbench.errors import UserError
from adbench.methods.base import Resources
from adbench.params import build
from adbench.results import rundir
from adbench.results.record import Record, write
from adbench.runner import keys as specs
from adbench.runner.keys import CellSpec, Source
from adbench.utils.hashing import digest

_LABELLED: tuple[Split, Split] = ("val", "test")
_KEPT = 8  # sets of slices that stay open while cells are planned


@dataclass(frozen=True)
class Data:
    """The slices of one cell, by role; shared by every cell on the same data.

    Attributes:
        train: healthy slices to learn from.
        val: healthy slices to choose a checkpoint with; None when there are none.
        threshold: labelled validation slices of the test dataset (may be empty).
        test: labelled test slices.
    """

    train: SliceSet
    val: SliceSet | None
    threshold: LabelledSet
    test: LabelledSet
    train_store: SliceStore
    test_store: SliceStore

    def id_lists(self) -> dict[str, list[str]]:
        """Subjects by role, sorted."""
        roles = {"train": self.train, "val": self.val, "threshold": self.threshold, "test": self.test}
        return {role: sorted(data.subjects) if data is not None else [] for role, data in roles.items()}


@dataclass(frozen=True)
class Plan:
    """A cell whose data is prepared and whose keys are known."""

    spec: CellSpec
    protocol: Protocol
    data: Data
    identity: dict[str, Any]
    fit_key: str
    run_key: str
    fit_folder: Path
    run_folder: Path

    @property
    def train_source(self) -> Source:
        """Where the training slices come from."""
        return self.spec.train or self.spec.test

    @property
    def resources(self) -> Resources:
        """What the method asks for."""
        cls = registry.load("methods", self.spec.method)
        return cls.resources(build(cls.Params, f"method {self.spec.method}", self.spec.params))

    def done(self, *, save_maps: bool = False) -> bool:
        """Whether there is a complete record with every metric that was asked for (and, with ``save_maps``, the maps).

        Told without reading all of the record, unless metrics were asked for beside those that the protocol measures.
        """
        if save_maps and not (self.run_folder / rundir.MAPS).exists():
            return False
        if not rundir.recorded(self.run_folder, self.run_key):
            return False
        return set(self.spec.metrics) <= set(self.protocol.metrics) or self.record() is not None

    def record(self) -> Record | None:
        """The complete record of this cell with every metric that was asked for, as its source is now, if there is one.

        The same parameters may have been run before a search chose them: the record then learns where they come from.
        """
        record = rundir.complete(self.run_folder, self.run_key)
        if record is None or self.lacks(record):
            return None
        if self.spec.tuned_from not in (None, record.tuned_from):
            record = record.model_copy(update={"tuned_from": self.spec.tuned_from})
            write(record, self.run_folder)
        return record

    def stored(self) -> Record | None:
        """The complete record of this cell, whatever it was asked for; None where there is none, or a damaged one."""
        try:
            return rundir.complete(self.run_folder, self.run_key)
        except UserError:
            return None

    def with_metrics_of(self, record: Record | None) -> Plan:
        """This plan, with the metrics that ``record`` was asked for, where they are still there."""
        usable = {name for name, entry in registry.entries("metrics").items() if not registry.status(entry)}
        names = {*self.spec.metrics, *(usable & set(record.optional if record is not None else ()))}
        return replace(self, spec=self.spec.model_copy(update={"metrics": tuple(sorted(names))}))

    def lacks(self, record: Record) -> bool:
        """Whether ``record`` is without a metric that is asked for, or has it from another source."""
        return any(
            name not in record.optional or record.optional[name].source != specs.source_digest("metrics", name)
            for name in self.spec.metrics
        )

    def trace(self) -> None:
        """Let the record of a run that was made before a search chose its parameters know about the search."""
        if self.spec.tuned_from is not None:
            self.record()


def located(source: Source) -> Dataset:
    """The dataset of ``source`` with its root and parameters."""
    cls = registry.load("datasets", source.dataset)
    params = build(cls.Params, f"dataset {source.dataset}", source.params)
    return cls(params, Path(source.root) if source.root else None)


def open_store(source: Source, modality: str, cache: Path, progress: Progress) -> SliceStore:
    """The slice store of ``source``, prepared if need be; what is suspicious about its files is a warning."""
    dataset = located(source)
    store = prepare(dataset, modality, cache, progress)
    for finding in dataset.faults():
        if finding.severity == "warning":
            warn(finding.message)
    return store


def labelled(store: SliceStore, protocol: Protocol) -> tuple[LabelledSet, LabelledSet]:
    """The slices of ``store`` that choose the threshold and those that are scored, as ``protocol`` says."""
    threshold, scored = (
        selection.scored(
            store,
            split,
            protocol.slices,
            healthy=protocol.healthy,
            inserted=protocol.inserted,
            domain=protocol.domain,
        )
        for split in _LABELLED
    )
    return threshold, scored


def gather(
    test: Source, train: Source | None, modality: str, protocol: Protocol, cache: Path, progress: Progress
) -> Data:
    """Prepare the stores and pick the slices of every role.

    Raises:
        UserError: no healthy slice to train on, no labelled slice to test on, training and test on different grids,
            or a subject on both sides.
    """
    test_store = open_store(test, modality, cache, progress)
    train_store = open_store(train, modality, cache, progress) if train else test_store
    learn, val = train_store.healthy("train"), train_store.healthy("val")
    threshold, scored = labelled(test_store, protocol)
    learn_from, scored_from = (str(source.root or source.dataset) for source in (train or test, test))
    if not len(learn):
        raise UserError(nothing_to_train(modality, learn_from))
    if not len(scored):
        which = (
            ""
            if protocol.healthy
            else " with a lesion mask"
            if protocol.slices != "largest-lesion"
            else " with a lesion"
        )
        raise UserError(nothing_to_test(modality, scored_from, which))
    if learn.shape != scored.shape:
        raise UserError(
            f"Training slices are {learn.shape[0]}x{learn.shape[1]} and test slices {scored.shape[0]}x{scored.shape[1]} "
            "pixels: bring both to one grid with --set dataset.size=N --set train.size=N."
        )
    _check_roles(learn, val, threshold, scored)
    _check_likeness(train_store, test_store, learn, val, threshold, scored)
    return Data(learn, val if len(val) else None, threshold, scored, train_store, test_store)


def _check_roles(learn: SliceSet, val: SliceSet, threshold: SliceSet, scored: SliceSet) -> None:
    """No person has two roles, under whatever name a release knows them.

    Raises:
        UserError: somebody has, or two releases meet that share patients under names that do not tell.
    """
    teach, watch, choose, tested = ({person(s): s for s in data.subjects} for data in (learn, val, threshold, scored))
    seen = watch | teach
    if twice := _twice(teach, watch, choose, tested):
        raise UserError(
            f"{len(twice)} subjects have two roles among training, validation and test, e.g. "
            f"{' and '.join(map(repr, twice[0]))}: split by subject, or rename them if they are different people."
        )
    both = shared_patients(set(seen.values()), set(tested.values()) | set(choose.values()))
    if both:
        raise UserError(
            f"Training has subjects of {both[0]} and the test dataset of {both[1]}: they share patients under different "
            "names. Use one of the two."
        )


def _check_likeness(
    train: SliceStore, test: SliceStore, learn: SliceSet, val: SliceSet, threshold: SliceSet, scored: SliceSet
) -> None:
    """No slice is there under the names of two people, no scan has two roles, slightly changed; a likeness is a warning.

    Raises:
        UserError: one is, or has.
    """
    teach, watch = similarity.of_store(train, learn.rows), similarity.of_store(train, val.rows)
    choose, tested = similarity.of_store(test, threshold.rows), similarity.of_store(test, scored.rows)
    sides = (("training", teach), ("validation", watch), ("validation", choose), ("test", tested))
    cases = [(role, *case) for role, side in sides for case in zip(side.subjects, side.hashes, strict=True)]
    for (first, second), count in similarity.shared_slices([case[1:] for case in cases]).items():
        names = " and ".join(f"{cases[index][1]!r} ({cases[index][0]})" for index in (first, second))
        raise UserError(
            f"{names} share {count} slice{'s' * (count > 1)}, pixel by pixel: they are one person under two names. Give both "
            "one name and one role, or leave one of them out."
        )
    for one, other, roles in (
        (teach, tested, "training and test"),
        (watch, tested, "validation and test"),
        (teach, choose, "training and validation"),
        (choose, tested, "validation and test"),
    ):
        for pair in similarity.alike(one, other):
            names = f"{one.subjects[pair.one]!r} ({roles.split()[0]}) and {other.subjects[pair.other]!r} ({roles.split()[-1]})"
            if pair.certain:
                raise UserError(
                    f"{names} are one scan, hardly changed: their fingerprints correlate by {pair.correlation:.4f}, and "
                    f"copies by {similarity.CERTAIN} or more. Leave one of them out."
                )
            warn(
                f"{names} may be one person: their fingerprints correlate by {pair.correlation:.3f}. If they are, leave one out."
            )


def _twice(
    teach: dict[str, str], watch: dict[str, str], choose: dict[str, str], tested: dict[str, str]
) -> list[list[str]]:
    """Of each key with two roles, the names it has in them. To watch the training and to choose the threshold go together.

    Args:
        teach: key -> name of what trains.
        watch: of what chooses the checkpoint.
        choose: of what chooses the threshold.
        tested: of what is scored.
    """
    seen = watch | teach
    keys = seen.keys() & tested.keys() | teach.keys() & choose.keys() | choose.keys() & tested.keys()
    return [sorted({role[key] for role in (seen, choose, tested) if key in role}) for key in sorted(keys)]


def plans(cells: Iterable[CellSpec], out: Path, cache: Path, progress: Progress | None = None) -> Iterator[Plan]:
    """Plan one cell after the other; data that neighbours share is opened and hashed once, and not kept beyond them.

    Args:
        cells: from :func:`adbench.config.run_config.cells` or :func:`adbench.config.grid.cells`.
        out: folder of runs and fits.
        cache: folder of slice stores.
        progress: receives the progress of preparation.

    Raises:
        UserError: from :func:`gather`, or a method or protocol that does not exist.
    """
    shared: dict[str, Data] = {}
    for spec in cells:
        protocol = protocols.get(spec.protocol)
        which = digest([spec.test.model_dump(), spec.train and spec.train.model_dump(), spec.modality, protocol.name])
        if which not in shared:
            if len(shared) == _KEPT:
                del shared[next(iter(shared))]
            shared[which] = gather(spec.test, spec.train, spec.modality, protocol, cache, progress or Progress())
        data = shared[which]
        fit = specs.fit_identity(spec, data.train, data.val)
        identity = specs.run_identity(fit, spec, protocol, data.threshold, data.test)
        fit_key, run_key = digest(fit), digest(identity)
        folder = rundir.run_folder(
            out, protocol.name, spec.test.dataset, spec.modality, spec.method, spec.preset, spec.seed, run_key
        )
        fits = rundir.fit_folder(out, spec.method, fit_key)
        yield Plan(spec, protocol, data, identity, fit_key, run_key, fits, folder)


def plan(cells: Iterable[CellSpec], out: Path, cache: Path, progress: Progress | None = None) -> list[Plan]:
    """All of :func:`plans` at once."""
    return list(plans(cells, out, cache, progress))
