"""BraTS'21: four sequences of glioma patients, skull-stripped, with masks (Baid et al. 2021, arXiv:2107.02314)."""

from __future__ import annotations

from typing import ClassVar

from adbench.datasets.base import DatasetInfo
from adbench.datasets.volumes import Expected, IndexedVolumes, VolumeParams
from adbench.params import ParamSet


class BraTS21(IndexedVolumes):
    """Glioma, T1, contrast-enhanced T1, T2 and FLAIR on one grid without skull; the lesion is the whole tumour, mask > 0.

    Training takes the tumour-free slices of the training subjects: not healthy anatomy, since a tumour displaces tissue
    far away from it. An uncompressed tar of the whole dataset is read in place.
    """

    info: ClassVar[DatasetInfo] = DatasetInfo(
        name="brats21",
        version="1",
        modalities=("FLAIR", "T1", "T1CE", "T2"),
        licence="registration required, no redistribution",
        obtain="https://www.synapse.org/brats2021 (task 1): register, then download the training data",
        layout=(
            "BraTS2021_{nnnnn}_{t1|t1ce|t2|flair|seg}.nii.gz in folders of any name and depth, or in one uncompressed tar"
        ),
        protocol="brats21",
    )
    Params: ClassVar[type[ParamSet]] = VolumeParams
    family: ClassVar[str] = "brats21"
    tars: ClassVar[bool] = True
    distributed: ClassVar[Expected] = Expected(
        sequences=("T1", "T1CE", "T2", "FLAIR"),
        lesion=True,
        labels={0: "background", 1: "necrotic core", 2: "oedema", 4: "enhancing tumour"},
        shape=(240, 240, 155),
        zooms=(1.0, 1.0, 1.0),
        orientation="LPS",
        integers=True,
        zero_background=True,
    )

    @property
    def skull(self) -> bool:
        return False

    def companion_of(self, modality: str) -> str:
        """None is needed."""
        return modality
