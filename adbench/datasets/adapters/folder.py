"""Your own data: PNG slices (in the layout of the MAD-AD authors' tools, or flat and healthy) or NIfTI volumes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from adbench.datasets import issues
from adbench.datasets.adapters.exclusion import excluded
from adbench.datasets.adapters.folder_volumes import SLICE_FIELDS, SLICE_PIXELS, FolderParams, FolderVolumes
from adbench.datasets.adapters.own_volumes import SECOND_SCAN, why_healthy
from adbench.datasets.adapters.slice_levels import (
    WHITE,
    Level,
    brightest,
    dark_remark,
    levels_of,
    scale_faults,
    white_of,
)
from adbench.datasets.adapters.slice_names import (
    BRAIN,
    LESION,
    SliceFile,
    SliceId,
    by_split,
    name_faults,
    named_slice,
    only_folder,
)
from adbench.datasets.base import Case, Dataset, DatasetInfo, Split, Stack
from adbench.datasets.io.archive import FileError
from adbench.datasets.io.file_index import FoundFiles, find_files
from adbench.datasets.io.filename_patterns import MODALITIES
from adbench.datasets.io.patient_names import person, second_scan
from adbench.datasets.io.png import read_image, read_mask, read_shape
from adbench.datasets.issues import OUTSIDE_BRAIN, Issue
from adbench.datasets.preprocessing import resize
from adbench.datasets.splits import ROLES, assign
from adbench.errors import UserError
from adbench.params import ParamSet
from adbench.utils.seeds import derive


class Folder(Dataset):
    """Your own NIfTI volumes, or PNG slices in the MAD-AD layout or flat and healthy.

    A root with NIfTI files and no PNG slices is read as volumes
    (:class:`~adbench.datasets.adapters.folder_volumes.FolderVolumes`). The layout with splits is
    ``{train|val|test}/{id}-slice_{k}-{MODALITY}.png`` with ``{id}-slice_{k}-brainmask.png`` and
    ``{id}-slice_{k}-segmentation.png`` beside it. A folder with PNG files directly inside is taken as healthy: its
    patients are split into train and val by a seeded hash of their id, so a patient has the same role in every modality.
    ``validation``, ``training`` and ``testing`` are other names of the folders; PNG files anywhere else are refused. The folders
    of BMAD are understood too: ``{train|valid|test}/{good|Ungood}/{img|label}/{subject}_{k}.png``.

    The folder train/, a flat folder, and a val/ without any segmentation declare their subjects healthy. All other
    subjects need one, unless ``unmasked`` says what they are.

    Intensities are taken as stored, divided by the largest value of the type: 255, or of 16-bit images the largest of the
    bits that all of them together use (4095 for a scanner of 12 bits). They are not normalised again: their author normalised the volume, and a slice alone does not show the range of the volume
    that it came from.
    """

    info: ClassVar[DatasetInfo] = DatasetInfo(
        name="folder",
        version="1",
        modalities=MODALITIES,
        licence="that of your data",
        obtain="give the folder of your own volumes or PNG slices as the data root",
        layout=(
            "NIfTI volumes {subject}_{modality}.nii.gz with {subject}_seg.nii.gz, BIDS derivatives, or any names by "
            "dataset.image_pattern; or PNG slices {train|val|test}/{id}-slice_{k}-{FLAIR|T1|T2|T1CE|PD}.png with "
            "...-brainmask.png and ...-segmentation.png beside it, or one flat folder of healthy "
            "{id}-slice_{k}-{modality}.png"
        ),
        protocol="folder",
    )
    Params: ClassVar[type[ParamSet]] = FolderParams
    params: FolderParams
    quick: ClassVar[bool] = True

    def __init__(self, params: ParamSet, root: Path | None) -> None:
        super().__init__(params, root and only_folder(root))

    def __new__(cls, params: ParamSet, root: Path | None) -> Folder:
        """The one of the two kinds that lies at ``root``."""
        files = find_files(root) if root is not None and root.is_dir() else FoundFiles()
        if root is None or not files.volumes:
            return super().__new__(cls)
        if slices := by_split(only_folder(root), [p for p in files.pictures if only_folder(root) in p.parents])[0]:
            raise UserError(f"{root} holds NIfTI volumes and PNG slices such as {slices[0][0]}: keep one kind in it.")
        return FolderVolumes(params, root)  # type: ignore[return-value]

    @classmethod
    def title(cls, params: ParamSet) -> str:
        """``params.name``."""
        return FolderVolumes.title(params)

    # -- what is there ---------------------------------------------------------------------------------------------

    @cached_property
    def _pictures(self) -> tuple[list[tuple[Path, Split | None]], list[Path]]:
        """See :func:`by_split`.

        Raises:
            UserError: the root is missing or no folder, or there are no PNG slices.
        """
        root = self.root
        for name, field in FolderParams.model_fields.items():
            if name not in SLICE_FIELDS and getattr(self.params, name) != field.default:
                raise UserError(f"dataset.{name} is for NIfTI volumes, and {root} holds none.")
        expected = f"Expected there: {self.info.layout}."
        if root is None:
            raise UserError(f"The dataset folder needs a data root. {expected}")
        if not root.is_dir():
            raise UserError(f"The data root {root} {'is not a folder' if root.exists() else 'is missing'}. {expected}")
        slices, strays = by_split(root, find_files(root).pictures)
        if not slices:
            inside = sorted(entry.name for entry in root.iterdir())
            what = f"only {', '.join(inside[:5])}{' ...' if len(inside) > 5 else ''}" if inside else "nothing"
            where = f" (PNG files lie in {strays[0].parent})" if strays else ""
            raise UserError(f"No PNG slices in {root}, which holds {what}{where}. {expected}")
        return slices, strays

    @cached_property
    def _files(self) -> list[SliceFile]:
        """Every PNG by its name."""
        return [named_slice(path, split, self.params.modality) for path, split in self._pictures[0]]

    @cached_property
    def _kept(self) -> list[SliceFile]:
        """Every PNG of those that the user did not leave out."""
        return [file for file in self._files if not self._excluded(file)]

    @cached_property
    def excluded_cases(self) -> set[str]:
        """Cases that the user leaves out."""
        return excluded(self.params.exclude, ((file.subject, file.case) for file in self._files), self.info.name)

    def _excluded(self, file: SliceFile) -> bool:
        return file.case in self.excluded_cases

    @cached_property
    def _masks(self) -> dict[str, dict[SliceId, Path]]:
        return {kind: {f.slice: f.path for f in self._files if f.kind == kind} for kind in (BRAIN, LESION)}

    @cached_property
    def _masked(self) -> set[tuple[Split | None, str]]:
        """Subjects with a segmentation, by role and name."""
        return {(split, person(subject)) for split, subject, _, _ in self._masks[LESION]}

    @cached_property
    def _ill(self) -> set[str]:
        """Subjects with a slice whose folder says that there is a lesion in it."""
        return {person(file.subject) for file in self._files if file.ill}

    @cached_property
    def _masked_roles(self) -> set[Split | None]:
        return {split for split, _ in self._masked}

    def available(self) -> tuple[str, ...]:
        """The modalities found, the one with most files first.

        Raises:
            UserError: there is none.
        """
        counts = Counter(file.kind for file in self._kept if file.kind and not file.is_mask)
        if not counts:
            issues.refuse(self.faults())
            raise UserError(f"No slice in {self.root} is left: dataset.exclude names everyone.")
        return tuple(sorted(counts, key=lambda name: (-counts[name], name)))

    def _healthy(self, file: SliceFile) -> str:
        """Why the subject of ``file`` counts as healthy without a segmentation; "" where nothing says so."""
        if person(file.subject) in self._ill:
            return ""
        if file.split is None and self.params.unmasked != "healthy":
            return "it lies in a flat folder, which is for healthy subjects"
        return why_healthy(self.params, file.split, self._masked_roles, "segmentation")

    def _left_out(self, file: SliceFile) -> str:
        """Why the subject of ``file`` takes no role, or ""."""
        if second_scan(file.subject) and self.params.second_scans != "use":
            return SECOND_SCAN
        masked = file.is_mask or (file.split, person(file.subject)) in self._masked
        if self.params.unmasked == "leave-out" and not masked and not self._healthy(file):
            return "it has no segmentation and dataset.unmasked is leave-out"
        return ""

    # -- cases -----------------------------------------------------------------------------------------------------

    def discover(self, modality: str) -> list[Case]:
        """One case per subject and split that has ``modality``, sorted by split and subject; decodes 16-bit images alone."""
        issues.refuse((*self.faults(), *self.scales(modality)))
        return self.found(modality)

    def found(self, modality: str) -> list[Case]:
        """As :meth:`discover`, whatever :meth:`faults` says."""
        usable = [file for file in self._files if file.kind == modality and not self._left_out(file)]
        images = {file.slice: file for file in usable if not self._excluded(file)}
        if not images:
            raise UserError(
                f"No {modality} slice in {self.root}: there is {', '.join(self.available())}. "
                f"The modality is the last word of a file name, as in sub-01-slice_68-{modality}.png."
            )
        masks = self._masks
        shapes = set()
        for file in images.values():
            with suppress(FileError):  # reported when its turn comes
                shapes.add(read_shape(file.path))
        levels = self._levels(modality)
        white = white_of(levels)
        largest = {(level.split, level.subject): level.value for level in brightest(levels)}
        side = resize.square_side(shapes, 1 if self.params.size else resize.MULTIPLE)
        roles = self._drawn(usable) | self._dealt(usable)  # of everyone, whoever is left out
        grouped: dict[tuple[int, Split, str, str], list[SliceFile]] = defaultdict(list)
        for file in images.values():
            split = roles.get(person(file.subject)) or file.split
            assert split is not None
            grouped[ROLES.index(split), split, file.subject, file.session].append(file)
        sessions = Counter((split, subject) for _, split, subject, _ in grouped)
        labelled: dict[tuple[str, str], set[int]] = defaultdict(set)
        for _, subject, session, index in masks[LESION]:
            labelled[subject, session].add(index)
        cases = []
        for (_, split, subject, session), files in sorted(grouped.items()):
            files.sort(key=lambda file: file.index)
            rows = [(f.index, f.path, masks[BRAIN].get(f.slice), masks[LESION].get(f.slice)) for f in files]
            unused = labelled[subject, session] - {file.index for file in files}
            masked = any(row[3] for row in rows)
            cases.append(
                Case(
                    subject=subject,
                    split=split,
                    session=session if sessions[split, subject] > 1 else "",
                    files=tuple(path for row in rows for path in row[1:] if path is not None),
                    healthy="" if masked else self._healthy(files[0]),
                    extra={
                        "slices": rows,
                        "side": side,
                        "unused": sorted(unused),
                        "train_with_masks": masked and split == "train",
                        **_shown(largest.get((files[0].split, person(subject)), 0), white),
                    },
                )
            )
        return cases

    @cached_property
    def _known_levels(self) -> dict[str, list[Level]]:
        return {}

    def _levels(self, modality: str) -> list[Level]:
        """The largest values of the 16-bit images of ``modality``, decoded once."""
        if modality not in self._known_levels:
            self._known_levels[modality] = levels_of(file for file in self._kept if file.kind == modality)
        return self._known_levels[modality]

    def _drawn(self, files: Iterable[SliceFile]) -> dict[str, Split]:
        """The split of every patient of a flat folder, drawn by the first of the names that the patient has."""
        names: dict[str, str] = {}
        for file in files:
            if file.split is None:
                names.setdefault(person(file.subject), file.subject)
        draws = {who: derive(self.params.split_seed, "folder", name) / 2**63 for who, name in names.items()}
        roles: dict[str, Split] = {s: "val" if draw < self.params.val_share else "train" for s, draw in draws.items()}
        order = sorted(draws, key=lambda subject: draws[subject])
        if len(order) > 1 and self.params.val_share > 0:  # a small folder still gets both
            roles[order[0]], roles[order[-1]] = "val", "train"
        return roles

    def _dealt(self, files: Iterable[SliceFile]) -> dict[str, Split]:
        """With ``folds``, the split of every patient with a segmentation outside train/: each fold has its share of lesions."""
        p, masks = self.params, self._masks[LESION]
        strata: dict[str, str] = {}
        for file in files if p.folds else ():
            if file.split != "train" and (mask := masks.get(file.slice)) is not None:
                drawn, who = False, person(file.subject)
                with suppress(FileError):  # reported when its turn comes
                    drawn = bool(read_mask(mask, file.path, read_shape(file.path)).any())
                strata[who] = strata.get(who) or ("lesion" if drawn else "")
        return assign(strata, 0.5, 0.5, p.split_seed, "folder", p.folds, p.fold) if strata else {}

    def exclusions(self, modality: str) -> list[str]:
        """Subjects that are left out, and why."""
        left = {f.subject: why for f in self._kept if f.kind == modality and (why := self._left_out(f))}
        left |= {f.case: "it is in dataset.exclude" for f in self._files if f.kind == modality and self._excluded(f)}
        return [f"{subject}: left out, {why}" for subject, why in sorted(left.items())]

    # -- pixels ----------------------------------------------------------------------------------------------------

    def load(self, case: Case, modality: str) -> Stack:
        """Decode one subject's slices; the image is set to 0 outside the brain."""
        stack, found = self.examine(case, modality)
        issues.refuse(found)
        assert stack is not None
        stack.remarks = [issue.message for issue in found]
        return stack

    def examine(self, case: Case, modality: str) -> tuple[Stack | None, list[Issue]]:
        """Decode one subject's slices, and say what is wrong with each."""
        rows, side = case.extra["slices"], case.extra["side"]
        found = [
            issues.info("unused-file", "", f"slice {index}: it has a segmentation and no {modality} image", case.id)
            for index in case.extra["unused"]
        ]
        if unmasked := [index for index, _, brain, _ in rows if brain is None]:
            message = f"no brainmask, brain = image > 0 ({_slices(unmasked)})"
            found.append(issues.info("remark", "", message, case.id))
        white = case.extra.get("white", WHITE)
        if message := dark_remark(case.extra.get("largest", white), white):
            found.append(issues.info("remark", "", message, case.id))
        planes: tuple[list[np.ndarray], ...] = ([], [], [])
        kept: list[int] = []
        for index, *paths in rows:
            if (decoded := _decoded(case, index, *paths, white=white, found=found)) is not None:
                kept.append(index)
                for stack, plane in zip(planes, decoded, strict=True):
                    stack.append(resize.pad_square(plane, side))
        if any(issue.severity == "error" for issue in found):
            return None, found
        image_stack, brain_stack, lesion_stack = (
            np.stack(part) if part else np.zeros((0, side, side), dtype)
            for part, dtype in zip(planes, (np.float32, np.bool_, np.bool_), strict=True)
        )
        if self.params.size is not None and self.params.size != side:
            before, lesion_stack = lesion_stack, resize.resize_mask(lesion_stack, self.params.size)
            for position in resize.lost(before, lesion_stack):
                pixels = int(before[position].sum())
                message = f"slice {kept[position]}: its lesion ({pixels} pixels) was lost in resizing"
                found.append(issues.info("remark", "", message, case.id))
            brain_stack = resize.resize_mask(brain_stack, self.params.size)
            image_stack = np.clip(resize.resize_image(image_stack, self.params.size), 0, 1) * brain_stack
        masked = any(lesion is not None for *_, lesion in rows)
        return Stack(image_stack, brain_stack, lesion_stack if masked else None, kept), found

    def recipe(self) -> dict[str, Any]:
        """The parameters and the steps in words."""
        steps = [
            "intensity: as stored / largest value of the type",
            "brain: brainmask > 0, else image > 0",
            "image 0 outside the brain",
            "pad to a centred square",
            "resize: bilinear with anti-aliasing (image), nearest (masks)",
        ]
        params = self.params.model_dump(mode="json", include=set(SLICE_PIXELS))
        return {**super().recipe(), "params": params, "steps": steps if self.params.size else steps[:-1]}

    # -- what names can show to be wrong ---------------------------------------------------------------------------

    def faults(self) -> Iterator[Issue]:
        """Names that say no modality or mean one slice twice, patients in two splits, masks and images without the other."""
        slices, strays = self._pictures
        loose = [path for path, split in slices if split is None]
        if loose and len(loose) < len(slices):
            message = (
                f"{self.root} has both split folders and PNG files of its own, such as {loose[0].name}: "
                f"move those into train/, val/ or test/, or out of the folder."
            )
            yield issues.error("stray", loose[0], message)
        for folder in sorted({path.parent for path in strays}):
            message = f"{folder} holds PNG files and is none of train/, val/ and test/: move them into one, or out of {self.root}."
            yield issues.error("stray", folder, message)
        yield from name_faults(self._kept)
        yield from self._missing_masks()

    def _missing_masks(self) -> Iterator[Issue]:
        """Subjects that need a segmentation and have none, and slices without one where the subject's others have one."""
        lesions = self._masks[LESION]
        images = [file for file in self._kept if not file.is_mask]
        owners = {(file.split, person(file.subject)) for file in images if file.slice in lesions}
        seen: set[tuple[Split | None, str]] = set()
        for file in images:
            subject = (file.split, person(file.subject))
            if file.slice in lesions or self._left_out(file):
                continue
            lacks = f"{file.path.name} in {file.path.parent} has no segmentation"
            drawn = (
                ", with the lesion that its folder says is there" if file.ill else " (all 0 where there is no lesion)"
            )
            remedy = f"add {file.sibling(LESION)}{drawn}"
            if subject in owners:
                message = f"{lacks} while other slices of {file.subject} have one: {remedy}."
                yield issues.error("missing-mask", file.path, message, file.subject)
            elif subject not in seen and not self._healthy(file):
                if not file.ill and person(file.subject) in self._ill:
                    continue  # said of its slices with a lesion
                seen.add(subject)
                other = "leave such subjects out with --set dataset.unmasked=leave-out"
                if not file.ill:
                    lacks += f", and {file.split}/ declares no subject healthy"
                    other = "say what subjects without one are with --set dataset.unmasked=healthy or leave-out"
                message = f"{lacks}: {remedy}, or {other}."
                yield issues.error("missing-mask", file.path, message, file.subject)

    def scales(self, modality: str) -> Iterator[Issue]:
        """16-bit images of different scales."""
        return scale_faults(self._levels(modality))

    def sizes(self, modality: str) -> Iterator[Issue]:
        """Slices of another size than the first."""
        first: tuple[Path, tuple[int, int]] | None = None
        for path in (file.path for file in self._kept if file.kind == modality):
            try:
                shape = read_shape(path)
            except FileError:  # found when its pixels are read
                continue
            first = first or (path, shape)
            if shape != first[1]:
                one, other = (f"{height}x{width}" for height, width in (shape, first[1]))
                message = f"{path} is {one} and {first[0].name} is {other} (height x width): smaller slices are padded"
                yield issues.warning("shape", path, message)


