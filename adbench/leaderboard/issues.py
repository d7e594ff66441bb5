"""Something in a published result that is not as it must be, and how two JSON values are compared."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

CLOSE = {"rel_tol": 1e-9, "abs_tol": 1e-12}  # the order of a sum differs between machines


@dataclass(frozen=True)
class Finding:
    """Something in a file that is not as it must be.

    Attributes:
        file: where.
        field: which, with dots: "metrics.auprc.value".
        stored: what the file says.
        expected: what it must say; what was recomputed.
        why: in words, when the two values do not say it.
    """

    file: str
    field: str
    stored: Any = None
    expected: Any = None
    why: str = ""

    @property
    def sentence(self) -> str:
        """The finding in one line."""
        values = f"stored {_shown(self.stored)}, recomputed {_shown(self.expected)}"
        if self.why and self.expected is None:  # only words say what is wrong
            values = "" if self.stored is None else f"stored {_shown(self.stored)}"
        return f"{self.field}: {values}{f' ({self.why})' if values and self.why else self.why}"


def as_rows(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """Findings for JSON."""
    return [{k: repr(v) if isinstance(v, _Absent) else v for k, v in asdict(finding).items()} for finding in findings]


class Findings:
    """Collects what is wrong with one file."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.list: list[Finding] = []

    def add(self, field: str, stored: Any = None, expected: Any = None, why: str = "") -> None:
        """Something is wrong with ``field``."""
        self.list.append(Finding(self.where, field, stored, expected, why))

    def same(self, field: str, stored: Any, expected: Any, why: str = "") -> None:
        """Compare two JSON values, going into dictionaries and lists; numbers may differ by rounding."""
        if isinstance(stored, dict) and isinstance(expected, dict):
            for key in [*expected, *(key for key in stored if key not in expected)]:
                self.same(f"{field}.{key}", stored.get(key, _ABSENT), expected.get(key, _ABSENT), why)
        elif isinstance(stored, (list, tuple)) and isinstance(expected, (list, tuple)) and len(stored) == len(expected):
            for index, (one, other) in enumerate(zip(stored, expected, strict=True)):
                self.same(f"{field}.{index}", one, other, why)
        elif not _equal(stored, expected):
            self.add(field, stored, expected, why)


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


_ABSENT = _Absent()


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return a == b or (isinstance(a, float) and isinstance(b, (int, float)) and math.isclose(a, b, **CLOSE))
    return bool(type(a) is type(b) and a == b)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
