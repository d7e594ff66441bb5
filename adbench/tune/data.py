"""The slices that a search may read, and no others.

A slice store holds every split in one file. Here it is opened by the rows that training and selection need: only those
stretches of the arrays are mapped, and the cases of all others are dropped from the manifest. A test slice, its mask and
its lesion size cannot be asked for, by mistake or otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.lib import format as npy

from adbench.datasets.pseudo import PseudoParams
from adbench.datasets.selection import InsertedSet
from adbench.datasets.slices import LabelledSet, SliceSet
from adbench.datasets.store import MANIFEST, SliceStore
from adbench.errors import UserError

Runs = list[tuple[int, int]]  # stretches of rows, each start <= row < stop, ascending


def runs(rows: Iterable[int]) -> Runs:
    """``rows`` as stretches."""
    wanted = np.unique(np.fromiter(rows, dtype=np.int64))
    if not len(wanted):
        return []
    cuts = np.flatnonzero(np.diff(wanted) > 1) + 1
    return [(int(part[0]), int(part[-1]) + 1) for part in np.split(wanted, cuts)]


class OpenRows:
    """Some rows of a ``.npy`` file; looks like the whole array when it is indexed by row numbers.

    Args:
        path: the file.
        allowed: the rows that are mapped.
    """

    def __init__(self, path: Path, allowed: Runs) -> None:
        with open(path, "rb") as file:
            npy.read_magic(file)
            (_, *self.shape), _, self.dtype = npy.read_array_header_1_0(file)
            start = file.tell()
        size = int(np.prod(self.shape)) * self.dtype.itemsize
        self._starts = np.array([low for low, _ in allowed])
        self._parts = [
            np.memmap(path, self.dtype, "r", offset=start + low * size, shape=(high - low, *self.shape))
            for low, high in allowed
        ]
        self._name = path.stem

    def __getitem__(self, rows: np.ndarray | int) -> np.ndarray:
        wanted = np.atleast_1d(np.asarray(rows, dtype=np.int64))
        owner = np.searchsorted(self._starts, wanted, side="right") - 1
        lengths = np.array([len(part) for part in self._parts])
        at = wanted - self._starts[owner] if len(self._parts) else wanted
        closed = (owner < 0) | (at >= lengths[owner]) if len(self._parts) else np.ones(len(wanted), bool)
        if closed.any():
            raise UserError(
                f"Row {int(wanted[closed][0])} of the {self._name} belongs to no slice that a search may read: it trains and "
                "selects without the test split."
            )
        out = np.empty((len(wanted), *self.shape), self.dtype)
        for number, part in enumerate(self._parts):
            mine = owner == number
            out[mine] = part[at[mine]]
        return out[0] if np.ndim(rows) == 0 else out


class OpenStore(SliceStore):
    """A slice store of which only some rows exist. Row numbers are those of the whole store.

    Args:
        folder: of the whole store.
        manifest: of the whole store.
        allowed: rows that may be read; a case without any is unknown here.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], allowed: Runs) -> None:
        self._allowed = allowed
        known = [
            case
            for case in manifest["cases"]
            if any(low < case["start"] + len(case["slices"]) and case["start"] < high for low, high in allowed)
        ]
        super().__init__(folder, {**manifest, "cases": known})
        # Numbers of rows stay, so a row of a case that is unknown must lead nowhere.
        self._case_of_row = np.full(manifest["rows"], len(self.cases))
        for number, case in enumerate(self.cases):
            self._case_of_row[case.rows] = number
        for name in ("images", "brains", "lesions"):
            self._maps[name] = OpenRows(folder / f"{name}.npy", allowed)  # type: ignore[assignment]


@dataclass(frozen=True)
class Role:
    """Slices for one purpose, as plain data that travels to a worker.

    Attributes:
        store: folder of the whole store.
        cases: digest of its case list; another one means that it was prepared anew.
        rows: which rows.
        kind: "healthy" slices without masks, "labelled" ones, or healthy ones with "inserted" lesions.
        lesions: parameters of inserted lesions.
    """

    store: str
    cases: str
    rows: Runs
    kind: Literal["healthy", "labelled", "inserted"]
    lesions: dict[str, Any] | None = None

    @classmethod
    def of(cls, data: SliceSet) -> Role:
        """The role that ``data`` has."""
        store = data._store
        where = str(store.folder), store.manifest["cases_digest"], runs(data.rows)
        if isinstance(data, InsertedSet):
            return cls(*where, "inserted", data.params.model_dump(mode="json"))
        return cls(*where, "labelled" if isinstance(data, LabelledSet) else "healthy")

    def open(self) -> SliceSet:
        """The slices; nothing but their rows is mapped.

        Raises:
            UserError: the store is not there, or was prepared anew.
        """
        path = Path(self.store) / MANIFEST
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"A worker cannot read {path} ({error}): give --cache a folder that every node sees."
            ) from None
        if manifest.get("cases_digest") != self.cases:
            raise UserError(f"The store {self.store} was prepared anew while the search ran: start the search again.")
        store = OpenStore(Path(self.store), manifest, [(int(low), int(high)) for low, high in self.rows])
        rows = np.concatenate([np.arange(low, high) for low, high in self.rows])
        if self.kind == "inserted":
            return InsertedSet(store, rows, PseudoParams(**self.lesions or {}))
        return LabelledSet(store, rows) if self.kind == "labelled" else SliceSet(store, rows)


def spread(data: SliceSet, count: int) -> SliceSet:
    """``count`` slices evenly spread over ``data``, of the same kind; all of it when it is smaller."""
    rows = data.limited(count).rows
    if isinstance(data, InsertedSet):
        return InsertedSet(data._store, rows, data.params)
    return type(data)(data._store, rows)
