"""What is released: the wheel outside the checkout, the image, and the citation."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.version import Version

import adbench

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables under which Python finds adbench as its wheel brings it, and not this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("adbench_mri-*.whl")
    place = folder / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(place)]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    return {**os.environ, "PYTHONPATH": str(place), "OMP_NUM_THREADS": "1"}


def test_the_wheel_works_outside_the_checkout(installed: dict[str, str], tmp_path: Path) -> None:
    def call(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=installed, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def command(*arguments: str) -> str:
        return call("-m", "adbench.cli", *arguments)

    assert call("-c", "import adbench; print(adbench.__file__)").startswith(installed["PYTHONPATH"])
    assert command("--version") == f"adbench {adbench.__version__}\n"
    assert "madad" in command("list", "methods")
    sizes = {"n_train": 1, "n_val": 2, "n_test": 2, "slices": 2, "resolution": 4}
    small = [part for name, value in sizes.items() for part in ("--set", f"dataset.{name}={value}")]
    assert "histeq [tiny]" in command("run", "--method", "histeq", "--dataset", "phantom", *small, "--quiet")


def test_every_file_of_the_package_is_in_the_wheel(installed: dict[str, str]) -> None:
    """Cards, templates, known results."""
    here, there = (
        {path.relative_to(root).as_posix() for path in (root / "adbench").rglob("*") if path.is_file()}
        for root in (ROOT, Path(installed["PYTHONPATH"]))
    )
    assert {name for name in here - there if "__pycache__" not in name} == set()
    assert {"adbench/results/known.json", "adbench/methods/ae.md"} <= there


def test_the_image_copies_what_there_is_and_takes_torch_from_an_index_of_its_own() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copied = [name for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE) for name in line.split()]
    kept = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(copied) == sorted(kept)
    assert all((ROOT / name).exists() for name in copied)
    assert re.search(r"^ARG TORCH_INDEX=\S+/cpu$", text, re.MULTILINE)
    assert len(re.findall(r"^torch==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)) == 1
    for name in re.findall(r"ADBENCH_\w+", text):
        assert any(name in path.read_text(encoding="utf-8") for path in (ROOT / "adbench").rglob("*.py")), name


def test_the_citation_is_of_the_version_that_was_released_last() -> None:
    about = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert headings[1] == f"{about['version']} ({about['date-released']})"
    assert (about["license"], about["cff-version"]) == ("Apache-2.0", "1.2.0")
    assert about["authors"]
    here, released = Version(adbench.__version__), Version(about["version"])
    assert here == released or (here.is_devrelease and here > released)
    unreleased = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").partition("\n## ")[2].partition("\n## ")[0]
    assert here.is_devrelease or "\n* " not in unreleased, "runs of changed sources would pass for the release"


def test_no_page_names_the_version_that_the_package_says() -> None:
    """It would be wrong after the next release."""
    pages = [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        ROOT / "Dockerfile",
        ROOT / "pyproject.toml",
        ROOT / "Makefile",
    ]
    named = [
        page.name for page in pages if re.search(rf"\b{re.escape(adbench.__version__)}\b", page.read_text("utf-8"))
    ]
    assert set(named) <= {"CHANGELOG.md"}
