"""Every layout that ``adbench data synth`` writes, which dataset reads it, and with which parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PHANTOMS = ("ixi", "atlas", "brats21")  # as whole heads on the true grids; all others are small
_AS_IT_LIES = "registration=none n4=false"


@dataclass(frozen=True)
class Layout:
    """How a real dataset lies on disk.

    Attributes:
        title: what it is.
        dataset: that reads it.
        options: parameters of it that the layout needs, ``name=value`` with spaces between.
        write: the function of :mod:`adbench.datasets.phantom.small_layouts` that writes a small one.
        how: its arguments beside root and number.
        tar: whether all of it lies in one tar.
    """

    title: str
    dataset: str
    options: str = ""
    write: str = ""
    how: Mapping[str, Any] = field(default_factory=dict)
    tar: bool = False


LAYOUTS = {
    "ixi": Layout("IXI", "ixi", f"{_AS_IT_LIES} brain=background", "ixi"),
    "ixi-bet": Layout("IXI, `…_bet` with `…_bet_mask`", "ixi", _AS_IT_LIES, "ixi_bet"),
    "ixi-pddpm": Layout("IXI of pDDPM (`t2/`, `mask/`)", "ixi", _AS_IT_LIES, "pddpm_ixi"),
    "atlas": Layout("ATLAS `Training/`", "atlas", "brain=background", "atlas"),
    "atlas-derivatives": Layout(
        "ATLAS `derivatives/ATLAS/`", "atlas", "brain=background", "atlas", {"below": "derivatives/ATLAS"}
    ),
    "atlas-flat": Layout("ATLAS `Images/`, `Masks/`", "atlas", "brain=background", "atlas", {"below": ""}),
    "brats21": Layout("BraTS'21", "brats21", "", "brats21"),
    "brats21-tar": Layout("BraTS'21, one tar", "brats21", "", "brats21", tar=True),
    "brats21-folders": Layout("BraTS'21, folders named `.nii`", "brats21", "", "brats21", {"folders": True}),
    "brats23": Layout("BraTS 2023/24", "brats23", "", "brats23"),
    "brats23-ped": Layout("BraTS 2023/24, PED", "brats23", "", "brats23", {"group": "PED"}),
    "msd_brain": Layout("MSD Task01", "msd_brain", "", "msd_brain"),
    "msd_brain-tar": Layout("MSD Task01, the tar", "msd_brain", "", "msd_brain", tar=True),
    "isles22": Layout("ISLES'22", "isles22", "", "isles22"),
    "soop": Layout("SOOP", "soop", "", "soop"),
    "mslub": Layout("MSLUB", "mslub", "", "mslub"),
    "wmh": Layout("WMH challenge", "wmh", "brain=background", "wmh"),
    "bids": Layout("OASIS-3, CamCAN, any BIDS", "bids", "healthy=group=control", "bids"),
    "nnunet": Layout("nnU-Net raw", "nnunet", "", "nnunet"),
    "slices": Layout("slice folder of MAD-AD", "folder", "", "slice_folder"),
    "bmad": Layout("BMAD", "folder", "modality=FLAIR", "bmad"),
    "msseg": Layout(
        "MSSEG-2016",
        "folder",
        "image_pattern={subject}/Preprocessed_Data/{modality}_preprocessed.nii.gz "
        "lesion_pattern={subject}/Masks/Consensus.nii.gz brain_pattern={subject}/Masks/Brain_Mask.nii.gz",
        "msseg",
    ),
    "ucsf_pdgm": Layout(
        "UCSF-PDGM",
        "folder",
        "image_pattern={subject}_{modality}_bias.nii.gz lesion_pattern={subject}_tumor_segmentation.nii.gz",
        "ucsf_pdgm",
    ),
    "torchio": Layout(
        "TorchIO's IXITiny",
        "folder",
        "image_pattern=image/{subject}_image.nii.gz brain_pattern=label/{subject}_label.nii.gz modality=T1 unmasked=healthy",
        "torchio",
    ),
    "hcp": Layout(
        "HCP",
        "folder",
        "image_pattern={subject}/T1w/{modality}_acpc_dc_restore_brain.nii.gz "
        "brain_pattern={subject}/T1w/brainmask_fs.nii.gz unmasked=healthy",
        "hcp",
    ),
}
