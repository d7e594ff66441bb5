"""Pages about the code and its tests: they name what there is, and as much of it as there is."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")


def test_every_file_on_the_page_exists() -> None:
    words = {word.rstrip("…") for code in re.findall("`([^`]+)`", PAGE) for word in code.split()}
    named = {word for word in words if re.fullmatch(r"[\w./]+(/|\.py|\.md|/run)", word)}
    named |= set(re.findall(r"\]\(([^)#]+)", PAGE))
    assert len(named) > 45
    assert named > {".ci/run", "methods/", "images/architecture.svg", "CONTRIBUTING.md", "docs/architecture.py"}
    assert not [
        name for name in named if not any((base / name).exists() for base in (ROOT / "adbench", ROOT, ROOT / "docs"))
    ]


def test_the_page_fits_on_one() -> None:
    assert len(PAGE.splitlines()) <= 90


def test_the_picture_shows_every_room() -> None:
    picture = (ROOT / "docs" / "images" / "architecture.svg").read_text(encoding="utf-8")
    shown = set(re.findall(r'class="name">(\w+)', picture))
    modules = {path.stem for path in (ROOT / "adbench").glob("*.py")} - {"__init__"}
    packages = {path.parent.name for path in (ROOT / "adbench").glob("*/__init__.py")}
    assert shown == modules | packages
    assert not [room for room in shown if f"`{room}`" not in PAGE and f"`{room}/" not in PAGE]
    assert len(modules) <= 6


def test_the_page_of_attacks_counts_the_tests_that_there_are(request: pytest.FixtureRequest) -> None:
    if request.config.args != ["tests"] or request.config.getoption("keyword"):
        pytest.skip("counts what is collected, when that is everything; else: python docs/attacks.py --check")
    script = runpy.run_path(str(ROOT / "docs" / "attacks.py"))
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert script["counted"](page, request.session.items) == page, "run `python docs/attacks.py`"
