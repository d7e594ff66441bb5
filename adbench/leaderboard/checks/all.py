"""Every check of one published result: its keys, its protocol, its files, and those of the other modules here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice

from adbench.config import protocols, registry
from adbench.config.cell import Post
from adbench.errors import UserError
from adbench.leaderboard.checks.consistency import check_costs, check_texts
from adbench.leaderboard.checks.data import check_data, check_splits
from adbench.leaderboard.checks.issue import RecordIssue, differences
from adbench.leaderboard.checks.maps import check_from_maps, check_submitted
from adbench.leaderboard.checks.method import check_method
from adbench.leaderboard.checks.numbers import check_numbers
from adbench.leaderboard.submission import FROM_MAPS, SPATIAL, Submission, own_digest, sha256
from adbench.params import scoring
from adbench.results.record import DataPart, Record
from adbench.results.rundir import SPLITS
from adbench.runner.keys import METRICS_VERSION, RUN_ONLY
from adbench.utils.hashing import digest
from adbench.utils.limits import ISSUES


def check(submission: Submission) -> list[RecordIssue]:
    """What is wrong with ``submission`` by itself."""
    issues: list[RecordIssue] = []
    for one in CHECKS_OF_MAPS if submission.record.method.origin == FROM_MAPS else CHECKS:
        try:
            issues.extend(islice(one(submission), ISSUES - len(issues)))
        except (UserError, ValueError, ArithmeticError, IndexError, KeyError, TypeError) as error:
            issues.append(
                RecordIssue("file", why=f"its {one.__name__.removeprefix('check_')} cannot be checked: {error}")
            )
    if len(issues) == ISSUES:
        issues.append(RecordIssue("file", why=f"more than {ISSUES} things are wrong: no more are listed"))
    return [replace(issue, file=str(submission.path)) for issue in issues]


def check_keys(submission: Submission) -> Iterator[RecordIssue]:
    """The digest and the keys are the hashes of what they name, and the identity says what the record says."""
    record = submission.record
    identity = record.identity
    yield from differences("digest", submission.raw["digest"], own_digest(submission.raw))
    yield from differences("run_key", record.run_key, digest(identity))
    fit = {name: value for name, value in identity.items() if name not in RUN_ONLY}
    yield from differences("fit_key", record.fit_key, digest(fit))
    stated = {
        "method": record.method.name,
        "method_version": record.method.version,
        "method_source": record.method.source,
        "preset": record.method.preset,
        "params": record.method.params,
        "seed": record.seed,
        "modality": record.test.modality,
        "train_slices": record.train.digest,
        "val_slices": record.val.digest if record.val is not None else None,
        "protocol": record.protocol,
        "threshold_slices": record.threshold.digest,
        "test_slices": record.test.digest,
    }
    for name, value in stated.items():
        if name not in identity:
            yield RecordIssue(f"identity.{name}", why="it is missing")
        else:
            said = {**identity["params"], **identity.get("scoring", {})} if name == "params" else identity[name]
            yield from differences(f"identity.{name}", said, value, "the rest of the record says so")
    yield from differences("identity.post", identity.get("post", {}), record.post, "the rest of the record says so")
    if record.post != Post(**record.post).done or ("post" in identity and not record.post):
        yield RecordIssue("post", record.post, why="it must say what was done to the maps, and nothing else")
    for name in (
        identity.keys()
        - stated.keys()
        - {"files", "scoring", "post", "members", "metrics_version", "measure_source", "scored_with"}
    ):
        yield RecordIssue(f"identity.{name}", why="it is no part of the identity of a run")
    if not isinstance(identity.get("files"), list):
        yield RecordIssue("identity.files", why="it must be a list")
    yield from _scoring(record)
    version = identity.get("metrics_version")
    yield from differences("identity.metrics_version", version, METRICS_VERSION, "numbers of other definitions")


def _scoring(record: Record) -> Iterator[RecordIssue]:
    """What stands apart from the key of the fit only scores, and does not stand in it too."""
    apart, name = set(record.identity.get("scoring", {})), record.method.name
    only = scoring(registry.load("methods", name).Params) if name in registry.BUILTIN["methods"] else apart
    twice = apart & set(record.identity["params"]) if record.weights is None else set()  # an old fit's key has all
    for wrong, why in (
        (apart - only, f"parameters of {name} that do not only score decide the fit, and stand in identity.params"),
        (twice, "these stand in identity.params too"),
    ):
        if wrong:
            yield RecordIssue("identity.scoring", ", ".join(sorted(wrong)), why=why)


def check_protocol(submission: Submission) -> Iterator[RecordIssue]:
    """The protocol is that of this adbench, field by field, and the data fit it."""
    record, name = submission.record, submission.record.protocol.get("name")
    for role in ("train", "val", "threshold"):
        if (part := getattr(record, role)) is not None:
            yield from differences(f"{role}.modality", part.modality, record.test.modality)
    from_maps = record.method.origin == FROM_MAPS
    if (protocol := protocols.of_result(name)) is None or (protocol is protocols.MAPS and not from_maps):
        yield RecordIssue("protocol.name", name, why=f"this adbench knows {', '.join(protocols.PROTOCOLS)}")
        return
    yield from differences("protocol", record.protocol, protocol.as_dict(), f"protocol {name} of this adbench")
    if not from_maps:
        side = record.test if protocol.threshold_on == "test" else record.train
        yield from differences("threshold.name", record.threshold.name, side.name)
    if protocol.datasets and not any(_may_be(record.test, dataset) for dataset in protocol.datasets):
        yield RecordIssue(
            "test.name", record.test.name, why=f"protocol {name} tests on {' or '.join(protocol.datasets)}"
        )
    if protocol.train_on and not from_maps and not _may_be(record.train, protocol.train_on):
        yield RecordIssue("train.name", record.train.name, why=f"protocol {name} trains on {protocol.train_on}")


def _may_be(part: DataPart, dataset: str) -> bool:
    """Whether the data of ``part`` can be of ``dataset``: by its name, or by one of their own where it takes one."""
    takes_names = "name" in registry.load("datasets", dataset).Params.model_fields
    return part.name == dataset or (takes_names and part.name == part.params.get("name"))


def check_hashes(submission: Submission) -> Iterator[RecordIssue]:
    """The files that the submission holds are those that the record lists."""
    listed = submission.record.files
    splits = json.dumps(submission.raw["splits"], indent=1) + "\n"
    yield from differences(f"files.{SPLITS}", listed.get(SPLITS), sha256(splits.encode()))
    try:
        yield from differences(f"files.{SPATIAL}", listed.get(SPATIAL), sha256(submission.spatial_bytes))
    except ValueError as error:
        yield RecordIssue("spatial", why=str(error))


CHECKS: tuple[Callable[[Submission], Iterator[RecordIssue]], ...] = (
    check_keys,
    check_submitted,
    check_texts,
    check_costs,
    check_method,
    check_protocol,
    check_splits,
    check_hashes,
    check_data,
    check_numbers,
)
CHECKS_OF_MAPS: tuple[Callable[[Submission], Iterator[RecordIssue]], ...] = (
    check_from_maps,
    *(one for one in CHECKS if one not in (check_keys, check_costs, check_method)),
)
