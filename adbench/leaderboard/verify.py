"""Every number of a published result, computed again from its counts; and all else in it that can be held against a rule.

What this shows: the numbers follow from the counts, the counts belong to the subjects, the keys to what they are made
of. What it cannot show is that the counts came out of the method: for that, anyone may repeat the run, and its keys and
seeds say how.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from adbench.errors import UserError
from adbench.leaderboard import submission as files
from adbench.leaderboard.checks import check, numbers_without
from adbench.leaderboard.consistency import skeleton, steps
from adbench.leaderboard.issues import Finding
from adbench.leaderboard.submission import Submission
from adbench.results.record import RECORD, Record
from adbench.results.rundir import safe
from adbench.utils.hashing import digest


def verify(paths: Sequence[Path], progress: Callable[[int, int], None] | None = None) -> tuple[int, list[Finding]]:
    """Verify submissions, whole leaderboards, or runs.

    Args:
        paths: files, folders of leaderboards, or run folders.
        progress: called with how many are done, and of how many.

    Returns:
        (how many results were looked at, what is wrong).

    Raises:
        UserError: there is nothing at a path.
    """
    examined = examine_all([target for path in paths for target in targets(path)], progress)
    findings = [finding for one in examined for finding in one.findings]
    return len(examined), findings + across([one.facts for one in examined if one.facts is not None])


def targets(path: Path) -> list[Path]:
    """The submissions (files) and runs (folders) at ``path``: those of a leaderboard, or all directly or below it.

    Raises:
        UserError: there are none.
    """
    path = Path(path)
    if path.is_file():
        return [path.parent if path.name == RECORD else path]
    if not path.is_dir():
        raise UserError(f"There is nothing at {path}: name a submission, a folder of leaderboards or a run.")
    found = sorted([*path.glob("records/*.json"), *path.glob("*/records/*.json")])
    if not found:
        found = sorted(file for file in path.glob("*.json") if _is_submission(file))
        found += sorted(record.parent for record in path.rglob(RECORD))
    if not found:
        raise UserError(
            f"There is no result at {path}: neither records/*.json of a leaderboard, submissions nor a run."
        )
    return found


def _is_submission(path: Path) -> bool:
    with open(path, "rb") as file:
        return b'"submission"' in file.read(64)


def load(path: Path) -> Submission:
    """The submission in ``path``, or the run there as one."""
    if path.is_dir():
        from adbench.leaderboard.submit import pack

        return pack(path)
    return files.read(path)


SAID = {"name", "subjects", "slices", "lesion_subjects", "grid"}  # of slices, that their digest decides


@dataclass(frozen=True)
class Facts:
    """What must agree between the results of a leaderboard."""

    file: str
    run_key: str
    test_digest: str
    cohort: str
    parts: dict[str, tuple[str, str]]  # role -> digest of its slices, hash of what is said about them
    numbers: str
    method: str
    seed: int
    trained: bool
    weights: tuple[str, int]  # hash of what decides the number of weights, that number
    scores: dict[str, str]  # volume -> how its lesion and other voxels are ordered, where that is no accident
    test: tuple[str, frozenset[str]]  # hash of the cohort that is meant, its subjects
    voxels: tuple[str, int, int] | None = None  # digest of the validation slices, their lesion and other voxels


@dataclass(frozen=True)
class Examined:
    """One result, looked at by itself.

    Attributes:
        path: the file, or the folder of the run.
        findings: what is wrong.
        facts: what must agree with others; None when it cannot be read.
        name: of its file in a leaderboard.
        text: of that file.
    """

    path: Path
    findings: list[Finding]
    facts: Facts | None = None
    name: str = ""
    text: str = ""


def examine_all(paths: Sequence[Path], progress: Callable[[int, int], None] | None = None) -> list[Examined]:
    """:func:`examine` each path, on all cores when there are many.

    Args:
        paths: of :func:`targets`.
        progress: called with how many are done, and of how many.
    """
    workers = min(os.cpu_count() or 1, len(paths))
    examined: list[Examined] = []

    def collect(results: Iterable[Examined]) -> list[Examined]:
        for one in results:
            examined.append(one)
            if progress:
                progress(len(examined), len(paths))
        return examined

    if workers < 2 or len(paths) < 4:
        return collect(map(examine, paths))
    with ProcessPoolExecutor(workers, initializer=_one_thread) as pool:
        return collect(pool.map(examine, paths))


def _one_thread() -> None:
    """Processes share the cores: with BLAS threads of each beside them, the whole takes three times as long."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)


