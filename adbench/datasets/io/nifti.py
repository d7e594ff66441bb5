"""NIfTI files: the header alone in under a millisecond, or the voxels with the gzip decoded once.

A file is a path or a member of a tar archive (:class:`adbench.datasets.io.archive.Member`); both give a name, a size and
their bytes. Decoding uses ISA-L, several times faster than zlib, and holds a volume once in its stored type.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adbench.datasets.io.archive import File, read_bytes, reading
from adbench.errors import UserError
from adbench.utils.files import replacing

SUFFIXES = (".nii.gz", ".nii")
_FIRST = 16384  # compressed bytes that surely hold a header
BLANK = 0.9  # share of zeros among probabilities of a lesion
_BLOCK = 1 << 20  # uncompressed bytes that are looked at at a time
_LONGEST = 540  # bytes of a NIfTI-2 header; one of NIfTI-1 has 348
AGAIN = "Copy or download it again."


class NiftiError(UserError):
    """A file that is not what it should be; ``kind`` sorts it: unreadable, truncated, dtype, axes or nonfinite."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type[NiftiError], tuple[str, str]]:
        return type(self), (self.kind, str(self))  # it may come back from a worker process


@dataclass(frozen=True)
class Header:
    """What a NIfTI header says.

    Attributes:
        shape: voxels along each stored axis, trailing axes of length 1 removed.
        dtype: of the stored voxels, with their byte order.
        affine: (4, 4) float64 voxel to mm, RAS+; from the sform, else the qform, else voxel sizes alone.
        zooms: voxel size along each of the three stored axes by the affine, mm.
        codes: (sform, qform) codes; (0, 0) means that the file does not say how the head lies.
        slope, inter: stored value * slope + inter is the intensity; (1, 0) when none is given.
        offset: byte at which the voxels start.
        disagreement: mm by which sform and qform place the farthest corner apart; 0 when only one is given.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    affine: np.ndarray
    zooms: tuple[float, float, float]
    codes: tuple[int, int]
    slope: float
    inter: float
    offset: int
    disagreement: float = 0.0

    @property
    def bytes(self) -> int:
        """Length of the whole uncompressed file."""
        return self.offset + int(np.prod(self.shape)) * self.dtype.itemsize

    @property
    def orientation(self) -> str:
        """Where each stored axis points, e.g. "RAS", "LPS"; the nearest axis when it is oblique."""
        from nibabel.orientations import aff2axcodes

        return "".join(str(code) for code in aff2axcodes(self.affine))


@dataclass(frozen=True)
class Volume:
    """A decoded volume.

    Attributes:
        data: (X, Y, Z) in the stored axis order; the stored type, or float32 where the header scales or the file holds
            64-bit floats. Read-only.
        affine: (4, 4) float64 voxel to mm, RAS+.
        header: what the file says.
    """

    data: np.ndarray
    affine: np.ndarray
    header: Header


def read_header(file: File) -> Header:
    """The header of ``file``; reads its first bytes only.

    Raises:
        UserError: missing, empty, not NIfTI, damaged, or its voxels are no real numbers; names the file.
    """
    return parse_header(_first_bytes(file), file)


def read(file: File) -> Volume:
    """Header and voxels of a 3-D volume.

    Raises:
        UserError: as :func:`read_header`; truncated or damaged, not 3-D, or NaN or infinite voxels (how many, and where).
    """
    volume = decode(file)
    bad = nonfinite(volume.data)
    if bad is not None:
        count, first = bad
        raise NiftiError(
            "nonfinite",
            f"{file} holds {count} NaN or infinite voxels, the first at {first}. Repair the volume or remove it.",
        )
    return volume


def decode(file: File) -> Volume:
    """As :func:`read`, but NaN and infinite voxels pass: for whoever wants to count them."""
    content = read_bytes(file)
    if not content:
        raise NiftiError("unreadable", f"{file} is empty. {AGAIN}")
    if content[:2] == b"\x1f\x8b":
        content = _inflated(content, file)
    header = parse_header(content[:_LONGEST], file)
    if len(header.shape) != 3:
        raise NiftiError(
            "axes", f"{file} has {len(header.shape)} axes of {header.shape} voxels, expected a 3-D volume."
        )
    if len(content) < header.bytes:
        raise _truncated(file, len(content), header)
    voxels = np.frombuffer(content, header.dtype, count=int(np.prod(header.shape)), offset=header.offset)
    data = voxels.reshape(header.shape, order="F")
    if (header.slope, header.inter) != (1.0, 0.0):
        data = data.astype(np.float32) * np.float32(header.slope) + np.float32(header.inter)
    elif data.dtype.kind == "f" and data.dtype.itemsize > 4:
        with np.errstate(over="ignore"):
            data = data.astype(np.float32)
    elif not data.dtype.isnative:
        data = data.astype(data.dtype.newbyteorder("="))
    return Volume(data, header.affine, header)


def nonfinite(data: np.ndarray) -> tuple[int, tuple[int, ...]] | None:
    """(how many voxels are NaN or infinite, index of the first), or None when all are finite."""
    if data.dtype.kind != "f" or np.isfinite(data.sum(dtype=np.float64)):  # one bad voxel spoils the sum
        return None
    bad = ~np.isfinite(data)
    first = np.unravel_index(int(bad.argmax()), bad.shape)
    return int(bad.sum()), tuple(int(i) for i in first)


def checksum(file: File, *, plain: bool = True) -> tuple[int, int] | None:
    """CRC-32 and length (modulo 2^32) of the uncompressed bytes: two files with the same pair hold the same volume.

    A gzip's last eight bytes state them, and that is all that is read unless the length is not what the header announces:
    a gzip of several members, or something behind the voxels.

    Args:
        file: NIfTI, compressed or not.
        plain: read an uncompressed file, which states nothing; otherwise only its length is looked at, and None returned.

    Raises:
        NiftiError: truncated or damaged.
    """
    header = read_header(file)
    stated = _trailer(file)
    if stated is not None and stated[1] == header.bytes % 2**32:
        return stated
    if stated is None and not plain:
        with reading(file):
            length = file.stat().st_size
        if length < header.bytes:
            raise _truncated(file, length, header)
        return None
    content = read_bytes(file)
    if stated is not None:
        content = _inflated(content, file)
    if len(content) < header.bytes:
        raise _truncated(file, len(content), header)
    return zlib.crc32(content), len(content) % 2**32


def mask_values(file: File, most: int = 16) -> str:
    """What a volume holds that looks like a mask, in words; "" for any other, and for one of zeros alone.

    That is at most ``most`` whole numbers, or probabilities: values from 0 to 1, and at least :data:`BLANK` of them 0. An
    image is told apart from its first voxels that are tissue; the rest is then not decoded.

    Raises:
        UserError: as :func:`read_header`, or its gzip stream is damaged.
    """
    header = read_header(file)
    found = np.empty(0, np.float64)
    whole, soft, marked, total = True, True, 0, int(np.prod(header.shape))
    rest, skip = b"", header.offset
    for block in _blocks(file):
        rest, skip = rest + block[skip:], max(0, skip - len(block))
        count = len(rest) // header.dtype.itemsize
        data = np.frombuffer(rest, header.dtype, count).astype(np.float64) * header.slope + header.inter
        rest = rest[count * header.dtype.itemsize :]
        values = np.unique(data)
        marked += int(np.count_nonzero(data))
        if whole:
            found = np.union1d(found, values)
            whole = len(found) <= most and bool((np.rint(found) == found).all())
        soft = soft and bool(((values >= 0) & (values <= 1)).all()) and marked <= (1 - BLANK) * total
        if not (whole or soft):
            return ""
    if not marked:
        return ""
    return (
        f"the values {', '.join(f'{value:g}' for value in found)} alone"
        if whole
        else "values from 0 to 1, most of them 0"
    )


def _blocks(file: File) -> Iterator[bytes]:
    """The uncompressed bytes of ``file``, about a megabyte at a time."""
    from isal import isal_zlib

    content = read_bytes(file)
    if content[:2] != b"\x1f\x8b":
        yield from (content[start : start + _BLOCK] for start in range(0, len(content), _BLOCK))
        return
    try:
        while content[:2] == b"\x1f\x8b":  # a gzip may have several members
            stream = isal_zlib.decompressobj(31)
            while not stream.eof:
                block = stream.decompress(content, _BLOCK)
                if not block and not stream.eof:
                    return
                yield block
                content = stream.unused_data if stream.eof else stream.unconsumed_tail
    except isal_zlib.IsalError as error:  # type: ignore[misc]
        raise _damaged(file, error) from None


def _trailer(file: File) -> tuple[int, int] | None:
    """CRC-32 and length as a gzip's last eight bytes state them; None if ``file`` is no gzip."""
    with reading(file):
        size = file.stat().st_size
    if size < 18 or read_bytes(file, 0, 2) != b"\x1f\x8b":
        return None
    crc, length = struct.unpack("<II", read_bytes(file, size - 8, 8))
    return crc, length


