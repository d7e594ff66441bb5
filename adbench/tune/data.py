"""The slices that a search may read, and no others.

A slice store lists the cases of every split. Here it is opened without the cases that training and selection do not need:
they are dropped from the manifest, so their files are never opened. A test slice, its mask and its lesion size cannot be
asked for, by mistake or otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from adbench.datasets.selection import InsertedSet
from adbench.datasets.slices import LabelledSet, SliceSet, spread
from adbench.datasets.store.slice_store import MANIFEST, SliceStore
from adbench.datasets.synthetic_lesions import PseudoParams
from adbench.errors import UserError

Runs = list[tuple[int, int]]  # stretches of rows, each start <= row < stop, ascending


def runs(rows: Iterable[int]) -> Runs:
    """``rows`` as stretches."""
    wanted = np.unique(np.fromiter(rows, dtype=np.int64))
    if not len(wanted):
        return []
    cuts = np.flatnonzero(np.diff(wanted) > 1) + 1
    return [(int(part[0]), int(part[-1]) + 1) for part in np.split(wanted, cuts)]


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
    def of(cls, data: SliceSet, store: SliceStore) -> Role:
        """The role that ``data`` has, which are rows of ``store``."""
        where = str(store.folder), store.manifest["cases_digest"], runs(data.rows)
        if isinstance(data, InsertedSet):
            return cls(*where, "inserted", data.params.model_dump(mode="json"))
        return cls(*where, "labelled" if isinstance(data, LabelledSet) else "healthy")

    def open(self) -> SliceSet:
        """The slices; no other case file is opened.

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
        rows = np.concatenate([np.arange(low, high) for low, high in self.rows])
        starts = np.array([case["start"] for case in manifest["cases"]])
        known = np.unique(np.searchsorted(starts, rows, side="right") - 1)
        store = SliceStore(Path(self.store), {**manifest, "cases": [manifest["cases"][index] for index in known]})
        if self.kind == "inserted":
            return InsertedSet(store, rows, PseudoParams(**self.lesions or {}))
        return LabelledSet(store, rows) if self.kind == "labelled" else SliceSet(store, rows)


def fewer(data: SliceSet, count: int) -> SliceSet:
    """``count`` slices evenly spread over ``data``, of the same kind; all of it when it is smaller."""
    rows = data.rows[spread(len(data), count)]
    if isinstance(data, InsertedSet):
        return InsertedSet(data._store, rows, data.params)
    return LabelledSet(data._store, rows) if isinstance(data, LabelledSet) else data.limited(count)
