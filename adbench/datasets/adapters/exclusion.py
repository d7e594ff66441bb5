"""Which cases ``dataset.exclude`` names, by the rule of identity that splits follow."""

from __future__ import annotations

from collections.abc import Iterable

from adbench.datasets.io.filename_patterns import folded, person, subject_of
from adbench.errors import unknown


def excluded(names: Iterable[str], cases: Iterable[tuple[str, str]], dataset: str) -> set[str]:
    """The ids of the cases that ``names`` leave out.

    A name is that of a subject or a case as it is written there; where none is, upper and lower case, ``sub-`` and zeros before
    numbers do not matter, and the name of a patient means all of the patient's scans.

    Args:
        names: what the user wrote.
        cases: (subject, id) of everything there.
        dataset: its name, for the message.

    Raises:
        UserError: a name is nobody's; the nearest is given.
    """
    there = list(cases)
    found: set[str] = set()
    for name in names:
        own = {case for subject, case in there if name in (subject, case)}
        own = own or {case for _, case in there if _plain(case) == _plain(name)}
        if subject_of(name) == name:
            own = own or {case for subject, case in there if person(subject) == person(name)}
        if not own:
            known = {name for pair in there for name in pair}
            raise unknown(f"case of {dataset} in dataset.exclude", name, known)
        found |= own
    return found


def _plain(case: str) -> str:
    name = folded(case)
    return name.removeprefix("sub-")
