"""Prepare slice stores: many cases in parallel, interruptible at any time, always with the same bytes.

Every case goes into a file of its own (:mod:`adbench.datasets.store.case_file`); when all are there, the manifest is
written, last. What is interrupted goes on with the cases that have no file yet, and another split, another exclusion or a
changed source costs only the cases that are new.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from adbench.config import registry
from adbench.config.source import source_digest
from adbench.context import Progress
from adbench.datasets.adapters.lesion_masks import not_there
from adbench.datasets.base import Case, Dataset
from adbench.datasets.io.archive import state_of
from adbench.datasets.issues import warn
from adbench.datasets.preprocessing.recipe import MAX_SQUARE, MIN_SQUARE, WIDE, RecipeParams
from adbench.datasets.store import outliers
from adbench.datasets.store.case_file import SUFFIX, Prepared, Task, start_of_name
from adbench.datasets.store.slice_store import (
    CASES,
    MANIFEST,
    NO_SLICE,
    STORE_VERSION,
    STORES,
    IncompleteStore,
    SliceStore,
)
from adbench.datasets.store.workers import Executor, check_disk, prepare_cases
from adbench.errors import UserError
from adbench.utils.files import write_json
from adbench.utils.hashing import digest
from adbench.utils.locks import LOCK, acquire, is_locked

PRODUCTS = "products"  # folder below the cache, see Dataset.products
FAILURES = "failures.json"
EXTENT = "extent.json"  # beside a manifest: how wide the widest brain is
STALE = 30 * 86400  # s after which a case file that no store lists is removed


class CasesFailed(UserError):
    """Some cases could not be prepared; the others are kept.

    Attributes:
        why: case id -> the sentence.
        others: how many could be.
    """

    def __init__(self, text: str, why: dict[str, str], others: int) -> None:
        super().__init__(text)
        self.why, self.others = why, others


def prepare(
    dataset: Dataset, modality: str, cache: Path, progress: Progress | None = None, *, workers: int | None = None
) -> SliceStore:
    """The store of ``dataset`` and one ``modality``, see :func:`prepare_all`."""
    return prepare_all(dataset, (modality,), cache, progress, workers=workers)[modality]


def prepare_all(
    dataset: Dataset,
    modalities: Sequence[str],
    cache: Path,
    progress: Progress | None = None,
    *,
    workers: int | None = None,
    executor: Executor = "processes",
) -> dict[str, SliceStore]:
    """The stores of several modalities, prepared first unless they are there; each case is visited once for all of them.

    A store is found by recipe and by the paths, sizes and times of its sources. Touched sources give a new store, which
    shares the files of the cases whose bytes did not change. What was interrupted goes on where it stopped.

    Args:
        dataset: with its root and parameters.
        modalities: sequences.
        cache: folder of all stores.
        progress: receives progress.
        workers: cases at a time; None: as many as the machine has cores and memory for, one where starting processes
            would take longer than the cases.
        executor: "processes" of this machine, or "ray" (every node must see data and cache).

    Raises:
        CasesFailed: some cannot be prepared.
        UserError: from the dataset (nothing there, unreadable file, ...), no room on the disk, or a damaged store.
    """
    progress, cache = progress or Progress(), Path(cache)
    if cache.exists() and not cache.is_dir():
        raise UserError(f"The cache {cache} is a file, expected a folder: give another with --cache.")
    try:
        return _prepare_all(dataset, modalities, cache, progress, workers, executor)
    except FileNotFoundError as error:
        if error.filename is None or not Path(error.filename).is_relative_to(cache):
            raise
        raise UserError(f"{error.filename} was removed during the preparation: run the command again.") from None


def _prepare_all(
    dataset: Dataset,
    modalities: Sequence[str],
    cache: Path,
    progress: Progress,
    workers: int | None,
    executor: Executor,
) -> dict[str, SliceStore]:
    (cache / STORES).mkdir(parents=True, exist_ok=True)
    dataset.products = cache / PRODUCTS
    if (wide := _wide(dataset)) is not None:
        for made in _prepare_all(wide, wide.available(), cache, progress, workers, executor).values():
            if not (made.folder / EXTENT).exists():
                write_json(made.folder / EXTENT, {"mm": _extent(made)})
    stores: dict[str, SliceStore] = {}
    missing: list[_Build] = []
    with ExitStack() as locks:
        for modality in sorted(set(modalities)):  # in one order, so that two processes never wait for each other
            cases, folder = store_folder(dataset, modality, cache)
            build = _Build(dataset, modality, cases, folder, cache / CASES / _case_folder(dataset, modality))
            store = _existing(folder)
            if store is None:
                locks.enter_context(acquire(build.lock_folder, build.waiting(progress)))
                store = _existing(folder)  # perhaps another process was faster
            if store is None:
                missing.append(build)
            else:
                stores[modality] = store
        if missing:
            for build in missing:
                _warn_of_older_stores(build.folder)
            _sweep_temporary(cache, missing)
            _prepare_cases(dataset, missing, cache, progress, workers, executor)
            stores |= {build.modality: build.finish() for build in missing}
            _sweep_temporary(cache, missing)
            _sweep(cache)
    return {modality: stores[modality] for modality in modalities}


def store_folder(dataset: Dataset, modality: str, cache: Path) -> tuple[list[Case], Path]:
    """The cases of a store in its order (those of one subject stand together), and where it lies below ``cache``.

    Raises:
        UserError: from the dataset; its data are to say the field of view and were not looked at yet.
    """
    if (wide := _wide(dataset)) is not None:
        dataset.params = dataset.params.model_copy(update={"field_of_view": _widest(wide, Path(cache))})
    cases = sorted(dataset.discover(modality), key=_order)
    key = digest([STORE_VERSION, recipe(dataset), modality, _source_state(cases)])
    return cases, Path(cache) / STORES / f"{dataset.info.name}-{modality.lower()}-{key[:16]}"


def _wide(dataset: Dataset) -> Dataset | None:
    """The same with a field of view that holds every head, where the data are to say it; None elsewhere."""
    params = dataset.params
    if not isinstance(params, RecipeParams) or not params.by_data:
        return None
    return type(dataset)(params.model_copy(update={"field_of_view": WIDE}), dataset.root)


def _widest(wide: Dataset, cache: Path) -> float:
    """Mm that hold every brain of ``wide`` in any sequence, a multiple of 8.

    Raises:
        IncompleteStore: it is not prepared.
    """
    found = []
    for modality in wide.available():
        path = store_folder(wide, modality, cache)[1] / EXTENT
        try:
            found.append(json.loads(path.read_text(encoding="utf-8"))["mm"])
        except FileNotFoundError:
            raise IncompleteStore(
                f"dataset.field_of_view=0 leaves the field of view to the data of {wide.info.name}, which are not prepared yet: "
                "`adbench data prepare` or a run does that."
            ) from None
    return float(min(MAX_SQUARE, max(MIN_SQUARE, 8 * math.ceil(max(found) / 8))))


def _extent(store: SliceStore) -> float:
    """The widest brain of ``store`` from left to right or from front to back, mm, a pixel more at each end."""
    widest = 0.0
    for case in store.cases:
        brain = np.asarray(store.brains[case.rows].any(axis=0))
        spacing = store.spacing_of(case.start)
        assert spacing is not None  # it is a volume
        for axis, mm in ((1, spacing[1]), (0, spacing[2])):
            places = np.flatnonzero(brain.any(axis=axis))
            widest = max(widest, (places[-1] - places[0] + 3) * mm)
    return float(widest)


def _case_folder(dataset: Dataset, modality: str) -> str:
    return f"{dataset.info.name}-{modality.lower()}-{digest([STORE_VERSION, recipe(dataset), modality])[:16]}"


def _order(case: Case) -> tuple[str, str, str]:
    return case.split, case.subject, case.session


def _existing(folder: Path) -> SliceStore | None:
    """The store in ``folder``; None when it, or a case file of it, is not there.

    Raises:
        UserError: it is damaged.
    """
    try:
        return SliceStore.open(folder)
    except IncompleteStore:
        return None


@dataclass
class _Build:
    """One store that is being made.

    Attributes:
        cases: in the order of the store.
        folder: of the store.
        case_folder: of the case files.
        prepared: by split, subject and session.
        failures: cases that could not be prepared.
    """

    dataset: Dataset
    modality: str
    cases: list[Case]
    folder: Path
    case_folder: Path
    prepared: dict[tuple[str, str, str], Prepared] = field(default_factory=dict)
    failures: list[Prepared] = field(default_factory=list)

    @property
    def lock_folder(self) -> Path:
        """Stores of the same recipe have one each. The store's own folder is not there before the store is."""
        return self.case_folder / self.folder.name

    def waiting(self, progress: Progress) -> Callable[[str], None]:
        """Tells ``progress`` which process prepares the same store now."""
        return lambda owner: progress.update(f"waiting for {owner}, which prepares the same data", 0, 0)

    def unwritten(self) -> list[Case]:
        """Cases without a file, by what is known before their sources are read: one of other bytes and as many counts."""
        there = {path.name.partition("-")[0] + "-" for path in self.case_folder.glob(f"*{SUFFIX}")}
        return [case for case in self.cases if start_of_name(case) not in there]

    def take(self, answer: Prepared) -> None:
        """Enter what became of a case."""
        if answer.problem:
            self.failures.append(answer)
        else:
            self.prepared[_order(answer.case)] = answer

    def finish(self) -> SliceStore:
        """Write the manifest.

        Raises:
            UserError: no case has a slice, two have slices of different sizes, or no lesion mask holds a label that was asked
                for.
        """
        answers = [(case, self.prepared[_order(case)]) for case in self.cases]
        labels = [answer.record["labels"] for _, answer in answers if "labels" in answer.record]
        if problem := not_there(getattr(self.dataset.params, "lesion_labels", ()), labels, self.dataset.root):
            raise UserError(problem)
        kept = [(case, answer) for case, answer in answers if answer.record["slices"]]
        remarks = [
            f"{case.id}: {remark}"
            for case, answer in answers
            for remark in (*answer.record["remarks"], *(() if answer.record["slices"] else (NO_SLICE,)))
        ]
        if not kept:
            raise UserError(
                f"No usable slice of {self.modality} in {self.dataset.root or self.dataset.info.name}: {'; '.join(remarks[:5])}."
            )
        shape = kept[0][1].record["shape"][1:]
        stored: list[dict[str, Any]] = []
        rows = 0
        for case, answer in kept:
            if answer.record["shape"][1:] != shape:
                raise UserError(
                    f"case {case.id} ({case.files[0] if case.files else 'generated'}): slices of shape "
                    f"{tuple(answer.record['shape'][1:])}, those of the cases before are {tuple(shape)}. A dataset must give "
                    "one size."
                )
            # Who it is by the dataset as it is today, pixels as they were prepared.
            who = {name: getattr(case, name) for name in ("subject", "session", "split", "site")}
            who["flags"] = list(case.flags)
            stored.append({**who, **answer.record["manifest"], "file": answer.file, "start": rows})
            rows += len(answer.record["slices"])
        manifest = {
            "store_version": STORE_VERSION,
            "dataset": self.dataset.info.name,
            "licence": self.dataset.info.licence,
            "modality": self.modality,
            "recipe": recipe(self.dataset),
            "shape": shape,
            "rows": rows,
            "cases": stored,
            "cases_digest": digest(stored),
            "outliers": outliers.outliers(stored),
            "sources": [{"case": case.id, **source} for case, answer in answers for source in answer.sources],
            "groups": {case.id: dict(case.groups) for case, _ in kept if case.groups},
            "remarks": [*self.dataset.exclusions(self.modality), *remarks],
            "case_folder": self.case_folder.name,
            "files": {a.file: {"bytes": self._size(a.file)} for _, a in answers},
        }
        write_json(self.folder / MANIFEST, manifest)
        return SliceStore.open(self.folder)

    def _size(self, name: str) -> int:
        try:
            return (self.case_folder / name).stat().st_size
        except FileNotFoundError as error:
            raise UserError(
                f"{error.filename} was removed while {self.dataset.info.name} was being prepared: run the command again, it "
                "prepares this case only."
            ) from None


