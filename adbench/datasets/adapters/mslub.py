"""MSLUB: multiple sclerosis, Ljubljana (Lesjak et al. 2018, doi:10.1007/s12021-017-9348-7)."""

from __future__ import annotations

from typing import ClassVar

from adbench.datasets.adapters.scans import Expected
from adbench.datasets.adapters.volumes import IndexedVolumes
from adbench.datasets.base import DatasetInfo


class MSLUB(IndexedVolumes):
    """30 patients with multiple sclerosis: FLAIR, T1, contrast-enhanced T1 (T1WKS) and T2 on one grid, a consensus of three
    raters, a brain mask. What lies in a folder ``raw`` is not read. All subjects are patients.
    """

    info: ClassVar[DatasetInfo] = DatasetInfo(
        name="mslub",
        version="1",
        modalities=("FLAIR", "T1", "T1CE", "T2"),
        licence="CC BY 4.0",
        obtain=(
            "https://lit.fe.uni-lj.si/en/research/resources/3D-MR-MS: one zip a patient, then `adbench data unpack`; or clone "
            "https://github.com/muschellij2/open_ms_data and give its folder cross_sectional"
        ),
        layout="patient{nn}_{FLAIR|T1W|T1WKS|T2W|consensus_gt|brainmask}.nii.gz in folders of any name and depth",
        protocol="folder",
        citation="Lesjak et al. 2018, doi:10.1007/s12021-017-9348-7",
    )
    distributed: ClassVar[Expected] = Expected(
        sequences=("FLAIR", "T1", "T1CE", "T2"),
        lesion=True,
        labels={0: "background", 1: "white-matter lesion"},
        companion="T1",
    )
