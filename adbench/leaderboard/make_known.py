"""Makes ``adbench/results/known.json`` from this checkout: ``python -m adbench.leaderboard.make_known`` (``make known``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from adbench import __version__
from adbench.config import protocols, registry
from adbench.config.cell import Source
from adbench.config.run_config import default_cache
from adbench.config.source import source_digest
from adbench.context import Progress
from adbench.leaderboard.submission import glance
from adbench.results.known import BUILT_IN, FILE, known, weights_key
from adbench.results.record import Record
from adbench.runner.plan import gather
from adbench.utils.files import write_json


def methods(records: list[Record]) -> dict[str, Any]:
    """The parts ``methods`` and ``weights`` of ``known.json``.

    Args:
        records: of built-in methods, published; the hashes of their sources stay valid if they were valid.
    """
    found: dict[str, dict[str, dict[str, list[str]]]] = dict(known()["methods"]) if FILE.exists() else {}
    used = {(record.method.name, record.method.source): sorted(record.method.params) for record in records}
    earlier = found.get(__version__, {})
    found[__version__] = {}
    for name in sorted(registry.BUILTIN["methods"]):
        own = source_digest("methods", name)
        kept = [source for source in earlier.get(name, []) if source != own and (name, source) in used]
        names = sorted(registry.load("methods", name).Params.model_fields)
        found[__version__][name] = {source: used[name, source] for source in kept} | {own: names}
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
    source = Source.resolve(dataset, None, params)
    protocol = protocols.get(source.dataset_class.info.protocol)
    gathered = gather(source, None, modality, protocol, cache_folder, Progress())
    found: dict[str, Any] = {"params": source.params.json_values, "protocol": protocol.name}
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
    write_json(FILE, make(Path("leaderboards"), default_cache()))
    print(FILE)
