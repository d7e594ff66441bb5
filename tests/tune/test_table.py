"""Proposals and stops are functions of the table; the table survives a kill."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from adbench.errors import UserError
from adbench.tune.halving import FACTOR, falls_short, rung_of
from adbench.tune.space import Space
from adbench.tune.table import STARTUP, TRIALS, Mode, Table, Trial, propose

SPACE: Space = {
    "lr": {"low": 1e-4, "high": 1e-1, "log": True, "integer": False},
    "sigma": {"low": 0.0, "high": 8.0, "log": False, "integer": False},
    "width": {"low": 2, "high": 9, "log": False, "integer": True},
    "kind": {"choices": ["a", "b", [1, 2]]},
}
DEFAULT = {"lr": 1e-3, "sigma": 1.0, "width": 4, "kind": "a"}


def quality(params: dict) -> float:
    """Best (1) at lr = 1e-2, sigma = 5, kind = [1, 2]."""
    return 1 - abs(np.log10(params["lr"]) + 2) / 3 - abs(params["sigma"] - 5) / 16 - 0.2 * (params["kind"] != [1, 2])


def searched(count: int, seed: int = 0) -> list[Trial]:
    trials = [Trial(0, DEFAULT, "complete", {100.0: quality(DEFAULT)})]
    for number in range(1, count):
        params = propose(SPACE, "max", seed, number, trials)
        trials.append(Trial(number, params, "complete", {100.0: quality(params)}))
    return trials


def test_a_proposal_follows_from_seed_number_and_table() -> None:
    trials = searched(STARTUP + 3)
    again = [propose(SPACE, "max", 0, trial.number, trials[: trial.number]) for trial in trials[1:]]
    assert again == [trial.params for trial in trials[1:]]
    assert propose(SPACE, "max", 1, 5, trials[:5]) != trials[5].params
    assert propose(SPACE, "max", 0, 20, trials) != propose(SPACE, "min", 0, 20, trials)
    for trial in trials:
        assert 1e-4 <= trial.params["lr"] <= 1e-1
        assert 0 <= trial.params["sigma"] <= 8
        assert isinstance(trial.params["width"], int)
        assert trial.params["kind"] in SPACE["kind"]["choices"]


def test_proposals_get_better() -> None:
    values = [[trial.value or 0 for trial in searched(40, seed)] for seed in range(3)]
    assert np.mean([v[-10:] for v in values]) > np.mean([v[1 : STARTUP + 1] for v in values]) + 0.1


def test_defaults_outside_the_space_and_failures_are_no_obstacle() -> None:
    odd = [Trial(0, {**DEFAULT, "sigma": 50.0}, "complete", {100.0: 1.0}), Trial(1, DEFAULT, "failed", error="x")]
    assert propose(SPACE, "max", 0, 2, odd) == propose(SPACE, "max", 0, 2, [])


@pytest.mark.parametrize("mode", ["max", "min"])
def test_halving_decides_as_rays_scheduler_does(mode: Mode) -> None:
    from ray.tune.schedulers import ASHAScheduler

    rng = np.random.default_rng(3)
    ray = ASHAScheduler(
        time_attr="share", metric="value", mode=mode, grace_period=10, reduction_factor=FACTOR, max_t=99
    )
    table = Table(Path(), mode)
    decisions = []
    for number in range(1, 41):  # 0 is never stopped here
        stub, trial = SimpleNamespace(trial_id=str(number)), Trial(number, {})
        table.trials.append(trial)
        ray.on_trial_add(None, stub)
        for share in (12.0, 30.0):
            value = float(rng.normal())
            trial.reports[share] = value
            theirs = ray.on_trial_result(None, stub, {"share": share, "value": value})
            ours = falls_short(table, trial)
            assert ours == (theirs == "STOP")
            decisions.append(ours)
            if ours:
                break
    assert 0.3 < np.mean(decisions) < 0.9


def test_the_method_as_it_comes_is_never_stopped() -> None:
    table = Table(Path(), "max")
    table.trials = [Trial(n, {}, reports={10.0: 1.0 - 0.1 * n}) for n in range(5)]
    table.trials[0].reports = {10.0: -5.0}
    assert not falls_short(table, table.trials[0])
    assert falls_short(table, table.trials[4])
    assert rung_of(9.9) is None
    assert rung_of(29.9) == 10
    assert not falls_short(table, Trial(9, {}, reports={10.0: 1.0, 100.0: -9.0}))


def test_the_table_is_read_back_and_running_trials_wait(tmp_path: Path) -> None:
    table = Table(tmp_path, "min")
    table.trials = [
        Trial(0, DEFAULT, "complete", {10.0: 0.5, 100.0: 0.25}, 12.5, 2.0, 0.5),
        Trial(1, DEFAULT, "running", {10.0: 0.125}, 3.0),
        Trial(2, DEFAULT, "complete", {100.0: 0.25}),
    ]
    table.save()
    back = Table.read(tmp_path, "min")
    assert back.trials[0] == table.trials[0]
    assert back.trials[1].state == "waiting"
    assert back.trials[1].earlier == 3.0
    assert back.best is back.trials[0]  # the earlier of equals
    assert back.gpu_hours == pytest.approx(12.5 * 0.5 / 3600)


@pytest.mark.parametrize(
    "damage", ["[", "[1]", '[{"number": 0}]', '{"a": 1}', '[{"number": 1, "params": {}, "reports": {}}]']
)
def test_a_damaged_table_is_one_clear_sentence(damage: str, tmp_path: Path) -> None:
    (tmp_path / TRIALS).write_text(damage)
    with pytest.raises(UserError, match=r"trials.json is damaged"):
        Table.read(tmp_path, "max")
