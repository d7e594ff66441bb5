"""The generated files of leaderboards: tables of each protocol, and one HTML page of all boards, with the numbers that papers
state in a section of their own. The same records give the same bytes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from adbench import __version__
from adbench.errors import UserError
from adbench.leaderboard import export
from adbench.leaderboard.board import STRATA_METRICS, Board, Entry
from adbench.leaderboard.export import VALUE_ONLY, rank_text
from adbench.leaderboard.ranking import ALPHA, boards, read_all
from adbench.metrics.spec import RANKED_BY, SPECS
from adbench.results.format import html_page, p_text
from adbench.results.record import Number, facts
from adbench.utils.console import printable
from adbench.utils.files import write_text
from adbench.utils.limits import STATUS_BYTES
from adbench.utils.plain_files import read_plain

PAGE = "index.html"
TEMPLATES = Path(__file__).parent / "templates"
REPORTED = "reported.csv"
_SCALES = (0.1, 0.25, 0.5, 0.75, 1.0)  # ends of the axis that draws AUPRC


def make(root: Path) -> dict[str, str]:
    """The generated files of the leaderboards below ``root``: path relative to it -> text.

    Raises:
        UserError: no result, a damaged one, or one that ``verify`` would refuse at first sight.
    """
    root = Path(root)
    found = boards(read_all(root))
    made = {PAGE: page(found, read_reported(root / REPORTED))}
    groups: dict[str, list[Board]] = {}
    for board in found:
        groups.setdefault(board.entries[0].paths[0].partition("/")[0], []).append(board)
    for folder, own in groups.items():
        protocol = own[0].test_set.protocol
        made[f"{folder}/index.md"] = printable(export.markdown(protocol, own))
        made[f"{folder}/table.csv"] = printable(export.table_csv(own))
        made[f"{folder}/table.json"] = export.table_json(protocol, own)
        made[f"{folder}/table.tex"] = printable(export.latex(own))
    return made


def build(root: Path) -> list[Path]:
    """Write the generated files below ``root``; see :func:`make`."""
    made = make(root)
    for name, text in made.items():
        write_text(Path(root) / name, text)
    return [Path(root) / name for name in made]


def stale(root: Path) -> list[Path]:
    """Generated files below ``root`` that are missing, or are not what the records give now."""
    wrong = []
    for name, text in make(root).items():
        path = Path(root) / name
        try:
            same = path.read_bytes() == text.encode()
        except FileNotFoundError:
            same = False
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}).") from None
        if not same:
            wrong.append(path)
    return wrong


class Reported(NamedTuple):
    """One number that a paper states, as text: some are ranges, or come with an interval."""

    method: str  # as the source calls it
    dataset: str  # tested on
    modality: str
    training_source: str
    protocol: str  # in words
    metric: str  # as the source defines it
    value_percent: str
    source: str
    how_read: str  # on a page, in code, digitised from a figure, or quoted by somebody else


def read_reported(path: Path) -> list[Reported]:
    """The rows of ``reported.csv``; none when there is no such file.

    Raises:
        UserError: other columns, an empty field, or no text.
    """
    path, names = Path(path), Reported._fields
    try:
        rows = list(csv.reader(io.StringIO(read_plain(path, STATUS_BYTES).decode("utf-8")), strict=True))
    except FileNotFoundError:
        return []
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a readable table: {error}.") from None
    if not rows or rows[0] != list(names):
        found = ", ".join(rows[0]) if rows else "none"
        raise UserError(f"{path} must have the columns {', '.join(names)}, not {found}.")
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(names) or not all(cell.strip() for cell in row):
            raise UserError(f"{path}, row {number}: it must fill all {len(names)} columns.")
    return [Reported(*row) for row in rows[1:]]


def page(shown: Sequence[Board], reported: Sequence[Reported]) -> str:
    """The HTML of all boards.

    Args:
        shown: boards of every protocol.
        reported: numbers that papers state.
    """
    entries = [entry for board in shown for entry in board.entries]
    return html_page(
        TEMPLATES,
        "page",
        boards=shown,
        overviews=by_modality(shown),
        protocols=_distinct(board.test_set.protocol for board in shown),
        modalities=_distinct(board.test_set.modality for board in shown),
        sources=_distinct(entry.record.train.name for entry in entries),
        presets=_distinct(entry.record.method.preset for entry in entries),
        reported=reported,
        records=sum(len(entry.records) for entry in entries),
        level=f"{float(shown[0].record.protocol['level']):.0%}",
        alpha=f"{ALPHA:.0%}",
        version=__version__,
        ranked_by=RANKED_BY,
        value_only=VALUE_ONLY,
        strata_metrics=STRATA_METRICS,
        rank_text=rank_text,
        quote=quote,
        scale=_scale,
        at=_at,
        details=_details,
        seed_numbers=_seed_numbers,
    )


def _distinct(values: Iterable[str]) -> list[str]:
    return sorted(set(values))


def by_modality(shown: Sequence[Board]) -> list[dict[str, Any]]:
    """Where a dataset is tested in several modalities: the same methods beside each other.

    Returns:
        One table a protocol and dataset: its boards, and rows of entries, one a board or None.
    """
    groups: dict[tuple[str, str], list[Board]] = {}
    for board in shown:
        groups.setdefault(board.test_set[0:3:2], []).append(board)
    tables = []
    for (protocol, dataset), group in groups.items():
        modalities = [board.test_set.modality for board in group]
        if len(set(modalities)) < 2:
            continue
        rows: dict[tuple[str, str], list[Entry | None]] = {}
        for place, board in enumerate(group):
            for entry in board.entries:
                rows.setdefault((entry.label, entry.record.train.name), [None] * len(group))[place] = entry
        names = [
            modality + (f" {board.test_set.digest[:6]}" if modalities.count(modality) > 1 else "")
            for modality, board in zip(modalities, group, strict=True)
        ]
        tables.append(
            {"protocol": protocol, "dataset": dataset, "boards": group, "names": names, "rows": list(rows.values())}
        )
    return tables


def _scale(board: Board) -> float:
    """The end of the axis that draws AUPRC."""
    highest = max(entry.estimates[RANKED_BY].high or entry.value(RANKED_BY) or 0.0 for entry in board.entries)
    return next((scale for scale in _SCALES if highest <= scale), 1.0)


def _at(value: float, scale: float) -> float:
    """Where a value lies on an axis from 0 to ``scale``, as a share of it."""
    return round(min(1.0, max(0.0, value / scale)), 4)


def _seed_numbers(entry: Entry) -> list[tuple[str, bool, list[Number | None], str]]:
    """(metric, whether it is an oracle, its number of each seed, why it is undefined) of all metrics of an entry."""
    names = entry.record.metrics
    rows = []
    for name in (*(name for name in SPECS if name in names), *(name for name in names if name not in SPECS)):
        numbers = [record.metrics.get(name) for record in entry.records]
        reason = next((n.reason for n in numbers if n is not None and n.value is None), "")
        rows.append((name, facts(name, entry.record).oracle, numbers, reason))
    return rows


def _details(entry: Entry) -> list[tuple[str, str]]:
    """(name, text) pairs: what the numbers of an entry were made from."""
    record = entry.record
    method, train, test, tuned = record.method, record.train, record.test, record.tuned_from
    provenance, made = record.provenance, record.weights
    packages = provenance.get("packages")
    torch = packages.get("torch") if isinstance(packages, dict) else None
    made_by = [f"adbench {provenance.get('adbench', '')}", f"torch {torch or '—'}", provenance.get("device_name", "")]
    if provenance.get("device") == "cpu" and "threads" in provenance:
        made_by.append(f"threads {provenance['threads']}")
    against = ""
    if (best := entry.to_best) is not None:
        against = f"{-best.value:+.3f} [{-best.high:+.3f}, {-best.low:+.3f}], p {p_text(best.p_rank)}".replace("-", "−")
    search = (
        ""
        if tuned is None
        else f"search {tuned.search}: {tuned.trials} trials by {tuned.objective} on validation slices"
    )
    pairs = [
        ("method", f"{method.name} {method.version} ({method.origin})"),
        ("learned from", f"{train.name} {train.modality}: {train.slices:,} slices of {train.subjects:,} subjects"),
        ("tested on", f"{test.name} {test.modality}: {test.slices:,} slices of {test.subjects:,} subjects"),
        ("grid", f"{test.grid[0]} × {test.grid[1]} px"),
        ("weights", f"{method.parameters:,}" + (f", fitted by {made.author} ({made.licence})" if made else "")),
        ("parameters", ", ".join(f"{name} {value}" for name, value in sorted(method.params.items())) or "none"),
        ("against the best", against),
        ("tuned", search),
        ("made by", ", ".join(map(str, made_by))),
        ("method source", method.source[:16]),
        ("conformance checks", entry.conformance),
        ("run keys", ", ".join(one.run_key[:16] for one in entry.records)),
    ]
    return [(name, text) for name, text in pairs if text]
