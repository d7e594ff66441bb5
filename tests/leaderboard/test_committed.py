"""What is committed: the grid of the phantom's board, and its records, as they are and after a change."""

from __future__ import annotations

from pathlib import Path

import pytest
from board_files import altered
from test_verify import TAMPERED

from adbench.config import grid, registry
from adbench.leaderboard import submission as files
from adbench.leaderboard.build import stale
from adbench.leaderboard.checks.all import check
from adbench.leaderboard.submission import Submission
from adbench.leaderboard.verify import check_one

ROOT = Path(__file__).parents[2] / "leaderboards"
RECORDS = sorted(ROOT.glob("*/records/*.json"))
some = pytest.mark.skipif(not RECORDS, reason="no record is committed")
TEN = (
    "value",
    "interval",
    "stratum",
    "threshold",
    "a subject's number",
    "counts",
    "a test subject in training",
    "lesions found",
    "run_key",
    "protocol version",
)


def test_the_grid_of_the_phantom_is_every_method_on_every_modality() -> None:
    cells = list(grid.cells(grid.load(ROOT / "phantom" / "grid.yaml", {}, [])))
    single = set(registry.BUILTIN["methods"]) - {"ensemble"}  # which is made of the others
    alike = {"constant", "histeq", "zscore", "asymmetry", "latent"}  # with every seed
    assert len(cells) == 9 * len(single - alike) + 3 * len(alike)
    assert {cell.method for cell in cells} == single
    assert {cell.modality for cell in cells} == {"FLAIR", "T1", "T2"}
    assert {(cell.preset, cell.protocol.name) for cell in cells} == {("tiny", "phantom")}


@some
def test_tables_and_page_are_what_the_records_give() -> None:
    assert stale(ROOT) == []


@some
def test_files_are_small() -> None:
    assert max(path.stat().st_size for path in RECORDS) < 400_000


@some
@pytest.mark.parametrize("path", RECORDS[:: max(1, len(RECORDS) // 4)], ids=lambda path: path.stem)
def test_records_verify(path: Path) -> None:
    """Some; `adbench leaderboard verify`, which continuous integration runs too, looks at all."""
    assert check_one(path).issues == []


@pytest.fixture(scope="module")
def committed() -> Submission:
    return files.read_submission(
        min((p for p in RECORDS if "constant" not in p.name), key=lambda path: path.stat().st_size)
    )


@some
@pytest.mark.parametrize("what", TEN)
def test_a_tampered_copy_is_rejected(committed: Submission, what: str) -> None:
    change, field = TAMPERED[what]
    assert field in {finding.field for finding in check(files.parse(altered(committed, change).encode(), Path("copy")))}
