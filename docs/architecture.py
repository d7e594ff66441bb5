"""Draw ``docs/images/architecture.svg`` from the imports of the code: ``python docs/architecture.py``.

A box is a package (or a module directly under ``adbench/``); they stand in the order of the import contract in
``pyproject.toml``. A dot below one box and left of another says that the upper imports the lower, larger for more imports.
With ``--check`` nothing is written: the exit code is 1 if the rooms or dots on disk are not those of the code (sizes may
differ: they change with every commit).
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from collections import Counter
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "architecture.svg"
BOX, HEIGHT, STEP = 150, 46, 48  # px: width of a box, height of a row, from one box to the next


def layers() -> list[list[str]]:
    """Names below ``adbench.`` by layer, the highest first, from the contract."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    listed = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [[name.strip().removeprefix("adbench.") for name in layer.replace("|", ":").split(":")] for layer in listed]


def imports() -> Counter[tuple[str, str]]:
    """How many modules of one room import how many of another: (importer, imported) -> number of imports."""
    from grimp import build_graph

    graph = build_graph("adbench", cache_dir=None)
    found: Counter[tuple[str, str]] = Counter()
    for module in graph.modules:
        for other in graph.find_modules_directly_imported_by(module):
            pair = _room(module), _room(other)
            if pair[0] != pair[1] and "" not in pair:
                found[pair] += 1
    return found


def _room(module: str) -> str:
    return module.partition(".")[2].partition(".")[0]


def size(room: str) -> tuple[int, int]:
    """Files and lines of a room."""
    base = ROOT / "adbench" / room
    files = sorted(base.rglob("*.py")) if base.is_dir() else [base.with_suffix(".py")]
    return len(files), sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def draw() -> str:
    """The picture as SVG; it follows the reader's light or dark theme."""
    rooms = [name for row in layers() for name in row]
    counts = imports()
    lines, boxes = [], []
    for row, name in enumerate(rooms):
        files, length = size(name)
        x, y = 10 + row * STEP, 10 + row * HEIGHT
        what = f"{length:,} lines" + (f" in {files} files" if files > 1 else "")
        boxes.append(f'<rect x="{x}" y="{y}" width="{BOX}" height="{HEIGHT - 6}" rx="6"/>')
        boxes.append(f'<text x="{x + 10}" y="{y + 16}" class="name">{escape(name)}</text>')
        boxes.append(f'<text x="{x + 10}" y="{y + 31}">{what}</text>')
        level = y + HEIGHT // 2 - 3
        for column, importer in enumerate(rooms[:row]):
            if count := counts[importer, name]:
                at = 10 + column * STEP + STEP // 2
                lines.append(f'<path d="M{at},{10 + column * HEIGHT + HEIGHT - 6} V{level} H{x}"/>')
                said = f"<title>{count} imports of {escape(name)} by {escape(importer)}</title>"
                radius = min(3 + count**0.5, 9)
                boxes.append(f'<circle id="{importer}-{name}" cx="{at}" cy="{level}" r="{radius:.1f}">{said}</circle>')
    style = (
        "text{font:11px sans-serif;fill:#555}.name{font-weight:bold;font-size:13px;fill:#111}rect{fill:#fff;stroke:#667}"
        "path{fill:none;stroke:#9ab;stroke-width:.8}circle{fill:#47a}"
        "@media(prefers-color-scheme:dark){text{fill:#bbb}.name{fill:#eee}rect{fill:#222;stroke:#889}circle{fill:#7bd}}"
    )
    width, height = 20 + (len(rooms) - 1) * STEP + BOX, 14 + len(rooms) * HEIGHT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="Packages of adbench, '
        f'and which imports which"><style>{style}</style>\n' + "\n".join(lines + boxes) + "\n</svg>\n"
    )


def _shown(svg: str) -> list[str]:
    return re.findall(r'<circle id="[^"]*"|class="name">[^<]*', svg)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say whether the picture is that of the code")
    arguments = parser.parse_args()
    svg = draw()
    if not arguments.check:
        PICTURE.write_text(svg, encoding="utf-8")
    elif not PICTURE.exists() or _shown(PICTURE.read_text(encoding="utf-8")) != _shown(svg):
        sys.exit(f"{PICTURE.relative_to(ROOT)} is not that of the code: run python docs/architecture.py")