def _decoded(
    case: Case,
    index: int,
    path: Path,
    brain_path: Path | None,
    lesion_path: Path | None,
    *,
    white: int,
    found: list[Issue],
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Image (0 outside the brain), brain and lesion mask of one slice, each (H, W); None where it is left out or in error.

    What is wrong with it is added to ``found``.
    """
    try:
        image = read_image(path, white)
        brain = image > 0 if brain_path is None else read_mask(brain_path, path, image.shape)
        lesion = read_mask(lesion_path, path, image.shape) if lesion_path else np.zeros_like(brain)
    except FileError as error:
        found.append(Issue("error", error.code, case.id, str(path), str(error)))
        return None
    if not (brain.any() and image.any()):
        what = "no brain in it" if image.any() else "its image is black"
        found.append(issues.warning("black-slice", path, f"slice {index}: left out, {what}", case.id))
        return None
    levels = image[image > 0]
    if brain_path is None and lesion_path is None and levels.min() == levels.max():
        message = f"slice {index}: {path} holds two values alone, as a mask does"
        if levels[0] == 1:
            message += f": if it is one, name it ...-{LESION}.png, otherwise take it out"
            found.append(issues.error("unnamed-mask", path, message, case.id))
        else:
            found.append(issues.warning("black-slice", path, f"{message}: left out", case.id))
        return None
    marked, outside = int(lesion.sum()), int((lesion & ~brain).sum())
    if lesion_path is not None and outside:
        severity = issues.warning if outside >= OUTSIDE_BRAIN * marked else issues.info
        message = f"slice {index}: {outside} of {marked} lesion pixels lie outside the brain"
        found.append(severity("outside-brain", lesion_path, message, case.id))
    if lesion_path is not None and marked and case.extra["train_with_masks"]:
        message = f"slice {index}: it has {marked} lesion pixels in train, and is not trained on"
        found.append(issues.warning("lesion-in-train", lesion_path, message, case.id))
    return np.where(brain, image, np.float32(0)), brain, lesion


def _shown(largest: int, white: int) -> dict[str, int]:
    """What is kept of the 16-bit images of a case: what is white, and their largest value where they use fewer bits."""
    darker = 0 < largest.bit_length() < white.bit_length()
    return {**({"white": white} if white != WHITE else {}), **({"largest": largest} if darker else {})}


def _slices(indices: list[int]) -> str:
    shown = ", ".join(map(str, indices[:8]))
    return f"slice{'s' * (len(indices) > 1)} {shown}{' ...' if len(indices) > 8 else ''}"
