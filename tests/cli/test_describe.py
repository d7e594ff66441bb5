"""Listings, descriptions and the pages of methods: complete, and the committed pages are those of the code."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from adbench.cli.describe import KEPT, description, index_page, listing, page, readable
from adbench.config import registry
from adbench.errors import UserError
from adbench.metrics.spec import HISTOGRAM_METRICS, MAP_METRICS, SPECS

BOARDS = Path(__file__).parents[2] / "leaderboards"
DOCS = Path(__file__).parents[2] / "docs" / "methods"
Cli = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("name", registry.BUILTIN["methods"])
def test_every_built_in_method_has_a_whole_card(name: str) -> None:
    cls, card = registry.load("methods", name), description(name)["card"]
    assert set(card) == {"paper", "equations", "variants", "deviations", "published", "tried"}
    assert card["paper"]
    assert card["equations"]
    assert card["published"]
    assert set(cls.presets) == {"tiny", "base", "paper"}
    for names in card["variants"]:  # a variant is set by a parameter that exists
        assert {part.strip() for part in names.split(",")} <= set(cls.Params.model_fields)
    idea = cls.__doc__.strip().split("\n")
    assert len(idea) <= 7


def test_cards_quote_boards_as_they_are() -> None:
    """A number of a card that names a board is in it: own seeds, own sequence, and those of a method named beside them."""
    recorded: dict[tuple[str, str, str], dict[int, str]] = {}
    for board in ("phantom", "soop-flair"):
        for path in (BOARDS / board / "records").glob("*.json"):
            record = json.loads(path.read_text(encoding="utf-8"))["record"]
            row = recorded.setdefault((board, record["method"]["name"], record["test"]["modality"]), {})
            row[record["seed"]] = f"{record['metrics']['auprc']['value']:.3f}".removeprefix("0")
    three = r"(\.\d{3}), (\.\d{3}), (\.\d{3})"
    quoted = []
    for name in registry.BUILTIN["methods"]:
        card = description(name)["card"]
        assert all(method != name for _, method, _ in recorded) or "no run is recorded" not in " ".join(card["tried"])
        for line in card["tried"]:
            if "leaderboards/soop-flair" in line and (
                own := re.search(f"seeds 0, 1, 2: (?:test AUPRC )?{three}", line)
            ):
                row = recorded["soop-flair", name, "FLAIR"]
                assert [row[seed] for seed in range(3)] == list(own.groups()), (name, line)
                for other, *numbers in re.findall(f"`([a-z]+)` (?:has )?{three}", line):
                    assert [recorded["soop-flair", other, "FLAIR"][seed] for seed in range(3)] == numbers, (name, line)
                quoted.append(name)
            if "leaderboards/phantom" in line:
                for modality, number in re.findall(r"(FLAIR|T1|T2) (\.\d{3})", line):
                    assert recorded["phantom", name, modality][0] == number, (name, line)
    assert {"reflect", "andi", "restore", "pddpm", "itermask", "features"} <= set(quoted)


def test_committed_pages_are_those_of_the_code() -> None:
    made = {name: page(name) for name in registry.BUILTIN["methods"]} | {"index": index_page()}
    committed = {path.stem: path.read_text(encoding="utf-8").partition(KEPT)[0] for path in DOCS.glob("*.md")}
    assert committed.keys() == made.keys()
    stale = [name for name, text in made.items() if committed[name] != text]
    assert not stale, "make them again: adbench describe --all --markdown --out docs/methods"


def test_describe_prints_the_card(cli: Cli) -> None:
    code, out, _ = cli("describe", "thor")
    assert code == 0
    for part in ("arXiv 2403.08464", "harmonic mean of the m", "Deviations from the paper", ".297", "map_every"):
        assert part in " ".join(out.split())
    code, out, _ = cli("describe", "thor", "--markdown")
    assert code == 0
    assert out.strip() == page("thor").strip()


def test_pages_are_written(cli: Cli, tmp_path: Path) -> None:
    code, _, err = cli("describe", "--all", "--markdown", "--out", str(tmp_path / "pages"))
    assert code == 0
    assert (tmp_path / "pages" / "madad.md").read_text() == page("madad")
    assert "index.md" in err
    for wrong, message in (
        (["describe"], "Name what to describe"),
        (["describe", "--all"], "--all --markdown --out DIR"),
        (["describe", "phantom", "--markdown"], "phantom is a dataset"),
    ):
        code, _, err = cli(*wrong)
        assert code == 2
        assert message in " ".join(err.split())


def test_what_runs_gave_a_page_stays_when_it_is_made_again(cli: Cli, tmp_path: Path) -> None:
    written = tmp_path / "histeq.md"
    tail = f"{KEPT}some script -->\n\n## Seen\n\n.123\n"
    written.write_text(f"an older page\n{tail}")
    (tmp_path / "zscore.md").write_bytes(b"\xff no mark")
    for name in ("histeq", "zscore"):
        assert cli("describe", name, "--markdown", "--out", str(tmp_path))[0] == 0
    assert written.read_text() == page("histeq") + tail
    assert (tmp_path / "zscore.md").read_text() == page("zscore")


def test_only_methods_have_cards() -> None:
    with pytest.raises(UserError, match="only methods have a card"):
        page("auprc")


def test_every_built_in_metric_is_listed_once_with_a_line() -> None:
    headline = [name for name, facts in SPECS.items() if facts.group == "headline"]
    assert headline == [*HISTOGRAM_METRICS, *MAP_METRICS]
    rows = [row for row in listing("metrics") if row["origin"] == "built-in"]
    assert [row["name"] for row in rows] == list(SPECS) == [*headline, *registry.BUILTIN["metrics"]]
    assert {row["name"] for row in rows if row["oracle"]} == {name for name in SPECS if name.endswith("best")}
    assert all(row["summary"] == SPECS[row["name"]].definition and not row["problem"] for row in rows)


def test_descriptions_hold_the_presets_of_a_method() -> None:
    described = description("ae")
    assert described["presets"]["tiny"]["steps"] < next(
        p["default"] for p in described["params"] if p["name"] == "steps"
    )
    assert description("dice@val")["kind"] == "metric"
    assert description("phantom")["facts"]["default protocol"] == "phantom"


def test_descriptions_have_no_marks_of_sphinx() -> None:
    assert readable("see :class:`adbench.methods.ae.AE`, ``x_t`` and :func:`~a.b.run`") == "see `AE`, `x_t` and `run`"
    for kind in ("methods", "datasets", "metrics"):
        for name in registry.BUILTIN[kind]:
            what = description(name)
            text = " ".join([what["doc"], *(row["doc"] for row in what["params"])])
            assert "``" not in text, name
            assert not re.search(r":[a-z]+:`", text), name
