"""The page "Add your method in 30 minutes", followed literally: every block, in order, as it stands."""

from __future__ import annotations

import re
from pathlib import Path

from commands import shell

PAGE = Path(__file__).parents[2] / "docs" / "add-a-method.md"
BLOCK = re.compile(
    r"^```(?P<language>bash|python)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE
)


def test_every_block_of_the_page_works(environment: dict[str, str], tmp_path: Path) -> None:
    blocks = [match.groupdict() for match in BLOCK.finditer(PAGE.read_text(encoding="utf-8"))]
    assert [block["language"] for block in blocks].count("bash") >= 5
    environment |= {"CUDA_VISIBLE_DEVICES": ""}
    said = []
    for block in blocks:
        if block["language"] == "python":
            path = tmp_path / block["title"]
            assert path.is_file(), f"the page replaces {path.name}, which `adbench new` did not write"
            path.write_text(block["body"], encoding="utf-8")
            continue
        said.append(shell(block["body"], tmp_path, environment, environment["PACKAGES"]))
    assert "adbench-inpaint 0.1.0" in said[1]
    assert not any("broken" in text for text in said)
    assert "inpaint [tiny]" in said[-3]
    assert "px of the grid" in said[-1]
    assert (tmp_path / "report" / "index.html").stat().st_size > 100_000
    # The linear model and the network: two fits of one name, told apart by their source.
    assert len(list((tmp_path / "runs" / "fits").glob("inpaint-*"))) == 2
