"""Unpack archives, after every name in them was checked."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path, PureWindowsPath
from typing import IO, NamedTuple

from adbench.context import Progress
from adbench.datasets.io.archive import (
    HardLinks,
    entries,
    is_archive,
    members,
    open_tar,
    open_zip,
    read_bytes,
    reading,
    refuse_unreadable,
    short,
    size_of,
    whole,
)
from adbench.errors import UserError
from adbench.utils import limits
from adbench.utils.files import replacing

_NAME = 500  # characters of a file's name in an archive, its folders included
_PART = 255  # bytes of the name of one file or folder, which no usual disk goes beyond
_BLOCK = 1 << 20


class Unpacked(NamedTuple):
    """The result of unpacking one archive.

    Attributes:
        files: how many lie there now.
        nested: those of them that are archives themselves.
        left_out: names of links and devices in the archive, which are not unpacked.
    """

    files: int
    nested: list[Path]
    left_out: list[str]


class _Entry(NamedTuple):
    """An entry of an archive.

    Attributes:
        name: as the archive has it.
        size: of the content, bytes.
        content: opens it; None for a link or device.
        same_as: name of an earlier file of the archive whose content this one has too; "" for none.
        done: how far through the archive it ends, in bytes.
        total: of how many.
    """

    name: str
    size: int
    content: Callable[[], IO[bytes]] | None
    same_as: str
    done: int
    total: int


def unpack(archive: Path, out: Path, progress: Progress | None = None) -> Unpacked:
    """Unpack the regular files of a tar (also compressed) or zip below ``out``: whole files only.

    A file that is there with the same content is kept, so that an interrupted run goes on. A hard link to a file of the
    archive becomes a file; symbolic links and devices are left out. All names and sizes, the limits of
    :mod:`adbench.utils.limits` and the free space of the disk are looked at before anything is written.

    Args:
        archive: the file.
        out: folder, made if need be.
        progress: receives bytes of the archive's content.

    Raises:
        UserError: missing, encrypted, half downloaded, damaged, of an unknown kind, larger than a limit or the disk; one
            of its members would land outside ``out``, has a name that no file should have, or is there twice with
            different content, or as a file and as a folder; or a file cannot be written.
    """
    archive, out, progress = Path(archive), Path(out), progress or Progress()
    if not archive.is_file():
        raise UserError(f"There is no archive {archive}.")
    refuse_unreadable(archive)
    with reading(archive), whole(archive):
        written, left_out = _looked_through(archive, out)
        for entry in _entries(archive):
            if entry.content is not None:
                _write(archive, entry, _target(archive, entry.name, out), out)
            progress.update(f"unpack {archive.name}", entry.done, entry.total)
    nested = [out / name for name in written if is_archive(name.rpartition("/")[2])]
    return Unpacked(len(written), nested, left_out)


def _looked_through(archive: Path, out: Path) -> tuple[list[str], list[str]]:
    """What is to be written, by name below ``out``, and the names of what is left out.

    Raises:
        UserError: the archive cannot be unpacked as a whole.
    """
    sizes: dict[str, int] = {}
    twice: set[str] = set()
    sources: set[str] = set()
    left_out = []
    packed, unpacked, missing = size_of(archive), 0, 0
    for entry in _entries(archive):
        target = _target(archive, entry.name, out)
        if entry.content is None:
            left_out.append(entry.name)
            continue
        unpacked += entry.size
        limits.check_growth(archive, packed, unpacked)
        if target in sizes:
            twice.add(target)
            if sizes[target] != entry.size:
                raise _ambiguous(archive, entry.name)
        elif not _has_size(out / target, entry.size):
            missing += entry.size
        sizes[target] = entry.size
        if entry.same_as:
            sources.add(_target(archive, entry.same_as, out))
    ordered = sorted(sizes, key=lambda name: name.replace("/", "\0"))  # what is in a folder stands right behind it
    for name, following in pairwise(ordered):
        if following.startswith(f"{name}/"):
            raise UserError(
                f"{archive} holds {name} as a file and as a folder (with {following}), which no disk can: unpack it by "
                "hand and rename one."
            )
    if twice:
        _compare(archive, out, twice | sources)
    limits.check_free(archive, missing, out)
    return list(sizes), left_out


def _target(archive: Path, name: str, out: Path) -> str:
    """The place below ``out`` of what an archive calls ``name``.

    Raises:
        UserError: it has none.
    """
    if len(name) > _NAME:
        raise UserError(
            f"{archive} holds a file whose name has {len(name)} characters ({name[:40]!r} ...), where at most {_NAME} "
            "are read: it is damaged, or not to be trusted. Get it again."
        )
    limits.check(archive, f"goes down, at {name[:40]!r} ...,", name.count("/"), limits.ARCHIVE_DEPTH)
    why = ""
    if not os.fsencode(name).decode("utf-8", "replace").isprintable():
        why = "which has characters that cannot be printed"
    elif "\\" in name or PureWindowsPath(name).drive:
        why = "which Windows alone reads as folders or a drive"
    elif any(len(os.fsencode(part)) > _PART for part in name.split("/")):
        why = f"which has a part of more than {_PART} bytes"
    target = os.path.normpath(name.lstrip("/"))
    if not why and target == ".":
        why = "which is no name"
    if why:
        raise UserError(
            f"{archive} holds a file named {name!r}, {why}: unpack it by hand into a folder of its own, and rename that file."
        )
    try:
        tarfile.data_filter(tarfile.TarInfo(target), str(out))
    except tarfile.FilterError:
        raise UserError(
            f"{archive} holds {name}, which would land outside {out}: the archive is not to be trusted."
        ) from None
    return target


def _ambiguous(archive: Path, name: str) -> UserError:
    return UserError(
        f"{archive} holds {name} twice with different content, and nothing says which is meant: unpack it by hand and keep one."
    )


def _compare(archive: Path, out: Path, names: set[str]) -> None:
    """Refuse an archive with two contents of one of ``names``, among which are those of all files that others are linked to."""
    digests: dict[str, bytes] = {}
    for entry in _entries(archive):
        target = _target(archive, entry.name, out)
        if entry.content is None or target not in names:
            continue
        if entry.same_as:
            digest = digests[_target(archive, entry.same_as, out)]
        else:
            with entry.content() as content:
                digest = hashlib.file_digest(content, "sha256").digest()  # type: ignore[arg-type]
        if digests.setdefault(target, digest) != digest:
            raise _ambiguous(archive, entry.name)


def _write(archive: Path, entry: _Entry, name: str, out: Path) -> None:
    """Put the content of an entry to its place, unless it is there."""
    target = out / name
    assert entry.content is not None
    try:
        source = open(out / _target(archive, entry.same_as, out), "rb") if entry.same_as else entry.content()
        with source:
            if _is_there(target, entry.size, source):
                return
            source.seek(0)
            with replacing(target) as temporary, open(temporary, "wb") as file:
                shutil.copyfileobj(source, file, _BLOCK)
                if file.tell() != entry.size:
                    raise EOFError(f"{entry.name} has {file.tell()} of {entry.size} bytes")
    except gzip.BadGzipFile:
        raise
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        there = next((p for p in (target, *target.parents) if p.is_dir() == (p == target) and p.exists()), target)
        kind = "a folder" if there.is_dir() else "no folder"
        raise UserError(
            f"{target}, which {archive} holds, cannot be written: {there} is there already and is {kind}. Move it away, or "
            "give another --out."
        ) from None
    except OSError as error:
        raise UserError(f"{target}, which {archive} holds, cannot be written: {error.strerror or error}.") from None


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _is_there(target: Path, size: int, content: IO[bytes]) -> bool:
    """Whether ``target`` holds ``content``: archives of two releases may hold files of one name and size."""
    if not _has_size(target, size):
        return False
    with open(target, "rb") as file:
        while block := file.read(_BLOCK):
            if content.read(len(block)) != block:
                return False
    return True


def _entries(archive: Path) -> Iterator[_Entry]:
    """What an archive holds, in its order, but folders."""
    return _in_zip(archive) if zipfile.is_zipfile(archive) else _in_tar(archive)


def _in_zip(archive: Path) -> Iterator[_Entry]:
    with open_zip(archive) as zipped:
        infos = [info for info in zipped.infolist() if not info.filename.endswith("/")]
        total, done = sum(info.file_size for info in infos), 0
        for info in infos:
            done += info.file_size
            kind = stat.S_IFMT(info.external_attr >> 16)  # of Unix; 0 where the archive was made elsewhere
            odd = kind in (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK)
            yield _Entry(info.filename, info.file_size, None if odd else lambda i=info: zipped.open(i), "", done, total)  # type: ignore[misc]


def _in_tar(archive: Path) -> Iterator[_Entry]:
    total = size_of(archive)
    with ExitStack() as opened:
        try:
            tar = opened.enter_context(open_tar(archive))
        except tarfile.ReadError as error:
            raise UserError(
                f"{archive} is no tar or zip archive, or damaged ({short(error)}): unpack it with the tool "
                "it was made with."
            ) from None
        plain = read_bytes(archive, 257, 5) == b"ustar"
        if plain:
            members(archive)  # one that was cut between two members reads like a smaller one
        files: HardLinks[int] = HardLinks()
        for info in entries(archive, tar):
            if info.isdir():
                continue
            done = min(total, info.offset_data + info.size) if plain else 0
            if info.isreg():
                files.add(info, info.size)
                yield _Entry(info.name, info.size, lambda i=info: _opened(tar, i), "", done, total)  # type: ignore[misc]
            elif (size := files.linked(info)) is not None:
                yield _Entry(info.name, size, lambda: open(os.devnull, "rb"), info.linkname, done, total)
            else:
                yield _Entry(info.name, 0, None, "", done, total)


def _opened(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    content = tar.extractfile(info)
    assert content is not None
    return content
