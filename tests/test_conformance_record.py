"""A record says whether the source of its method passed the conformance checks."""

from __future__ import annotations

from collections.abc import Callable

from adbench import __version__
from adbench.results.conformance import keep, outcome
from adbench.results.known import known
from adbench.spec import source_digest


def test_the_outcome_belongs_to_a_source() -> None:
    keep("a" * 64, [])
    keep("b" * 64, ["is_deterministic"])
    assert [outcome("mine", "package 1.0", letter * 64) for letter in "abc"] == ["passed", "failed", "not run"]
    keep("b" * 64, [])
    assert outcome("mine", "package 1.0", "b" * 64) == "passed"


def test_methods_of_a_release_were_tested_before_it() -> None:
    listed = known()["methods"][__version__]["histeq"][-1]
    assert outcome("histeq", "built-in", listed) == "passed"
    assert outcome("histeq", "package 1.0", listed) == "not run"
    assert outcome("histeq", "built-in", "d" * 64) == "not run"


def test_the_command_keeps_what_it_finds(cli: Callable[..., tuple[int, str, str]]) -> None:
    source = source_digest("methods", "constant")
    assert outcome("constant", "package 1.0", source) == "not run"
    assert cli("test", "constant", "--json")[0] == 0
    assert outcome("constant", "package 1.0", source) == "passed"
