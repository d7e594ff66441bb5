"""The generated files of leaderboards: tables of each protocol, and one HTML page of all boards, with the numbers that papers
state in a section of their own. The same records give the same bytes."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from math import ceil, floor, log10
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from adbench import __version__
from adbench.config import registry
from adbench.errors import UserError
from adbench.leaderboard import export
from adbench.leaderboard.board import Board, Entry
from adbench.leaderboard.export import VALUE_ONLY, rank_text
from adbench.leaderboard.ranking import ALPHA, boards, read_all
from adbench.leaderboard.submission import JSON_TABLE
from adbench.metrics.spec import RANKED_BY, SPECS
from adbench.results.format import NONE, html_page, interval_text, p_text, several, value_text
from adbench.results.names import row_names
from adbench.results.record import DataPart, Number, facts
from adbench.utils.console import printable
from adbench.utils.files import write_text
from adbench.utils.hashing import digest
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
    if any(root.glob("records/*.json")):
        raise UserError(f"{root} is one leaderboard: name the folder that holds it, {root.resolve().parent}.")
    found = boards(read_all(root))
    made = {PAGE: page(found, read_reported(root / REPORTED))}
    groups: dict[str, list[Board]] = {}
    for board in found:
        groups.setdefault(board.entries[0].paths[0].partition("/")[0], []).append(board)
    for folder, own in groups.items():
        protocol = own[0].test_set.protocol
        made[f"{folder}/index.md"] = printable(export.markdown(protocol, own))
        made[f"{folder}/table.csv"] = printable(export.table_csv(own))
        made[f"{folder}/{JSON_TABLE}"] = export.table_json(protocol, own)
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
        sources=_distinct(entry.trained_on for entry in entries),
        presets=_distinct(entry.record.method.preset for entry in entries),
        reported=reported,
        records=sum(len(entry.records) for entry in entries),
        level=f"{float(shown[0].record.protocol['level']):.0%}",
        alpha=f"{ALPHA:.0%}",
        version=__version__,
        ranked_by=RANKED_BY,
        value_only=VALUE_ONLY,
        rank_text=rank_text,
        quote=quote,
        scale=_scale,
        at=_at,
        details=_details,
        none_=NONE,
        paper=_paper,
        cost_axis=_cost_axis,
        here=lambda row: reproduced(row, shown),
        data=_data(entries),
    )


def _distinct(values: Iterable[str]) -> list[str]:
    return sorted(set(values))


def by_modality(shown: Sequence[Board]) -> list[dict[str, Any]]:
    """Where a dataset is tested in several modalities: the same methods beside each other.

    Returns:
        One table a protocol and dataset: its boards, and rows of (label, entries: one a board, or None).
    """
    groups: dict[tuple[str, str], list[Board]] = {}
    for board in shown:
        groups.setdefault(board.test_set[0:3:2], []).append(board)
    tables = []
    for (protocol, dataset), group in groups.items():
        modalities = [board.test_set.modality for board in group]
        if len(set(modalities)) < 2:
            continue
        rows: dict[tuple[str, int], list[Entry | None]] = {}
        for place, board in enumerate(group):
            taken: Counter[str] = Counter()  # of rows that only their code tells apart
            for entry in board.entries:
                method = entry.record.method
                same = digest([method.name, method.preset, method.params, entry.trained_on])
                rows.setdefault((same, taken[same]), [None] * len(group))[place] = entry
                taken[same] += 1
        firsts = [next(entry.record for entry in row if entry) for row in rows.values()]
        names = [
            board.name.removeprefix(f"{dataset} ") if modalities.count(modality) > 1 else modality
            for modality, board in zip(modalities, group, strict=True)
        ]
        tables.append(
            {
                "protocol": protocol,
                "dataset": dataset,
                "boards": group,
                "names": names,
                "rows": list(zip([name.label for name in row_names(firsts)], rows.values(), strict=True)),
            }
        )
    return tables


def _scale(board: Board) -> float:
    """The end of the axis that draws AUPRC."""
    highest = max(entry.estimates[RANKED_BY].high or entry.value(RANKED_BY) or 0.0 for entry in board.entries)
    return next((scale for scale in _SCALES if highest <= scale), 1.0)


def _at(value: float, scale: float) -> float:
    """Where a value lies on an axis from 0 to ``scale``, as a share of it."""
    return round(min(1.0, max(0.0, value / scale)), 4)


def _cost_axis(board: Board) -> tuple[list[tuple[float, float]], dict[str, float]]:
    """The axis of seconds a volume, logarithmic: ((value, place) of its ticks, place of each entry by id), in shares."""
    logs = {entry.id: log10(max(entry.volume_seconds, 1e-4)) for entry in board.entries if not entry.from_maps}
    if not logs:
        return [], {}
    low, high = floor(min(logs.values())), ceil(max(logs.values()))
    high = max(high, low + 1)
    ticks = [(10.0**power, round((power - low) / (high - low), 4)) for power in range(low, high + 1)]
    return ticks, {key: round((value - low) / (high - low), 4) for key, value in logs.items()}


def _paper(entry: Entry) -> tuple[str, str]:
    """What the card of a built-in method says to cite, and its number at arXiv; "" where there is none."""
    method = entry.record.method
    known = registry.entries("methods").get(method.name)
    if method.origin != "built-in" or known is None or known.origin != "built-in":
        return "", ""  # a plug-in's card is not on every machine
    cite = re.search(r"^## Cite\s+(.+)$", registry.card_text(registry.load("methods", method.name)), re.MULTILINE)
    text = cite[1].strip() if cite else ""
    number = re.search(r"arXiv:?\s*(\d{4}\.\d{4,5})", text)
    return text, number[1] if number else ""


def reproduced(row: Reported, shown: Sequence[Board]) -> list[tuple[Entry, float, float]]:
    """The rows here of the method, dataset, modality and metric of a published number.

    Args:
        row: the published number.
        shown: boards.

    Returns:
        (row, its number in percent, how much it is above the published one): the protocols still differ.
    """
    try:
        published = float(row.value_percent)
    except ValueError:
        return []
    metric, method = _plain(row.metric), _plain(row.method)
    if metric == "dice":
        metric = "dice@best" if "oracle" in row.protocol else "dice@val"
    found = []
    for board in shown:
        where = board.test_set
        if _plain(where.dataset) == _plain(row.dataset) and _plain(where.modality) == _plain(row.modality):
            for entry in board.entries:
                value = entry.value(metric)
                if value is not None and _plain(entry.record.method.name) == _NAMES.get(method, method):
                    found.append((entry, 100 * value, 100 * value - published))
    return found


_NAMES = {"histogramequalisedthreshold": "histeq", "aedense": "ae"}  # name in a paper: name here


def _plain(text: str) -> str:
    """A name without case, blanks and signs: "MAD-AD" is madad, "BraTS'21" brats21."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _data(entries: Sequence[Entry]) -> str:
    """What the page shows when a row is opened, as JSON that is text of HTML: it is a fifth of the size of tables.

    ``texts`` are the texts that the rest numbers; of each entry ``numbers`` are (metric, whether it is an oracle, why it
    is undefined, a text a seed), ``params`` (name, value, whether other rows of the method have another one), ``paper`` what to
    cite, and ``about`` what a file of the rows says of each, by the names in ``about`` beside ``texts``.
    """
    texts: dict[str, int] = {}

    def known(text: str) -> int:
        return texts.setdefault(printable(text), len(texts))

    made = {}
    for entry in entries:
        numbers = [
            [known(name), int(oracle), known(reason), *(f"{value_text(n, 4)} {interval_text(n)}".rstrip() for n in own)]
            for name, oracle, own, reason in _seed_numbers(entry)
        ]
        params = [
            [known(name), known(value if isinstance(value, str) else json.dumps(value)), int(name in entry.differs)]
            for name, value in sorted(entry.record.method.params.items())
        ]
        made[entry.id] = {
            "numbers": numbers,
            "params": params,
            "paper": [known(text) for text in _paper(entry)],
            "about": [known(text) for text in _about(entry).values()],
        }
    names = list(_about(entries[0]))
    text = json.dumps(
        {"texts": list(texts), "about": names, "entries": made}, separators=(",", ":"), ensure_ascii=False
    )
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _about(entry: Entry) -> dict[str, str]:
    """Columns of the CSV file of the page beside those of its table: whose a row is, and how it was made."""
    record, weights = entry.record, entry.record.weights

    def said(field: str) -> str:
        return "; ".join(dict.fromkeys(text for one in entry.submitted if (text := getattr(one, field))))

    maps = entry.from_maps
    return {
        "seeds": "" if maps and len(entry.records) == 1 else str(len(entry.records)),
        "device": "" if maps else entry.device,
        "parameters": "" if maps else str(record.method.parameters),
        "prevalence": f"{record.prevalence:.6g}",
        "scored from maps": "yes" if maps else "no",
        "submitter": said("submitter"),
        "date": max(one.created[:10] for one in entry.records),
        "licence": said("licence"),
        "paper": said("paper") or (f"https://arxiv.org/abs/{number}" if (number := _paper(entry)[1]) else ""),
        "code": said("code"),
        "weights by": weights.author if weights else "",
        "weights licence": weights.licence if weights else "",
        "weights link": weights.link if weights else "",
    }


