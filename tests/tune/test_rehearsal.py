"""``adbench tune --dry-run``: what a search would do, and whether its space goes with what is set."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from small_search import PHANTOM, SMALL, Settings, make_settings

from adbench.config import run_config
from adbench.errors import UserError
from adbench.tune.rehearsal import _draw, rehearse
from adbench.tune.task import SearchOptions

Cli = Callable[..., tuple[int, str, str]]


def test_draws_cover_a_range_with_its_ends() -> None:
    rng = random.Random(1)
    entry = {"low": 1e-4, "high": 1e-1, "log": True, "integer": False}
    found = [_draw(entry, rng) for _ in range(2000)]
    assert min(found) == 1e-4
    assert max(found) == 1e-1
    assert sum(found.count(end) for end in (1e-4, 1e-1)) == pytest.approx(400, abs=80)
    inner = [math.log10(value) for value in found if 1e-4 < value < 1e-1]
    assert sum(inner) / len(inner) == pytest.approx(-2.5, abs=0.1)
    whole = {_draw({"low": 2, "high": 5, "log": False, "integer": True}, rng) for _ in range(200)}
    assert whole == {2, 3, 4, 5}
    assert {_draw({"choices": [[1], None]}, rng) for _ in range(50)} == {"[1]", None}


def test_nothing_is_left_behind(settings: Settings) -> None:
    found = rehearse(settings("ae", "ae.lr=1e-3"), SearchOptions(trials=7, budget=60.0, objective="recon")).to_json()
    assert not Path(found["folder"]).parent.exists()
    assert "lr" not in found["space"], "what is set is not searched"
    assert (found["trials"], found["budget_seconds"], found["objective"]) == (7, 60.0, "recon")
    assert found["data"]["train"] > 0
    assert found["first_trial"]["set"]["method"]["lr"] == 1e-3


@pytest.mark.parametrize(
    ("method", "preset", "said", "message"),
    [
        ("pddpm", "base", ("pddpm.image_size=128",), r"image_size must be a multiple of boxes \(3\)"),
        ("andi", "tiny", ("andi.stop=50",), r"start \(60\) must be below stop \(50\)"),
    ],
)
def test_a_space_that_does_not_go_with_the_settings(
    method: str, preset: str, said: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    chosen = make_settings(tmp_path / "runs", method, *said).model_copy(update={"preset": preset})
    with pytest.raises(UserError, match=message):
        rehearse(chosen, SearchOptions())


def test_draws_that_do_not_go_with_each_other(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("replace: {smallest: {low: 5, high: 40}, largest: {low: 15, high: 60}}", encoding="utf-8")
    said = r"of 200 random draws of the search space are refused, the first with largest=.*, smallest=.*may not exceed largest"
    with pytest.raises(UserError, match=said):
        rehearse(make_settings(tmp_path / "runs", "restore"), SearchOptions(space=path))


def test_the_command_shows_it(cli: Cli, tmp_path: Path) -> None:
    sets = [f"dataset.{text}" for text in PHANTOM] + [f"ae.{text}" for text in SMALL]
    command = [
        "tune",
        "--method",
        "ae",
        "--dataset",
        "phantom",
        "--device",
        "cpu",
        "--out",
        tmp_path / "runs",
        "--dry-run",
    ]
    command += [part for text in sets for part in ("--set", text)]
    code, said, err = cli(*command, "--trials", "4", "--quiet")
    assert code == 0, err
    shown = " ".join((said + err).split())
    for words in (
        "lr",
        "logarithmic",
        "4 trials; val_auprc",
        "to learn from",
        "200 random draws",
        "Trial 0: method: - ae",
    ):
        assert words in shown
    code, said, err = cli(*command, "--json", "--quiet")
    assert code == 0, err
    first = json.loads(said)["first_trial"]
    assert run_config.validated(run_config.RunConfig, first).method == ("ae",)
    assert not (tmp_path / "runs").exists()
