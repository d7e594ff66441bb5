"""Compare two published results, or two states of the leaderboards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from adbench.errors import UserError
from adbench.leaderboard.checks.numbers import NUMBERS
from adbench.leaderboard.export import rank_text
from adbench.leaderboard.ranking import boards, cohort, read_all
from adbench.leaderboard.submission import published_files, read_or_pack, read_submission
from adbench.leaderboard.verify import targets
from adbench.metrics.compare import Difference, MethodSamples, compare
from adbench.metrics.spec import RANKED_BY
from adbench.results.explain import differing_fields
from adbench.results.format import NONE, p_text
from adbench.utils import guarded
from adbench.utils.console import out, print_json, say, table
from adbench.utils.limits import VERIFY_BYTES, VERIFY_SECONDS

Compared = TypeVar("Compared")

LONGEST = 60  # characters of a value in a table


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
    whole = [Path(path).is_dir() and bool(published_files(path)) for path in (a, b)]
    if all(whole):
        return _boards(a, b)
    if any(whole):
        raise UserError(f"One of {a} and {b} is a folder of leaderboards and the other is not: name two of a kind.")
    return _guarded(_results, [(_one(a), _one(b))])[0]


def _guarded(function: Callable[[tuple[Path, Path]], Compared], pairs: list[tuple[Path, Path]]) -> list[Compared]:
    """``function`` of each pair of untrusted files, in processes that they may end without ending this one."""
    found = []
    for outcome in guarded.each(function, pairs, memory=VERIFY_BYTES, seconds=VERIFY_SECONDS):
        if outcome.why:
            named = any(str(path) in outcome.why for path in outcome.item)
            raise UserError(outcome.why if named else f"{outcome.item[0]} and {outcome.item[1]}: {outcome.why}.")
        found.append(cast(Compared, outcome.result))
    return found


def _one(path: Path) -> Path:
    found = targets(path)
    if len(found) > 1:
        raise UserError(f"There are {len(found)} results at {path}: name one of them.")
    return found[0]


def _results(pair: tuple[Path, Path]) -> ResultDiff:
    a, b = (read_or_pack(path) for path in pair)
    identity = list(differing_fields(a.record.identity, b.record.identity, absent=None))
    values = [{name: number.value for name, number in one.record.metrics.items()} for one in (a, b)]
    found = ResultDiff(identity, _beside(*values))
    samples = {}
    for name, one in (("A", a), ("B", b)):
        if one.left_out is None:
            found.why_not_paired = f"{RANKED_BY} is undefined in one of them"
            return found
        number = one.record.metrics[RANKED_BY]
        value = {RANKED_BY: np.array([number.value], float)}
        samples[name] = MethodSamples(cohort(one.record), value, {RANKED_BY: one.left_out[None]}, {RANKED_BY: number.n})
    try:
        (found.paired,) = compare(samples, RANKED_BY, above_chance=False).differences
    except UserError as error:
        found.why_not_paired = str(error)
    return found


def _beside(a: dict[Any, Any], b: dict[Any, Any]) -> list[tuple[Any, Any, Any]]:
    """(key, in A, in B) of every key of two dictionaries; None where one has no such key."""
    return [(key, a.get(key), b.get(key)) for key in dict.fromkeys([*a, *b])]


def _boards(a: Path, b: Path) -> BoardsDiff:
    sides = [read_all(a), read_all(b)]
    own, other = ({result.record.run_key: result.path for result in side} for side in sides)
    both = [key for key in own if key in other]
    firsts = _guarded(_first_difference, [(Path(a) / own[key], Path(b) / other[key]) for key in both])
    changed = [(own[key], *first) for key, first in zip(both, firsts, strict=True) if first]
    ranks: list[dict[tuple[str, str], str]] = [{}, {}]
    labels: dict[tuple[str, str], str] = {}  # a row is named beside others, so the two sides may name it differently
    for side, found in zip(sides, ranks, strict=True):
        for board in boards(side):
            where = board.test_set
            for entry in board.entries:
                key = f"{where.protocol} · {where.dataset} {where.modality}", entry.key
                found[key], labels[key] = rank_text(entry), entry.label
    return BoardsDiff(
        sorted(path for key, path in own.items() if key not in other),
        sorted(path for key, path in other.items() if key not in own),
        sorted(changed, key=lambda row: row[:2]),
        [(key[0], labels[key], old or NONE, new or NONE) for key, old, new in _beside(*ranks) if old != new],
    )


def _first_difference(pair: tuple[Path, Path]) -> tuple[str, Any, Any] | None:
    """The first number in which two records of one run differ."""
    mine, its = (read_submission(path).record.model_dump(mode="json", include=set(NUMBERS)) for path in pair)
    return next(
        (found for name in NUMBERS for found in differing_fields(mine[name], its[name], name, close=True)), None
    )


def print_diff(found: ResultDiff | BoardsDiff, as_json: bool) -> None:
    """Print a comparison as tables, or as one JSON document."""
    if as_json:
        print_json(asdict(found))
    elif isinstance(found, BoardsDiff):
        for name, paths in (("A", found.only_a), ("B", found.only_b)):
            for path in paths:
                out.print(f"only in {name}: {path}", markup=False, soft_wrap=True)
        for path, where, mine, its in found.changed:
            out.print(f"changed: {path}: {where}: {mine} in A, {its} in B", markup=False, soft_wrap=True)
        if found.ranks:
            table("ranks", [("board", "left"), ("row", "left"), ("A", "right"), ("B", "right")], found.ranks)
        if found.same:
            say("Nothing differs.")
    else:
        _print_results(found)


def _print_results(found: ResultDiff) -> None:
    if found.identity:
        rows = [[key, _short(mine), _short(its)] for key, mine, its in found.identity]
        table("what decides the numbers", [("field", "left"), ("A", "left"), ("B", "left")], rows)
    else:
        say("Both have the same run key: the same method, parameters, data, protocol and seed.")
    rows = [
        [name, *(NONE if value is None else f"{value:.4f}" for value in (mine, its)), ""]
        if mine is None or its is None
        else [name, f"{mine:.4f}", f"{its:.4f}", f"{its - mine:+.4f}"]
        for name, mine, its in found.metrics
    ]
    table("numbers", [("metric", "left"), ("A", "right"), ("B", "right"), ("B - A", "right")], rows)
    if found.paired is None:
        say(f"Not paired: {found.why_not_paired}")
        return
    one = found.paired
    say(
        f"{RANKED_BY}, {one.a} - {one.b} on the same subjects: {one.value:+.4f} [{one.low:+.4f}, {one.high:+.4f}], "
        f"p {p_text(one.p)}; for one comparison, not for many."
    )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
