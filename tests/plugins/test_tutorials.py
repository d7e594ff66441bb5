"""The tutorials, followed literally: every block, in order, as it stands."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "tutorials.md"


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_every_block_of_the_tutorials_works(environment: dict[str, str], tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    for block in re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        done = subprocess.run(
            ["bash", "-ec", block], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    assert len(list((tmp_path / "found").glob("sub-*"))) == 2
    assert (tmp_path / "report" / "index.html").is_file()
