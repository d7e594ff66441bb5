"""An index of the files below a data root: NIfTI files, those inside tar archives, and what cannot be read."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from adbench.datasets.io import archive, nifti
from adbench.datasets.io.archive import File, FileError, read_bytes
from adbench.datasets.io.nifti import SUFFIXES
from adbench.errors import UserError

DATASET_JSON = "dataset.json"


@dataclass
class FoundFiles:
    """Files found below a root; every list is sorted.

    Attributes:
        volumes: path below the root (with ``/``) -> file; a member of a tar has the archive's name as a folder.
        archives: archives that were not opened.
        broken: links that lead nowhere.
        partial: unfinished downloads.
        pairs: headers of volumes whose voxels lie in a file of their own.
        pictures: PNG files.
        described: path below the root -> ``dataset.json``.
        others: how many other files there are.
    """

    volumes: dict[str, File] = field(default_factory=dict)
    archives: list[Path] = field(default_factory=list)
    broken: list[Path] = field(default_factory=list)
    partial: list[Path] = field(default_factory=list)
    pairs: list[Path] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)
    described: dict[str, File] = field(default_factory=dict)
    others: int = 0


def find_files(root: Path, *, tars: bool = False) -> FoundFiles:
    """Find every file below ``root``: links are followed, no folder is entered twice, hidden files are passed over.

    Args:
        root: a folder, or an archive.
        tars: whether to look into uncompressed tar archives.

    Raises:
        UserError: a folder cannot be read, or (with ``tars``) a tar is damaged, half downloaded or compressed.
    """
    found = FoundFiles()
    if root.is_file():
        _add_archive(found, root, "", tars)
    seen: set[tuple[int, int]] = set()
    pending = [] if root.is_file() else [(str(root), "")]
    while pending:
        folder, below = pending.pop()
        try:
            state = Path(folder).stat()
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"The folder {folder} cannot be read: {error.strerror}. Correct its permissions.") from None
        if (state.st_dev, state.st_ino) in seen:
            continue
        seen.add((state.st_dev, state.st_ino))
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                pending.append((entry.path, f"{below}{entry.name}/"))
            else:
                _add(found, entry, f"{below}{entry.name}", tars)
    found.volumes, found.described = (dict(sorted(files.items())) for files in (found.volumes, found.described))
    for paths in (found.archives, found.broken, found.partial, found.pairs, found.pictures):
        paths.sort()
    return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself leads nowhere
        return False


def _add(found: FoundFiles, entry: os.DirEntry[str], below: str, tars: bool) -> None:
    path, lower = Path(entry.path), entry.name.lower()
    if entry.is_symlink() and not path.exists():
        found.broken.append(path)
    elif lower.endswith(SUFFIXES):
        found.volumes[below] = path
    elif lower.endswith(archive.PARTIAL):
        found.partial.append(path)
    elif archive.is_archive(lower):
        _add_archive(found, path, f"{below}/", tars)
    elif lower.endswith((".hdr", ".hdr.gz")):
        found.pairs.append(path)
    elif lower.endswith(".png"):
        found.pictures.append(path)
    else:
        found.others += 1
        if lower == DATASET_JSON:
            found.described[below] = path


def _add_archive(found: FoundFiles, path: Path, below: str, tars: bool) -> None:
    if not (tars and path.name.lower().endswith(".tar")):
        found.archives.append(path)
        return
    for member in archive.members(path):
        if member.name.lower().endswith(SUFFIXES) and not member.name.startswith("."):
            found.volumes[f"{below}{member.path}"] = member
        elif member.name.lower() == DATASET_JSON:
            found.described[f"{below}{member.path}"] = member


def same_content(one: File, other: File) -> bool:
    """Whether two files of one name hold the same bytes, compressed or not; a damaged one is another."""
    if plain(one) != plain(other):
        return False
    try:
        return nifti.checksum(one) == nifti.checksum(other)
    except FileError:
        return read_bytes(one) == read_bytes(other)


def plain(file: File) -> str:
    """The name of a file as if it were not compressed, in lower case."""
    return file.name.lower().removesuffix(".gz")
