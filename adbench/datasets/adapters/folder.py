"""Data of your own: PNG slices in the layout the MAD-AD authors' tools read or flat and healthy, or NIfTI volumes."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from adbench.datasets.adapters.folder_volumes import (
    FOLDERS,
    SECOND_SCAN,
    SLICE_FIELDS,
    SLICE_PIXELS,
    FolderParams,
    FolderVolumes,
    holds_volumes,
)
from adbench.datasets.base import Case, Dataset, DatasetInfo, Split, Stack
from adbench.datasets.io.file_index import walk
from adbench.datasets.io.filename_patterns import person, second_scan, split_visit
from adbench.datasets.io.png import PNGError, read_image, read_mask
from adbench.datasets.io.png import shape as shape_of
from adbench.datasets.preprocessing import resize
from adbench.datasets.validation.case_checks import OUTSIDE
from adbench.datasets.validation.issues import Finding, Severity, refuse
from adbench.errors import UserError
from adbench.params import ParamSet
from adbench.utils.seeds import derive

SPLITS: tuple[Split, ...] = ("train", "val", "test")
MODALITIES = ("FLAIR", "T1", "T2", "T1CE", "PD")
SPELLINGS = {**{name: name for name in MODALITIES}, "T1W": "T1", "T2W": "T2", "T1C": "T1CE", "PDW": "PD"}
BRAIN, LESION = "brainmask", "segmentation"

_SLICE = re.compile(r"^(?P<subject>.+?)[-_]slice[-_]?(?P<index>\d+)$", re.IGNORECASE)
_TOKEN = re.compile(r"^(?P<rest>.+)[-_](?P<token>[A-Za-z0-9]+)$")


@dataclass(frozen=True)
class _File:
    """One PNG by its name: ``kind`` is a modality, ``brainmask``, ``segmentation`` or "" (no known ending)."""

    path: Path
    split: Split | None
    subject: str
    session: str
    index: int
    kind: str

    @property
    def slice(self) -> tuple[Split | None, str, str, int]:
        return self.split, self.subject, self.session, self.index


class Folder(Dataset):
    """Your own NIfTI volumes, or PNG slices in the MAD-AD layout or flat and healthy.

    A root with NIfTI files and no PNG slices is read as volumes
    (:class:`~adbench.datasets.adapters.folder_volumes.FolderVolumes`). The layout with splits is ``{train|val|test}/{id}-slice_{k}-{MODALITY}.png`` with ``{id}-slice_{k}-brainmask.png``
    and ``{id}-slice_{k}-segmentation.png`` beside it. A folder with PNG files directly inside is taken as healthy: its
    patients are split into train and val by a seeded hash of their id, so a patient has the same role in every modality.
    ``validation``, ``training`` and ``testing`` are other names of the folders; PNG files anywhere else are refused.

    The folder train/, a flat folder, and a val/ in which nobody has a segmentation declare their subjects healthy.
    Anybody else needs one, unless ``unmasked`` says what they are.

    Intensities are taken as stored, divided by the largest value of the type (255, or 65535 for 16 bit). They are not
    normalised again: whoever wrote the slices normalised the volume, and a slice alone no longer knows the range of the
    volume it came from.
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
    excludes_by_name = False  # its parameter is for volumes

    def __new__(cls, params: ParamSet, root: Path | None) -> Folder:
        """Whichever of the two kinds lies at ``root``."""
        if root is not None and root.is_dir() and holds_volumes(root):
            there = _pictures(root)
            slices = [*there.loose, *(path for path, _ in there.found)]
            if not slices:
                return FolderVolumes(params, root)  # type: ignore[return-value]
            raise UserError(f"{root} holds NIfTI volumes and PNG slices such as {slices[0]}: keep one kind in it.")
        return super().__new__(cls)

    def available(self) -> tuple[str, ...]:
        """The modalities found, the one with most files first."""
        return _by_count(self._index)

    def discover(self, modality: str) -> list[Case]:
        """One case per subject and split that has ``modality``, sorted by split and subject; reads PNG headers only."""
        refuse(self.faults())
        return self.found(modality)

    def found(self, modality: str) -> list[Case]:
        """As :meth:`discover`, whatever :meth:`faults` says."""
        images = {file.slice: file for file in self._index if file.kind == modality and not self._left_out(file)}
        if not images:
            raise UserError(
                f"No {modality} slice in {self.root}: there is {', '.join(self.available()) or 'no known modality'}. "
                f"The modality is the last word of a file name, as in sub-01-slice_68-{modality}.png."
            )
        masks = self._masks
        shapes = {shape_of(file.path) for file in images.values()}
        side = resize.square_side(shapes, 1 if self.params.size else resize.MULTIPLE)
        roles = self._drawn(images.values())
        grouped: dict[tuple[Split, str, str], list[_File]] = defaultdict(list)
        for file in images.values():
            grouped[file.split or roles[person(file.subject)], file.subject, file.session].append(file)
        sessions = Counter((split, subject) for split, subject, _ in grouped)
        labelled: dict[tuple[str, str], set[int]] = defaultdict(set)
        for _, subject, session, index in masks[LESION]:
            labelled[subject, session].add(index)
        cases = []
        for (split, subject, session), files in sorted(
            grouped.items(), key=lambda item: (SPLITS.index(item[0][0]), *item[0])
        ):
            files.sort(key=lambda file: file.index)
            rows = [(f.index, f.path, masks[BRAIN].get(f.slice), masks[LESION].get(f.slice)) for f in files]
            unused = labelled[subject, session] - {file.index for file in files}
            cases.append(
                Case(
                    subject=subject,
                    split=split,
                    session=session if sessions[split, subject] > 1 else "",
                    files=tuple(path for row in rows for path in row[1:] if path is not None),
                    healthy="" if any(row[3] for row in rows) else self._healthy(files[0]),
                    extra={"slices": rows, "side": side, "unused": sorted(unused)},
                )
            )
        return cases

    def exclusions(self, modality: str) -> list[str]:
        """Subjects that are left out, and why."""
        left = {f.subject: why for f in self._index if f.kind == modality and (why := self._left_out(f))}
        return [f"{subject}: left out, {why}" for subject, why in sorted(left.items())]

    def load(self, case: Case, modality: str) -> Stack:
        """Decode one subject's slices; the image is set to 0 outside the brain."""
        stack, findings = self.examine(case, modality)
        refuse(findings)
        assert stack is not None
        stack.remarks = [finding.message for finding in findings]
        return stack

    def examine(self, case: Case, modality: str) -> tuple[Stack | None, list[Finding]]:
        """Decode one subject's slices, and say what is wrong with each."""
        rows, side = case.extra["slices"], case.extra["side"]
        findings: list[Finding] = []

        def add(severity: Severity, code: str, message: str, path: Path | str = "") -> None:
            findings.append(Finding(severity, code, case.id, str(path), message))

        for index in case.extra["unused"]:
            add("info", "unused-file", f"slice {index}: it has a segmentation and no {modality} image")
        unmasked = [index for index, _, brain, _ in rows if brain is None]
        if unmasked:
            add("info", "remark", f"no brainmask, brain = image > 0 ({_slices(unmasked)})")
        images, brains, lesions, kept = [], [], [], []
        for index, path, brain_path, lesion_path in rows:
            try:
                image = read_image(path)
                brain = image > 0 if brain_path is None else read_mask(brain_path, path, image.shape)
                lesion = read_mask(lesion_path, path, image.shape) if lesion_path else np.zeros_like(brain)
            except PNGError as error:
                add("error", error.code, str(error), path)
                continue
            if not (brain.any() and image.any()):
                what = "no brain in it" if image.any() else "its image is black"
                add("warning", "black-slice", f"slice {index}: left out, {what}", path)
                continue
            marked, outside = int(lesion.sum()), int((lesion & ~brain).sum())
            if outside:
                severity: Severity = "warning" if outside >= OUTSIDE * marked else "info"
                message = f"slice {index}: {outside} of {marked} lesion pixels lie outside the brain"
                add(severity, "outside-brain", message, lesion_path)
            if marked and case.split == "train":
                message = f"slice {index}: it has {marked} lesion pixels in train, and does not teach"
                add("warning", "lesion-in-train", message, lesion_path)
            images.append(resize.pad_square(np.where(brain, image, np.float32(0)), side))
            brains.append(resize.pad_square(brain, side))
            lesions.append(resize.pad_square(lesion, side))
            kept.append(index)
        if any(finding.severity == "error" for finding in findings):
            return None, findings
        image_stack, brain_stack, lesion_stack = (
            np.stack(part) if part else np.zeros((0, side, side), dtype)
            for part, dtype in ((images, np.float32), (brains, np.bool_), (lesions, np.bool_))
        )
        if self.params.size is not None and self.params.size != side:
            before, lesion_stack = lesion_stack, resize.resize_mask(lesion_stack, self.params.size)
            for position in resize.lost(before, lesion_stack):
                pixels = int(before[position].sum())
                add("info", "remark", f"slice {kept[position]}: its lesion ({pixels} pixels) was lost in resizing")
            brain_stack = resize.resize_mask(brain_stack, self.params.size)
            image_stack = np.clip(resize.resize_image(image_stack, self.params.size), 0, 1) * brain_stack
        masked = any(lesion is not None for *_, lesion in rows)
        return Stack(image_stack, brain_stack, lesion_stack if masked else None, kept), findings

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

    @cached_property
    def _index(self) -> list[_File]:
        """Every PNG by its name, checked for the mistakes that names can show."""
        root = self.root
        for name, field in FolderParams.model_fields.items():
            if name not in SLICE_FIELDS and getattr(self.params, name) != field.default:
                raise UserError(f"dataset.{name} is for NIfTI volumes, and {root} holds none.")
        expected = f"Expected there: {self.info.layout}."
        if root is None:
            raise UserError(f"The dataset folder needs a data root. {expected}")
        if not root.is_dir():
            raise UserError(f"The data root {root} {'is not a folder' if root.exists() else 'is missing'}. {expected}")
        there = self._pictures
        if not there.found and not there.loose:
            inside = sorted(entry.name for entry in root.iterdir())
            what = f"only {', '.join(inside[:5])}{' ...' if len(inside) > 5 else ''}" if inside else "nothing"
            where = f" (PNG files lie in {there.strays[0].parent})" if there.strays else ""
            raise UserError(f"No PNG slices in {root}, which holds {what}{where}. {expected}")
        return [self._named(path, split) for path, split in (*there.found, *((path, None) for path in there.loose))]

    @cached_property
    def _pictures(self) -> _Pictures:
        assert self.root is not None
        return _pictures(self.root)

    def _named(self, path: Path, split: Split | None) -> _File:
        rest, kind = path.stem, ""
        if match := _TOKEN.match(path.stem):
            token = match["token"]
            kind = token.lower() if token.lower() in (BRAIN, LESION) else SPELLINGS.get(token.upper(), "")
            rest = match["rest"] if kind else rest
        numbered = _SLICE.match(rest)
        name, index = (numbered["subject"], int(numbered["index"])) if numbered else (rest, 0)
        return _File(path, split, *split_visit(name), index, kind or self.params.modality.upper())

    # -- what names can show to be wrong ------------------------------------------------------------------------------

    def faults(self) -> Iterator[Finding]:
        """Names that say no modality or mean one slice twice, patients in two splits, masks and images without the other."""
        files, there = self._index, self._pictures
        if there.found and there.loose:
            message = (
                f"{self.root} has both split folders and PNG files of its own, such as {there.loose[0].name}: "
                f"move those into train/, val/ or test/, or out of the folder."
            )
            yield Finding("error", "stray", "", str(there.loose[0]), message)
        for folder in sorted({path.parent for path in there.strays}):
            message = f"{folder} holds PNG files and is none of train/, val/ and test/: move them into one, or out of {self.root}."
            yield Finding("error", "stray", "", str(folder), message)
        yield from _name_faults(files)
        yield from self._mask_faults([file for file in files if file.kind not in (BRAIN, LESION)])

    def _mask_faults(self, images: list[_File]) -> Iterator[Finding]:
        """Subjects that need a segmentation and have none, and slices without one where the subject's others have one."""
        lesions = self._masks[LESION]
        owners = {(file.split, file.subject) for file in images if file.slice in lesions}
        seen: set[Any] = set()
        for file in images:
            subject = (file.split, file.subject)
            if file.slice in lesions or self._left_out(file):
                continue
            if subject in owners:
                message = (
                    f"{file.path.name} in {file.path.parent} has no segmentation while other slices of {file.subject} have "
                    f"one: add {_sibling(file.path, LESION)} (all 0 where there is no lesion)."
                )
                yield Finding("error", "missing-mask", file.subject, str(file.path), message)
            elif subject not in seen and not self._healthy(file):
                seen.add(subject)
                message = (
                    f"{file.path.name} in {file.path.parent} has no segmentation, and {file.split}/ declares nobody healthy: "
                    f"add {_sibling(file.path, LESION)} (all 0 where there is no lesion), or say what subjects without one are "
                    "with --set dataset.unmasked=healthy or leave-out."
                )
                yield Finding("error", "missing-mask", file.subject, str(file.path), message)

    def sizes(self, modality: str) -> Iterator[Finding]:
        """Slices of another size than the first."""
        first: tuple[Path, tuple[int, int]] | None = None
        for path in (file.path for file in self._index if file.kind == modality):
            try:
                shape = shape_of(path)
            except PNGError:  # found when its pixels are read
                continue
            first = first or (path, shape)
            if shape != first[1]:
                one, other = (f"{height}x{width}" for height, width in (shape, first[1]))
                message = f"{path} is {one} and {first[0].name} is {other} (height x width): smaller slices are padded"
                yield Finding("warning", "shape", "", str(path), message)

    @cached_property
    def _masks(self) -> dict[str, dict[Any, Path]]:
        return {kind: {f.slice: f.path for f in self._index if f.kind == kind} for kind in (BRAIN, LESION)}

    @cached_property
    def _masked_roles(self) -> set[Split | None]:
        return {file.split for file in self._index if file.kind == LESION}

    def _healthy(self, file: _File) -> str:
        """Why the subject of ``file`` counts as healthy when it has no segmentation; "" when nobody says so."""
        if self.params.unmasked == "healthy":
            return "dataset.unmasked says so"
        if file.split is None:
            return "it lies in a flat folder, which is for healthy subjects"
        if file.split == "train":
            return "it lies in train/, which is for healthy subjects"
        if file.split == "val" and "val" not in self._masked_roles:
            return "it lies in val/, where nobody has a segmentation"
        return ""

    def _left_out(self, file: _File) -> str:
        """Why the subject of ``file`` takes no role, or ""."""
        if second_scan(file.subject) and self.params.second_scans != "use":
            return SECOND_SCAN
        masked = file.kind in (BRAIN, LESION) or (file.split, file.subject) in self._masked
        if self.params.unmasked == "leave-out" and not masked and not self._healthy(file):
            return "it has no segmentation and dataset.unmasked is leave-out"
        return ""

    @cached_property
    def _masked(self) -> set[tuple[Split | None, str]]:
        return {(file.split, file.subject) for file in self._index if file.kind == LESION}

    def _drawn(self, files: Iterable[_File]) -> dict[str, Split]:
        """The split of every patient of a flat folder, drawn by the first of the names that he has."""
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


