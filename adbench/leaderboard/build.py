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
from adbench.leaderboard.export import rank_text
from adbench.leaderboard.ranking import ALPHA, boards, read_all
from adbench.leaderboard.submission import JSON_TABLE
from adbench.metrics.columns import WITHOUT_INTERVAL
from adbench.metrics.evaluate import Estimate
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
        made[f"{folder}/table.csv"] = export.table_csv(own)
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
    how_read: str  # on a page, in code, digitised from a figure, or quoted by another paper


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
    """The HTML of all boards."""
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
        value_only=WITHOUT_INTERVAL,
        rank_text=rank_text,
        quote=quote,
        scale=_scale,
        none_=NONE,
        paper=_paper,
        cost_axis=_cost_axis,
        here=lambda row: reproduced(row, shown),
        data=_data(shown),
    )


def _distinct(values: Iterable[str]) -> list[str]:
    return sorted(set(values))


def by_modality(shown: Sequence[Board]) -> list[dict[str, Any]]:
    """Tables that set the same methods beside each other where a dataset is tested in several modalities.

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


def _cost_axis(board: Board) -> range:
    """Powers of ten of the ticks of an axis of seconds a volume; none where no method was run."""
    logs = [log10(max(entry.volume_seconds, 1e-4)) for entry in board.entries if not entry.from_maps]
    low = floor(min(logs, default=0.0))
    return range(low, max(ceil(max(logs)), low + 1) + 1) if logs else range(0)


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


def _data(shown: Sequence[Board]) -> str:
    """What the page makes its links, plots and further tables of, as JSON that is text of HTML.

    ``texts`` are the texts that the rest numbers. ``entries`` are in the order of the page, each with

    * ``row``: what it learned from, its preset and its method; ``values``: of its cells, what they are sorted by;
    * ``metrics``: which of the lists of (name, whether it is an oracle) its numbers go by; ``seeds``: these numbers, a text a
      seed; ``why``: place of a metric -> why it is undefined;
    * ``facts`` and ``params``: name, text, name, text, ...; ``differs``: those of them that other rows have other values of;
    * ``paper``: what to cite; ``about``: what a file of the rows says of it, by the names in ``about`` beside ``texts``.

    ``strata`` has a list a table, with a text a row; ``overviews`` one of (label, places of entries).
    """
    texts: dict[str, int] = {}
    lists: dict[tuple[tuple[int, bool], ...], int] = {}

    def known(*said: str) -> list[int]:
        return [texts.setdefault(printable(text), len(texts)) for text in said]

    entries = [entry for board in shown for entry in board.entries]
    made = []
    for board in shown:
        for entry in board.entries:
            numbers, params = _seed_numbers(entry), sorted(entry.record.method.params.items())
            names = tuple((known(name)[0], oracle) for name, oracle, _, _ in numbers)
            made.append(
                {
                    "row": known(entry.trained_on, entry.record.method.preset, entry.record.method.name),
                    "values": export.rounded(_values(board, entry)),
                    "metrics": lists.setdefault(names, len(lists)),
                    "seeds": [
                        "|".join(_cell(own[seed], 4) for _, _, own, _ in numbers) for seed in range(len(entry.records))
                    ],
                    "why": {place: known(reason)[0] for place, (*_, reason) in enumerate(numbers) if reason},
                    "facts": known(*(text for pair in _details(entry) for text in pair)),
                    "params": known(*(x if isinstance(x, str) else json.dumps(x) for pair in params for x in pair)),
                    "differs": [place for place, (name, _) in enumerate(params) if name in entry.differs],
                    "paper": known(*_paper(entry)),
                    "about": known(*_about(entry).values()),
                }
            )
    places = {id(entry): place for place, entry in enumerate(entries)}
    overviews = [
        [[*known(label), *(entry and places[id(entry)] for entry in row)] for label, row in one["rows"]]
        for one in by_modality(shown)
    ]
    data = {
        "texts": list(texts),
        "about": list(_about(entries[0])),
        "metrics": [[[name, int(oracle)] for name, oracle in names] for names in lists],
        "entries": made,
        "strata": [
            [
                "|".join(
                    _cell(entry.stratum(grouping, group, one.name))
                    for one in board.shown_in(grouping)
                    for group in groups
                )
                for entry in board.entries
            ]
            for board in shown
            for grouping, groups in board.groupings.items()
        ],
        "overviews": overviews,
    }
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _values(board: Board, entry: Entry) -> list[float | None]:
    """What the cells of a row are sorted by, without that of its name."""
    costs = (None, None) if entry.from_maps else (entry.hours, entry.volume_seconds)
    return [entry.rank, *(entry.value(column.name) for column in board.columns), *costs]


def _cell(number: Estimate | Number | None, digits: int = 3) -> str:
    """A number and its interval: "0.621 0.399–0.741"."""
    return f"{value_text(number, digits)} {interval_text(number)}".rstrip()


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
