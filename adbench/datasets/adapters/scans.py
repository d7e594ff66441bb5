"""Index of the scans below a data root, and the properties expected of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adbench.datasets.io.archive import File, FileError, refuse_unreadable
from adbench.datasets.io.file_index import FoundFiles
from adbench.datasets.io.filename_patterns import SETS, common_name, stem_of
from adbench.datasets.io.mask_names import BRAIN, LESION
from adbench.datasets.io.nifti import read_header
from adbench.datasets.io.nifti_header import Header, by, off_grid
from adbench.errors import UserError


@dataclass(frozen=True)
class Expected:
    """Properties of the volumes of a dataset as distributed; ``data check`` compares every file with them.

    Attributes:
        sequences: that every case should have.
        lesion: whether every case should have a lesion mask.
        labels: values a lesion mask may hold -> what they mark; empty: any integer.
        shape: voxels of every volume; None when it varies.
        zooms: voxel size, mm; None when it varies.
        orientation: of the stored axes ("LPS"); "" when it varies.
        integers: whether images are stored as integers.
        one_grid: whether all sequences of a case share a grid.
        zero_background: whether everything outside the brain is exactly 0.
        known_missing: (subject, sequence) that the distribution lacks, in capitals.
        skull: whether images show the skull; None: each one's share of background says it.
        on_template: whether images lie on the MNI152 2009a 1 mm grid.
        companion: the modality whose brain mask and registration serve all others; "" when each has its own.
        healthy: why subjects count as healthy without a lesion mask; "" when nothing says so.
        channels: the sequences of a 4-D file, in their order.
        drawn_on: the sequence on whose grid lesion masks lie where not all share one; the nearest voxel carries them to
            the others.
        not_counted: labels that are neither lesion nor healthy. Their voxels do not count, and slices that hold them and no
            lesion are left out.
        unlabelled: name of the folder whose masks were not published; "" when there is none.
    """

    sequences: tuple[str, ...]
    lesion: bool
    labels: Mapping[int, str] = field(default_factory=dict)
    shape: tuple[int, int, int] | None = None
    zooms: tuple[float, float, float] | None = None
    orientation: str = ""
    integers: bool = False
    one_grid: bool = True
    zero_background: bool = False
    known_missing: frozenset[tuple[str, str]] = frozenset()
    skull: bool | None = True
    on_template: bool = False
    companion: str = ""
    healthy: str = ""
    channels: tuple[str, ...] = ()
    drawn_on: str = ""
    not_counted: tuple[int, ...] = ()
    unlabelled: str = ""


@dataclass(frozen=True)
class Scan:
    """The files of one subject and session.

    Attributes:
        session: as the file names give it.
        files: modality, ``lesion`` or ``brain`` -> file.
        flags: known remarks ("artefact").
        channels: modality -> its place in a 4-D file.
        pieces: every lesion mask, where there are several.
    """

    subject: str
    session: str = ""
    site: str = ""
    files: Mapping[str, File] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    channels: Mapping[str, int] = field(default_factory=dict)
    pieces: tuple[File, ...] = ()

    @property
    def id(self) -> str:
        """Subject and session in one word."""
        return f"{self.subject}_{self.session}" if self.session else self.subject

    @property
    def sequences(self) -> tuple[str, ...]:
        """The modalities that are there."""
        return tuple(kind for kind in self.files if kind not in (LESION, BRAIN))

    @property
    def first(self) -> File:
        """Its first file, for messages."""
        return next(iter(self.files.values()))


@dataclass
class Index:
    """Everything found below a root.

    Attributes:
        scans: sorted by subject and session.
        duplicates: (the file that is used, a second one of the same content, subject, session and kind).
        conflicts: (scan, the file that is used, a second one of other content for the same kind, the kind).
        passed_over: (the file that is used, another one that a rule ranks behind it).
        unclear: (scan, a mask whose name does not say of what).
        orphans: (scan, a lesion mask of a run or acquisition whose image is not there, an image that is).
        unused: volumes whose names follow no pattern of this dataset, or of sequences that are not used.
        files: everything that lies there.
    """

    scans: list[Scan]
    duplicates: list[tuple[File, File]]
    conflicts: list[tuple[Scan, File, File, str]]
    passed_over: list[tuple[File, File]]
    unclear: list[tuple[Scan, File]]
    orphans: list[tuple[Scan, File, File]]
    unused: list[str]
    files: FoundFiles


def nothing_found(
    name: str,
    families: Collection[str],
    root: Path,
    below: FoundFiles,
    others: Mapping[str, list[str]],
    expected: str,
    patterned: str,
) -> UserError:
    """Why a root without a single file of a dataset is not usable.

    Args:
        name: of the dataset.
        families: keys of :data:`SETS` that it reads; none for data of your own.
        root: where nothing of it is.
        below: what is there instead.
        others: other families -> their files.
        expected: a sentence on what should be there.
        patterned: "" where the dataset takes patterns of names, else what stands before the advice to give one.
    """
    title = " or ".join(SETS[family].title for family in sorted(families)) or name
    for family, paths in others.items():
        known = SETS[family]
        hint = f"use --dataset {known.dataset}" if known.dataset else known.instead or "it has no adapter of its own"
        if {family, *families} >= {"brats21", "brats23"}:
            hint += "; the two hold the same patients with other labels (3 or 4 is the enhancing tumour), and only one may be used"
        looks = f"this looks like {known.title} ({paths[0]}); {hint}"
        if not families and not known.dataset:
            continue
        start = f"No {title} file in {root}" if families else f"No file in {root} has a name of your own"
        return UserError(f"{start}: {looks}. {expected}")
    for archive in [*below.partial, *below.archives]:
        refuse_unreadable(archive)
        return UserError(
            f"No {title} file in {root}, but the archive {archive.name}: unpack it once with "
            f"`adbench data unpack '{archive}' --out DIR` and give DIR as the data root."
        )
    if below.volumes:
        first = next(iter(below.volumes))
        none = f"None of the {len(below.volumes)} NIfTI files in {root}"
        if families or patterned:
            return UserError(
                f"{none} is named as in {title}, e.g. {first}. {expected} For names of your own there is --dataset folder."
            )
        return UserError(
            f"{none} says by its name what it is, e.g. {first}. Say it with --set dataset.image_pattern=..., such as "
            "{subject}/{subject}_{modality}.nii.gz."
        )
    if below.broken:
        return UserError(f"{root} holds only broken links, such as {below.broken[0]}. {expected}")
    others_there = below.others + len(below.pictures) or "no"
    return UserError(f"No NIfTI file in {root}, which holds {others_there} other files. {expected}")


def require_channels(file: File, header: Header, names: Sequence[str]) -> None:
    """Refuse a 4-D file with fewer or more channels than are named: which is which is then not known.

    Raises:
        FileError: names the file.
    """
    count = header.shape[3] if len(header.shape) == 4 else 1
    listed = ", ".join(name or "(unknown)" for name in names)
    has = f"{file} has {count} channels ({by(header.shape)} voxels), and"
    if count < len(names):
        raise FileError("axes", f"{has} channel {len(names)} is wanted: the file should hold {listed}, in this order.")
    if count > len(names):
        raise FileError(
            "axes",
            f"{has} {len(names)} are named ({listed}): which ones they are is not known. Name every channel, in its order, in the "
            "dataset.json beside the images, or with --dataset nnunet in dataset.channels.",
        )


def swapped(drawn_on: str) -> str:
    """Hint for a lesion mask that is off the grid of the sequence it was drawn on."""
    return f", on which it is drawn: is {drawn_on} another sequence's file?"


def refuse_swapped(mask: File, header: Header, image: File, drawn_on: str) -> None:
    """Refuse a lesion mask that does not lie on the grid of ``image``, the sequence ``drawn_on``.

    Raises:
        FileError: names both.
    """
    if difference := off_grid(header, read_header(image)):
        what = f"{mask} does not lie on the grid of {image.name}: {difference}{swapped(drawn_on)}"
        raise FileError("off-grid", what)


def none_usable(name: str, root: Path, remarks: Sequence[str], unused: Sequence[str]) -> UserError:
    """Why no case of the dataset ``name`` is usable.

    Args:
        name: of the dataset.
        root: of the data.
        remarks: why cases are left out.
        unused: files with no name of the dataset's: a mask among them, else the first, may be what the cases lack.
    """
    masks = (path for path in unused if (said := common_name(stem_of(path))) and said.kind == LESION)
    misnamed = next(masks, next(iter(unused), ""))
    hint = misnamed and f" {misnamed} has no name of {name}'s; --dataset folder reads more names."
    return UserError(f"No case of {name} in {root} is usable: {'; '.join(remarks[:3])}.{hint}")


def several_sets(name: str, root: Path, families: Mapping[str, list[str]]) -> UserError:
    """Why a root with the files of several ``families`` is not usable for the dataset ``name``."""
    listed = " and ".join(f"{SETS[f].title} ({len(p)} files, e.g. {p[0]})" for f, p in sorted(families.items()))
    same = ", which hold the same patients" if {"brats21", "brats23"} <= set(families) else ""
    return UserError(
        f"{root} mixes {listed}{same}: give each dataset a folder of its own and name the one of {name} with --data-root."
    )
