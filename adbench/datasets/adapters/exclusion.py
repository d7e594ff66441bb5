"""Cases that ``dataset.exclude`` leaves out, matched by the rule of identity that splits use."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from adbench.datasets.io.patient_names import folded, person, subject_of
from adbench.errors import UserError

_SHOWN = 3  # names in a message


def excluded(names: Iterable[str], cases: Iterable[tuple[str, str]], dataset: str) -> set[str]:
    """The ids of the cases that ``names`` leave out.

    A name is that of a subject or a case as it is written there; where none is, upper and lower case, ``sub-`` and zeros before
    numbers do not matter, and the name of a patient means all of the patient's scans.

    Args:
        names: what the user wrote.
        cases: (subject, id) of everything there.
        dataset: its name, for the message.

    Raises:
        UserError: no case has such a name; the nearest is given.
    """
    there = list(cases)
    found: set[str] = set()
    for name in names:
        own = {case for subject, case in there if name in (subject, case)}
        own = own or {case for _, case in there if _plain(case) == _plain(name)}
        if subject_of(name) == name:
            own = own or {case for subject, case in there if person(subject) == person(name)}
        if not own:
            raise UserError(f"Unknown case of {dataset} in dataset.exclude {name!r}. {_near(name, there)}")
        found |= own
    return found


def _near(name: str, there: Sequence[tuple[str, str]]) -> str:
    """The names that are most like ``name``, else the first few."""
    known = sorted({case for _, case in there} | {subject for subject, _ in there})
    if near := difflib.get_close_matches(name, known, n=_SHOWN, cutoff=0.5):
        return f"Did you mean {' or '.join(map(repr, near))}?"
    cases = sorted({case for _, case in there})
    return f"There are {len(cases)} cases{': ' if len(cases) <= _SHOWN else ', such as '}{', '.join(cases[:_SHOWN])}."


def _plain(case: str) -> str:
    name = folded(case)
    return name.removeprefix("sub-")
