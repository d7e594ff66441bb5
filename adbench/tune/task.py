"""Definition of a search: one JSON file that every worker reads, and the slices that its trials may read.

A slice store lists the cases of every split. Here it is opened without the cases that training and selection do not need:
they are dropped from the manifest, so their files are never opened. A test slice, its mask and its lesion size cannot be
asked for, by mistake or otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, InstanceOf, PlainSerializer

from adbench.config.cell import Cell
from adbench.datasets.selection import InsertedSet
from adbench.datasets.slices import LabelledSet, SliceSet, spread
from adbench.datasets.store.slice_store import MANIFEST, SliceStore
from adbench.datasets.synthetic_lesions import SyntheticLesionParams
from adbench.errors import UserError
from adbench.runner.plan import Data
from adbench.tune.space import Space
from adbench.utils.files import write_json

TASK = "search.json"
Mode = Literal["max", "min"]
OBJECTIVES: dict[str, tuple[Mode, str]] = {
    "val_auprc": ("max", "AUPRC over the brain voxels of the labelled validation slices"),
    "pseudo": ("max", "AUPRC on healthy validation slices with synthetic lesions"),
    "recon": ("min", "mean absolute error of the reconstruction of healthy validation slices, in the brain"),
}

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
        cases: digest of its case list; another one means that it was prepared again.
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
            UserError: the store is not there, or was prepared again.
        """
        path = Path(self.store) / MANIFEST
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"A worker cannot read {path} ({error}): give --cache a folder that every node sees."
            ) from None
        if manifest.get("cases_digest") != self.cases:
            raise UserError(f"The store {self.store} was prepared again while the search ran: start the search again.")
        rows = np.concatenate([np.arange(low, high) for low, high in self.rows])
        starts = np.array([case["start"] for case in manifest["cases"]])
        known = np.unique(np.searchsorted(starts, rows, side="right") - 1)
        store = SliceStore(Path(self.store), {**manifest, "cases": [manifest["cases"][index] for index in known]})
        if self.kind == "inserted":
            return InsertedSet(store, rows, SyntheticLesionParams(**self.lesions or {}))
        return LabelledSet(store, rows) if self.kind == "labelled" else SliceSet(store, rows)


def fewer(data: SliceSet, count: int) -> SliceSet:
    """``count`` slices evenly spread over ``data``, of the same kind; all of it when it is smaller."""
    rows = data.rows[spread(len(data), count)]
    if isinstance(data, InsertedSet):
        return InsertedSet(data._store, rows, data.params)
    return LabelledSet(data._store, rows) if isinstance(data, LabelledSet) else data.limited(count)


def slices_for(objective: str, data: Data, lesions: SyntheticLesionParams) -> SliceSet:
    """The validation slices that ``objective`` looks at; for ``pseudo`` with ``lesions`` in them.

    Raises:
        UserError: there are none, or none with a lesion.
    """
    if objective == "val_auprc":
        if not len(data.threshold) or not data.threshold.lesion_voxels.any():
            raise UserError(
                "The validation split of the test dataset has no lesion to select by: "
                "use --objective pseudo, which draws lesions into healthy validation slices, or recon."
            )
        return data.threshold
    if data.val is None:
        raise UserError(f"--objective {objective} needs healthy validation slices, and the training source has none.")
    return InsertedSet(data.train_store, data.val.rows, lesions) if objective == "pseudo" else data.val


@dataclass(frozen=True)
class SearchOptions:
    """Options of a search.

    Attributes:
        objective: "val_auprc", "pseudo" or "recon".
        trials: how many in all, over every resumption.
        budget: seconds that this call may take; None: as long as it needs.
        time_limit: seconds that a trial may take; None: any.
        space: YAML file, see :mod:`adbench.tune.space`.
        name: of the search; None: made of method, preset, dataset, modality and objective.
        resume: go on with the search of this name.
        seed: of the proposals.
        slices: validation slices that the objective looks at, at most, evenly spread.
        halving: stop trials early.
        cpus: cores of a trial; None: what the method asks for.
        gpus: share of a GPU of a trial; None: by the memory that the method asks for.
        max_concurrent: trials at a time; None: as many as fit.
        address: of a Ray cluster; None: ``RAY_ADDRESS``, else this machine.
    """

    objective: str = "val_auprc"
    trials: int = 20
    budget: float | None = None
    time_limit: float | None = None
    space: Path | None = None
    name: str | None = None
    resume: bool = False
    seed: int = 0
    slices: int = 512
    halving: bool = True
    cpus: float | None = None
    gpus: float | None = None
    max_concurrent: int | None = None
    address: str | None = None


def _cell(value: Any) -> Any:
    return value if isinstance(value, Cell) else Cell.from_json(value)


class Task(BaseModel):
    """A search, as every worker reads it.

    Attributes:
        identity: everything that its outcome depends on; a search is resumed only with the same.
        cell: the cell that is tuned, with the parameters of trial 0.
        train: healthy slices to learn from.
        val: healthy slices that choose the checkpoint, or None.
        select: slices that the objective looks at.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    version: Literal[2] = 2
    identity: dict[str, Any]
    cell: Annotated[InstanceOf[Cell], BeforeValidator(_cell), PlainSerializer(Cell.to_json)]
    train: Role
    val: Role | None
    select: Role

    @property
    def objective(self) -> str:
        """The objective to optimise."""
        return str(self.identity["objective"])

    @property
    def mode(self) -> Mode:
        """Whether a good objective is large or small."""
        return OBJECTIVES[self.objective][0]

    @property
    def space(self) -> Space:
        """The search space."""
        return dict(self.identity["space"])

    @property
    def seed(self) -> int:
        """Seed of the proposals."""
        return int(self.identity["search_seed"])

    @property
    def defaults(self) -> dict[str, Any]:
        """The searched parameters of trial 0, the defaults."""
        return {name: self.cell.given[name] for name in self.space}

    def learned(self) -> tuple[SliceSet, SliceSet | None]:
        """The slices to learn from, and those that choose the checkpoint."""
        return self.train.open(), self.val.open() if self.val else None

    def write(self, folder: Path) -> None:
        """Write the file into ``folder``."""
        write_json(Path(folder) / TASK, self.model_dump(mode="json"))

    @classmethod
    def read(cls, folder: Path) -> Task:
        """Read the file that :meth:`write` wrote.

        Raises:
            UserError: not there, or damaged.
        """
        path = Path(folder) / TASK
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise UserError(
                f"A worker cannot read {path} ({error.strerror}): give --out a folder that every node sees."
            ) from None
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({' '.join(str(error).split())[:200]}): delete its folder.") from None
