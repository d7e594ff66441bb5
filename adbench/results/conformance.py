"""What the conformance checks found about a method, kept by the hash of its source, so that records can say it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from adbench import __version__
from adbench.config.run_config import default_cache
from adbench.results.known import is_released
from adbench.utils.files import write_json


def _file(source: str) -> Path:
    return default_cache() / "conformance" / f"{source}.json"


def keep(source: str, broken: Sequence[str]) -> None:
    """Write down the outcome of ``adbench test``.

    Args:
        source: :func:`adbench.config.source.source_digest` of the method that was tested.
        broken: names of the rules that it breaks.
    """
    write_json(_file(source), {"source": source, "adbench": __version__, "broken": list(broken)})


def outcome(method: str, origin: str, source: str) -> str:
    """ "passed", "failed" or "not run": whether ``adbench test`` was passed by a method with this very source.

    The tests of adbench hold its own methods against the same rules before their source enters ``known.json``.

    Args:
        method: its name.
        origin: "built-in" or a distribution.
        source: hash of its source.
    """
    if is_released(method, origin, source, __version__):
        return "passed"
    try:
        found = json.loads(_file(source).read_text(encoding="utf-8"))
        return "failed" if found["broken"] else "passed"
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return "not run"