@dataclass(frozen=True)
class _Pictures:
    """PNG files below a root: directly in it, in a split folder with their split, and anywhere else."""

    loose: list[Path]
    found: list[tuple[Path, Split]]
    strays: list[Path]


def _pictures(root: Path) -> _Pictures:
    loose: list[Path] = []
    found: list[tuple[Path, Split]] = []
    strays: list[Path] = []
    for path in walk(root).pictures:
        folders = path.relative_to(root).parts[:-1]
        if not folders:
            loose.append(path)
        elif len(folders) == 1 and folders[0].lower() in FOLDERS:
            found.append((path, FOLDERS[folders[0].lower()]))
        else:
            strays.append(path)
    return _Pictures(loose, sorted(found, key=lambda item: (SPLITS.index(item[1]), item[0])), strays)


def _by_count(files: Iterable[_File]) -> tuple[str, ...]:
    counts = Counter(file.kind for file in files if file.kind not in (BRAIN, LESION))
    return tuple(sorted(counts, key=lambda name: (-counts[name], name)))


def _slices(indices: list[int]) -> str:
    shown = ", ".join(map(str, indices[:8]))
    return f"slice{'s' * (len(indices) > 1)} {shown}{' ...' if len(indices) > 8 else ''}"


def _sibling(path: Path, kind: str) -> str:
    match = _TOKEN.match(path.stem)
    return f"{match['rest'] if match else path.stem}-{kind}.png"


