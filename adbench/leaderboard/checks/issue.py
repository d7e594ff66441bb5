"""One thing that is wrong with a published result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from adbench.results.explain import ABSENT, differing_fields


@dataclass(frozen=True)
class RecordIssue:
    """One thing that is wrong with a file.

    Attributes:
        field: where in the file, with dots: "metrics.auprc.value".
        stored: the value in the file.
        expected: the value that was recomputed, or that a rule asks for.
        why: an explanation, where the two values are not enough.
        unchecked: nothing is known to be wrong: what it takes to check this is not installed here.
    """

    field: str
    stored: Any = None
    expected: Any = None
    why: str = ""
    file: str = ""
    unchecked: bool = False

    @property
    def sentence(self) -> str:
        """The issue in one line, without the file."""
        values = f"stored {_shown(self.stored)}, recomputed {_shown(self.expected)}"
        if self.why and self.expected is None:  # there is no value to compare with
            values = "" if self.stored is None else f"stored {_shown(self.stored)}"
        return f"{self.field}: {values}{f' ({self.why})' if values and self.why else self.why}"

    def as_dict(self) -> dict[str, Any]:
        """The issue as JSON values."""
        return {name: repr(value) if value is ABSENT else value for name, value in asdict(self).items()}


def differences(field: str, stored: Any, expected: Any, why: str = "") -> Iterator[RecordIssue]:
    """An issue for each part in which a value of the file differs, by more than rounding, from what it must be."""
    for name, one, other in differing_fields(stored, expected, field, close=True):
        yield RecordIssue(name, one, other, why)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
