"""Verify published results: every number is computed again from its counts, and everything else is checked by a rule.

What this shows: the numbers follow from the counts, the counts belong to the subjects, the keys to what they are made
of. What it cannot show is that the counts came out of the method: for that, anyone may repeat the run, and its keys and
seeds say how.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from adbench.config.protocols import MAPS
from adbench.context import Progress
from adbench.errors import UserError
from adbench.leaderboard.checks.all import check
from adbench.leaderboard.checks.issue import RecordIssue
from adbench.leaderboard.checks.method import not_checked
from adbench.leaderboard.checks.numbers import numbers_without
from adbench.leaderboard.submission import FROM_MAPS, JSON_TABLE, Submission, file_name, published_files, read_or_pack
from adbench.metrics.spec import SPECS
from adbench.results.known import known, slices
from adbench.results.names import skeleton
from adbench.results.record import RECORD, DataPart, Record, optimiser_steps
from adbench.results.rundir import OWN_JSON, safe
from adbench.utils import guarded
from adbench.utils.hashing import digest
from adbench.utils.limits import RECORD_BYTES, VERIFY_BYTES, VERIFY_SECONDS
from adbench.utils.plain_files import open_plain, read_json

_OF_SLICES = {"name", "subjects", "slices", "lesion_subjects", "grid"}  # fields that the digest of slices decides


class SharedField(NamedTuple):
    """A value that all results with the same key must share.

    Attributes:
        field: what an issue names.
        key: what the results have in common.
        value: what must then be equal.
        why: the sentence of an issue, with ``{other}`` for the other value and ``{file}`` for its file.
        stored: the value that an issue shows, where one is worth showing.
    """

    field: str
    key: Any
    value: Any
    why: str
    stored: Any = None


@dataclass(frozen=True)
class SharedFields:
    """Fields that must agree between one result and the others of a leaderboard."""

    file: str
    run_key: str
    fields: list[SharedField]
    training: tuple[str, int] | None  # method and seed, where scores of another training cannot be equal by accident
    scores: dict[tuple[str, str], str]  # (test slices, volume) -> how its lesion and other voxels are ordered
    cohort: tuple[str, frozenset[str]]  # hash of the cohort that is meant, its subjects
    from_maps: bool  # no method was run here


@dataclass(frozen=True)
class CheckResult:
    """One result, checked by itself.

    Attributes:
        path: the file, or the folder of the run.
        issues: what is wrong.
        shared: what must agree with other results; None when it cannot be read.
        name: of its file in a leaderboard.
        text: of that file; empty where it was not asked for.
        unseen: what could not be checked: its test slices, which do not ship with adbench, and what another release decides.
    """

    path: Path
    issues: list[RecordIssue]
    shared: SharedFields | None = None
    name: str = ""
    text: str = ""
    unseen: tuple[str, ...] = ()


def verify(
    paths: Sequence[Path],
    progress: Progress | None = None,
    unseen: Counter[str] | None = None,
    passed_over: list[Path] | None = None,
) -> tuple[int, list[RecordIssue]]:
    """Verify submissions, whole leaderboards, or runs.

    Args:
        paths: files, folders of leaderboards, or run folders.
        progress: receives progress.
        unseen: receives what could not be checked, with the number of results.
        passed_over: receives the files of a folder that are no results, see :func:`targets`.

    Returns:
        (how many results were checked, what is wrong).

    Raises:
        UserError: there is nothing at a path.
    """
    results = list(
        check_all([target for path in paths for target in targets(path, passed_over)], progress, texts=False)
    )
    issues = [issue for result in results for issue in result.issues]
    if unseen is not None:
        unseen.update(what for result in results for what in result.unseen)
    return len(results), issues + contradictions([result.shared for result in results if result.shared is not None])


def targets(path: Path, passed_over: list[Path] | None = None) -> list[Path]:
    """The submissions (files) and runs (folders) at ``path``: those of a leaderboard, or all directly or below it.

    Of a folder every ``*.json`` is one, but what adbench writes beside results, and what is of another kind.

    Args:
        path: a file, a folder of leaderboards, submissions or runs, or a run.
        passed_over: receives the files of another kind.

    Raises:
        UserError: there are none.
    """
    path = Path(path)
    if path.is_file():
        return [path.parent if path.name == RECORD else path]
    if not path.is_dir():
        raise UserError(f"There is nothing at {path}: name a submission, a folder of leaderboards or a run.")
    published = published_files(path)
    boards = {file.parent.parent for file in published}
    loose = {file for folder in {path, *boards} for file in folder.glob("*.json")}
    loose -= {folder / JSON_TABLE for folder in boards}
    runs = [] if published else sorted(record.parent for record in path.rglob(RECORD))
    loose -= {path / name for name in OWN_JSON if path in runs}
    others = {file for file in loose if _of_another_kind(file)}
    if passed_over is not None:
        passed_over.extend(sorted(others))
    found = [*published, *sorted(loose - others), *runs]
    if not found:
        raise UserError(
            f"There is no result at {path}: neither records/*.json of a leaderboard, submissions nor a run."
        )
    return found


def _of_another_kind(path: Path) -> bool:
    """Whether a file is whole JSON and has nothing of a submission; one that may be a damaged one is not."""
    try:
        with open_plain(path) as file:
            if b'"submission"' in file.read(64):
                return False
        content = read_json(path, RECORD_BYTES)
    except (UserError, FileNotFoundError):
        return False  # reading it as a submission says what is wrong
    return isinstance(content, dict | list) and not {"submission", "record", "histograms"}.intersection(content)


def check_all(paths: Sequence[Path], progress: Progress | None = None, *, texts: bool = True) -> Iterator[CheckResult]:
    """:func:`check_one` for each path, on all cores, in processes that one file may end without taking the others along.

    Args:
        paths: of :func:`targets`.
        progress: receives progress.
        texts: give the texts of their files too.
    """
    from scipy import special  # noqa: F401 - for all intervals: imported once, and not by each process

    function = check_one if texts else _check_without_text
    outcomes = guarded.each(function, paths, memory=VERIFY_BYTES, seconds=VERIFY_SECONDS)
    for done, outcome in enumerate(outcomes, 1):
        (progress or Progress()).update("verify", done, len(paths))
        path = outcome.item
        yield outcome.result or CheckResult(path, [RecordIssue("file", why=outcome.why, file=str(path))])


def _check_without_text(path: Path) -> CheckResult:
    return replace(check_one(path), text="")


def check_one(path: Path) -> CheckResult:
    """Check one submission or run by itself."""
    try:
        submission = read_or_pack(path)
    except UserError as error:
        return CheckResult(path, [RecordIssue("file", why=str(error), file=str(path))])
    issues = check(submission)
    if path.is_file():
        issues += check_place(path, submission.record)
    record = submission.record
    unseen = tuple(filter(None, (_unseen(record.test), not_checked(record))))
    return CheckResult(path, issues, shared_fields(submission), file_name(record), submission.text, unseen)


def _unseen(test: DataPart) -> str:
    if test.name in known()["data"]:
        return ""
    listed = slices().get(test.name, {}).get(test.modality, {}).get("test", {}).get("digest") == test.digest
    held = (
        "subjects, hashes and voxel counts of the slices are the published ones; the pixels are not here"
        if listed
        else "the slices are not known here, so that they are what their names say could not be checked"
    )
    return f"on {test.name} {test.modality}: {held}"


def check_place(path: Path, record: Record) -> list[RecordIssue]:
    """A file in a leaderboard must have the name and the folder that its record says."""
    if path.parent.name != "records":
        return []
    name, folder, found = file_name(record), safe(str(record.protocol.get("name"))), path.absolute().parent.parent.name
    issues = []
    if path.name != name:
        issues.append(RecordIssue("file", path.name, name, "the name that its record gives", str(path)))
    if found != folder:
        issues.append(RecordIssue("protocol.name", found, folder, "its folder", str(path)))
    return issues


def shared_fields(submission: Submission, *, counts: bool = True) -> SharedFields:
    """Fields of ``submission`` that must agree with the others.

    Args:
        submission: one result.
        counts: compare its numbers and its validation counts too; False for a board, of which no two files are one run.
    """
    record, splits = submission.record, submission.content.splits
    test, method = record.test, record.method
    columns = ("subject", "volume", "brain_voxels", "lesion_voxels")
    cohort = digest([[row.get(name) for name in columns] for row in record.subjects])
    weights = digest([method.name, method.source, method.params, test.grid])
    what, said = ("numbers", numbers(record)) if counts else ("content", submission.content.digest)
    fields = [
        SharedField("run_key", record.run_key, said, f"the same run_key has other {what} in {{file}}"),
        SharedField("subjects", test.digest, cohort, "the same test slices have other subjects or voxels in {file}"),
        SharedField(
            "method.parameters",
            weights,
            method.parameters,
            "the same method with the same parameters has {other} weights in {file}",
            method.parameters,
        ),
        SharedField(
            "method.name", skeleton(method.name), method.name, "it reads like {other!r} in {file}", method.name
        ),
    ]
    where = digest([record.protocol, test.digest])
    # A dataset that can be given a name may be any data, and so may the cases of others' maps: only the digest tells which.
    only_digest = own_data(test) or record.protocol.get("name") == MAPS.name
    from_maps, who = method.origin == FROM_MAPS, submission.content.submitted
    trained = f"{method.name} of {who.submitter}" if from_maps and who is not None else method.name
    for name, about in record.optional.items():
        if name not in SPECS:  # what is built in has one heading and one direction; its source may be another release's
            facts, alike = about.model_dump(exclude={"definition"}), skeleton(about.heading)
            why = "it has another source, heading, direction or unit in {file}"
            fields.append(SharedField(f"optional.{name}", where, digest(facts), why, about.heading))
            why = "{other!r} has this heading in {file}"
            fields.append(SharedField("optional.heading", (where, alike), name, why, about.heading))
    for role in ("train", "val", "threshold", "test"):
        if (part := getattr(record, role)) is not None and (part.digest or not from_maps):
            said = digest([part.model_dump(mode="json", include=_OF_SLICES), getattr(splits, role)])
            why = "the same slices have another name, size, grid or other subjects in {file}"
            fields.append(SharedField(role, part.digest, said, why))
    if counts and (voxels := _validation_voxels(submission)) is not None:
        why = "the same validation slices have {other} lesion and other voxels in {file}"
        fields.append(SharedField("validation", record.threshold.digest, voxels, why, list(voxels)))
    return SharedFields(
        str(submission.path),
        record.run_key,
        fields,
        (trained, record.seed) if optimiser_steps(record) > 0 or from_maps else None,
        _scores(record),
        (
            digest([record.protocol, test.name, test.modality, test.params, test.digest * only_digest]),
            frozenset(splits.test),
        ),
        from_maps,
    )


def own_data(part: DataPart) -> bool:
    """Whether ``part`` is of a dataset that reads whatever it is given."""
    return part.name == "folder" or "name" in part.params


def numbers(record: Record) -> str:
    """Hash of all that the counts decide, without optional metrics: two results of one run key must agree in it."""
    return digest(numbers_without(record, record.optional))


def _validation_voxels(submission: Submission) -> tuple[int, int] | None:
    try:
        pool = submission.validation.pooled() if submission.validation is not None else None
    except ValueError:
        return None  # the checks of the result itself say so
    return None if pool is None else (pool.n_positive, pool.n_negative)


def _scores(record: Record) -> dict[tuple[str, str], str]:
    """The AUPRC and AUROC of each volume, where they lie strictly between the best and chance.

    Two trainings, whose maps differ in every voxel, do not agree in four digits of both on half of the volumes, and to
    change so many digits of a copy, more than a voxel of each has to be moved.
    """
    return {
        (record.test.digest, str(row.get("volume", row.get("subject")))): f"{auprc:.4f} {auroc:.4f}"
        for row in record.subjects
        if isinstance(auprc := row.get("auprc"), float) and isinstance(auroc := row.get("auroc"), float)
        if 0.0001 < auprc < 0.9999 and 0.0001 < auroc < 0.9999 and auroc != 0.5
    }


def contradictions(results: Sequence[SharedFields]) -> list[RecordIssue]:
    """Where the results of a leaderboard contradict each other."""
    return [*_differing(results), *_copies(results), *_dropped(results)]


def _differing(results: Sequence[SharedFields]) -> Iterator[RecordIssue]:
    first: dict[tuple[str, Any], tuple[SharedField, SharedFields]] = {}
    for result in results:
        for shared in result.fields:
            other, whose = first.setdefault((shared.field, shared.key), (shared, result))
            if other.value != shared.value:
                why = shared.why.format(other=other.value, file=whose.file)
                yield RecordIssue(shared.field, shared.stored, why=why, file=result.file)
            elif shared.field == "run_key" and whose is not result:
                yield RecordIssue("run_key", why=f"the same run is also in {whose.file}", file=result.file)


def _copies(results: Sequence[SharedFields]) -> Iterator[RecordIssue]:
    """Trainings under other seeds or another method's name, and maps of others, whose scores are those of another result."""
    owners: dict[tuple[str, str, str], list[SharedFields]] = defaultdict(list)
    for result in sorted(results, key=lambda result: result.from_maps):
        equal: Counter[str] = Counter()
        for volume, scores in result.scores.items():
            alike = owners[(*volume, scores)]
            equal.update(o.file for o in alike if o.training != result.training and (o.training or result.from_maps))
            alike.append(result)
        if result.training is None:  # without chance; another method may order voxels alike
            continue
        for file, count in equal.most_common(1):
            if count > max(1, len(result.scores) / 2):
                yield _copy(result, next(other for other in results if other.file == file), count)


