"""Submissions after a change."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adbench.leaderboard import submission as files
from adbench.leaderboard.submission import Submission
from adbench.results.rundir import safe
from adbench.runner.keys import RUN_ONLY
from adbench.utils.hashing import digest

ROOT = Path(__file__).parents[2] / "leaderboards"


def altered(submission: Submission, change: Callable[[dict[str, Any]], object], *, sign: bool = True) -> str:
    """The text of ``submission`` after ``change``; with ``sign`` its digest is that of the altered content."""
    raw = copy.deepcopy(submission.raw)
    change(raw)
    if sign:
        raw["digest"] = files.own_digest(raw)
    return json.dumps(raw)


def rekey(raw: dict[str, Any]) -> None:
    """Make the keys those of the identity."""
    record = raw["record"]
    record["run_key"] = digest(record["identity"])
    record["fit_key"] = digest({k: v for k, v in record["identity"].items() if k not in RUN_ONLY})


def rename(raw: dict[str, Any], method: str) -> None:
    """Make it the result of a method of a package."""
    record = raw["record"]
    record["method"]["name"] = record["identity"]["method"] = method
    record["method"]["origin"] = "package 1.0"
    rekey(raw)


def place(root: Path, text: str) -> Path:
    """Write a submission where it belongs below ``root``."""
    made = files.parse(text.encode(), Path("made"))
    path = root / safe(made.record.protocol["name"]) / "records" / files.file_name(made.record)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
