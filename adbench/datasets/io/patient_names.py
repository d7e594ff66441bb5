"""Which patient a name means, and which visit: one rule wherever splits are drawn or checked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

# What a name says after the patient: a session, a visit, a time point, in BIDS and in the releases with visits of their own.
_VISITS = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"^(?P<subject>BraTS[-_][a-z]+(?:[-_]RT)?[-_]\d+)[-_](?P<visit>\d{1,3})$",
        r"^(?P<subject>IXI\d{3})[-_](?P<visit>.+)$",
        r"^(?P<subject>Brats1[789]_.+)_(?P<visit>\d+)$",
        r"^(?P<subject>UPENN-GBM-\d+)_(?P<visit>\d+)$",
        r"^(?P<subject>OAS\d+(?:[-_]\d+)?)[-_](?P<visit>MR[-_]?d?\d+)$",
        r"^(?P<subject>sub-[a-z0-9]+)_(?P<visit>(?:ses|acq|run)-[a-z0-9]+(?:_(?:acq|run)-[a-z0-9]+)*)(?:_.*)?$",
    )
]
# What is appended everywhere else. A word says by itself that it is no part of the patient's name; a letter or a date does
# so only after a name with a number, because "sub-T01" is a patient, and so is the fifth volunteer of "site2_v05".
_NUMBER = r"[-_]?\d+(?:[-_]\d+)*[a-z]?"
_SUFFIX = re.compile(
    r"^(?P<subject>.+?)[-_. ](?:(?P<word>ses-[a-z0-9]+"
    rf"|(?:ses|session|tp|timepoint|time|visit|week|wk|month|mon|day|year|yr|fu|follow[-_]?up|scan|exam|run){_NUMBER}"
    r"|fu|follow[-_]?up|baseline|(?:pre|post)[-_]?(?:op|treatment|rt|surgery)?)"
    rf"|(?P<letter>[tvmdwy]{_NUMBER}|bl)"
    r"|(?P<date>(?:19|20)\d\d(?P<bar>[-_.]?)(?:0[1-9]|1[0-2])(?P=bar)(?:0[1-9]|[12]\d|3[01])))$",
    re.IGNORECASE,
)
_NO_PATIENT = re.compile(
    r"^(?:sub|subj|subject|pat|patient|pt|p|s|case|id|mrn|anon|control|volunteer|scan|exam|study|image|img|vol|volume|brain"
    r"|(?:site|cent(?:er|re)|hospital|hosp|scanner|group|cohort|arm)[-_]?\w*)$",
    re.IGNORECASE,
)
# Releases that know one patient by another name or by a part of it; any other patient is the name itself.
_PERSONS = {
    "brats glioma {}": re.compile(r"^BraTS(?:2021[-_]|[-_]GLI[-_])(\d+)$", re.IGNORECASE),
    "brats {} {} {}": re.compile(
        r"^BraTS[-_]([a-z]+?)s?(?:[-_](RT))?[-_](\d+)$", re.IGNORECASE
    ),  # PED is PEDs elsewhere
    "brats {}": re.compile(r"^BraTS1[789]_(.+)$", re.IGNORECASE),
    "ixi {}": re.compile(r"^IXI[-_]?(\d+)$", re.IGNORECASE),
}
_ZEROS = re.compile(r"(?<!\d)0+(?=\d)")
_COLLECTIONS = {
    name: re.compile(pattern, re.IGNORECASE)
    for name, pattern in {
        "BraTS'21 and BraTS2023-GLI": r"^BraTS(?:2021[-_]|[-_]GLI[-_])\d",
        "BraTS'20": r"^BraTS20_",
        "BraTS'17 to BraTS'19": r"^BraTS1[789]_",
        "BraTS-GoAT": r"^BraTS[-_]GoAT[-_]\d",
        "the brain tumours of the MSD (Task01)": r"^BRATS_\d",
        "UCSF-PDGM": r"^UCSF-PDGM-\d",
        "UPENN-GBM": r"^UPENN-GBM-\d",
    }.items()
}
_UNRELATED = {"UCSF-PDGM", "UPENN-GBM"}  # two hospitals: each overlaps with BraTS, not with the other
SECOND_SCANS = range(1538, 1657)  # numbers of BraTS'21 that are probably second scans of other patients
_BRATS21 = re.compile(r"^(?:sub-)?BraTS2021[-_](\d+)$", re.IGNORECASE)


def split_visit(name: str) -> tuple[str, str]:
    """The subject that ``name`` means, and the visit that it names beside it ("" when it names none).

    ``BraTS-MET-00012-001`` is visit 001 of ``BraTS-MET-00012``, ``sub-01_ses-2`` and ``p07_tp2`` are visits of ``sub-01``
    and ``p07``.
    """
    bare = _bare(name)
    for pattern in _VISITS:
        for text in dict.fromkeys((bare, name)):
            if match := pattern.match(text):
                return name[: len(name) - len(text)] + match["subject"], match["visit"]
    subject = name
    visits: list[str] = []
    while (match := _SUFFIX.match(subject)) and _is_patient(match["subject"], by_word=match["word"] is not None):
        visits.insert(0, subject[match.end("subject") + 1 :])
        subject = match["subject"]
    return subject, "_".join(visits)


def _is_patient(name: str, *, by_word: bool) -> bool:
    """Whether ``name`` may be that of a patient, and not a word for patients or places ("patient", "site2")."""
    return not _NO_PATIENT.match(name) and (by_word or any(letter.isdigit() for letter in _bare(name)))


def subject_of(case: str) -> str:
    """The subject of a case id; see :func:`split_visit`."""
    return split_visit(case)[0]


def person(name: str) -> str:
    """One name for one person, whatever the release, the visit, upper and lower case, zeros before a number or ``sub-``.

    It decides wherever splits are drawn and wherever they are checked. ``BraTS2021_00012`` and ``BraTS-GLI-00012-001`` are
    the same patient, as are all scans of one IXI number, ``sub-01_ses-2`` and ``SUB-001``. BraTS numbers of different
    families (GLI, MET, PED, MEN, SSA) are different patients.
    """
    subject = _bare(subject_of(name))
    for known, pattern in _PERSONS.items():
        if match := pattern.match(subject):
            subject = known.format(*(part or "" for part in match.groups()))
            break
    return folded(subject)


_OF_A_RELEASE = re.compile(
    r"(?:brats|ixi[-_]?\d|r\d{3}s\d{3}$|strokecase\d|oas\d|cc\d{6}$|ucsf-pdgm|upenn-gbm|\d{3}_s_\d{4}|tcga-)",
    re.IGNORECASE,
)


def in_set(subject: str, dataset: str) -> str:
    """A name that tells people of several data sets apart: ``sub-1`` of one is not that of another, ``IXI012`` is one person.

    Args:
        subject: its name.
        dataset: what the data set is called; "" where only one is looked at.
    """
    return f"{subject} (of {dataset})" if dataset and not _OF_A_RELEASE.match(_bare(subject)) else subject


def folded(name: str) -> str:
    """``name`` in lower case and without zeros before its numbers."""
    return _ZEROS.sub("", name.casefold())


def names_in(path: str) -> Iterator[str]:
    """Everything in a path that may be a subject's name, :func:`folded`: the last part first, of each the longest first.

    A name begins and ends at ``-``, ``_``, a point or a blank, and ends where letters follow its number.
    """
    for part in reversed(PurePosixPath(path).parts):
        text = folded(part)
        marks = list(re.finditer(r"[-_. ]", text))
        starts = (0, *(mark.end() for mark in marks))
        ends = (len(text), *(mark.start() for mark in marks), *(m.end() for m in re.finditer(r"\d(?=[a-z])", text)))
        yield from sorted(
            {text[start:end] for start in starts for end in ends if start < end}, key=lambda n: (-len(n), n)
        )


def second_scan(subject: str) -> bool:
    """Whether ``subject`` is one of the 119 numbers of BraTS'21 that are probably second scans of other patients.

    BraTS 2023 holds the same scans, gives second scans of a patient the visit 001, and has none of the numbers 01538 to
    01656.
    """
    match = _BRATS21.match(subject)
    return match is not None and int(match[1]) in SECOND_SCANS


def shared_patients(one: set[str], other: set[str]) -> tuple[str, str] | None:
    """Two releases that share patients under names that do not show it, one on each side; None when there are none.

    BraTS'21 contains the patients of the earlier years under new numbers; the MSD, UCSF-PDGM and UPENN-GBM gave to BraTS.
    """
    sides = [
        {name for name, pattern in _COLLECTIONS.items() for s in side if pattern.match(_bare(s))}
        for side in (one, other)
    ]
    for mine in sorted(sides[0]):
        for theirs in sorted(sides[1]):
            if mine != theirs and {mine, theirs} != _UNRELATED:
                return mine, theirs
    return None


def _bare(subject: str) -> str:
    return subject[4:] if subject[:4].lower() == "sub-" else subject
