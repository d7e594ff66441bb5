"""Protocols: which slices train, which are scored, how the threshold is chosen. Data (``protocols.yaml``), versioned, part of every key."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from adbench.config.yaml_text import read_own
from adbench.errors import UserError, unknown
from adbench.utils.hashing import canonical_json

Rule = Literal["all", "central", "middle", "largest-lesion", "spread"]  # see adbench.datasets.selection.scored


@dataclass(frozen=True)
class Protocol:
    """One evaluation protocol.

    Attributes:
        version: raised when a number under this protocol may change.
        threshold: where the threshold of ``dice@val`` comes from.
        domain: voxels that count: "brain", or "all", every voxel of the slices that are scored, background included.
        level: of the intervals over test subjects.
        train_on: dataset that trains; "": whatever ``--train-on`` names, else the test dataset itself.
        datasets: test datasets it is made for; empty: any.
        modalities: sequences it is made for, the default one first; empty: any.
        slices: which of a test subject's slices are scored, see :func:`adbench.datasets.selection.scored`.
        healthy: whether the test subjects are healthy.
        inserted: whether synthetic lesions are put into them.
        metrics: plug-in or additional metrics that it always measures.
        learns: which slices of a training volume are learned from, those with a lesion left out; a rule as ``slices``.
        threshold_on: "test": the subjects of the split ``val`` of the test dataset choose thresholds; "healthy": those of the
            training source that have no lesion.
        preset: rule of a paper, of :data:`adbench.metrics.presets.PRESETS`; maps are kept, and ``adbench eval`` applies it.
        columns: metrics of every run that tables show beside the headline ones.
    """

    name: str
    version: str
    summary: str
    train: str
    test: str
    threshold: str
    domain: Literal["brain", "all"] = "brain"
    level: float = 0.95
    train_on: str = ""
    datasets: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    slices: Rule = "all"
    healthy: bool = False
    inserted: bool = False
    metrics: tuple[str, ...] = ()
    learns: Literal["all", "middle"] = "all"
    threshold_on: Literal["test", "healthy"] = "test"
    preset: str = ""
    columns: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Every field, for keys and records; an optional one only where it says something, so that keys outlive new ones."""
        always = {"name", "version", "summary", "train", "test", "threshold", "domain", "level"}
        values = ((field, getattr(self, field.name)) for field in fields(self))
        return {
            field.name: list(value) if isinstance(value, tuple) else value
            for field, value in values
            if field.name in always or value != field.default
        }

    @cached_property
    def json_text(self) -> str:
        """:meth:`as_dict` as canonical JSON, for keys."""
        return canonical_json(self.as_dict())


def _made(entry: dict[str, Any]) -> Protocol:
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in entry.items()}
    return Protocol(**values)


def _crossed(source: str, whose: str, train: str, tests: dict[str, list[str]]) -> list[Protocol]:
    """From one training source to test sets: name -> its dataset and the sequences that both have."""
    return [
        Protocol(
            f"{source}->{short}",
            "1",
            f"Healthy {whose} train, {dataset} tests ({', '.join(modalities)})",
            train,
            _DATA["texts"]["all_test"],
            _DATA["texts"]["val"],
            train_on=source,
            datasets=(dataset,),
            modalities=tuple(modalities),
        )
        for short, (dataset, *modalities) in tests.items()
    ]


def _variants(base: Protocol) -> tuple[Protocol, Protocol]:
    """One slice a subject, as several papers score: easier than all slices, and not comparable with them."""
    central = replace(
        base,
        name=f"{base.name}-central-slice",
        summary=f"{base.summary}; the middle slice of each subject alone, to compare with papers",
        test="the middle slice of every subject of the split `test` that has a lesion mask",
        threshold=f"{base.threshold}, its middle slices alone",
        slices="central",
    )
    largest = replace(
        base,
        name=f"{base.name}-largest-lesion",
        summary=f"{base.summary}; the slice with the largest lesion of each subject alone, to compare with papers",
        test="the slice with most lesion voxels of every subject of the split `test` that has a lesion: chosen by its mask",
        threshold=f"{base.threshold}, the slice with most lesion voxels of each subject alone",
        slices="largest-lesion",
    )
    return central, largest


def _everywhere(base: Protocol) -> Protocol:
    """Background counts too, as in papers that pool whole slices: a background of equal low scores flatters AUROC."""
    return replace(
        base,
        name=f"{base.name}-all-voxels",
        summary=f"{base.summary}; every voxel of a slice counts, background included, to compare with papers",
        domain="all",
    )


_DATA = read_own(Path(__file__).with_suffix(".yaml"))
_BASES, _COMPARED, _PAPERS = ([_made(entry) for entry in _DATA[part]] for part in ("bases", "compared", "papers"))
PROTOCOLS: dict[str, Protocol] = {
    p.name: p
    for p in (
        *_BASES,
        *(_everywhere(base) for base in _BASES if not base.healthy),
        *(q for base in _COMPARED for q in (base, *_variants(base), _everywhere(base))),
        *(q for entry in _DATA["crossed"] for q in _crossed(**entry)),
        *_PAPERS,
    )
}
MAPS = _made(_DATA["maps"])
"""No run has it: of published results that were scored from maps on cases that no run was scored on."""


def get(name: str) -> Protocol:
    """The protocol called ``name``; a ``UserError`` with the nearest name when there is none."""
    if name == "ixi->isles":
        raise UserError(
            "There is no protocol ixi->isles: ISLES'22 has FLAIR, DWI and ADC, and IXI none of them. With a healthy BIDS cohort "
            "that has one there is bids->isles."
        )
    if name not in PROTOCOLS:
        raise unknown("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]


def of_result(name: object) -> Protocol | None:
    """The protocol of a published result; None when this adbench has none of that name."""
    if name == MAPS.name:
        return MAPS
    return PROTOCOLS.get(name) if isinstance(name, str) else None


def choose(name: str | None, dataset: str, own: str, train_on: str | None) -> Protocol:
    """The protocol of a run: the one asked for; else one made for this training source and dataset; else the dataset's own.

    Raises:
        UserError: it is not for this dataset, or trains on another source.
    """
    fitting = (p.name for p in PROTOCOLS.values() if train_on and p.train_on == train_on and dataset in p.datasets)
    protocol = get(name or next(fitting, own))
    if protocol.datasets and dataset not in protocol.datasets:
        raise UserError(
            f"The protocol {protocol.name} tests on {' or '.join(protocol.datasets)}, not on {dataset}: "
            "`adbench list protocols` shows which there are."
        )
    if protocol.train_on and train_on not in (None, protocol.train_on):
        raise UserError(
            f"The protocol {protocol.name} learns from {protocol.train_on}, not from {train_on}: leave --train-on out, or "
            "name another protocol such as --protocol folder, which learns from whatever --train-on names."
        )
    return protocol
