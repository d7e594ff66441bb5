"""Lists and descriptions agree with what the code really has."""

from __future__ import annotations

from adbench import registry
from adbench.catalogue import description, listing
from adbench.metrics import evaluate, spatial
from adbench.metrics.definitions import DEFINITIONS


def test_every_built_in_metric_is_listed_once_with_a_line() -> None:
    assert list(DEFINITIONS) == [*evaluate.NAMES, *spatial.NAMES]
    named = [row["name"] for row in listing("metrics") if row["origin"] == "built-in"]
    assert named == [*DEFINITIONS, *registry.BUILTIN["metrics"]]
    assert {name for name, line in DEFINITIONS.items() if line.startswith("ORACLE")} == set(evaluate.ORACLE)


def test_descriptions_hold_the_presets_of_a_method() -> None:
    described = description("ae")
    assert described["presets"]["tiny"]["steps"] < next(
        p["default"] for p in described["params"] if p["name"] == "steps"
    )
    assert description("dice@val")["kind"] == "metric"
    assert description("phantom")["facts"]["default protocol"] == "phantom"
