"""IXI: healthy T1, T2 and PD of three scanners, as distributed (brain-development.org)."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar, Literal

from adbench.datasets.adapters.scans import Expected
from adbench.datasets.adapters.volume_reader import VolumeParams
from adbench.datasets.adapters.volumes import IndexedVolumes
from adbench.datasets.base import DatasetInfo
from adbench.datasets.io.participants import IXI_SHEET, IXI_TABLE, Rows, read_ixi, table
from adbench.params import ParamSet, param

# T2 and PD are the two echoes of one acquisition: who lacks one lacks the other.
NO_T2 = ("IXI116", "IXI182", "IXI309", "IXI500")


class IXIParams(VolumeParams):
    """The recipe for whole heads, and how subjects are divided."""

    registration: Literal["none", "rigid", "affine"] = param(
        "affine", "how the volume is brought onto the MNI152 2009a 1 mm grid", source="adbench"
    )
    n4: bool = param(
        True,
        "correct the bias field inside the brain (N4)",
        source="Tustison et al. 2010, doi:10.1109/TMI.2010.2046908",
    )
    test_share: float = param(
        0.1, "share of the subjects that are tested (for false alarms)", source="adbench", ge=0.0, le=1.0
    )


class IXI(IndexedVolumes):
    """Healthy adults, T1, T2 and PD with skull, from Guy's Hospital (1.5 T), Hammersmith (HH, 3 T) and IOP (1.5 T).

    All scans of one IXI number are one subject, whatever else their names say, and have one role. Age and sex are read from
    ``IXI.csv``, the demographics saved as CSV, where it is in the root. T2 and PD lie on a grid of their own; the brain mask and the
    registration of the T1 are carried over to them.
    """

    info: ClassVar[DatasetInfo] = DatasetInfo(
        name="ixi",
        version="1",
        modalities=("T1", "T2", "PD"),
        licence="CC BY-SA 3.0",
        obtain=(
            "adbench data get ixi, or https://brain-development.org/ixi-dataset: IXI-T1.tar (4.5 GB), IXI-T2.tar and IXI-PD.tar "
            "(3.6 GB each)"
        ),
        layout="IXI{nnn}-{Guys|HH|IOP}-{nnnn}-{T1|T2|PD}.nii.gz in folders of any name and depth",
        protocol="ixi",
        citation="brain-development.org, EPSRC GR/S21533/02",
    )
    Params: ClassVar[type[ParamSet]] = IXIParams
    tars: ClassVar[bool] = True
    distributed: ClassVar[Expected] = Expected(
        sequences=("T1", "T2", "PD"),
        lesion=False,
        one_grid=False,
        known_missing=frozenset((subject, kind) for subject in NO_T2 for kind in ("T2", "PD")),
        companion="T1",
        healthy="IXI scanned healthy volunteers",
    )

    @cached_property
    def participants(self) -> Rows:
        """Age and sex by ``IXI.csv``, see :func:`adbench.datasets.io.participants.read_ixi`."""
        return read_ixi(self._root())

    def exclusions(self, modality: str) -> list[str]:
        """Also the spreadsheet of demographics, where it was not saved as CSV."""
        root, said = self._root(), super().exclusions(modality)
        if table(root, IXI_SHEET).is_file() and not table(root, IXI_TABLE).is_file():
            said.append(f"{IXI_SHEET}: not read; saved as {IXI_TABLE} beside it, it gives age and sex")
        return said
