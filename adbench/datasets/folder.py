"""Data of your own: PNG slices in the layout the MAD-AD authors' tools read or flat and healthy, or NIfTI volumes."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from adbench.datasets import grid
from adbench.datasets.base import Case, Dataset, DatasetInfo, Split, Stack
from adbench.datasets.folder_volumes import SLICE_FIELDS, FolderParams, FolderVolumes, holds_volumes
from adbench.errors import UserError
from adbench.params import ParamSet
from adbench.seeds import derive

if TYPE_CHECKING:
    from PIL import Image

SPLITS: tuple[Split, ...] = ("train", "val", "test")
MODALITIES = ("FLAIR", "T1", "T2", "T1CE", "PD")
SPELLINGS = {**{name: name for name in MODALITIES}, "T1W": "T1", "T2W": "T2", "T1C": "T1CE", "PDW": "PD"}
BRAIN, LESION = "brainmask", "segmentation"

_SLICE = re.compile(r"^(?P<subject>.+?)[-_]slice[-_]?(?P<index>\d+)$", re.IGNORECASE)
_TOKEN = re.compile(r"^(?P<rest>.+)[-_](?P<token>[A-Za-z0-9]+)$")
_IXI = re.compile(r"^(?P<subject>IXI\d{3})(?:[-_](?P<session>.+))?$")


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
    (:class:`~adbench.datasets.folder_volumes.FolderVolumes`). The layout with splits is ``{train|val|test}/{id}-slice_{k}-{MODALITY}.png`` with ``{id}-slice_{k}-brainmask.png``
    and ``{id}-slice_{k}-segmentation.png`` beside it. A folder with PNG files directly inside is taken as healthy: its
    subjects are split into train and val by a seeded hash of their id, so a subject has the same role in every
    modality. IXI subjects are told apart by their IXI number alone.

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

    def __new__(cls, params: ParamSet, root: Path | None) -> Folder:
        """Whichever of the two kinds lies at ``root``."""
        if root is not None and root.is_dir() and holds_volumes(root):
            slices = next((found[0] for found in (_pngs(root / name) for name in ("", *SPLITS)) if found), None)
            if slices is None:
                return FolderVolumes(params, root)  # type: ignore[return-value]
            raise UserError(f"{root} holds NIfTI volumes and PNG slices such as {slices}: keep one kind in it.")
        return super().__new__(cls)

    def available(self) -> tuple[str, ...]:
        """The modalities found, the one with most files first."""
        return _by_count(self._index)

    def discover(self, modality: str) -> list[Case]:
        """One case per subject and split that has ``modality``, sorted by split and subject; reads PNG headers only."""
        images = {file.slice: file for file in self._index if file.kind == modality}
        if not images:
            raise UserError(
                f"No {modality} slice in {self.root}: there is {', '.join(self.available()) or 'no known modality'}. "
                f"The modality is the last word of a file name, as in sub-01-slice_68-{modality}.png."
            )
        masks = {kind: {f.slice: f.path for f in self._index if f.kind == kind} for kind in (BRAIN, LESION)}
        shapes = {_shape(file.path) for file in images.values()}
        side = grid.square_side(shapes, 1 if self.params.size else grid.MULTIPLE)
        roles = self._roles(images.values())
        grouped: dict[tuple[Split, str, str], list[_File]] = defaultdict(list)
        for file in images.values():
            grouped[roles[file.subject], file.subject, file.session].append(file)
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
                    extra={"slices": rows, "side": side, "unused": sorted(unused)},
                )
            )
        return cases

    def load(self, case: Case, modality: str) -> Stack:
        """Decode one subject's slices; the image is set to 0 outside the brain."""
        rows, side = case.extra["slices"], case.extra["side"]
        remarks = [f"slice {index}: it has a segmentation and no {modality} image" for index in case.extra["unused"]]
        unmasked = [index for index, _, brain, _ in rows if brain is None]
        if unmasked:
            remarks.append(f"no brainmask, brain = image > 0 ({_slices(unmasked)})")
        masked = any(lesion is not None for *_, lesion in rows)
        images, brains, lesions, kept = [], [], [], []
        for index, path, brain_path, lesion_path in rows:
            image = _read_image(path)
            brain = image > 0 if brain_path is None else _read_mask(brain_path, path, image.shape)
            if masked and lesion_path is None:
                raise UserError(
                    f"{path.name} in {path.parent} has no segmentation while other slices of {case.subject} have one: "
                    f"add {_sibling(path, LESION)} (all 0 where there is no lesion)."
                )
            lesion = _read_mask(lesion_path, path, image.shape) if lesion_path else np.zeros_like(brain)
            if not brain.any():
                remarks.append(f"slice {index}: left out, no brain in it")
                continue
            if outside := int((lesion & ~brain).sum()):
                remarks.append(f"slice {index}: {outside} of {int(lesion.sum())} lesion pixels lie outside the brain")
            images.append(grid.pad_square(np.where(brain, image, np.float32(0)), side))
            brains.append(grid.pad_square(brain, side))
            lesions.append(grid.pad_square(lesion, side))
            kept.append(index)
        image_stack, brain_stack, lesion_stack = (
            np.stack(part) if part else np.zeros((0, side, side), dtype)
            for part, dtype in ((images, np.float32), (brains, np.bool_), (lesions, np.bool_))
        )
        if self.params.size is not None and self.params.size != side:
            before, lesion_stack = lesion_stack, grid.resize_mask(lesion_stack, self.params.size)
            for position in grid.lost(before, lesion_stack):
                remarks.append(
                    f"slice {kept[position]}: its lesion ({int(before[position].sum())} pixels) was lost in resizing"
                )
            brain_stack = grid.resize_mask(brain_stack, self.params.size)
            image_stack = np.clip(grid.resize_image(image_stack, self.params.size), 0, 1) * brain_stack
        return Stack(image_stack, brain_stack, lesion_stack if masked else None, kept, remarks)

    def recipe(self) -> dict[str, Any]:
        """The parameters and the steps in words."""
        steps = [
            "intensity: as stored / largest value of the type",
            "brain: brainmask > 0, else image > 0",
            "image 0 outside the brain",
            "pad to a centred square",
            "resize: bilinear with anti-aliasing (image), nearest (masks)",
        ]
        params = self.params.model_dump(mode="json", include=set(SLICE_FIELDS))
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
        found = {split: _pngs(root / split) for split in SPLITS}
        loose = _pngs(root)
        if any(found.values()) and loose:
            raise UserError(
                f"{root} has both split folders and PNG files of its own, such as {loose[0].name}: "
                f"move those into train/, val/ or test/, or out of the folder."
            )
        if not any(found.values()) and not loose:
            inside = sorted(entry.name for entry in root.iterdir())
            what = f"only {', '.join(inside[:5])}{' ...' if len(inside) > 5 else ''}" if inside else "nothing"
            raise UserError(f"No PNG slices in {root}, which holds {what}. {expected}")
        files = [self._named(path, split) for split, paths in found.items() for path in paths]
        files += [self._named(path, None) for path in loose]
        _check_names(files)
        return files

    def _named(self, path: Path, split: Split | None) -> _File:
        rest, kind = path.stem, ""
        if match := _TOKEN.match(path.stem):
            token = match["token"]
            kind = token.lower() if token.lower() in (BRAIN, LESION) else SPELLINGS.get(token.upper(), "")
            rest = match["rest"] if kind else rest
        numbered = _SLICE.match(rest)
        subject, index = (numbered["subject"], int(numbered["index"])) if numbered else (rest, 0)
        ixi = _IXI.match(subject)
        session = (ixi["session"] or "") if ixi else ""
        return _File(
            path, split, ixi["subject"] if ixi else subject, session, index, kind or self.params.modality.upper()
        )

    def _roles(self, files: Iterable[_File]) -> dict[str, Split]:
        """The split of every subject: its folder, or for a flat folder a seeded draw."""
        given = {file.subject: file.split for file in files}
        if all(given.values()):
            return cast("dict[str, Split]", given)
        draws = {subject: derive(self.params.split_seed, "folder", subject) / 2**63 for subject in given}
        roles: dict[str, Split] = {s: "val" if draw < self.params.val_share else "train" for s, draw in draws.items()}
        order = sorted(draws, key=lambda subject: draws[subject])
        if len(order) > 1 and self.params.val_share > 0:  # a small folder still gets both
            roles[order[0]], roles[order[-1]] = "val", "train"
        return roles


