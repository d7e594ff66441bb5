"""A small search, one Ray for all of them, and a trial in this process."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fragile
import pytest
from small_search import Begun, Settings, Trial, Tune, make_settings

from adbench.config import registry
from adbench.config.run_config import RunConfig
from adbench.context import Progress
from adbench.tune.search import RAY_TUNE, SearchResult, define, search
from adbench.tune.task import SearchOptions, Task
from adbench.tune.worker import run_trial


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """``settings("ae", "method.lr=1e-3")``, with an output folder of the test's own."""
    return lambda *arguments: make_settings(tmp_path / "runs", *arguments)


@pytest.fixture(scope="session")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Ray on this machine with two cores, and the plug-in method ``fragile``."""
    from adbench.utils.cluster import connect

    folder = tmp_path_factory.mktemp("site")
    fragile.install(folder)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder), before)))
    for name, value in RAY_TUNE.items():
        os.environ.setdefault(name, value)
    sys.path.insert(0, str(folder))
    registry.entries.cache_clear()
    with connect("local", cpus=2):
        yield
    sys.path.remove(str(folder))
    registry.entries.cache_clear()
    os.environ.pop("PYTHONPATH")
    if before is not None:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="session")
def tune(ray: None) -> Tune:
    """``tune(settings, trials=5, ...)``: a search on the shared Ray, one trial at a time."""
    return lambda settings, **options: search(settings, SearchOptions(**{"max_concurrent": 1, "cpus": 1.0, **options}))


@pytest.fixture(scope="session")
def whole(tune: Tune, tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    """A search that nothing disturbed, to be read only."""
    out = tmp_path_factory.mktemp("whole") / "runs"
    return tune(make_settings(out), trials=5)


@pytest.fixture
def begun(tmp_path: Path) -> Begun:
    """``begun(settings, objective="recon")``: folder and task of a search whose trials a test runs itself."""

    def make(settings: RunConfig, **options: Any) -> tuple[Path, Task]:
        searches = tmp_path / "runs" / "searches"
        folder = searches / f"search-{len(list(searches.glob('search-*')))}"
        folder.mkdir(parents=True)
        task, _ = define(settings, SearchOptions(**options), Progress())
        task.write(folder)
        return folder, task

    return make


@pytest.fixture
def trial() -> Trial:
    """``trial(folder, 0, {})``: run a trial in this process; what it reports, without the seconds."""

    def run(folder: Path, number: int, point: dict[str, Any]) -> list[dict[str, Any]]:
        reports: list[dict[str, Any]] = []
        run_trial(folder, number, point, lambda result: reports.append({**result, "reports": list(result["reports"])}))
        assert all(report.pop("seconds") >= 0 for report in reports)
        return reports

    return run
