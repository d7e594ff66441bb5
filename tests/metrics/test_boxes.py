"""Boxes: the rule on cases counted by hand, and CSV files of boxes through `adbench eval`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adbench.errors import UserError
from adbench.evaluation.map_files import Box, CaseFolder, read_boxes
from adbench.metrics.base import Subject
from adbench.metrics.boxes import BoxAP, BoxF1, average_precision, boxes, hits
from adbench.metrics.histogram import ScoreHistogram
from adbench.metrics.lesion import Volume

SHAPE = (2, 12, 12)


def subject(maps: np.ndarray, lesion: np.ndarray, val: float = 0.5) -> Subject:
    brain = np.ones(SHAPE, bool)
    return Subject("s", ScoreHistogram(), {"val": val}, Volume(maps, lesion, brain, np.arange(2)))


def drawn(*regions: tuple[int, slice, slice, float]) -> np.ndarray:
    maps = np.zeros(SHAPE, np.float32)
    for place, rows, columns, value in regions:
        maps[place, rows, columns] = value
    return maps


LESION = drawn((0, slice(1, 5), slice(1, 5), 1), (1, slice(6, 10), slice(6, 10), 1)) > 0


def test_boxes_are_those_of_regions_of_single_slices() -> None:
    mask = LESION | (drawn((0, slice(5, 7), slice(5, 6), 1)) > 0)  # touches at a corner: one finding
    assert boxes(mask).tolist() == [[0, 1, 1, 7, 6], [1, 6, 6, 10, 10]]
    assert boxes(np.zeros(SHAPE, bool)).shape == (0, 5)


@pytest.mark.parametrize(("rows", "hit"), [(slice(4, 7), False), (slice(3, 7), True)])
def test_a_hit_has_an_iou_of_a_tenth(rows: slice, hit: bool) -> None:
    # 4 x 4 against 3 x 4 in rows 4 to 7: 4 / (16 + 12 - 4) = .17, but in columns 3 to 7 2 / (16 + 12 - 2) = .08
    found = drawn((0, rows, slice(3, 7), 1)) > 0
    assert hits(boxes(LESION), boxes(found)) == int(hit)
    assert hits(boxes(LESION), boxes(np.roll(found, 1, axis=0))) == 0  # on the other slice


def test_one_detection_is_one_hit_and_false_ones_count() -> None:
    two = drawn((0, slice(0, 4), slice(0, 4), 1), (0, slice(0, 4), slice(5, 9), 1)) > 0
    assert hits(boxes(two), boxes(drawn((0, slice(0, 4), slice(0, 9), 1)) > 0)) == 1
    maps = drawn(
        (0, slice(1, 5), slice(1, 5), 0.9), (0, slice(8, 9), slice(8, 9), 0.6), (1, slice(0, 1), slice(0, 1), 0.4)
    )
    assert BoxF1().measure(subject(maps, LESION)) == (2.0, 4.0)  # one hit of two findings and two detections
    assert BoxF1().measure(subject(maps, np.zeros(SHAPE, bool))) == (0.0, 2.0)  # false ones of healthy subjects too
    assert BoxF1().measure(subject(maps * 0, np.zeros(SHAPE, bool))) == (0.0, 0.0)


def test_average_precision_is_interpolated() -> None:
    # recall .5 at precision 1 and .25, 1 at precision .5: .5 x 1 + .5 x .5
    assert average_precision([(0.5, 0.25), (1.0, 0.5), (0.5, 1.0), (0.0, 0.0)]) == pytest.approx(0.75)
    assert average_precision([(0.0, 0.0)]) == 0


def test_a_perfect_map_has_ap_1_and_none_depends_on_scale() -> None:
    assert BoxAP().measure(subject(LESION.astype(np.float32), LESION)) == (1.0, 1.0)
    # One region, the whole slice, is all that a flat map detects: its IoU is 16/144, just a hit on each.
    assert BoxAP().measure(subject(np.zeros(SHAPE, np.float32), LESION)) == (1.0, 1.0)
    small = LESION & (np.indices(SHAPE)[1] < 3)
    assert BoxAP().measure(subject(np.zeros(SHAPE, np.float32), small)) == (0.0, 1.0)
    maps = np.random.default_rng(0).random(SHAPE).astype(np.float32) + 0.4 * LESION
    values = {BoxAP().measure(subject(m, LESION))[0] for m in (maps, np.exp(maps), maps * 1000 - 5)}
    assert len(values) == 1
    assert 0 < values.pop() < 1
    assert BoxAP().measure(subject(maps, np.zeros(SHAPE, bool))) is None


def test_boxes_of_a_table_fill_slices_and_are_scored(tmp_path: Path, cli: Callable[..., tuple[int, str, str]]) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "maps").mkdir()
    (tmp_path / "brain").mkdir()
    for case in ("a", "b", "c"):
        for index in (3, 4):
            pixels = rng.integers(0, 100, (10, 14), np.uint8)
            if (case, index) == ("a", 4):
                pixels[2:5, 6:11] = 200
            Image.fromarray(pixels).save(tmp_path / f"maps/{case}_slice_{index}.png")
            Image.fromarray(np.full((10, 14), 255, np.uint8)).save(tmp_path / f"brain/{case}_slice_{index}.png")
    table = tmp_path / "boxes.csv"
    table.write_text(
        "file,slice,study_level,x,y,width,height,label\n"
        "a.png,4,No,6.4,2,4.5,3,Edema\n"
        "b,,Yes,,,,,Normal variant\n"
        "b,3,No,0,0,14,10,Mass\n"
    )
    cases = {case.volume: case for case in CaseFolder(tmp_path / "maps", table, tmp_path / "brain")}
    expected = np.zeros((2, 10, 14), bool)
    expected[1, 2:5, 6:11] = True
    np.testing.assert_array_equal(cases["a"].lesion, expected)
    assert (cases["b"].lesion.sum(), cases["c"].lesion.any()) == (140, False)
    given = ("--maps", tmp_path / "maps", "--brain", tmp_path / "brain", "--masks", table, "--out", tmp_path / "out")
    code, out, err = cli("eval", *given, "--json")
    assert code == 0, err
    found = json.loads(out)["evaluation"]
    assert found["metrics"]["box_ap"]["n"] == 2
    assert 0.5 <= found["metrics"]["box_ap"]["value"] <= 1
    assert found["metrics"]["box_f1@val"]["reason"]
    assert any("Boxes were given, no masks" in note for note in found["notes"])
    assert "leave --labels away" in cli("eval", *given, "--labels", "2")[2]


@pytest.mark.parametrize(
    "text",
    [
        "File;Slice;X;Y;Width;Height\na.png;0;1,5;2;3;4\n",
        " CASE \tx\ty\twidth\theight\na\t1.5\t2\t3\t4\n",
        'case,file,x,y,width,height,note\na,a.PNG,1.5,2,3,4,"left, new"\n',
        "file,case,x,y,width,height\n,a,1.5,2,3,4\na\n",
    ],
)
def test_tables_as_spreadsheets_write_them(tmp_path: Path, text: str) -> None:
    (tmp_path / "boxes.csv").write_text(text)
    assert read_boxes(tmp_path / "boxes.csv") == {"a": [Box(2, 0, 1.5, 2.0, 3.0, 4.0)]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,x,y,width\na,1,1,1\n", "lacks the column height"),
        ("file,slice,x,y,width,height\na,0,1,1,0,2\n", "row 2: slice 0, x 1, y 1, width 0, height 2 is no box"),
        ("file,slice,x,y,width,height\na,0,1,1,,2\n", "row 2: .* width nothing"),
        ("file,slice,x,y,width,height\na,0,nan,1,1,2\n", "row 2: .* is no box"),
        ("file,slice,x,y,width,height\na,0,1e308,1,1.7e308,2\n", "row 2: .* is no box"),
        ("file,slice,x,y,width,height\n" + "\n" * 600_000, "has 600006 values, where at most 500000 are read"),
        ("file,slice,x,y,width,height\na,0,10,1,5,2\n", "row 2: slice 0, x 10 to 15, y 1 to 3 lies outside its map"),
        (
            "file,slice,x,y,width,height\na,1,1,1,5,2\n",
            "row 2: slice 1, .* lies outside its map of 1 slices of 14 x 10",
        ),
        ("file,slice,x,y,width,height\nzz,0,1,1,5,2\n", "1 cases of .* have no map: zz"),
        ("file,slice,x,y,width,height\n", "holds no box"),
        ("", "lacks the column file, x, y, width, height"),
        ("file,x,X,y,width,height\na,1,1,1,1,1\n", "has the column x twice"),
        ("file,case,x,y,width,height\na,b,1,1,1,1\n", "row 2: the box is of file 'a' and case 'b'"),
        ("file,case,x,y,width,height\n,,1,1,1,1\n", "row 2: the box is of no file"),
        ("file,x,y,width,height\na,1;5,1,1,1\n", "row 2: slice nothing, x 1;5,"),
    ],
)
def test_a_wrong_table_is_named_by_row(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "maps").mkdir()
    Image.fromarray(np.zeros((10, 14), np.uint8)).save(tmp_path / "maps/a.png")
    (tmp_path / "boxes.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        list(CaseFolder(tmp_path / "maps", tmp_path / "boxes.csv"))