def write(path: Path, data: np.ndarray, affine: np.ndarray, *, codes: tuple[int, int] = (1, 0), level: int = 2) -> None:
    """Write a gzipped NIfTI-1 file atomically; the same input gives the same bytes.

    Args:
        path: ends with ``.nii.gz``.
        data: (X, Y, Z), stored in its own type without scaling.
        affine: (4, 4) voxel to mm, RAS+.
        codes: (sform, qform) codes; 0 leaves that form out. A qform holds no shear.
        level: of the compression, 0 to 3.
    """
    import nibabel
    from isal import igzip

    image = nibabel.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine if codes[0] else None, codes[0])
    image.set_qform(affine if codes[1] else None, codes[1])
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(igzip.compress(image.to_bytes(), level, mtime=0))


def parse_header(first: bytes, file: File) -> Header:
    """The header in the first uncompressed bytes of ``file``.

    Raises:
        UserError: not NIfTI, damaged, or its voxels are no real numbers.
    """
    from nibabel import Nifti1Header, Nifti2Header
    from nibabel.spatialimages import HeaderDataError

    kind = {348: Nifti1Header, 540: Nifti2Header}.get(_header_length(first))
    if kind is None or len(first) < (348 if kind is Nifti1Header else 540):
        raise NiftiError("unreadable", f"{file} is not a NIfTI file: it begins with {first[:8]!r}. {AGAIN}")
    try:
        raw = kind.from_fileobj(io.BytesIO(first), check=False)
        shape = tuple(int(n) for n in raw.get_data_shape())
        dtype = np.dtype(raw.get_data_dtype())
        slope, inter = raw.get_slope_inter()
        sform, qform = raw.get_sform(coded=True), raw.get_qform(coded=True)
        affine = np.asarray(raw.get_best_affine(), np.float64)
        offset = int(raw.get_data_offset()) or (352 if kind is Nifti1Header else 544)
    except (HeaderDataError, ValueError, TypeError, KeyError) as error:
        raise NiftiError("unreadable", f"The header of {file} is damaged ({error}). {AGAIN}") from None
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if dtype.kind not in "iufb":
        raise NiftiError(
            "dtype", f"{file} stores {_type_name(dtype)} voxels, expected real numbers: convert it to a scalar volume."
        )
    if not shape or min(shape) < 1 or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise NiftiError(
            "unreadable", f"The header of {file} is damaged (shape {shape}, affine {affine[:3].tolist()}). {AGAIN}"
        )
    zooms = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    apart = 0.0
    if sform[1] and qform[1] and sform[0] is not None and qform[0] is not None:
        apart = displacement(np.asarray(sform[0]), np.asarray(qform[0]), shape)
    return Header(
        shape=shape,
        dtype=dtype,
        affine=affine,
        zooms=(float(zooms[0]), float(zooms[1]), float(zooms[2])),
        codes=(int(sform[1]), int(qform[1])),
        slope=1.0 if slope is None else float(slope),
        inter=0.0 if inter is None else float(inter),
        offset=offset,
        disagreement=apart,
    )


