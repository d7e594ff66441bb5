"""Leaderboard tables on the terminal, or as JSON: of runs as they lie on disk, or of published results with their ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from adbench.console import out, print_json, say, table
from adbench.leaderboard.board import Board as Published
from adbench.leaderboard.table import SHOWN, Board, cell, row
from adbench.results.record import Record

Column = tuple[str, str, Callable[[Record], str]]  # heading, justification, text of a row
CAPTION = (
    "AUPRC and AUROC over all test brain voxels; Dice per volume; [95 % interval over subjects]. "
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
        table(board.title, columns, rows, caption=HEALTHY if _alarms(board) else CAPTION)
        reasons = {r.metrics[name].reason for r in board.records for name in SHOWN if name in r.metrics} - {""}
        for reason in sorted(reasons):
            say(f"Undefined: {reason}")


def _alarms(board: Board) -> Sequence[str]:
    """What is shown where nobody has a lesion, so that precision and Dice are undefined for every row."""
    first = board.records[0]
    return () if first.test.lesion_subjects else first.protocol.get("metrics", ())


def _column(metric: str) -> Column:
    return f"{metric} [95 %]", "right", lambda record: cell(record, metric, interval=True)


def _columns(board: Board, wide: bool) -> tuple[list[tuple[str, str]], list[list[str]]]:
    """Headings with their justification, and the texts of every row; a narrow terminal gets the headline columns."""
    shown: list[Column] = [("method", "left", lambda r: f"{r.method.name} [{r.method.preset}]")]
    alarms = _alarms(board)
    if alarms:
        shown += [_column(name) for name in alarms]
    else:
        shown += [
            ("AUPRC [95 %]", "right", lambda r: cell(r, "auprc", interval=True)),
            ("dice@val [95 %]", "right", lambda r: cell(r, "dice@val", interval=True)),
            ("dice@best (oracle)", "right", lambda r: cell(r, "dice@best", interval=False)),
            ("prevalence", "right", lambda r: f"{r.prevalence:.4f}"),
        ]
    if len({record.seed for record in board.records}) > 1:
        shown.insert(1, ("seed", "right", lambda r: str(r.seed)))
    if wide:
        shown.insert(1, ("trained on", "left", lambda r: f"{r.train.name} ({r.train.slices} slices)"))
        if not alarms:
            shown.append(("AUROC", "right", lambda r: cell(r, "auroc", interval=False)))
        shown += [
            ("train s", "right", lambda r: f"{r.timing['fit']:.0f}"),
            ("ms/slice", "right", lambda r: f"{1000 * r.timing['score_per_slice']:.0f}"),
        ]
    rows = [[str(rank), *(text(record) for _, _, text in shown)] for rank, record in enumerate(board.records, 1)]
    return [("#", "right"), *((heading, justify) for heading, justify, _ in shown)], rows


def print_published(found: Sequence[Published], as_json: bool) -> None:
    """Print boards of published results.

    Args:
        found: from :func:`adbench.leaderboard.board.boards`.
        as_json: one JSON document instead of tables.
    """
    from adbench.leaderboard import texts

    if as_json:
        print_json({"boards": [texts.board_json(board) for board in found]})
        return
    short = {"dice@best": "oracle", "lesion_recall@val": "recall", "fa_slice": "FA slices"}
    wide = out.width >= 140 or not out.is_terminal
    for board in found:
        metrics = board.metrics if wide else board.metrics[:3]
        columns = [("#", "right"), ("method", "left"), ("trained on", "left"), ("seeds", "right")]
        columns += [(short.get(metric, texts.heading(metric)), "right") for metric in metrics]
        columns += [("compute", "right"), ("s / volume", "right")] if wide else []
        rows = []
        for entry in board.entries:
            cells = [
                "—" if entry.rank is None else texts.rank(entry),
                entry.label,
                entry.record.train.name,
                str(len(entry.seeds)),
            ]
            cells += [texts.number(entry.estimates[metric], metric in texts.WITH_INTERVAL) for metric in metrics]
            if wide:
                cells += [f"{texts.duration(3600 * entry.hours)} {'GPU' if entry.gpu else 'CPU'}"]
                cells += [f"{entry.volume_seconds:.3g}"]
            rows.append(cells)
        caption = texts.READING if board is found[-1] else ""
        table(f"{board.protocol} v{board.version} · {texts.title(board)}", columns, rows, caption=caption)
        if board.unranked:
            say(f"Not ranked: {board.unranked}.")
        elif without := [f"{entry.label} ({entry.reason})" for entry in board.entries if entry.rank is None]:
            say(f"Without a rank: {', '.join(without)}.")
