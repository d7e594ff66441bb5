"""Descriptions of methods, datasets, metrics and protocols as plain data and as Markdown, and the conformance checks."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adbench.config import registry
from adbench.config.protocols import PROTOCOLS
from adbench.errors import UserError, unknown
from adbench.metrics.spec import SPECS
from adbench.params import ParamSet, scoring
from adbench.utils.files import write_text

if TYPE_CHECKING:
    from adbench.testing import Finding

KINDS: tuple[registry.Kind, ...] = ("methods", "datasets", "metrics")
LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
# Headings of a method's card, and the keys of its parts in --json.
PARTS = {
    "Cite": "paper",
    "Equations": "equations",
    "Variants": "variants",
    "Deviations from the paper and its code": "deviations",
    "Published": "published",
    "Tried here": "tried",
}
MADE = "<!-- Made by `adbench describe --all --markdown --out docs/methods` from the code: change it there. -->"
KEPT = "\n<!-- From runs: "  # begins the line that names what wrote the rest of a page, which the code does not know


def listing(kind: str) -> list[dict[str, Any]]:
    """Everything of ``kind``: name, summary, origin, and the problem that makes it unavailable ("" when none).

    A metric also has what :meth:`adbench.metrics.spec.MetricSpec.as_dict` gives.

    Raises:
        UserError: no such kind.
    """
    if kind == "protocols":
        return [{"name": p.name, "summary": p.summary, "origin": "built-in", "problem": ""} for p in PROTOCOLS.values()]
    wanted = next((one for one in KINDS if one == kind), None)
    if wanted is None:
        raise unknown("kind", kind, ("methods", "datasets", "protocols", "metrics"))
    rows: list[dict[str, Any]] = []
    if kind == "metrics":
        headline = [one for one in SPECS.values() if one.group == "headline"]
        rows = [{"name": m.name, "summary": m.definition, "origin": "built-in", "problem": ""} for m in headline]
    for entry in registry.entries(wanted).values():
        summary, problem = registry.examined(entry)
        rows.append({"name": entry.name, "summary": summary, "origin": entry.origin, "problem": problem})
    if kind == "metrics":
        for row in rows:
            spec = registry.not_here(row["name"]) if row["problem"] else registry.metric_spec(row["name"])
            row |= spec.as_dict()
    return rows


def _params(cls: type[ParamSet]) -> list[dict[str, Any]]:
    schema = cls.model_json_schema().get("properties", {})
    line = cls.__mro__
    age = {name: next(n for n, c in enumerate(line) if name in inspect.get_annotations(c)) for name in cls.model_fields}
    rows = []
    for name, field in sorted(cls.model_fields.items(), key=lambda item: age[item[0]]):
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        annotation = field.annotation
        kind = annotation.__name__ if isinstance(annotation, type) else str(annotation)
        limits = [f"{sign} {schema.get(name, {})[key]}" for key, sign in LIMITS.items() if key in schema.get(name, {})]
        rows.append(
            {
                "name": name,
                "type": " ".join([kind.replace("typing.", ""), ", ".join(limits)]).strip(),
                "default": field.get_default(call_default_factory=True),
                "unit": str(extra.get("unit", "")),
                "doc": field.description or "",
                "source": str(extra.get("source", "")),
                "scores": name in scoring(cls),
            }
        )
    return rows


def scoring_note(params: list[dict[str, Any]]) -> str:
    """Which of the parameters leave a fit as it is; "" for none."""
    names = [f"`{p['name']}`" for p in params if p["scores"]]
    return f"One fit serves all values of what only scores: {', '.join(names)}." if names else ""


def _card(cls: type[Any]) -> dict[str, Any] | None:
    """The parts of a method's card: the paper, and the lines under each other heading of :data:`PARTS`."""
    text = registry.card_text(cls)
    if not text:
        return None
    found: dict[str, list[str]] = {key: [] for key in PARTS.values()}
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        heading, _, body = part.partition("\n")
        lines = [line.removeprefix("* ") for line in body.splitlines() if line and not line.startswith("```")]
        found[PARTS.get(heading.strip(), heading.strip())] = lines
    variants = dict(line.replace("`", "").split(": ", 1) for line in found["variants"])
    return {**found, "paper": " ".join(found["paper"]), "variants": variants}


