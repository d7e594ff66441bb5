"""ATLAS v2.0: T1 of stroke patients on the MNI grid, with lesion masks (Liew et al. 2022, doi:10.1038/s41597-022-01401-7)."""

from __future__ import annotations

from pathlib import PurePath
from typing import ClassVar

from adbench.datasets.adapters.scans import Expected, Scan
from adbench.datasets.adapters.volume_reader import VolumeParams
from adbench.datasets.adapters.volumes import IndexedVolumes
from adbench.datasets.base import DatasetInfo
from adbench.params import ParamSet, param

# Subjects that public exclusion lists name for artefacts.
ARTEFACTS = {
    "r001": "s027",
    "r005": "s046 s058",
    "r009": "s001 s005 s007 s008 s039 s044 s050 s061 s067 s096 s115 s126",
    "r018": "s011",
    "r023": "s002 s008",
    "r027": "s050",
    "r028": "s026",
    "r038": "s043 s084",
    "r047": "s035",
    "r048": "s015",
}
FLAGGED = frozenset(f"sub-{site}{number}" for site, numbers in ARTEFACTS.items() for number in numbers.split())


class AtlasParams(VolumeParams):
    """The recipe for whole heads on the MNI grid, and how subjects are divided."""

    val_share: float = param(
        0.2, "share of the subjects that choose the threshold, drawn within each site", source="adbench", ge=0.0, le=0.5
    )
    test_share: float = param(
        0.8, "share of the subjects that are tested, drawn within each site", source="adbench", ge=0.0, le=1.0
    )
    exclude_flagged: bool = param(
        False, "leave out the subjects that public lists name for artefacts", source="adbench"
    )


class Atlas(IndexedVolumes):
    """Stroke, T1 with skull on the MNI152 2009a symmetric 1 mm grid, one lesion mask a subject.

    The site is the cohort in the subject's name (``r009``). Subjects without a mask (the folder ``Testing``) are found
    and left out. Subjects with known artefacts are kept and flagged; ``exclude_flagged`` leaves them out, and all others
    keep their role. All subjects validate or are tested by default: healthy slices come from another source.
    """

    info: ClassVar[DatasetInfo] = DatasetInfo(
        name="atlas",
        version="1",
        modalities=("T1",),
        licence="data-use agreement of INDI, no redistribution",
        obtain="https://fcon_1000.projects.nitrc.org/indi/retro/atlas.html: sign the agreement, decrypt and unpack",
        layout=(
            "sub-r{nnn}s{nnn}_ses-1_space-MNI152NLin2009aSym_T1w.nii.gz with ..._label-L_desc-T1lesion_mask.nii.gz, in "
            "folders of any name and depth; or Images/ and Masks/ with equal names"
        ),
        protocol="ixi->atlas",
        citation="Liew et al. 2022, doi:10.1038/s41597-022-01401-7",
    )
    Params: ClassVar[type[ParamSet]] = AtlasParams
    params: AtlasParams
    distributed: ClassVar[Expected] = Expected(
        sequences=("T1",),
        lesion=True,
        labels={0: "background", 1: "stroke"},
        shape=(197, 233, 189),
        zooms=(1.0, 1.0, 1.0),
        orientation="RAS",
        on_template=True,
    )

    def flags_of(self, subject: str) -> tuple[str, ...]:
        """``artefact`` for the subjects of the public lists."""
        return ("artefact",) if subject.lower() in FLAGGED else ()

    def unmasked_by_design(self, scan: Scan) -> bool:
        """Whether it lies in the folder ``Testing`` (or ``test``) below the root."""
        below = PurePath(str(scan.files["T1"])).relative_to(self._root())
        return any(part.lower() in ("testing", "test") for part in below.parts)

    def _why_not(self, scan: Scan, modality: str) -> str:
        if self.params.exclude_flagged and scan.flags:
            return f"it is flagged ({', '.join(scan.flags)}) and dataset.exclude_flagged is set"
        return super()._why_not(scan, modality)
