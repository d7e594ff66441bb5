"""A search that is only looked at: its space, its budget, its data and its first trial; and whether draws of the space are valid."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adbench.config import run_config as configs
from adbench.config.run_config import RunConfig
from adbench.context import Progress
from adbench.errors import UserError
from adbench.tune.search import folder_of
from adbench.tune.space import label, values
from adbench.tune.task import Role, SearchOptions, Task
from adbench.utils.seeds import derive

DRAWS = 200


@dataclass(frozen=True)
class Rehearsal:
    """What a search would do."""

    task: Task
    folder: Path
    options: SearchOptions

    def to_json(self) -> dict[str, Any]:
        """In JSON values, for ``--json``."""
        task, options = self.task, self.options
        return {
            "search": self.folder.name,
            "folder": str(self.folder),
            "method": task.cell.method,
            "objective": task.objective,
            "space": task.space,
            "trials": options.trials,
            "budget_seconds": options.budget,
            "time_limit_seconds": options.time_limit,
            "data": {"dataset": task.cell.test.title, "modality": task.cell.modality, **self.slices},
            "draws_checked": DRAWS,
            "first_trial": configs.from_cell(task.cell).model_dump(mode="json", exclude_none=True),
        }

    @property
    def slices(self) -> dict[str, int]:
        """Slices by what they are for."""
        roles = {"train": self.task.train, "val": self.task.val, "objective": self.task.select}
        return {name: 0 if role is None else _slices(role) for name, role in roles.items()}

    def first_trial(self) -> str:
        """The configuration of trial 0 as YAML, every parameter spelled out."""
        return configs.from_cell(self.task.cell).to_yaml()


def _slices(role: Role) -> int:
    return sum(high - low for low, high in role.rows)


def rehearse(config: RunConfig, options: SearchOptions, progress: Progress | None = None) -> Rehearsal:
    """Define the search that :func:`adbench.tune.search.search` would begin, and check it; nothing is run.

    Raises:
        UserError: what that raises before the first trial; or of :data:`DRAWS` random draws of the space some are refused.
    """
    task, _, folder = folder_of(config, options, progress or Progress())
    if said := refused(task):
        raise UserError(said)
    return Rehearsal(task, folder, options)


def refused(task: Task, draws: int = DRAWS) -> str:
    """How many random draws of the space the method refuses with the parameters that are set, and why; "" where none."""
    rng = random.Random(derive(task.seed, "rehearsal"))
    found: list[tuple[dict[str, Any], str]] = []
    for _ in range(draws):
        drawn = values(task.space, {name: _draw(entry, rng) for name, entry in task.space.items()})
        try:
            task.cell.with_params(drawn)
        except UserError as error:
            found.append((drawn, str(error)))
    if not found:
        return ""
    drawn, why = found[0]
    named = ", ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in drawn.items()
    )
    return (
        f"{len(found)} of {draws} random draws of the search space are refused, the first with {named}: {why} Narrow the space with "
        "--space FILE, or set what does not go with the rest by --set."
    )


def _draw(entry: Mapping[str, Any], rng: random.Random) -> Any:
    """A value of an entry of a space in Optuna's terms; the ends of a range have a tenth each."""
    if "choices" in entry:
        return label(rng.choice(entry["choices"]))
    low, high = entry["low"], entry["high"]
    where = min(1.0, max(0.0, rng.uniform(-0.125, 1.125)))
    if not 0 < where < 1:
        return low if where == 0 else high
    value = math.exp(math.log(low) + where * math.log(high / low)) if entry["log"] else low + where * (high - low)
    return round(value) if entry["integer"] else min(max(value, low), high)
