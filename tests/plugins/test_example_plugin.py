"""The example package, installed on its own into a folder, is found, listed, described and run by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import run

EXAMPLE = Path(__file__).parents[2] / "examples" / "adbench-localcontrast"


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pip has installed the example."""
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([*pip, target, EXAMPLE], check=True)
    return target


def adbench(packages: Path, *arguments: str) -> str:
    done = run(["adbench", *arguments], packages, packages=str(packages))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_listed_with_its_origin(packages: Path) -> None:
    (row,) = [r for r in json.loads(adbench(packages, "list", "methods", "--json")) if r["name"] == "localcontrast"]
    assert row["origin"] == "adbench-localcontrast 0.1.0"
    assert row["problem"] == ""
    assert row["summary"].startswith("Absolute difference to the local brain mean")


def test_described_with_its_parameter(packages: Path) -> None:
    described = json.loads(adbench(packages, "describe", "localcontrast", "--json"))
    (size,) = described["params"]
    assert (size["name"], size["default"], size["unit"]) == ("size", 25, "px")


def test_run_by_name(packages: Path, slices: Path, tmp_path: Path) -> None:
    answer = json.loads(
        adbench(
            packages, "run", "--method", "localcontrast,constant", "--dataset", "folder", "--data-root", str(slices),
            "--device", "cpu", "--out", str(tmp_path / "runs"), "--set", "localcontrast.size=15", "--json",
        )
    )  # fmt: skip
    rows = {row["method"]: row for row in answer["boards"][0]["rows"]}
    assert rows["localcontrast"]["metrics"]["auprc"]["value"] > 3 * rows["constant"]["metrics"]["auprc"]["value"]
    assert rows["constant"]["metrics"]["auprc"]["value"] == pytest.approx(rows["constant"]["prevalence"])
