"""Parameter sweeps: a list given for a single-valued parameter is an axis of the grid; and where parameter sets differ."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import product
from math import prod
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import ValidationError

from adbench.errors import UserError
from adbench.params import ParamSet
from adbench.utils.hashing import digest

MEMBERS = "members"  # of an ensemble: the parameter whose value, as a text, is a list
LONG = 32  # characters of a value in the name of a row
LONG_MEMBERS = 96  # of a list of several words each
SHOWN = 8  # parameters there
DECIDE = (MEMBERS, "sign", "sigma", "score", "noise", "distance", "scoring")  # what a map is; so does all of ``post``
MARK = re.compile(r" #[0-9a-f]{6}\b")  # of a list of members that is cut
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


def beyond(preset: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``values`` that ``preset`` has other ones of."""
    return {name: value for name, value in values.items() if name in preset and preset[name] != value}


def joined(sets: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The values of all ``sets``, those of one combination of a sweep each: a list where they differ."""
    columns = {name: {repr(one[name]): one[name] for one in sets} for name in sets[0]}
    return {name: list(own.values()) if len(own) > 1 else next(iter(own.values())) for name, own in columns.items()}


def params_text(values: Mapping[str, Any], first: Collection[str] = ()) -> str:
    """Parameters as part of a name: "sigma=5 polarity=dark", those that :data:`DECIDE` what a map is in front.

    Of very many the first :data:`SHOWN`, those named in ``first`` before others, and how many more.
    """
    names = sorted(values, key=_weight)  # others as they come
    if len(names) > SHOWN:
        names.sort(key=lambda name: name not in first)
    shown = [f"{name}={value_text(values[name], members=name == MEMBERS)}" for name in names[:SHOWN]]
    return " ".join(shown if len(names) <= SHOWN else [*shown, f"and {len(names) - SHOWN} more"])


def _weight(name: str) -> int:
    return DECIDE.index(name) if name in DECIDE else len(DECIDE) + (not name.startswith("post."))


def value_text(value: Any, *, members: bool = False) -> str:
    """A parameter's value in a few characters: "5", "0.0001", "none", "32,64".

    Of a long list the beginning, and how many more; of another long value, such as a path, the end. A text is a list with
    ``members`` alone, that of :func:`members_text`.
    """
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    if isinstance(value, list | tuple):
        named = all(isinstance(one, str) for one in value)
        parts = _counted(value) if named else list(map(value_text, value))
        return _list_text(parts, members=any(" " in part for part in parts))
    text = str(value)
    if members:
        return _list_text(text.split(", "), members=True)
    return text if len(text) <= LONG else f"…{text[1 - LONG :]}"


def members_text(members: Iterable[str]) -> str:
    """The members of an ensemble, each once: "2 dae, restore sigma=5"."""
    return ", ".join(_counted(members))


def _counted(parts: Iterable[str]) -> list[str]:
    """Each of ``parts`` once, behind the number of its times: "2 dae, dae" are "3 dae"."""
    times: Counter[str] = Counter()
    for part in parts:
        number, _, rest = part.partition(" ")
        times.update({rest: int(number)} if number.isdecimal() and rest else {part: 1})
    return [f"{number} {part}" if number > 1 else part for part, number in times.items()]


def _list_text(parts: Sequence[str], *, members: bool) -> str:
    """A list, cut at its end to a bounded length, and how many more there are.

    ``members`` of an ensemble ("dae sigma=3 sign=positive") keep their methods longest, then their signs, then what else is in
    :data:`DECIDE`; "…" stands for their other parameters. A mark (:data:`MARK`) of the whole list follows what is left out, so
    that two ensembles never look like one.
    """
    between, most = (", ", LONG_MEMBERS) if members else (",", LONG)
    shown = list(parts)
    for kept in ((), DECIDE, ("sign",)):
        if members and kept:
            shown = [_brief(part, kept) for part in parts]  # equal now are not equal members: none is "2 dae …"
        if len(text := between.join(shown)) <= most:
            break
    else:
        count = next(n for n in range(len(shown)) if len(between.join(shown[: n + 1])) > most) or 1
        text, left = between.join(shown[:count]), len(shown) - count
        text = text if len(text) <= most else f"{text[: most - 1]}…"
        text = f"{text} and {left} more" if left else text
    return f"{text} #{digest(list(parts))[:6]}" if members and text != between.join(parts) else text


def _brief(part: str, kept: Collection[str]) -> str:
    name, *params = re.split(r" (?=[A-Za-z_]\w*=)", part)
    own = [param for param in params if param.partition("=")[0] in kept]
    return " ".join([name, *own, *(["…"] if len(own) < len(params) else [])])
