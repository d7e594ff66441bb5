"""Files on disk and inside uncompressed tar archives, read the same way; and archives opened with care.

An uncompressed tar is read in place: its members are indexed once, after that a member is a range of bytes.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import posixpath
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tarfile import TarInfo
from typing import IO, Any, Generic, TypeAlias, TypeVar

from adbench.errors import UserError
from adbench.utils import limits

# What the names of unfinished downloads end with.
PARTIAL = (".part", ".partial", ".crdownload", ".download", ".aria2", ".tmp", ".!ut")
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip", ".7z", ".rar", ".tar.bz2", ".tar.xz", ".gpg", ".enc")
_ENCRYPTED = (b"Salted__", b"U2FsdGVkX1")  # openssl enc, raw and base64
_COMPRESSED = (b"\x1f\x8b", b"PK", b"BZ", b"\xfd7zXZ\0")
_BLOCK = 1 << 20
_HEADER = _BLOCK  # the most bytes that the headers of a file in a tar may take, a long name say
_DICTIONARY = 300_000_000  # bytes of memory that unpacking .xz may take


class FileError(UserError):
    """A file that is not what it should be; ``code`` is the code of the issue in ``adbench data check``."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[FileError], tuple[str, str]]:
        return type(self), (self.code, str(self))  # errors come back from worker processes


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

    def __str__(self) -> str:
        return f"{self.archive}:{self.path}"


File: TypeAlias = Path | Member
Content = TypeVar("Content")


def read_bytes(file: File, start: int = 0, count: int | None = None) -> bytes:
    """``count`` bytes of ``file`` from ``start``, or all of them.

    Raises:
        FileError: it is missing or cannot be read; names the file and the reason.
    """
    with reading(file):
        _check_regular(file)
        if isinstance(file, Member):
            left = max(0, file.size - start)
            wanted = left if count is None else min(count, left)
            with open(file.archive, "rb") as archive:
                archive.seek(file.offset + start)
                content = archive.read(wanted)
            if len(content) < wanted:
                raise FileError("unreadable", f"{file} cannot be read: the archive was cut off after it was indexed.")
            return content
        with open(file, "rb", buffering=0 if count is not None else -1) as plain:
            plain.seek(start)
            return plain.read(-1 if count is None else count)


def state_of(file: File) -> dict[str, int]:
    """What distinguishes a file from another one, or from an earlier version of itself, without reading it.

    Size and modification time alone do not: a copy may keep both. The time of the last change of the file's entry
    (ctime) cannot be set, and a file that replaced another one has an inode of its own.

    Returns:
        ``bytes`` (of a member: its own; the rest is that of its archive), ``mtime_ns``, ``ctime_ns``, ``inode``.
    """
    state = (file.archive if isinstance(file, Member) else file).stat()
    return {
        "bytes": file.size if isinstance(file, Member) else state.st_size,
        "mtime_ns": state.st_mtime_ns,
        "ctime_ns": state.st_ctime_ns,
        "inode": state.st_ino,
    }


def size_of(file: File) -> int:
    """Bytes of ``file`` as it is stored.

    Raises:
        FileError: it is missing or may not be read.
    """
    with reading(file):
        return state_of(file)["bytes"]


def digest_of(file: File) -> str:
    """SHA-256 of the bytes of ``file``."""
    if isinstance(file, Member):
        return hashlib.sha256(read_bytes(file)).hexdigest()
    with reading(file):
        _check_regular(file)
    with reading(file), open(file, "rb") as plain:
        return hashlib.file_digest(plain, "sha256").hexdigest()


def _check_regular(file: File) -> None:
    if not stat.S_ISREG((file.archive if isinstance(file, Member) else file).stat().st_mode):  # a pipe never ends
        raise FileError("unreadable", f"{file} cannot be read: it is no regular file.")


@contextmanager
def reading(file: File) -> Iterator[None]:
    """Turn an operating-system error while reading ``file`` into a ``FileError``."""
    try:
        yield
    except OSError as error:
        raise FileError("unreadable", f"{file} cannot be read: {error.strerror or error}.") from None


@contextmanager
def whole(archive: Path) -> Iterator[None]:
    """Turn whatever a damaged archive raises into one sentence."""
    try:
        yield
    except NotImplementedError as error:  # zip knows compressions that Python does not, Deflate64 of Windows for one
        raise UserError(
            f"{archive} cannot be unpacked here ({short(error)}): unpack it with 7-Zip or a similar tool."
        ) from None
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        gzip.BadGzipFile,
        lzma.LZMAError,
        zlib.error,
        EOFError,
        ValueError,
    ) as error:
        raise UserError(f"{archive} is damaged or half downloaded ({short(error)}): download it again.") from None


def short(error: Exception) -> str:
    """What ``error`` says, in a line; libraries quote names of the archive, of any length, in it."""
    return " ".join(str(error).split())[:200]


def is_archive(name: str) -> bool:
    """Whether a file of this name is an archive, an unfinished download of one included."""
    lower = name.lower()
    for ending in PARTIAL:
        lower = lower.removesuffix(ending)
    return lower.endswith(_ARCHIVES)


