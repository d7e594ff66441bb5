"""Rules are named functions that check a class against its contract; a broken one is reported, and the rest still run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from adbench.errors import text_of, trace_of


@dataclass(frozen=True)
class Finding:
    """The outcome of one rule.

    Attributes:
        rule: the rule's name.
        asks: what it asks for, in one sentence.
        problem: how the class breaks it; "" when it does not.
        trace: the traceback when the class raised something of its own.
    """

    rule: str
    asks: str
    problem: str = ""
    trace: str = ""


class Broken(AssertionError):
    """Raised inside a rule; the message is the problem."""


def require(condition: object, problem: str) -> None:
    """Raise :class:`Broken` with ``problem`` unless ``condition``."""
    if not condition:
        raise Broken(problem)


def apply(rules: Iterable[Callable[[Any], None]], subject: Any) -> list[Finding]:
    """Run every rule on ``subject``; each rule's docstring says what it asks for."""
    findings = []
    for rule in rules:
        name, asks = rule.__name__.removeprefix("rule_"), " ".join((rule.__doc__ or "").split())
        try:
            rule(subject)
            findings.append(Finding(name, asks))
        except Broken as error:
            findings.append(Finding(name, asks, str(error)))
        except Exception as error:  # the class under test may raise anything; the report names it
            problem = f"raised {type(error).__name__}: {text_of(error)}"
            findings.append(Finding(name, asks, problem, trace_of(error)))
    return findings
