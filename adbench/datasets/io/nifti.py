"""NIfTI files: the header alone in under a millisecond, or the voxels with the gzip decoded once.

A file is a path or a member of a tar archive (:class:`adbench.datasets.io.archive.Member`). nibabel interprets headers;
gzip streams are inflated by ISA-L, several times faster than zlib, and a volume is held once in its stored type.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from adbench.datasets.io.archive import File, FileError, read_bytes, size_of
from adbench.utils import limits
from adbench.utils.files import replacing

SUFFIXES = (".nii.gz", ".nii")
_GZIP = b"\x1f\x8b"
_FIRST = 16384  # compressed bytes that surely hold a header
_LONGEST = 540  # bytes of a NIfTI-2 header; one of NIfTI-1 has 348
_BLOCK = 1 << 20  # uncompressed bytes that are looked at at a time
_PIECE = 8 << 20  # compressed bytes that are read at a time
_DENSEST = 1100  # bytes that one of gzip can stand for
_SINGLE, _PAIRS = (b"n+1", b"n+2"), (b"ni1", b"ni2")  # what a header says that it is of
_MOSTLY_ZERO = 0.9  # share of zeros among probabilities of a lesion
_FEW_VALUES = 16  # the most values of a label mask
_MANY_VALUES = 256  # ... of one with numbered parts, where ...
_NEARLY_ZERO = 0.95  # ... so many voxels are 0 (a brain fills more of its volume), or ...
_MOST_EQUAL = 0.75  # ... so many voxels that are not equal the one before
_GRID_TOLERANCE = 0.1  # voxels by which two grids may lie apart: rounding in headers, not another grid
_UNITS = {1: ("metres", 1000.0), 3: ("micrometres", 0.001)}  # that a header may state, and mm of each
_OF_A_SCAN = (0.05, 50.0)  # mm: larger and smaller voxels than any scanner's
_AGAIN = "Copy or download it again."


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
        odd: what is against the standard and was read all the same, in words.
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
    odd: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Length of the whole uncompressed file."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize

    def channel(self, number: int, file: File) -> Header:
        """The header of one volume of a 4-D file.

        Raises:
            FileError: ``file`` does not have that many.
        """
        count = self.shape[3] if len(self.shape) == 4 else 1
        if number >= count:
            size = by(self.shape)
            raise FileError("axes", f"{file} has {count} channels ({size} voxels), and channel {number + 1} is wanted.")
        start = self.offset + number * math.prod(self.shape[:3]) * self.dtype.itemsize
        return replace(self, shape=self.shape[:3], offset=start)

    @property
    def orientation(self) -> str:
        """Where each stored axis points, e.g. "RAS", "LPS"; the nearest axis when it is oblique."""
        from nibabel.orientations import aff2axcodes

        return "".join(str(code) for code in aff2axcodes(self.affine))


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
    for block in _blocks(file, _FIRST, _LONGEST):
        first += block
        if len(first) >= _LONGEST:
            break
    return _parse_header(first[:_LONGEST], file)


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
    if channel is not None:
        header = header.channel(channel, file)
    if len(header.shape) != 3:
        raise FileError("axes", f"{file} has {len(header.shape)} axes of {header.shape} voxels, expected a 3-D volume.")
    scaled = (header.slope, header.inter) != (1.0, 0.0)
    shortened = header.dtype.kind == "f" and header.dtype.itemsize > 4 and not exact
    converted = scaled or shortened or not header.dtype.isnative
    width = 0 if not converted else 8 if exact else 4
    _check_room(file, header, header.bytes + math.prod(header.shape) * width)
    voxels = np.frombuffer(_content(file, header), header.dtype, math.prod(header.shape), header.offset)
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
    del voxels  # of a converted volume the stored voxels go before it is looked at
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
    """What a volume holds that looks like a mask, in words; "" for any other, and for one of zeros alone.

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


