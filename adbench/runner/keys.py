"""Cache keys of fits and runs.

A key is the hash of an *identity*: a plain dictionary of everything that may change the numbers, and of nothing else
(no device, path, worker or executor). The identity is stored in the record, so two keys can be compared field by field.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from adbench.config.cell import Cell
from adbench.config.source import measure_digest, source_digest
from adbench.datasets.io.archive import state_of
from adbench.datasets.slices import LabelledSet, SliceSet
from adbench.methods.base import Method
from adbench.utils.hashing import canonical_json, digest, digest_file, digest_parts

METRICS_VERSION = "3"  # raised when the definition or computation of any stored number changes
# What run_identity adds to fit_identity.
RUN_ONLY = frozenset(
    {
        "scoring",
        "protocol",
        "post",
        "metrics_version",
        "measure_source",
        "threshold_slices",
        "test_slices",
        "scored_with",
    }
)


def fit_identity(cell: Cell, train: SliceSet, val: SliceSet | None) -> dict[str, Any]:
    """All that decides the outcome of fitting the method of ``cell`` on these slices; not what only scores."""
    return {
        "method": cell.method,
        "method_version": cell.method_class.version,
        "method_source": source_digest("methods", cell.method),
        "preset": cell.preset,
        "params": cell.params.trained_values,
        "files": [_content(path) for path in _named_files(cell)],
        "seed": cell.seed,
        "modality": cell.modality,
        "train_slices": train.digest,
        "val_slices": val.digest if val is not None else None,
        **({"members": members} if (members := [_member(one) for one in cell.members]) else {}),
    }


def _member(cell: Cell) -> dict[str, Any]:
    """What decides a member and its maps beside what all of them share; its seed follows from that of the whole."""
    return {
        "method": cell.method,
        "method_version": cell.method_class.version,
        "method_source": source_digest("methods", cell.method),
        "params": cell.params.json_values,
        "files": [_content(path) for path in _named_files(cell)],
    }


def sources_now(identity: dict[str, Any]) -> dict[str, str]:
    """Name -> hash of the source here, of the method in ``identity`` and its members whose source is another one here."""
    parts = [identity, *identity.get("members", ())]
    now = {part["method"]: source_digest("methods", part["method"]) for part in parts}
    return {part["method"]: now[part["method"]] for part in parts if part["method_source"] != now[part["method"]]}


def scoring_identity(cell: Cell) -> dict[str, Any]:
    """What decides the maps of a fit of ``cell`` beside the fit: parameters that only score, and what is done to maps."""
    parts = {"scoring": cell.params.scoring_values, "post": cell.post.done}
    return {name: part for name, part in parts.items() if part}


def run_identity(fit: dict[str, Any], cell: Cell, threshold: LabelledSet, test: LabelledSet) -> dict[str, Any]:
    """All that decides the numbers: the fit, the protocol, and the slices that choose the threshold and that are scored.

    Metrics that are asked for beside the others change no number of theirs, so they make no other run of it.
    """
    others = sources_now(fit)
    return {
        **fit,
        # A shared fit that was made by other code; of an ensemble, of any of it.
        **({"scored_with": others.get(cell.method) or digest(others)} if others else {}),
        "protocol": cell.protocol.as_dict(),
        **scoring_identity(cell),
        "metrics_version": METRICS_VERSION,
        "measure_source": measure_digest(),
        "threshold_slices": threshold.digest,
        "test_slices": test.digest,
    }


def key_of(identity: dict[str, Any], cell: Cell) -> str:
    """The hash of an identity of ``cell``."""
    shared = {"protocol": cell.protocol.json_text}
    if cell.fit is None:  # an earlier adbench may have made it, with all parameters in its key
        shared["params"] = cell.params.trained_text
    return digest_parts({name: shared.get(name) or canonical_json(value) for name, value in identity.items()})


def _named_files(cell: Cell) -> list[Path]:
    if getattr(cell.method_class.files, "__func__", None) is Method.files.__func__:  # type: ignore[attr-defined]
        return []  # it names none, and need not be asked ten thousand times
    found: list[Path] = cell.method_class.files(cell.params)
    return found


def _content(path: Path) -> str:
    """SHA-256 of a file, read once for all cells."""
    return _read(path, tuple(state_of(path).values()))


@lru_cache(maxsize=256)
def _read(path: Path, state: tuple[int, ...]) -> str:
    return digest_file(path)