def _prepare_cases(
    dataset: Dataset, builds: list[_Build], cache: Path, progress: Progress, workers: int | None, executor: Executor
) -> None:
    """Prepare every case that has no file yet.

    Raises:
        CasesFailed: some cases failed; all others were tried first and are kept.
    """
    grouped: dict[tuple[str, str, str], list[tuple[str, Case, Path]]] = defaultdict(list)
    for build in builds:
        for case in build.cases:
            grouped[_order(case)].append((build.modality, case, build.case_folder))
    tasks: list[Task] = [grouped[key] for key in sorted(grouped)]
    left = {(build.modality, _order(case)) for build in builds for case in build.unwritten()}
    check_disk(dataset, cache, len(left))
    by_modality = {build.modality: build for build in builds}
    name = f"prepare {dataset.info.name} {', '.join(by_modality)}"
    done = written = 0
    answers = prepare_cases(dataset, tasks, workers, executor)
    for number, answer in enumerate(answers, 1):
        for prepared in answer:
            by_modality[prepared.modality].take(prepared)
            left.discard((prepared.modality, _order(prepared.case)))
            done, written = done + bool(prepared.written), written + prepared.written
        check_disk(dataset, cache, len(left), written=written, done=done)
        failed = sum(len(build.failures) for build in builds)
        progress.update(name, number, len(tasks), **({"failed": failed} if failed else {}))
    _raise_failures(dataset, builds)


