"""Boards as Markdown, CSV, JSON and LaTeX. Every text of a record is escaped for where it goes."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from adbench.leaderboard.board import STRATA_METRICS, Board, Entry
from adbench.leaderboard.table import number
from adbench.metrics.evaluate import Estimate

PLAIN = ("dice@best", "lesion_recall@val", "fa_slice")  # columns that are wide enough without their interval
READING = (
    "AUPRC over all test voxels that count, the brain unless said (chance: the prevalence); Dice per volume at the "
    "threshold chosen on validation subjects; lesion recall and false-alarm slices at the same threshold; [95 % interval "
    "over test subjects and training seeds]. ↓: less is better. The oracle chose its threshold on the test split. Methods "
    "that share a rank (=) are not told apart from its first (paired sign flips, the choice of the first accounted for; "
    "all equal methods share a rank in 95 % of studies)."
)


def title(board: Board) -> str:
    """What the numbers of a board are about, in one line."""
    test = board.record.test
    domain = (
        "; every voxel of a slice counts, background included" if board.record.protocol.get("domain") == "all" else ""
    )
    lesion = "" if test.lesion_subjects is None else f" ({test.lesion_subjects} with lesion)"
    return (
        f"{board.dataset} {board.modality}: {test.subjects} test subjects{lesion}, {test.slices} slices, "
        f"prevalence {board.record.prevalence:.4f}{domain}"
    )


def with_interval(metric: str) -> bool:
    """Whether the column of ``metric`` shows intervals."""
    return metric not in PLAIN


def rank(entry: Entry) -> str:
    """ "1", "=1" when shared, a dash and the reason without one."""
    return f"— {entry.reason}".rstrip() if entry.rank is None else f"{'=' if entry.tied else ''}{entry.rank}"


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    if seconds < 0.01:
        return "under 0.01 s"
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def markdown(protocol: str, boards: Sequence[Board]) -> str:
    """The page of one protocol."""
    lines = [f"# {_md(protocol)}", "", f"Made by `adbench leaderboard build`. {READING}", ""]
    for board in boards:
        lines += [f"## {_md(title(board))}", ""]
        heads = [
            "#",
            "method",
            "trained on",
            "seeds",
            *(_md(board.facts(m).column) for m in board.metrics),
            "compute",
            "s / volume",
            "records",
        ]
        lines += [_md_row(heads), "|" + "---|" * len(heads)]
        for entry in board.entries:
            links = (_link(str(s.record.seed), path) for s, path in zip(entry.seeds, entry.paths, strict=True))
            cells = [
                rank(entry),
                _md(entry.label),
                _md(entry.record.train.name),
                board.seeds(entry),
                *(_md_number(board, entry, metric) for metric in board.metrics),
                f"{duration(3600 * entry.hours)} {'GPU' if entry.gpu else 'CPU'}",
                f"{entry.volume_seconds:.3g}",
                " ".join(links),
            ]
            lines.append(_md_row(cells))
        lines.append("")
        if board.unranked:
            lines += [f"Not ranked: {_md(board.unranked)}.", ""]
        if unsure := [f"{_md(e.label)} ({e.conformance})" for e in board.entries if e.conformance != "passed"]:
            lines += [f"Not known to pass the conformance checks: {', '.join(unsure)}.", ""]
        for grouping, groups in board.groupings.items():
            lines += [f"### By {_md(grouping.replace('_', ' '))}", ""]
            columns = [(metric, group) for metric in STRATA_METRICS for group in groups]
            heads = ["method", *(f"{_md(board.facts(m).column)} · {_md(g)} ({groups[g]})" for m, g in columns)]
            lines += [_md_row(heads), "|" + "---|" * len(heads)]
            for entry in board.entries:
                cells = [number(entry.stratum(grouping, group, metric)) for metric, group in columns]
                lines.append(_md_row([_md(entry.label), *cells]))
            lines.append("")
    return "\n".join(lines)


def latex(boards: Sequence[Board]) -> str:
    """Tables for a paper (package booktabs)."""
    lines = ["% Made by adbench leaderboard build; needs \\usepackage{booktabs}."]
    for board in boards:
        spec = "rl" + "r" * len(board.metrics)
        lines += ["\\begin{table}", "\\centering", f"\\caption{{{_tex(f'{board.protocol}: {title(board)}')}.}}"]
        lines += [f"\\begin{{tabular}}{{{spec}}}", "\\toprule"]
        heads = ["\\#", "method", *(_tex(board.facts(metric).column) for metric in board.metrics)]
        lines += [" & ".join(heads) + " \\\\", "\\midrule"]
        for entry in board.entries:
            cells = [rank(entry).replace("—", "--"), _tex(entry.label)]
            cells += [_tex_number(board, entry, metric) for metric in board.metrics]
            lines.append(" & ".join(cells) + " \\\\")
        lines += ["\\bottomrule", "\\end{tabular}", "\\end{table}", ""]
    return "\n".join(lines)


def table_csv(boards: Sequence[Board]) -> str:
    """One row an entry, unrounded to six digits."""
    metrics = list(dict.fromkeys(metric for board in boards for metric in board.metrics))
    ends = ("", "_low", "_high")
    names = ["protocol", "version", "dataset", "modality", "rank", "tied", "method", "preset", "trained_on", "seeds"]
    names += ["prevalence", *(f"{metric}{end}" for metric in metrics for end in ends)]
    names += ["gpu_hours", "cpu_hours", "seconds_per_volume", "key", "records"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for board in boards:
        for entry in board.entries:
            record, numbers = entry.record, []
            for metric in metrics:
                found = entry.estimates.get(metric) or Estimate(None, None, None, 0)
                numbers += [_round(found.value), _round(found.low), _round(found.high)]
            texts = [board.protocol, board.version, board.dataset, board.modality, entry.rank, int(entry.tied)]
            texts += [record.method.name, record.method.preset, record.train.name, len(entry.seeds)]
            cells = [*texts, _round(record.prevalence), *numbers, *_hours(entry), _round(entry.volume_seconds)]
            writer.writerow([_cell(cell) for cell in [*cells, entry.key, " ".join(entry.paths)]])
    return text.getvalue()


def table_json(protocol: str, boards: Sequence[Board]) -> str:
    """Everything of the boards of one protocol, rounded to six digits so that every machine writes the same."""
    return json.dumps({"protocol": protocol, "boards": [board_json(board) for board in boards]}, indent=1) + "\n"


def board_json(board: Board) -> dict[str, Any]:
    """A board as JSON values with stable keys."""
    test = board.record.test
    return {
        "protocol": board.protocol,
        "protocol_version": board.version,
        "dataset": board.dataset,
        "modality": board.modality,
        "test_digest": board.test_digest,
        "subjects": test.subjects,
        "lesion_subjects": test.lesion_subjects,
        "slices": test.slices,
        "prevalence": _round(board.record.prevalence),
        "unranked": board.unranked,
        "columns": [board.facts(metric).as_dict() for metric in board.metrics],
        "entries": [_entry_json(entry) for entry in board.entries],
        "differences": [
            {"better": d.a, "than": d.b, **{k: _round(getattr(d, k)) for k in ("value", "low", "high", "p", "p_rank")}}
            for d in board.differences
        ],
    }


def _entry_json(entry: Entry) -> dict[str, Any]:
    record = entry.record
    gpu, cpu = _hours(entry)
    return {
        "key": entry.key,
        "rank": entry.rank,
        "tied": entry.tied,
        "reason": entry.reason,
        "method": record.method.name,
        "preset": record.method.preset,
        "trained_on": record.train.name,
        "train_slices": record.train.slices,
        "metrics": {name: estimate_json(estimate) for name, estimate in entry.estimates.items()},
        "gpu_hours": gpu,
        "cpu_hours": cpu,
        "seconds_per_volume": _round(entry.volume_seconds),
        "parameters": record.method.parameters,
        "conformance": entry.conformance,
        "seeds": [
            {
                "seed": s.record.seed,
                "run_key": s.record.run_key,
                "record": path,
                "metrics": {name: _round(s.record.metrics[name].value) for name in s.record.metrics},
            }
            for s, path in zip(entry.seeds, entry.paths, strict=True)
        ],
    }


def estimate_json(estimate: Estimate) -> dict[str, Any]:
    """An estimate as JSON values."""
    return {
        "value": _round(estimate.value),
        "low": _round(estimate.low),
        "high": _round(estimate.high),
        "n": estimate.n,
        "n_all": estimate.n_all,
        "spread": _round(estimate.spread),
        "oracle": estimate.oracle,
        "reason": estimate.reason,
    }


def _hours(entry: Entry) -> tuple[float | None, float | None]:
    hours = _round(entry.hours)
    return (hours, 0.0) if entry.gpu else (0.0, hours)


def _round(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _cell(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula is quoted."""
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") else value


def _md(text: str) -> str:
    """``text`` as text: HTML signs become entities, Markdown signs are escaped (an underscore only where it could act)."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"[\\|`*\[\]~#!]|(?<![^\W_])_|_(?![^\W_])", lambda match: f"\\{match[0]}", text)


def _md_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _md_number(board: Board, entry: Entry, metric: str) -> str:
    text = number(entry.estimates[metric], with_interval(metric))
    if len(entry.paths) == 1 and text != "—":
        value, _, rest = text.partition(" ")
        text = _link(value, entry.paths[0]) + (f" {rest}" if rest else "")
    return f"*{text}*" if board.facts(metric).oracle else text


def _link(text: str, path: str) -> str:
    """A link from the folder of the protocol, where its page lies."""
    return f"[{text}]({quote(path.partition('/')[2])})"


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


def _tex_number(board: Board, entry: Entry, metric: str) -> str:
    text = number(entry.estimates[metric], with_interval(metric)).replace("—", "--")
    return f"\\textit{{{text}}}" if board.facts(metric).oracle else text
