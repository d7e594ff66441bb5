"""Parameter sweeps: a list given for a single-valued parameter is an axis of the grid; and where parameter sets differ."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import product
from math import prod
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import ValidationError

from adbench.errors import UserError
from adbench.params import ParamSet

LONG = 32  # characters of a value in the name of a row
SHOWN = 8  # parameters there
MOST = 10_000  # combinations of one sweep
BEYOND = 2**63  # whole numbers from here on, of either sign, are no JSON that every reader reads: no record holds them


def variants(
    params: type[ParamSet], owner: str, values: Mapping[str, Any], parse: Callable[[str, str], Any]
) -> list[dict[str, Any]]:
    """Every combination of ``values``, one value a parameter; a single one where nothing is swept.

    ``sigma: [2, 4]`` and ``sigma: 2,4`` are two values of a parameter that takes a number or a choice. What suits the
    parameter as it is stays one value: a list where it takes a list (several are a list of lists), a text with commas
    where it takes any text (several are ``[a, b]``).

    Args:
        params: the parameters there are.
        owner: whose they are, for messages ("method madad").
        values: by name; names that do not exist are left as they are.
        parse: reads one of several values from a text; its second argument says where the text stands.

    Raises:
        UserError: no value, an empty one between commas, an empty list, more combinations than anybody wants, or a whole number
            beyond :data:`BEYOND`.
    """
    axes = {name: _axis(params, f"{owner}: {name}", name, value, parse) for name, value in values.items()}
    for name, axis in axes.items():
        whole = name in params.model_fields and params.model_fields[name].annotation in (int, int | None)
        for value in axis:
            if whole and isinstance(value, int) and abs(value) >= BEYOND:
                raise UserError(f"{owner}: {name} = {value} is not valid: whole numbers are below {BEYOND}.")
    if (points := prod(map(len, axes.values()))) > MOST:
        raise UserError(f"{owner} is swept over {points} combinations, and {MOST} are the most: shorten a list.")
    return [dict(zip(axes, point, strict=True)) for point in product(*axes.values())]


def _axis(params: type[ParamSet], where: str, name: str, value: Any, parse: Callable[[str, str], Any]) -> list[Any]:
    if name not in params.model_fields:
        return [value]
    valid, is_list = _valid(params, name, value), _is_list(params.model_fields[name].annotation)
    if value in (None, "") and not valid:
        raise UserError(f"{where} has no value: write one, or leave it out for its default.")
    if isinstance(value, str) and "," in value and (is_list or not valid) and not all(map(str.strip, value.split(","))):
        raise UserError(f"{where} = {value!r} has a comma without a value: write the value, or take the comma out.")
    if valid or not isinstance(value, list | tuple | str):
        return [value]
    several: Sequence[Any]
    if isinstance(value, list | tuple):
        if is_list and not all(isinstance(one, list | tuple) for one in value):
            return [value]  # a list with a mistake in it
        several = value
    else:
        if "," not in value:
            return [value]
        several = [parse(part, where) for part in value.split(",")]
    if not several:
        raise UserError(f"{where} = {value!r} has no value to run with: write at least one.")
    return list({repr(one): one for one in several}.values())


def _valid(params: type[ParamSet], name: str, value: Any) -> bool:
    """Whether ``value`` as it is suits the field ``name``, whatever the other fields are."""
    try:
        params(**{name: value})
    except ValidationError as error:
        return all(one["loc"][:1] != (name,) for one in error.errors())
    return True


def _is_list(annotation: Any) -> bool:
    """Whether a field of type ``annotation`` may hold a list."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return any(map(_is_list, args))
    if origin is Annotated:
        return _is_list(args[0])
    kind = origin or annotation
    return isinstance(kind, type) and issubclass(kind, Collection) and not issubclass(kind, str | bytes)


def differing(sets: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each of several parameter sets, those values that are not the same in all of them."""
    texts = [{name: repr(value) for name, value in one.items()} for one in sets]
    names = dict.fromkeys(name for one in texts for name in one)
    apart = [name for name in names if len({one.get(name) for one in texts}) > 1]
    return [{name: one[name] for name in apart if name in one} for one in sets]


def joined(sets: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The values of all ``sets``, those of one combination of a sweep each: a list where they differ."""
    columns = {name: {repr(one[name]): one[name] for one in sets} for name in sets[0]}
    return {name: list(own.values()) if len(own) > 1 else next(iter(own.values())) for name, own in columns.items()}


def params_text(values: Mapping[str, Any]) -> str:
    """Parameters as part of a name: "sigma=5 polarity=dark"; of very many the first :data:`SHOWN`, and how many more."""
    shown = [f"{name}={value_text(value)}" for name, value in values.items()]
    return " ".join(shown if len(shown) <= SHOWN else [*shown[:SHOWN], f"+{len(shown) - SHOWN}"])


def value_text(value: Any) -> str:
    """A parameter's value in a few characters: "5", "0.0001", "none", "32,64"; of a long one its end."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, list | tuple):
        text = ",".join(map(value_text, value))
    elif isinstance(value, float):
        text = repr(value).removesuffix(".0")
    else:
        text = str(value)
    return text if len(text) <= LONG else f"…{text[1 - LONG :]}"