def examine(path: Path) -> Examined:
    """One submission or run by itself."""
    try:
        submission = load(path)
    except UserError as error:
        return Examined(path, [Finding(str(path), "file", why=str(error))])
    try:
        findings = check(submission)
    except RecursionError:
        return Examined(path, [Finding(str(path), "file", why="it is nested too deeply")])
    if path.is_file():
        findings += place(path, submission.record)
    return Examined(path, findings, facts_of(submission), files.file_name(submission.record), submission.text)


def facts_of(submission: Submission, *, counts: bool = True) -> Facts:
    """What must agree between ``submission`` and others.

    Args:
        submission: one result.
        counts: unpack its validation counts too.
    """
    record, splits = submission.record, submission.content.splits
    return Facts(
        str(submission.path),
        record.run_key,
        record.test.digest,
        digest(
            [
                [row.get(name) for name in ("subject", "volume", "brain_voxels", "lesion_voxels")]
                for row in record.subjects
            ]
        ),
        {
            role: (part.digest, digest([part.model_dump(mode="json", include=SAID), getattr(splits, role)]))
            for role in ("train", "val", "threshold", "test")
            if (part := getattr(record, role)) is not None
        },
        numbers(record),
        record.method.name,
        record.seed,
        steps(record) > 0,
        (
            digest([record.method.name, record.method.source, record.method.params, record.test.grid]),
            record.method.parameters,
        ),
        _scores(record),
        (_cohort(record), frozenset(splits.test)),
        _voxels(submission) if counts else None,
    )


def _cohort(record: Record) -> str:
    """What names a cohort; a folder of anybody's is only named by its slices."""
    test = record.test
    return digest([record.protocol, test.name, test.modality, test.params, test.digest * (test.name == "folder")])


def _scores(record: Record) -> dict[str, str]:
    """Volume -> its AUPRC and AUROC, where they lie strictly between the best and chance.

    Two trainings, whose maps differ in every voxel, do not agree in four digits of both on half of the volumes, and to
    change so many digits of a copy, more than a voxel of each has to be moved.
    """
    return {
        str(row.get("volume", row.get("subject"))): f"{auprc:.4f} {auroc:.4f}"
        for row in record.subjects
        if isinstance(auprc := row.get("auprc"), float) and isinstance(auroc := row.get("auroc"), float)
        if 0.0001 < auprc < 0.9999 and 0.0001 < auroc < 0.9999 and auroc != 0.5
    }


def _voxels(submission: Submission) -> tuple[str, int, int] | None:
    try:
        pool = submission.validation.pooled() if submission.validation is not None else None
    except ValueError:
        return None  # said by check
    if pool is None:
        return None
    return submission.record.threshold.digest, pool.n_positive, pool.n_negative


def numbers(record: Record) -> str:
    """Hash of all that the counts decide, but for metrics that were asked for: two results of one run key must agree."""
    return digest(numbers_without(record, record.optional))


