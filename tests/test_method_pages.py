"""What runs give the pages of methods and ``docs/choosing.md``: pictures that are there, numbers that boards have."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from adbench import api
from adbench.cli.describe import KEPT, page
from adbench.config import registry
from adbench.leaderboard.build import build
from adbench.leaderboard.merge import merge

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BOARDS = ROOT / "leaderboards"
SCORE = re.compile(r"\| AUPRC \[95 %\] \| (\S+ \[\S+, \S+\]) \(\[board\]\(\.\./\.\./leaderboards/([^/]+)/index\.md\)\)")


def tails() -> dict[str, str]:
    """Method -> what runs gave its page."""
    texts = {
        name: (DOCS / "methods" / f"{name}.md").read_text(encoding="utf-8") for name in registry.BUILTIN["methods"]
    }
    return {name: text.partition(KEPT)[2] for name, text in texts.items() if KEPT in text}


def test_every_page_shows_its_method() -> None:
    shown = tails()
    assert set(registry.BUILTIN["methods"]) == set(shown)
    for name, text in shown.items():
        assert re.findall(r"!\[.+\]\((.+)\)", text) == [f"../images/methods/{name}.png"]
    pictures = {path.stem: path for path in (DOCS / "images" / "methods").iterdir()}
    assert pictures.keys() == shown.keys()
    for path in pictures.values():
        assert path.stat().st_size < 75_000
        with Image.open(path) as picture:
            assert picture.width <= 900
            assert not picture.info.keys() & {"Software", "Creation Time", "date:create"}


def test_numbers_of_a_page_are_those_of_its_board() -> None:
    for name, text in tails().items():
        found = SCORE.search(text)
        if found is None:  # which says so
            assert "which is not on the [board]" in text
            continue
        boards = json.loads((BOARDS / found[2] / "table.json").read_text(encoding="utf-8"))["boards"]
        rows = [row for board in boards for row in board["entries"] if row["method"] == name]
        seeds = [seed for row in rows for seed in row["seeds"] if seed["seed"] == 0]
        numbers = [json.loads((BOARDS / seed["record"]).read_text(encoding="utf-8")) for seed in seeds]
        quoted = [
            f"{number['value']:.3f} [{number['low']:.3f}, {number['high']:.3f}]"
            for number in (one["record"]["metrics"]["auprc"] for one in numbers)
        ]
        assert found[1] in quoted, f"{name}: run python docs/choosing.py RUNS"
        value = float(found[1].split()[0])
        assert any(abs(seed["metrics"]["auprc"] - value) < 6e-4 for seed in seeds)


def test_choosing_lists_the_methods_of_its_table_of_cost() -> None:
    text = (DOCS / "choosing.md").read_text(encoding="utf-8")
    _, seen, cost = (
        text.partition(f"<!-- {name} -->\n")[2].partition("<!-- end of")[0] for name in ("x", "seen", "cost")
    )
    here, there = re.search(r"are (\d+ methods?: .*?)\.(?: On the (.*))?\n", seen).groups()  # type: ignore[union-attr]
    names = re.findall("`(.+?)`", here)
    assert names == re.findall(r"^\| `(.+?)`", cost, re.MULTILINE)
    assert here.startswith(f"{len(names)} method")
    assert f"the maps of {len(names)} method" in seen
    absent = set(re.findall("`(.+?)`", there or ""))
    assert not absent & {name.partition("[")[0] for name in names}


@pytest.fixture(scope="module")
def script() -> Any:
    sys.path.insert(0, str(DOCS))
    try:
        return SimpleNamespace(**runpy.run_path(str(DOCS / "method_pages.py")))
    finally:
        sys.path.remove(str(DOCS))


@pytest.fixture(scope="module")
def runs(make_slices: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> list[api.Run]:
    """histeq and, with a network of few steps, ae."""
    root = tmp_path_factory.mktemp("pages")
    slices = make_slices(root / "slices", test=5)
    small = {"ae": {"image_size": 32, "channels": [8, 16], "latent": 8, "steps": 6, "batch": 4}}
    return api.run("histeq,ae", "folder", set=small, data_root=str(slices), device="cpu", out=root / "runs")


@pytest.fixture(scope="module")
def boards(runs: list[api.Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A board with histeq alone."""
    root = tmp_path_factory.mktemp("boards") / "leaderboards"
    merge([runs[0].folder], root)
    shutil.copy(BOARDS / "reported.csv", root)
    build(root)
    return root


