"""What is known of built-in methods and shipped data is true of this code, and records say who passed the conformance checks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest

from adbench import __version__
from adbench.config import registry
from adbench.config.run_config import default_cache
from adbench.config.source import source_digest
from adbench.leaderboard import make_known
from adbench.leaderboard.make_known import data, methods
from adbench.leaderboard.submission import glance
from adbench.methods.base import Method
from adbench.results.known import conformance as outcome
from adbench.results.known import has_source, is_release, known, releases, settings, weights
from adbench.results.known import keep_conformance as keep
from adbench.results.record import Record

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
    stale = [
        name
        for name, sources in listed.items()
        for own in [source_digest("methods", name)]
        if list(sources)[-1] != own
        or known()["settings"][name][own] != settings(registry.load("methods", name), sources[own])
    ]
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


@pytest.fixture
def published() -> Record:
    """A committed result of ae, made by an earlier source of adbench 0.1.0."""
    paths = sorted(BOARD.glob("*-ae-*.json"))[:1]
    if not paths:
        pytest.skip("no record is committed")
    return glance(paths[0]).record


def test_sources_of_published_results_stay_valid(monkeypatch: pytest.MonkeyPatch, published: Record) -> None:
    """After a change of every method, those that a committed result was made with are listed before the new ones."""
    monkeypatch.setattr(make_known, "source_digest", lambda kind, name: "new")
    monkeypatch.setattr(make_known, "__version__", published.provenance["adbench"])
    made = methods([published])
    listed = made["methods"][published.provenance["adbench"]]
    assert list(listed["ae"]) == [published.method.source, "new"]
    assert listed["ae"][published.method.source] == sorted(published.method.params)
    assert list(listed["zscore"]) == ["new"]
    assert list(made["weights"].values()) == [published.method.parameters]
    sized_by_data = [glance(path).record for path in sorted(BOARD.glob("*-zscore-*.json"))[:1]]
    assert methods(sized_by_data)["weights"] == {}


def test_what_other_releases_have_stays_as_it_is(monkeypatch: pytest.MonkeyPatch, published: Record) -> None:
    released = {version: listed for version, listed in known()["methods"].items() if ".dev" not in version}
    monkeypatch.setattr(make_known, "source_digest", lambda kind, name: "new")
    monkeypatch.setattr(make_known, "__version__", "9.0")
    made = methods([published])
    assert made["methods"] == {**released, "9.0": made["methods"]["9.0"]}
    assert {source for sources in made["methods"]["9.0"].values() for source in sources} == {"new"}
    assert list(made["weights"].values()) == [published.method.parameters]
    for name, sources in known()["settings"].items():
        kept = {source: said for source, said in sources.items() if any(source in of[name] for of in released.values())}
        assert made["settings"][name] == {**kept, "new": made["settings"][name]["new"]}


def test_a_version_in_development_goes_where_no_record_is_of_it(
    monkeypatch: pytest.MonkeyPatch, published: Record
) -> None:
    for version in ("8.0.dev0", "8.1.dev0"):
        monkeypatch.setitem(known()["methods"], version, {"ae": {version: ["latent"]}})
    used = published.model_copy(update={"provenance": {**published.provenance, "adbench": "8.1.dev0"}})
    assert "8.1.dev0" not in methods([published])["methods"]
    made = methods([used])["methods"]
    assert "8.0.dev0" not in made
    assert made["8.1.dev0"] == {"ae": {"8.1.dev0": ["latent"]}}


def test_a_source_that_is_listed_by_hand_gets_the_settings_of_this_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a source that has some are kept, whatever the class says now."""
    names = ["polarity", "sigma"]
    own = source_digest("methods", "histeq")
    monkeypatch.setitem(known()["methods"]["0.1.0"]["histeq"], "by hand", names)
    monkeypatch.setitem(known()["methods"]["0.1.0"]["histeq"], "before", names)
    monkeypatch.setitem(known()["settings"]["histeq"], "before", {"tiny": "other"})
    made = methods([])["settings"]["histeq"]
    assert made["by hand"] == settings(registry.load("methods", "histeq"), names)
    assert (made["before"], made[own]) == ({"tiny": "other"}, known()["settings"]["histeq"][own])


def test_settings_are_values_steps_and_version() -> None:
    ae = registry.load("methods", "ae")
    names = sorted(ae.Params.model_fields)
    assert settings(ae, [*names, "of another release"]) == settings(ae, names)

    class Longer(ae):  # type: ignore[misc, valid-type]
        """Takes more steps with one of its presets."""

        presets: ClassVar = {**ae.presets, "tiny": {**ae.presets["tiny"], "steps": 7}}

    class Newer(ae):  # type: ignore[misc, valid-type]
        """Gives other numbers."""

        version: ClassVar[str] = "99"

    def changed(cls: type[Method], own: list[str]) -> set[str]:
        return {preset for preset, said in settings(ae, own).items() if settings(cls, own)[preset] != said}

    assert changed(Longer, names) == {"tiny"}
    assert changed(Longer, ["lr"]) == {"tiny"}  # by the steps that it takes
    assert changed(Newer, names) == set(ae.presets)


def test_releases_are_told_by_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    own = source_digest("methods", "histeq")
    first = next(iter(known()["methods"]["0.1.0"]["histeq"]))
    assert releases("histeq", first)[0] == "0.1.0"
    assert releases("histeq", own)[-1] == __version__
    assert releases("histeq", "d" * 64) == []
    monkeypatch.delitem(known()["methods"], __version__)
    assert releases("histeq", own)[-1] == __version__
    assert has_source("histeq", own, __version__)
    assert not has_source("histeq", own, "0.0.1")
    assert (is_release(__version__), is_release("0.1.0"), is_release("9.0")) == (True, True, False)
    assert outcome("histeq", "built-in", first) == "passed"
    source_digest.cache_clear()
    assert (has_source("histeq", first, "0.1.0"), has_source("ae", first, "0.1.0")) == (True, False)
    assert source_digest.cache_info().misses == 0, "what is listed was computed all the same"
