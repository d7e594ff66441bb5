"""Public datasets that differ in file names and a few facts; the rest is shared (:mod:`adbench.datasets.adapters.volumes`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

from adbench.datasets import issues
from adbench.datasets.adapters.scans import Expected
from adbench.datasets.adapters.volumes import IndexedVolumes
from adbench.datasets.base import DatasetInfo
from adbench.datasets.io.archive import File
from adbench.datasets.io.dataset_json import channels_of, labels_of, read_described, tissues_among
from adbench.datasets.io.filename_patterns import SETS
from adbench.datasets.issues import Issue
from adbench.errors import UserError

_MSD_CHANNELS = ("FLAIR", "T1", "T1CE", "T2")  # "modality" of the dataset.json that lies in the archive as published


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


class MSDBrain(IndexedVolumes):
    """Glioma, four sequences in one file, without skull; the lesion is the whole tumour, label > 0.

    Where a ``dataset.json`` lies beside ``imagesTr``, it says which sequence is which.
    The patients are those of BraTS'16 and '17 under other names: never train on one and test on the other.
    """

    info: ClassVar[DatasetInfo] = DatasetInfo(
        name="msd_brain",
        version="1",
        modalities=_MSD_CHANNELS,
        licence="CC BY-SA 4.0",
        obtain="adbench data get msd_brain, or http://medicaldecathlon.com: Task01_BrainTumour.tar (7.1 GB)",
        layout="imagesTr/BRATS_{nnn}.nii.gz (4-D: FLAIR, T1, T1CE, T2) and labelsTr/BRATS_{nnn}.nii.gz",
        protocol="folder",
        citation="Antonelli et al. 2022, doi:10.1038/s41467-022-30695-9",
    )
    tars: ClassVar[bool] = True
    distributed: ClassVar[Expected] = Expected(
        sequences=_MSD_CHANNELS,
        channels=_MSD_CHANNELS,
        lesion=True,
        labels={0: "background", 1: "oedema", 2: "non-enhancing tumour", 3: "enhancing tumour"},
        shape=(240, 240, 155),
        zooms=(1.0, 1.0, 1.0),
        zero_background=True,
        skull=False,
        unlabelled="imagesTs",
    )

    @property
    def channels(self) -> tuple[str, ...]:
        """By ``dataset.json``, else as published."""
        return self._said[0]

    @cached_property
    def _beside_images(self) -> dict[File, dict[str, Any]]:
        """Every ``dataset.json`` beside a folder of images, and what it holds."""
        found = {}
        for path, file in self.files.described.items():
            beside = f"{path.rpartition('/')[0]}/imagest".lstrip("/").lower()
            if any(volume.lower().startswith(beside) for volume in self.files.volumes):
                found[file] = read_described(file)
        return found

    @cached_property
    def _said(self) -> tuple[tuple[str, ...], File | None]:
        """The channels, and the file that says them, None where they are as published.

        Raises:
            UserError: it cannot be read, names no known sequence or one twice, or two of them differ.
        """
        said: dict[tuple[str, ...], File] = {}
        for file, content in self._beside_images.items():
            said.setdefault(channels_of(file, content) or _MSD_CHANNELS, file)
        if len(said) > 1:
            (one, first), (other, second), *_ = said.items()
            raise UserError(
                f"{first} gives the channels {', '.join(one)} and {second} {', '.join(other)}: give each a data root of its own."
            )
        return next(((names, file) for names, file in said.items() if names != _MSD_CHANNELS), (_MSD_CHANNELS, None))

    @property
    def expected(self) -> Expected:
        """With the channels that are there."""
        return replace(self.distributed, channels=self.channels)

    def faults(self) -> Iterator[Issue]:
        """Also channels in another order than published."""
        yield from super().faults()
        channels, file = self._said
        if file is not None:
            names = ", ".join(name or "(unknown)" for name in channels)
            message = (
                f"{file} gives the channels {names}, published as {', '.join(_MSD_CHANNELS)}: they are read as it says"
            )
            yield issues.warning("known-layout", file, message)
        instead = "give these data as --dataset nnunet --set dataset.lesion_labels=[{lesions}]"
        for file, content in self._beside_images.items():
            if why := tissues_among(file, labels_of(file, content), instead):
                yield issues.error("label", file, why)


class MSLUB(IndexedVolumes):
    """30 patients with multiple sclerosis: FLAIR, T1, contrast-enhanced T1 (T1WKS) and T2 on one grid, a consensus of three
    raters, a brain mask. Copies without the mask are often stripped: each image says it by its background. What lies in a
    folder ``raw`` is not read. All subjects are patients.
    """

    info: ClassVar[DatasetInfo] = DatasetInfo(
        name="mslub",
        version="2",
        modalities=("FLAIR", "T1", "T1CE", "T2"),
        licence="CC BY 4.0",
        obtain=(
            "adbench data get mslub (from the copy in https://github.com/muschellij2/open_ms_data), or "
            "https://lit.fe.uni-lj.si/en/research/resources/3D-MR-MS: one zip a patient, then `adbench data unpack`"
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
        skull=None,
    )


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
        labels={0: "background", 1: "white-matter hyperintensity", **SETS["wmh"].not_counted},
        not_counted=tuple(SETS["wmh"].not_counted),
        companion="T1",
    )
