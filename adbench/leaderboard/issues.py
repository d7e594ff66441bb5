"""What is wrong with a published result, and how two JSON values are compared."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

CLOSE = {"rel_tol": 1e-9, "abs_tol": 1e-12}  # the order of a sum differs between machines


@dataclass(frozen=True)
class Issue:
    """One thing that is wrong with a file.

    Attributes:
        field: where in the file, with dots: "metrics.auprc.value".
        stored: the value in the file.
        expected: the value that was recomputed, or that a rule asks for.
        why: an explanation, where the two values are not enough.
        file: path of the file.
    """

    field: str
    stored: Any = None
    expected: Any = None
    why: str = ""
    file: str = ""

    @property
    def sentence(self) -> str:
        """The issue in one line, without the file."""
        values = f"stored {_shown(self.stored)}, recomputed {_shown(self.expected)}"
        if self.why and self.expected is None:  # there is no value to compare with
            values = "" if self.stored is None else f"stored {_shown(self.stored)}"
        return f"{self.field}: {values}{f' ({self.why})' if values and self.why else self.why}"

    def as_dict(self) -> dict[str, Any]:
        """The issue as JSON values."""
        return {name: repr(value) if isinstance(value, _Absent) else value for name, value in asdict(self).items()}


def differences(field: str, stored: Any, expected: Any, why: str = "") -> Iterator[Issue]:
    """Where two JSON values differ, inside dictionaries and lists too; floating-point numbers may differ by rounding.

    Args:
        field: name of the value, the prefix of every issue's field.
        stored: the value in the file.
        expected: the value that it must have.
        why: of every issue.
    """
    if isinstance(stored, dict) and isinstance(expected, dict):
        for key in [*expected, *(key for key in stored if key not in expected)]:
            yield from differences(f"{field}.{key}", stored.get(key, _ABSENT), expected.get(key, _ABSENT), why)
    elif isinstance(stored, (list, tuple)) and isinstance(expected, (list, tuple)) and len(stored) == len(expected):
        for index, (one, other) in enumerate(zip(stored, expected, strict=True)):
            yield from differences(f"{field}.{index}", one, other, why)
    elif not _equal(stored, expected):
        yield Issue(field, stored, expected, why)


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


_ABSENT = _Absent()


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return a == b or (isinstance(a, float) and math.isclose(a, b, **CLOSE))
    return bool(type(a) is type(b) and a == b)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
