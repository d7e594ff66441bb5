"""The example package, installed on its own into a folder, is found, listed, described and run by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "adbench-localcontrast"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    target = tmp_path_factory.mktemp("site")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "--target",
            target,
            EXAMPLE,
        ],
        check=True,
    )
    return {**os.environ, "PYTHONPATH": str(target)}


def adbench(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "adbench.cli", *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_listed_with_its_origin(environment: dict[str, str]) -> None:
    (row,) = [r for r in json.loads(adbench(environment, "list", "methods", "--json")) if r["name"] == "localcontrast"]
    assert row["origin"] == "adbench-localcontrast 0.1.0"
    assert row["problem"] == ""
    assert row["summary"].startswith("Absolute difference to the local brain mean")


def test_described_with_its_parameter(environment: dict[str, str]) -> None:
    described = json.loads(adbench(environment, "describe", "localcontrast", "--json"))
    (size,) = described["params"]
    assert (size["name"], size["default"], size["unit"]) == ("size", 25, "px")


def test_run_by_name(environment: dict[str, str], slices: Path, tmp_path: Path) -> None:
    answer = json.loads(
        adbench(
            environment, "run", "--method", "localcontrast,constant", "--dataset", "folder", "--data-root", str(slices),
            "--device", "cpu", "--out", str(tmp_path / "runs"), "--set", "localcontrast.size=15", "--json",
        )
    )  # fmt: skip
    rows = {row["method"]: row for row in answer["boards"][0]["rows"]}
    assert rows["localcontrast"]["metrics"]["auprc"]["value"] > 3 * rows["constant"]["metrics"]["auprc"]["value"]
    assert rows["constant"]["metrics"]["auprc"]["value"] == pytest.approx(rows["constant"]["prevalence"])
