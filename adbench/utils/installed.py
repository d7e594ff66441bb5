"""Installed packages, some of which may be damaged: importing this lets every library look past these.

``importlib.metadata`` gives up on all packages at the first malformed ``entry_points.txt``, and with it pydantic, torch and
whatever else asks for entry points.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import Distribution, EntryPoints, distributions
from importlib.util import find_spec
from pathlib import Path

_BROKEN: dict[str, str] = {}  # place -> why its entry points cannot be read
_read: Callable[[Distribution], EntryPoints] = Distribution.__dict__["entry_points"].fget


def _readable(distribution: Distribution) -> EntryPoints:
    try:
        return _read(distribution)
    except Exception as error:  # whatever the file holds
        _BROKEN[place(distribution)] = f"its entry points cannot be read ({type(error).__name__}: {error})"
        return EntryPoints()


Distribution.entry_points = property(_readable)  # type: ignore[assignment, method-assign]


def place(distribution: Distribution) -> str:
    """Where the metadata of a distribution lie."""
    return str(getattr(distribution, "_path", "an unknown place"))


def label(distribution: Distribution) -> str:
    """ "my-method 0.2"; "" when its metadata do not say it, because a part of them was removed."""
    try:
        name, version = distribution.name, distribution.version
    except Exception:  # whatever the file holds
        return ""
    return f"{name} {version}" if name and version else ""


def broken() -> dict[str, str]:
    """Place -> what is wrong, of every distribution whose metadata cannot be read or lack name and version."""
    found = {}
    for one in distributions():
        _ = one.entry_points
        if not label(one):
            found[place(one)] = "it has no name or version: a part of it was removed"
    return found | _BROKEN


def package_file(package: str, relative: str) -> Path | None:
    """A file of an installed package, which is not imported; None when there is no such file."""
    spec = find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    return next((Path(folder) / relative for folder in folders if (Path(folder) / relative).is_file()), None)
