"""What is searched: one JSON file beside the table, read by every worker. Small, so that nothing large travels with a trial."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, InstanceOf, PlainSerializer, ValidationError

from adbench.config.cell import Cell
from adbench.errors import UserError
from adbench.tune.data import Role
from adbench.tune.space import Space
from adbench.tune.table import Mode
from adbench.utils.files import write_json
from adbench.utils.hashing import digest

TASK = "search.json"


@dataclass(frozen=True)
class Options:
    """How a search is done.

    Attributes:
        objective: "val_auprc", "pseudo" or "recon".
        trials: how many in all, over every resumption.
        budget: seconds that this call may take; None: as long as it needs.
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
    """A search.

    Attributes:
        identity: everything that its outcome depends on; a search is resumed only with the same.
        cell: the cell that is tuned, with the parameters of trial 0.
        objective: what is optimised.
        mode: "max" or "min".
        space: what is searched.
        seed: of the search.
        halving: whether trials may be stopped early.
        train: healthy slices to learn from.
        val: healthy slices that choose the checkpoint, or None.
        select: slices that the objective looks at.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    version: int = 1
    identity: dict[str, Any]
    cell: Annotated[InstanceOf[Cell], BeforeValidator(_cell), PlainSerializer(Cell.to_json)]
    objective: str
    mode: Mode
    space: Space
    seed: int
    halving: bool
    train: Role
    val: Role | None
    select: Role

    def write(self, folder: Path) -> None:
        """Write the file into ``folder``."""
        write_json(Path(folder) / TASK, self.model_dump(mode="json"))

    @classmethod
    def read(cls, folder: Path) -> Task:
        """What :meth:`write` wrote.

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
        except (ValueError, TypeError, ValidationError) as error:
            raise UserError(f"{path} is damaged ({' '.join(str(error).split())[:200]}): delete its folder.") from None

    @property
    def name(self) -> str:
        """Short hash of the identity."""
        return digest(self.identity)


def difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The first field in which two identities differ, and how, in words; "" when they are equal."""
    for field in dict.fromkeys([*before, *now]):
        old, new = before.get(field), now.get(field)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            inner = next(key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key))
            return f"{field}: {inner} was {old.get(inner)!r}, now {new.get(inner)!r}"
        return f"{field} was {_short(old)}, now {_short(new)}"
    return ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:16]}…"
