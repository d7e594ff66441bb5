"""Documented, validated, immutable parameters shared by methods and datasets."""

from __future__ import annotations

from functools import cached_property
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adbench.errors import UserError, unknown
from adbench.utils.hashing import canonical_json


class ParamSet(BaseModel):
    """Base of every parameter set: frozen, unknown names are errors, every field is documented."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @cached_property
    def json_values(self) -> dict[str, Any]:
        """Every field as a JSON value, by name; do not change it."""
        return self.model_dump(mode="json")

    @cached_property
    def json_text(self) -> str:
        """Equal text for equal parameters, see :func:`adbench.utils.hashing.canonical_json`."""
        return canonical_json(self.json_values)


P = TypeVar("P", bound=ParamSet)


def param(default: Any, doc: str, *, unit: str = "", source: str = "", **constraints: Any) -> Any:
    """A documented field of a :class:`ParamSet`.

    Args:
        default: value used when the user gives none.
        doc: what the parameter does, one sentence.
        unit: physical or counting unit ("px", "steps"); empty for a pure number or a choice.
        source: where the default comes from (paper and equation, or "adbench").
        **constraints: passed to ``pydantic.Field`` (``ge``, ``le``, ``gt``, ``lt``, ...).
    """
    return Field(default, description=doc, json_schema_extra={"unit": unit, "source": source}, **constraints)


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
        where = ".".join(str(part) for part in first["loc"]) or "parameters"
        raise UserError(f"{owner}: {where} = {first.get('input')!r} is not valid: {first['msg']}.") from None
