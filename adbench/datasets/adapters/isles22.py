"""ISLES'22: FLAIR, DWI and ADC of acute strokes (Hernandez Petzsche et al. 2022, doi:10.1038/s41597-022-01875-5)."""

from __future__ import annotations

from typing import ClassVar

from adbench.datasets.adapters.scans import Expected
from adbench.datasets.adapters.volumes import IndexedVolumes
from adbench.datasets.base import DatasetInfo


class ISLES22(IndexedVolumes):
    """Acute stroke, drawn on DWI; FLAIR lies on another grid, to which the mask is brought by the nearest voxel.

    All subjects are patients: without a mask they are left out, never healthy.
    """

    info: ClassVar[DatasetInfo] = DatasetInfo(
        name="isles22",
        version="1",
        modalities=("FLAIR", "DWI", "ADC"),
        licence="CC BY 4.0",
        obtain="https://zenodo.org/records/7153326: ISLES-2022.zip, then `adbench data unpack`",
        layout=(
            "sub-strokecase{nnnn}/ses-0001/.../sub-strokecase{nnnn}_ses-0001_{FLAIR|dwi|adc}.nii.gz with "
            "derivatives/.../sub-strokecase{nnnn}_ses-0001_msk.nii.gz"
        ),
        protocol="folder",
        citation="Hernandez Petzsche et al. 2022, doi:10.1038/s41597-022-01875-5",
    )
    distributed: ClassVar[Expected] = Expected(
        sequences=("FLAIR", "DWI", "ADC"),
        lesion=True,
        labels={0: "background", 1: "stroke"},
        one_grid=False,
        drawn_on="DWI",
        skull=None,
    )
