"""NIfTI files: the header alone in under a millisecond, or the voxels with the gzip decoded once.

A file is a path or a member of a tar archive (:class:`adbench.datasets.io.archive.Member`). nibabel interprets headers;
gzip streams are inflated by ISA-L, several times faster than zlib, and a volume is held once in its stored type.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from adbench.datasets.io.archive import File, FileError, read_bytes, size_of
from adbench.datasets.io.nifti_header import AGAIN, LONGEST, Header, parse
from adbench.utils import limits
from adbench.utils.files import replacing

SUFFIXES = (".nii.gz", ".nii")
_GZIP = b"\x1f\x8b"
_FIRST = 16384  # compressed bytes that surely hold a header
_BLOCK = 1 << 20  # uncompressed bytes that are looked at at a time
_PIECE = 8 << 20  # compressed bytes that are read at a time
_DENSEST = 1100  # bytes that one of gzip can stand for
_MOSTLY_ZERO = 0.9  # share of zeros among probabilities of a lesion
_FEW_VALUES = 16  # the most values of a label mask
_MANY_VALUES = 256  # ... of one with numbered parts, where ...
_NEARLY_ZERO = 0.95  # ... so many voxels are 0 (a brain fills more of its volume), or ...
_MOST_EQUAL = 0.75  # ... so many voxels that are not equal the one before


@dataclass(frozen=True)
class NiftiVolume:
    """A decoded volume.

    Attributes:
        data: (X, Y, Z) in the stored axis order, read-only; for its type see :func:`read`.
        header: what the file says.
    """

    data: np.ndarray
    header: Header

    @property
    def affine(self) -> np.ndarray:
        """(4, 4) float64 voxel to mm, RAS+."""
        return self.header.affine


def read_header(file: File) -> Header:
    """The header of ``file``; reads its first bytes only.

    Raises:
        FileError: missing, empty, not NIfTI, damaged, or its voxels are no real numbers; names the file.
    """
    first = b""
    for block in _blocks(file, _FIRST, LONGEST):
        first += block
        if len(first) >= LONGEST:
            break
    return parse(first[:LONGEST], file)


def read(file: File, *, finite: bool = True, exact: bool = False, channel: int | None = None) -> NiftiVolume:
    """Header and voxels of a 3-D volume.

    Args:
        file: NIfTI, compressed or not.
        channel: of a 4-D file; None: the file is 3-D.
        finite: refuse NaN and infinite voxels.
        exact: keep 64-bit floats and scale by the header in the precision that nibabel uses; otherwise both become
            float32. All other volumes keep their stored type.

    Raises:
        FileError: as :func:`read_header`; truncated or damaged, not 3-D, larger than
            :data:`adbench.utils.limits.VOLUME_BYTES`, or (with ``finite``) NaN or infinite voxels: how many, and where
            the first is.
    """
    header = read_header(file)
    whole = header.bytes
    if channel is not None:
        header = header.channel(channel, file)
    if len(header.shape) != 3:
        raise FileError("axes", f"{file} has {len(header.shape)} axes of {header.shape} voxels, expected a 3-D volume.")
    scaled = (header.slope, header.inter) != (1.0, 0.0)
    shortened = header.dtype.kind == "f" and header.dtype.itemsize > 4 and not exact
    converted = scaled or shortened or not header.dtype.isnative
    width = 0 if not converted else 8 if exact else 4
    _check_room(file, header, header.bytes + math.prod(header.shape) * width)
    content, length = _content(file, header)
    header = replace(header, behind=length - whole)
    voxels = np.frombuffer(content, header.dtype, math.prod(header.shape), header.offset)
    data = voxels.reshape(header.shape, order="F")
    with np.errstate(over="ignore", invalid="ignore"):
        if scaled and exact:
            from nibabel.volumeutils import apply_read_scaling

            data = apply_read_scaling(data, np.float64(header.slope), np.float64(header.inter))
        elif scaled:
            data = data.astype(np.float32)
            data *= np.float32(header.slope)
            data += np.float32(header.inter)
        elif shortened:
            data = data.astype(np.float32)
        elif not data.dtype.isnative:
            data = data.astype(data.dtype.newbyteorder("="))
    del voxels, content  # of a converted volume the stored voxels go before it is looked at
    data.flags.writeable = False
    bad = nonfinite(data) if finite else None
    if bad is not None:
        what = f"{file} holds {bad[0]} NaN or infinite voxels, the first at {bad[1]}"
        raise FileError("nonfinite", f"{what}. Repair the volume or remove it.")
    return NiftiVolume(data, header)


def nonfinite(data: np.ndarray) -> tuple[int, tuple[int, ...]] | None:
    """(how many voxels are NaN or infinite, index of the first), or None when all are finite."""
    if data.dtype.kind != "f" or np.isfinite(data.sum(dtype=np.float64)):  # one bad voxel spoils the sum
        return None
    good = np.isfinite(data)
    first = np.unravel_index(int(good.argmin()), good.shape)
    return good.size - int(np.count_nonzero(good)), tuple(int(i) for i in first)


def checksum(file: File, *, plain: bool = True) -> tuple[int, int] | None:
    """CRC-32 and length (modulo 2^32) of the uncompressed bytes: two files with the same pair hold the same volume.

    The last eight bytes of a gzip state them, and nothing else is read unless the stated length is not what the header
    announces: a gzip of several members, or something behind the voxels.

    Args:
        file: NIfTI, compressed or not.
        plain: read an uncompressed file, which states nothing; otherwise only its length is looked at, and None returned.

    Raises:
        FileError: truncated or damaged.
    """
    header = read_header(file)
    size = size_of(file)
    if read_bytes(file, 0, 2) == _GZIP:
        crc, length = struct.unpack("<II", read_bytes(file, max(0, size - 8), 8).rjust(8, b"\0"))
        if length == header.bytes % 2**32:
            return crc, length
    elif not plain:
        if size < header.bytes:
            raise _truncated(file, size, header)
        return None
    crc = length = 0
    for block in _blocks(file):
        crc, length = zlib.crc32(block, crc), length + len(block)
        _check_size(file, "unpacks to at least", length)
    if length < header.bytes:
        raise _truncated(file, length, header)
    return crc, length % 2**32


def mask_values(file: File) -> str:
    """The values of a volume that looks like a mask, in words; "" for any other, and for one of zeros alone.

    That is at most 16 whole numbers; numbered parts, which are at most 256 whole numbers from 0, nearly all of them 0 or most
    of them equal to their neighbour; or probabilities: values from 0 to 1, and at least nine tenths of them 0. An image is
    distinguished by its first voxels that are tissue; the rest is then not decoded.

    Raises:
        FileError: as :func:`read`.
    """
    header = read_header(file)
    _check_room(file, header, header.bytes)
    found = np.empty(0, np.float64)
    whole, soft, marked, total = True, True, 0, math.prod(header.shape)
    pairs = equal = 0  # of neighbours that are both not 0
    rest, skip, left = b"", header.offset, total
    for block in _blocks(file):
        rest, skip = rest + block[skip:], max(0, skip - len(block))
        count = min(left, len(rest) // header.dtype.itemsize)
        data = np.frombuffer(rest, header.dtype, count).astype(np.float64) * header.slope + header.inter
        rest, left = rest[count * header.dtype.itemsize :], left - count
        values = np.unique(data) if data.any() else np.zeros(min(1, count))
        marked += int(np.count_nonzero(data))
        if whole:
            found = np.union1d(found, values)
            both = (data[1:] != 0) & (data[:-1] != 0)
            pairs, equal = pairs + int(both.sum()), equal + int((both & (data[1:] == data[:-1])).sum())
            numbered = len(found) <= _MANY_VALUES and found.min(initial=0) >= 0
            parted = marked <= (1 - _NEARLY_ZERO) * total or equal >= _MOST_EQUAL * pairs
            whole = (len(found) <= _FEW_VALUES or (numbered and parted)) and bool((np.rint(found) == found).all())
        soft = soft and bool(((values >= 0) & (values <= 1)).all()) and marked <= (1 - _MOSTLY_ZERO) * total
        if not (whole or soft):
            return ""
        if not left:
            break
    if not marked:
        return ""
    if whole and len(found) > _FEW_VALUES:
        return f"{len(found)} whole numbers from {found[0]:g} to {found[-1]:g} alone"
    listed = ", ".join(f"{value:g}" for value in found)
    return f"the values {listed} alone" if whole else "values from 0 to 1, most of them 0"


def write(path: Path, data: np.ndarray, affine: np.ndarray, *, codes: tuple[int, int] = (1, 0)) -> None:
    """Write a gzipped NIfTI-1 file atomically; the same input gives the same bytes.

    Args:
        path: ends with ``.nii.gz``.
        data: (X, Y, Z), stored in its own type without scaling.
        affine: (4, 4) voxel to mm, RAS+.
        codes: (sform, qform) codes; 0 leaves that form out. A qform holds no shear.
    """
    import nibabel
    from isal import igzip

    image = nibabel.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine if codes[0] else None, codes[0])
    image.set_qform(affine if codes[1] else None, codes[1])
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(igzip.compress(image.to_bytes(), 2, mtime=0))


def _content(file: File, header: Header) -> tuple[bytes | bytearray, int]:
    """The uncompressed bytes of ``file`` up to the end of its voxels, and how many it has; a gzip is read to its end mark."""
    if read_bytes(file, 0, 2) != _GZIP:
        content = read_bytes(file, 0, header.bytes)
        if len(content) < header.bytes:
            raise _truncated(file, len(content), header)
        return content, size_of(file)
    inflated, length = bytearray(header.bytes), 0
    for block in _blocks(file):
        inflated[length : length + len(block)] = block[: max(0, header.bytes - length)]
        length += len(block)
        _check_size(file, "unpacks to at least", length)
    if length < header.bytes:
        raise _truncated(file, length, header)
    return inflated, length


def _blocks(file: File, piece: int = _PIECE, most: int = _BLOCK) -> Iterator[bytes]:
    """The uncompressed bytes of ``file``, at most ``most`` at a time when it is compressed, ``piece`` when it is not.

    Raises:
        FileError: missing; or the gzip stream is damaged or ends before its end mark.
    """
    from isal import isal_zlib

    start, content = piece, read_bytes(file, 0, piece)
    compressed = content[:2] == _GZIP

    def following() -> bytes:
        nonlocal start
        more = read_bytes(file, start, piece)
        start += piece
        return more

    if not compressed:
        while content:
            yield content
            content = following()
        return
    length = 0
    stream = isal_zlib.decompressobj(31)
    try:
        while True:
            block = stream.decompress(content, most)
            length += len(block)
            if block:
                yield block
            content = stream.unused_data if stream.eof else stream.unconsumed_tail
            if stream.eof:  # a gzip may have several members
                if len(content) < 2:
                    content += following()
                if content[:2] != _GZIP:
                    return
                stream = isal_zlib.decompressobj(31)
            elif not content and len(block) < most and not (content := following()):
                what = f"the gzip stream ends before its end mark, after {length} bytes"
                raise FileError("truncated", f"{file} is truncated: {what}. {AGAIN}")
    except isal_zlib.IsalError as error:  # type: ignore[misc]
        raise FileError(
            "unreadable", f"{file} is damaged: its gzip stream cannot be decoded ({error}). {AGAIN}"
        ) from None


def _check_room(file: File, header: Header, needed: int) -> None:
    """Refuse a file that is too short for what its header announces, or that needs too many bytes of memory."""
    length = size_of(file)
    if length * (_DENSEST if read_bytes(file, 0, 2) == _GZIP else 1) < header.bytes:
        raise _truncated(file, length, header)
    _check_size(file, "needs for its voxels", needed)


def _check_size(file: File, what: str, size: int) -> None:
    if problem := limits.exceeded(file, what, size, limits.VOLUME_BYTES):
        raise FileError("too-large", problem)


def _truncated(file: File, length: int, header: Header) -> FileError:
    return FileError(
        "truncated", f"{file} is truncated: {length} bytes where its header announces {header.bytes}. {AGAIN}"
    )
