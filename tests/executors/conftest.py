"""One Ray for all tests of executors, with methods that misbehave."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import misfits
import pytest

from adbench.config import registry
from adbench.config.run_config import RunConfig, load
from adbench.executors.launch import Launch


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The methods of ``misfits``, here and in processes with the environment that this gives."""
    folder = tmp_path_factory.mktemp("site")
    misfits.install(folder)
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    added = {"PYTHONPATH": path, "MISFITS_REPAIRED": str(folder / "repaired"), "OMP_NUM_THREADS": "1"}
    before = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    sys.path.insert(0, str(folder))
    registry.entries.cache_clear()
    yield dict(os.environ)
    sys.path.remove(str(folder))
    registry.entries.cache_clear()
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@pytest.fixture
def repaired(plugin: dict[str, str]) -> Iterator[Path]:
    """The file whose existence repairs the methods; not there at first."""
    path = Path(plugin["MISFITS_REPAIRED"])
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def cluster(plugin: dict[str, str]) -> Iterator[Any]:
    """Ray on this machine: two cores, and one GPU that Ray only believes in."""
    from adbench.utils.cluster import connect

    with connect("local", cpus=2, gpus=1) as cluster:
        yield cluster


@pytest.fixture
def grid(slices: Path, tmp_path: Path) -> Callable[..., Launch]:
    """A grid on the small slice folder: ``grid("histeq,slow", "slow.steps=3", seed=(0, 1), out="a")``."""

    def make(methods: str, *assignments: str, out: str = "runs", **more: Any) -> Launch:
        flags = {"method": methods, "dataset": "folder", "data_root": str(slices), "device": "cpu"}
        flags |= {"out": str(tmp_path / out), "cache": str(tmp_path / "cache")}
        settings: RunConfig = load(None, {**flags, **more}, list(assignments))
        return Launch(settings)

    return make
