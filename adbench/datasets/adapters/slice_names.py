"""Parse the file names of PNG slices: subject, slice, kind, and problems that the names show."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from adbench.datasets import issues
from adbench.datasets.adapters.own_volumes import FOLDERS
from adbench.datasets.base import Split
from adbench.datasets.io.filename_patterns import MODALITIES, common_name, modality_of
from adbench.datasets.io.patient_names import person, split_visit
from adbench.datasets.issues import Issue
from adbench.datasets.splits import ROLES

BRAIN, LESION = "brainmask", "segmentation"  # as the last word of a file's name
OTHER_MASK = "mask"  # any other word for one

_SLICE = re.compile(r"^(?P<subject>.+?)[-_]slice[-_]?(?P<index>\d+)$", re.IGNORECASE)
_BMAD = re.compile(r"^(?P<subject>\d+)_(?P<index>\d+)$")
_LAST_WORD = re.compile(r"^(?P<rest>.+)[-_](?P<word>[A-Za-z0-9]+)$")
GOOD, UNGOOD = "good", "ungood"  # folders of BMAD
_BELOW = {(), *((v, *p) for v in (GOOD, UNGOOD) for p in ((), ("img",), ("label",)))}  # a split folder, as in BMAD
SliceId = tuple[Split | None, str, str, int]  # role by its folder, subject, session, index


@dataclass(frozen=True)
class SliceFile:
    """One PNG by its name: ``kind`` is a modality, ``brainmask``, ``segmentation``, ``mask`` (another word for one) or ""."""

    path: Path
    split: Split | None
    subject: str
    session: str
    index: int
    kind: str

    @property
    def slice(self) -> SliceId:
        """What an image and its masks have in common."""
        return self.split, self.subject, self.session, self.index

    @property
    def case(self) -> str:
        """Subject and session in one word."""
        return f"{self.subject}_{self.session}" if self.session else self.subject

    @property
    def is_mask(self) -> bool:
        """Whether it is a mask of brain, lesion or anything else, and no image."""
        return self.kind in (BRAIN, LESION, OTHER_MASK)

    @property
    def ill(self) -> bool:
        """Whether its folder says that there is a lesion in it."""
        return verdict(self.path) == UNGOOD

    def sibling(self, kind: str) -> str:
        """Name of the file of another kind beside it."""
        if kind == LESION and verdict(self.path):
            return f"label/{self.path.name}"
        match = _LAST_WORD.match(self.path.stem)
        return f"{match['rest'] if match else self.path.stem}-{kind}.png"


def named_slice(path: Path, split: Split | None, modality: str) -> SliceFile:
    """Parse the name of a PNG slice.

    Args:
        path: of the file.
        split: role by its folder.
        modality: that was stated for names that do not say it, "" for none.
    """
    rest, kind = path.stem, ""
    if match := _LAST_WORD.match(path.stem):
        word = match["word"]
        kind = word.lower() if word.lower() in (BRAIN, LESION) else modality_of(word)
        known = None if kind else common_name(path.stem)
        kind = OTHER_MASK if known else kind
        rest = match["rest"] if kind else rest
    numbered = _SLICE.match(rest)
    if verdict(path) and not kind:
        numbered = numbered or _BMAD.match(rest)
        kind = LESION if path.parent.name.lower() == "label" else ""
    name, index = (numbered["subject"], int(numbered["index"])) if numbered else (rest, 0)
    return SliceFile(path, split, *split_visit(name), index, kind or modality.upper())


def verdict(path: Path) -> str:
    """Label of a slice by its folder, as in BMAD: good or ungood; "" in any other layout."""
    return next((folder.lower() for folder in path.parts[-3:-1] if folder.lower() in (GOOD, UNGOOD)), "")


def only_folder(root: Path) -> Path:
    """``root``, or the folder below it that holds the splits where nothing else lies beside it ("Brain" of BMAD)."""
    if not root.is_dir():
        return root
    inside = [entry for entry in root.iterdir() if not entry.name.startswith(".")]
    if len(inside) != 1 or not inside[0].is_dir() or inside[0].name.lower() in FOLDERS:
        return root
    return inside[0] if any(entry.is_dir() and entry.name.lower() in FOLDERS for entry in inside[0].iterdir()) else root


def by_split(root: Path, pictures: Iterable[Path]) -> tuple[list[tuple[Path, Split | None]], list[Path]]:
    """Slices with the role of their folder (None directly in ``root``), ordered by role; and PNG files anywhere else."""
    slices: list[tuple[Path, Split | None]] = []
    strays: list[Path] = []
    for path in pictures:
        folders = [folder.lower() for folder in path.relative_to(root).parts[:-1]]
        if not folders or (folders[0] in FOLDERS and tuple(folders[1:]) in _BELOW):
            slices.append((path, FOLDERS[folders[0]] if folders else None))
        else:
            strays.append(path)
    return sorted(slices, key=lambda item: (len(ROLES) if item[1] is None else ROLES.index(item[1]), item[0])), strays


def name_faults(files: list[SliceFile]) -> Iterator[Issue]:
    """Names without a modality, names that mean the same slice, masks without image, patients in two splits."""
    seen: dict[tuple[SliceId, str], Path] = {}
    homes: dict[str, SliceFile] = {}
    reported: set[str] = set()
    imaged = {file.slice for file in files if not file.is_mask}
    for file in files:
        if not file.kind:
            message = (
                f"The name of {file.path} does not end with a modality ({', '.join(MODALITIES)}), {BRAIN} or {LESION}: "
                f"rename it as in sub-01-slice_68-FLAIR.png, or give their modality with --set dataset.modality=FLAIR."
            )
            yield issues.error("unnamed-image", file.path, message, file.subject)
            continue
        if file.kind == OTHER_MASK:
            message = (
                f"{file.path} is named like a mask: name it {file.sibling(LESION)} if it marks lesions, {file.sibling(BRAIN)} if "
                "it marks the brain, or take it out."
            )
            yield issues.error("unnamed-mask", file.path, message, file.subject)
            continue
        other = seen.setdefault((file.slice, file.kind), file.path)
        if other != file.path:
            message = (
                f"{other.name} and {file.path.name} in {file.path.parent} are both {file.kind} of slice {file.index} of "
                f"{file.subject}: remove or renumber one."
            )
            yield issues.error("conflict", file.path, message, file.subject)
        who = person(file.subject)
        home = homes.setdefault(who, file)
        if home.split != file.split and who not in reported:
            reported.add(who)
            message = (
                f"The subject {file.subject} is in two splits, {home.split} ({home.path.name}) and {file.split} "
                f"({file.path.name}): keep each subject in one."
            )
            yield issues.error("two-roles", file.path, message, file.subject)
        if file.is_mask and file.slice not in imaged:
            message = f"{file.path} has no image beside it: add {file.sibling('FLAIR')} or remove the mask."
            yield issues.error("missing-image", file.path, message, file.subject)
