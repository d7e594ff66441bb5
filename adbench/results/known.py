"""What this release knows about any result: the source of its own methods, and the data that ships with it.

``known.json`` beside this module is made by ``python -m adbench.leaderboard.make_known`` (``make known``), never by hand::

    {
      "methods": {adbench version: {method: [hashes of its source]}},
      "weights": {hash of method, parameters and grid: number of weights},
      "data":    {dataset: {modality: {"params": …, role: {"digest": …, "subjects": […], "voxels": {subject: [lesion, other]}, …}}}},
      "lists":   {protocol: {role: [subjects]}}      lists that were published; added by hand, kept by the command
    }
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from adbench import __version__
from adbench.config.source import source_digest
from adbench.results.record import MethodPart
from adbench.utils.hashing import digest

FILE = Path(__file__).with_name("known.json")
BUILT_IN = "built-in"


@cache
def known() -> dict[str, Any]:
    """The content of ``known.json``."""
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def sources(method: str, version: str) -> list[str] | None:
    """Hashes that the source of a built-in method may have, this checkout's last; None for an unknown release.

    Args:
        method: name of a built-in method.
        version: of adbench.
    """
    listed = known()["methods"].get(version)
    if version != __version__:
        return None if listed is None else list(listed.get(method, []))
    own = source_digest("methods", method)
    return [*(source for source in (listed or {}).get(method, []) if source != own), own]


def is_released(method: str, origin: str, source: str, version: str) -> bool:
    """Whether the release ``version`` of adbench has this method with this source."""
    return origin == BUILT_IN and source in known()["methods"].get(version, {}).get(method, [])


def weights_key(method: MethodPart, grid: tuple[int, int]) -> str:
    """What decides the number of weights of a built-in method."""
    return digest([method.name, method.params, list(grid)])[:16]
