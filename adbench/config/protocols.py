"""Protocols: which slices train, which are scored, how the threshold is chosen. Data, versioned, part of every key."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal

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


_LESION_FREE = "all lesion-free slices of the split `train` of the training source; lesion-free slices of its `val` to choose a checkpoint"
_ALL_TEST = "all slices of every subject of the split `test` that has a lesion mask (an empty mask counts)"
_VAL = "the threshold that maximises pooled Dice over the split `val` of the test dataset"
_IXI = "all slices of the IXI subjects of the split `train`; those of its `val` to choose a checkpoint"
_TUMOUR_FREE = (
    "tumour-free slices of the BraTS'21 subjects of the split `train`, which are not healthy anatomy (mass effect); "
    "those of its `val` to choose a checkpoint"
)
_HEALTHY = "no threshold maximises Dice without a lesion; `fpr1` and `fpr5` come from the healthy subjects of `val`"

_INSERTED = Protocol(
    "ixi-inserted",
    "1",
    "Healthy IXI subjects train; others get synthetic lesions: it tells methods apart, it does not measure them",
    _IXI,
    "16 evenly spread slices of every IXI subject of the split `test`, synthetic lesions in half of them",
    "the threshold that maximises pooled Dice over slices of the split `val`, made the same way",
    train_on="ixi",
    datasets=("ixi",),
    slices="spread",
    healthy=True,
    inserted=True,
)
_BASES = (
    Protocol("phantom", "1", "Healthy phantoms train, phantoms with lesions test", _LESION_FREE, _ALL_TEST, _VAL),
    Protocol(
        "folder",
        "1",
        "Your slice folder: train/ trains, val/ chooses the threshold, test/ is scored",
        _LESION_FREE,
        _ALL_TEST,
        _VAL,
    ),
    Protocol(
        "soop-flair",
        "1",
        "Real strokes: lesion-free FLAIR slices of SOOP patients train, 36 others test, one slice each",
        "the 165 lesion-free slices of the split `train`, of patients with a stroke elsewhere; those of `val` to choose a checkpoint",
        "the slices of the 36 patients of the split `test` that adbench/results/published/soop-flair.json lists",
        _VAL,
        modalities=("FLAIR",),
    ),
    Protocol(
        "ixi",
        "1",
        "Healthy IXI subjects train, others are scored for false alarms",
        _IXI,
        "all slices of every IXI subject of the split `test`, all of them healthy",
        _HEALTHY,
        train_on="ixi",
        datasets=("ixi",),
        healthy=True,
        metrics=("alarms@fpr1", "alarms@fpr5"),
    ),
    _INSERTED,
)
_COMPARED = (
    Protocol(
        "ixi->atlas",
        "1",
        "Healthy IXI subjects train, ATLAS v2.0 strokes test (T1)",
        _IXI,
        _ALL_TEST,
        _VAL,
        train_on="ixi",
        datasets=("atlas",),
        modalities=("T1",),
    ),
    Protocol(
        "brats21",
        "2",  # without the second scans of patients who have another number: see docs/datasets.md
        "Tumour-free slices of BraTS'21 subjects train, other subjects test",
        _TUMOUR_FREE,
        _ALL_TEST,
        _VAL,
        train_on="brats21",
        datasets=("brats21",),
    ),
    Protocol(
        "ixi->brats21",
        "2",
        "Healthy IXI subjects train, BraTS'21 tumours test (T2, T1)",
        _IXI,
        _ALL_TEST,
        _VAL,
        train_on="ixi",
        datasets=("brats21",),
        modalities=("T2", "T1"),
    ),
)

# Training source -> test set as protocols call it -> (dataset, sequences that both have).
_CROSS: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {
    "ixi": {
        "brats23": ("brats23", ("T2", "T1")),
        "msd": ("msd_brain", ("T2", "T1")),
        "mslub": ("mslub", ("T2", "T1")),
        "soop": ("soop", ("T1",)),
        "wmh": ("wmh", ("T1",)),
    },
    "bids": {
        "atlas": ("atlas", ("T1",)),
        "brats21": ("brats21", ("FLAIR", "T2", "T1")),
        "brats23": ("brats23", ("FLAIR", "T2", "T1")),
        "isles": ("isles22", ("FLAIR", "DWI", "ADC")),
        "msd": ("msd_brain", ("FLAIR", "T2", "T1")),
        "mslub": ("mslub", ("FLAIR", "T2", "T1")),
        "soop": ("soop", ("FLAIR", "T1", "DWI", "ADC")),
        "wmh": ("wmh", ("FLAIR", "T1")),
    },
}
_HEALTHY_COHORT = "all slices of the healthy subjects of the split `train` of a BIDS cohort; those of its `val` to choose a checkpoint"
_CROSSED = tuple(
    Protocol(
        f"{source}->{short}",
        "1",
        f"Healthy {'IXI subjects' if source == 'ixi' else 'subjects of a BIDS cohort'} train, {dataset} tests ({', '.join(modalities)})",
        _IXI if source == "ixi" else _HEALTHY_COHORT,
        _ALL_TEST,
        _VAL,
        train_on=source,
        datasets=(dataset,),
        modalities=modalities,
    )
    for source, tests in _CROSS.items()
    for short, (dataset, modalities) in tests.items()
)
_SLICE_RULES = ("slice05", "slice10")
_PAPERS = (
    Protocol(
        "reflect-strict",
        "1",
        "The middle 20 slices of every volume, with lesion or without, the threshold from validation (REFLECT, strictly)",
        "lesion-free slices among the middle 20 of every volume of the split `train` of the training source; those of its "
        "`val` to choose a checkpoint",
        "the middle 20 slices of every volume of the split `test` that has a lesion mask (an empty mask counts)",
        f"{_VAL}, its middle 20 slices alone; slice05 and slice10 come from the lesion-free ones among them",
        slices="middle",
        learns="middle",
        metrics=(
            *(f"dice_{kind}@val" for kind in ("pooled", "slice")),
            *(f"{kind}@{rule}" for rule in _SLICE_RULES for kind in ("dice_pooled", "dice_slice", "fa_slice")),
        ),
    ),
    Protocol(
        "reflect-one-slice",
        "1",
        "The slice with the largest lesion alone, the threshold from the test slices: an oracle (REFLECT, MAD-AD as published)",
        _LESION_FREE,
        "the slice with most lesion voxels of every subject of the split `test` that has a lesion: chosen by its mask",
        "an oracle, see the preset `reflect`; `val` stands beside it",
        slices="largest-lesion",
        preset="reflect",
    ),
    Protocol(
        "pddpm",
        "1",
        "Healthy IXI subjects train, BraTS'21 or MSLUB tests (T2), with the post-processing of pDDPM and cDDPM",
        _IXI,
        _ALL_TEST,
        f"{_VAL}; as published by the preset `cddpm`",
        train_on="ixi",
        datasets=("brats21", "mslub"),
        modalities=("T2",),
        preset="cddpm",
    ),
    Protocol(
        "uad-imag",
        "1",
        "Thresholds by the false-positive rate of healthy validation subjects of the training source, no lesion needed (UAD-IMAG)",
        _LESION_FREE,
        _ALL_TEST,
        "1 % and 5 % of the voxels of the lesion-free subjects of the split `val` of the training source",
        threshold_on="healthy",
        metrics=("alarms@fpr1", "alarms@fpr5"),
        columns=("dice@fpr1", "dice@fpr5"),
    ),
    Protocol(
        "upd",
        "1",
        "All slices, by the rules of the UPD study: brain-masked maps, all pixels pooled, an oracle threshold",
        _LESION_FREE,
        _ALL_TEST,
        "an oracle, see the preset `upd`; `val` stands beside it",
        preset="upd",
    ),
    replace(
        _INSERTED,
        name="mood",
        summary="Healthy IXI subjects train, others get synthetic objects: average precision by voxel, by slice and by object (MOOD's tasks)",
        columns=("image_auprc@max", "image_auroc@max", "lesion_f1@val", "froc"),
    ),
)


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


PROTOCOLS: dict[str, Protocol] = {
    p.name: p
    for p in (
        *_BASES,
        *(_everywhere(base) for base in _BASES if not base.healthy),
        *(q for base in _COMPARED for q in (base, *_variants(base), _everywhere(base))),
        *_CROSSED,
        *_PAPERS,
    )
}

MAPS = Protocol(
    "maps",
    "1",
    "Anyone's maps against anyone's masks, by `adbench eval --maps`: no method was run here",
    "what the row says; nothing shows it",
    "all cases that were given",
    "the threshold that maximises pooled Dice over validation maps, where some were given",
)
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
