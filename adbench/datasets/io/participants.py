"""Tables of participants (BIDS participants.tsv, demographics of IXI) and the groups of subjects in them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path

from adbench.datasets.io.patient_names import folded
from adbench.errors import UserError
from adbench.utils.plain_files import read_table

PARTICIPANTS, IXI_TABLE, IXI_SHEET = "participants.tsv", "IXI.csv", "IXI.xls"
Rows = dict[str, dict[str, str]]  # subject, as :func:`folded` has it -> column -> value
_AGES = (20, 40, 60, 80)  # years at which a group begins
_SEXES = {"m": "male", "male": "male", "f": "female", "female": "female"}
_COLUMNS = {"sex": ("sex", "gender"), "age": ("age",), "scanner": ("scanner", "scanner_model", "manufacturer")}
_NOTHING = {"", "n/a", "na", "nan", "none", "unknown", "?"}
_LONGEST = 40  # characters of a group's name
_GROUPS = (
    "group",
    "diagnosis",
    "dx",
    "disease",
    "pathology",
    "condition",
    "status",
    "cohort",
    "participant_type",
    "type",
)
_ILL = re.compile(
    r"(?:^|[^a-z])(?:patients?|strokes?|lesions?|tumou?rs?|gliomas?|glioblastomas?|metastas[ei]s|(?:rr|pp|sp)?ms|sclerosis|"
    r"epilepsy|dementia|alzheimer\S*)(?:$|[^a-z])",
    re.IGNORECASE,
)
_NOT_ILL = re.compile(r"\s*(?:no|non|not|without|control|healthy|hc)(?:$|[^a-z])", re.IGNORECASE)


def read_participants(root: Path) -> Rows:
    """The rows of ``participants.tsv`` in ``root``; empty without it.

    Raises:
        UserError: the table cannot be read, has no column participant_id, or two rows of one subject that differ.
    """
    path = table(root, PARTICIPANTS)
    found: Rows = {}
    for row in _rows(path, "\t"):
        if "participant_id" not in row:
            raise UserError(
                f"The table {path} has no column participant_id; it has {', '.join(row)}: is it separated by tabs?"
            )
        own = row["participant_id"]
        name = own if own[:4].lower() == "sub-" else f"sub-{own}"
        before = found.setdefault(folded(name), row)
        for column in row:
            if column != "participant_id" and row[column] != before.get(column, ""):
                raise UserError(
                    f"The table {path} has two rows of {name}, with {column} {before.get(column, '')!r} and "
                    f"{row[column]!r}: keep one row a subject."
                )
    return found


def read_ixi(root: Path) -> Rows:
    """Age and sex of ``IXI.csv`` in ``root``, the demographics of IXI saved as CSV; empty without it.

    The sheet lists some numbers twice. Where such rows differ in age or sex, it is not known which of them is right, and the
    subject has none.

    Raises:
        UserError: the table cannot be read, or has no columns IXI_ID, AGE and SEX_ID.
    """
    path = table(root, IXI_TABLE)
    found: Rows = {}
    for row in _rows(path, ",;"):
        columns = {column.split("(")[0].strip().upper(): value for column, value in row.items()}
        shifted = any("=" in column for column in columns)  # by the comma in "SEX_ID (1=m, 2=f)", without quotes
        number = columns.get("IXI_ID", "").strip().removesuffix(".0")
        if shifted or not {"AGE", "SEX_ID"} <= columns.keys() or not number.isdecimal():
            raise UserError(
                f"A row of {path} has no IXI_ID, AGE and SEX_ID but {', '.join(row.values()) or 'nothing'}: save the sheet "
                f"{IXI_SHEET} as CSV, with its line of headings."
            )
        sex = {"1": "male", "2": "female"}.get(columns["SEX_ID"].strip().removesuffix(".0"), "")
        said = {"age": columns["AGE"].strip(), "sex": sex}
        before = found.setdefault(folded(f"IXI{int(number):03d}"), said)
        for column, value in said.items():
            if before[column] != value:
                before[column] = ""
    return found


def table(root: Path, name: str) -> Path:
    """The file ``name`` of ``root``, in upper or lower case; as ``name`` spells it where there is none."""
    if (root / name).is_file() or not root.is_dir():
        return root / name
    return next((path for path in sorted(root.iterdir()) if path.name.lower() == name.lower()), root / name)


def groups_of(row: Mapping[str, str]) -> dict[str, str]:
    """Sex, age (in bands of 20 years) and scanner, as far as ``row`` says them: strata that numbers are repeated in.

    Args:
        row: column -> value; names and values in upper or lower case.
    """
    said = {column.strip().lower(): value.strip() for column, value in row.items()}
    found = {}
    for grouping, columns in _COLUMNS.items():
        value = next((said[name] for name in columns if said.get(name, "").lower() not in _NOTHING), "")
        value = {"sex": _sex, "age": _band}.get(grouping, str)(value)
        if value:
            found[grouping] = value[:_LONGEST]
    return found


def _sex(value: str) -> str:
    return _SEXES.get(value.lower(), value)


def _band(value: str) -> str:
    """ "20-39" for 31.7 years; a range such as "50-54" stays as it is."""
    try:
        years = float(value)
    except ValueError:
        return value
    if not 0 <= years <= 130:
        return ""
    low = max((start for start in _AGES if start <= years), default=0)
    return f"{low} and over" if low == _AGES[-1] else f"{low}-{low + 19}"


def _rows(path: Path, separators: str) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    cells, _ = read_table(path.resolve(), separators)  # git-annex keeps files behind links
    first, *rows = cells or [[]]
    return [
        {column: value for column, value in zip_longest(first, row[: len(first)], fillvalue="") if column}
        for row in rows
        if row
    ]


def says_ill(row: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The columns of a subject's row that call it a patient, with their values."""
    for column, value in row.items():
        if column.strip().casefold() in _GROUPS and _ILL.search(value) and not _NOT_ILL.match(value):
            yield column, value
