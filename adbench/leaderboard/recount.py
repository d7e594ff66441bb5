"""Recompute the numbers of a published result from its counts, by the definitions of this release."""

from __future__ import annotations

import json
from pathlib import Path

from adbench.errors import UserError
from adbench.leaderboard.checks.all import check_keys
from adbench.leaderboard.checks.numbers import NUMBERS, check_numbers, recomputed
from adbench.leaderboard.submission import file_name, own_digest, parse, read_submission
from adbench.runner.keys import METRICS_VERSION
from adbench.utils.files import write_text
from adbench.utils.hashing import digest


def recount(path: Path) -> Path | None:
    """Write the result in ``path`` again, with its numbers derived from its counts; the old file goes.

    What the maps decided stays: thresholds, components and slices were counted when they were scored. The record then says
    by which version its numbers were first made.

    Returns:
        The new file; None where its numbers are those of this release already.

    Raises:
        UserError: it is damaged, or its counts do not give the numbers of this release: its maps must be scored again.
    """
    old = read_submission(path)
    made_by = old.record.identity.get("metrics_version")
    if made_by == METRICS_VERSION:
        return None
    damage = [issue for issue in check_keys(old) if issue.field != "identity.metrics_version"]
    if damage:
        raise UserError(f"{path}: {damage[0].sentence}.")
    try:
        found = recomputed(old)
    except (UserError, ValueError, ArithmeticError, IndexError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be counted again, its maps must be scored again: {error}") from None
    raw = json.loads(json.dumps(old.raw))
    record, numbers = raw["record"], found.as_dict()
    record |= {field: numbers[field] for field in NUMBERS}
    record["notes"] += [note for note in found.notes if note not in record["notes"]]
    record["identity"]["metrics_version"] = METRICS_VERSION
    record["run_key"] = digest(record["identity"])
    record["provenance"]["recounted_from"] = made_by
    raw["digest"] = own_digest(raw)
    new = parse(json.dumps(raw).encode(), path)
    for issue in check_numbers(new):
        raise UserError(f"{path} cannot be counted again, its maps must be scored again: {issue.sentence}.")
    target = path.with_name(file_name(new.record))
    write_text(target, new.text)
    if target != path:
        path.unlink()
    return target
