"""What is checked of a method follows from the source that made the result, whatever number its release has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from board_files import ROOT, altered, rekey

from adbench import __version__
from adbench.config import registry
from adbench.config.source import source_digest
from adbench.leaderboard import submission as files
from adbench.leaderboard.checks.all import check
from adbench.leaderboard.checks.issue import RecordIssue
from adbench.leaderboard.checks.method import _sources, check_method
from adbench.leaderboard.submission import Submission
from adbench.leaderboard.verify import check_one
from adbench.results.known import known, releases, settings
from adbench.utils.hashing import digest

RECORDS = sorted(ROOT.glob("phantom/records/phantom-flair-dae-tiny-seed0-*.json"))
pytestmark = pytest.mark.skipif(not RECORDS, reason="no record is committed")
Change = Callable[[dict[str, Any]], object]
HERE, EARLIER, ELSEWHERE, OTHER = source_digest("methods", "dae"), "a" * 64, "e" * 64, "9.0"


@pytest.fixture(scope="module")
def published() -> Submission:
    """dae on FLAIR, by whatever source and release."""
    return files.read_submission(RECORDS[0])


@pytest.fixture(autouse=True)
def _releases(monkeypatch: pytest.MonkeyPatch, published: Submission) -> None:
    """0.1.0 has two sources of dae, the later of which is the one here; :data:`OTHER` has another. All have the presets of today."""
    names = sorted(published.record.method.params)
    said = settings(registry.load("methods", "dae"), names)
    old = known()["methods"]["0.1.0"]
    monkeypatch.setitem(known()["methods"], "0.1.0", {**old, "dae": {EARLIER: names, HERE: names}})
    monkeypatch.setitem(known()["methods"], OTHER, {"dae": {ELSEWHERE: names}})
    monkeypatch.setitem(known()["settings"], "dae", dict.fromkeys((EARLIER, HERE, ELSEWHERE), said))


def made_by(version: str, source: str = "", change: Change = lambda record: None) -> Change:
    """A change of the record, which then is of this version and source."""

    def made(raw: dict[str, Any]) -> None:
        record = raw["record"]
        record["provenance"]["adbench"] = version
        if source:
            record["method"]["source"] = record["identity"]["method_source"] = source
        change(record)
        for one in ("preset", "params", "version"):
            record["identity"]["method_version" if one == "version" else one] = record["method"][one]
        rekey(raw)

    return made


def wrong(published: Submission, change: Change) -> list[RecordIssue]:
    return list(check_method(files.parse(altered(published, change).encode(), Path("x.json"))))


def _set(part: str, name: str, value: Any) -> Change:
    return lambda record: record[part].__setitem__(name, value)


FORGED: dict[str, Change] = {
    "fit.steps": _set("fit", "steps", 1),
    "method.preset": _set("method", "preset", "paper"),
    "method.version": _set("method", "version", "7"),
    "method.parameters": _set("method", "parameters", 12),
    "method.params": lambda record: record["method"]["params"].pop("batch"),
    "identity.files": _set("identity", "files", ["0" * 64]),
}
MADE = {
    "an earlier source of 0.1.0": ("0.1.0", EARLIER),
    "the source here, by 0.1.0": ("0.1.0", HERE),
    "the source here, by this version": (__version__, HERE),
    "a source of another release": (OTHER, ELSEWHERE),
}


@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("field", FORGED)
def test_every_release_is_checked_as_thoroughly(published: Submission, made: str, field: str) -> None:
    assert wrong(published, made_by(*MADE[made])) == []
    assert field in [issue.field for issue in wrong(published, made_by(*MADE[made], FORGED[field]))]


def test_a_source_is_of_the_release_that_it_names(published: Submission) -> None:
    for version, source, head in (
        (
            __version__,
            ELSEWHERE,
            f"made by the source of dae of adbench {OTHER}, and not of {__version__} as it says: ",
        ),
        (OTHER, HERE, f"made by the source of dae of adbench {', '.join(releases('dae', HERE))}, and not of {OTHER} "),
        ("0.1.0", "d" * 64, "made by a source of dae in adbench 0.1.0 that this installation does not know: "),
        (
            __version__,
            "d" * 64,
            f"made by a source of dae in adbench {__version__} that this installation does not know: ",
        ),
    ):
        (issue,) = wrong(published, made_by(version, source))
        assert (issue.field, issue.stored) == ("method.source", source)
        assert f"({head}" in issue.sentence
        assert ": make the run again with this adbench, or verify it with the one that made it; a" in issue.sentence
    (issue,) = wrong(published, made_by("8.0", HERE))
    assert (issue.field, issue.stored) == ("provenance.adbench", "8.0")
    assert "this release knows no such version" in issue.sentence
    (issue,) = wrong(published, made_by("8.0.dev0", HERE))
    assert (issue.field, issue.stored) == ("provenance.adbench", "8.0.dev0")
    assert "(made by adbench in development, whose sources this installation does not know: make the" in issue.sentence


def test_a_shared_fit_may_be_of_another_release_than_it_is_scored_with(published: Submission) -> None:
    def scored(source: str, *, shared: bool = True) -> Change:
        def change(record: dict[str, Any]) -> None:
            record["identity"]["scored_with"] = source
            if shared:
                record["weights"] = {"author": "A", "licence": "CC0-1.0", "link": "", "digest": "0" * 64}

        return change

    assert wrong(published, made_by(__version__, ELSEWHERE, scored(HERE))) == []
    for source, change, field in (
        (ELSEWHERE, scored("d" * 64), "identity.scored_with"),
        (ELSEWHERE, scored(ELSEWHERE), "identity.scored_with"),
        (ELSEWHERE, scored(HERE, shared=False), "identity.scored_with"),
        ("d" * 64, scored(HERE), "method.source"),
    ):
        assert [issue.field for issue in wrong(published, made_by(__version__, source, change))] == [field]


def test_a_preset_that_its_source_never_had(published: Submission, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that came later is no preset of it, though the class here has it."""
    listed = known()["settings"]["dae"][EARLIER]
    monkeypatch.setitem(known()["settings"]["dae"], EARLIER, {n: said for n, said in listed.items() if n != "tiny"})
    for change in (lambda record: None, _set("method", "preset", "huge")):
        (issue,) = wrong(published, made_by("0.1.0", EARLIER, change))
        assert issue.field == "method.preset"
        assert "this source of dae has no such preset, but" in issue.sentence
    assert wrong(published, made_by("0.1.0", HERE)) == []


