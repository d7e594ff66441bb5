"""Known facts that published results are checked against: sources of the methods, shipped data, passed conformance tests.

``known.json`` beside this module is made by ``python -m adbench.leaderboard.make_known`` (``make known``), never by hand::

    {
      "methods": {adbench version: {method: {hash of its source: [names of its parameters]}}},
      "settings": {method: {hash of its source: {preset: hash of :func:`settings`}}},
      "weights": {hash of method, parameters and grid: number of weights},
      "data":    {dataset: {modality: {"params": …, role: {"digest": …, "subjects": […], "voxels": {subject: [lesion, other]}, …}}}},
      "lists":   {protocol: {role: [subjects]}}      lists that were published; added by hand, kept by the command
    }

``published/NAME.json`` says the same about slices of real data called NAME, which do not ship: ``{modality: {role: …}}``,
with the start of a SHA-256 of every subject's slices.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from adbench import __version__
from adbench.config import registry
from adbench.config.run_config import default_cache
from adbench.config.source import source_digest
from adbench.errors import UserError
from adbench.methods.base import Method
from adbench.results.record import MethodPart
from adbench.utils.files import write_json
from adbench.utils.hashing import digest
from adbench.utils.named_files import names_files

FILE = Path(__file__).with_name("known.json")
PUBLISHED = FILE.with_name("published")
BUILT_IN = "built-in"


@cache
def known() -> dict[str, Any]:
    """The content of ``known.json``."""
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


@cache
def slices() -> dict[str, Any]:
    """Dataset -> modality -> facts by role: slices that ship with adbench, and those of real data that were published."""
    real = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(PUBLISHED.glob("*.json"))}
    return {**known()["data"], **real}


@cache
def lists() -> dict[str, dict[str, list[str]]]:
    """Protocol -> role -> subjects: the lists that a result under this protocol must have."""
    real = [facts for name, parts in slices().items() if name not in known()["data"] for facts in parts.values()]
    roles = ("train", "val", "threshold", "test")
    return {
        **known()["lists"],
        **{facts["protocol"]: {role: facts[role]["subjects"] for role in roles} for facts in real},
    }


def releases(method: str, source: str) -> list[str]:
    """Versions of adbench in which a built-in method has this source, in their order; this checkout is one of them."""
    found = [version for version, listed in known()["methods"].items() if source in listed.get(method, {})]
    here = __version__ not in found and source == source_digest("methods", method)
    return [*found, __version__] if here else found


def has_source(method: str, source: str, version: str) -> bool:
    """Whether a built-in method has this source in a version of adbench."""
    listed = source in known()["methods"].get(version, {}).get(method, {})
    return listed or (version == __version__ and source == source_digest("methods", method))


def is_release(version: str) -> bool:
    """Whether this checkout knows the sources of that version of adbench."""
    return version == __version__ or version in known()["methods"]


def sources(method: str, version: str) -> list[str]:
    """Hashes that the source of a built-in method has in a version of adbench, this checkout's last."""
    own = [source_digest("methods", method)] if version == __version__ else []
    return [*(source for source in known()["methods"].get(version, {}).get(method, {}) if source not in own), *own]


def parameters(method: str, source: str) -> list[str] | None:
    """Names of the parameters that a built-in method of this ``source`` has; None for a source that no release has."""
    blocks = (listed.get(method, {}) for listed in known()["methods"].values())
    return next((names[source] for names in blocks if source in names), None)


def is_released(method: str, origin: str, source: str) -> bool:
    """Whether a release of adbench has this method with this source."""
    return origin == BUILT_IN and any(source in listed.get(method, {}) for listed in known()["methods"].values())


def settings(cls: type[Method], names: Collection[str]) -> dict[str, str]:
    """Preset -> hash of what a method says of it: its version, the values of the named parameters, the steps that it takes."""
    found = {}
    for preset in sorted(cls.presets):
        params = cls.resolve(preset, {})
        values = {name: value for name, value in params.model_dump(mode="json").items() if name in names}
        found[preset] = digest([cls.version, values, cls.budget(params)])[:16]
    return found


def presets_of(method: str, source: str) -> list[str]:
    """The presets that a built-in method of this ``source`` has; none where the source is not listed."""
    return sorted(known()["settings"].get(method, {}).get(source, {}))


def presets_changed(method: str, source: str) -> set[str]:
    """The presets of which a built-in method says something else here than with this ``source``."""
    listed = known()["settings"].get(method, {}).get(source, {})
    here = settings(registry.load("methods", method), parameters(method, source) or ()) if listed else {}
    changed = {preset for preset, said in listed.items() if here.get(preset) != said}
    return changed if changed and source != source_digest("methods", method) else set()


def weights(method: MethodPart, grid: tuple[int, int]) -> int | None:
    """Number of weights of a built-in method with its parameters; None where it is not known.

    A parameter that a source of it had not yet, and that is as the preset of this checkout leaves it, changes nothing:
    what is known under the parameters of one source is known under those of all.
    """
    listed, cls = known()["weights"], registry.load("methods", method.name)
    if not weights_known(method):
        return None
    named = [frozenset(names) for own in known()["methods"].values() for names in own.get(method.name, {}).values()]
    try:
        full = cls.resolve(method.preset, method.params).model_dump(mode="json")
        alike = [
            params
            for names in {*named, frozenset(full)}
            for params in [{name: value for name, value in full.items() if name in names}]
            if cls.resolve(method.preset, params).model_dump(mode="json") == full
        ]
    except UserError:  # parameters of another release, or none at all
        alike = []
    keys = (weights_key(method.model_copy(update={"params": params}), grid) for params in (method.params, *alike))
    return next((listed[key] for key in keys if key in listed), None)


def weights_known(method: MethodPart) -> bool:
    """Whether parameters and grid decide the number of weights of a built-in method: no data, no file of the user's."""
    cls = registry.load("methods", method.name)
    return not cls.sized_by_data and not names_files(cls.Params, method.params)


def weights_key(method: MethodPart, grid: tuple[int, int]) -> str:
    """Hash of all that decides the number of weights of a built-in method."""
    return digest([method.name, method.params, list(grid)])[:16]


def _conformance_file(source: str) -> Path:
    return default_cache() / "conformance" / f"{source}.json"


def keep_conformance(source: str, broken: Sequence[str]) -> None:
    """Write down the outcome of ``adbench test``.

    Args:
        source: :func:`adbench.config.source.source_digest` of the method that was tested.
        broken: names of the rules that it breaks.
    """
    write_json(_conformance_file(source), {"source": source, "adbench": __version__, "broken": list(broken)})


def conformance(method: str, origin: str, source: str) -> str:
    """ "passed", "failed" or "not run": whether ``adbench test`` was passed by a method with this very source.

    The tests of adbench hold its own methods against the same rules before their source enters ``known.json``.

    Args:
        method: its name.
        origin: "built-in" or a distribution.
        source: hash of its source.
    """
    if is_released(method, origin, source):
        return "passed"
    try:
        found = json.loads(_conformance_file(source).read_text(encoding="utf-8"))
        return "failed" if found["broken"] else "passed"
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return "not run"
