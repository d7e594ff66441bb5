"""Makes ``adbench/results/known.json`` from this checkout: ``python -m adbench.leaderboard.make_known`` (``make known``).

Slices of real data, which do not ship, are published once, by their names and hashes, so that results on them can be checked::

    python -m adbench.leaderboard.make_known NAME MODALITY PROTOCOL DIR    writes adbench/results/published/NAME.json
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from adbench import __version__
from adbench.config import protocols, registry
from adbench.config.cell import Source
from adbench.config.run_config import default_cache
from adbench.config.source import source_digest
from adbench.context import Progress
from adbench.datasets.slices import LabelledSet, SliceSet
from adbench.leaderboard.submission import glance
from adbench.results.known import BUILT_IN, FILE, PUBLISHED, known, settings, slices, weights_key, weights_known
from adbench.results.record import Record
from adbench.runner.plan import gather
from adbench.utils.files import write_json


def methods(records: list[Record]) -> dict[str, Any]:
    """The parts ``methods``, ``settings`` and ``weights`` of ``known.json``.

    What other versions of adbench have stays as it is, but of those in development that no record is of. A source that was listed by hand gets the settings of this checkout:
    list it before they change.

    Args:
        records: of built-in methods, published; the hashes of their sources stay valid if they were valid.
    """
    before = known() if FILE.exists() else {}
    found: dict[str, dict[str, dict[str, list[str]]]] = dict(before.get("methods", {}))
    used = {(record.method.name, record.method.source): sorted(record.method.params) for record in records}
    made_by = {__version__, *(str(record.provenance.get("adbench")) for record in records)}
    found = {version: listed for version, listed in found.items() if ".dev" not in version or version in made_by}
    earlier = found.get(__version__, {})
    found[__version__] = {}
    for name in sorted(registry.BUILTIN["methods"]):
        own = source_digest("methods", name)
        kept = [source for source in earlier.get(name, []) if source != own and (name, source) in used]
        names = sorted(registry.load("methods", name).Params.model_fields)
        found[__version__][name] = {source: used[name, source] for source in kept} | {own: names}
    named: dict[str, dict[str, list[str]]] = {}
    for listed in found.values():
        for name, of_source in listed.items():
            named.setdefault(name, {}).update(of_source)
    said = {name: _settings(name, sources, before) for name, sources in sorted(named.items())}
    weights = {
        weights_key(record.method, record.test.grid): record.method.parameters
        for record in records
        if weights_known(record.method) and record.method.source in named.get(record.method.name, {})
    }
    return {"methods": found, "settings": said, "weights": dict(sorted(weights.items()))}


def _settings(name: str, sources: dict[str, list[str]], before: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Source -> :func:`adbench.results.known.settings`: as they were, of this checkout where they are new."""
    kept = before.get("settings", {}).get(name, {})
    if name not in registry.BUILTIN["methods"]:  # a method of another version
        return {source: kept[source] for source in sources if source in kept}
    cls, own = registry.load("methods", name), source_digest("methods", name)
    here = {source: settings(cls, names) for source, names in sources.items() if source == own or source not in kept}
    return {source: here.get(source) or kept[source] for source in sources}


def data(
    dataset: str, modality: str, cache_folder: Path, root: Path | None = None, protocol_name: str = "", **params: Any
) -> dict[str, Any]:
    """Facts about these slices that every result on them must state.

    Args:
        dataset: its name.
        modality: of it.
        cache_folder: for its store.
        root: folder of data that do not ship with adbench: of these a hash of every subject's slices is given too.
        protocol_name: that chooses the slices; "": that of the dataset.
        **params: of the dataset, where they are not its own.
    """
    source = replace(Source.resolve(dataset, None, params), root=str(root.resolve()) if root else None)
    protocol = protocols.get(protocol_name or source.dataset_class.info.protocol)
    gathered = gather(source, None, modality, protocol, cache_folder, Progress())
    found: dict[str, Any] = {"protocol": protocol.name}
    if not root:  # other parameters are other slices of a phantom; real ones are what they are, however they were read
        found["params"] = source.params.json_values
    for role in ("train", "val", "threshold", "test"):
        part = getattr(gathered, role)
        found[role] = {
            "digest": part.digest,
            "subjects": sorted(part.subjects),
            "slices": len(part),
            "grid": list(part.shape),
            **({"sha256": _hashes(part)} if root else {}),
        }
        if role in ("threshold", "test"):
            counted, lesion = part.counted(), part.lesions()
            ill = set(part.subject_index[part.lesion_voxels > 0].tolist())
            by_slice = [(lesion & counted).sum(axis=(1, 2)), (counted & ~lesion).sum(axis=(1, 2))]
            sums = np.transpose([np.bincount(part.subject_index, counts, len(part.subjects)) for counts in by_slice])
            found[role] |= {
                "lesion_subjects": len(ill),
                "voxels": dict(sorted(zip(part.subjects, sums.astype(int).tolist(), strict=True))),
            }
    return found


def _hashes(part: SliceSet) -> dict[str, str]:
    """Subject -> start of a SHA-256 of all that is stored of its slices."""
    states: dict[str, Any] = {}
    for position, subject in enumerate(part.batch(slice(None)).subjects):
        at = slice(position, position + 1)
        arrays = [part.images(at), part.brains(at), *([part.lesions(at)] if isinstance(part, LabelledSet) else [])]
        for array in arrays:
            states.setdefault(subject, hashlib.sha256()).update(array.tobytes())
    return {subject: state.hexdigest()[:16] for subject, state in sorted(states.items())}


def make(boards: Path, cache_folder: Path) -> dict[str, Any]:
    """The content of ``known.json`` as this checkout gives it; sources of the results in ``boards`` stay valid, and
    give numbers of weights.
    """
    paths = sorted(boards.glob("*/records/*.json"))
    records = [record for record in (glance(path).record for path in paths) if record.method.origin == BUILT_IN]
    shipped = {
        name: {modality: data(name, modality, cache_folder) for modality in cls.info.modalities}
        for name in registry.BUILTIN["datasets"]
        for cls in [registry.load("datasets", name)]
        if not cls.info.needs_root and name != "folder"
    }
    return methods(records) | {"data": shipped, "lists": known()["lists"] if FILE.exists() else {}}


if __name__ == "__main__":
    if published := sys.argv[1:]:
        name, modality, protocol, folder = published
        facts = data("folder", modality, default_cache(), root=Path(folder), protocol_name=protocol, name=name)
        rest = slices().get(name, {}).get(modality, {}).get("rest")  # patients of no role, added by hand, kept
        write_json(PUBLISHED / f"{name}.json", {modality: facts | ({"rest": rest} if rest else {})})
        print(PUBLISHED / f"{name}.json")
    else:
        write_json(FILE, make(Path("leaderboards"), default_cache()))
        print(FILE)
