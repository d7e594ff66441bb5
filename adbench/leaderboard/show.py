"""Leaderboard tables on the terminal, or as JSON."""

from __future__ import annotations

from collections.abc import Sequence

from adbench.console import print_json, table
from adbench.leaderboard.table import Board, cell, row

CAPTION = (
    "AUPRC and AUROC over all test brain voxels; Dice per volume; [95 % bootstrap interval over subjects]. "
    "dice@best is an oracle: its threshold was chosen on the test split."
)


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
        several_seeds = len({record.seed for record in board.records}) > 1
        columns = [("#", "right"), ("method", "left"), ("trained on", "left")]
        columns += [("seed", "right")] if several_seeds else []
        columns += [
            ("AUPRC", "right"),
            ("AUROC", "right"),
            ("dice@val", "right"),
            ("dice@best (oracle)", "right"),
            ("prevalence", "right"),
            ("train s", "right"),
            ("ms/slice", "right"),
        ]
        rows = []
        for rank, record in enumerate(board.records, 1):
            texts = [
                str(rank),
                f"{record.method.name} [{record.method.preset}]",
                f"{record.train.name} ({record.train.slices})",
            ]
            texts += [str(record.seed)] if several_seeds else []
            texts += [
                cell(record, "auprc", interval=True),
                cell(record, "auroc", interval=True),
                cell(record, "dice@val", interval=True),
                cell(record, "dice@best", interval=False),
                f"{record.prevalence:.4f}",
                f"{record.timing['fit']:.0f}",
                f"{1000 * record.timing['score_per_slice']:.0f}",
            ]
            rows.append(texts)
        table(board.title, columns, rows, caption=CAPTION)
        reasons = {n.reason for record in board.records for n in record.metrics.values() if n.reason}
        for reason in sorted(reasons):
            from adbench.console import say

            say(f"Undefined: {reason}")
