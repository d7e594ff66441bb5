"""Who people are by the tables beside the images, and numbers by sex, age and scanner."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from adbench.config import run_config
from adbench.datasets.adapters.ixi import IXI
from adbench.datasets.io import nifti
from adbench.datasets.io.participants import groups_of
from adbench.datasets.phantom import small_layouts as layouts
from adbench.datasets.store.prepare import prepare
from adbench.errors import UserError
from adbench.params import build

Cli = Callable[..., tuple[int, str, str]]
EASY = {"size": 32, "min_brain": 0.01, "registration": "none", "n4": False}
SHEET = """IXI_ID,"SEX_ID (1=m, 2=f)",HEIGHT,AGE
0,2,164,35.8
1,1,170,19.99
2,1,170,60
2,1,170,60
3,1,170,60
3.0,2.0,170,60.5
4,2,150,
"""


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"sex": "F", "age": "31.7"}, {"sex": "female", "age": "20-39"}),
        ({"Gender": " male ", "AGE": "80"}, {"sex": "male", "age": "80 and over"}),
        ({"sex": "n/a", "age": "n/a", "scanner": "Skyra"}, {"scanner": "Skyra"}),
        ({"sex": "1", "age": "50-54"}, {"sex": "1", "age": "50-54"}),
        ({"age": "nan", "sex": ""}, {}),
        ({"age": "-3"}, {}),
        ({"age": "inf", "manufacturer": "x" * 99}, {"scanner": "x" * 40}),
    ],
)
def test_groups_of_a_person(row: dict[str, str], expected: dict[str, str]) -> None:
    assert groups_of(row) == expected


def ixi(root: Path) -> IXI:
    layouts.write_small("ixi-pddpm", root, 6)
    return IXI(build(IXI.Params, "ixi", EASY), root)


def test_the_demographics_of_ixi(tmp_path: Path) -> None:
    dataset = ixi(tmp_path)
    (tmp_path / "IXI.xls").write_bytes(b"\xd0\xcf")
    assert "IXI.xls: not read; saved as IXI.csv beside it, it gives age and sex" in dataset.exclusions("T2")
    (tmp_path / "IXI.csv").write_text(SHEET, encoding="utf-8")
    dataset = IXI(build(IXI.Params, "ixi", EASY), tmp_path)
    assert {case.subject: dict(case.groups) for case in dataset.discover("T2")} == {
        "IXI000": {"sex": "female", "age": "20-39"},
        "IXI001": {"sex": "male", "age": "0-19"},
        "IXI002": {"sex": "male", "age": "60-79"},
        "IXI003": {},  # two rows that differ in both
        "IXI004": {"sex": "female"},
        "IXI005": {},
    }
    assert not [line for line in dataset.exclusions("T2") if "IXI.xls" in line]


@pytest.mark.parametrize(
    "content",
    [
        "IXI_ID,SEX_ID (1=m, 2=f),AGE\n1,2,3\n",
        "a,b\n1,2\n",
        "IXI_ID,AGE\n1,2\n",
        'IXI_ID,AGE,"SEX_ID (1=m, 2=f)"\nx,2,1\n',
    ],
)
def test_another_table_under_that_name(tmp_path: Path, content: str) -> None:
    dataset = ixi(tmp_path)
    (tmp_path / "IXI.csv").write_text(content, encoding="utf-8")
    with pytest.raises(
        UserError, match=r"A row of .*IXI.csv has no IXI_ID, AGE and SEX_ID but .*: save the sheet IXI.xls"
    ):
        dataset.discover("T2")


def test_a_table_that_changed_makes_no_case_again(tmp_path: Path) -> None:
    layouts.write_small("bids", tmp_path / "data", 2)
    source = run_config.locate("bids", str(tmp_path / "data"), {"size": 32, "unmasked": "healthy"}, "--data-root")
    first = prepare(source.open(), "T1", tmp_path / "cache", workers=1)
    assert {case.id: first.groups_of(case.start) for case in first.cases} == {
        "sub-000": {"sex": "female", "age": "40-59"},
        "sub-001": {"sex": "male", "age": "40-59"},
    }
    table = tmp_path / "data" / "participants.tsv"
    table.write_text("participant_id\tsite\tsex\nsub-000\tA\tM\n", encoding="utf-8")
    again = prepare(source.open(), "T1", tmp_path / "cache", workers=1)
    assert again.groups_of(again.case("sub-000").start) == {"site": "A", "sex": "male"}
    assert again.groups_of(again.case("sub-001").start) == {}
    assert sorted(again.files) == sorted(first.files)


def test_false_alarms_by_stratum(cli: Cli, tmp_path: Path) -> None:
    root = tmp_path / "data"
    for number in range(14):
        stem = f"IXI{number:03d}-{('HH', 'Guys')[number % 2]}-{1000 + number}"
        nifti.write(root / f"{stem}-T2.nii.gz", layouts.head(number, "T2"), layouts.GRID)
    rows = [f"{number};{1 + number % 2};{20 + 4 * number}" for number in range(14)]
    (root / "IXI.csv").write_text("\n".join(["IXI_ID;SEX_ID (1=m, 2=f);AGE", *rows]), encoding="utf-8")
    options = [
        f"--set=dataset.{name}={value}" for name, value in {**EASY, "brain": "background", "test_share": 0.4}.items()
    ]
    code, _, err = cli(
        "run", "--quiet", "--method", "histeq", "--dataset", "ixi", "--data-root", root, "--modality", "T2", "--device", "cpu",
        "--out", tmp_path / "runs", "--cache", tmp_path / "cache", *options,
    )  # fmt: skip
    assert code == 0, err
    (path,) = (tmp_path / "runs").rglob("record.json")
    record = json.loads(path.read_text())
    assert {"site", "sex", "age"} <= record["strata"].keys()
    code, out, err = cli("eval", path.parent)
    assert code == 0, err
    shown = {line.split("│")[1].strip(): line for line in out.splitlines() if line.count("│") > 2}
    for grouping, groups in record["strata"].items():
        subjects = []
        for group, numbers in groups.items():
            line = shown[f"{grouping}: {group}"]
            assert f"{numbers['alarms@fpr5']['value']:.4f}" in line
            subjects.append(numbers["alarms@fpr5"]["n"])
        assert not groups or sum(subjects) == record["test"]["subjects"]
