"""Formatting of results: numbers with intervals, times, and self-contained HTML pages."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adbench.metrics.spec import WIDE
from adbench.utils.console import printable

if TYPE_CHECKING:
    from adbench.metrics.evaluate import Estimate
    from adbench.results.record import Number

NONE = "—"  # what a table shows for an undefined number


def value_text(number: Estimate | Number | None, digits: int = 3) -> str:
    """The value alone: "0.621"; "≈0.621" where joined bins leave more than ``WIDE`` open; a dash where undefined."""
    if number is None or number.value is None:
        return NONE
    return f"{'≈' if number.spread > WIDE else ''}{number.value:.{digits}f}"


def interval_text(number: Estimate | Number | None, between: str = "–", digits: int = 3) -> str:
    """The ends of the interval: "0.399–0.741"; empty without one."""
    if number is None or number.low is None or number.high is None:
        return ""
    return f"{number.low:.{digits}f}{between}{number.high:.{digits}f}"


def number_text(
    number: Estimate | Number | None, interval: bool = False, escape: Callable[[str], str] = lambda text: text
) -> str:
    """Value and interval in a cell of text: "0.621 [0.399, 0.741]".

    Args:
        number: None is written as a dash.
        interval: write the interval too, or the reason why there is none.
        escape: applied to that reason, which is a text of the record.
    """
    value, ends = value_text(number), interval_text(number, ", ")
    if not interval or number is None or number.value is None:
        return value
    if ends:
        return f"{value} [{ends}]"
    return f"{value} ({escape(number.reason)})" if number.reason else value


def p_text(p: float) -> str:
    """A p-value: "= 0.031" or "< 0.001"."""
    return f"= {p:.3f}" if p >= 0.001 else "< 0.001"


def several(count: int, noun: str) -> str:
    """A number of things: "1 test subject", "1,200 slices"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """A time in the unit that suits it: "5.9 min"."""
    if seconds < 0.01:
        return "under 0.01 s"
    for unit, length, least in (("days", 86400.0, 2.0), ("h", 3600.0, 1.0), ("min", 60.0, 1.0)):
        if seconds >= least * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def flat(values: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Nested mappings as (dotted name, value) pairs, in their order."""
    if not isinstance(values, Mapping):
        return [(prefix, values)]
    return [pair for key, value in values.items() for pair in flat(value, f"{prefix}.{key}" if prefix else str(key))]


def html_page(templates: Path, name: str, **values: Any) -> str:
    """A page in one file that loads nothing: ``<name>.html`` with ``<name>.css`` and ``<name>.js`` inside.

    Jinja2 escapes every text; the template marks only our own style, script and drawings as safe. It gets ``values``,
    ``style``, ``script``, the ``script_hash`` for its content security policy, and the functions of this module as filters.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(templates),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(value=value_text, ends=interval_text, duration=duration, p=p_text, several=several)
    script = (templates / f"{name}.js").read_text(encoding="utf-8")
    page = environment.get_template(f"{name}.html").render(
        style=(templates / f"{name}.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **values,
    )
    return printable(page)
