"""What we depend on, audited without a network: declared, pinned, used, and under licences that leave users free."""

from __future__ import annotations

import re
import sys
import tomllib
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
UNUSED = {"einops", "nilearn"}  # monai imports the first where we use it; of the second only data files are read
FREE = re.compile(r"MIT|BSD|Apache|ISC|PSF|Python|MPL|HPND|Unlicense|Zlib|CC0|LGPL|Mozilla|Public Domain|NVIDIA", re.I)
STRICT = re.compile(r"(?<!L)(?<!Lesser )A?GPL|Affero|non-?commercial", re.I)


def declared(*extras: str) -> dict[str, Requirement]:
    """The requirements of adbench and of some extras, by name."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return {canonicalize_name(found.name): found for found in map(Requirement, lines) if found.name != PROJECT["name"]}


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version.partition(" ")[0] for name, version in pairs}


@cache
def needed(*extras: str) -> frozenset[str]:
    """What is installed because of adbench and some extras, by their own metadata."""
    found: set[tuple[str, str]] = set()
    waiting = [(found, extra) for found in declared(*extras).values() for extra in ("", *found.extras)]
    while waiting:
        requirement, extra = waiting.pop()
        name = canonicalize_name(requirement.name)
        if (name, extra) in found:
            continue
        try:
            lines = distribution(name).requires or []
        except PackageNotFoundError:  # an extra that is not installed here
            continue
        found.add((name, extra))
        for below in map(Requirement, lines):
            if below.marker is None or below.marker.evaluate({"extra": extra}):
                waiting += [(below, further) for further in ("", *below.extras)]
    return frozenset(name for name, _ in found)


def test_everything_that_is_installed_has_an_exact_version_within_what_is_declared() -> None:
    versions = pinned()
    extras = ("prepare", "docs", "dev")  # what `make setup` installs
    assert (set(declared(*extras)) | needed(*extras)) - set(versions) <= {
        "setuptools"
    }  # which a Python may bring along
    for name, requirement in declared(*extras).items():
        assert requirement.specifier.contains(versions[name]), requirement


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    texts = (path.read_text(encoding="utf-8") for path in (ROOT / "adbench").rglob("*.py"))
    imported = {module for text in texts for module in re.findall(r"^\s*(?:import|from) (\w+)", text, re.M)}
    theirs = imported - set(sys.stdlib_module_names) - {"adbench"}
    owners = packages_distributions()
    names = {module: {canonicalize_name(owner) for owner in owners.get(module, [])} for module in theirs}
    known = set(declared("perceptual", "prepare", "distributed", "mlflow", "wandb"))
    assert {module for module, owning in names.items() if owning and not owning & known} == set()
    assert set(declared()) - set().union(*names.values()) == UNUSED


def licence(name: str) -> str:
    """What the metadata of an installed package says."""
    about = distribution(name).metadata
    said = [about.get("License-Expression") or "", *(c for c in about.get_all("Classifier") or [] if "License ::" in c)]
    return " | ".join(filter(None, said)) or (about.get("License") or "")[:200] or "unknown"


def test_licences() -> None:
    """Of all that ``pip install adbench-mri[prepare]`` brings."""
    said = {name: licence(name) for name in sorted(needed("prepare"))}
    print("\n".join(f"{name}: {text}" for name, text in said.items()))
    assert {name: text for name, text in said.items() if not FREE.search(text) or STRICT.search(text)} == {}
