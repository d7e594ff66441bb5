"""The page of architecture names files that exist, and its picture shows the rooms that there are."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")


def test_every_file_on_the_page_exists() -> None:
    named = set(re.findall(r"`(?:adbench/)?([\w/]+(?:\.py|/))`", PAGE))
    assert len(named) > 20
    assert not [name for name in named if not any((base / name).exists() for base in (ROOT / "adbench", ROOT))]


def test_the_page_fits_on_one() -> None:
    assert len(PAGE.splitlines()) <= 90


def test_the_picture_shows_every_room() -> None:
    picture = (ROOT / "docs" / "images" / "architecture.svg").read_text(encoding="utf-8")
    shown = set(re.findall(r'class="name">(\w+)', picture))
    modules = {path.stem for path in (ROOT / "adbench").glob("*.py")} - {"__init__"}
    packages = {path.parent.name for path in (ROOT / "adbench").glob("*/__init__.py")}
    assert shown == modules | packages
    assert len(modules) <= 6
