"""Fixtures shared by the whole suite."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

HERE = Path(__file__).parent

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach a hub
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # whoever imports Ray first: loopback only
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own is 15: its workers would wait for all other tests
os.environ["ADBENCH_PICTURES"] = "0"  # they take half of a small run; the tests that look at them ask for them
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs the tests in the background ignores it
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # so does nohup
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # processes that tests start compile the package once, not each
sys.dont_write_bytecode = False  # nor does every process of the tests rewrite all their assertions
os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors: a second thread costs more than it gives
os.environ.setdefault(
    "OMP_WAIT_POLICY", "passive"
)  # nor do the two that some tests ask for wait by spinning on busy cores

# Everything that is written is written through to the disk, and waiting for disks took a quarter of the suite's time: in
# memory there is nothing to wait for. TMPDIR, where it is set, stays.
MEMORY = Path("/dev/shm")
if "TMPDIR" not in os.environ and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 6e9:
    os.environ |= {"TMPDIR": str(MEMORY), "RAY_TMPDIR": os.environ.get("RAY_TMPDIR", "/tmp")}
    tempfile.tempdir = None  # it may have been looked up

# What stays on one worker: two start Rays, one after another, and one needs a process without; the others share runs that are made once.
GROUPS = {name: name for name in ("tune", "leaderboard", "report")}
GROUPS |= dict.fromkeys(("executors/test_ray.py", "executors/test_two_nodes.py", "executors/test_status.py"), "rays")
LONGEST_FIRST = (
    "rays", "tune", "executors/test_serial.py", "leaderboard", "plugins/test_add_a_method.py", "executors/test_worker.py",
    "testing/test_conformance.py", "report", "methods/test_distributed.py", "plugins/test_new.py",
    "datasets/test_layouts.py", "methods/test_training.py", "runner/test_resume.py",
    "datasets/test_phantom.py", "datasets/test_prepare.py", "test_api.py", "runner/test_faults.py", "test_cli.py",
)  # fmt: skip


def room(path: str) -> str:
    """What stays on one worker together, for the path of a test file below this folder: its file, or a group of rooms."""
    return GROUPS.get(path) or GROUPS.get(path.partition("/")[0]) or path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest begin, so that with several workers (``make test``) all end together."""
    rank = {group: number for number, group in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(room(item.path.relative_to(HERE).as_posix()), len(rank)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Fixtures of a room are made once: its tests stay on one worker.

    Marks of ``xdist_group`` do not do it: xdist 3.8 writes them into an attribute that pytest 9.2 does not read.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByRoom(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return room(nodeid.partition("::")[0].removeprefix("tests/"))

    config.option.loadscopereorder = False  # not by the number of tests
    return ByRoom(config, log)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Stores of the tests never mix with the user's. All workers have one: a phantom is prepared once."""
    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    (root / "cache").mkdir(exist_ok=True)
    os.environ["ADBENCH_CACHE"] = str(root / "cache")
    os.environ.pop("ADBENCH_DATA", None)


def write_slices(
    root: Path, *, train: int = 6, val: int = 4, test: int = 6, size: int = 32, modality: str = "FLAIR"
) -> Path:
    """A small slice folder in the MAD-AD layout: discs of tissue; half of val and all of test have a bright square."""
    rng = np.random.default_rng(7)
    rows, columns = np.mgrid[:size, :size]
    brain = (rows - size / 2) ** 2 + (columns - size / 2) ** 2 < (0.42 * size) ** 2
    for split, count in (("train", train), ("val", val), ("test", test)):
        (root / split).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            image = np.where(brain, 90 + 25 * np.sin(columns / 4 + number) + rng.normal(0, 6, brain.shape), 0)
            lesion = np.zeros(brain.shape, bool)
            if split == "test" or (split == "val" and number % 2):
                top, left = rng.integers(size // 3, size // 2, 2)
                lesion[top : top + size // 6, left : left + size // 6] = True
                image = np.where(lesion & brain, image + 70, image)
                lesion &= brain
            stem = root / split / f"{split}{number:02d}-slice_10"
            _png(stem, modality, np.clip(image, 0, 255))
            _png(stem, "brainmask", brain * 255)
            if split != "train":
                _png(stem, "segmentation", lesion * 255)
    return root


def _png(stem: Path, kind: str, pixels: np.ndarray) -> None:
    Image.fromarray(pixels.astype(np.uint8)).save(stem.with_name(f"{stem.name}-{kind}.png"))


@pytest.fixture(scope="session")
def make_slices() -> Callable[..., Path]:
    """:func:`write_slices`, for fixtures of wider scope."""
    return write_slices


@pytest.fixture
def slices(tmp_path: Path) -> Path:
    """A small slice folder."""
    return write_slices(tmp_path / "my slices")


@pytest.fixture
def pictures_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs draw their pictures, as they do for a user."""
    monkeypatch.delenv("ADBENCH_PICTURES")


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process: ``code, out, err = cli("run", "--method", ...)``."""
    monkeypatch.delenv("COLUMNS", raising=False)  # redirected output is as wide as it takes, unless a test says so

    def call(*arguments: object) -> tuple[int, str, str]:
        from adbench import cli as module

        monkeypatch.setattr("sys.argv", ["adbench", *map(str, arguments)])
        monkeypatch.delenv("ADBENCH_DEBUG", raising=False)
        capsys.readouterr()
        code = 0
        try:
            module.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
