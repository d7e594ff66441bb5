"""Grid files: the product of methods, their swept parameters, datasets, modalities, folds and seeds, with cells excluded and other products
included.

::

    method: [madad, ae, histeq]
    dataset: phantom
    seed: [0, 1, 2]
    set:
      madad: {steps: 500}                     # parameters of one method
      histeq: {sigma: [2, 4]}                 # a sweep: one cell a value, dataset, modality and seed
    exclude:
      - {method: histeq, seed: [1, 2]}        # every cell for which all of this holds
    include:
      - {method: ddpm, seed: 0, preset: base} # a product of its own; keys that it does not set are as above
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import field_validator

from adbench.config import run_config
from adbench.config.cell import Cell, told_apart
from adbench.config.run_config import RunConfig
from adbench.errors import UserError, unknown

AXES = ("method", "dataset", "modality", "protocol", "fold", "seed", "preset")
_BLOCK = (*AXES, "data_root", "train_on", "train_root", "metrics", "set")
_OF_DATASET = ("modality", "protocol", "fold", "data_root")  # a block with a dataset of its own does not inherit them


class GridConfig(RunConfig):
    """A run configuration with exceptions.

    Attributes:
        include: more products, each a mapping with the names of a configuration.
        exclude: mappings of axes to one or more values; a cell of the product above that matches all of one is left out.
    """

    include: tuple[dict[str, Any], ...] = ()
    exclude: tuple[dict[str, Any], ...] = ()

    @field_validator("include", "exclude", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return [value] if isinstance(value, dict) else value or ()


def load(path: Path, flags: dict[str, Any], assignments: list[str]) -> GridConfig:
    """The grid in ``path`` with the command line's ``flags`` and ``assignments`` on top (they change no included block).

    A rule that excludes only what flags have left out already is left out with it.

    Raises:
        UserError: unreadable file, unknown key or axis (the nearest is given), a value of a wrong type.
    """
    grid = run_config.load(path, flags, assignments, GridConfig)
    assert isinstance(grid, GridConfig)
    for number, block in enumerate(grid.include, 1):
        for name in block:
            if name not in _BLOCK:
                raise unknown(f"key in include {number} of {path}", str(name), _BLOCK)
        _block(grid, block)
    for number, rule in enumerate(grid.exclude, 1):
        for name in rule:
            if name not in AXES:
                raise unknown(f"axis in exclude {number} of {path}", str(name), AXES)
        if not rule:
            raise UserError(f"exclude {number} of {path} is empty: it would leave out every cell.")
    asked = {axis: {name.lower() for name in run_config.names(flags[axis])} for axis in AXES if flags.get(axis)}
    rules = [
        rule
        for rule in grid.exclude
        if all(asked[axis] & {name.lower() for name in run_config.names(rule[axis])} for axis in asked.keys() & rule)
    ]
    return grid.model_copy(update={"exclude": tuple(rules)})


def _block(grid: GridConfig, block: dict[str, Any] | None) -> RunConfig:
    """The configuration of one product: the grid's own (None), or an included one."""
    content = grid.model_dump(exclude={"include", "exclude"})
    if block is not None:
        if "dataset" in block:
            content = {name: value for name, value in content.items() if name not in _OF_DATASET}
        if "train_on" in block:
            content.pop("train_root", None)
        scopes = block.get("set") or {}
        merged = {
            scope: {**content["set"].get(scope, {}), **(scopes.get(scope) or {})}
            for scope in {**content["set"], **scopes}
        }
        content = {**content, **block, "set": merged}
    built = run_config.validated(RunConfig, content)
    own = (block or {}).get("set") or {}
    elsewhere = _methods(grid) - set(built.method) - set(own)
    return built.model_copy(update={"set": {scope: v for scope, v in built.set.items() if scope not in elsewhere}})


def _methods(grid: GridConfig) -> set[str]:
    """Every method that some product of the grid names."""
    return set(grid.method).union(*(run_config.names(block.get("method", ())) for block in grid.include))


def cells(grid: GridConfig, resolve_device: Callable[[str], str] = run_config.resolve_device) -> list[Cell]:
    """Every cell of the grid once, resolved and checked; ``resolve_device`` as in :func:`adbench.config.run_config.cells`.

    Raises:
        UserError: anything unknown, missing or out of range; a rule that excludes nothing.
    """
    found: list[Cell] = []
    used = [False] * len(grid.exclude)
    known: dict[str, set[str]] = {axis: set() for axis in AXES}
    if grid.method or grid.dataset or not grid.include:
        for cell in run_config.cells(_block(grid, None), resolve_device):
            place = _place(cell)
            for axis, value in place.items():
                known[axis].add(value)
            matching = [number for number, rule in enumerate(grid.exclude) if _matches(rule, place)]
            for number in matching:
                used[number] = True
            if not matching:
                found.append(cell)
    for number, rule in enumerate(grid.exclude):
        if not used[number]:
            raise _excludes_nothing(number + 1, rule, known)
    for block in grid.include:
        found += run_config.cells(_block(grid, block), resolve_device)
    unique: dict[tuple[Any, ...], Cell] = {}
    for cell in found:
        unique.setdefault(cell.key, cell)
    return told_apart(list(unique.values()))


def _place(cell: Cell) -> dict[str, str]:
    """Position of a cell on every axis."""
    found = (cell.method, cell.test.dataset, cell.modality, cell.protocol.name, cell.fold, cell.seed, cell.preset)
    return {axis: str(value) for axis, value in zip(AXES, found, strict=True)}


def _matches(rule: dict[str, Any], place: dict[str, str]) -> bool:
    return all(place[axis].lower() in (v.lower() for v in run_config.names(value)) for axis, value in rule.items())


def _excludes_nothing(number: int, rule: dict[str, Any], known: dict[str, set[str]]) -> UserError:
    for axis, value in rule.items():
        for name in run_config.names(value):
            if name.lower() not in {other.lower() for other in known[axis]}:
                return unknown(f"{axis} in exclude {number} of the grid", name, known[axis])
    return UserError(f"exclude {number} of the grid ({rule}) matches no cell: remove or correct it.")