def across(facts: Sequence[Facts]) -> list[Finding]:
    """What the results of a leaderboard contradict each other in."""
    findings = []
    first: dict[tuple[str, str], Facts] = {}
    for one in facts:
        other = first.setdefault(("run_key", one.run_key), one)
        if other.numbers != one.numbers:
            findings.append(Finding(one.file, "run_key", why=f"the same run_key has other numbers in {other.file}"))
        elif other is not one:
            findings.append(Finding(one.file, "run_key", why=f"the same run is also in {other.file}"))
        other = first.setdefault(("subjects", one.test_digest), one)
        if other.cohort != one.cohort:
            why = f"the same test slices have other subjects or voxels in {other.file}"
            findings.append(Finding(one.file, "subjects", why=why))
        for role, (slices, said) in one.parts.items():
            other = first.setdefault((role, slices), one)
            if other.parts[role][1] != said:
                why = f"the same slices have another name, size, grid or other subjects in {other.file}"
                findings.append(Finding(one.file, role, why=why))
        key, weights = one.weights
        other = first.setdefault(("weights", key), one)
        if other.weights[1] != weights:
            why = f"the same method with the same parameters has {other.weights[1]} weights in {other.file}"
            findings.append(Finding(one.file, "method.parameters", weights, why=why))
        other = first.setdefault(("name", skeleton(one.method)), one)
        if other.method != one.method:
            findings.append(
                Finding(one.file, "method.name", one.method, why=f"it reads like {other.method!r} in {other.file}")
            )
        if one.voxels is not None:
            other = first.setdefault(("voxels", one.voxels[0]), one)
            if other.voxels is not None and other.voxels != one.voxels:
                why = f"the same validation slices have {other.voxels[1:]} lesion and other voxels in {other.file}"
                findings.append(Finding(one.file, "validation", list(one.voxels[1:]), why=why))
    return [*findings, *_copies(facts), *_dropped(facts)]


def _copies(facts: Sequence[Facts]) -> list[Finding]:
    """Trainings under other seeds, or under another method's name, whose scores are those of another result."""
    findings: list[Finding] = []
    owners: dict[tuple[str, str, str], dict[str, Facts]] = defaultdict(dict)
    for one in facts:
        if not (one.trained and one.scores):
            continue
        shared: Counter[str] = Counter()
        for volume, scores in one.scores.items():
            for other in owners[one.test_digest, volume, scores].values():
                if (other.seed, other.method) != (one.seed, one.method):
                    shared[other.file] += 1
            owners[one.test_digest, volume, scores][one.file] = one
        for file, count in shared.most_common(1):
            if count > max(1, len(one.scores) / 2):
                why = (
                    f"{count} of {len(one.scores)} subjects have the very scores that they have in {file}, another "
                    "training; a training without chance needs no second seed"
                )
                findings.append(Finding(one.file, "seed", one.seed, why=why))
    return findings


def _dropped(facts: Sequence[Facts]) -> list[Finding]:
    """Results without some of the test subjects that the same protocol has in another result on the same data."""
    findings = []
    largest: dict[str, Facts] = {}
    for one in facts:
        key, subjects = one.test
        if len(subjects) > len(largest.setdefault(key, one).test[1]):
            largest[key] = one
    for one in facts:
        whole = largest[one.test[0]]
        missing = sorted(whole.test[1] - one.test[1])
        if missing:
            why = f"{len(missing)} test subjects of {whole.file} are missing, e.g. {missing[0]}"
            findings.append(Finding(one.file, "splits.test", why=why))
    return findings


def place(path: Path, record: Record) -> list[Finding]:
    """A file in a leaderboard must lie where its record says."""
    if path.parent.name != "records":
        return []
    findings = []
    name, folder = files.file_name(record), safe(str(record.protocol.get("name")))
    if path.name != name:
        findings.append(Finding(str(path), "file", path.name, name, "the name that its record gives"))
    if path.absolute().parent.parent.name != folder:
        findings.append(Finding(str(path), "protocol.name", path.absolute().parent.parent.name, folder, "its folder"))
    if path.is_symlink():
        findings.append(Finding(str(path), "file", why="it is a link, not a file"))
    return findings