def off_grid(mask: Header, image: Header) -> str:
    """How the grids of a mask and its image differ, "" when they are the same to within a tenth of a voxel."""
    if mask.shape != image.shape:
        return f"{by(mask.shape)} voxels against {by(image.shape)}"
    distance = _displacement(mask.affine, image.affine, image.shape)
    if distance > _GRID_TOLERANCE * min(image.zooms):
        return f"its affine puts a corner {distance:.1f} mm away from the image's ({mask.orientation} against {image.orientation})"
    return ""


def by(shape: tuple[int, ...]) -> str:
    """A shape in words: "240x240x155"."""
    return "x".join(map(str, shape))


def _displacement(one: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    """The largest distance in mm between where two affines put the same corner of a volume of ``shape``."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape[:3]], indexing="ij")).reshape(3, -1)
    difference = (one - other)[:3, :3] @ corners + (one - other)[:3, 3:]
    return float(np.sqrt((difference**2).sum(axis=0)).max())


def _parse_header(first: bytes, file: File) -> Header:
    """The header in the first uncompressed bytes of ``file``."""
    from nibabel import Nifti1Header, Nifti2Header
    from nibabel.spatialimages import HeaderDataError

    if not first:
        raise FileError("unreadable", f"{file} is empty. {_AGAIN}")
    lengths = {348: Nifti1Header, 540: Nifti2Header}
    stated = {int.from_bytes(first[:4], order) for order in ("little", "big")} & set(lengths)
    length = stated.pop() if stated else _LONGEST + 1
    if len(first) < length:
        raise FileError("unreadable", f"{file} is not a NIfTI file: it begins with {first[:8]!r}. {_AGAIN}")
    try:
        raw = lengths[length].from_fileobj(io.BytesIO(first), check=False)
        shape = tuple(int(n) for n in raw.get_data_shape())
        dtype = np.dtype(raw.get_data_dtype())
        slope, inter = raw.get_slope_inter()
        odd = _standardised(raw)
        sform, qform = _forms(raw, odd)
        form = sform[0] if sform[1] else qform[0] if qform[1] else raw.get_base_affine()
        affine = np.asarray(form, np.float64)
        offset = int(raw.get_data_offset()) or length + 4
    except (HeaderDataError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise FileError("unreadable", f"The header of {file} is damaged ({error}). {_AGAIN}") from None
    magic = bytes(raw["magic"])[:3]
    if magic in _PAIRS:
        raise FileError("unreadable", f"{file} is the header of a pair of files: {pair_way_out(file.name)}.")
    if magic not in _SINGLE:
        raise FileError("unreadable", f"{file} is not a NIfTI file: its header says {magic!r}. {_AGAIN}")
    if offset < length:
        raise FileError("unreadable", f"The header of {file} is damaged (voxels start at byte {offset}). {_AGAIN}")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if dtype.kind not in "iufb":
        kind = "colour" if dtype.fields else "complex" if dtype.kind == "c" else str(dtype)
        raise FileError("dtype", f"{file} stores {kind} voxels, expected real numbers: convert it to a scalar volume.")
    if not shape or min(shape) < 1 or not _places(affine):
        what = f"shape {shape}, affine {affine[:3].tolist()}"
        raise FileError("unreadable", f"The header of {file} is damaged ({what}). {_AGAIN}")
    zooms = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    return Header(
        shape=shape,
        dtype=dtype,
        affine=affine,
        zooms=(float(zooms[0]), float(zooms[1]), float(zooms[2])),
        codes=(int(sform[1]), int(qform[1])),
        slope=1.0 if slope is None else float(slope),
        inter=0.0 if inter is None else float(inter),
        offset=offset,
        disagreement=_displacement(sform[0], qform[0], shape) if sform[1] and qform[1] else 0.0,
        odd=tuple(odd),
    )


def _standardised(raw: Any) -> list[str]:
    """Give voxel sizes and their handedness the values that the standard and nibabel read them as; says what was odd."""
    odd, sizes = [], raw["pixdim"]
    if sizes[0] not in (-1, 1):
        if sizes[0] != 0:  # which the standard reads as 1
            odd.append(f"a handedness (qfac) of {sizes[0]:g}, read as {-1 if sizes[0] < 0 else 1}")
        sizes[0] = -1 if sizes[0] < 0 else 1
    if (sizes[1:4] < 0).any():
        odd.append(f"voxel sizes of {', '.join(f'{size:g}' for size in sizes[1:4])} mm, read without their sign")
        sizes[1:4] = np.abs(sizes[1:4])
    unit, to_mm = _UNITS.get(int(raw["xyzt_units"]) & 7, ("", 1.0))
    least, most = (size / to_mm for size in _OF_A_SCAN)
    if unit and least < sizes[1:4].min() and sizes[1:4].max() < most:  # else a unit that is stated is often not meant
        odd.append(f"voxel sizes in {unit}, read as {' x '.join(f'{size * to_mm:.3g}' for size in sizes[1:4])} mm")
        sizes[1:4] *= to_mm
        for name in ("qoffset_x", "qoffset_y", "qoffset_z"):
            raw[name] = raw[name] * to_mm
        rows = [raw[name] for name in ("srow_x", "srow_y", "srow_z")]
        if np.sqrt(np.square([row[:3] for row in rows]).sum(axis=0)).max() < most:
            for row in rows:
                row *= to_mm
    return odd


def _forms(raw: Any, odd: list[str]) -> tuple[tuple[Any, int], tuple[Any, int]]:
    """(sform, its code) and (qform, its code); the code of one that cannot be used is 0, which ``odd`` then says.

    Raises:
        HeaderDataError, ValueError: the only one cannot be used.
    """
    from nibabel.spatialimages import HeaderDataError

    sform: tuple[Any, int] = raw.get_sform(coded=True)
    qform: Any = None, 0
    problem: Exception | None = None
    try:
        qform = raw.get_qform(coded=True)
    except (HeaderDataError, ValueError) as error:  # rounding may make its quaternion longer than 1
        problem = error
    if qform[1] and not _places(qform[0]):
        qform, problem = (None, 0), ValueError(f"qform {qform[0][:3].tolist()}")
    if sform[1] and not _places(sform[0]) and qform[1]:
        odd.append("an sform that is no affine: the qform is used")
        sform = None, 0
    if problem is not None:
        if not sform[1]:
            raise problem
        odd.append(f"a qform that cannot be used ({problem}): the sform is used")
    return sform, qform


def _places(affine: np.ndarray) -> bool:
    """Whether an affine puts different voxels at different places, all of them finite."""
    with np.errstate(all="ignore"):
        volume = abs(np.linalg.det(affine[:3, :3])) if np.isfinite(affine).all() else 0.0
    return bool(1e-9 <= volume < np.inf)


def pair_way_out(name: str) -> str:
    """What to do about a ``.hdr`` and ``.img`` file."""
    return f"only single files are read; write one with `nib-convert {name} {name.removesuffix('.gz').removesuffix('.hdr')}.nii.gz`"


def _content(file: File, header: Header) -> bytes | bytearray:
    """The uncompressed bytes of ``file`` up to the end of its voxels; a gzip stream is read to its end mark."""
    if read_bytes(file, 0, 2) != _GZIP:
        content = read_bytes(file, 0, header.bytes)
        if len(content) < header.bytes:
            raise _truncated(file, len(content), header)
        return content
    inflated, length = bytearray(header.bytes), 0
    for block in _blocks(file):
        inflated[length : length + len(block)] = block[: max(0, header.bytes - length)]
        length += len(block)
        _check_size(file, "unpacks to at least", length)
    if length < header.bytes:
        raise _truncated(file, length, header)
    return inflated


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
                raise FileError("truncated", f"{file} is truncated: {what}. {_AGAIN}")
    except isal_zlib.IsalError as error:  # type: ignore[misc]
        raise FileError(
            "unreadable", f"{file} is damaged: its gzip stream cannot be decoded ({error}). {_AGAIN}"
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
        "truncated", f"{file} is truncated: {length} bytes where its header announces {header.bytes}. {_AGAIN}"
    )
