"""Boards as tables of text: for the terminal, as Markdown, CSV, JSON and LaTeX. Every text of a record is escaped."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any
from urllib.parse import quote

from adbench.leaderboard.board import Board, Entry
from adbench.leaderboard.submission import FROM_MAPS
from adbench.metrics.columns import WITHOUT_INTERVAL
from adbench.metrics.spec import RANKED_BY, MetricSpec
from adbench.results.format import NONE, duration, number_text
from adbench.results.record import Record
from adbench.utils.console import csv_cell, line_width, print_json, say, table

FOLDED = 30  # characters that a method's name gets before it is folded, where there is little room
HEADING = 12  # characters of a line of a heading there
READING = (
    "AUPRC over all test voxels that count, the brain unless said (chance: the prevalence); Dice per volume at the "
    "threshold chosen on validation subjects; lesion recall and false-alarm slices at the same threshold; [95 % interval "
    "over test subjects]. ↓: less is better. The oracle chose its threshold on the test split."
)
RANKS = (
    "Intervals of several seeds are over subjects and training seeds. Methods that share a rank (=) are not told apart from its first (paired sign flips, the choice of the first "
    "accounted for; all equal methods share a rank in 95 % of studies)."
)


@dataclass(frozen=True)
class Column:
    """A column of a board."""

    heading: str
    cells: list[str]
    right: bool = True
    metric: MetricSpec | None = None


def columns(board: Board, escape: Callable[[str], str] = lambda text: text) -> list[Column]:
    """The columns of a board: rank (of published results), method, training data, seeds, metrics, time; ``escape`` is
    applied to every text of a record.
    """
    entries = board.entries
    found = [Column("#", [rank_text(entry, escape) for entry in entries])] if board.pooled else []
    found += [
        Column("method", [escape(entry.label) for entry in entries], right=False),
        Column("trained on", [escape(_trained(entry)) for entry in entries], right=False),
        Column("seeds" if board.pooled else "seed", [board.seeds(entry) for entry in entries]),
    ]
    for metric in board.columns:
        interval = metric.name not in WITHOUT_INTERVAL
        cells = [number_text(entry.estimates.get(metric.name), interval, escape) for entry in entries]
        found.append(Column(escape(metric.column), cells, metric=metric))
    return [
        *found,
        Column("compute", [NONE if e.from_maps else f"{duration(3600 * e.hours)} {e.device}" for e in entries]),
        Column("s / volume", [NONE if e.from_maps else f"{e.volume_seconds:.3g}" for e in entries]),
    ]


def rank_text(entry: Entry, escape: Callable[[str], str] = lambda text: text) -> str:
    """ "1", "=1" when shared, a dash and the reason without one."""
    if entry.rank is None:
        return f"{NONE} {escape(entry.reason)}".rstrip()
    return f"{'=' if entry.tied else ''}{entry.rank}"


def print_boards(
    boards: Sequence[Board], as_json: bool, by: str | None = None, failures: Sequence[tuple[str, BaseException]] = ()
) -> None:
    """Print every board, by ``by`` instead of :meth:`Board.sort`'s own order, or all as one JSON document with the
    (cell, error) of runs that have no record.
    """
    for board in boards if by else ():
        board.sort(by)
    if as_json:
        failed = [{"cell": name, "error": str(error)} for name, error in failures]
        print_json({"boards": [board_json(board) for board in boards], "failures": failed})
        return
    for board in boards:
        found, dropped = _fitting(columns(board), board, line_width())
        # Narrow headings leave the cells their width; why a row has no rank stands below the table.
        headings = [("\n".join(wrap(one.heading, HEADING)), "right" if one.right else "left") for one in found]
        cells = [_cells(one) for one in found]
        title = f"{board.test_set.protocol} v{board.test_set.version} · {board.title}"
        caption = _caption(board) if board is boards[-1] else ""
        table(title, headings, list(zip(*cells, strict=True)), caption=caption)
        if "trained on" in dropped and (whose := _imported(board)):
            say(whose)
        if dropped:
            say(
                f"Not shown at this width: {', '.join(dropped)}. A wider terminal, a pipe without COLUMNS or --json shows all."
            )
        if board.unranked:
            say(f"Not ranked: {board.unranked}.")
        elif board.pooled and (without := [f"{e.label} ({e.reason})" for e in board.entries if e.rank is None]):
            say(f"Without a rank: {', '.join(without)}.")
        if foreign := _from_maps(board):
            say(foreign)
        for reason, names in _undefined(board).items():
            say(f"Undefined: {', '.join(names)}: {reason}")


def _cells(column: Column) -> list[str]:
    return [cell.partition(" ")[0] for cell in column.cells] if column.heading == "#" else column.cells


def _fitting(found: list[Column], board: Board, width: int | None) -> tuple[list[Column], list[str]]:
    """The columns that a terminal of ``width`` has room for, and the headings of the others; None: all.

    What a row is and the number that ranks come first, then what was asked for, then the other metrics in their order.
    The method's name alone may be folded.
    """
    if width is None:
        return found, []
    first = ["method", "#", "seeds", "seed"]
    asked = [column for column in found if column.metric and column.metric.name in board.extra]
    others = [column for column in found if column.metric] + found
    ranking = [c for c in found if c.heading in first or (c.metric and c.metric.name == RANKED_BY)]
    left, kept = width - 1, []
    for column in dict.fromkeys(map(found.index, [*ranking, *asked, *others])):
        one = found[column]
        lines = [line for text in (*wrap(one.heading, HEADING), *_cells(one)) for line in text.split("\n")]
        need = max(map(len, lines)) + 3  # a border and two blanks
        need = min(need, FOLDED) if one.heading == "method" else need
        if need <= left or one in ranking:
            kept.append(column)
            left -= need
    return [found[i] for i in sorted(kept)], [one.heading for i, one in enumerate(found) if i not in kept]


def _caption(board: Board) -> str:
    """How to read the columns."""
    extra = [f"{board.facts(name).column}: {board.facts(name).definition.rstrip('.')}." for name in board.extra]
    return " ".join([READING, *([RANKS] if board.pooled else []), *extra])


def _imported(board: Board) -> str:
    """The rows whose weights were fitted elsewhere, in one sentence; "" without any."""
    rows = [f"{e.label} (trained on {_trained(e)})" for e in board.entries if e.record.weights]
    return f"Weights that were shared: {', '.join(rows)}." if rows else ""


def _from_maps(board: Board, escape: Callable[[str], str] = lambda text: text) -> str:
    """The rows for which no method was run here, in one sentence; "" without any."""
    rows = [f"{escape(e.label)} (by {escape(e.submitters)})" for e in board.entries if e.from_maps]
    return f"Scored from maps that were sent in, no method was run: {', '.join(rows)}." if rows else ""


def _undefined(board: Board) -> dict[str, list[str]]:
    """Reason -> the metrics shown that some entry has no value of for this reason."""
    reasons: dict[str, list[str]] = {}
    for name in board.metrics:
        numbers = [entry.estimates[name] for entry in board.entries if name in entry.estimates]
        for reason in sorted({number.reason for number in numbers if number.value is None and number.reason}):
            reasons.setdefault(reason, []).append(name)
    return reasons


def markdown(protocol: str, boards: Sequence[Board]) -> str:
    """The page of one protocol."""
    lines = [f"# {_md(protocol)}", "", f"Made by `adbench leaderboard build`. {READING} {RANKS}", ""]
    for board in boards:
        found = columns(board, _md)
        cells = [_md_metric(column, board) if column.metric else column.cells for column in found]
        links = [
            " ".join(_link(str(record.seed), path) for record, path in zip(entry.records, entry.paths, strict=True))
            for entry in board.entries
        ]
        lines += [f"## {_md(board.title)}", ""]
        lines += _md_table([*(column.heading for column in found), "records"], list(zip(*cells, links, strict=True)))
        if board.unranked:
            lines += [f"Not ranked: {_md(board.unranked)}.", ""]
        if foreign := _from_maps(board, _md):
            lines += [foreign, ""]
        known = ("passed", FROM_MAPS)
        if unsure := [f"{_md(e.label)} ({e.conformance})" for e in board.entries if e.conformance not in known]:
            lines += [f"Not known to pass the conformance checks: {', '.join(unsure)}.", ""]
        for grouping, groups in board.groupings.items():
            strata = [(metric, group) for metric in board.strata_metrics(grouping) for group in groups]
            headings = [f"{_md(board.facts(m).column)} · {_md(group)} ({groups[group]})" for m, group in strata]
            rows = [
                [_md(entry.label), *(number_text(entry.stratum(grouping, group, metric)) for metric, group in strata)]
                for entry in board.entries
            ]
            lines += [f"### By {_md(grouping.replace('_', ' '))}", "", *_md_table(["method", *headings], rows)]
    return "\n".join(lines)


def _md(text: str) -> str:
    """``text`` as text: HTML signs become entities, Markdown signs are escaped (an underscore only where it could act)."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"[\\|`*\[\]~#!]|(?<![^\W_])_|_(?![^\W_])", lambda match: f"\\{match[0]}", text)


def _md_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(cells)} |" for cells in (headings, *rows)]
    return [lines[0], "|" + "---|" * len(headings), *lines[1:], ""]


def _md_metric(column: Column, board: Board) -> list[str]:
    """Numbers of one result lead to its record; those of an oracle are set in italics."""
    cells = []
    for cell, entry in zip(column.cells, board.entries, strict=True):
        if len(entry.paths) == 1 and cell != NONE:
            value, space, rest = cell.partition(" ")
            cell = _link(value, entry.paths[0]) + space + rest
        cells.append(f"*{cell}*" if column.metric and column.metric.oracle else cell)
    return cells


def _link(text: str, path: str) -> str:
    """A link from the folder of the protocol, where its page lies."""
    return f"[{text}]({quote(path.partition('/')[2])})"


def latex(boards: Sequence[Board]) -> str:
    """Tables for a paper (package booktabs): ranks, methods and metrics."""
    lines = ["% Made by adbench leaderboard build; needs \\usepackage{booktabs}."]
    for board in boards:
        shown = [column for column in columns(board, _tex) if column.metric or column.heading in ("#", "method")]
        cells = [
            [f"\\textit{{{cell}}}" if column.metric and column.metric.oracle else cell for cell in column.cells]
            for column in shown
        ]
        headings = ["\\#" if column.heading == "#" else column.heading for column in shown]
        alignment = "".join("r" if column.right else "l" for column in shown)
        lines += [
            "\\begin{table}",
            "\\centering",
            f"\\caption{{{_tex(f'{board.test_set.protocol}: {board.title}')}.}}",
            f"\\begin{{tabular}}{{{alignment}}}",
            "\\toprule",
            f"{' & '.join(headings)} \\\\",
            "\\midrule",
            *(f"{' & '.join(row)} \\\\".replace(NONE, "--") for row in zip(*cells, strict=True)),
            "\\bottomrule",
            "\\end{tabular}",
            "\\end{table}",
            "",
        ]
    return "\n".join(lines)


_TEX = {
    "↓": r"$\downarrow$",
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(c) or (f"\\{c}" if c in "&%$#_{}" else c) for c in text)


def table_csv(boards: Sequence[Board]) -> str:
    """The rows of all boards (:meth:`Board.rows`) as CSV, numbers to six digits."""
    import pandas as pd

    metrics = list(dict.fromkeys(metric for board in boards for metric in board.metrics))
    frame = pd.DataFrame([row for board in boards for row in board.rows(metrics)]).map(
        lambda value: csv_cell(rounded(value))
    )
    return str(frame.astype({"rank": "Int64"}).rename(columns=csv_cell).to_csv(index=False, lineterminator="\n"))


def table_json(protocol: str, boards: Sequence[Board]) -> str:
    """Everything of the boards of one protocol, rounded to six digits so that every machine writes the same."""
    return json.dumps({"protocol": protocol, "boards": [board_json(board) for board in boards]}, indent=1) + "\n"


def board_json(board: Board) -> dict[str, Any]:
    """A board as JSON values: of published results its ``entries``, rounded to six digits; of runs its ``rows``."""
    where, test = board.test_set, board.record.test
    head = {
        "protocol": where.protocol,
        "protocol_version": where.version,
        "dataset": where.dataset,
        "modality": where.modality,
        "test_digest": where.digest,
        "subjects": test.subjects,
        "lesion_subjects": test.lesion_subjects,
        "slices": test.slices,
        "prevalence": board.record.prevalence,
        "unranked": board.unranked,
        "columns": [column.as_dict() for column in board.columns],
    }
    if not board.pooled:
        return {**head, "rows": [_run_json(entry) for entry in board.entries]}
    differences = [
        {"better": one.a, "than": one.b, **{k: getattr(one, k) for k in ("value", "low", "high", "p", "p_rank")}}
        for one in board.differences
    ]
    found: dict[str, Any] = rounded(
        {**head, "entries": [_entry_json(entry) for entry in board.entries], "differences": differences}
    )
    return found


def _entry_json(entry: Entry) -> dict[str, Any]:
    record = entry.record
    fields = ("value", "low", "high", "n", "n_all", "spread", "oracle", "reason")
    return {
        "key": entry.key,
        "rank": entry.rank,
        "tied": entry.tied,
        "reason": entry.reason,
        "label": entry.label,
        "method": record.method.name,
        "preset": record.method.preset,
        "differs": entry.differs,
        "params": record.method.params,
        "trained_on": entry.trained_on,
        **_weights(record),
        "train_slices": record.train.slices,
        "metrics": {name: {k: getattr(number, k) for k in fields} for name, number in entry.estimates.items()},
        **entry.costs,
        "parameters": None if entry.from_maps else record.method.parameters,
        "conformance": entry.conformance,
        **({"scored_from_maps": True} if entry.from_maps else {}),
        **({"submitted": [one.model_dump() for one in entry.submitted]} if entry.submitted else {}),
        "seeds": [
            {
                "seed": one.seed,
                "run_key": one.run_key,
                "record": path,
                "metrics": {name: number.value for name, number in one.metrics.items()},
            }
            for one, path in zip(entry.records, entry.paths, strict=True)
        ],
    }


def _run_json(entry: Entry) -> dict[str, Any]:
    record = entry.record
    return {
        "label": entry.label,
        "method": record.method.name,
        "preset": record.method.preset,
        "differs": entry.differs,
        "params": record.method.params,
        "seed": record.seed,
        "protocol": record.protocol["name"],
        "dataset": record.test.name,
        "modality": record.test.modality,
        "trained_on": entry.trained_on,
        **_weights(record),
        "train_slices": record.train.slices,
        "prevalence": record.prevalence,
        "metrics": {name: number.model_dump() for name, number in record.metrics.items()},
        "parameters": record.method.parameters,
        "fit_seconds": record.timing["fit"],
        "score_seconds_per_slice": record.timing["score_per_slice"],
        "run_key": record.run_key,
    }


def rounded(value: Any) -> Any:
    """JSON values with every float rounded to six digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, list) else value


def _weights(record: Record) -> dict[str, Any]:
    """Whose weights they are, where they were fitted elsewhere."""
    return {"weights": record.weights.model_dump()} if record.weights else {}


def _trained(entry: Entry) -> str:
    """The training source, and who trained where that was not the submitter."""
    weights = entry.record.weights
    return f"{entry.trained_on}, by {weights.author}" if weights else entry.trained_on
