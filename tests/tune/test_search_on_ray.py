"""What Ray carries out: proposals, stops, failures, kills, resumptions."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from commands import run
from PIL import Image
from small_search import Begun, Settings, Tune, make_settings

from adbench.context import Progress
from adbench.errors import UserError
from adbench.tune.search import SearchResult, search
from adbench.tune.task import SearchOptions, Task
from adbench.tune.trials import STARTUP, STATE, TABLE, Trial
from adbench.tune.worker import FITS, trial_folder
from adbench.utils.locks import is_locked


def rows(folder: Path) -> list[dict[str, str]]:
    try:
        return list(csv.DictReader((folder / TABLE).open()))
    except FileNotFoundError:
        return []


def figures(result: SearchResult) -> list[Any]:
    return [(trial.params, trial.state, trial.reports) for trial in result.trials]


@pytest.fixture
def command(settings: Settings, tmp_path: Path) -> list[str]:
    """The command line of the search ``whole``, with an output folder of the test's own."""
    path = tmp_path / "settings.yaml"
    path.write_text(settings().to_yaml())
    search = [sys.executable, "-m", "adbench.cli", "tune", "--config", str(path), "--name", "killed", "--trials", "5"]
    return [*search, "--max-concurrent", "1", "--cpus-per-run", "1"]


