"""One thing that a check found, and the words for it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from adbench.errors import UserError

log = logging.getLogger("adbench")
Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")

CODES = {
    "unreadable": "a file that is empty, damaged, no NIfTI or not permitted",
    "truncated": "a file that ends before its voxels do",
    "dtype": "voxels of a type that is no real number, or another one than distributed",
    "axes": "a volume that is not 3-D",
    "nonfinite": "NaN or infinite voxels (deep)",
    "constant": "an image whose voxels are all equal (deep)",
    "off-grid": "a mask or sequence on another grid than the first image of its case",
    "shape": "a shape other than the distribution's",
    "voxel-size": "a voxel size other than the distribution's, or an implausible one",
    "orientation": "stored axes that point elsewhere than the distribution's, or a header that does not say where",
    "affine-conflict": "an sform and a qform that disagree",
    "label": "a mask value that is not allowed, or no whole number (deep)",
    "empty-mask": "a lesion mask without a lesion (deep)",
    "outside-brain": "lesion voxels outside the brain (deep)",
    "background": "a skull-stripped image whose corners are not 0 (deep)",
    "missing-sequence": "a case without a sequence that other cases have",
    "missing-mask": "a case without lesion mask",
    "unnamed-mask": "a file that looks like a mask and whose name does not say of what",
    "left-out": "a case that takes no role",
    "two-roles": "a patient in two splits",
    "stray": "a file beside the split folders, or in a folder that is none of them",
    "conflict": "two files that mean one image or mask and differ",
    "missing-image": "a mask without image",
    "unnamed-image": "a slice whose name does not say its modality",
    "no-train": "no case to train on",
    "no-test": "no case with a lesion mask to test on",
    "lesion-in-train": "a training slice with a lesion, which does not teach",
    "black-slice": "a slice without brain, which is left out",
    "known-missing": "a sequence that the distribution itself lacks",
    "duplicate-file": "the same file twice below the root",
    "duplicate-subject": "two subjects with the same volume, or with slices in common (deep)",
    "look-alike": "two subjects with nearly the same volume, or volumes of one person by their looks",
    "duplicate-volume": "the same volume twice in one subject",
    "several-scans": "a subject with more than one scan",
    "flagged": "a subject that public lists name",
    "unused-file": "a file that is not used",
    "unopened-archive": "an archive that is not read in place",
    "unfinished-download": "a download in progress",
    "broken-link": "a link that leads nowhere",
    "damaged-store": "pixels of a prepared store that are not those that were written (--store)",
    "no-store": "a modality that was not prepared with these parameters (--store)",
    "remark": "what loading a case remarked",
}


@dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    Attributes:
        severity: "error", "warning" or "info".
        code: key of :data:`CODES`.
        case: id of the case, "" when it concerns none.
        file: path.
        message: one sentence with the file and the value.
    """

    severity: Severity
    code: str
    case: str
    file: str
    message: str


_told: set[str] = set()


def warn(message: str) -> None:
    """Log a warning, once in a process: the data of a run are looked at several times."""
    if message not in _told:
        _told.add(message)
        log.warning(message)


def refuse(findings: Iterable[Finding]) -> None:
    """Raise the first error among ``findings``.

    Raises:
        UserError: there is one.
    """
    for finding in findings:
        if finding.severity == "error":
            raise UserError(finding.message)


def by_code(findings: Iterable[Finding]) -> dict[tuple[Severity, str], list[Finding]]:
    """Findings by severity and code, errors first."""
    groups: dict[tuple[Severity, str], list[Finding]] = {}
    for finding in sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), f.code)):
        groups.setdefault((finding.severity, finding.code), []).append(finding)
    return groups
