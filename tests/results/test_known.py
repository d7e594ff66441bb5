"""What is known of built-in methods and shipped data is true of this code, and records say who passed the conformance checks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from adbench import __version__
from adbench.config import registry
from adbench.config.run_config import default_cache
from adbench.config.source import source_digest
from adbench.leaderboard import make_known
from adbench.leaderboard.make_known import data, methods
from adbench.leaderboard.submission import glance
from adbench.results.known import conformance as outcome
from adbench.results.known import keep_conformance as keep
from adbench.results.known import known, weights

BOARD = Path(__file__).parents[2] / "leaderboards" / "phantom" / "records"


def test_the_outcome_belongs_to_a_source() -> None:
    keep("a" * 64, [])
    keep("b" * 64, ["is_deterministic"])
    assert [outcome("mine", "package 1.0", letter * 64) for letter in "abc"] == ["passed", "failed", "not run"]
    keep("b" * 64, [])
    assert outcome("mine", "package 1.0", "b" * 64) == "passed"


def test_methods_of_a_release_were_tested_before_it() -> None:
    listed = known()["methods"][__version__]["histeq"]
    listed = list(listed)[-1]
    assert outcome("histeq", "built-in", listed) == "passed"
    assert outcome("histeq", "package 1.0", listed) == "not run"
    assert outcome("histeq", "built-in", "d" * 64) == "not run"


def test_the_command_keeps_what_it_finds(cli: Callable[..., tuple[int, str, str]]) -> None:
    source = source_digest("methods", "constant")
    assert outcome("constant", "package 1.0", source) == "not run"
    assert cli("test", "constant", "--json")[0] == 0
    assert outcome("constant", "package 1.0", source) == "passed"


def test_known_sources_are_those_of_this_code() -> None:
    listed = known()["methods"][__version__]
    assert set(listed) == set(registry.BUILTIN["methods"])
    stale = [name for name, sources in listed.items() if list(sources)[-1] != source_digest("methods", name)]
    assert not stale, (
        f"the source of {', '.join(stale)} changed: run `make known`, and commit adbench/results/known.json"
    )


def test_the_number_of_weights_is_known_under_the_parameters_of_every_source() -> None:
    record = glance(min(BOARD.glob("phantom-flair-madad-*"))).record
    full = registry.load("methods", "madad").resolve(record.method.preset, record.method.params).model_dump(mode="json")
    newer = record.method.model_copy(update={"params": full})
    assert weights(newer, record.test.grid) == weights(record.method, record.test.grid) == record.method.parameters
    wider = newer.model_copy(update={"params": full | {"steps": full["steps"] + 1}})
    assert weights(wider, record.test.grid) is None


def test_known_slices_are_those_of_the_phantom() -> None:
    """The validation subjects in FLAIR; committed results of all roles and modalities are held against the others."""
    made = data("phantom", "FLAIR", default_cache(), n_train=1, n_test=1)
    listed = known()["data"]["phantom"]["FLAIR"]
    assert {role: made[role] for role in ("val", "threshold")} == {
        role: listed[role] for role in ("val", "threshold")
    }, "run `make known`"


def test_sources_of_published_results_stay_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a change of every method, those that a committed result was made with are listed before the new ones."""
    paths = sorted(BOARD.glob("*-ae-*.json"))[:1]
    if not paths:
        pytest.skip("no record is committed")
    record = glance(paths[0]).record
    monkeypatch.setattr(make_known, "source_digest", lambda kind, name: "new")
    made = methods([record])
    listed = made["methods"][__version__]
    assert list(listed["ae"]) == [record.method.source, "new"]
    assert listed["ae"][record.method.source] == sorted(record.method.params)
    assert list(listed["zscore"]) == ["new"]
    assert list(made["weights"].values()) == [record.method.parameters]
    sized_by_data = [glance(path).record for path in sorted(BOARD.glob("*-zscore-*.json"))[:1]]
    assert methods(sized_by_data)["weights"] == {}
