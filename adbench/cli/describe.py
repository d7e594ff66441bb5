"""What there is, what it takes and whether it keeps its contract: ``adbench list``, ``describe`` and ``test`` as plain data."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from adbench.config import registry
from adbench.config.protocols import PROTOCOLS
from adbench.errors import UserError, unknown
from adbench.metrics.spec import SPECS, spec
from adbench.params import ParamSet

if TYPE_CHECKING:
    from adbench.testing import Finding

KINDS = ("methods", "datasets", "protocols", "metrics")


def listing(kind: str) -> list[dict[str, Any]]:
    """Everything of ``kind``: name, summary, origin, and the problem that makes it unavailable ("" when none).

    A metric also has what :meth:`adbench.metrics.spec.MetricSpec.as_dict` gives.
    """
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    if kind == "protocols":
        return [{"name": p.name, "summary": p.summary, "origin": "built-in", "problem": ""} for p in PROTOCOLS.values()]
    rows: list[dict[str, Any]] = []
    if kind == "metrics":
        headline = [one for one in SPECS.values() if one.group == "headline"]
        rows = [{"name": m.name, "summary": m.definition, "origin": "built-in", "problem": ""} for m in headline]
    rows += [
        {
            "name": entry.name,
            "summary": registry.summary(entry),
            "origin": entry.origin,
            "problem": registry.status(entry),
        }
        for entry in registry.entries(cast(registry.Kind, kind)).values()
    ]
    if kind == "metrics":
        for row in rows:
            row |= spec(row["name"]).as_dict()
    return rows


def _params(cls: type[ParamSet]) -> list[dict[str, Any]]:
    schema = cls.model_json_schema().get("properties", {})
    rows = []
    line = [*cls.__mro__]
    age = {name: next(n for n, c in enumerate(line) if name in inspect.get_annotations(c)) for name in cls.model_fields}
    for name, field in sorted(cls.model_fields.items(), key=lambda item: age[item[0]]):
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        annotation = field.annotation
        kind = annotation.__name__ if isinstance(annotation, type) else str(annotation)
        limits = [f"{sign} {schema.get(name, {})[key]}" for key, sign in _LIMITS.items() if key in schema.get(name, {})]
        rows.append(
            {
                "name": name,
                "type": " ".join([kind.replace("typing.", ""), ", ".join(limits)]).strip(),
                "default": field.get_default(call_default_factory=True),
                "unit": str(extra.get("unit", "")),
                "doc": field.description or "",
                "source": str(extra.get("source", "")),
            }
        )
    return rows


_LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def description(name: str) -> dict[str, Any]:
    """Everything about the method, dataset, metric or protocol called ``name``.

    Returns:
        kind, name, doc, facts, card (of a method that has one: :class:`adbench.methods.card.Card`), params (name, type,
        default, unit, doc, source; its own before those it shares), presets, scope (for ``--set``).

    Raises:
        UserError: nothing has that name.
    """
    if name in PROTOCOLS and name not in registry.entries("datasets"):
        return _protocol(name)
    for kind in ("methods", "datasets", "metrics"):
        entry = registry.entries(kind).get(name)  # type: ignore[arg-type]
        if entry is None:
            continue
        cls = registry.load(kind, name)  # type: ignore[arg-type]
        facts: dict[str, Any] = {"from": entry.origin, "defined in": entry.target}
        card = None
        presets: dict[str, Any] = {}
        scope = name
        if kind == "methods":
            facts["version"] = cls.version
            presets = cls.presets
            card = asdict(cls.card) if cls.card else None
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
            scope = "dataset"
        else:
            facts |= _metric_facts(name)
        params = _params(cls.Params) if hasattr(cls, "Params") else []
        doc = inspect.cleandoc(cls.__doc__ or "")
        return {
            "kind": kind[:-1],
            "name": name,
            "doc": doc,
            "facts": facts,
            "card": card,
            "params": params,
            "presets": presets,
            "scope": scope,
        }
    if name in SPECS:
        return {
            "kind": "metric",
            "name": name,
            "doc": SPECS[name].definition,
            "facts": {**_metric_facts(name), "formula": "docs/metrics.md has it"},
            "card": None,
            "params": [],
            "presets": {},
            "scope": "",
        }
    known = [n for kind in ("methods", "datasets", "metrics") for n in registry.entries(kind)]  # type: ignore[arg-type]
    error: UserError = unknown("name", name, [*known, *PROTOCOLS, *SPECS])
    raise error


def _metric_facts(name: str) -> dict[str, Any]:
    facts = spec(name)
    found = {"heading": facts.heading, "direction": facts.direction, "unit": facts.unit, "over": facts.scope}
    if facts.oracle:
        found["oracle"] = "it chooses something on the test split"
    return {what: value for what, value in found.items() if value}


def _protocol(name: str) -> dict[str, Any]:
    fields = PROTOCOLS[name].as_dict()
    doc = fields.pop("summary")
    fields.pop("name")
    return {
        "kind": "protocol",
        "name": name,
        "doc": doc,
        "facts": fields,
        "card": None,
        "params": [],
        "presets": {},
        "scope": "",
    }


def conformance(name: str, assignments: list[str], root: Path | None, device: str) -> list[Finding]:
    """What the conformance checks find about the method or dataset called ``name``; of a method, records will say it.

    Args:
        name: a method or dataset.
        assignments: texts of the form ``key=value``, parameters of it.
        root: where the dataset lies.
        device: where a method runs.

    Raises:
        UserError: nothing has that name, or its parameters are wrong.
    """
    from adbench.config import run_config
    from adbench.config.source import source_digest
    from adbench.results import known
    from adbench.testing import check_dataset, check_method

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
    raise unknown("method or dataset", name, [*registry.entries("methods"), *registry.entries("datasets")])
