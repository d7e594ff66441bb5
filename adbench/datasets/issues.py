"""Issues of a dataset, with severity and code, as ``adbench data check`` lists them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from adbench.errors import UserError

_log = logging.getLogger("adbench")
Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
OUTSIDE_BRAIN = 0.05  # share of a lesion outside the brain that is worth a warning

# docs/datasets.md says what each means.
Code = Literal[
    "unreadable", "too-large", "truncated", "header", "dtype", "axes", "nonfinite", "constant", "off-grid", "shape", "voxel-size", "orientation",
    "affine-conflict", "label", "empty-mask", "outside-brain", "brain-volume", "no-brain", "background", "missing-sequence", "missing-mask",
    "unnamed-mask", "left-out", "two-roles", "stray", "conflict", "missing-image", "unnamed-image", "no-train", "no-test",
    "participants", "lesion-in-train", "black-slice", "known-missing", "duplicate-file", "duplicate-subject", "look-alike",
    "duplicate-volume", "several-scans", "flagged", "unused-file", "unopened-archive", "unfinished-download",
    "broken-link", "damaged-store", "no-store", "known-layout", "scale", "remark",
]  # fmt: skip
CODES: tuple[str, ...] = get_args(Code)


@dataclass(frozen=True)
class Issue:
    """A problem of a dataset.

    Attributes:
        severity: "error" (numbers would be wrong or a case is unusable), "warning" (to be looked at) or "info" (known
            and harmless).
        code: one of :data:`CODES`.
        case: id of the case, "" when it concerns none.
        file: path.
        message: one sentence with the file and the value.
    """

    severity: Severity
    code: str
    case: str
    file: str
    message: str


def error(code: Code, file: object, message: str, case: str = "") -> Issue:
    """An issue that makes numbers wrong or a case unusable."""
    return Issue("error", code, case, str(file), message)


def warning(code: Code, file: object, message: str, case: str = "") -> Issue:
    """An issue that is to be looked at."""
    return Issue("warning", code, case, str(file), message)


def info(code: Code, file: object, message: str, case: str = "") -> Issue:
    """Something that is known and harmless."""
    return Issue("info", code, case, str(file), message)


_logged: set[str] = set()


def warn(message: str) -> None:
    """Log a warning, once in a process: the data of a run are looked at several times."""
    if message not in _logged:
        _logged.add(message)
        _log.warning(message)


def refuse(issues: Iterable[Issue]) -> None:
    """Raise the first error among ``issues``.

    Raises:
        UserError: there is one.
    """
    for issue in issues:
        if issue.severity == "error":
            raise UserError(issue.message)


def by_code(issues: Iterable[Issue]) -> dict[tuple[Severity, str], list[Issue]]:
    """Issues by severity and code, errors first."""
    groups: dict[tuple[Severity, str], list[Issue]] = {}
    for issue in sorted(issues, key=lambda issue: (SEVERITIES.index(issue.severity), issue.code)):
        groups.setdefault((issue.severity, issue.code), []).append(issue)
    return groups
