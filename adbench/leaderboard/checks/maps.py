"""What can be checked of a result that was scored from maps, and of who submits one."""

from __future__ import annotations

from collections.abc import Iterator

from adbench.config import registry
from adbench.config.attribution import is_seen
from adbench.config.protocols import MAPS
from adbench.leaderboard.checks.issue import RecordIssue, differences
from adbench.leaderboard.from_maps import NOT_SAID, PRESET, identity, unseen
from adbench.leaderboard.submission import SPATIAL, Submission, own_digest
from adbench.results.rundir import SPLITS
from adbench.utils.hashing import digest


def check_submitted(submission: Submission) -> Iterator[RecordIssue]:
    """Who submits it is said in printable text."""
    if (who := submission.content.submitted) is None:
        return
    for name, text in who.model_dump().items():
        if (text or name == "submitter") and not is_seen(text):
            yield RecordIssue(f"submitted.{name}", text, why="it is one line of printable characters")


def check_from_maps(submission: Submission) -> Iterator[RecordIssue]:
    """A result that was scored from maps says who submits it and where its method is, and claims nothing that a run shows."""
    record, who, raw = submission.record, submission.content.submitted, submission.raw
    yield from differences("digest", raw["digest"], own_digest(raw))
    if who is None or not (who.code or who.paper):
        yield RecordIssue(
            "submitted", why="a row that was scored from maps names its submitter, licence, and code or paper"
        )
        return
    expected = identity(record, who)
    yield from differences("identity", record.identity, expected, "the rest of the record says so")
    for key in ("run_key", "fit_key"):
        yield from differences(key, getattr(record, key), digest(expected))
    if record.method.name in registry.BUILTIN["methods"]:  # one that reads like it is found with the other names
        why = f"{record.method.name} is the name of a method of adbench"
        yield RecordIssue("method.name", record.method.name, why=why)
    claims = {
        "method.version": (record.method.version, NOT_SAID),
        "method.source": (record.method.source, ""),
        "method.preset": (record.method.preset, PRESET),
        "method.params": (record.method.params, {}),
        "method.parameters": (record.method.parameters, 0),
        "method.conformance": (record.method.conformance, ""),
        "train": (record.train.model_dump(), unseen(record.test, record.train.name).model_dump()),
        "val": (record.val, None),
        "fit": (record.fit, {}),
        "timing": (record.timing, {"fit": 0.0, "score_per_slice": 0.0}),
        "memory": (record.memory, {}),
        "weights": (record.weights, None),
        "tuned_from": (record.tuned_from, None),
        "files": (sorted(record.files), sorted((SPLITS, SPATIAL))),
        "provenance": (sorted(record.provenance), ["adbench"]),
    }
    if record.protocol.get("name") == MAPS.name:
        slices = sum(len(row.slice_lesion) for row in submission.spatial.rows)
        claims |= {"test.slices": (record.test.slices, slices), "test.mm": (record.test.mm, None)}
        claims |= {"test.params": (record.test.params, {}), "threshold.name": (record.threshold.name, record.test.name)}
    for field, (stored, known_here) in claims.items():
        if stored != known_here:
            yield RecordIssue(field, stored, known_here, "no method was run: nothing is known about it")
    if record.seed < 0:
        yield RecordIssue("seed", record.seed, why="a seed is 0 or more")
