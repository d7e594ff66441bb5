"""SOOP: acute strokes of the Stroke Outcome Optimization Project (OpenNeuro ds004889)."""

from __future__ import annotations

from typing import ClassVar

from adbench.datasets.adapters.scans import Expected
from adbench.datasets.adapters.volumes import IndexedVolumes
from adbench.datasets.base import DatasetInfo


class SOOP(IndexedVolumes):
    """Acute stroke on clinical scanners, in BIDS; masks are drawn on the TRACE image of diffusion, here called DWI.

    FLAIR and T1 lie on grids of their own, to which the mask is brought by the nearest voxel. The T1 gives them its brain
    mask and registration. All subjects are patients.
    """

    info: ClassVar[DatasetInfo] = DatasetInfo(
        name="soop",
        version="1",
        modalities=("FLAIR", "T1", "DWI", "ADC"),
        licence="CC0",
        obtain="https://openneuro.org/datasets/ds004889, or adbench data get soop",
        layout=(
            "sub-{n}/anat/sub-{n}_{T1w|FLAIR}.nii.gz, sub-{n}/dwi/sub-{n}_..._{trace|adc}.nii.gz, "
            "derivatives/lesion_masks/sub-{n}/dwi/sub-{n}_..._mask.nii.gz"
        ),
        protocol="folder",
        citation="Absher et al. 2024, doi:10.1038/s41597-024-03667-5",
    )
    distributed: ClassVar[Expected] = Expected(
        sequences=("FLAIR", "T1", "DWI", "ADC"),
        lesion=True,
        labels={0: "background", 1: "stroke"},
        one_grid=False,
        drawn_on="DWI",
        companion="T1",
        skull=None,
    )
