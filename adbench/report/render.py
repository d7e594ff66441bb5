"""A gathered report as one HTML file and PNGs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from adbench import __version__
from adbench.context import Progress
from adbench.errors import UserError
from adbench.evaluation.pictures import sample_sheet
from adbench.metrics import plots
from adbench.metrics.columns import REPORT_METRICS
from adbench.metrics.spec import HEADLINE, SPECS, MetricSpec
from adbench.report import drawing, figures
from adbench.report.collect import Portrait, Report, ShownRun, ShownSlice
from adbench.report.drawing import box, contour, found, image_uri, map_uri
from adbench.results.format import flat, html_page, several
from adbench.results.record import Number, asked, facts
from adbench.results.rundir import safe
from adbench.runner.samples import Sample
from adbench.utils.files import write_text
from adbench.utils.limits import STATUS_BYTES
from adbench.utils.plain_files import read_plain

TEMPLATES = Path(__file__).parent / "templates"
PAGE = "index.html"
BARS = HEADLINE  # from 0 to 1
CHART_SECTIONS = (
    ("curves", "Curves", ("pr", "roc", "dice")),
    ("sweeps", "Sweeps", ("sweep",)),
    ("strata", "Lesion size and strata", ("strata", "lesions")),
    ("subjects", "Subjects", ("subjects",)),
    ("training", "Training and cost", ("losses", "cost")),
)
MANY = 3  # from so many runs on, they stand side by side as columns


@dataclass(frozen=True)
class Tile:
    """A picture of a slice.

    Attributes:
        label: what it shows, for those who cannot see it.
        caption: below it.
        uri: the picture as data; empty where ``use`` names one that is on the page already.
        id: by which others use its picture.
        use: id of the tile whose picture it shows.
        truth: outline of the lesions, as an SVG path.
        found: outline of what is predicted at the chosen threshold.
    """

    label: str
    caption: str = ""
    uri: str = ""
    id: str = ""
    use: str = ""
    truth: str = ""
    found: str = ""


def free_folder(out: Path) -> Path:
    """``out``, or the first of ``out-2``, ``out-3``, ... in which no report lies."""
    number, folder = 1, out
    while (folder / PAGE).exists():
        number += 1
        folder = out.with_name(f"{out.name}-{number}")
    return folder


def write_report(report: Report, out: Path, command: str, progress: Progress | None = None) -> list[Path]:
    """Write the page, with ``command`` in its footer, and its PNGs below ``out``.

    Returns:
        The files, the page first.
    """
    import matplotlib as mpl

    progress = progress or Progress()
    total = len(figures.CHARTS) + len(report.portraits) + 1
    charts: dict[str, dict[str, Any]] = {}
    files = []
    for done, (name, (draw, caption)) in enumerate(figures.CHARTS.items(), 1):
        with mpl.rc_context(plots.STYLE):
            figure = draw(report)
        if figure is not None:
            files.append(out / "figures" / f"{name}.png")
            plots.png(figure, files[-1])
            svg = drawing.svg(figure, name, caption)
            charts[name] = {"svg": svg, "caption": caption, "wide": figure.get_figwidth() > 6}
        progress.update("pages and pictures", done, total)
    for number, portrait in enumerate(report.portraits, 1):
        files.append(out / "figures" / f"subject-{number:02d}-{safe(portrait.subject)[:80]}.png")
        _sheet(report, portrait, files[-1])
        progress.update("pages and pictures", len(figures.CHARTS) + number, total)
    write_text(out / PAGE, _page(report, charts, command))
    progress.update("pages and pictures", total, total)
    return [out / PAGE, *files]


def _page(report: Report, charts: Mapping[str, Mapping[str, Any]], command: str) -> str:
    """The HTML of ``report``; ``charts`` are name -> svg, caption and width of those that could be drawn."""
    sections = [
        (id_, name, [charts[chart] for chart in chosen if chart in charts]) for id_, name, chosen in CHART_SECTIONS
    ]
    return html_page(
        TEMPLATES,
        "report",
        report=report,
        first=report.parts[0].run.record,
        chart_sections=[section for section in sections if section[2]],
        columns=_columns(report),
        bars=BARS,
        colour={part.label: number % len(plots.SERIES) for number, part in enumerate(report.parts)},
        ranks=_ranks(report),
        portraits=[_portrait(report, portrait, number) for number, portrait in enumerate(report.portraits)],
        shown={label for portrait in report.portraits for shown in portrait.slices for label in shown.maps},
        volume_seconds=figures.volume_seconds,
        mark=_mark,
        details=_details,
        ordered=_ordered,
        config=_config,
        version=__version__,
        command=command,
    )


def _ranks(report: Report) -> dict[str, str]:
    """Method -> its rank, as boards write it: "=1" where others share it, "" without one."""
    ranks = report.comparison.ranks if report.comparison else {}
    times = Counter(ranks.values())
    return {name: "" if rank is None else f"{'=' * (times[rank] > 1)}{rank}" for name, rank in ranks.items()}


def _columns(report: Report) -> list[MetricSpec]:
    """Those of every report, and the metrics that some run was asked for."""
    records = [part.run.record for part in report.parts]
    return [facts(name, *records) for name in dict.fromkeys([*REPORT_METRICS, *asked(*records)])]


def _ordered(metrics: Mapping[str, Number]) -> dict[str, Number]:
    """The metrics of a record, those of every run first."""
    known = {name: metrics[name] for name in SPECS if name in metrics}
    return {**known, **metrics}


def _mark(part: ShownRun) -> float | None:
    """Where the chosen threshold lies between the ends of the window, as a share; None without one."""
    low, high = part.window
    threshold = part.evaluation.thresholds.get("val")
    return None if threshold is None else round(min(1.0, max(0.0, (threshold - low) / (high - low))), 4)


def _details(part: ShownRun) -> dict[str, list[tuple[str, Any]]]:
    """Heading -> (name, value) pairs: what the numbers of a run were made from."""
    record, method = part.run.record, part.run.record.method
    roles = [(role, getattr(record, role)) for role in ("train", "val", "threshold", "test")]
    details = {
        "Run": [
            ("method", f"{method.name} {method.version} ({method.origin})"),
            ("preset, seed", f"{method.preset}, {record.seed}"),
            *flat(method.params),
            ("optimiser steps", record.fit.get("steps", "")),
            *flat(record.fit.get("best", {}), "kept"),
            *(
                (f"threshold {rule}", f"{value:.5g} ({plots.RULES.get(rule, rule)})")
                for rule, value in record.thresholds.items()
            ),
            ("folder", part.run.folder),
        ],
        "Data": [
            *(
                (
                    role,
                    f"{d.name} {d.modality}: {several(d.slices, 'slice')} of {several(d.subjects, 'subject')}, {d.digest[:12]}",
                )
                for role, d in roles
                if d is not None
            ),
            *(
                (key, record.protocol[key])
                for key in ("train", "threshold", "test", "domain")
                if key in record.protocol
            ),
        ],
        "Time and memory": [
            *((f"{name}, s", f"{value:,.4g}") for name, value in record.timing.items()),
            *((f"{name}, GiB", f"{value:.2f}") for name, value in record.memory.items()),
        ],
        "Provenance": [
            *flat(record.provenance),
            ("run key", record.run_key),
            ("fit key", record.fit_key),
            ("method source", method.source),
        ],
    }
    return {
        heading: [(name, value) for name, value in pairs if value not in (None, "")]
        for heading, pairs in details.items()
    }


def _config(part: ShownRun) -> str:
    path = part.run.folder / "config.yaml"
    try:
        return read_plain(path, STATUS_BYTES).decode("utf-8", errors="replace")
    except FileNotFoundError:
        return "config.yaml is not there"
    except UserError as error:
        return str(error)


def _portrait(report: Report, portrait: Portrait, number: int) -> dict[str, Any]:
    """A volume as the template shows it: its heading, and the tiles of each slice."""
    parts = [part for part in report.parts if any(part.label in shown.maps for shown in portrait.slices)]
    as_rows = len(parts) < MANY
    about = [f"{portrait.lesion_voxels:,} lesion voxels" if portrait.lesion_voxels else "no lesion"]
    if as_rows and portrait.lesion_voxels:
        own = ", ".join(f"{part.label} {_value(portrait, part)}" for part in parts)
        about += [f"{report.ranked_by}: {own}"] if own else []
    return {
        "subject": portrait.subject,
        "reason": portrait.reason,
        "about": " · ".join(about),
        "as_rows": as_rows,
        "box": box(np.stack([shown.brain for shown in portrait.slices])),
        "size": portrait.slices[0].image.shape,
        "slices": [
            _slice(report, portrait, parts, shown, f"i{number}-{place}") for place, shown in enumerate(portrait.slices)
        ],
    }


def _slice(report: Report, portrait: Portrait, parts: list[ShownRun], shown: ShownSlice, source: str) -> dict[str, Any]:
    """The tiles of one slice; its image is on the page once, under the id ``source``."""
    where = f"{portrait.subject}, slice {shown.number}"
    image = Tile(f"Input, {where}", "input", uri=image_uri(shown.image), id=source)
    again = replace(image, uri="", id="", use=source)
    truth = contour(shown.lesion)
    runs: list[dict[str, Any]] = []
    for part in parts:
        if (scores := shown.maps.get(part.label)) is None:
            continue
        outline = contour(found(scores, shown.brain, part.evaluation.thresholds.get("val")))
        heat = map_uri(scores, shown.brain, part.window)
        recon = None
        if (picture := shown.reconstructions.get(part.label)) is not None:
            recon = Tile(f"Reconstruction of {part.label}, {where}", "reconstruction", uri=image_uri(picture))
        runs.append(
            {
                "label": part.label,
                "input": again if runs else image,
                "recon": recon,
                "map": Tile(
                    f"Anomaly map of {part.label}, {where}", "anomaly map", uri=heat, truth=truth, found=outline
                ),
                "over": Tile(
                    f"Found and truth, {part.label}, {where}", "truth, found", use=source, truth=truth, found=outline
                ),
                "value": f"{report.ranked_by} {_value(portrait, part)}" if portrait.lesion_voxels else "no lesion",
            }
        )
    return {
        "number": shown.number,
        "input": image,
        "truth": Tile(f"Truth, {where}", use=source, truth=truth),
        "runs": runs,
        "any_recon": any(run["recon"] for run in runs),
    }


def _value(portrait: Portrait, part: ShownRun) -> str:
    value = portrait.values.get(part.label)
    return "—" if value is None else f"{value:.3f}"


def _sheet(report: Report, portrait: Portrait, path: Path) -> None:
    """A PNG of the slice that the page opens with: a row a run."""
    shown = portrait.slices[(len(portrait.slices) - 1) // 2]
    samples = [
        Sample(
            part.label,
            shown.image,
            shown.brain,
            shown.lesion,
            shown.maps[part.label],
            shown.reconstructions.get(part.label),
            part.evaluation.thresholds.get("val"),
            part.window,
        )
        for part in report.parts
        if part.label in shown.maps
    ]
    sample_sheet(samples, path, f"{portrait.subject}, slice {shown.number} ({portrait.reason})", None)
