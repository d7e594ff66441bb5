"""Every command that README and the pages print is one that the command line takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from adbench import cli
from adbench.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(page: Path) -> list[str]:
    """The lines of code that begin with ``adbench`` (or ``$ adbench``), those that go on in the next line as one."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"^```(?:bash)?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    blocks += re.findall(r"(?:^ {4}.*\n)+", text, re.MULTILINE)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("adbench ")]


USAGE = typer.BadParameter.__bases__[0]  # typer brings click along under a name of its own
COMMAND: Any = typer.main.get_command(app)


def parse(words: list[str]) -> None:
    command = COMMAND
    context = command.context_class(command, info_name="adbench")
    while hasattr(command, "commands"):
        if words[:1] == ["--version"]:
            return
        _, command, words = command.resolve_command(context, words)
        assert command is not None
        context = command.context_class(command, parent=context, info_name=command.name)
    command.make_context(command.name, words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_command_line_takes_what_is_printed(page: Path) -> None:
    assert cli
    for line in commands(page):
        words = shlex.split(line, comments=True)[1:]
        words = words[: next((at for at, word in enumerate(words) if word in ("|", "||", "&&", ">")), len(words))]
        if words == ["..."] or words[-1:] == ["--help"]:
            continue
        try:
            parse(words)
        except USAGE as error:
            pytest.fail(f"{page.name}: {line}: {error}")


def test_commands_are_found() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 100
    with pytest.raises(USAGE, match="No such option"):
        parse(["run", "--tensorbord"])
