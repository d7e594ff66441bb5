"""The generated files of leaderboards: tables of each protocol, and one page of all. The same records give the same bytes."""

from __future__ import annotations

from pathlib import Path

from adbench.errors import UserError
from adbench.leaderboard import export
from adbench.leaderboard.board import Board
from adbench.leaderboard.page import REPORTED, page, read_reported
from adbench.leaderboard.ranking import boards, read_all
from adbench.utils.files import write_text

PAGE = "index.html"


def make(root: Path) -> dict[str, str]:
    """The generated files of the leaderboards below ``root``: path relative to it -> text.

    Raises:
        UserError: no result, a damaged one, or one that ``verify`` would refuse at first sight.
    """
    root = Path(root)
    found = boards(read_all(root))
    made = {PAGE: page(found, read_reported(root / REPORTED))}
    groups: dict[str, list[Board]] = {}
    for board in found:
        groups.setdefault(board.entries[0].paths[0].partition("/")[0], []).append(board)
    for folder, own in groups.items():
        protocol = own[0].test_set.protocol
        made[f"{folder}/index.md"] = export.markdown(protocol, own)
        made[f"{folder}/table.csv"] = export.table_csv(own)
        made[f"{folder}/table.json"] = export.table_json(protocol, own)
        made[f"{folder}/table.tex"] = export.latex(own)
    return made


def build(root: Path) -> list[Path]:
    """Write the generated files below ``root``; see :func:`make`."""
    made = make(root)
    for name, text in made.items():
        write_text(Path(root) / name, text)
    return [Path(root) / name for name in made]


def stale(root: Path) -> list[Path]:
    """Generated files below ``root`` that are missing, or are not what the records give now."""
    wrong = []
    for name, text in make(root).items():
        path = Path(root) / name
        try:
            same = path.read_bytes() == text.encode()
        except FileNotFoundError:
            same = False
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}).") from None
        if not same:
            wrong.append(path)
    return wrong