def _raise_failures(dataset: Dataset, builds: list[_Build]) -> None:
    failures = sorted((f for build in builds for f in build.failures), key=lambda f: (f.case.id, f.modality))
    for build in builds:
        if build.failures:
            write_json(build.case_folder / FAILURES, [{"case": f.case.id, "problem": f.problem, "trace": f.trace} for f in build.failures])  # fmt: skip
        else:
            (build.case_folder / FAILURES).unlink(missing_ok=True)
    if not failures:
        return
    cases = list(dict.fromkeys(failure.case.id for failure in failures))
    total = len({case.id for build in builds for case in build.cases})
    shown = " ".join(dict.fromkeys(failure.problem for failure in failures[:3]))
    more = f" (and {len(failures) - 3} more)" if len(failures) > 3 else ""
    kept = total - len(cases)
    way_out = "correct or remove their files and run again"
    if dataset.excludes_by_name and kept:
        names = f"{','.join(cases[:20])}{',...' if len(cases) > 20 else ''}"
        way_out = f"correct these and run again, or leave them out with --set dataset.exclude=[{names}]"
    way_out = f"The other {kept} are kept; {way_out}" if kept else way_out.capitalize()
    raise CasesFailed(
        f"{len(cases)} of {total} cases of {dataset.info.name} could not be prepared: {shown}{more} {way_out}. Tracebacks: "
        f"{next(build.case_folder for build in builds if build.failures) / FAILURES}.",
        {failure.case.id: failure.problem for failure in failures},
        kept,
    )


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
        if channels := case.extra.get("channels"):  # which dataset.json says, beside the files
            seen.append([[name, channels[name]] for name in sorted(channels)])
        seen.append([case.id, case.split, *([case.site, dict(case.groups)] if case.site or case.groups else [])])
    return digest(seen)


