"""Writing slice stores: many cases at a time, in a fixed order, interruptible at any moment.

While a store grows it lies in ``partial/`` below the cache: the three arrays, a journal with one line for every case that
is in them, and parts, cases that were finished before their turn. A killed preparation goes on from there; the finished
folder is renamed into ``stores/``, so a store is whole or absent. Cases that did not change since an older store of the
same recipe are copied from it.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import numpy as np

from adbench.config import registry
from adbench.config.source import source_digest
from adbench.context import Progress
from adbench.datasets.adapters.folder import Folder
from adbench.datasets.base import Case, Dataset
from adbench.datasets.io.archive import digest_of, state_of
from adbench.datasets.store import workers as work
from adbench.datasets.store.pixels import ARRAYS, checksum
from adbench.datasets.store.resource_check import Room
from adbench.datasets.store.reuse import JOURNAL, PLAN, Donor, Journal, entries
from adbench.datasets.store.slice_store import MANIFEST, STORE_VERSION, SliceStore, _Writer
from adbench.datasets.store.workers import Executor, Prepared, Task
from adbench.datasets.validation import outliers, similarity
from adbench.errors import UserError
from adbench.utils.files import write_json
from adbench.utils.hashing import digest

STORES, PARTIAL, PRODUCTS = "stores", "partial", "products"
STALE = 30 * 86400  # s after which an interrupted preparation that nobody took up again is removed
PARTS, FAILURES = "parts", "failures.json"


def prepare_all(
    dataset: Dataset,
    modalities: Sequence[str],
    cache: Path,
    progress: Progress | None = None,
    *,
    workers: int | None = None,
    executor: Executor = "processes",
) -> dict[str, SliceStore]:
    """The stores of several modalities; each case is visited once for all of them.

    Args:
        dataset: with its root and parameters.
        modalities: sequences.
        cache: folder of all stores.
        progress: receives progress.
        workers: as in :func:`adbench.datasets.store.slice_store.prepare`.
        executor: "processes" of this machine, or "ray" (every node must see data and cache).

    Raises:
        UserError: as in :func:`adbench.datasets.store.slice_store.prepare`.
    """
    progress, cache = progress or Progress(), Path(cache)
    if cache.exists() and not cache.is_dir():
        raise UserError(f"The cache {cache} is a file, expected a folder: give another with --cache.")
    (cache / STORES).mkdir(parents=True, exist_ok=True)
    dataset.products = cache / PRODUCTS
    stores: dict[str, SliceStore] = {}
    builds: list[Building] = []
    with ExitStack() as held:
        for modality in sorted(set(modalities)):  # in one order, so that two processes never wait for each other
            cases, folder = store_folder(dataset, modality, cache)
            name = folder.name
            if not folder.exists():
                held.enter_context(_lock(folder, cache / PARTIAL / f"{name}.lock", progress))
            if folder.exists():  # perhaps another process was faster
                stores[modality] = SliceStore.open(folder)
                continue
            build = Building(dataset, modality, cases, folder, cache / PARTIAL / name)
            builds.append(held.enter_context(build))
        if builds:
            _sweep(cache)
            _build(dataset, builds, cache, progress, workers, executor)
            stores |= {build.modality: build.finish() for build in builds}
    return {modality: stores[modality] for modality in modalities}


def store_folder(dataset: Dataset, modality: str, cache: Path) -> tuple[list[Case], Path]:
    """The cases of a store in its order (those of one subject stand together), and where it lies below ``cache``."""
    cases = sorted(dataset.discover(modality), key=_order)
    key = digest([STORE_VERSION, recipe(dataset), modality, _source_state(cases)])
    return cases, Path(cache) / STORES / f"{dataset.info.name}-{modality.lower()}-{key[:16]}"


def _build(
    dataset: Dataset, builds: list[Building], cache: Path, progress: Progress, workers: int | None, executor: Executor
) -> None:
    """Prepare every case that is missing.

    Raises:
        UserError: some cases failed; all others were tried first and are kept.
    """
    for build in builds:
        build.take_what_is_there()
    by_modality = {build.modality: build for build in builds}
    for _ in range(2):  # a second time only when a part or an older store turned out to be damaged
        tasks = _tasks(builds)
        room = Room(dataset, cache, sum(len(task.wanted) for task in tasks))
        room.check()
        count = room.workers(workers, len(tasks))
        if count == 1:
            answers = work.serial(dataset, tasks)
        elif executor == "ray":
            answers = work.on_ray(dataset, tasks, count)
        else:
            answers = work.processes(dataset, tasks, count)
        name = f"prepare {dataset.info.name} {', '.join(by_modality)}"
        total = len({case.id for build in builds for case in build.cases})
        taken, before = 0, sum(build.bytes for build in builds)
        for done, answer in enumerate(answers, 1 + total - len(tasks)):
            for prepared in answer:
                by_modality[prepared.modality].take(prepared)
            taken += len(answer)
            room.check(sum(build.bytes for build in builds) - before, taken)
            failed = sum(len(build.failures) for build in builds)
            progress.update(name, done, total, **({"failed": failed} if failed else {}))
        _raise_failures(dataset, builds)


def _tasks(builds: list[Building]) -> list[Task]:
    """One task for every case that a store lacks, in the order of the stores."""
    grouped: dict[tuple[str, str, str], list[tuple[str, Case, Path]]] = defaultdict(list)
    for build in builds:
        for case in build.missing():
            grouped[_order(case)].append((build.modality, case, build.parts))
    return [Task(tuple(grouped[key])) for key in sorted(grouped)]


def _order(case: Case) -> tuple[str, str, str]:
    return case.split, case.subject, case.session


def _raise_failures(dataset: Dataset, builds: list[Building]) -> None:
    failures = [failure for build in builds for failure in build.failures]
    if not failures:
        return
    for build in builds:
        if build.failures:
            write_json(build.partial / FAILURES, [{"case": f.case, "problem": f.problem, "trace": f.trace} for f in build.failures])  # fmt: skip
    cases = list(dict.fromkeys(failure.case for failure in failures))
    total = len({case.id for build in builds for case in build.cases})
    shown = " ".join(dict.fromkeys(failure.problem for failure in failures[:3]))
    more = f" (and {len(failures) - 3} more)" if len(failures) > 3 else ""
    way_out = "correct or remove their files and run again"
    if "exclude" in type(dataset.params).model_fields and not isinstance(dataset, Folder):  # which has it for volumes
        way_out = f"mend these and run again, or leave them out with --set dataset.exclude=[{','.join(cases[:20])}{',...' if len(cases) > 20 else ''}]"
    raise UserError(
        f"{len(cases)} of {total} cases of {dataset.info.name} could not be prepared: {shown}{more} The other "
        f"{total - len(cases)} are kept; {way_out}. Tracebacks: {builds[0].partial / FAILURES}."
    )


class Building:
    """One store while it grows. A context: leaving it closes the files and keeps what is finished."""

    def __init__(self, dataset: Dataset, modality: str, cases: list[Case], folder: Path, partial: Path) -> None:
        self.dataset, self.modality, self.cases = dataset, modality, cases
        self.folder, self.partial = folder, partial
        self.parts = partial / PARTS
        self.recipe = recipe(dataset)
        self.failures: list[Prepared] = []
        self._done: list[dict[str, Any]] = []  # entries of the journal, in the order of the cases
        self._waiting: set[str] = set()  # cases with a part
        self._prints: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # case id -> fingerprint and slice hashes
        self._shape: tuple[int, ...] | None = None
        self._rows = 0

    def __enter__(self) -> Self:
        self.parts.mkdir(parents=True, exist_ok=True)
        write_json(self.partial / PLAN, {"store_version": STORE_VERSION, "recipe": self.recipe})
        self._journal = Journal(self.partial)
        self._writers = {name: _Writer(self.partial / f"{name}.npy", dtype) for name, dtype in ARRAYS.items()}
        return self

    def __exit__(self, *_: object) -> None:
        self._journal.close()
        for writer in self._writers.values():
            with suppress(OSError):  # a full disk: the first error is the one to report
                writer.file.close()

    @property
    def bytes(self) -> int:
        """Written so far."""
        return 0 if self._shape is None else self._rows * int(np.prod(self._shape)) * 4

    # -- what an earlier attempt or an older store left -------------------------------------------------------------

    def take_what_is_there(self) -> None:
        """Take up an interrupted attempt, then copy unchanged cases from older stores of the same recipe."""
        found = entries(self.partial)
        mine = Donor(self.partial, found)
        for entry, case in zip(found, self.cases, strict=False):
            # A power failure may lose bytes that the journal speaks of; a kill cannot.
            if entry["case"] != case.id or (entry["record"] and mine.blocks(entry["record"]) is None):
                break
            self._done.append(entry)
        self._journal.begin(self._done)
        records = [entry["record"] for entry in self._done if entry["record"]]
        if records:
            self._shape = tuple(records[0]["shape"])
            self._rows = sum(len(record["slices"]) for record in records)
            for writer in self._writers.values():
                writer.resume(self._rows, self._shape)
        self._waiting = {case.id for case in self.cases if work.has_part(self.parts, case.id)}
        self._donors = Donor.older(self.folder, self.partial, self.recipe)
        self._given = {case.id: given for case in self.cases if (given := self._donated(case)) is not None}
        self._drain()

    def _donated(self, case: Case) -> tuple[Donor, dict[str, Any]] | None:
        for donor in self._donors:
            entry = donor.entries.get(case.id)
            if entry is not None and unchanged(case, entry["sources"]):
                return donor, entry
        return None

    def missing(self) -> list[Case]:
        """Cases that must be prepared."""
        there = {entry["case"] for entry in self._done} | self._waiting | self._given.keys()
        return [case for case in self.cases if case.id not in there]

    # -- growing ----------------------------------------------------------------------------------------------------

    def take(self, prepared: Prepared) -> None:
        """Enter a prepared case: into the arrays when it is its turn, else into a part."""
        if prepared.problem:
            self.failures.append(prepared)
            return
        if prepared.blocks is None and prepared.record is not None:
            self._waiting.add(prepared.case)  # a worker left the part
        elif len(self._done) < len(self.cases) and self.cases[len(self._done)].id == prepared.case:
            self._append(prepared)
        else:
            work.write_part(self.parts, prepared)
            self._waiting.add(prepared.case)
        self._drain()

    def _drain(self) -> None:
        """Append every case whose turn has come."""
        while len(self._done) < len(self.cases):
            case = self.cases[len(self._done)]
            if case.id in self._waiting:
                self._waiting.discard(case.id)
                prepared = work.read_part(self.parts, self.modality, case.id)
                if prepared is not None:
                    self._append(prepared)
                work.remove_part(self.parts, case.id)
            elif case.id in self._given:
                donor, entry = self._given.pop(case.id)
                blocks = donor.blocks(entry["record"]) if entry["record"] else None
                if entry["record"] and blocks is None:
                    return  # damaged there: it is missing now, and will be prepared
                self._append(
                    Prepared(self.modality, case.id, entry["record"], entry["remarks"], work.sources(case), blocks)
                )
            else:
                return

    def _append(self, prepared: Prepared) -> None:
        entry = prepared.entry()
        if prepared.record is not None and prepared.blocks is not None:
            shape = prepared.blocks["images"].shape[1:]
            if self._shape is not None and shape != self._shape:
                case = self.cases[len(self._done)]
                raise UserError(
                    f"case {case.id} ({case.files[0] if case.files else 'generated'}): slices of shape {shape}, those of the "
                    f"cases before are {self._shape}. A dataset must give one size."
                )
            self._shape = shape
            checksums = {name: checksum(block) for name, block in prepared.blocks.items()}
            place = {"start": self._rows, "shape": list(shape)}
            entry["record"] = {**prepared.record, **place, "checksums": checksums}
            for name, writer in self._writers.items():
                writer.append(prepared.blocks[name])
            for writer in self._writers.values():
                writer.file.flush()
            self._prints[prepared.case] = similarity.of_blocks(prepared.blocks, prepared.record)
            self._rows += len(prepared.record["slices"])
        self._journal.append(entry)
        self._done.append(entry)

    # -- the end ----------------------------------------------------------------------------------------------------

    def finish(self) -> SliceStore:
        """Close the arrays, write the manifest, move the folder to its place."""
        remarks = [f"{entry['case']}: {remark}" for entry in self._done for remark in entry["remarks"]]
        if self._shape is None:
            raise UserError(
                f"No usable slice of {self.modality} in {self.dataset.root or self.dataset.info.name}: {'; '.join(remarks[:5])}."
            )
        for writer in self._writers.values():
            writer.close()
        files = {f"{name}.npy": {"bytes": (self.partial / f"{name}.npy").stat().st_size} for name in ARRAYS}
        stored = [_stored(case, entry["record"]) for case, entry in zip(self.cases, self._done, strict=True) if entry["record"]]  # fmt: skip
        write_json(
            self.partial / MANIFEST,
            {
                "store_version": STORE_VERSION,
                "dataset": self.dataset.info.name,
                "licence": self.dataset.info.licence,
                "modality": self.modality,
                "recipe": self.recipe,
                "shape": list(self._shape),
                "rows": self._rows,
                "cases": stored,
                "cases_digest": digest(stored),
                "outliers": outliers.outliers(stored),
                "sources": [{"case": entry["case"], **source} for entry in self._done for source in entry["sources"]],
                "remarks": [*self.dataset.exclusions(self.modality), *remarks],
                "files": files,
            },
        )
        self._journal.close()
        for extra in (JOURNAL, PLAN, FAILURES):
            (self.partial / extra).unlink(missing_ok=True)
        shutil.rmtree(self.parts, ignore_errors=True)
        os.rename(self.partial, self.folder)
        for donor in self._donors:
            donor.discard()
        store = SliceStore.open(self.folder)
        if all(case.id in self._prints for case in store.cases):  # else, after an interruption, a plan makes them
            similarity.write(store, [self._prints[case.id] for case in store.cases])
        return store


def _stored(case: Case, record: dict[str, Any]) -> dict[str, Any]:
    """A case as the manifest has it: who it is by the dataset as it is today, pixels as they were prepared."""
    who = {"subject": case.subject, "session": case.session, "split": case.split, "site": case.site}
    return {**who, "flags": list(case.flags), **{key: value for key, value in record.items() if key != "shape"}}


def recipe(dataset: Dataset) -> dict[str, Any]:
    """What shapes the pixels. A plug-in's source belongs to it; the built-in steps have versions of their own."""
    name = dataset.info.name
    entry = registry.entries("datasets").get(name)
    if (
        entry is None
        or entry.problem
        or entry.origin == "built-in"
        or registry.load("datasets", name) is not type(dataset)
    ):
        return dataset.recipe()
    return {**dataset.recipe(), "source": source_digest("datasets", name)}


