"""Small finished runs, their leaderboards, and ways to alter them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from board_files import altered, place, rekey
from PIL import Image

from adbench import api
from adbench.leaderboard.build import build
from adbench.leaderboard.merge import merge
from adbench.leaderboard.submission import Submission, pack
from adbench.utils.hashing import digest

REPORTED = Path(__file__).parents[2] / "leaderboards" / "reported.csv"


@pytest.fixture(scope="session")
def runs(make_slices: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> list[api.Run]:
    """histeq, zscore and constant on FLAIR with two seeds, and on T1 with one."""
    root = tmp_path_factory.mktemp("leaderboard")
    slices = make_slices(root / "slices", test=9)
    make_slices(root / "slices", test=9, modality="T1")
    for number, kept in enumerate((0, 0, 4, 8)):  # two subjects without a lesion, two with a smaller one
        path = slices / "test" / f"test{number:02d}-slice_10-segmentation.png"
        lesion = np.asarray(Image.open(path)).copy()
        lesion.ravel()[np.flatnonzero(lesion)[kept:]] = 0
        Image.fromarray(lesion).save(path)
    common: dict[str, Any] = {"data_root": str(slices), "device": "cpu", "out": root / "runs"}
    made = api.run("histeq,zscore,constant", "folder", modality="FLAIR", seed=(0, 1), **common)
    return made + api.run("histeq,zscore,constant", "folder", modality="T1", **common)


@pytest.fixture(scope="session")
def submission(runs: list[api.Run]) -> Submission:
    """histeq, seed 0, FLAIR."""
    return pack(runs[0].folder)


@pytest.fixture(scope="session")
def built(runs: list[api.Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Leaderboards of all runs, with their tables and page."""
    root = tmp_path_factory.mktemp("boards") / "leaderboards"
    merge([runs[0].folder.parents[2]], root)
    shutil.copy(REPORTED, root / "reported.csv")
    build(root)
    return root


@pytest.fixture
def boards(built: Path, tmp_path: Path) -> Path:
    """Three results, FLAIR and seed 0, that a test may damage."""
    records = tmp_path / "leaderboards" / "folder" / "records"
    records.mkdir(parents=True)
    for path in (built / "folder" / "records").glob("folder-flair-*-seed0-*.json"):
        shutil.copy(path, records)
    return tmp_path / "leaderboards"


@pytest.fixture(scope="session")
def many(submission: Submission, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 results: 50 methods and 4 modalities, each a copy under another name."""
    root = tmp_path_factory.mktemp("many")
    for number in range(200):

        def change(raw: dict[str, Any], number: int = number) -> None:
            record = raw["record"]
            name, modality = f"method_{number // 4:02d}", f"M{number % 4}"
            record["method"]["name"] = record["identity"]["method"] = name
            for part in ("train", "val", "threshold", "test"):
                record[part]["modality"] = modality
            record["identity"]["modality"] = modality
            record["test"]["digest"] = record["identity"]["test_slices"] = digest(modality)
            rekey(raw)

        place(root, altered(submission, change))
    return root


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium that logs every request."""
    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")
    if driver is None or chromium is None:
        pytest.skip("needs chromium and chromedriver (apt-get install chromium chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument("--window-size=1300,1000")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    yield opened
    opened.quit()
