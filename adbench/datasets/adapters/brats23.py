"""BraTS 2023 and 2024: gliomas, metastases, meningiomas and tumours of children, skull-stripped, with masks (synapse.org)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import ClassVar, Literal

from adbench.datasets import issues
from adbench.datasets.adapters.scans import Expected
from adbench.datasets.adapters.volume_reader import VolumeParams
from adbench.datasets.adapters.volumes import CHOOSING, IndexedVolumes
from adbench.datasets.base import DatasetInfo
from adbench.datasets.io.filename_patterns import SETS, Named
from adbench.datasets.issues import Issue
from adbench.params import ParamSet, param

_OF_2023 = {0: "background", 1: "necrotic core", 2: "oedema and infiltration", 3: "enhancing tumour"}
# What a mask of each group holds. 2023 and 2024 differ in names alone where every label is tumour.
LABELS = {
    "GLI": {**_OF_2023, **SETS["brats23"].not_counted},
    "MET": {**_OF_2023, **SETS["brats23-met"].not_counted},
    "SSA": _OF_2023,
    "MEN": {**_OF_2023, 1: "non-enhancing tumour"},
    "PED": {0: "background", 1: "tumour", 2: "tumour", 3: "tumour", 4: "oedema"},
}


class BraTS23Params(VolumeParams):
    """Parameters of preprocessing and splits, and the tumour group to read."""

    group: Literal["", "GLI", "MET", "PED", "MEN", "SSA"] = param(
        "",
        "GLI (glioma), MET (metastases), PED (children), MEN (meningioma) or SSA (glioma, sub-Saharan Africa) where several "
        "lie below the root; empty: the one that is there",
        source="adbench",
    )


class BraTS23(IndexedVolumes):
    """Tumours of one BraTS group, T1, contrast-enhanced T1, T2 and FLAIR on one grid without skull.

    The patient is group and number, what follows is a visit. The lesion is the whole tumour: every label but the resection
    cavity, which is neither lesion nor healthy.
    """

    info: ClassVar[DatasetInfo] = DatasetInfo(
        name="brats23",
        version="1",
        modalities=("FLAIR", "T1", "T1CE", "T2"),
        licence="registration required, no redistribution",
        obtain="https://www.synapse.org/brats2023 or brats2024: register, then download the training data of a group",
        layout="BraTS-{GLI|MET|PED|MEN|SSA}-{nnnnn}-{nnn}-{t1n|t1c|t2w|t2f|seg}.nii.gz in folders of any name and depth",
        protocol="folder",
        citation="Baid et al. 2021, arXiv:2107.02314; Kazerooni et al. 2024, arXiv:2305.17033 (PED); LaBella et al. 2023, "
        "arXiv:2305.07642 (MEN); Moawad et al. 2023, arXiv:2306.00838 (MET); Adewole et al. 2023, arXiv:2305.19369 (SSA)",
    )
    Params: ClassVar[type[ParamSet]] = BraTS23Params
    params: BraTS23Params
    choosing: ClassVar[tuple[str, ...]] = (*CHOOSING, "group")
    tars: ClassVar[bool] = True
    distributed: ClassVar[Expected] = Expected(
        sequences=("T1", "T1CE", "T2", "FLAIR"),
        lesion=True,
        shape=(240, 240, 155),
        zooms=(1.0, 1.0, 1.0),
        zero_background=True,
        skull=False,
    )

    def named(self, path: str) -> Named | None:
        """By the name; files of a group that was not asked for are none of this dataset's."""
        found = super().named(path)
        wanted = self.params.group
        return found if found is None or not wanted or _group(found.subject) == wanted else None

    @cached_property
    def groups(self) -> Counter[str]:
        """Cases by group."""
        return Counter(_group(scan.subject) for scan in self.kept or self.index.scans)

    @property
    def expected(self) -> Expected:
        """With the labels of the group."""
        group = next(iter(self.groups))
        cavity = SETS[{"GLI": "brats23", "MET": "brats23-met"}.get(group, "brats23-other")].not_counted
        return replace(self.distributed, labels=LABELS[group], not_counted=tuple(cavity))

    def faults(self) -> Iterator[Issue]:
        """Also groups that are mixed: their labels differ."""
        yield from super().faults()
        listed = " and ".join(f"BraTS-{group} ({count} cases)" for group, count in sorted(self.groups.items()))
        if len(self.groups) > 1:
            message = f"{self.root} mixes {listed}, whose labels differ: choose one with --set dataset.group={min(self.groups)}."
            yield issues.error("conflict", self._root(), message)


def _group(subject: str) -> str:
    """The group in a name: "PED" of "BraTS-PEDs-00001"."""
    group = subject.split("-")[1].upper()
    return group.removesuffix("S")
