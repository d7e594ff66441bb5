"""The white-matter-hyperintensity challenge of 2017 (Kuijf et al. 2019, doi:10.1109/TMI.2019.2905770)."""

from __future__ import annotations

from typing import ClassVar

from adbench.datasets.adapters.scans import Expected
from adbench.datasets.adapters.volumes import IndexedVolumes
from adbench.datasets.base import DatasetInfo


class WMH(IndexedVolumes):
    """White-matter hyperintensities in FLAIR of five scanners, with a T1 on the same grid, skull present.

    ``pre`` (bias-corrected) is read, ``orig`` where there is no ``pre``. Label 2 is another disease: its voxels do not count,
    as in the challenge, and slices that hold it and no hyperintensity are left out. All subjects are patients.
    """

    info: ClassVar[DatasetInfo] = DatasetInfo(
        name="wmh",
        version="1",
        modalities=("FLAIR", "T1"),
        licence="CC BY-NC 4.0",
        obtain="https://doi.org/10.34894/AECRSD (DataverseNL): training and test, then `adbench data unpack`",
        layout="{Utrecht|Singapore|Amsterdam/GE3T}/{id}/{pre|orig}/{FLAIR|T1}.nii.gz with {id}/wmh.nii.gz",
        protocol="folder",
        citation="Kuijf et al. 2019, doi:10.1109/TMI.2019.2905770",
    )
    distributed: ClassVar[Expected] = Expected(
        sequences=("FLAIR", "T1"),
        lesion=True,
        labels={0: "background", 1: "white-matter hyperintensity", 2: "other disease"},
        not_counted=(2,),
        companion="T1",
    )
