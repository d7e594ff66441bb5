"""What is printed and tabulated is text, whatever it holds."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from adbench.utils.console import csv_cell


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("\n=1", "'\n=1"),
        ("\r=1", r"\r=1"),
        ("\x1b[2J", r"\x1b[2J"),
        ("a=1", "a=1"),
        ("", ""),
        (-0.5, -0.5),
        (None, None),
    ],
)
def test_a_cell_is_no_formula_and_obeys_nothing(value: Any, cell: Any) -> None:
    assert csv_cell(value) == cell
    text = io.StringIO()
    csv.writer(text).writerow([csv_cell(value)])
    assert text.getvalue()[:1] not in ("=", "+", "@", "\t", "\r") or value == ""