def refuse_unreadable(archive: Path) -> None:
    """Refuse an archive that no tool can open as it is.

    Raises:
        UserError: an unfinished download, an empty file, or an encrypted archive.
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
        with reading(archive), whole(archive), open_zip(archive) as zipped:
            locked = next((info.filename for info in zipped.infolist() if info.flag_bits & 1), None)
        if locked:
            raise UserError(
                f"{archive} is encrypted (its member {locked} needs a password): unpack it with the password that its "
                "provider sent you."
            )


def members(archive: Path) -> list[Member]:
    """Every regular file of an uncompressed tar, in its order; a hard link to an earlier one is that file again.

    Raises:
        UserError: the archive is half downloaded, encrypted, compressed or no tar at all; says what to do.
    """
    refuse_unreadable(archive)
    if read_bytes(archive, 0, 6).startswith(_COMPRESSED):
        raise UserError(
            f"{archive} is a compressed archive, which cannot be read in place: unpack it once with "
            f"`adbench data unpack '{archive}' --out DIR`."
        )
    with reading(archive), whole(archive), open_tar(archive) as tar:
        files: HardLinks[TarInfo] = HardLinks()
        found = []
        for info in entries(archive, tar):
            content = files.add(info, info) if info.isreg() and not info.sparse else files.linked(info)
            if content is not None:
                found.append(Member(archive, info.name, content.offset_data, content.size))
    size = size_of(archive)
    last = max(found, key=lambda member: member.offset, default=None)
    if last is not None and last.offset + last.size > size:
        what = f"its member {last.path} ends at byte {last.offset + last.size}"
    elif read_bytes(archive, max(0, size - 1024)).strip(b"\0"):
        what = f"no end mark after its {len(found)} files"
    else:
        return found
    raise UserError(f"{archive} is half downloaded: it has {size} bytes and {what}. Download it again.")


class HardLinks(Generic[Content]):
    """The files of a tar that was read so far, by name: what a hard link in it leads to."""

    def __init__(self) -> None:
        self._files: dict[str, Content] = {}

    def add(self, info: TarInfo, content: Content) -> Content:
        """A regular file, and what is kept of it."""
        self._files[posixpath.normpath(info.name)] = content
        return content

    def linked(self, info: TarInfo) -> Content | None:
        """What was kept of the file that ``info`` is a hard link to; None for anything else, and where it is not there."""
        content = self._files.get(posixpath.normpath(info.linkname)) if info.islnk() else None
        return None if content is None else self.add(info, content)


class _Bounded(io.BufferedIOBase):
    """A file of which at most :data:`_HEADER` bytes are read before it is told where to go on.

    A tar may state headers of any length; the content of a file is read in shorter pieces, each from a place of its own.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._left = file, _HEADER

    def read(self, count: int | None = None) -> bytes:
        """The next ``count`` bytes.

        Raises:
            ValueError: they are too many at once.
        """
        if count is None or not 0 <= count <= self._left:
            raise ValueError(f"a header of more than {_HEADER} bytes")
        self._left -= count
        return self._file.read(count)

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, place: int, whence: int = 0) -> int:
        """As that of the file."""
        self._left = _HEADER
        return self._file.seek(place, whence)

    def tell(self) -> int:
        """As that of the file."""
        return self._file.tell()


@contextmanager
def open_tar(archive: Path) -> Iterator[tarfile.TarFile]:
    """An open tar, compressed or not.

    Raises:
        tarfile.ReadError: it is none.
    """
    first = read_bytes(archive, 0, 1 << 16)
    openers: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
    if first[:2] == b"\xfd7":  # its header may ask for gigabytes
        lzma.LZMADecompressor(memlimit=_DICTIONARY).decompress(first, 1)
    with openers.get(first[:2], open)(archive, "rb") as file, tarfile.open(fileobj=_Bounded(file), mode="r:") as tar:
        yield tar


def entries(archive: Path, tar: tarfile.TarFile) -> Iterator[TarInfo]:
    """Every entry of a tar; what was passed is forgotten.

    Raises:
        UserError: there are too many.
    """
    for number, info in enumerate(tar, 1):
        limits.check(archive, "holds at least", number, limits.ARCHIVE_FILES)
        yield info
        tar.members.clear()  # type: ignore[attr-defined]
        tar.fileobj.seek(tar.fileobj.tell())  # the next header is one of its own, behind an empty file too


def open_zip(archive: Path) -> zipfile.ZipFile:
    """An open zip, whose list of files is not much longer than the limit: it is read as a whole.

    Raises:
        UserError: there are too many.
        zipfile.BadZipFile: it is none.
    """
    size = size_of(archive)
    last = read_bytes(archive, max(0, size - (1 << 16) - 22))
    place = last.rfind(b"PK\5\6")
    if place >= 0 and len(last) >= place + 22:
        (length,) = struct.unpack_from("<I", last, place + 12)  # of the list, 46 bytes and a name a file
        wide = last.rfind(b"PK\6\6", 0, place)
        if wide >= 0 and len(last) >= wide + 48:
            (length,) = struct.unpack_from("<Q", last, wide + 40)
        limits.check(archive, "may list", min(length, size) // 94, limits.ARCHIVE_FILES)
    zipped = zipfile.ZipFile(archive)
    limits.check(archive, "lists", len(zipped.infolist()), limits.ARCHIVE_FILES)
    return zipped