def test_the_code_that_scored_an_ensemble_is_that_of_a_release(
    published: Submission, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the whole where its own source is another one, else of those of its members that are."""
    own, now = source_digest("methods", "ensemble"), source_digest("methods", "histeq")

    def issues(other: str, source: str, *members: tuple[str, str]) -> list[str]:
        def change(raw: dict[str, Any]) -> None:
            raw["record"]["identity"] |= {
                "members": [{"method": name, "method_source": of} for name, of in members],
                "scored_with": other,
            }
            raw["record"]["weights"] = {"author": "A", "licence": "CC0-1.0", "link": "", "digest": "0" * 64}
            raw["record"]["provenance"]["adbench"] = __version__
            raw["record"]["method"] |= {"name": "ensemble", "source": source}

        record = files.parse(altered(published, change).encode(), Path("x.json")).record
        return [issue.field for issue in _sources(record)]

    before, elsewhere = "b" * 64, "f" * 64
    for version, of_histeq, of_ensemble in (("0.1.0", before, elsewhere), (__version__, now, own)):
        listed = known()["methods"].get(version, {})
        listed = {**listed, "histeq": {of_histeq: []}, "ensemble": {of_ensemble: []}}
        monkeypatch.setitem(known()["methods"], version, listed)
    both = [("dae", ELSEWHERE), ("histeq", before)]
    assert issues(digest({"dae": HERE, "histeq": now}), own, *both) == []
    assert issues(digest({"histeq": now}), own, ("dae", HERE), both[1]) == []
    assert issues(digest({"histeq": before}), own, ("dae", HERE), both[1]) == ["identity.scored_with"]
    assert issues("d" * 64, own, *both) == ["identity.scored_with"]
    assert issues(digest({}), own, ("dae", HERE)) == ["identity.scored_with"]
    assert issues("d" * 64, own, ("dae", ELSEWHERE), ("mine", "c" * 64)) == []  # of a plug-in nobody knows
    assert issues(own, elsewhere, *both) == []
    assert issues(digest({"dae": HERE, "histeq": now}), elsewhere, *both) == ["identity.scored_with"]


def test_a_preset_that_has_changed_since_is_told(
    published: Submission, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Steps are not computed by the class of another source; what is known of that source still holds."""
    listed = known()["settings"]["dae"][EARLIER]
    monkeypatch.setitem(known()["settings"]["dae"], EARLIER, {**listed, "tiny": "another"})
    assert wrong(published, made_by("0.1.0", EARLIER, FORGED["fit.steps"])) == []
    assert [issue.field for issue in wrong(published, made_by("0.1.0", EARLIER, FORGED["method.params"]))] == [
        "method.params"
    ]
    assert "method.parameters" in [
        i.field for i in wrong(published, made_by("0.1.0", EARLIER, FORGED["method.parameters"]))
    ]
    (tmp_path / "x.json").write_text(altered(published, made_by("0.1.0", EARLIER)))
    found = check_one(tmp_path / "x.json")
    assert found.issues == []
    assert found.unseen == (
        f"by dae of adbench 0.1.0: its preset tiny is another one in adbench {__version__}, so that steps, files and members were "
        "not computed from the parameters",
    )


def test_all_that_is_wrong_is_found_by_the_list_of_checks(published: Submission) -> None:
    change = made_by("0.1.0", HERE, FORGED["fit.steps"])
    assert "fit.steps" in [i.field for i in check(files.parse(altered(published, change).encode(), Path("x.json")))]