def _seed_numbers(entry: Entry) -> list[tuple[str, bool, list[Number | None], str]]:
    """(metric, whether it is an oracle, its number of each seed, why it is undefined) of all metrics of an entry."""
    names = entry.record.metrics
    rows = []
    for name in (*(name for name in SPECS if name in names), *(name for name in names if name not in SPECS)):
        numbers = [record.metrics.get(name) for record in entry.records]
        reason = next((n.reason for n in numbers if n is not None and n.value is None), "")
        rows.append((name, facts(name, entry.record).oracle, numbers, reason))
    return rows


def _amount(data: DataPart) -> str:
    return f"{several(data.slices, 'slice')} of {several(data.subjects, 'subject')}"


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
    git = [f"git {provenance['git']}"] if provenance.get("git") else []
    against = ""
    if (best := entry.to_best) is not None:
        against = f"{-best.value:+.3f} [{-best.high:+.3f}, {-best.low:+.3f}], p {p_text(best.p_rank)}".replace("-", "−")
    search = (
        ""
        if tuned is None
        else f"search {tuned.search}: {tuned.trials} trials by {tuned.objective} on validation slices"
    )
    pairs = [
        ("method", f"{method.name} {method.version}"),
        ("code", ", ".join([method.origin, *git, *([f"source {method.source[:16]}"] if method.source else [])])),
        ("submitted by", "; ".join(f"{one.submitter} ({one.licence})" for one in entry.submitted)),
        ("made", ", ".join(dict.fromkeys(one.created[:10] for one in entry.records))),
        (
            "learned from",
            f"{entry.trained_on} {train.modality}: {_amount(train)}" if train.slices else f"{train.name}, as they say",
        ),
        ("tested on", f"{test.name} {test.modality}: {_amount(test)}"),
        ("grid", f"{test.grid[0]} × {test.grid[1]} px"),
        (
            "weights",
            ""
            if entry.from_maps
            else f"{method.parameters:,}" + (f", fitted by {made.author} ({made.licence})" if made else ""),
        ),
        ("against the best", against),
        ("tuned", search),
        ("made by", ", ".join(map(str, made_by))),
        ("conformance checks", entry.conformance),
        ("run keys", ", ".join(one.run_key[:16] for one in entry.records)),
    ]
    return [(name, text) for name, text in pairs if text]
