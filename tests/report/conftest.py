"""Finished runs to report on, and volumes whose headers are awkward."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adbench import api


@pytest.fixture(scope="session")
def runs(make_slices: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> list[api.Run]:
    """histeq and constant with saved maps, ae (which reconstructs) with its fit only; one test set."""
    root = tmp_path_factory.mktemp("report")
    slices = str(make_slices(root / "slices", test=9))
    common: dict[str, Any] = {"data_root": slices, "device": "cpu", "out": root / "runs"}
    made = api.run("histeq,constant", "folder", save_maps=True, **common)
    return made + api.run("ae", "folder", set={"ae": {"steps": 6}}, **common)


@pytest.fixture
def own_runs(runs: list[api.Run], tmp_path: Path) -> list[api.Run]:
    """Copies that a test may damage."""
    out = runs[0].folder.parents[2]
    shutil.copytree(out, tmp_path / "runs")
    return [api.Run(tmp_path / "runs" / run.folder.relative_to(out)) for run in runs]


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
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1300,1000",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    yield opened
    opened.quit()


@pytest.fixture(scope="session")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six subjects as NIfTI: stored LPS, LAS and oblique, the axes permuted in some; train, val and test folders."""
    import nibabel

    root = tmp_path_factory.mktemp("volumes")
    rng = np.random.default_rng(3)
    shape = (40, 44, 8)
    x, y, _ = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    brain = ((x - 19.5) / 16) ** 2 + ((y - 21.5) / 18) ** 2 < 1
    for number, split in enumerate(["train", "train", "val", "val", "test", "test"]):
        image = np.where(brain, 100 + 20 * np.sin(x / 5 + number) + rng.normal(0, 4, shape), 0)
        lesion = np.zeros(shape, bool)
        if split != "train":
            lesion[10 + number : 16 + number, 20:27, 2:6] = True
            image = np.where(lesion, 190, image)
        affine = _affine(number)
        order = [(0, 1, 2), (1, 0, 2), (0, 2, 1)][number % 3]
        permutation = np.zeros((4, 4))
        permutation[order, range(3)] = permutation[3, 3] = 1
        for kind, array in (("FLAIR", image), ("seg", lesion), ("brainmask", brain)):
            path = root / split / f"s{number}_{kind}.nii.gz"
            path.parent.mkdir(exist_ok=True)
            stored = np.ascontiguousarray(array.transpose(order)).astype(np.float32 if kind == "FLAIR" else np.uint8)
            nibabel.save(nibabel.Nifti1Image(stored, affine @ permutation), path)
    return root


def _affine(number: int) -> np.ndarray:
    """1 x 1 x 3 mm; flipped along x, along x and y, or turned by some degrees about two axes."""
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    affine[:3, 3] = -20, -15, 7
    if number % 3 == 0:
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    if number % 3 == 1:
        return np.diag([-1.0, 1.0, 1.0, 1.0]) @ affine
    a, b = np.deg2rad([14, -9])
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    turned = affine.copy()
    turned[:3, :3] = about_z @ about_x @ affine[:3, :3]
    return turned
