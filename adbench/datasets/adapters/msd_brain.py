"""Task01 of the Medical Segmentation Decathlon: brain tumours in 4-D files (Antonelli et al. 2022, doi:10.1038/s41467-022-30695-9)."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import ClassVar

from adbench.datasets.adapters.scans import Expected, Scan
from adbench.datasets.adapters.volumes import IndexedVolumes
from adbench.datasets.base import DatasetInfo

CHANNELS = ("FLAIR", "T1", "T1CE", "T2")  # "modality" of the dataset.json that lies in the archive


class MSDBrain(IndexedVolumes):
    """Glioma, four sequences in one file, without skull; the lesion is the whole tumour, label > 0.

    The patients are those of BraTS'16 and '17 under other names: never train on one and test on the other.
    """

    info: ClassVar[DatasetInfo] = DatasetInfo(
        name="msd_brain",
        version="1",
        modalities=CHANNELS,
        licence="CC BY-SA 4.0",
        obtain="adbench data get msd_brain, or http://medicaldecathlon.com: Task01_BrainTumour.tar (7.1 GB)",
        layout="imagesTr/BRATS_{nnn}.nii.gz (4-D: FLAIR, T1, T1CE, T2) and labelsTr/BRATS_{nnn}.nii.gz",
        protocol="folder",
        citation="Antonelli et al. 2022, doi:10.1038/s41467-022-30695-9",
    )
    tars: ClassVar[bool] = True
    distributed: ClassVar[Expected] = Expected(
        sequences=CHANNELS,
        channels=CHANNELS,
        lesion=True,
        labels={0: "background", 1: "oedema", 2: "non-enhancing tumour", 3: "enhancing tumour"},
        shape=(240, 240, 155),
        zooms=(1.0, 1.0, 1.0),
        zero_background=True,
        skull=False,
    )

    def unmasked_by_design(self, scan: Scan) -> bool:
        """Whether it lies in ``imagesTs``, whose labels were not published."""
        return PurePosixPath(str(scan.first)).parent.name == "imagesTs"
