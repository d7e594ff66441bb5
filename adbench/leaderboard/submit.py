"""A run as one file, and such files into a leaderboard: only what verifies gets in."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from adbench.errors import UserError
from adbench.leaderboard import submission as files
from adbench.leaderboard.checks import NUMBERS, RANKED_BY, SPATIAL, numbers_without, ranking_left_out
from adbench.leaderboard.issues import Finding, Findings
from adbench.leaderboard.submission import Submission
from adbench.leaderboard.verify import Examined, across, examine, examine_all, facts_of, targets
from adbench.metrics.histogram import SubjectHistograms
from adbench.metrics.spatial import SpatialAccumulator
from adbench.results import record as records
from adbench.results.record import Record
from adbench.results.result import Result
from adbench.results.rundir import SPLITS, safe
from adbench.utils.files import write_text


def pack(run: Path) -> Submission:
    """The run in a folder as a submission.

    Raises:
        UserError: no such run, a file that differs from its hash in the record, or a run too old to say its subjects.
    """
    result = Result(run)
    record = result.record
    if SPLITS not in record.files:
        raise UserError(f"{run} was made before runs kept their lists of subjects: run it again with --force.")
    checked = {name: result.file(name) for name in ("histograms.npz", SPATIAL, SPLITS)}
    test = SubjectHistograms.from_npz(checked["histograms.npz"])
    validation = None
    if "val_histograms.npz" in record.files:
        validation = SubjectHistograms.from_npz(result.file("val_histograms.npz"))
    defined = record.metrics[RANKED_BY].value is not None
    subject_of = SpatialAccumulator.from_json(checked[SPATIAL]).subject_of
    raw = files.compose(
        json.loads((result.folder / records.RECORD).read_text(encoding="utf-8")),
        json.loads(checked[SPLITS].read_text(encoding="utf-8")),
        test,
        validation,
        checked[SPATIAL].read_bytes(),
        (RANKED_BY, ranking_left_out(test, subject_of)) if defined else None,
    )
    return files.parse(json.dumps(raw).encode(), run)


def submit(run: Path, out: Path) -> Path:
    """Pack the run in a folder into one file for a pull request.

    Args:
        run: its folder.
        out: a folder for the file, or its name (``*.json``).

    Raises:
        UserError: see :func:`pack`; or the run does not verify.
    """
    examined = examine(run)
    _refuse([examined], examined.findings)
    path = out if out.suffix == ".json" else out / examined.name
    write_text(path, examined.text)
    return path


@dataclass(frozen=True)
class Merged:
    """What became of one result.

    Attributes:
        path: where it lies in the leaderboards.
        added: False when the very run was there already, with every metric that this one was asked for.
    """

    path: Path
    added: bool


def merge(paths: Sequence[Path], root: Path, progress: Callable[[int, int], None] | None = None) -> list[Merged]:
    """Take results into the leaderboards below ``root``: all of them, or none when one does not verify.

    Args:
        paths: submissions, runs, or folders of either.
        root: folder of leaderboards.
        progress: called with how many are verified, and of how many.

    Raises:
        UserError: something does not verify, or contradicts a result that is there.
    """
    examined = examine_all([target for path in paths for target in targets(path)], progress)
    _refuse(examined, [finding for one in examined for finding in one.findings])
    merged: list[Merged] = []
    written: list[tuple[Path, str]] = []
    new: dict[str, Examined] = {}
    for one in examined:
        assert one.facts is not None
        twin = new.setdefault(one.facts.run_key, one)
        if twin is not one:
            mine, its = (files.parse(it.text.encode(), it.path).record for it in (one, twin))
            if _contradiction(mine, its):
                raise UserError(
                    f"{one.path} and {twin.path} have one run_key and different numbers: nothing was merged."
                )
            if _says_more(mine, its, one.path, twin.path):
                new[one.facts.run_key] = one
    by_folder: dict[Path, list[str]] = {}
    for key, one in new.items():
        record = files.parse(one.text.encode(), one.path).record
        by_folder.setdefault(root / safe(record.protocol["name"]) / "records", []).append(key)
    for folder, keys in by_folder.items():
        there = {path: files.read(path) for path in sorted(folder.glob("*.json"))}
        known = {submission.record.run_key: path for path, submission in there.items()}
        facts = []
        for key in keys:
            one = new[key]
            assert one.facts is not None
            if key not in known:
                facts.append(one.facts)
                written.append((folder / one.name, one.text))
                merged.append(Merged(folder / one.name, True))
                continue
            old, mine = there[known[key]].record, files.parse(one.text.encode(), one.path).record
            if why := _contradiction(mine, old):
                raise UserError(
                    f"{one.path} has the run_key of {known[key]} and different numbers ({why}): nothing was merged."
                )
            more = _says_more(mine, old, one.path, known[key])
            if more:
                written.append((known[key], one.text))
            merged.append(Merged(known[key], more))
        _refuse(examined, across([*(facts_of(submission) for submission in there.values()), *facts]))
    for path, text in written:
        write_text(path, text)
    return merged


def _contradiction(new: Record, old: Record) -> str:
    """The first number in which two results of one run differ, among those that both have; "" when they agree."""
    found = Findings("")
    apart = new.optional.keys() ^ old.optional.keys()
    mine, its = numbers_without(new, apart), numbers_without(old, apart)
    for name in NUMBERS:
        found.same(name, mine[name], its[name])
    if not found.list:
        return ""
    first = found.list[0]
    return f"{first.field}: {first.stored} and {first.expected}"


def _says_more(new: Record, old: Record, path: Path, other: Path) -> bool:
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


def _refuse(examined: Sequence[Examined], findings: Sequence[Finding], shown: int = 5) -> None:
    if not findings:
        return
    wrong = len({finding.file for finding in findings})
    lines = [f"{finding.file}: {finding.sentence}" for finding in findings[:shown]]
    more = f"\n  and {len(findings) - shown} more" if len(findings) > shown else ""
    raise UserError(
        f"{wrong} of {len(examined)} results do not verify, and nothing was written:\n  " + "\n  ".join(lines) + more
    )
