"""Unpack an archive safely: nothing outside the folder, whole files only, and an interrupted run goes on."""

from __future__ import annotations

import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from adbench.context import Progress
from adbench.datasets.io.archive import is_archive, members, refuse_unreadable
from adbench.errors import UserError
from adbench.utils.files import replacing


def unpack(archive: Path, out: Path, progress: Progress | None = None) -> tuple[int, list[Path]]:
    """Unpack the regular files of a tar (also compressed) or zip below ``out``.

    A file that is there with the same content is kept. Links and devices inside the archive are passed over.

    Args:
        archive: the file.
        out: folder, made if need be.
        progress: receives bytes of the archive's content.

    Returns:
        How many files lie there now, and which of them are archives themselves.

    Raises:
        UserError: missing, encrypted, half downloaded, damaged, of a kind that is not known, or one of its members
            would land outside ``out``.
    """
    archive, out, progress = Path(archive), Path(out), progress or Progress()
    if not archive.is_file():
        raise UserError(f"There is no archive {archive}.")
    refuse_unreadable(archive)
    count, nested = 0, []
    try:
        for name, size, content, done, total in _members(archive):
            target = _inside(out, name, archive)
            if not _there(target, size, content):
                content.seek(0)
                with replacing(target) as temporary, open(temporary, "wb") as file, content as source:
                    shutil.copyfileobj(source, file, 1 << 20)
                    if file.tell() != size:
                        raise EOFError(f"{name} has {file.tell()} of {size} bytes")
            count += 1
            if is_archive(target.name) and not target.name.lower().endswith(".nii.gz"):
                nested.append(target)
            progress.update(f"unpack {archive.name}", done, total)
    except NotImplementedError as error:
        # Zip knows ways to compress that Python does not, Deflate64 of Windows for one.
        raise UserError(f"{archive} cannot be unpacked here ({error}): unpack it with 7-Zip or the like.") from None
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{archive} is damaged or half downloaded ({error}): download it again.") from None
    return count, nested


def _there(target: Path, size: int, content: IO[bytes]) -> bool:
    """Whether ``target`` holds ``content``: archives of two releases may hold files of one name and size."""
    if not (target.is_file() and target.stat().st_size == size):
        return False
    with open(target, "rb") as file:
        while block := file.read(1 << 20):
            if content.read(len(block)) != block:
                return False
    return True


def _members(archive: Path) -> Iterator[tuple[str, int, IO[bytes], int, int]]:
    """(name, size, content, how far through the archive in bytes, of how many)."""
    whole = archive.stat().st_size
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            infos = [info for info in zipped.infolist() if not info.is_dir()]
            total, done = sum(info.file_size for info in infos), 0
            for info in infos:
                done += info.file_size
                yield info.filename, info.file_size, zipped.open(info), done, total
        return
    try:
        tar = tarfile.open(archive, "r:*")
    except tarfile.ReadError as error:
        raise UserError(
            f"{archive} is no tar or zip archive, or damaged ({str(error).splitlines()[0]}): unpack it with the tool it was made with."
        ) from None
    with tar, open(archive, "rb") as raw:
        plain = raw.read(262)[257:] == b"ustar"
        if plain:
            members(archive)  # one that was cut between two members reads like a smaller one
        for member in tar:
            if member.isreg():
                content = tar.extractfile(member)
                assert content is not None
                done = member.offset_data + member.size if plain else 0
                yield member.name, member.size, content, min(done, whole), whole


def _inside(out: Path, name: str, archive: Path) -> Path:
    target = (out / name).resolve()
    if not target.is_relative_to(out.resolve()):
        raise UserError(f"{archive} holds {name}, which would land outside {out}: the archive is not to be trusted.")
    return target
