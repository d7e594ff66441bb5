"""Pages that mkdocs makes from the code: the command line reference and the protocols."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer.main


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put what the code says where a page asks for it."""
    for mark, made in (("<!-- command line -->", _command_line), ("<!-- protocols -->", _protocols)):
        if mark in markdown:
            markdown = markdown.replace(mark, "\n".join(made()))
    return markdown


def _command_line() -> Iterator[str]:
    from adbench import cli
    from adbench.cli.app import app

    assert cli  # importing it added every verb
    yield from _verbs(typer.main.get_command(app), "adbench")


def _verbs(command: Any, name: str) -> Iterator[str]:
    for key, verb in command.commands.items():
        path = f"{name} {key}"
        if hasattr(verb, "commands"):
            yield from _verbs(verb, path)
            continue
        yield from (f"## {path}", "", verb.help or "", "")
        shown = [parameter for parameter in verb.params if parameter.name != "help" and not parameter.hidden]
        if shown:
            yield from ("| option | default | what it does |", "|---|---|---|", *map(_row, shown), "")
        if verb.epilog:
            lines = [line.strip() for line in verb.epilog.splitlines() if line.strip()]
            examples = [line for line in lines if not line.endswith(":")]
            yield from ("```", *(line.removeprefix("Example:").strip() for line in examples), "```", "")


def _row(parameter: Any) -> str:
    names = ", ".join(f"`{name if name.startswith('-') else name.upper()}`" for name in parameter.opts)
    default = "" if parameter.default in (None, False, [], ()) else f"`{parameter.default}`"
    meaning = " ".join((parameter.help or "").split()).replace("|", "\\|").replace("<", "&lt;")
    return f"| {names} | {default} | {meaning} |"


def _protocols() -> Iterator[str]:
    from adbench.config.protocols import PROTOCOLS

    for protocol in PROTOCOLS.values():
        yield from (f"## {protocol.name}", "", f"{protocol.summary}. Version {protocol.version}.", "")
        for field, value in protocol.as_dict().items():
            if field not in ("name", "version", "summary") and value not in (None, ""):
                yield f"* **{field}**: {', '.join(value) if isinstance(value, list) else value}"
        yield ""