def sections(card: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Headings and lines of a card, in the order of reading; empty parts are left out."""
    for heading, key in PARTS.items():
        if not card[key]:
            continue
        if key == "variants":
            yield heading, [f"{name}: {text}" for name, text in card[key].items()]
        else:
            yield heading, [card[key]] if key == "paper" else card[key]


def description(name: str) -> dict[str, Any]:
    """Everything about the method, dataset, metric or protocol called ``name``; of two with that name, the first of these.

    Returns:
        kind, name, doc, facts, card (of a method that has one: paper, equations, variants, deviations, published, tried),
        params (name, type, default, unit, doc, source; its own before those it shares), presets, scope (for ``--set``).

    Raises:
        UserError: nothing has that name.
    """
    plain: dict[str, Any] = {"name": name, "card": None, "params": [], "presets": {}, "scope": ""}
    for kind in KINDS:
        entry = registry.entries(kind).get(name)
        if entry is None:
            continue
        cls = registry.load(kind, name)
        facts: dict[str, Any] = {"from": entry.origin, "defined in": entry.target}
        plain["scope"] = name
        if kind == "methods":
            facts["version"] = cls.version
            plain |= {"presets": cls.presets, "card": _card(cls)}
        elif kind == "datasets":
            info = cls.info
            facts |= {
                "version": info.version,
                "modalities": ", ".join(info.modalities),
                "licence": info.licence,
                "how to get it": info.obtain,
                "expected layout": info.layout,
                "default protocol": info.protocol,
            }
            plain["scope"] = "dataset"
        else:
            facts |= _metric_facts(name)
        plain["params"] = _params(cls.Params) if hasattr(cls, "Params") else []
        return {"kind": kind[:-1], "doc": readable(inspect.cleandoc(cls.__doc__ or "")), "facts": facts, **plain}
    if name in PROTOCOLS:
        fields = PROTOCOLS[name].as_dict()
        del fields["name"]
        return {"kind": "protocol", "doc": fields.pop("summary"), "facts": fields, **plain}
    if name in SPECS:
        facts = {**_metric_facts(name), "formula": "docs/metrics.md has it"}
        return {"kind": "metric", "doc": SPECS[name].definition, "facts": facts, **plain}
    known = [known for kind in KINDS for known in registry.entries(kind)]
    error: UserError = unknown("name", name, [*known, *PROTOCOLS, *SPECS])
    raise error


def readable(docstring: str) -> str:
    """A docstring without the marks of Sphinx: names of classes and code stand in single backticks, as in Markdown."""
    named = re.sub(r":[a-z:]+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", docstring)
    return re.sub(r"``([^`]+)``", r"`\1`", named)


def _metric_facts(name: str) -> dict[str, Any]:
    facts = registry.metric_spec(name)
    found = {"heading": facts.heading, "direction": facts.direction, "unit": facts.unit, "over": facts.scope}
    if facts.oracle:
        found["oracle"] = "it chooses something on the test split"
    return {what: value for what, value in found.items() if value}


def _cell(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
    return text.replace("|", "\\|").replace("<", "&lt;")


def page(name: str) -> str:
    """The page of the method ``name`` as Markdown: what it is, its card, its parameters.

    Raises:
        UserError: no such method.
    """
    what = description(name)
    if what["kind"] != "method":
        raise UserError(f"{name} is a {what['kind']}; only methods have a card: `adbench list methods` shows them.")
    card = registry.card_text(registry.load("methods", name))
    lines = [f"# {name}", "", MADE, "", what["doc"], "", *([card, ""] if card else [])]
    if what["params"]:
        presets = [preset for preset, values in what["presets"].items() if values]
        heads = ["parameter", "default", *presets, "unit", "meaning", "source"]
        lines += ["## Parameters", "", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
        for p in what["params"]:
            special = [what["presets"][preset].get(p["name"], "") for preset in presets]
            cells = [p["default"], *special, p["unit"], p["doc"], p["source"]]
            lines.append(f"| `{p['name']}` | {' | '.join(map(_cell, cells))} |")
        lines += ["", f"A column of a preset shows what it changes. Set one with `--set {name}.NAME=VALUE`.", ""]
        if only := scoring_note(what["params"]):
            lines += [only, ""]
    return "\n".join(lines)


def index_page() -> str:
    """The page that lists the built-in methods, as Markdown."""
    lines = ["# Methods", "", MADE, "", "| method | what it is | paper |", "|---|---|---|"]
    for name, (_, summary) in registry.BUILTIN["methods"].items():
        card = description(name)["card"]
        lines.append(f"| [{name}]({name}.md) | {_cell(summary)} | {_cell(card['paper'] if card else '')} |")
    return "\n".join([*lines, ""])


def write_pages(folder: Path, name: str | None = None) -> list[Path]:
    """Write the page of the method ``name`` into ``folder``, or of every built-in method and the one that lists them.

    What stands behind :data:`KEPT` in a page that is there stays.
    """
    names = [name] if name else list(registry.BUILTIN["methods"])
    texts = {one: page(one) for one in names} | ({} if name else {"index": index_page()})
    paths = []
    for one, text in texts.items():
        path = Path(folder) / f"{one}.md"
        there = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        write_text(path, text + "".join(there.partition(KEPT)[1:]))
        paths.append(path)
    return paths


def conformance(name: str, assignments: list[str], root: Path | None, device: str) -> list[Finding]:
    """Conformance findings about the method, dataset or metric ``name``; those of a method are kept for its records.

    Raises:
        UserError: nothing has that name, or its parameters are wrong.
    """
    from adbench.config import run_config
    from adbench.config.source import source_digest
    from adbench.results import known
    from adbench.testing import check_dataset, check_method, check_metric

    values = {key: value for _, key, value in (run_config.parse_assignment(f"it.{text}") for text in assignments)}
    if name in registry.entries("methods"):
        findings = check_method(
            registry.load("methods", name), overrides=values, device=run_config.resolve_device(device)
        )
        known.keep_conformance(
            source_digest("methods", name), [finding.rule for finding in findings if finding.problem]
        )
        return findings
    if name in registry.entries("datasets"):
        return check_dataset(run_config.locate(name, str(root) if root else None, values, "--data-root").open())
    if name in registry.entries("metrics"):
        if values:
            raise UserError(f"The metric {name} has no parameters: leave out --set.")
        return check_metric(registry.load("metrics", name))
    if name in SPECS:
        raise UserError(
            f"{name} is measured by every run; `adbench test` checks metrics that are asked for or plugged in."
        )
    raise unknown("method, dataset or metric", name, [one for kind in KINDS for one in registry.entries(kind)])
