"""Files that lie on disk or inside a tar archive, read the same way; archives that cannot be read are told apart.

An uncompressed tar is read in place: its members are indexed once, after that a member is a range of bytes.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from adbench.errors import UserError

PARTIAL = (
    ".part",
    ".partial",
    ".crdownload",
    ".download",
    ".aria2",
    ".tmp",
    ".!ut",
)  # what downloads in progress end with
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip", ".7z", ".rar", ".tar.bz2", ".tar.xz", ".gpg", ".enc")
_ENCRYPTED = (b"Salted__", b"U2FsdGVkX1")  # openssl enc, raw and base64


@dataclass(frozen=True)
class State:
    """What is known of a member without reading it, named as :func:`os.stat` names it."""

    st_size: int
    st_mtime_ns: int
    st_ctime_ns: int
    st_ino: int


@dataclass(frozen=True, order=True)
class Member:
    """A file inside an uncompressed tar archive.

    Attributes:
        archive: the tar file.
        path: of the member within it.
        offset: byte of the archive at which its content starts.
        size: of the content, bytes.
    """

    archive: Path
    path: str
    offset: int
    size: int

    @property
    def name(self) -> str:
        """The file name without its folders."""
        return PurePosixPath(self.path).name

    def stat(self) -> State:
        """Its own size and the rest of its archive."""
        archive = self.archive.stat()
        return State(self.size, archive.st_mtime_ns, archive.st_ctime_ns, archive.st_ino)

    def __str__(self) -> str:
        return f"{self.archive}:{self.path}"


File: TypeAlias = Path | Member


def read_bytes(file: File, start: int = 0, count: int | None = None) -> bytes:
    """``count`` bytes of ``file`` from ``start``, or all of them.

    Raises:
        UserError: it is missing or cannot be read; names the file and the reason.
    """
    with reading(file):
        if isinstance(file, Member):
            left = max(0, file.size - start)
            wanted = left if count is None else min(count, left)
            with open(file.archive, "rb") as archive:
                archive.seek(file.offset + start)
                content = archive.read(wanted)
            if len(content) < wanted:
                raise UserError(f"{file} cannot be read: the archive was cut off after it was indexed.")
            return content
        with open(file, "rb", buffering=0 if count is not None else -1) as plain:
            plain.seek(start)
            return plain.read(-1 if count is None else count)


def state_of(file: File) -> dict[str, int]:
    """What tells a file from another one, or from itself before it was written to, without reading it.

    Size and modification time alone do not: a copy may keep both. The time of the last change of the file's entry
    (ctime) cannot be set, and a file that took another one's place has an inode of its own.

    Returns:
        ``bytes``, ``mtime_ns``, ``ctime_ns``, ``inode``.
    """
    state = file.stat()
    return {
        "bytes": state.st_size,
        "mtime_ns": state.st_mtime_ns,
        "ctime_ns": state.st_ctime_ns,
        "inode": state.st_ino,
    }


def digest_of(file: File) -> str:
    """SHA-256 of the bytes of ``file``."""
    if isinstance(file, Member):
        return hashlib.sha256(read_bytes(file)).hexdigest()
    with reading(file), open(file, "rb") as plain:
        return hashlib.file_digest(plain, "sha256").hexdigest()


@contextmanager
def reading(file: File) -> Iterator[None]:
    """Turn an operating-system error while reading ``file`` into a ``UserError``."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}.") from None


def is_archive(name: str) -> bool:
    """Whether a file of this name is an archive, a download in progress included."""
    lower = name.lower()
    for ending in PARTIAL:
        lower = lower.removesuffix(ending)
    return lower.endswith(ARCHIVES)


def members(archive: Path) -> list[Member]:
    """Every regular file of an uncompressed tar, in its order.

    Raises:
        UserError: the archive is half downloaded, encrypted, compressed or no tar at all; says what to do.
    """
    refuse_unreadable(archive)
    with reading(archive), open(archive, "rb") as raw:
        first = raw.read(512)
        size = os.fstat(raw.fileno()).st_size
    if first[:2] in (b"\x1f\x8b", b"PK", b"BZ") or first[:6] == b"\xfd7zXZ\0":
        raise UserError(
            f"{archive} is a compressed archive, which cannot be read in place: unpack it once with "
            f"`adbench data unpack '{archive}' --out DIR`."
        )
    try:
        with tarfile.open(archive, "r:") as tar:
            found = [
                Member(archive, info.name, info.offset_data, info.size)
                for info in tar
                if info.isreg() and not info.sparse
            ]
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise UserError(f"{archive} is damaged or half downloaded ({error}): download it again.") from None
    except OSError as error:
        raise UserError(f"{archive} cannot be read: {error.strerror or error}.") from None
    if found and found[-1].offset + found[-1].size > size:
        last = found[-1]
        raise UserError(
            f"{archive} is half downloaded: it has {size} bytes and its member {last.path} ends at byte "
            f"{last.offset + last.size}. Download it again."
        )
    with open(archive, "rb") as raw:
        raw.seek(max(0, size - 1024))
        if raw.read().strip(b"\0"):
            raise UserError(
                f"{archive} is half downloaded: it has {size} bytes and no end mark after its {len(found)} files. "
                "Download it again."
            )
    return found


def refuse_unreadable(archive: Path) -> None:
    """Refuse an archive that no tool can open as it is.

    Raises:
        UserError: a download in progress, an empty file, or an encrypted archive.
    """
    lower = archive.name.lower()
    if lower.endswith(PARTIAL):
        raise UserError(f"{archive} is a download that has not finished: let it finish or download it again.")
    first = read_bytes(archive, 0, 16)
    if not first:
        raise UserError(f"{archive} is empty: download it again.")
    if first.startswith(_ENCRYPTED) or lower.endswith((".gpg", ".enc")):
        raise UserError(
            f"{archive} is encrypted: decrypt it with the command and password that its provider sent you, then unpack it."
        )
    if first[:2] == b"PK":
        try:
            with zipfile.ZipFile(archive) as zipped:
                locked = next((info.filename for info in zipped.infolist() if info.flag_bits & 1), None)
        except (zipfile.BadZipFile, ValueError) as error:
            raise UserError(f"{archive} is damaged or half downloaded ({error}): download it again.") from None
        if locked:
            raise UserError(
                f"{archive} is encrypted (its member {locked} needs a password): unpack it with the password that its "
                "provider sent you."
            )
