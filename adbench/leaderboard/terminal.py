"""Leaderboard tables on the terminal, or as JSON: of runs as they lie on disk, or of published results with their ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from adbench.leaderboard.board import Board as Published
from adbench.leaderboard.table import Board, cell, row
from adbench.metrics.spec import SPECS, MetricSpec
from adbench.results.record import Record
from adbench.utils.console import out, print_json, say, table

Column = tuple[str, str, Callable[[Record], str]]  # heading, justification, text of a row
HEADLINE = ("auprc", "dice@val", "dice@best", "auroc")
CAPTION = (
    "AUPRC and AUROC over all test voxels that count, the brain unless said; Dice per volume; [95 % interval over subjects]. "
    "dice@best is an oracle: its threshold was chosen on the test split."
)

HEALTHY = "Share of healthy brain at or above a threshold set on other healthy subjects; [95 % interval over subjects]."


def print_boards(found: Sequence[Board], as_json: bool, failures: Sequence[tuple[str, BaseException]] = ()) -> None:
    """Print every board.

    Args:
        found: from :func:`adbench.leaderboard.table.boards`.
        as_json: one JSON document instead of tables.
        failures: (cell, error) of runs that have no record; part of the JSON.
    """
    if as_json:
        print_json(
            {
                "boards": [
                    {
                        "protocol": board.protocol,
                        "protocol_version": board.protocol_version,
                        "dataset": board.dataset,
                        "modality": board.modality,
                        "test_digest": board.test_digest,
                        "columns": [facts.as_dict() for facts in _shown(board)],
                        "rows": [row(record) for record in board.records],
                    }
                    for board in found
                ],
                "failures": [{"cell": name, "error": str(error)} for name, error in failures],
            }
        )
        return
    for board in found:
        columns, rows = _columns(board, wide=out.width >= 110 or not out.is_terminal)
        caption = HEALTHY if _healthy(board) else CAPTION
        if any(facts.less_is_better for facts in board.asked):
            caption += " ↓: less is better."
        table(board.title, columns, rows, caption=caption)
        reasons: dict[tuple[str, str], list[str]] = {}
        for name in dict.fromkeys([*HEADLINE, *(facts.name for facts in board.asked)]):
            numbers = [r.metrics[name] for r in board.records if name in r.metrics]
            for key in {("Undefined" if n.value is None else "No interval", n.reason) for n in numbers if n.reason}:
                reasons.setdefault(key, []).append(name)
        for (what, reason), names in sorted(reasons.items()):
            say(f"{what}: {', '.join(names)}: {reason}")


def _healthy(board: Board) -> bool:
    """Whether nobody has a lesion, so that precision and Dice are undefined for every row."""
    first = board.records[0]
    return not first.test.lesion_subjects and bool(first.protocol.get("metrics"))


def _shown(board: Board) -> list[MetricSpec]:
    """The metrics that have a column: the headline, unless nobody has a lesion, and what was asked for."""
    headline = () if _healthy(board) else HEADLINE
    return [*(SPECS[name] for name in headline), *board.asked]


def _column(facts: MetricSpec, interval: bool) -> Column:
    name = f"{facts.column} [95 %]" if interval else facts.column
    return name, "right", lambda record: cell(record, facts.name, interval=interval)


def _columns(board: Board, wide: bool) -> tuple[list[tuple[str, str]], list[list[str]]]:
    """Headings with their justification, and the texts of every row; a narrow terminal gets the headline columns."""
    columns: list[Column] = [("method", "left", lambda r: f"{r.method.name} [{r.method.preset}]")]
    for facts in _shown(board):
        if facts.name != "auroc":
            columns.append(_column(facts, interval=not facts.oracle))
        elif wide:
            columns.append(_column(facts, interval=False))
    if not _healthy(board):
        columns.append(("prevalence", "right", lambda r: f"{r.prevalence:.4f}"))
    if len({record.seed for record in board.records}) > 1:
        columns.insert(1, ("seed", "right", lambda r: str(r.seed)))
    if wide:
        columns.insert(1, ("trained on", "left", lambda r: f"{r.train.name} ({r.train.slices} slices)"))
        columns += [
            ("train s", "right", lambda r: f"{r.timing['fit']:.0f}"),
            ("ms/slice", "right", lambda r: f"{1000 * r.timing['score_per_slice']:.0f}"),
        ]
    rows = [[text(record) for _, _, text in columns] for record in board.records]
    return [(heading, justify) for heading, justify, _ in columns], rows


def print_published(found: Sequence[Published], as_json: bool, by: str | None = None) -> None:
    """Print boards of published results.

    Args:
        found: from :func:`adbench.leaderboard.board.boards`.
        as_json: one JSON document instead of tables.
        by: the metric whose best value comes first; None leaves them by rank.
    """
    from adbench.leaderboard import export

    for board in found if by else ():
        assert by is not None
        sign = 1 if board.facts(by).less_is_better else -1
        values = {e.key: e.estimates[by].value if by in e.estimates else None for e in board.entries}
        order = {key: (value is None, sign * (value or 0.0)) for key, value in values.items()}
        board.entries.sort(key=lambda entry: order[entry.key])

    if as_json:
        print_json({"boards": [export.board_json(board) for board in found]})
        return
    short = {"dice@best": "oracle", "lesion_recall@val": "recall", "fa_slice": "FA slices ↓"}
    wide = out.width >= 140 or not out.is_terminal
    for board in found:
        metrics = board.metrics if wide else board.metrics[:3]
        columns = [("#", "right"), ("method", "left"), ("trained on", "left"), ("seeds", "right")]
        columns += [(short.get(metric, board.facts(metric).column), "right") for metric in metrics]
        columns += [("compute", "right"), ("s / volume", "right")] if wide else []
        rows = []
        for entry in board.entries:
            place = "—" if entry.rank is None else export.rank(entry)
            cells = [place, entry.label, entry.record.train.name, board.seeds(entry)]
            cells += [export.number(entry.estimates[metric], export.with_interval(metric)) for metric in metrics]
            if wide:
                cells += [f"{export.duration(3600 * entry.hours)} {'GPU' if entry.gpu else 'CPU'}"]
                cells += [f"{entry.volume_seconds:.3g}"]
            rows.append(cells)
        caption = export.READING if board is found[-1] else ""
        table(f"{board.protocol} v{board.version} · {export.title(board)}", columns, rows, caption=caption)
        if board.unranked:
            say(f"Not ranked: {board.unranked}.")
        elif without := [f"{entry.label} ({entry.reason})" for entry in board.entries if entry.rank is None]:
            say(f"Without a rank: {', '.join(without)}.")
