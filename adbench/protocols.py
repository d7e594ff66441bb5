"""Protocols: which slices train, which are scored, how the threshold is chosen. Data, versioned, part of every key."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from adbench.errors import unknown


@dataclass(frozen=True)
class Protocol:
    """One evaluation protocol.

    Attributes:
        name: what the user types.
        version: raised when a number under this protocol may change.
        summary: one line.
        train: which slices a method learns from.
        test: which slices are scored.
        threshold: where the threshold of ``dice@val`` comes from.
        domain: voxels that count ("brain").
        replicates: bootstrap replicates over test subjects.
        level: level of the percentile interval.
    """

    name: str
    version: str
    summary: str
    train: str
    test: str
    threshold: str
    domain: str = "brain"
    replicates: int = 1000
    level: float = 0.95

    def as_dict(self) -> dict[str, Any]:
        """Every field, for keys and records."""
        return asdict(self)


_LESION_FREE = "all lesion-free slices of the split `train` of the training source; lesion-free slices of its `val` to choose a checkpoint"
_ALL_TEST = "all slices of every subject of the split `test` that has a lesion mask (an empty mask counts)"
_VAL = "the threshold that maximises pooled Dice over the split `val` of the test dataset"

PROTOCOLS: dict[str, Protocol] = {
    p.name: p
    for p in (
        Protocol("phantom", "1", "Healthy phantoms train, phantoms with lesions test", _LESION_FREE, _ALL_TEST, _VAL),
        Protocol(
            "folder",
            "1",
            "Your slice folder: train/ trains, val/ chooses the threshold, test/ is scored",
            _LESION_FREE,
            _ALL_TEST,
            _VAL,
        ),
    )
}


def get(name: str) -> Protocol:
    """The protocol called ``name``; a ``UserError`` with the nearest name when there is none."""
    if name not in PROTOCOLS:
        raise unknown("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]