def test_a_state_that_cannot_be_read_is_no_new_search(whole: SearchResult, tune: Tune, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "searches" / whole.folder.name
    shutil.copytree(whole.folder, folder)
    again = make_settings(tmp_path / "runs")
    with zipfile.ZipFile(folder / STATE, "w") as archive:  # of another version, say
        archive.writestr("experiment_state-2026-01-01_00-00-00.json", "{}")
    with pytest.raises(UserError, match=r"cannot read the state of this search, .* under another --name"):
        tune(again, trials=6, resume=True)
    (folder / STATE).write_bytes(b"PK")
    with pytest.raises(UserError, match=r"state.zip is damaged"):
        tune(again, trials=6, resume=True)


def save_nothing(path: Path) -> None:
    path.write_bytes(b"PK")


def save_outside(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../searcher.pkl", b"")


def save_much(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("searcher.pkl", bytes(2000))


def save_compressed(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("searcher.pkl", bytes(500))


def save_changed(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("searcher.pkl", b"before")
    path.write_bytes(path.read_bytes().replace(b"before", b"after!"))


@pytest.mark.parametrize("save", [save_nothing, save_outside, save_much, save_compressed, save_changed])
def test_a_state_that_no_search_has_written(
    save: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adbench.tune import driver

    monkeypatch.setattr(driver, "LARGEST", 1000)
    save(tmp_path / STATE)
    with pytest.raises(UserError, match=r"state.zip is damaged \(.*\): delete .* and search again"):
        driver._unpack(tmp_path / STATE, tmp_path / "ray" / "inner")
    assert not list(tmp_path.rglob("*.pkl")) or save is save_changed


def test_a_stopped_worker_that_still_writes_ends_no_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adbench.tune import driver

    home = trial_folder(tmp_path, 0)
    (tmp_path / FITS / "of-nobody").mkdir(parents=True)
    (home / "checkpoint").mkdir(parents=True)
    task: Any = SimpleNamespace(mode="max")
    follower = driver.Driver(tmp_path, task, SearchOptions(), [Trial(0, {}, "stopped")], Progress(), print)
    rmdir = Path.rmdir

    def late(folder: Path) -> None:
        (folder / "progress").write_text("1")
        rmdir(folder)

    monkeypatch.setattr(Path, "rmdir", late)
    follower._keep_best()
    assert [path.name for path in home.iterdir()] == ["progress"]
    assert not list((tmp_path / FITS).iterdir())


def test_a_point_that_the_method_refuses_ends_no_search(settings: Settings, begun: Begun, tmp_path: Path) -> None:
    from adbench.tune import driver

    (tmp_path / "space.yaml").write_text("replace: {smallest: {low: 2.0, high: 9.0}, largest: {low: 2.0, high: 9.0}}")
    folder, task = begun(settings("restore", "restore.smallest=2"), space=tmp_path / "space.yaml")
    trials = [Trial(0, task.defaults, "waiting"), Trial(1, {"smallest": 8.0, "largest": 3.0}, "waiting")]
    follower = driver.Driver(folder, task, SearchOptions(), trials, Progress(), print)
    with pytest.raises(UserError, match="may not exceed"):
        task.cell.with_params(trials[1].params)
    (folder / FITS / "of-nobody").mkdir(parents=True)
    follower._keep_best()
    assert not list((folder / FITS).iterdir())


def test_files_of_one_name_are_no_one_fit(settings: Settings, begun: Begun, tmp_path: Path) -> None:
    from adbench.tune import driver

    folders = [tmp_path / name / "pictures" for name in ("a", "b", "c")]
    for place, last in zip(folders, (63, 7, 63), strict=True):
        place.mkdir(parents=True)
        Image.fromarray(np.array([*range(63), last], np.uint8).reshape(8, 8)).save(place / "one.png")
    (tmp_path / "space.yaml").write_text(f"replace: {{textures: {{choices: {json.dumps(list(map(str, folders)))}}}}}")
    wanted = settings("reflect", "reflect.texture=pictures", f"reflect.textures={folders[0]}")
    folder, task = begun(wanted, space=tmp_path / "space.yaml")
    trials = [Trial(number, {"textures": str(place)}, "waiting") for number, place in enumerate(folders)]
    follower = driver.Driver(folder, task, SearchOptions(), trials, Progress(), print)
    made = [follower._fit_of(trial) for trial in trials]
    assert made[0] == made[2] != made[1] is not None  # by their content


@pytest.mark.timeout(600)
def test_killed_and_resumed_it_ends_as_the_undisturbed_search(
    command: list[str], settings: Settings, tune: Tune, whole: SearchResult, cli: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "searches" / "killed"
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(rows(folder)) < 2 and time.monotonic() < deadline and first.poll() is None:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    while is_locked(folder) and time.monotonic() < deadline:  # by what it had started, which stops in a moment
        time.sleep(0.05)
    before = rows(folder)
    assert 2 <= len(before) < 5
    assert before[-1]["state"] in {"waiting", "stopped"}, "stopped: killed before the next trial had its row"

    code, _, err = cli(*command[3:])
    assert code == 2
    assert "continue it with --resume" in " ".join(err.split())
    # Time for no more than a step: what runs is interrupted, and waits.
    short = tune(settings(), trials=3, name="killed", resume=True, budget=0.01)
    assert short.trials[-1].state == "waiting"
    assert not (folder / "ray").exists()
    # A smaller number of trials first, and then all of them.
    part = tune(settings(), trials=3, name="killed", resume=True)
    assert figures(part) == figures(whole)[:3]
    code, out, err = cli(*command[3:], "--resume", "--json", "--quiet")
    assert code == 0, err
    answer = json.loads(out)
    expected = json.loads(json.dumps(whole.to_json()))
    for one, other in zip(answer["trials"], expected["trials"], strict=True):
        assert one.pop("seconds") > 0
        other.pop("seconds")
        assert one == other
    assert answer["best"] == expected["best"]
    assert answer["best"]["value"] > answer["default"]
    # Everything is done: the answer is at hand.
    assert figures(tune(settings(), trials=5, name="killed", resume=True)) == figures(whole)


def test_a_search_that_is_asked_to_stop_says_where_it_stands(command: list[str], tmp_path: Path) -> None:
    """The states are those that the killed search goes on from; every other signal takes the same way."""
    folder = tmp_path / "runs" / "searches" / "killed"
    search = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(rows(folder)) < 2 and time.monotonic() < deadline and search.poll() is None:
        time.sleep(0.02)
    search.send_signal(signal.SIGTERM)
    _, said = search.communicate(timeout=60)
    assert search.returncode == 143, said
    assert "Interrupted. Run the same command with --resume: it goes on where it stopped." in said
    assert "Traceback" not in said
    assert not is_locked(folder)
    states = [row["state"] for row in rows(folder)]
    assert states[-1] == "waiting"
    assert set(states[:-1]) <= {"complete", "stopped"}


def test_failures_are_recorded_and_the_others_go_on(settings: Settings, ray: None) -> None:
    said: list[str] = []
    result = search(settings("fragile"), SearchOptions(trials=4, cpus=1.0, seed=6, max_concurrent=1), say=said.append)
    died = "its process was ended by signal 9 (SIGKILL: the kernel does this when memory runs out)"
    assert [(trial.params["what"], trial.state, trial.error) for trial in result.trials] == [
        ("fine", "complete", ""),
        ("raises", "failed", "RuntimeError: too fragile"),
        ("dies once", "complete", ""),
        ("dies", "failed", died),
    ]
    assert all(any(line.startswith(f"  trial {number} ") for line in said) for number in range(4))
    assert result.best is result.trials[0]  # the earlier of equals
    assert [row["error"] for row in rows(result.folder)] == [trial.error for trial in result.trials]
    tried = sorted((result.folder / "trials" / "tried").read_text().splitlines())
    assert tried == ["dies", "dies", "dies once", "dies once", "fine", "raises"], (
        "only a process that died is started again"
    )
    assert [path.name for path in (result.folder / "trials" / "0001").iterdir()] == ["failure.json"]


def test_a_hopeless_search_is_given_up(
    settings: Settings, tune: Tune, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from adbench.tune import driver

    monkeypatch.setattr(driver, "HOPELESS", 2)
    (tmp_path / "space.yaml").write_text("replace: {what: {choices: [raises, exits]}}")
    with pytest.raises(UserError, match=r"The first 2 trials all failed.* The last one: \w"):
        tune(settings("fragile", "method.what=raises"), trials=20, space=tmp_path / "space.yaml")
    (folder,) = (tmp_path / "runs" / "searches").iterdir()
    assert [row["state"] for row in rows(folder)].count("failed") == 2
    assert not (folder / "best.yaml").exists()


def test_more_than_the_machine_has(settings: Settings, tune: Tune) -> None:
    with pytest.raises(UserError, match="lower --cpus-per-run"):
        tune(settings("histeq"), trials=1, cpus=10_000.0)


def test_an_address_where_nobody_answers(command: list[str], tmp_path: Path) -> None:
    done = run(["adbench", *command[3:], "--address", "127.0.0.1:9"], tmp_path)
    assert done.returncode == 2
    assert "No Ray cluster answers at 127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs" / "searches" / "killed").exists()  # nothing to resume: start it again as it was


SPACE: dict[str, Any] = {
    "lr": {"low": 1e-4, "high": 1e-1, "log": True, "integer": False},
    "sigma": {"low": 0.0, "high": 8.0, "log": False, "integer": False},
    "width": {"low": 2, "high": 9, "log": False, "integer": True},
    "kind": {"choices": ["a", "b", [1, 2]]},
}


def proposals(number: int, seed: int = 0, default: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """What is proposed when the objective is best at lr = 1e-2, sigma = 5, kind = [1, 2]."""
    from adbench.tune.driver import Generator
    from adbench.tune.space import values

    defaults = default or {"lr": 1e-3, "sigma": 1.0, "width": 4, "kind": "a"}
    task: Any = SimpleNamespace(space=SPACE, seed=seed, mode="max", defaults=defaults)
    searcher, found = Generator(task, number, 1).searcher, []
    for trial in map(str, range(number)):
        params = values(SPACE, searcher.suggest(trial))
        assert searcher.suggest("another") is None, "one at a time"
        distance = abs(params["lr"] - 1e-2) + abs(params["sigma"] - 5) / 16 + 0.2 * (params["kind"] != [1, 2])
        searcher.on_trial_complete(trial, {"value": 1 - distance})
        found.append({**params, "value": 1 - distance})
    return found


def test_proposals_follow_from_the_seed_and_get_better() -> None:
    pytest.importorskip("ray")
    found = proposals(40)
    assert found == proposals(40)
    assert found[1] != proposals(2, seed=1)[1]
    assert {**found[0], "value": 0} == {"lr": 1e-3, "sigma": 1.0, "width": 4, "kind": "a", "value": 0}
    for params in found:
        assert 1e-4 <= params["lr"] <= 1e-1
        assert 0 <= params["sigma"] <= 8
        assert isinstance(params["width"], int)
        assert params["kind"] in SPACE["kind"]["choices"]
    first, last = found[1 : STARTUP + 1], found[-10:]
    assert sum(params["value"] for params in last) / 10 > sum(params["value"] for params in first) / 10 + 0.05


def test_defaults_outside_the_space_are_no_obstacle() -> None:
    outside = proposals(3, default={"lr": 0.5, "sigma": 50.0, "width": None, "kind": "other"})
    assert {**outside[0], "value": 0} == {"lr": 0.1, "sigma": 8.0, "width": 2, "kind": "a", "value": 0}


def test_the_method_as_it_comes_is_never_stopped_and_a_resumed_search_knows_its_rungs() -> None:
    from adbench.tune.driver import Halving

    def stub(number: int, *reports: tuple[float, float]) -> Any:
        last = {"reports": reports}
        return SimpleNamespace(
            trial_id=f"id{number}", experiment_tag=f"{number + 1}_x", last_result=last, has_reported_at_least_once=True
        )

    def decide(known: list[Any], trial: Any, share: float, value: float) -> str:
        halving = Halving()
        halving.set_search_properties("value", "max")
        for other in [*known, trial]:
            halving.on_trial_add(None, other)
        return halving.on_trial_result(None, trial, {"share": share, "value": value})

    known = [stub(number, (10.0, number / 10)) for number in range(1, 5)]
    assert decide(known, stub(0), 10.0, -5.0) == "CONTINUE"
    assert decide(known, stub(5), 10.0, 0.1) == "STOP"
    assert decide([], stub(5), 10.0, 0.1) == "CONTINUE"
    assert decide(known, stub(5), 9.9, 0.1) == "CONTINUE"
    assert decide(known, stub(5), 10.0, 0.9) == "CONTINUE"
    assert decide(known, stub(0), 100.0, -5.0) == "STOP"  # the end of the training


def test_no_ray_head_is_left_by_a_killed_search() -> None:
    """Runs last: only the shared Ray of these tests may be alive, and it ends with them."""
    import ray

    heads = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ")
            mine = str(os.getpid()) in (path.parent / "status").read_text().partition("PPid:")[2].split("\n")[0]
        except OSError:
            continue
        heads += b"gcs_server" in line and mine
    assert heads == int(ray.is_initialized())


def test_the_task_says_what_is_searched(whole: SearchResult) -> None:
    task = Task.read(whole.folder)
    assert task == whole.task
    assert (task.objective, task.mode, task.seed, set(task.space)) == ("val_auprc", "max", 0, {"lr", "sigma"})
