"""What the volumes of a dataset are like, and one case of them read: image, masks and companion on their grids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from adbench.datasets.adapters.lesion_masks import LABELS_VERSION, labels_in, merged, whole_numbers
from adbench.datasets.adapters.scans import Expected, refuse_swapped, require_channels
from adbench.datasets.base import Case
from adbench.datasets.geometry import resample, voxel_ml
from adbench.datasets.io import nifti, nifti_header
from adbench.datasets.io.archive import File
from adbench.datasets.io.mask_names import BRAIN, LESION
from adbench.datasets.preprocessing import brain_extraction
from adbench.datasets.preprocessing.base import RawVolume, RecipeParams, VolumeDataset
from adbench.datasets.preprocessing.recipe import lesion_of
from adbench.datasets.splits import FoldParams
from adbench.errors import UserError
from adbench.params import ParamSet, param

STRIPPED = 0.3  # share of voxels at exactly 0 that says an image is skull-stripped


class VolumeParams(RecipeParams, FoldParams):
    """The recipe, and how subjects are divided."""

    val_share: float = param(
        0.1, "share of the subjects that validate, drawn within each site", source="adbench", ge=0.0, le=0.5
    )
    test_share: float = param(
        0.2, "share of the subjects that are tested, drawn within each site", source="adbench", ge=0.0, le=1.0
    )
    split_seed: int = param(0, "seed of the draw of the splits", source="adbench", ge=0)
    lesion_masks: str = param(
        "refuse",
        "what becomes of several lesion masks of one scan (left and right, several raters): refuse, union (lesion where any "
        "says so), majority (where more than half do), or a word in the name of the one to take",
        source="adbench",
    )


class ReadVolumes(VolumeDataset):
    """A dataset of volumes; a subclass finds their files (``Case.extra``)."""

    distributed: ClassVar[Expected]
    Params: ClassVar[type[ParamSet]] = VolumeParams
    params: VolumeParams

    @property
    def expected(self) -> Expected:
        """What the volumes should be like."""
        return self.distributed

    @property
    def channels(self) -> tuple[str, ...]:
        """The sequences of a 4-D file, in their order; "" for one that is not used."""
        return self.distributed.channels

    @property
    def skull(self) -> bool:
        """Whether images may show the skull."""
        return self.expected.skull is not False

    @property
    def on_template(self) -> bool:
        """Whether the images already lie on the MNI152 2009a 1 mm grid."""
        return self.expected.on_template

    @property
    def lesion_labels(self) -> tuple[int, ...] | None:
        """Values of a lesion mask that count; None: every value but 0."""
        expected = self.expected
        if not expected.not_counted:
            return None
        return tuple(label for label in expected.labels if label and label not in expected.not_counted)

    def not_counted(self, mask: File) -> tuple[int, ...]:
        """Labels of the lesion mask ``mask`` that are neither lesion nor healthy."""
        return self.expected.not_counted

    def companion_of(self, modality: str) -> str:
        """The modality whose brain mask and registration serve ``modality``, which may be itself."""
        return self.expected.companion or modality

    @property
    def votes(self) -> float:
        """The share of the lesion masks of a scan of which more must mark a voxel."""
        return 0.5 if self.params.lesion_masks == "majority" else 0.0

    def read(self, case: Case, modality: str) -> RawVolume:
        """Decode the image, its masks and the companion image of one case; what is odd about its header is remarked.

        Raises:
            UserError: also where its voxels are those of no head.
        """
        files: Mapping[str, File] = case.extra["files"]
        channels: Mapping[str, int] = case.extra.get("channels", {})
        if modality in channels:
            require_channels(files[modality], nifti.read_header(files[modality]), self.channels)
        image = nifti.read(files[modality], channel=channels.get(modality))
        masks = case.extra.get("masks") or [files[kind] for kind in (LESION,) if kind in files]
        raw = RawVolume(
            case=case.id,
            modality=modality,
            image=image.data,
            affine=image.affine,
            source=files[modality],
            brain=self._brain(files.get(BRAIN), image, files[modality]),
            lesion_labels=self.lesion_labels,
            not_counted=self.not_counted(masks[0]) if masks else (),
            skull=self._shows_skull(image.data),
        )
        for found in nifti_header.header_issues(image.header):
            if found.severity == "error":
                raise UserError(f"{files[modality]} {found.text}.")
            if found.severity == "warning" or self.params.registration == "none":  # else its axes are turned
                raw.remarks += (f"{files[modality].name} {found.text}",)
        if files.get(BRAIN) and raw.brain is None:
            raw.remarks += (f"brain: {files[BRAIN].name} is not used, it lies on another grid",)
        if masks:
            self._read_lesion(raw, masks, image, files)
        companion = self.companion_of(modality)
        if companion in files and companion != modality:
            other = nifti.read(files[companion], channel=channels.get(companion))
            raw.companion = RawVolume(
                case.id,
                companion,
                other.data,
                other.affine,
                source=files[companion],
                brain=None if raw.brain is not None else self._brain(files.get(BRAIN), other, files[companion]),
                skull=self._shows_skull(other.data),
            )
        return raw

    def _shows_skull(self, image: np.ndarray) -> bool:
        if self.expected.skull is not None:
            return self.skull
        return brain_extraction.background_share(image) < STRIPPED

    def _read_lesion(
        self, raw: RawVolume, masks: Sequence[File], image: nifti.NiftiVolume, files: Mapping[str, File]
    ) -> None:
        """Enter the lesion masks into ``raw``: several of them merged, brought to the grid of ``image``."""
        volumes = [self._decoded(file) for file in masks]
        first, drawn_on = volumes[0], self.expected.drawn_on
        difference = nifti_header.off_grid(first.header, image.header)
        if drawn_on in files and raw.modality != drawn_on:
            refuse_swapped(masks[0], first.header, files[drawn_on], drawn_on)
        for file, volume in zip(masks, volumes, strict=True):
            if difference and drawn_on in ("", raw.modality):
                assert raw.source is not None
                raise UserError(f"{masks[0]} does not lie on the grid of its image {raw.source.name}: {difference}.")
            if other := nifti_header.off_grid(volume.header, first.header):
                raise UserError(
                    f"{file} does not lie on the grid of {masks[0].name}, a mask of the same scan: {other}."
                )
        labels = [whole_numbers(volume.data, file) for file, volume in zip(masks, volumes, strict=True)]
        if raw.lesion_labels is not None:
            raw.labels = labels_in(labels)
        raw.lesion = labels[0]
        if len(labels) > 1:
            raw.lesion = merged(labels, self.votes, raw.lesion_labels, raw.not_counted)
            raw.lesion_labels, raw.not_counted = None, (2,) if raw.not_counted else ()
            raw.remarks += (f"lesion: {self.params.lesion_masks} of {', '.join(file.name for file in masks)}",)
        if difference:
            drawn = lesion_of(raw.lesion, raw.lesion_labels, raw.not_counted)
            raw.lesion_ml = float(drawn.sum()) * voxel_ml(first.affine)
            to_voxel, shape = np.linalg.inv(first.affine) @ image.affine, image.data.shape
            raw.uncovered = ~resample(np.ones(drawn.shape, np.bool_), to_voxel, shape, linear=False)
            raw.lesion = resample(raw.lesion, to_voxel, shape, linear=False)
            raw.remarks += (f"lesion: mask brought from the grid of {drawn_on} by the nearest voxel",)

    def _decoded(self, file: File) -> nifti.NiftiVolume:
        """A mask; the last one is kept for the next modality of the same case."""
        last: tuple[File, nifti.NiftiVolume] | None = self.__dict__.get("_last_mask")
        mask = last[1] if last is not None and last[0] == file else nifti.read(file)
        self.__dict__["_last_mask"] = (file, mask)
        return mask

    def _brain(self, file: File | None, image: nifti.NiftiVolume, source: File) -> np.ndarray | None:
        """The brain mask on the image's grid; None for that of another sequence where sequences do not share a grid."""
        if file is None:
            return None
        mask = self._decoded(file)
        if difference := nifti_header.off_grid(mask.header, image.header):
            if self.expected.one_grid:
                raise UserError(f"{file} does not lie on the grid of its image {source.name}: {difference}.")
            return None
        return whole_numbers(mask.data, file)

    def recipe(self) -> dict[str, Any]:
        """Also which labels count."""
        return {**super().recipe(), "labels": [LABELS_VERSION, self.lesion_labels, self.expected.not_counted]}
