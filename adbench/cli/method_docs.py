"""The cards of methods as pages: everything on them comes from the class, its parameters and its card."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adbench.cli.describe import description
from adbench.config import registry
from adbench.errors import UserError
from adbench.utils.files import write_text

MADE = "<!-- Made by `adbench describe --all --markdown --out docs/methods` from the code: change it there. -->"


def sections(card: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Headings and lines of a card, in the order of reading; empty parts are left out."""
    variants = [f"{name}: {text}" for name, text in card["variants"].items()]
    parts = (
        ("Cite", [card["paper"]]),
        ("Equations", card["equations"]),
        ("Variants", variants),
        ("Deviations from the paper and its code", card["deviations"]),
        ("Published", card["published"]),
        ("Tried here", card["tried"]),
    )
    for heading, lines in parts:
        if lines:
            yield heading, list(lines)


def _cell(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
    return text.replace("|", "\\|").replace("<", "&lt;")


def _parameters(what: dict[str, Any]) -> Iterator[str]:
    presets = [name for name, values in what["presets"].items() if values]
    heads = ["parameter", "default", *presets, "unit", "meaning", "source"]
    yield from (f"| {' | '.join(heads)} |", "|" + "---|" * len(heads))
    for p in what["params"]:
        special = [_cell(what["presets"][name].get(p["name"], "")) for name in presets]
        cells = [f"`{p['name']}`", _cell(p["default"]), *special, *(_cell(p[key]) for key in ("unit", "doc", "source"))]
        yield f"| {' | '.join(cells)} |"


def page(name: str) -> str:
    """The card of the method ``name`` as Markdown.

    Raises:
        UserError: no such method.
    """
    what = description(name)
    if what["kind"] != "method":
        raise UserError(f"{name} is a {what['kind']}; only methods have a card: `adbench list methods` shows them.")
    lines = [f"# {name}", "", MADE, "", what["doc"], ""]
    for heading, texts in sections(what["card"]) if what["card"] else ():
        lines += [f"## {heading}", ""]
        if heading == "Equations":
            lines += ["```text", *texts, "```", ""]
        elif heading == "Variants":
            lines += [f"* `{key}`: {text}" for key, text in what["card"]["variants"].items()] + [""]
        else:
            lines += [f"* {text}" if len(texts) > 1 else text for text in texts] + [""]
    if what["params"]:
        lines += ["## Parameters", "", *_parameters(what), ""]
        lines += [f"A column of a preset shows what it changes. Set one with `--set {name}.NAME=VALUE`.", ""]
    return "\n".join(lines)


def index() -> str:
    """The page that lists the built-in methods."""
    lines = ["# Methods", "", MADE, "", "| method | what it is | paper |", "|---|---|---|"]
    for name, (_, summary) in registry.BUILTIN["methods"].items():
        card = description(name)["card"]
        lines.append(f"| [{name}]({name}.md) | {_cell(summary)} | {_cell(card['paper'] if card else '')} |")
    return "\n".join([*lines, ""])


def write(folder: Path, name: str, text: str) -> Path:
    """Write ``text`` as the page ``name`` into ``folder``."""
    path = Path(folder) / f"{name}.md"
    write_text(path, text)
    return path


def write_all(folder: Path) -> list[Path]:
    """Write the page of every built-in method, and the one that lists them."""
    return [write(folder, name, page(name)) for name in registry.BUILTIN["methods"]] + [write(folder, "index", index())]
