"""Parameters that name a file or folder of the user's.

As JSON, and so in keys, records and saved fits, such a parameter is the last part of its path: where files lie changes no number,
and a published record must not tell it. What they hold is hashed beside it (:meth:`adbench.methods.base.Method.files`).
:func:`given_values` are such parameters as they were given, for whatever has to find the files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler, PlainSerializer

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


class Shown:
    """Says of a field, as ``Annotated[TYPE, Shown()]``, that its JSON is another one than its value."""

    def shown(self, value: Any) -> Any:
        """What keys and records hold for ``value``; the same for what they hold already."""
        raise NotImplementedError

    def is_named(self, value: Any) -> bool:
        """Whether ``value``, as keys and records hold it, names something of the user's."""
        raise NotImplementedError

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        return PlainSerializer(self.shown, when_used="json").__get_pydantic_core_schema__(source, handler)


@dataclass(frozen=True)
class NamesFile(Shown):
    """Of a text that is the path of a file or folder: ``weights: Annotated[str, NamesFile(("random",))] = param(...)``.

    Attributes:
        words: values that are no path; a file that is called so is shown as ``./random``.
        hub: whether a text such as ``owner/name`` without a folder of that name is an id of the Hugging Face Hub, shown as it is.
    """

    words: tuple[str, ...] = ()
    hub: bool = False

    def shown(self, value: str) -> str:
        path = Path(value)
        if value in self.words or (self.hub and _HUB_ID.fullmatch(value) and not path.exists()):
            return value
        name = path.name if path.name not in ("", "..") else path.resolve().name or value
        return f"./{name}" if name in self.words else name

    def is_named(self, value: str) -> bool:
        return value not in self.words and not (self.hub and _HUB_ID.fullmatch(value))


@cache
def _fields(cls: type[BaseModel]) -> dict[str, Shown]:
    found = {
        name: [mark for mark in field.metadata if isinstance(mark, Shown)] for name, field in cls.model_fields.items()
    }
    return {name: marks[0] for name, marks in found.items() if marks}


def given_values(params: BaseModel) -> dict[str, Any]:
    """The fields whose JSON is another one, as they were given; never for a key, or anything that is published."""
    given = {name: getattr(params, name) for name in _fields(type(params))}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}


def shown_values(cls: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """Some fields of ``cls`` by name, given or shown, as keys and records hold them."""
    marks = _fields(cls)
    return {name: marks[name].shown(value) if name in marks else value for name, value in values.items()}


def names_files(cls: type[BaseModel], values: Mapping[str, Any]) -> bool:
    """Whether one of ``values`` of ``cls`` names something of the user's, so that the values alone do not say what it is."""
    return any(mark.is_named(values[name]) for name, mark in _fields(cls).items() if name in values)