def _warn_of_older_stores(folder: Path) -> None:
    """Say why data that an earlier version prepared is prepared again: its stores are not read."""
    start = folder.name.rpartition("-")[0]
    older = sorted(path.parent.name for path in folder.parent.glob(f"{start}-{'?' * 16}/images.npy"))
    if older:
        warn(
            f"{folder.parent} holds stores that an earlier version of adbench prepared ({', '.join(older)}); this version "
            "keeps one file a case, so the data is prepared again. Delete these folders when no earlier version needs them."
        )


def _sweep_temporary(cache: Path, own: Sequence[_Build]) -> None:
    """Remove what killed processes left half written, unless another process prepares data in this cache now."""
    left = [path for folder in (CASES, STORES, PRODUCTS) for path in (cache / folder).rglob(".*.tmp")]
    locks = {path.parent for path in (cache / CASES).glob(f"*/*/{LOCK}")} - {build.lock_folder for build in own}
    if not any(map(is_locked, locks)):
        for path in left:
            path.unlink(missing_ok=True)


def _sweep(cache: Path) -> None:
    """Remove case files that no store lists and that nothing used for a month."""
    old = [path for path in (cache / CASES).glob("*/*") if _unused_for_long(path)]
    if not old:
        return
    listed: set[tuple[str, str]] = set()
    for path in (cache / STORES).glob(f"*/{MANIFEST}"):
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            listed |= {(manifest.get("case_folder", ""), name) for name in manifest["files"]}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return  # what a damaged manifest listed is not known
    for path in old:
        if (path.parent.name, path.name) not in listed and _unused_for_long(path):  # perhaps one is in use by now
            path.unlink(missing_ok=True)


def _unused_for_long(path: Path) -> bool:
    with suppress(OSError):  # another process sweeps too
        return path.suffix == SUFFIX and path.stat().st_mtime < time.time() - STALE
    return False