def test_a_run_gives_the_page_of_its_method_a_picture_and_numbers(
    script: Any, runs: list[api.Run], boards: Path, tmp_path: Path
) -> None:
    board = script.Board.of(runs[0].record, boards)
    seen = script.look(runs)
    (tmp_path / "methods").mkdir()
    made: list[dict[str, bytes]] = []
    for _ in range(2):  # the second time over what the first wrote
        for one in seen:
            path = tmp_path / "methods" / f"{one.name}.md"
            if not made:
                path.write_text(page(one.name))
            script.write(one, board, tmp_path)
        made.append({path.name: path.read_bytes() for path in tmp_path.rglob("*.*")})
    assert made[0] == made[1]
    assert made[0].keys() == {"histeq.md", "histeq.png", "ae.md", "ae.png"}
    texts = {run.label: made[0][f"{run.record.method.name}.md"].decode() for run in runs}
    for (_, text), run in zip(texts.items(), runs, strict=True):
        assert text.startswith(page(run.record.method.name) + KEPT)
        assert f"| AUPRC [95 %] | {run.record.metrics['auprc'].value:.3f} (" in text  # too few subjects for an interval
    histeq, ae = texts.values()
    assert "([board](../../leaderboards/folder/index.md)) |" in histeq
    assert "(of this run, which is not on the [board](../../leaderboards/folder/index.md)) |" in ae
    assert "| steps | 6 |" in ae
    assert "reconstructions" in ae
    assert "losses" in ae
    assert "reconstructions" not in histeq + page("ae")
    assert "losses" not in histeq.partition(KEPT)[2]
    sizes = {name: Image.open(tmp_path / "images" / "methods" / f"{name}.png").size for name in ("histeq", "ae")}
    assert sizes["ae"][0] > sizes["histeq"][0]  # its curves
    assert sizes["ae"][1] > sizes["histeq"][1]  # its reconstructions


def test_a_number_that_is_not_the_boards_is_said_beside_it(
    script: Any, runs: list[api.Run], boards: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(boards, tmp_path / "leaderboards")
    (path,) = (root / "folder" / "records").iterdir()
    changed = json.loads(path.read_text())
    changed["record"]["metrics"]["auprc"] |= {"value": 0.25, "low": 0.125, "high": 0.5}
    path.write_text(json.dumps(changed))
    (seen,) = script.look(runs[:1])
    own = f"{runs[0].record.metrics['auprc'].value:.3f}"
    text = script.tail(seen, script.Board.of(runs[0].record, root))
    link = "[board](../../leaderboards/folder/index.md)"
    assert f"| 0.250 [0.125, 0.500] ({link}); {own} (" in text
    assert "(the run whose maps these are) |" in text


def test_maps_that_are_not_those_that_were_measured_are_refused(
    script: Any, runs: list[api.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(runs[0].folder.parents[2], tmp_path / "runs") / runs[0].folder.relative_to(
        runs[0].folder.parents[2]
    )
    monkeypatch.setattr(registry.load("methods", "histeq"), "score", lambda self, batch: -batch.image)
    with pytest.raises(SystemExit, match=r"maps of .*histeq.* cannot be made again: of \S+ \d+\.\d% of the voxels"):
        script.look([api.Run(folder, device="cpu")])


def test_runs_of_other_slices_and_of_no_board_are_refused(
    script: Any, runs: list[api.Run], boards: Path, make_slices: Callable[..., Path], tmp_path: Path
) -> None:
    slices = make_slices(tmp_path / "slices", test=4)
    (other,) = api.run("constant", "folder", data_root=str(slices), device="cpu", out=tmp_path / "runs")
    with pytest.raises(SystemExit, match="other test slices than"):
        script.look([runs[0], other])
    with pytest.raises(SystemExit, match=r"No board in .* has the test slices of constant"):
        script.Board.of(other.record, boards)
