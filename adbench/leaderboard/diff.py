"""What differs between two results, or between two states of the leaderboards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from adbench.errors import UserError
from adbench.leaderboard.board import Board, boards, cohort, read_all
from adbench.leaderboard.checks import NUMBERS, RANKED_BY
from adbench.leaderboard.issues import Findings
from adbench.leaderboard.submission import Submission
from adbench.leaderboard.verify import load, targets
from adbench.metrics.compare import Difference, Samples, compare
from adbench.results.record import Record


@dataclass
class ResultDiff:
    """Two results.

    Attributes:
        identity: (field, in A, in B) of what decides the numbers.
        metrics: (metric, in A, in B); None where undefined.
        paired: the better against the other on the same subjects, or None.
        why_not_paired: when ``paired`` is None.
    """

    identity: list[tuple[str, Any, Any]]
    metrics: list[tuple[str, float | None, float | None]]
    paired: Difference | None = None
    why_not_paired: str = ""


@dataclass
class BoardsDiff:
    """Two states of the leaderboards.

    Attributes:
        only_a: paths of results that only A has.
        only_b: paths of results that only B has.
        changed: (path, first number that differs, in A, in B) of results with one key.
        ranks: (board, row, rank in A, rank in B) where they differ.
    """

    only_a: list[str]
    only_b: list[str]
    changed: list[tuple[str, str, Any, Any]]
    ranks: list[tuple[str, str, str, str]] = field(default_factory=list)

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not (self.only_a or self.only_b or self.changed or self.ranks)


def diff(a: Path, b: Path) -> ResultDiff | BoardsDiff:
    """Compare two results (submissions or runs), or two folders of leaderboards.

    Raises:
        UserError: there is nothing to compare, or a result on one side and leaderboards on the other.
    """
    whole = [Path(path).is_dir() and any(Path(path).glob("*/records/*.json")) for path in (a, b)]
    if all(whole):
        return diff_boards(a, b)
    if any(whole):
        raise UserError(f"One of {a} and {b} is a folder of leaderboards and the other is not: name two of a kind.")
    return diff_results(_one(a), _one(b))


def diff_results(a: Submission, b: Submission) -> ResultDiff:
    """Compare two results."""
    mine, its = a.record, b.record
    flat = [dict(_flat(record.identity)) for record in (mine, its)]
    keys = list(dict.fromkeys([*flat[0], *flat[1]]))
    identity = [(key, flat[0].get(key), flat[1].get(key)) for key in keys if flat[0].get(key) != flat[1].get(key)]
    names = list(dict.fromkeys([*mine.metrics, *its.metrics]))
    metrics = [(name, _value(mine, name), _value(its, name)) for name in names]
    found = ResultDiff(identity, metrics)
    if a.left_out is None or b.left_out is None:
        found.why_not_paired = f"{RANKED_BY} is undefined in one of them"
        return found
    pair = {}
    for name, one in (("A", a), ("B", b)):
        number = one.record.metrics[RANKED_BY]
        assert number.value is not None
        assert one.left_out is not None
        values = np.array([number.value])
        pair[name] = Samples(
            cohort(one.record), {RANKED_BY: values}, {RANKED_BY: one.left_out[None]}, {RANKED_BY: number.n}
        )
    try:
        (found.paired,) = compare(pair, RANKED_BY, above_chance=False).differences
    except UserError as error:
        found.why_not_paired = str(error)
    return found


def diff_boards(a: Path, b: Path) -> BoardsDiff:
    """Compare two states of the leaderboards."""
    sides = [read_all(a), read_all(b)]
    keyed = [{submission.record.run_key: (path, submission) for path, submission in side} for side in sides]
    changed = []
    for key in keyed[0].keys() & keyed[1].keys():
        (path, mine), (_, its) = keyed[0][key], keyed[1][key]
        found = Findings(path)
        for name in NUMBERS:
            found.same(name, mine.record.model_dump(mode="json")[name], its.record.model_dump(mode="json")[name])
        changed += [(path, finding.field, finding.stored, finding.expected) for finding in found.list[:1]]
    ranks = [_ranks(boards(side)) for side in sides]
    moved = [
        (*key, ranks[0].get(key, "—"), ranks[1].get(key, "—"))
        for key in dict.fromkeys([*ranks[0], *ranks[1]])
        if ranks[0].get(key) != ranks[1].get(key)
    ]
    return BoardsDiff(
        sorted(path for key, (path, _) in keyed[0].items() if key not in keyed[1]),
        sorted(path for key, (path, _) in keyed[1].items() if key not in keyed[0]),
        sorted(changed, key=lambda row: row[:2]),
        moved,
    )


def _value(record: Record, metric: str) -> float | None:
    return record.metrics[metric].value if metric in record.metrics else None


def _ranks(found: Iterable[Board]) -> Mapping[tuple[str, str], str]:
    from adbench.leaderboard.export import rank

    return {
        (f"{board.protocol} · {board.dataset} {board.modality}", entry.label): rank(entry)
        for board in found
        for entry in board.entries
    }


def _one(path: Path) -> Submission:
    found = targets(path)
    if len(found) > 1:
        raise UserError(f"There are {len(found)} results at {path}: name one of them.")
    return load(found[0])


def _flat(values: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not isinstance(values, dict):
        return [(prefix, values)]
    return [pair for key, value in values.items() for pair in _flat(value, f"{prefix}.{key}" if prefix else str(key))]


def print_diff(found: ResultDiff | BoardsDiff, as_json: bool) -> None:
    """Print a comparison as tables, or as one JSON document."""
    from dataclasses import asdict

    from adbench.utils.console import out, print_json, say, table

    if as_json:
        print_json(asdict(found))
        return
    if isinstance(found, BoardsDiff):
        for name, paths in (("A", found.only_a), ("B", found.only_b)):
            for path in paths:
                out.print(f"only in {name}: {path}", markup=False, soft_wrap=True)
        for path, where, mine, its in found.changed:
            out.print(f"changed: {path}: {where}: {mine} in A, {its} in B", markup=False, soft_wrap=True)
        if found.ranks:
            table("ranks", [("board", "left"), ("row", "left"), ("A", "right"), ("B", "right")], found.ranks)
        if found.same:
            say("Nothing differs.")
        return
    if found.identity:
        rows = [[key, _text(mine), _text(its)] for key, mine, its in found.identity]
        table("what decides the numbers", [("field", "left"), ("A", "left"), ("B", "left")], rows)
    else:
        say("Both have the same run key: the same method, parameters, data, protocol and seed.")
    rows = [
        [name, _number(mine), _number(its), "" if mine is None or its is None else f"{its - mine:+.4f}"]
        for name, mine, its in found.metrics
    ]
    table("numbers", [("metric", "left"), ("A", "right"), ("B", "right"), ("B - A", "right")], rows)
    if found.paired is None:
        say(f"Not paired: {found.why_not_paired}")
        return
    d = found.paired
    p = f"p = {d.p:.3f}" if d.p >= 0.001 else "p < 0.001"
    say(
        f"{RANKED_BY}, {d.a} - {d.b} on the same subjects: {d.value:+.4f} [{d.low:+.4f}, {d.high:+.4f}], {p}; "
        "for one comparison, not for many."
    )


def _text(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _number(value: float | None) -> str:
    return "—" if value is None else f"{value:.4f}"
