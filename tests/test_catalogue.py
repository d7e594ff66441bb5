"""Lists and descriptions agree with what the code really has."""

from __future__ import annotations

from adbench.cli.describe import description, listing
from adbench.config import registry
from adbench.metrics.spec import HISTOGRAM_METRICS, MAP_METRICS, SPECS


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
