"""The search space: what a method offers, narrowed or replaced by a YAML file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from adbench.config.yaml_text import read_yaml
from adbench.errors import UserError, unknown
from adbench.utils.named_files import given_values

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from adbench.methods.base import Method

Space = dict[str, dict[str, Any]]  # parameter -> {"low", "high", "log", "integer"} or {"choices"}
HOW = "{low: 1e-4, high: 1e-2, log: true}, {choices: [8, 16]} or a plain value, which is then not searched"


def read_space(path: Path) -> tuple[str, dict[str, Any]]:
    """Parse a space file into ("narrow" or "replace", entries by parameter).

    Raises:
        UserError: unreadable, or not of that form.
    """
    content = read_yaml(path, "search space")
    if isinstance(content, dict) and len(content) == 1:
        ((mode, entries),) = content.items()
        if mode in ("narrow", "replace") and isinstance(entries, dict) and entries:
            return mode, {str(name): entry for name, entry in entries.items()}
    raise UserError(
        f"The search space {path} must hold one key, `narrow:` (the method's own space with these entries on top) or "
        "`replace:` (these entries alone), with parameters below it, e.g. narrow: {lr: {low: 1e-4, high: 1e-2, log: true}}."
    )


def build_space(
    cls: type[Method], base: Mapping[str, Any], fixed: Mapping[str, Any], path: Path | None
) -> tuple[Space, dict[str, Any]]:
    """The space to search and the values that the file fixes.

    Args:
        cls: the method.
        base: its resolved parameters, every one present.
        fixed: parameters that the user set; they are not searched unless the file gives them a range.
        path: a YAML file, or None for the method's own space.

    Raises:
        UserError: an unknown parameter (the nearest is given), a range that is none, a value the method refuses,
            or nothing left to search.
    """
    mode, entries = read_space(path) if path is not None else ("narrow", {})
    where = f" in {path}" if path is not None else ""
    for name in entries:
        if name not in cls.Params.model_fields:
            raise unknown(f"parameter of method {cls.name}{where}", name, cls.Params.model_fields)
    offered = cls.search_space() if mode == "narrow" else {}
    space: Space = {}
    values: dict[str, Any] = {}
    for name, entry in {**offered, **entries}.items():
        if name in fixed and not isinstance(entries.get(name), dict):
            continue
        if isinstance(entry, dict):
            space[name] = _checked(cls, base, name, entry, where)
        else:
            values[name] = _accepts(cls, base, name, entry, where)
    if not space:
        raise UserError(
            f"There is nothing to search for {cls.name}{where} (what is set is not searched): give ranges with --space FILE, "
            f"e.g. replace: {{NAME: {{low: 1, high: 5}}}}. `adbench describe {cls.name}` lists its parameters."
        )
    return dict(sorted(space.items())), values


def _accepts(cls: type[Method], base: Mapping[str, Any], name: str, value: Any, where: str) -> Any:
    """``value`` as the method's own type.

    Raises:
        UserError: the method refuses it.
    """
    from pydantic import ValidationError

    try:
        params = cls.Params(**{**base, name: value})
        return {**params.model_dump(mode="json"), **given_values(params)}[name]
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{cls.name}{where}: {name} = {value!r} is not valid: {first['msg']}.") from None


def _checked(
    cls: type[Method], base: Mapping[str, Any], name: str, entry: dict[str, Any], where: str
) -> dict[str, Any]:
    owner = f"The range of {name}{where}"
    keys = set(entry)
    if keys == {"choices"}:
        choices = entry["choices"]
        if not isinstance(choices, (list, tuple)) or len(choices) < 2:
            raise UserError(f"{owner} needs at least two choices, e.g. {{choices: [8, 16]}}.")
        accepted = [_accepts(cls, base, name, choice, where) for choice in choices]
        return {"choices": [choice for number, choice in enumerate(accepted) if choice not in accepted[:number]]}
    if not {"low", "high"} <= keys <= {"low", "high", "log"}:
        raise UserError(f"{owner} is {entry!r}; write {HOW}.")
    low, high, log = _number(entry["low"]), _number(entry["high"]), entry.get("log", False)
    if low is None or high is None or not isinstance(log, bool) or not low < high:
        raise UserError(f"{owner} must go from a number up to a larger one, got {entry!r}.")
    if log and low <= 0:
        raise UserError(f"{owner} is logarithmic and must start above 0, got low = {low!r}.")
    for end in (low, high):
        _accepts(cls, base, name, end, where)
    annotation = cls.Params.model_fields[name].annotation
    kinds = get_args(annotation) or (annotation,)
    integer = int in kinds and float not in kinds
    if integer and (low != int(low) or high != int(high)):
        raise UserError(f"{owner} must have whole ends: {name} is an integer.")
    kind = int if integer else float
    return {"low": kind(low), "high": kind(high), "log": log, "integer": integer}


def _number(value: Any) -> float | None:
    """``value`` as a finite number, also when YAML took it for a text (1e-4 has no dot); None when it is none."""
    try:
        found = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
    return found if found is not None and math.isfinite(found) else None


def label(choice: Any) -> Any:
    """A choice as Optuna takes it: numbers, texts, booleans and None as they are, the rest as JSON text."""
    return choice if isinstance(choice, (int, float, str, bool)) or choice is None else json.dumps(choice)


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """``space`` in Optuna's terms."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    made: dict[str, BaseDistribution] = {}
    for name, entry in space.items():
        if "choices" in entry:
            made[name] = CategoricalDistribution([label(choice) for choice in entry["choices"]])
        else:
            kind = IntDistribution if entry["integer"] else FloatDistribution
            made[name] = kind(entry["low"], entry["high"], log=entry["log"])
    return made


def values(space: Space, point: Mapping[str, Any]) -> dict[str, Any]:
    """Parameter values of a ``point`` of ``space`` in Optuna's terms."""
    by_label = {
        name: {label(choice): choice for choice in entry["choices"]}
        for name, entry in space.items()
        if "choices" in entry
    }
    return {name: by_label[name][value] if name in by_label else value for name, value in point.items()}


def nearest(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    """The point of ``space`` nearest to ``params``, in Optuna's terms; :func:`values` gives ``params`` back if it is inside.

    Of a choice that is not offered, the first one is nearest.
    """
    found = {}
    for name, entry in space.items():
        value = params[name]
        if "choices" in entry:
            found[name] = label(value if value in entry["choices"] else entry["choices"][0])
        else:
            found[name] = entry["low"] if value is None else min(max(value, entry["low"]), entry["high"])
    return found
