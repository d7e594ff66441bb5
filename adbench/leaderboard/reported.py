"""Numbers that papers state, kept apart from ours: other data, other rules, and nobody's counts to recompute them from."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, fields
from pathlib import Path

from adbench.errors import UserError

FILE = "reported.csv"
_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Reported:
    """One number of a paper, as text: some are ranges, or come with an interval.

    Attributes:
        method: as the source calls it.
        dataset: that was tested on.
        modality: of it.
        training_source: what the method learned from.
        protocol: in words.
        metric: as the source defines it.
        value_percent: in percent.
        source: where it stands.
        how_read: read on a page, in code, digitised from a figure, or quoted by somebody else.
    """

    method: str
    dataset: str
    modality: str
    training_source: str
    protocol: str
    metric: str
    value_percent: str
    source: str
    how_read: str


def read_reported(path: Path) -> list[Reported]:
    """The rows of ``reported.csv``; none when there is no such file.

    Raises:
        UserError: other columns, an empty field, or no text.
    """
    path = Path(path)
    if not path.is_file():
        return []
    if path.stat().st_size > _MAX_BYTES:
        raise UserError(f"{path} has more than {_MAX_BYTES} bytes: it is no table of published numbers.")
    names = [field.name for field in fields(Reported)]
    try:
        rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8")), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a readable table: {error}.") from None
    if not rows or rows[0] != names:
        raise UserError(
            f"{path} must have the columns {', '.join(names)}, not {', '.join(rows[0]) if rows else 'none'}."
        )
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(names) or not all(cell.strip() for cell in row):
            raise UserError(f"{path}, row {number}: it must fill all {len(names)} columns.")
    return [Reported(*row) for row in rows[1:]]