def _pngs(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() == ".png" and p.name[0] != "." and p.is_file())


def _by_count(files: Iterable[_File]) -> tuple[str, ...]:
    counts = Counter(file.kind for file in files if file.kind not in (BRAIN, LESION))
    return tuple(sorted(counts, key=lambda name: (-counts[name], name)))


def _slices(indices: list[int]) -> str:
    shown = ", ".join(map(str, indices[:8]))
    return f"slice{'s' * (len(indices) > 1)} {shown}{' ...' if len(indices) > 8 else ''}"


def _sibling(path: Path, kind: str) -> str:
    match = _TOKEN.match(path.stem)
    return f"{match['rest'] if match else path.stem}-{kind}.png"


def _check_names(files: list[_File]) -> None:
    """Refuse names without a modality, names that mean the same slice, masks without image, subjects in two splits."""
    seen: dict[Any, Path] = {}
    homes: dict[str, _File] = {}
    for file in files:
        if not file.kind:
            raise UserError(
                f"The name of {file.path} does not end with a modality ({', '.join(MODALITIES)}), {BRAIN} or {LESION}: "
                f"rename it as in sub-01-slice_68-FLAIR.png, or give their modality with --set dataset.modality=FLAIR."
            )
        other = seen.setdefault((file.slice, file.kind), file.path)
        if other != file.path:
            raise UserError(
                f"{other.name} and {file.path.name} in {file.path.parent} are both {file.kind} of slice {file.index} of "
                f"{file.subject}: remove or renumber one."
            )
        home = homes.setdefault(file.subject, file)
        if home.split != file.split:
            raise UserError(
                f"The subject {file.subject} is in two splits, {home.split} ({home.path.name}) and {file.split} "
                f"({file.path.name}): keep each subject in one."
            )
    imaged = {file.slice for file in files if file.kind not in (BRAIN, LESION)}
    for file in files:
        if file.kind in (BRAIN, LESION) and file.slice not in imaged:
            raise UserError(
                f"{file.path} has no image beside it: add {_sibling(file.path, 'FLAIR')} or remove the mask."
            )


