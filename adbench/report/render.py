"""A gathered report as one HTML file and PNGs. Every text of a record is escaped; nothing outside the file is asked for."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from adbench import __version__
from adbench.context import Progress
from adbench.evaluation.pictures import sample_sheet
from adbench.metrics.spec import SPECS, WIDE, MetricSpec
from adbench.report import drawing, figures
from adbench.report.collect import Part, Portrait, Report
from adbench.report.tiles import box, contour, found, image_uri, map_uri
from adbench.results.record import Number, asked, facts
from adbench.results.rundir import safe
from adbench.runner.samples import Sample
from adbench.utils.files import write_text

TEMPLATES = Path(__file__).parent / "templates"
PAGE = "index.html"
COLUMNS = ("auprc", "dice@val", "dice@best", "auroc", "lesion_recall@val", "fa_slice")
BARS = ("auprc", "dice@val")  # from 0 to 1
CHART_SECTIONS = (
    ("curves", "Curves", ("pr", "roc", "dice")),
    ("strata", "Lesion size and strata", ("strata", "lesions")),
    ("subjects", "Subjects", ("subjects",)),
    ("training", "Training and cost", ("losses", "cost")),
)
MANY = 3  # from so many runs on, they stand side by side as columns


def write_report(report: Report, out: Path, command: str, progress: Progress | None = None) -> list[Path]:
    """Write the page and its PNGs.

    Args:
        report: from :func:`adbench.report.collect.collect`.
        out: folder; receives ``index.html`` and ``figures/``.
        command: what made it, for the page's footer.
        progress: receives progress.

    Returns:
        The files, the page first.
    """
    progress = progress or Progress()
    total = len(figures.CHARTS) + len(report.portraits) + 1
    charts: dict[str, dict[str, Any]] = {}
    files = []
    for done, (name, (draw, caption)) in enumerate(figures.CHARTS.items(), 1):
        figure = draw(report)
        if figure is not None:
            files.append(out / "figures" / f"{name}.png")
            drawing.png(figure, files[-1])
            charts[name] = {
                "svg": drawing.svg(figure, name, caption),
                "caption": caption,
                "wide": figure.get_figwidth() > 6,
            }
        progress.update("pages and pictures", done, total)
    for done, portrait in enumerate(report.portraits, len(figures.CHARTS) + 1):
        number = done - len(figures.CHARTS)
        files.append(out / "figures" / f"subject-{number:02d}-{safe(portrait.subject)[:80]}.png")
        _sheet(report, portrait, files[-1])
        progress.update("pages and pictures", done, total)
    write_text(out / PAGE, page(report, charts, command))
    progress.update("pages and pictures", total, total)
    return [out / PAGE, *files]


def page(report: Report, charts: Mapping[str, Mapping[str, Any]], command: str) -> str:
    """The HTML of ``report``.

    Args:
        report: what to show.
        charts: name -> svg, caption and width of the charts that could be drawn.
        command: what made it.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    first = report.parts[0].run.record
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    sections = [
        (id_, name, [charts[chart] for chart in chosen if chart in charts]) for id_, name, chosen in CHART_SECTIONS
    ]
    sections = [section for section in sections if section[2]]
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("report.html").render(
        title=f"{first.test.name} · {first.test.modality}",
        subtitle=(
            f"protocol {first.protocol.get('name')} v{first.protocol.get('version')} · {first.test.subjects} test subjects "
            f"({first.test.lesion_subjects} with lesion) · {first.test.slices} slices of "
            f"{first.test.grid[0]}×{first.test.grid[1]} px"
        ),
        sections=[
            ("results", "Results"),
            *((id_, name) for id_, name, _ in sections),
            *([("pictures", "Pictures")] if report.portraits else []),
            ("runs", "Runs"),
        ],
        notes=report.notes,
        ranked=report.comparison is not None,
        columns=[{"heading": m.column, "meaning": m.definition, "oracle": m.oracle} for m in _columns(report)],
        parts=[_part(report, part, index) for index, part in enumerate(report.parts)],
        prevalence=f"{first.prevalence:.4f}",
        level=f"{float(first.protocol.get('level', 0.95)):.0%}",
        differences=_differences(report),
        chart_sections=sections,
        portraits=[_portrait(report, portrait, number) for number, portrait in enumerate(report.portraits)],
        ranked_by=report.ranked_by,
        version=__version__,
        command=command,
        style=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _part(report: Report, part: Part, index: int) -> dict[str, Any]:
    record = part.run.record
    seconds = figures.volume_seconds(part)
    low, high = part.window
    threshold = part.evaluation.thresholds.get("val")
    ranks = report.comparison.ranks if report.comparison else {}
    return {
        "label": part.label,
        "colour": index % len(drawing.SERIES),
        "rank": ranks.get(part.group) or "—",
        "cells": [_cell(record.metrics.get(m.name), m.name in BARS, m.oracle) for m in _columns(report)],
        "fit_seconds": _short(record.timing.get("fit")),
        "volume_seconds": _short(seconds),
        "weights": _count(record.method.parameters),
        "shown": any(part.label in shown.maps for portrait in report.portraits for shown in portrait.slices),
        "low": f"{low:.3g}",
        "high": f"{high:.3g}",
        "threshold": "" if threshold is None else f"{threshold:.4g}",
        "mark": None if threshold is None else round(min(1.0, max(0.0, (threshold - low) / (high - low))), 4),
        "summary": f"{record.created} · {record.provenance.get('device_name', record.provenance.get('device', ''))}",
        "facts": [
            ("method", f"{record.method.name} {record.method.version} ({record.method.origin})"),
            ("preset, seed", f"{record.method.preset}, {record.seed}"),
            *_flat(record.method.params),
            ("optimiser steps", record.fit.get("steps", "")),
            *((f"kept: {name}", value) for name, value in _flat(record.fit.get("best", {}))),
            ("thresholds", ", ".join(f"{rule} {value:.5g}" for rule, value in record.thresholds.items())),
            ("folder", part.run.folder),
        ],
        "data": [
            (role, f"{d.name} {d.modality}: {d.slices} slices of {d.subjects} subjects, {d.digest[:12]}")
            for role in ("train", "val", "threshold", "test")
            if (d := getattr(record, role)) is not None
        ]
        + [(key, record.protocol[key]) for key in ("train", "threshold", "test", "domain") if key in record.protocol],
        "timing": [(f"{name}, s", _short(value)) for name, value in record.timing.items()]
        + [(f"{name}, GiB", f"{value:.2f}") for name, value in record.memory.items()],
        "provenance": [
            *_flat(record.provenance),
            ("run key", record.run_key),
            ("fit key", record.fit_key),
            ("method source", record.method.source),
        ],
        "metrics": [_row(name, number) for name, number in _ordered(record.metrics)],
        "notes": record.notes,
        "config": _config(part.run.folder / "config.yaml"),
    }


def _columns(report: Report) -> list[MetricSpec]:
    """Those of every report, and the metrics that some run was asked for."""
    records = [part.run.record for part in report.parts]
    return [facts(name, *records) for name in dict.fromkeys([*COLUMNS, *asked(*records)])]


def _cell(number: Number | None, bars: bool, oracle: bool) -> dict[str, Any]:
    if number is None or number.value is None:
        reason = number.reason if number else "not in this record"
        return {"value": None, "reason": reason, "oracle": oracle}
    known = number.low is not None and number.high is not None
    bar = None
    if bars and known:
        bar = [round(min(1.0, max(0.0, end or 0.0)), 4) for end in (number.low, number.value, number.high)]
    ends = f"{number.low:.3f}, {number.high:.3f}" if known else ""
    about = "≈" if number.spread > WIDE else ""
    return {"value": number.value, "text": f"{about}{number.value:.3f}", "ends": ends, "bar": bar, "oracle": oracle}


def _row(name: str, number: Number) -> dict[str, Any]:
    known = number.low is not None and number.high is not None
    return {
        "name": name,
        "text": "—" if number.value is None else f"{'≈' if number.spread > WIDE else ''}{number.value:.4f}",
        "ends": f"[{number.low:.4f}, {number.high:.4f}]" if known else "",
        "n": number.n,
        "oracle": number.oracle,
        "remark": ("oracle" if number.oracle else "")
        + (" · " if number.oracle and number.reason else "")
        + number.reason,
    }


def _ordered(metrics: Mapping[str, Number]) -> list[tuple[str, Number]]:
    known = [name for name in SPECS if name in metrics]
    return [(name, metrics[name]) for name in [*known, *(name for name in metrics if name not in known)]]


def _differences(report: Report) -> list[dict[str, Any]]:
    if report.comparison is None:
        return []
    return [
        {
            "a": d.a,
            "b": d.b,
            "value": f"{d.value:+.3f}",
            "low": f"{d.low:+.3f}",
            "high": f"{d.high:+.3f}",
            "p": f"{d.p_rank:.3f}" if d.p_rank >= 0.001 else "< 0.001",
            "apart": report.comparison.ranks[d.a] != report.comparison.ranks[d.b],
        }
        for d in report.comparison.differences
    ]


def _portrait(report: Report, portrait: Portrait, number: int) -> dict[str, Any]:
    shown_parts = [p for p in report.parts if any(p.label in shown.maps for shown in portrait.slices)]
    as_rows = len(shown_parts) < MANY
    frame = box(_stack(portrait))
    own = [f"{p.label} {_value(portrait.values.get(p.label))}" for p in shown_parts] if as_rows else []
    lesion = f"{portrait.lesion_voxels:,} lesion voxels" if portrait.lesion_voxels else "no lesion"
    value = f"{report.ranked_by}: {', '.join(own)}" if own and portrait.lesion_voxels else ""
    slices = []
    for place, shown in enumerate(portrait.slices):
        size, source = shown.image.shape, f"i{number}-{place}"
        common = {"box": frame, "size": size, "use": None, "id": None, "truth": "", "found": ""}
        where = f"{portrait.subject}, slice {shown.number}"
        truth = contour(shown.lesion)
        source_tile = {
            **common,
            "uri": image_uri(shown.image),
            "id": source,
            "label": f"Input, {where}",
            "caption": "input",
        }
        again = {**common, "use": source, "uri": None}
        runs: list[dict[str, Any]] = []
        for part in shown_parts:
            if part.label not in shown.maps:
                continue
            scores = shown.maps[part.label]
            outline = contour(found(scores, shown.brain, part.evaluation.thresholds.get("val")))
            recon = None
            if part.label in shown.reconstructions:
                label = f"Reconstruction of {part.label}, {where}"
                recon = {
                    **common,
                    "uri": image_uri(shown.reconstructions[part.label]),
                    "label": label,
                    "caption": "reconstruction",
                }
            marks = {"truth": truth, "found": outline}
            heat = {
                **common,
                **marks,
                "uri": map_uri(scores, shown.brain, part.window),
                "label": f"Anomaly map of {part.label}, {where}",
                "caption": "anomaly map",
            }
            over = {**again, **marks, "label": f"Found and truth, {part.label}, {where}", "caption": "truth, found"}
            first = source_tile if not runs else {**again, "label": source_tile["label"], "caption": "input"}
            runs.append(
                {
                    "label": part.label,
                    "colour": report.parts.index(part) % len(drawing.SERIES),
                    "tiles": [first, recon, heat, over],
                    "map": heat,
                    "over": over,
                    "recon": recon,
                    "value": f"{report.ranked_by} {_value(portrait.values.get(part.label))}"
                    if portrait.lesion_voxels
                    else "no lesion",
                }
            )
        slices.append(
            {
                "number": shown.number,
                "input": source_tile,
                "truth": {**again, "truth": truth, "label": f"Truth, {where}"},
                "runs": runs,
                "any_recon": any(run["recon"] for run in runs),
            }
        )
    return {
        "subject": portrait.subject,
        "reason": portrait.reason,
        "kind": portrait.reason.split()[0],
        "about": f"{lesion}{' · ' if value else ''}{value}",
        "slices": slices,
        "as_rows": as_rows,
    }


def _stack(portrait: Portrait) -> Any:
    import numpy as np

    return np.stack([shown.brain for shown in portrait.slices])


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


def _flat(values: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Nested mappings as dotted names; a stranger's record may hold anything, and anything has a text."""
    if not isinstance(values, dict):
        return [(prefix or "value", values)] if values not in (None, "") else []
    return [
        pair for name, value in values.items() for pair in _flat(value, f"{prefix}.{name}" if prefix else str(name))
    ]


def _config(path: Path) -> str:
    if not path.is_file() or path.stat().st_size > 1 << 20:
        return "config.yaml is not there"
    return path.read_text(encoding="utf-8", errors="replace")


def _value(value: float | None) -> str:
    return "—" if value is None else f"{value:.3f}"


def _short(seconds: float | None) -> str:
    if seconds is None:
        return "—"
    if 0 < seconds < 0.001:
        return "< 0.001"
    return f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:.3g}"


def _count(number: int) -> str:
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return str(number)
