"""Unlabelled scans for ``adbench predict``, brought onto the grid of the fitted method."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from adbench.datasets.adapters.folder import Folder
from adbench.datasets.adapters.folder_volumes import FolderParams, FolderVolumes
from adbench.datasets.adapters.scans import Scan
from adbench.datasets.adapters.slice_names import BRAIN as BRAIN_SLICE
from adbench.datasets.adapters.slice_names import LESION as LESION_SLICE
from adbench.datasets.adapters.volume_reader import STRIPPED
from adbench.datasets.base import Case, Dataset, Stack
from adbench.datasets.geometry import to_ras, zooms
from adbench.datasets.io import nifti, nifti_header
from adbench.datasets.io.archive import File
from adbench.datasets.io.file_index import find_files
from adbench.datasets.io.filename_patterns import UNCLEAR, Named, common_name, stem_of
from adbench.datasets.io.mask_names import ANY_MASK as MASK_WORDS
from adbench.datasets.io.mask_names import BRAIN, LESION, mask_of, words_end
from adbench.datasets.io.png import read_image, read_shape
from adbench.datasets.issues import Issue
from adbench.datasets.preprocessing import brain_extraction
from adbench.datasets.preprocessing.base import RawVolume
from adbench.errors import UserError
from adbench.params import build

ANY_MASK = {"unmasked": "healthy", "second_scans": "use", "val_share": 0.0}  # there are no roles here
LEAST_DARK = 0.1  # share of pixels at 0 in slices without a skull: a brain cut out tightly leaves a fifth


def open_scans(
    root: Path, values: dict[str, Any], side: int, mm: float | None = None
) -> UnlabelledVolumes | UnlabelledSlices:
    """The scans below ``root``, all of one kind, as a dataset without masks.

    Args:
        root: their folder.
        values: parameters of the dataset ``folder``.
        side: of the slices that the method knows, px.
        mm: of a pixel of these; None: unknown.

    Raises:
        UserError: a parameter out of range.
    """
    if are_volumes(root):
        return UnlabelledVolumes(build(FolderParams, "dataset folder", {**values, **ANY_MASK, "size": side}), root)
    return UnlabelledSlices(build(FolderParams, "dataset folder", {**values, **ANY_MASK}), root, side, mm)


def are_volumes(root: Path) -> bool:
    """Whether ``root`` holds NIfTI volumes; otherwise PNG slices are looked for there.

    Raises:
        UserError: no such folder, or one of pairs of files alone.
    """
    if not root.is_dir():
        what = "is a file" if root.exists() else "is missing"
        raise UserError(f"{root} {what}: give the folder of the scans, NIfTI volumes or PNG slices, with --images.")
    found = find_files(root)
    if not (found.volumes or found.pictures):
        for why in pairs(root).values():
            raise UserError(why)
        if not any(root.iterdir()):
            raise UserError(
                f"{root} is empty: give the folder of the scans, NIfTI volumes or PNG slices, with --images."
            )
    return bool(found.volumes)


def pairs(root: Path) -> dict[str, str]:
    """Name -> why it is not read, of every header whose voxels lie in a file of their own."""
    return {
        path.name: f"{path} is the header of a pair of files: {nifti_header.pair_way_out(path.name)}."
        for path in find_files(root).pairs
    }


class _Scans(Dataset):
    """Scans of which those that cannot be read are left away, by their case ids."""

    unreadable: frozenset[str] = frozenset()

    def beside(self, case: Case, modality: str) -> list[str]:
        """Remarks on ``case`` that follow from other files beside it."""
        return []

    def other_sequences(self, modality: str) -> dict[str, list[str]]:
        """Case id -> its modalities, of the cases that have no image of ``modality``."""
        found: dict[str, list[str]] = {}
        for name in self.available():
            for case in self.discover(name):
                found.setdefault(case.id, []).append(name)
        return {case: names for case, names in found.items() if modality not in names}

    def discover(self, modality: str) -> list[Case]:
        """The others."""
        return [case for case in super().discover(modality) if case.id not in self.unreadable]  # type: ignore[safe-super]


class UnlabelledVolumes(_Scans, FolderVolumes):
    """NIfTI volumes without masks but those of the brain; each image says whether it shows the skull."""

    def named(self, path: str) -> Named | None:
        """As of a folder, without lesion masks and what else is a mask of an image here by its name."""
        found = super().named(path)
        if found is None or found.kind in (LESION, UNCLEAR):
            return None
        stem = stem_of(path)
        if self._patterns or common_name(stem, self.image_names) is not None:
            return found
        if _mask_beside(stem, self.image_names) is not None and _marks(self.files.volumes[path]):
            return None
        return found  # images without their skull are called "brain" too, and others after an operation on a tumour

    def beside(self, case: Case, modality: str) -> list[str]:
        """That a file may be its brain mask, and was not used, be it that its name says no more than that it is a mask."""
        files = case.extra["files"]
        if BRAIN in files:
            return []
        own = {case.id.lower(), case.subject.lower()}
        below = {file: PurePosixPath(path) for path, file in self.index.files.volumes.items()}
        images: dict[PurePosixPath, set[str]] = defaultdict(set)  # names that another patient's may have too, by folder
        for file in files.values():
            images[below[file].parent].add(stem_of(str(file)).lower())
        for path in self.index.unused:
            names = own | images.get(PurePosixPath(path).parent, set())
            if _mask_beside(stem_of(path), names) in (BRAIN, UNCLEAR):
                return [
                    f"its brain was inferred from the image, though {path} lies beside it: if that is its brain mask, name it "
                    f"{case.id}_brainmask.nii.gz, or say --set dataset.brain_pattern=... beside image_pattern"
                ]
        return []

    @cached_property
    def _homes(self) -> dict[str, Any]:
        return {}  # folders called train or test mean nothing here

    @cached_property
    def _unnamed_masks(self) -> dict[str, Any]:
        return {}

    def _contradiction(self, scan: Scan) -> str:
        return ""  # no subject is declared healthy

    def left_out(self, scan: Scan) -> str:
        """Nothing is."""
        return ""

    def read(self, case: Case, modality: str) -> RawVolume:
        """Decode one scan, and remark on what it takes to make it like the others.

        Raises:
            UserError: also where it shows the skull and the recipe takes what is not 0 for the brain.
        """
        raw = super().read(case, modality)
        rule = self.params.brain
        if raw.skull and raw.brain is None:
            if rule == "background":
                raise UserError(
                    f"{raw} shows the skull, and the method was fitted to images whose skull was taken away: give a brain "
                    "mask beside it, take the skull away, or let a tool find the brain with --set dataset.brain=auto."
                )
            tool = brain_extraction.automatic() if rule == "auto" else rule
            raw.remarks += (f"it shows the skull: its brain was found by {tool}",)
        across, down, _ = zooms(to_ras(raw.image, raw.affine)[1])
        pixel = self.params.field_of_view / (self.params.size or 1)
        if (step := self.params.slice_step) > 1:
            raw.remarks += (
                f"one slice in {step} was scored, as in the run, and the others are blends of these; all are with --set "
                "dataset.slice_step=1",
            )
        if max(abs(across - pixel), abs(down - pixel)) > 0.01 * pixel and self.params.registration == "none":
            raw.remarks += (f"voxels of {across:.3g} x {down:.3g} mm in plane were brought to {pixel:.3g} mm",)
        return raw

    def _shows_skull(self, image: np.ndarray) -> bool:
        if self.params.skull != "auto":
            return self.params.skull == "yes"
        return brain_extraction.background_share(image) < STRIPPED

    def recipe(self) -> dict[str, Any]:
        """Also what finds the brain in an image with skull, whichever image that is."""
        tool = brain_extraction.automatic() if self.params.brain == "auto" else self.params.brain
        version = tool if tool in brain_extraction.RULES else brain_extraction.tool(tool).version
        return {**super().recipe(), "skull": [self.params.skull, "each image", version]}


class UnlabelledSlices(_Scans, Folder):
    """PNG slices without segmentations, padded to the grid of a fitted method.

    Args:
        side: of that grid, px; where ``params.size`` is given, slices are resized to it instead.
        mm: of a pixel of that grid; None: unknown.
    """

    def __init__(self, params: FolderParams, root: Path | None, side: int, mm: float | None) -> None:
        super().__init__(params, root)
        self._side, self._mm = side, mm

    def __new__(cls, params: FolderParams, root: Path | None, side: int, mm: float | None) -> UnlabelledSlices:
        """Folder looks at the root; here it is known to hold slices."""
        return object.__new__(cls)

    @cached_property
    def _masks(self) -> dict[str, dict[Any, Path]]:
        return {BRAIN_SLICE: {f.slice: f.path for f in self._files if f.kind == BRAIN_SLICE}, LESION_SLICE: {}}

    def scales(self, modality: str) -> Iterator[Issue]:
        """As of a folder, and no reason to refuse: they are in the notes of the cases."""
        return (replace(issue, severity="warning") for issue in super().scales(modality))

    def beside(self, case: Case, modality: str) -> list[str]:
        """A remark where 16-bit images have different scales."""
        return [issue.message for issue in self.scales(modality)]

    def found(self, modality: str) -> list[Case]:
        """As of a folder, on the given grid."""
        cases = super().found(modality)
        if self.params.size is not None:
            return cases
        return [replace(case, extra={**case.extra, "side": self._side}) for case in cases]

    def load(self, case: Case, modality: str) -> Stack:
        """As of a folder.

        Raises:
            UserError: also where a slice is larger than the grid, or shows the skull and has no brain mask.
        """
        side = case.extra["side"]
        shapes = set()
        for _, path, *_ in case.extra["slices"]:
            shapes.add(read_shape(path))
            if max(shape := read_shape(path)) > side:
                raise UserError(
                    f"{path} is {shape[0]}x{shape[1]} (height x width), and the method was fitted to {side}x{side}: bring it "
                    "to its pixel size and field of view first."
                )
        stack = super().load(case, modality)
        bare = [path for index, path, brain, _ in case.extra["slices"] if brain is None and index in stack.slices]
        dark = float(np.mean([(read_image(path) == 0).mean() for path in bare])) if bare else 1.0
        if dark < LEAST_DARK:
            raise UserError(
                f"{bare[0]} shows the skull: {dark:.0%} of its pixels are 0, and all others would count as brain. Take the skull "
                f"away, or give a brain mask beside it (...-{BRAIN_SLICE}.png), all white if the run's slices show the skull too."
            )
        if smaller := sorted(shape for shape in shapes if shape != (side, side)):
            stack.remarks.append(f"padded from {smaller[0][0]} x {smaller[0][1]} to {side} x {side} pixels")
        if self._mm is not None:
            stack.remarks.append(
                f"a PNG does not say how large its pixels are: taken for {self._mm:.3g} mm, as in the run"
            )
        return stack

    def recipe(self) -> dict[str, Any]:
        """Also the grid, and the size of its pixels, which is remarked."""
        return {**super().recipe(), "side": self._side, "mm": self._mm}


def image_of(case: Case, modality: str) -> dict[int | None, File]:
    """The image of a case of :func:`open_scans`: slice index -> PNG file, or None -> volume."""
    if "slices" in case.extra:
        return {row[0]: row[1] for row in case.extra["slices"]}
    return {None: case.extra["files"][modality]}


def _marks(file: File) -> bool:
    """Whether a volume holds what a mask holds, or nothing; one that cannot be read is reported when its turn comes."""
    try:
        return bool(nifti.mask_values(file)) or not nifti.read(file).data.any()
    except UserError:
        return False


def _mask_beside(stem: str, images: Collection[str]) -> str | None:
    """Of what ``stem`` is a mask by the words behind the name of one of ``images``; None where it is none of these."""
    for end in words_end(stem)[1:]:
        if stem[:end].lower() in images:
            words = stem[end:].lower()
            return mask_of(words) or (UNCLEAR if any(word in words for word in MASK_WORDS) else None)
    return None