def displacement(one: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    """The largest distance in mm between where two affines put the same corner of a volume of ``shape``."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape[:3]], indexing="ij")).reshape(3, -1)
    difference = (one - other)[:3, :3] @ corners + (one - other)[:3, 3:]
    return float(np.sqrt((difference**2).sum(axis=0)).max())


def _header_length(first: bytes) -> int:
    if len(first) < 4:
        return 0
    little, big = struct.unpack("<i", first[:4])[0], struct.unpack(">i", first[:4])[0]
    return next((n for n in (little, big) if n in (348, 540)), 0)


def _type_name(dtype: np.dtype) -> str:
    return "colour" if dtype.fields else "complex" if dtype.kind == "c" else str(dtype)


def _first_bytes(file: File) -> bytes:
    """The first uncompressed bytes, enough for a header."""
    first = read_bytes(file, 0, _FIRST)
    if not first:
        raise NiftiError("unreadable", f"{file} is empty. {AGAIN}")
    if first[:2] != b"\x1f\x8b":
        return first[:_LONGEST]
    from isal import isal_zlib

    try:
        return isal_zlib.decompressobj(31).decompress(first, _LONGEST)
    except isal_zlib.IsalError as error:  # type: ignore[misc]
        raise _damaged(file, error) from None


def _inflated(content: bytes, file: File) -> bytes:
    from isal import igzip, isal_zlib

    try:
        return igzip.decompress(content)
    except EOFError:
        raise NiftiError(
            "truncated",
            f"{file} is truncated: the gzip stream ends before its end mark, after {len(content)} bytes. {AGAIN}",
        ) from None
    except (isal_zlib.IsalError, igzip.BadGzipFile) as error:  # type: ignore[misc]
        raise _damaged(file, error) from None


def _truncated(file: File, length: int, header: Header) -> NiftiError:
    return NiftiError(
        "truncated", f"{file} is truncated: {length} bytes where its header announces {header.bytes}. {AGAIN}"
    )


def _damaged(file: File, error: Exception) -> NiftiError:
    return NiftiError("unreadable", f"{file} is damaged: its gzip stream cannot be decoded ({error}). {AGAIN}")
