"""What this release knows of results before it sees one: its own methods' source, and the data that ships with it.

``known.json`` beside this module is made by ``python -m adbench.results.known`` (``make known``), never by hand::

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

import numpy as np

from adbench import __version__
from adbench.config import registry
from adbench.results.record import MethodPart, Record
from adbench.utils.files import write_json
from adbench.utils.hashing import digest

FILE = Path(__file__).with_name("known.json")
BUILT_IN = "built-in"


@cache
def known() -> dict[str, Any]:
    """The content of ``known.json``."""
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def sources(method: str, version: str) -> list[str] | None:
    """Hashes that the source of a built-in method may have, this checkout's last; None for a release nobody knows.

    Args:
        method: name of a built-in method.
        version: of adbench.
    """
    from adbench.runner.keys import source_digest

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


def methods(records: list[Record]) -> dict[str, Any]:
    """The parts ``methods`` and ``weights``.

    Args:
        records: of built-in methods, published; the hashes of their sources stay valid if they were valid.
    """
    from adbench.runner.keys import source_digest

    found: dict[str, dict[str, list[str]]] = dict(known()["methods"]) if FILE.exists() else {}
    used = {(record.method.name, record.method.source) for record in records}
    earlier = found.get(__version__, {})
    found[__version__] = {}
    for name in sorted(registry.BUILTIN["methods"]):
        own = source_digest("methods", name)
        kept = [source for source in earlier.get(name, []) if source != own and (name, source) in used]
        found[__version__][name] = [*kept, own]
    weights = {
        weights_key(record.method, record.test.grid): record.method.parameters
        for record in records
        if record.method.source in found.get(str(record.provenance.get("adbench")), {}).get(record.method.name, [])
    }
    return {"methods": found, "weights": dict(sorted(weights.items()))}


def data(dataset: str, modality: str, cache_folder: Path, **params: Any) -> dict[str, Any]:
    """What every result on a dataset that ships with adbench says about its slices.

    Args:
        dataset: one that needs no download.
        modality: of it.
        cache_folder: for its store.
        **params: of the dataset, where they are not its own.
    """
    from adbench.config import protocols
    from adbench.context import Progress
    from adbench.runner import plan
    from adbench.runner.keys import Source

    cls = registry.load("datasets", dataset)
    source = Source(dataset=dataset, root=None, params=cls.Params(**params).model_dump(mode="json"))
    gathered = plan.gather(source, None, modality, protocols.get(cls.info.protocol), cache_folder, Progress())
    found: dict[str, Any] = {"params": source.params, "protocol": cls.info.protocol}
    for role in ("train", "val", "threshold", "test"):
        part = getattr(gathered, role)
        found[role] = {
            "digest": part.digest,
            "subjects": sorted(part.subjects),
            "slices": len(part),
            "grid": list(part.shape),
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


def make(boards: Path, cache_folder: Path) -> dict[str, Any]:
    """The content of ``known.json`` as this checkout gives it.

    Args:
        boards: folder of leaderboards, whose results' sources stay valid and give numbers of weights.
        cache_folder: for the stores.
    """
    from adbench.leaderboard.submission import glance

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
    from adbench.config.run_config import default_cache

    write_json(FILE, make(Path("leaderboards"), default_cache()))
    print(FILE)