def _name_faults(files: list[_File]) -> Iterator[Finding]:
    """Names without a modality, names that mean the same slice, masks without image, patients in two splits."""

    def error(code: str, file: _File, message: str) -> Finding:
        return Finding("error", code, file.subject, str(file.path), message)

    seen: dict[Any, Path] = {}
    homes: dict[str, _File] = {}
    told: set[str] = set()
    imaged = {file.slice for file in files if file.kind not in (BRAIN, LESION)}
    for file in files:
        if not file.kind:
            message = (
                f"The name of {file.path} does not end with a modality ({', '.join(MODALITIES)}), {BRAIN} or {LESION}: "
                f"rename it as in sub-01-slice_68-FLAIR.png, or give their modality with --set dataset.modality=FLAIR."
            )
            yield error("unnamed-image", file, message)
            continue
        other = seen.setdefault((file.slice, file.kind), file.path)
        if other != file.path:
            message = (
                f"{other.name} and {file.path.name} in {file.path.parent} are both {file.kind} of slice {file.index} of "
                f"{file.subject}: remove or renumber one."
            )
            yield error("conflict", file, message)
        who = person(file.subject)
        home = homes.setdefault(who, file)
        if home.split != file.split and who not in told:
            told.add(who)
            message = (
                f"The subject {file.subject} is in two splits, {home.split} ({home.path.name}) and {file.split} "
                f"({file.path.name}): keep each subject in one."
            )
            yield error("two-roles", file, message)
        if file.kind in (BRAIN, LESION) and file.slice not in imaged:
            message = f"{file.path} has no image beside it: add {_sibling(file.path, 'FLAIR')} or remove the mask."
            yield error("missing-image", file, message)
