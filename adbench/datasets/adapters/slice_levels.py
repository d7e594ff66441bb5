"""16-bit slices: which value is white, and whether all of them were written on one scale."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import median

from adbench.datasets import issues
from adbench.datasets.adapters.slice_names import SliceFile
from adbench.datasets.base import Split
from adbench.datasets.io.archive import FileError
from adbench.datasets.io.filename_patterns import person
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
    """What to say of a subject whose largest value is ``value``; "" where there is nothing to say."""
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
    """Train, val and test whose middle subjects differ."""
    by_role: dict[Split, list[Level]] = defaultdict(list)
    for level in subjects:
        if level.split is not None:
            by_role[level.split].append(level)
    for one, other in combinations(sorted(by_role, key=ROLES.index), 2):
        dark, bright = sorted((one, other), key=lambda role: median(level.value for level in by_role[role]))
        low, high = (median(level.value for level in by_role[role]) for role in (dark, bright))
        if high >= _APART * low:
            yield _refused(
                (f"those of {dark}", by_role[dark][len(by_role[dark]) // 2]),
                (f"those of {bright}", by_role[bright][len(by_role[bright]) // 2]),
            )


def _subjects_apart(subjects: Sequence[Level]) -> Iterator[Issue]:
    """Two groups of subjects with none between them."""
    if (cut := _gap(subjects)) is None:
        return
    below, above = subjects[:cut], subjects[cut:]
    some = [f"the {len(group)} subject{'s' * (len(group) > 1)} {_named(group)}" for group in (below, above)]
    found = _refused((some[0], below[-1]), (some[1], above[0]))
    by_content = len(below) <= max(1, _FEW * len(subjects)) and len(below) < len(above)
    yield issues.warning("scale", found.file, found.message) if by_content else found


def _stray_slices(levels: Sequence[Level]) -> Iterator[Issue]:
    """A few slices far above all others."""
    ordered = sorted(levels, key=lambda level: (level.value, str(level.path)))
    cut = _gap(ordered)
    if cut is not None and cut > len(ordered) / 2:
        found = _refused((f"{cut} slices", ordered[cut - 1]), (f"{len(ordered) - cut} others", ordered[cut]))
        yield issues.warning("scale", found.file, found.message)


def _gap(ordered: Sequence[Level]) -> int | None:
    """Where the widest gap of ``ordered`` levels is; None where it is no wider than images on one scale have."""
    places = range(1, len(ordered))
    cut = max(places, key=lambda at: ordered[at].value / ordered[at - 1].value, default=0)
    return cut if cut and ordered[cut].value >= _APART * ordered[cut - 1].value else None


def _refused(dark: tuple[str, Level], bright: tuple[str, Level]) -> Issue:
    (these, low), (those, high) = dark, bright
    times = round(_whole(high.value) / _whole(low.value))
    message = (
        f"Of 16-bit images, {these} use {low.value.bit_length()} bits (up to {low.value} in {low.path}) and {those} "
        f"{high.value.bit_length()} (up to {high.value} in {high.path}): divided by one white, the first would be {times} times "
        "darker. Write all of them on one scale, or leave the others out with dataset.exclude."
    )
    return issues.error("scale", high.path, message)


def _named(group: Sequence[Level]) -> str:
    names = ", ".join(level.subject for level in group[:3])
    return f"{names}{', ...' if len(group) > 3 else ''}"


def _whole(value: int) -> int:
    """The largest number of as many bits as ``value`` has."""
    return int(2 ** value.bit_length() - 1)
