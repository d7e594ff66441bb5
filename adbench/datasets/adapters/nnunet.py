"""The raw folders of nnU-Net and of the Medical Segmentation Decathlon (github.com/MIC-DKFZ/nnUNet, dataset format)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

from adbench.datasets import issues
from adbench.datasets.adapters.own_volumes import OwnParams, OwnVolumes
from adbench.datasets.adapters.scans import Expected, Scan
from adbench.datasets.base import DatasetInfo
from adbench.datasets.io.archive import File
from adbench.datasets.io.dataset_json import (
    IGNORE,
    channels_of,
    check_distinct,
    labels_of,
    read_described,
    tissues_among,
)
from adbench.datasets.io.filename_patterns import CHANNELS, MODALITIES, Named, modality_of
from adbench.datasets.io.mask_names import LESION
from adbench.datasets.io.patient_names import split_visit
from adbench.datasets.issues import Issue
from adbench.errors import UserError
from adbench.params import ParamSet, param

_IMAGE = re.compile(
    r"(?:^|/)images(?:Tr|Ts|Val)/(?P<case>[^/]+?)(?:_(?P<channel>\d{4}))?\.nii(?:\.gz)?$", re.IGNORECASE
)
_LABEL = re.compile(r"(?:^|/)labels(?:Tr|Ts|Val)/(?P<case>[^/]+?)\.nii(?:\.gz)?$", re.IGNORECASE)


class NnUNetParams(OwnParams):
    """The recipe, how subjects are divided, and what the channels are."""

    channels: tuple[str, ...] = param(
        (), "modality of every channel in order, e.g. [FLAIR,T1]; empty: as dataset.json says", source="adbench"
    )


class NnUNet(OwnVolumes):
    """``imagesTr/{case}_0000.nii.gz``, one file a channel, or ``imagesTr/{case}.nii.gz`` with all of them in a fourth axis.

    The lesion is every label but 0 and "ignore" (not annotated: it does not count), or ``lesion_labels``. Cases of ``imagesTs`` without labels are left out.
    """

    info: ClassVar[DatasetInfo] = DatasetInfo(
        name="nnunet",
        version="1",
        modalities=MODALITIES,
        licence="that of the data",
        obtain="give a folder DatasetNNN_Name of nnUNet_raw, or an unpacked task of medicaldecathlon.com",
        layout="imagesTr/{case}_0000.nii.gz or 4-D imagesTr/{case}.nii.gz, labelsTr/{case}.nii.gz, dataset.json",
        protocol="folder",
        citation="Isensee et al. 2021, doi:10.1038/s41592-020-01008-z",
    )
    distributed: ClassVar[Expected] = Expected(sequences=(), lesion=False, unlabelled="imagesTs")
    Params: ClassVar[type[ParamSet]] = NnUNetParams
    params: NnUNetParams

    @cached_property
    def _file(self) -> File | None:
        """``dataset.json``; None where there is none and ``channels`` are given."""
        root = self._root()
        there = [file for path, file in self.files.described.items() if path.count("/") <= 1]
        if not there and self.params.channels:
            return None
        if len(there) != 1:
            what = f"there are {there[0]} and {there[1]}" if there else "there is none"
            raise UserError(
                f"{root} needs one dataset.json, and {what}: give the folder that holds imagesTr and dataset.json."
            )
        return there[0]

    @cached_property
    def _described(self) -> dict[str, Any]:
        return read_described(self._file) if self._file else {}

    @property
    def channels(self) -> tuple[str, ...]:
        """The modality of each channel; "" for one that is none."""
        return self._channels

    @cached_property
    def _channels(self) -> tuple[str, ...]:
        """The modality of each channel; "" for one that is none.

        Raises:
            UserError: dataset.json does not say them, no channel is a known modality, or two are the same.
        """
        if self.params.channels:
            stated = tuple(modality_of(name) or name.upper() for name in self.params.channels)
            check_distinct(stated, f"dataset.channels=[{','.join(self.params.channels)}]")
            return stated
        assert self._file is not None
        if found := channels_of(self._file, self._described):
            return found
        raise UserError(
            f"{self._file} names no channels (channel_names or modality): say them with --set dataset.channels=[FLAIR]."
        )

    def named(self, path: str) -> Named | None:
        """By the folder, the case and the number of the channel."""
        if match := _LABEL.search(path):
            return Named("", *split_visit(match["case"]), "", LESION)
        match = _IMAGE.search(path)
        if match is None:
            return None
        kind = CHANNELS if len(self.channels) > 1 or not self.channels else self.channels[0]
        if match["channel"] and self._whole_names:
            return Named("", *split_visit(f"{match['case']}_{match['channel']}"), "", kind)
        if match["channel"]:
            number = int(match["channel"])
            kind = self.channels[number] if number < len(self.channels) else ""
        return Named("", *split_visit(match["case"]), "", kind)

    @cached_property
    def _whole_names(self) -> bool:
        """Whether four digits at the end of an image's name belong to the case: a mask bears them too."""
        labels = [
            path for path in self._root().rglob("labels*/*_[0-9][0-9][0-9][0-9].nii*") if _LABEL.search(str(path))
        ]
        return any((path.parent.with_name(f"images{path.parent.name[6:]}") / path.name).is_file() for path in labels)

    def healthy(self, scan: Scan) -> str:
        """By ``unmasked`` alone: ``imagesTs`` are not published as healthy."""
        return "" if self.unmasked_by_design(scan) else super().healthy(scan)

    @cached_property
    def _labels(self) -> dict[int, str]:
        return labels_of(self._file, self._described) if self._file else {}

    def faults(self) -> Iterator[Issue]:
        """Also labels that count as lesion and bear the names of tissues."""
        yield from super().faults()
        instead = "say which labels are lesion with --set dataset.lesion_labels=[{lesions}]"
        if self._file and not self.params.lesion_labels and (why := tissues_among(self._file, self._labels, instead)):
            yield issues.error("label", self._file, why)

    @property
    def never_counted(self) -> tuple[int, ...]:
        """The label "ignore" of dataset.json."""
        return tuple(label for label, what in self._labels.items() if what.strip().casefold() == IGNORE)

    @property
    def expected(self) -> Expected:
        """With the channels and labels of dataset.json."""
        return replace(super().expected, labels=self._labels)
