"""What file names of known datasets say: which dataset, who, where, which sequence. Paths are not parsed beyond the
last two parts, so a layout may lie at any depth."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

LESION, BRAIN = "lesion", "brain"
TITLES = {
    "ixi": "IXI",
    "atlas": "ATLAS v2.0",
    "brats21": "BraTS'21",
    "brats20": "BraTS'20",
    "brats19": "BraTS'17-'19",
    "brats23": "BraTS2023-GLI",
    "brats23-other": "BraTS2023 (not glioma)",
}
SITES_IXI = {"Guys": "Guy's", "HH": "HH", "IOP": "IOP"}


@dataclass(frozen=True)
class Named:
    """A file as its name describes it.

    Attributes:
        family: key of :data:`TITLES`.
        subject: identity that splits keep together.
        session: of the subject; "" when the dataset knows none.
        site: scanner or centre, "" when the name does not say.
        kind: modality, :data:`LESION`, :data:`BRAIN`, or "" for a sequence that is not used.
    """

    family: str
    subject: str
    session: str
    site: str
    kind: str


_BRATS = {"t1": "T1", "t1ce": "T1CE", "t2": "T2", "flair": "FLAIR", "seg": LESION}
_BRATS23 = {"t1n": "T1", "t1c": "T1CE", "t2w": "T2", "t2f": "FLAIR", "seg": LESION}
_END = r"\.nii(?:\.gz)?$"


def _ixi(match: re.Match[str], parent: str) -> Named:
    kind = match["kind"] if match["kind"] in ("T1", "T2", "PD") else ""
    return Named("ixi", match["subject"], f"{match['site']}-{match['scan']}", SITES_IXI[match["site"]], kind)


def _atlas(match: re.Match[str], parent: str) -> Named | None:
    rest, folder = match["rest"] or "", parent.lower()
    if rest.endswith("_mask") or (not rest and folder == "masks"):
        kind = LESION if not rest or "lesion" in rest.lower() else ""
    elif rest.endswith("_T1w") or (not rest and folder == "images"):
        kind = "T1"
    else:
        return None
    return Named("atlas", f"sub-{match['site']}{match['number']}", match["session"] or "", match["site"], kind)


def _brats(family: str) -> Callable[[re.Match[str], str], Named]:
    return lambda match, parent: Named(family, match["subject"], "", "", _BRATS[match["kind"].lower()])


def _brats23(match: re.Match[str], parent: str) -> Named:
    family = "brats23" if match["task"] == "GLI" else "brats23-other"
    return Named(family, match["subject"], match["session"], "", _BRATS23[match["kind"].lower()])


_PATTERNS: list[tuple[re.Pattern[str], Callable[[re.Match[str], str], Named | None]]] = [
    (
        re.compile(r"^(?P<subject>IXI\d{3})-(?P<site>Guys|HH|IOP)-(?P<scan>\d{4})-(?P<kind>[A-Z0-9]+)(?:-\d+)?" + _END),
        _ixi,
    ),
    (
        re.compile(
            r"^sub-(?P<site>r\d{3})(?P<number>s\d{3})(?:_(?P<session>ses-[A-Za-z0-9]+))?"
            r"(?P<rest>(?:_[A-Za-z0-9]+-[A-Za-z0-9]+)*_[A-Za-z0-9]+)?" + _END
        ),
        _atlas,
    ),
    (re.compile(r"^(?P<subject>BraTS2021_\d{5})_(?P<kind>t1|t1ce|t2|flair|seg)" + _END), _brats("brats21")),
    (
        re.compile(r"^(?P<subject>BraTS20_(?:Training|Validation)_\d{3})_(?P<kind>t1|t1ce|t2|flair|seg)" + _END),
        _brats("brats20"),
    ),
    (
        re.compile(r"^(?P<subject>Brats1[789]_\w+?)_(?P<kind>t1|t1ce|t2|flair|seg)" + _END, re.IGNORECASE),
        _brats("brats19"),
    ),
    (
        re.compile(
            r"^(?P<subject>BraTS-(?P<task>[A-Z]+)-\d{5})-(?P<session>\d{3})-(?P<kind>t1n|t1c|t2w|t2f|seg)" + _END
        ),
        _brats23,
    ),
]


def recognise(path: str) -> Named | None:
    """What the name of a file says, or None when it follows no known dataset.

    Args:
        path: of the file, with ``/``; of its folders only the last is looked at.
    """
    parts = PurePosixPath(path).parts
    parent = parts[-2] if len(parts) > 1 else ""
    for pattern, read in _PATTERNS:
        if match := pattern.match(parts[-1]):
            return read(match, parent)
    return None


_PERSONS = (
    (re.compile(r"^(?:sub-)?IXI[-_]?(\d{3})(?!\d)", re.IGNORECASE), "IXI{}"),
    (re.compile(r"^(?:sub-)?BraTS2021[-_](\d{5})(?!\d)", re.IGNORECASE), "BraTS glioma {}"),
    (re.compile(r"^(?:sub-)?BraTS-GLI-(\d{5})(?!\d)", re.IGNORECASE), "BraTS glioma {}"),
    (re.compile(r"^(?:sub-)?(r\d{3}s\d{3})(?!\d)", re.IGNORECASE), "ATLAS {}"),
)
_COLLECTIONS = (
    (re.compile(r"^(?:sub-)?BraTS(?:2021[-_]\d|-GLI-\d)", re.IGNORECASE), "BraTS'21 and BraTS2023-GLI"),
    (re.compile(r"^(?:sub-)?BraTS(?:20|1[789])_", re.IGNORECASE), "BraTS'17 to BraTS'20"),
)


def person(subject: str) -> str:
    """One name for one person whatever the release: ``BraTS2021_00012`` and ``BraTS-GLI-00012-001`` are the same
    patient, as are all scans of one IXI number. Any other subject is itself."""
    for pattern, name in _PERSONS:
        if match := pattern.match(subject):
            return name.format(match[1].lower())
    return subject


_VOLUMES = (
    re.compile(r"^(?P<subject>sub-[A-Za-z0-9]+)_ses-[A-Za-z0-9]+"),
    re.compile(r"^(?P<subject>BraTS-[A-Z]+-\d{5})-\d{3}(?!\d)"),
    re.compile(r"^(?P<subject>IXI\d{3})-(?:Guys|HH|IOP)-\d{4}(?!\d)"),
)


def subject_of(case: str) -> str:
    """The subject that a case id names beside its session or visit (BIDS, BraTS2023, IXI); any other id is a subject."""
    for pattern in _VOLUMES:
        if match := pattern.match(case):
            return match["subject"]
    return case


def shared_patients(one: set[str], other: set[str]) -> tuple[str, str] | None:
    """Two releases that share patients under names that cannot be told apart, one on each side; None when there are none.

    BraTS'21 contains the patients of the earlier years under new numbers.
    """
    sides = [{name for pattern, name in _COLLECTIONS for s in side if pattern.match(s)} for side in (one, other)]
    for mine in sides[0]:
        for theirs in sides[1]:
            if mine != theirs:
                return mine, theirs
    return None