def _copy(result: SharedFields, other: SharedFields, count: int) -> RecordIssue:
    """``count`` subjects of ``result`` have the scores that they have in ``other``."""
    assert result.training is not None
    method, seed = result.training
    two_seeds = other.training is not None and other.training[0] == method
    what = "maps" if result.from_maps else "results"
    why = (
        f"{count} of {len(result.scores)} subjects have the very scores that they have in {other.file}: the same {what} stand "
        f"under two {'seeds' if two_seeds else 'names'}"
    )
    if two_seeds:
        return RecordIssue(
            "seed", seed, why=f"{why}, and a training without chance needs no second one", file=result.file
        )
    return RecordIssue("method.name", method, why=why, file=result.file)


def _dropped(results: Sequence[SharedFields]) -> Iterator[RecordIssue]:
    """Results without some of the test subjects that the same protocol has in another result on the same data."""
    largest: dict[str, SharedFields] = {}
    for result in results:
        cohort, subjects = result.cohort
        if len(subjects) > len(largest.setdefault(cohort, result).cohort[1]):
            largest[cohort] = result
    for result in results:
        whole = largest[result.cohort[0]]
        missing = sorted(whole.cohort[1] - result.cohort[1])
        if missing:
            why = f"{len(missing)} test subjects of {whole.file} are missing, e.g. {missing[0]}"
            yield RecordIssue("splits.test", why=why, file=result.file)
