"""Submit a run as one file, and merge such files into the leaderboards: only results that verify get in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adbench.context import Progress
from adbench.errors import UserError
from adbench.leaderboard.checks.all import check
from adbench.leaderboard.checks.issue import RecordIssue, differences
from adbench.leaderboard.checks.numbers import NUMBERS, numbers_without
from adbench.leaderboard.submission import Submission, Submitted, file_name, pack, parse, read_submission
from adbench.leaderboard.verify import SharedFields, check_all, contradictions, shared_fields, targets
from adbench.results.record import Record
from adbench.results.rundir import safe
from adbench.utils.files import write_text
from adbench.utils.plain_files import check_no_link


def submit(run: Path, out: Path, submitted: Submitted) -> Path:
    """Pack the run in a folder into one file for a pull request, in the folder ``out`` or of that name (``*.json``).

    Raises:
        UserError: the run cannot be packed, or does not verify.
    """
    (result,) = check_all([run], texts=False)
    _refuse(result.issues, 1)
    return _written(out, result.name, pack(run, submitted).text)


def submit_maps(submission: Submission, out: Path) -> Path:
    """As :func:`submit`, with a result that was scored from maps (:func:`adbench.leaderboard.from_maps.pack_maps`).

    Raises:
        UserError: it does not verify.
    """
    _refuse(check(submission), 1)
    return _written(out, file_name(submission.record), submission.text)


def _written(out: Path, name: str, text: str) -> Path:
    path = out if out.suffix == ".json" else out / name
    write_text(path, text)
    return path


@dataclass(frozen=True)
class Merged:
    """The outcome of merging one result.

    Attributes:
        path: its file in the leaderboards.
        added: False when the very run was there already, with every metric that this one was asked for.
    """

    path: Path
    added: bool


@dataclass(frozen=True)
class _Known:
    """A result that is in the leaderboards, or that will be."""

    path: Path
    origin: Path
    submission: Submission
    shared: SharedFields

    @property
    def record(self) -> Record:
        return self.submission.record


def merge(
    paths: Sequence[Path],
    root: Path,
    progress: Progress | None = None,
    passed_over: list[Path] | None = None,
    unseen: Counter[str] | None = None,
) -> list[Merged]:
    """Merge results (submissions, runs, or folders of either) into the leaderboards below ``root``: all, or none when
    one does not verify. ``passed_over`` receives the files of a folder that are no results, ``unseen`` what could not be
    checked, with the number of results.

    A result of a run that is there already takes its place if it was asked for more metrics.

    Returns:
        One entry a run, in the order given.

    Raises:
        UserError: something does not verify, or contradicts a result that is there.
    """
    results = list(check_all([target for path in paths for target in targets(path, passed_over)], progress))
    _refuse([issue for result in results for issue in result.issues], len(results))
    if unseen is not None:
        unseen.update(what for result in results for what in result.unseen)
    folders: dict[Path, dict[str, _Known]] = {}
    texts: dict[Path, str] = {}
    merged: dict[str, Merged] = {}
    for result in results:
        assert result.shared is not None
        submission = parse(result.text.encode(), result.path)
        record = submission.record
        folder = root / safe(record.protocol["name"]) / "records"
        if folder not in folders:
            check_no_link(folder / result.name, root)
            folders[folder] = _read(folder)
        old = folders[folder].get(record.run_key)
        if old is not None and (why := _of_another(submission, old.submission) or _contradiction(record, old.record)):
            raise UserError(
                f"{result.path} has the run_key of {old.origin} and is different ({why}): nothing was merged."
            )
        path = folder / result.name if old is None else old.path
        added = old is None or _has_more_metrics(record, old.record, result.path, old.origin)
        if added:
            texts[path] = result.text
            folders[folder][record.run_key] = _Known(path, result.path, submission, result.shared)
        before = merged.get(record.run_key)
        merged[record.run_key] = Merged(path, added or (before is not None and before.added))
    for known in folders.values():
        _refuse(contradictions([one.shared for one in known.values()]), len(results))
    for path, text in texts.items():
        write_text(path, text)
    return list(merged.values())


def _read(folder: Path) -> dict[str, _Known]:
    """Run key -> the results in a folder of records."""
    found: dict[str, _Known] = {}
    for path in sorted(folder.glob("*.json")):
        submission = read_submission(path)
        known = _Known(path, path, submission, shared_fields(submission))
        twin = found.setdefault(submission.record.run_key, known)
        if twin is not known:
            raise UserError(f"{path} and {twin.path} are one run: remove one of them.")
    return found


def _of_another(new: Submission, old: Submission) -> str:
    same = new.content.submitted == old.content.submitted
    return "" if same else "who submits it, under which licence or link; remove the old file first"


def _contradiction(new: Record, old: Record) -> str:
    """The first thing in which two results of one run differ, metrics that one lacks left out; "" when they agree.

    Measured again on the same machine, a run takes about the same time: at most twice that, and a second.
    """
    apart = new.optional.keys() ^ old.optional.keys()
    mine, its = _lasting(new, apart), _lasting(old, apart)
    first = next((issue for name in mine for issue in differences(name, mine[name], its[name])), None)
    if first:
        return f"{first.field}: {first.stored} and {first.expected}"
    for field in ("timing", "memory"):
        for name, value in getattr(new, field).items():
            other = getattr(old, field).get(name, value)
            if name != "evaluate" and max(value, other) > 2 * min(value, other) + 1:
                return f"{field}.{name}: {value} and {other}"
    gone = next((note for note in old.notes if note not in new.notes), None)
    return "" if gone is None else f"notes: this one is missing: {gone}"


def _lasting(record: Record, apart: Collection[str]) -> dict[str, Any]:
    """What measuring a run again leaves as it is, without the metrics in ``apart``: neither times, nor what names files."""
    again = {*NUMBERS, "optional", "created", "timing", "memory", "notes", "files"}
    found = {**numbers_without(record, apart), **record.model_dump(mode="json", exclude=again)}
    found["optional"] = {name: part.model_dump() for name, part in record.optional.items() if name not in apart}
    found["provenance"].pop("git", None)
    found["method"].pop("conformance")
    return found


def _has_more_metrics(new: Record, old: Record, path: Path, other: Path) -> bool:
    """Whether ``new`` was asked for metrics that ``old`` was not.

    Raises:
        UserError: each has a metric that the other has not.
    """
    mine, its = (sorted(one.optional.keys() - another.optional.keys()) for one, another in ((new, old), (old, new)))
    if mine and its:
        raise UserError(
            f"{path} and {other} are one run, one with the metric {mine[0]} and the other with {its[0]}: nothing was "
            f"merged. Run it once with --metrics {','.join([*mine, *its])}."
        )
    return bool(mine)


def _refuse(issues: Sequence[RecordIssue], count: int, shown: int = 5) -> None:
    """Raise an error that names the first issues, if there are any in ``count`` results."""
    if not issues:
        return
    lines = [f"{issue.file}: {issue.sentence}" for issue in issues[:shown]]
    if len(issues) > shown:
        lines.append(f"and {len(issues) - shown} more")
    wrong, what = len({issue.file for issue in issues}), "do not verify"
    if all(issue.unchecked for issue in issues):
        what = "could not be checked whole"
    raise UserError(f"{wrong} of {count} results {what}, and nothing was written:\n  " + "\n  ".join(lines))
