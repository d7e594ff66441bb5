"""All boards as one HTML page. Every text of a record is escaped; nothing outside the file is asked for."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from adbench import __version__
from adbench.leaderboard import export
from adbench.leaderboard.board import ALPHA, STRATA_METRICS, Board, Entry, by_modality
from adbench.leaderboard.checks import RANKED_BY
from adbench.leaderboard.reported import Reported
from adbench.metrics.evaluate import Estimate
from adbench.metrics.spec import SPECS
from adbench.results.record import facts as facts_of

TEMPLATES = Path(__file__).parent / "templates"
_SCALES = (0.1, 0.25, 0.5, 0.75, 1.0)


def page(boards: Sequence[Board], reported: Sequence[Reported]) -> str:
    """The HTML of all boards.

    Args:
        boards: of every protocol.
        reported: numbers from papers.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    records = sum(len(entry.seeds) for board in boards for entry in board.entries)
    return environment.get_template("page.html").render(
        boards=[_board(board) for board in boards],
        overviews=[_overview(table) for table in by_modality(boards)],
        protocols=_distinct(board.protocol for board in boards),
        modalities=_distinct(board.modality for board in boards),
        sources=_distinct(entry.record.train.name for board in boards for entry in board.entries),
        presets=_distinct(entry.record.method.preset for board in boards for entry in board.entries),
        reported=reported,
        records=records,
        level=f"{float(boards[0].record.protocol['level']):.0%}",
        alpha=f"{ALPHA:.0%}",
        version=__version__,
        style=(TEMPLATES / "page.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _distinct(values: Any) -> list[str]:
    return sorted(set(values))


def _board(board: Board) -> dict[str, Any]:
    test = board.record.test
    highs = [e.estimates[RANKED_BY].high or e.estimates[RANKED_BY].value or 0.0 for e in board.entries]
    scale = next((scale for scale in _SCALES if max(highs) <= scale), 1.0)
    return {
        "id": board.id,
        "protocol": board.protocol,
        "version": board.version,
        "dataset": board.dataset,
        "modality": board.modality,
        "summary": str(board.record.protocol.get("summary", "")),
        "facts": [
            ("test subjects", f"{test.subjects}"),
            ("with lesion", "—" if test.lesion_subjects is None else f"{test.lesion_subjects}"),
            ("slices", f"{test.slices:,}"),
            ("prevalence (chance of AUPRC)", f"{board.record.prevalence:.4f}"),
            ("voxels that count", "all" if board.record.protocol.get("domain") == "all" else "brain"),
        ],
        "columns": [
            {
                "name": facts.column.replace(" (oracle)", ""),
                "meaning": f"{facts.definition}; {facts.direction}",
                "oracle": facts.oracle,
                "ranking": facts.name == RANKED_BY,
                "less": facts.less_is_better,
            }
            for facts in map(board.facts, board.metrics)
        ],
        "scale": f"{scale:g}",
        "chance": _at(board.record.prevalence, scale),
        "unranked": board.unranked,
        "rows": [_row(board, entry, scale) for entry in board.entries],
        "strata": [_stratum(board, grouping, groups) for grouping, groups in board.groupings.items()],
    }


def _row(board: Board, entry: Entry, scale: float) -> dict[str, Any]:
    record = entry.record
    number = entry.estimates[RANKED_BY]
    bar = None
    if number.value is not None and number.low is not None and number.high is not None:
        bar = [_at(number.low, scale), _at(number.value, scale), _at(number.high, scale)]
    only = quote(entry.paths[0]) if len(entry.paths) == 1 else f"#{_id(board, entry)}"
    return {
        "id": _id(board, entry),
        "rank": export.rank(entry),
        "reason": entry.reason,
        "rank_order": entry.rank,
        "tied": entry.tied,
        "label": entry.label,
        "method": record.method.name,
        "preset": record.method.preset,
        "source": record.train.name,
        "tuned": record.tuned_from is not None,
        "seeds": board.seeds(entry),
        "href": only,
        "bar": bar,
        "cells": [_cell(entry.estimates[m], export.with_interval(m), board.facts(m).oracle) for m in board.metrics],
        "hours": entry.hours,
        "duration": export.duration(3600 * entry.hours),
        "device": "GPU" if entry.gpu else "CPU",
        "volume": f"{entry.volume_seconds:.3g}",
        "volume_seconds": entry.volume_seconds,
        "detail": _detail(entry),
    }


def _detail(entry: Entry) -> dict[str, Any]:
    record = entry.record
    names = [name for name in SPECS if name in record.metrics]
    names += [name for name in record.metrics if name not in SPECS]
    best = entry.to_best
    difference = ""
    if best is not None:
        p = f"p = {best.p_rank:.3f}" if best.p_rank >= 0.001 else "p < 0.001"
        difference = f"{-best.value:+.3f} [{-best.high:+.3f}, {-best.low:+.3f}], {p}".replace("-", "−")
    links = [quote(path) for path in entry.paths]
    rows = []
    for name in names:
        numbers = [s.record.metrics.get(name) for s in entry.seeds]
        rows.append(
            {
                "name": name,
                "oracle": facts_of(name, record).oracle,
                "cells": [
                    {
                        "text": "—" if n is None or n.value is None else f"{n.value:.4f}",
                        "ends": "" if n is None or n.low is None or n.high is None else f"{n.low:.3f}–{n.high:.3f}",
                    }
                    for n in numbers
                ],
                "reason": next((n.reason for n in numbers if n is not None and n.value is None), ""),
            }
        )
    train, test = record.train, record.test
    provenance = record.provenance
    packages = provenance.get("packages")
    torch = packages.get("torch") if isinstance(packages, dict) else None
    made_by = [f"adbench {provenance.get('adbench', '')}", f"torch {torch or '—'}", provenance.get("device_name", "")]
    if provenance.get("device") == "cpu" and "threads" in provenance:
        made_by.append(f"threads {provenance['threads']}")
    facts = [
        ("method", f"{record.method.name} {record.method.version} ({record.method.origin})"),
        ("learned from", f"{train.name} {train.modality}: {train.slices:,} slices of {train.subjects:,} subjects"),
        ("tested on", f"{test.name} {test.modality}: {test.slices:,} slices of {test.subjects:,} subjects"),
        ("grid", f"{test.grid[0]} × {test.grid[1]} px"),
        ("weights", f"{record.method.parameters:,}"),
        ("parameters", ", ".join(f"{name} {value}" for name, value in sorted(record.method.params.items())) or "none"),
        ("against the best", difference),
        ("tuned", _tuned(entry)),
        ("made by", ", ".join(map(str, made_by))),
        ("method source", record.method.source[:16]),
        ("conformance checks", entry.conformance),
        ("run keys", ", ".join(s.record.run_key[:16] for s in entry.seeds)),
    ]
    return {
        "seeds": [{"seed": s.record.seed, "href": link} for s, link in zip(entry.seeds, links, strict=True)],
        "rows": rows,
        "facts": [(name, value) for name, value in facts if value],
    }


def _tuned(entry: Entry) -> str:
    tuned = entry.record.tuned_from
    return (
        ""
        if tuned is None
        else f"search {tuned.search}: {tuned.trials} trials by {tuned.objective} on validation slices"
    )


def _stratum(board: Board, grouping: str, groups: Mapping[str, int]) -> dict[str, Any]:
    metrics = [m for m in STRATA_METRICS if any(e.estimates[m].value is not None for e in board.entries)]
    return {
        "name": grouping.replace("_", " "),
        "metrics": [board.facts(metric).column for metric in metrics],
        "groups": list(groups.items()),
        "rows": [
            {
                "label": entry.label,
                "id": _id(board, entry),
                "method": entry.record.method.name,
                "preset": entry.record.method.preset,
                "source": entry.record.train.name,
                "cells": [
                    _cell(entry.stratum(grouping, group, metric), True, False) for metric in metrics for group in groups
                ],
            }
            for entry in board.entries
        ],
    }


def _overview(table: Mapping[str, Any]) -> dict[str, Any]:
    found: list[Board] = table["boards"]
    best = {board.id: {entry.key for entry in board.entries if entry.rank == 1} for board in found}
    rows = []
    for (label, source), entries in table["rows"].items():
        first = next(iter(entries.values())).record
        rows.append(
            {
                "label": label,
                "source": source,
                "method": first.method.name,
                "preset": first.method.preset,
                "cells": [
                    {
                        **_cell(entries[board.id].estimates[RANKED_BY], True, False),
                        "href": f"#{_id(board, entries[board.id])}",
                        "best": entries[board.id].key in best[board.id],
                    }
                    if board.id in entries
                    else None
                    for board in found
                ],
            }
        )
    same = [board.modality for board in found]
    return {
        "protocol": table["protocol"],
        "dataset": table["dataset"],
        "boards": [
            {
                "id": board.id,
                "name": board.modality + (f" {board.test_digest[:6]}" if same.count(board.modality) > 1 else ""),
                "modality": board.modality,
            }
            for board in found
        ],
        "rows": rows,
    }


def _cell(estimate: Estimate | None, interval: bool, oracle: bool) -> dict[str, Any]:
    if estimate is None or estimate.value is None:
        return {"value": None, "text": "—", "ends": "", "oracle": oracle, "reason": estimate.reason if estimate else ""}
    ends = ""
    if interval and estimate.low is not None and estimate.high is not None:
        ends = f"{estimate.low:.3f}–{estimate.high:.3f}"
    return {
        "value": estimate.value,
        "text": f"{estimate.value:.3f}",
        "ends": ends,
        "oracle": oracle,
        "reason": "" if ends or not interval else estimate.reason,
    }


def _id(board: Board, entry: Entry) -> str:
    return f"e-{entry.key}-{board.test_digest[:6]}"


def _at(value: float, scale: float) -> float:
    """Where a value lies on an axis from 0 to ``scale``."""
    return round(min(1.0, max(0.0, value / scale)), 4)