def _source_state(cases: Iterable[Case]) -> str:
    """Hash of every source file's path and state: cheap to take, and different when a source was touched."""
    seen: list[list[Any]] = []
    for case in cases:
        for file in case.files:
            seen.append([str(file), state_of(file)])
        seen.append([case.id, case.split])
    return digest(seen)


def unchanged(case: Case, known: list[dict[str, Any]]) -> bool:
    """Whether the files of ``case`` hold the bytes that ``known`` describes; reads them only where their state differs."""
    if len(case.files) != len(known):
        return False
    for file, source in zip(case.files, known, strict=True):
        state = {"file": str(file), **state_of(file)}
        if state["bytes"] != source["bytes"]:
            return False
        if any(source.get(name) != value for name, value in state.items()) and digest_of(file) != source["sha256"]:
            return False
    return True


@contextmanager
def _lock(folder: Path, path: Path, progress: Progress) -> Iterator[None]:
    """Only one process (and thread) writes one store; the others wait and then find it done."""
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0.5)
    except Timeout:
        progress.update("waiting for another process that prepares the same data", 0, 1)
        lock.acquire()
        progress.update("waiting for another process that prepares the same data", 1, 1)
    try:
        yield
    finally:
        if folder.exists():  # whoever waits finds the store; after a failure somebody may wait to try again
            path.unlink(missing_ok=True)
        lock.release()


def _sweep(cache: Path) -> None:
    """Remove interrupted preparations that nobody took up for a month."""
    for folder in (cache / PARTIAL).iterdir():
        with suppress(OSError):  # another process sweeps too
            newest = max(item.stat().st_mtime for item in (folder, *(folder.iterdir() if folder.is_dir() else ())))
            if newest < time.time() - STALE:
                if folder.is_dir():
                    shutil.rmtree(folder, ignore_errors=True)
                else:
                    folder.unlink()
