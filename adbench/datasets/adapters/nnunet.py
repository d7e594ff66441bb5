"""The raw folders of nnU-Net and of the Medical Segmentation Decathlon (github.com/MIC-DKFZ/nnUNet, dataset format)."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

from adbench.datasets.adapters.own_volumes import OwnParams, OwnVolumes
from adbench.datasets.adapters.scans import Expected, Scan
from adbench.datasets.base import DatasetInfo
from adbench.datasets.io.filename_patterns import CHANNELS, LESION, MODALITIES, Named, modality_of, split_visit
from adbench.errors import UserError
from adbench.params import ParamSet, param

_IMAGE = re.compile(
    r"(?:^|/)images(?:Tr|Ts|Val)/(?P<case>[^/]+?)(?:_(?P<channel>\d{4}))?\.nii(?:\.gz)?$", re.IGNORECASE
)
_IGNORE = "ignore"  # the label of nnU-Net for what was not annotated
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
    def _described(self) -> dict[str, Any]:
        """The content of dataset.json."""
        root = self._root()
        there = sorted([*root.glob("dataset.json"), *root.glob("*/dataset.json")])
        if not there and self.params.channels:
            return {}
        if len(there) != 1:
            what = f"there are {there[0]} and {there[1]}" if there else "there is none"
            raise UserError(
                f"{root} needs one dataset.json, and {what}: give the folder that holds imagesTr and dataset.json."
            )
        try:
            content = json.loads(there[0].read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise ValueError("no object")
        except (OSError, ValueError) as error:
            raise UserError(f"{there[0]} cannot be read ({error}): copy it again.") from None
        return {**content, "path": there[0]}

    @property
    def channels(self) -> tuple[str, ...]:
        """The modality of each channel; "" for one that is none."""
        return self._channels

    @cached_property
    def _channels(self) -> tuple[str, ...]:
        """The modality of each channel; "" for one that is none.

        Raises:
            UserError: dataset.json does not say them, or no channel is a known modality.
        """
        if self.params.channels:
            return tuple(modality_of(name) or name.upper() for name in self.params.channels)
        said = self._described.get("channel_names") or self._described.get("modality")
        path = self._described["path"]
        if not isinstance(said, dict):
            raise UserError(
                f"{path} names no channels (channel_names or modality): say them with --set dataset.channels=[FLAIR]."
            )
        names = [str(said[key]) for key in sorted(said, key=lambda key: (len(key), key))]
        found = tuple(
            modality_of(re.sub(r"[-_ ]?(weighted|w|mri)$", "", name.lower())) or modality_of(name) for name in names
        )
        if not any(found):
            raise UserError(
                f"{path} names the channels {', '.join(names)}, none of which is a known modality: say them with "
                f"--set dataset.channels=[FLAIR] (known: {', '.join(MODALITIES)})."
            )
        return found

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

    @property
    def expected(self) -> Expected:
        """With the channels and labels of dataset.json."""
        labels: dict[int, str] = {}
        for key, value in dict(self._described.get("labels") or {}).items():
            if isinstance(
                value, int | list
            ):  # nnU-Net version 2, with regions of several labels; others have it the other way round
                labels |= {int(label): str(key) for label in (value if isinstance(value, list) else [value])}
            elif str(key).isdigit():
                labels[int(key)] = str(value)
        ignored = (label for label, what in labels.items() if what.casefold() == _IGNORE)
        not_counted = tuple(label for label in ignored if label not in self.params.lesion_labels)
        return replace(super().expected, labels=labels, not_counted=not_counted)