def _open(path: Path) -> Image.Image:
    from PIL import Image

    try:
        return Image.open(path, formats=["PNG"])
    except (OSError, SyntaxError, ValueError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> UserError:
    what = "it is empty" if path.exists() and not path.stat().st_size else f"{type(error).__name__}: {error}"
    return UserError(f"{path} cannot be read as a PNG image ({what}). Replace or remove the file.")


def _shape(path: Path) -> tuple[int, int]:
    with _open(path) as image:
        return image.height, image.width


def _pixels(path: Path) -> np.ndarray:
    """(H, W) of the stored type; colour images whose channels are equal count as grey."""
    with _open(path) as image:
        try:
            image.load()
            if image.mode in ("RGB", "RGBA", "P", "LA", "PA"):
                colour = np.asarray(image.convert("RGB"))
                if (colour != colour[..., :1]).any():
                    raise UserError(f"{path} is a colour image, expected grey: save it as 8-bit greyscale.")
                return colour[..., 0]
            return np.asarray(image)
        except (OSError, SyntaxError, ValueError) as error:
            raise _unreadable(path, error) from None


def _read_image(path: Path) -> np.ndarray:
    pixels = _pixels(path)
    if pixels.dtype == np.bool_:
        return pixels.astype(np.float32)
    return pixels.astype(np.float32) / (255 if pixels.dtype == np.uint8 else 65535)


def _read_mask(path: Path, image: Path, shape: tuple[int, ...]) -> np.ndarray:
    mask = _pixels(path) > 0
    if mask.shape != shape:
        raise UserError(
            f"{path} is {mask.shape[0]}x{mask.shape[1]} and its image {image.name} is {shape[0]}x{shape[1]} "
            f"(height x width): masks must lie on the image's grid."
        )
    return mask
