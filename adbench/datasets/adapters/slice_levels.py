"""Intensity scale of 16-bit slices: the white level, and whether all slices share one scale."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from adbench.datasets import issues
from adbench.datasets.adapters.slice_names import SliceFile
from adbench.datasets.base import Split
from adbench.datasets.io.archive import FileError
from adbench.datasets.io.patient_names import person
from adbench.datasets.io.png import largest_of_16_bits
from adbench.datasets.issues import Issue
from adbench.datasets.splits import ROLES

WHITE = 65535  # of an image that uses all of its 16 bits
_APART = 4  # between the largest values of images on one scale: scanners and contrasts differ by less
_FEW = 0.1  # share of the subjects that may be dark by their content alone


@dataclass(frozen=True)
class Level:
    """The largest value of one 16-bit image, above 0."""

    split: Split | None
    subject: str
    path: Path
    value: int


def levels_of(files: Iterable[SliceFile]) -> list[Level]:
    """The levels of those of ``files`` that have 16 bits and are not black; what cannot be read is reported elsewhere."""
    found = []
    for file in files:
        with suppress(FileError):
            if value := largest_of_16_bits(file.path):
                found.append(Level(file.split, person(file.subject), file.path, value))
    return found


def white_of(levels: Sequence[Level]) -> int:
    """The value that is white: the largest of the bits that all use together."""
    return _whole(max(level.value for level in levels)) if levels else WHITE


def brightest(levels: Iterable[Level]) -> list[Level]:
    """The brightest image of every subject and role, the darkest of them first."""
    found: dict[tuple[Split | None, str], Level] = {}
    for level in levels:
        key = level.split, level.subject
        if key not in found or found[key].value < level.value:
            found[key] = level
    return sorted(found.values(), key=lambda level: (level.value, str(level.path)))


def dark_remark(value: int, white: int) -> str:
    """Remark on a subject whose largest value is ``value``; "" for none."""
    if _whole(value) < white:
        return (
            f"16-bit images use {value.bit_length()} bits where others use {white.bit_length()}, and {white} is white"
        )
    return f"16-bit images use {white.bit_length()} bits, so {white} is white" if white != WHITE else ""


def scale_faults(levels: Sequence[Level]) -> Iterator[Issue]:
    """Roles, subjects and slices on different scales: divided by one white, some would be darker than others."""
    subjects = brightest(levels)
    yield from list(_roles_apart(subjects)) or list(_subjects_apart(subjects)) or list(_stray_slices(levels))


def _roles_apart(subjects: Sequence[Level]) -> Iterator[Issue]:
    """Two of train, val and test, all of one on one side of a gap and all of the other beyond it."""
    by_role: dict[Split, list[Level]] = defaultdict(list)
    for level in subjects:
        if level.split is not None:
            by_role[level.split].append(level)
    gaps = _gaps(subjects)
    for one, other in combinations(sorted(by_role, key=ROLES.index), 2):
        dark, bright = sorted((one, other), key=lambda role: by_role[role][0].value)
        last, first = by_role[dark][-1].value, by_role[bright][0].value
        if any(last <= subjects[cut - 1].value and subjects[cut].value <= first for cut in gaps):
            yield _refused((f"those of {dark}", by_role[dark]), (f"those of {bright}", by_role[bright]))


def _subjects_apart(subjects: Sequence[Level]) -> Iterator[Issue]:
    """Groups of subjects with none between them; a few below all others may be dark by their content, and one of two."""
    for cut in _gaps(subjects):
        groups = subjects[:cut], subjects[cut:]
        dark, bright = (
            (f"the {len(group)} subject{'s' * (len(group) > 1)} {_named(group)}", group) for group in groups
        )
        found = _refused(dark, bright)
        yield found if cut > max(1, _FEW * len(subjects)) else issues.warning("scale", found.file, found.message)


def _stray_slices(levels: Sequence[Level]) -> Iterator[Issue]:
    """A few slices far above all others."""
    ordered = sorted(levels, key=lambda level: (level.value, str(level.path)))
    for cut in _gaps(ordered):
        if cut > len(ordered) / 2:
            found = _refused((f"{cut} slices", ordered[:cut]), (f"{len(ordered) - cut} others", ordered[cut:]))
            yield issues.warning("scale", found.file, found.message)


def _gaps(ordered: Sequence[Level]) -> list[int]:
    """Where ``ordered`` levels have gaps that images on one scale have not."""
    return [at for at in range(1, len(ordered)) if ordered[at].value >= _APART * ordered[at - 1].value]


def _refused(dark: tuple[str, Sequence[Level]], bright: tuple[str, Sequence[Level]]) -> Issue:
    """The error of two groups, each with what it is called, by the middle one of each."""
    (these, low), (those, high) = ((name, group[len(group) // 2]) for name, group in (dark, bright))
    message = (
        f"Of 16-bit images, {these} use {low.value.bit_length()} bits (in the middle {low.value}, {low.path}) and {those} "
        f"{high.value.bit_length()} (in the middle {high.value}, {high.path}): divided by one white, the first would be "
        f"{round(high.value / low.value)} times darker. Write all of them on one scale, or leave the others out with dataset.exclude."
    )
    return issues.error("scale", high.path, message)


def _named(group: Sequence[Level]) -> str:
    names = ", ".join(level.subject for level in group[:3])
    return f"{names}{', ...' if len(group) > 3 else ''}"


def _whole(value: int) -> int:
    """The largest number of as many bits as ``value`` has."""
    return int(2 ** value.bit_length() - 1)
