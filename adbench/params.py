"""Documented, validated, immutable parameters shared by methods and datasets."""

from __future__ import annotations

from functools import cache, cached_property
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from adbench.errors import UserError, unknown
from adbench.utils.hashing import canonical_json


class ParamSet(BaseModel):
    """Base of every parameter set: frozen, unknown names are errors, every field is documented."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _as_meant(cls, values: Any) -> Any:
        """YAML reads ``true`` as a boolean and ``100206`` as a number: give each field what its type says was meant."""
        if not isinstance(values, dict):
            return values
        types = {name: field.annotation for name, field in cls.model_fields.items()}
        return {name: _meant(value, types.get(name)) for name, value in values.items()}

    @cached_property
    def json_values(self) -> dict[str, Any]:
        """Every field as a JSON value, by name; do not change it."""
        return self.model_dump(mode="json")

    @cached_property
    def json_text(self) -> str:
        """Equal text for equal parameters, see :func:`adbench.utils.hashing.canonical_json`."""
        return canonical_json(self.json_values)

    @cached_property
    def trained_values(self) -> dict[str, Any]:
        """Those of :attr:`json_values` that may decide a fit: all but :func:`scoring`; do not change it."""
        return {name: value for name, value in self.json_values.items() if name not in scoring(type(self))}

    @cached_property
    def trained_text(self) -> str:
        """Equal text for equal :attr:`trained_values`."""
        return canonical_json(self.trained_values)

    @cached_property
    def scoring_values(self) -> dict[str, Any]:
        """Those of :attr:`json_values` that only score (:func:`scoring`); do not change it."""
        return {name: value for name, value in self.json_values.items() if name in scoring(type(self))}


# As choices; YAML 1.1, Python and JSON write them so.
_MEAN_ONE_THING = (("yes", "on", "true"), ("no", "off", "false", "none", "null"))


def _meant(value: Any, annotation: Any) -> Any:
    """``value`` as a field of type ``annotation`` takes it: a text with commas or one value for a list, a text for a number, a
    boolean or null."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        others = [arg for arg in args if arg is not NoneType]
        if others in ([int], [float]) and str(value).lower() in _MEAN_ONE_THING[1]:
            return None
        return value if value is None or len(others) != 1 else _meant(value, others[0])
    if origin in (tuple, list):
        several = value
        if isinstance(value, str):
            several = [part.strip() for part in value.split(",") if part.strip()]
        elif value is not None and not isinstance(value, list | tuple):
            several = (value,)
        return (
            tuple(_meant(one, args[0]) for one in several)
            if several is not None and len(set(args) - {...}) == 1
            else several
        )
    if origin is Literal and value not in args:
        said = str(value).lower()
        words = next((group for group in _MEAN_ONE_THING if said in group), (said,))
        return next((word for word in args if str(word).lower() in words), value)
    if annotation in (int, float) and isinstance(value, bool):
        return str(value).lower()  # no number, which the field says
    if annotation is str and isinstance(value, bool | int | float):
        return str(value).lower() if isinstance(value, bool) else str(value)
    return value


P = TypeVar("P", bound=ParamSet)


def param(default: Any, doc: str, *, unit: str = "", source: str = "", scores: bool = False, **constraints: Any) -> Any:
    """A documented field of a :class:`ParamSet`.

    Args:
        default: value used when the user gives none.
        doc: what the parameter does, one sentence.
        unit: physical or counting unit ("px", "steps"); empty for a pure number or a choice.
        source: where the default comes from (paper and equation, or "adbench").
        scores: nothing but the scoring of a fitted method reads it: not its training, the choice of weights, what it notes or
            draws of them. It is then no part of the key of a fit, and one fit serves all its values.
        **constraints: passed to ``pydantic.Field`` (``ge``, ``le``, ``gt``, ``lt``, ...).
    """
    extra: dict[str, Any] = {"unit": unit, "source": source, **({"scores": True} if scores else {})}
    return Field(default, description=doc, json_schema_extra=extra, **constraints)


@cache
def scoring(cls: type[BaseModel]) -> frozenset[str]:
    """The fields of ``cls`` that only score, as its author has said of each (``param(..., scores=True)``)."""
    extras = {name: field.json_schema_extra for name, field in cls.model_fields.items()}
    return frozenset(name for name, extra in extras.items() if isinstance(extra, dict) and extra.get("scores"))


def build(cls: type[P], owner: str, values: dict[str, Any]) -> P:
    """Validate ``values`` into ``cls``; a wrong name or type becomes one clear :class:`UserError`.

    Args:
        cls: the parameter model.
        owner: whose parameters these are, for the message ("method madad").
        values: the merged values, by field name.

    Raises:
        UserError: an unknown name (the nearest is given), or a value of a wrong type or out of range.
    """
    known = cls.model_fields  # asked for once: it is a property, and slow
    for name in values:
        if name not in known:
            raise unknown(f"parameter of {owner}", name, known)
    try:
        return cls(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where, why = ".".join(str(part) for part in first["loc"]), first["msg"].removeprefix("Value error, ")
        if not where:  # parameters that do not go together; which ones, the reason says
            raise UserError(f"{owner}: {why}.") from None
        if first.get("input") is None:
            raise UserError(f"{owner}: {where} has no value: write one, or leave it out for its default.") from None
        raise UserError(f"{owner}: {where} = {first.get('input')!r} is not valid: {why}.") from None
