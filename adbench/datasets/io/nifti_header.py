"""Parse NIfTI headers and list their problems, for ``data check``, preparation, ``predict`` and ``eval`` alike."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from adbench.datasets.io.archive import File, FileError
from adbench.datasets.issues import Code, Severity

LONGEST = 540  # bytes of a NIfTI-2 header; one of NIfTI-1 has 348
AGAIN = "Copy or download it again."
_SINGLE, _PAIRS = (b"n+1", b"n+2"), (b"ni1", b"ni2")  # what a header says that it is of
_GRID_TOLERANCE = 0.1  # voxels by which two grids may lie apart: rounding in headers, not another grid
_UNITS = {1: ("metres", 1000.0), 3: ("micrometres", 0.001)}  # that a header may state, and mm of each
_OF_A_SCAN = (0.05, 50.0)  # mm: larger and smaller voxels than any scanner's
_PLAUSIBLE = (0.2, 10.0)  # mm: voxels of a head
_SPARSE = 20.0  # mm: slices of which some were left out
_DISAGREEMENT = 1.0  # mm by which sform and qform may place a corner apart
_TURNED = np.cos(np.pi / 4)  # of an axis that sform and qform point in different directions
_SIZES = 0.01  # share by which stated voxel sizes may differ from those of the sform
_SQUARE = 1.0  # degree by which axes may miss a right angle
_TILT = 10.0  # degrees by which they may miss the head's
_NOT_SCALARS = {
    1004,
    1005,
    1006,
    1007,
    1008,
    1009,
    1010,
    2003,
    2004,
}  # intent codes of matrices, vectors, points, colours


@dataclass(frozen=True)
class Header:
    """A parsed NIfTI header.

    Attributes:
        shape: voxels along each stored axis, trailing axes of length 1 removed.
        dtype: of the stored voxels, with their byte order.
        affine: (4, 4) float64 voxel to mm, RAS+; from the sform, else the qform, else voxel sizes alone.
        zooms: voxel size along each of the three stored axes by the affine, mm.
        codes: (sform, qform) codes; (0, 0) means that the file does not say how the head lies.
        slope, inter: stored value * slope + inter is the intensity; (1, 0) when none is given.
        offset: byte at which the voxels start.
        disagreement: mm by which sform and qform place the farthest corner apart; 0 when only one is given.
        stated: voxel sizes beside the affine (pixdim), mm, without their sign.
        behind: bytes that follow the voxels; known where the whole file was read (:func:`adbench.datasets.io.nifti.read`).
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
    stated: tuple[float, float, float] = (1.0, 1.0, 1.0)
    behind: int = 0
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
        """Direction of each stored axis, e.g. "RAS", "LPS"; the nearest one when the axis is oblique."""
        from nibabel.orientations import aff2axcodes

        return "".join(str(code) for code in aff2axcodes(self.affine))


def parse(first: bytes, file: File) -> Header:
    """The header in the first uncompressed bytes of ``file``.

    Raises:
        FileError: it is none, or what it says is impossible or ambiguous. What the file holds is not quoted: it may lie
            behind a link.
    """
    from nibabel import Nifti1Header, Nifti2Header
    from nibabel.spatialimages import HeaderDataError

    if not first:
        raise FileError("unreadable", f"{file} is empty. {AGAIN}")
    lengths = {348: Nifti1Header, 540: Nifti2Header}
    stated = {int.from_bytes(first[:4], order) for order in ("little", "big")} & set(lengths)
    length = stated.pop() if stated else LONGEST + 1
    if len(first) < length:
        raise FileError("unreadable", f"{file} is not a NIfTI file: it does not begin with its header. {AGAIN}")
    try:
        raw = lengths[length].from_fileobj(io.BytesIO(first), check=False)
        shape = tuple(int(n) for n in raw.get_data_shape())
        dtype = np.dtype(raw.get_data_dtype())
        slope, inter = raw.get_slope_inter()
        odd = _standardised(raw)
        pixdim = np.asarray(raw["pixdim"][1:4], np.float64)
        sform, qform = _forms(raw, odd)
        form = sform[0] if sform[1] else qform[0] if qform[1] else raw.get_base_affine()
        affine = np.asarray(form, np.float64)
        offset = int(raw.get_data_offset()) or length + 4
    except (HeaderDataError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise FileError("unreadable", f"The header of {file} is damaged ({error}). {AGAIN}") from None
    magic = bytes(raw["magic"])[:3]
    if magic in _PAIRS:
        raise FileError("unreadable", f"{file} {_named_as_one(file.name)}")
    if magic not in _SINGLE:
        raise FileError("unreadable", f"{file} is not a NIfTI file: its header lacks the magic n+1. {AGAIN}")
    if offset < length:
        raise FileError("unreadable", f"The header of {file} is damaged (voxels start at byte {offset}). {AGAIN}")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if dtype.kind not in "iufb":
        kind = "colour" if dtype.fields else "complex" if dtype.kind == "c" else str(dtype)
        raise FileError("dtype", f"{file} stores {kind} voxels, expected real numbers: convert it to a scalar volume.")
    if not shape or min(shape) < 1:
        raise FileError("unreadable", f"The header of {file} is damaged (shape {shape}). {AGAIN}")
    used = "sform" if sform[1] else "qform" if qform[1] else "voxel sizes (pixdim)"
    if not _places(affine):
        what = f"by its {used} the affine is {affine[:3].tolist()}"
        raise FileError(
            "header", f"{file} does not say where its voxels lie ({what}): correct these numbers in its header."
        )
    if sform[1] and qform[1] and (_directions(sform[0]) * _directions(qform[0])).sum(axis=0).min() < _TURNED:
        raise FileError("affine-conflict", f"{file} {_both_ways(sform[0], qform[0])}")
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
        stated=(float(pixdim[0]), float(pixdim[1]), float(pixdim[2])),
        odd=tuple(odd),
    )


def _standardised(raw: Any) -> list[str]:
    """Give voxel sizes and their handedness the values that the standard and nibabel read them as; says what was odd."""
    odd, sizes = [], raw["pixdim"]
    if sizes[0] not in (-1, 1):
        if sizes[0] != 0 or raw["qform_code"] > 0:  # 0 is common where no qform asks for it
            odd.append(f"a handedness (qfac) of {sizes[0]:g}, read as {-1 if sizes[0] < 0 else 1}")
        sizes[0] = -1 if sizes[0] < 0 else 1
    if (sizes[1:4] < 0).any():
        odd.append(f"voxel sizes of {', '.join(f'{size:g}' for size in sizes[1:4])} mm, read without their sign")
        sizes[1:4] = np.abs(sizes[1:4])
    if float(raw["scl_slope"]) < 0:
        odd.append(
            f"a negative scale (scl_slope {float(raw['scl_slope']):g}): the larger a stored value, the darker it is"
        )
    if int(raw["intent_code"]) in _NOT_SCALARS:
        odd.append(
            f"voxels that are said to be no image ({raw.get_intent()[0]}, intent_code {int(raw['intent_code'])})"
        )
    unit, to_mm = _UNITS.get(int(raw["xyzt_units"]) & 7, ("", 1.0))
    least, most = (size / to_mm for size in _OF_A_SCAN)
    if unit and not (least < sizes[1:4].min() and sizes[1:4].max() < most):  # a unit that is stated is often not meant
        odd.append(f"voxel sizes of {_sizes(sizes[1:4])} that are said to be {unit}, read as mm")
    elif unit:
        odd.append(f"voxel sizes in {unit}, read as {_sizes(sizes[1:4] * to_mm)} mm")
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
    if qform[1] and sform[1] and not _places(qform[0]):
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


def _directions(affine: np.ndarray) -> np.ndarray:
    """(3, 3): where each stored axis points, unit columns."""
    axes = np.asarray(affine, np.float64)[:3, :3]
    return np.asarray(axes / np.linalg.norm(axes, axis=0))


def _both_ways(sform: np.ndarray, qform: np.ndarray) -> str:
    from nibabel.orientations import aff2axcodes

    ways = ["".join(map(str, aff2axcodes(form))) for form in (sform, qform)]
    return (
        f"says in two ways how the head lies, by its sform ({ways[0]}) and by its qform ({ways[1]}), and which is right cannot be "
        "seen: write the right one over the other, e.g. with nibabel's image.set_qform(image.affine), which keeps the sform."
    )


def _sizes(sizes: Any) -> str:
    return " x ".join(f"{size:.3g}" for size in sizes)


def _named_as_one(name: str) -> str:
    """What to do about a file whose name says that it holds its voxels, and whose header says that it does not."""
    end = ".gz" * name.lower().endswith(".gz")
    stem = name[: len(name) - len(f".nii{end}")]
    return (
        f"is the header of a pair of files by its magic (ni1) and holds both by its name: if the voxels lie in {stem}.img{end}, "
        f"name it {stem}.hdr{end} and write both as one with `nib-convert {stem}.hdr{end} {stem}.nii.gz`; if they lie in it, "
        "correct its magic to n+1."
    )


def pair_way_out(name: str) -> str:
    """Advice for a ``.hdr`` and ``.img`` file."""
    return f"only single files are read; write one with `nib-convert {name} {name.removesuffix('.gz').removesuffix('.hdr')}.nii.gz`"


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


@dataclass(frozen=True)
class HeaderIssue:
    """A problem of a NIfTI header.

    Attributes:
        severity: "error": no head, or none as it lies; "warning": it is read all the same; "info": nothing is wrong.
        code: of the issue in ``adbench data check``.
        text: a verb and what it is, after the name of the file.
    """

    severity: Severity
    code: Code
    text: str


def header_issues(header: Header) -> Iterator[HeaderIssue]:
    """Problems of a header that can be read; :func:`parse` refuses the others."""
    mm, least, most = f"{_sizes(header.zooms)} mm", min(header.zooms), max(header.zooms)
    if least < _PLAUSIBLE[0] or most > _PLAUSIBLE[1]:
        hint = ", is that metres? Write it again in mm" if most < _PLAUSIBLE[1] / 1000 else ""
        beyond = most < _OF_A_SCAN[0] or least > _OF_A_SCAN[1]
        sparse = least >= _PLAUSIBLE[0] and sorted(header.zooms)[1] <= _PLAUSIBLE[1] and not beyond and most <= _SPARSE
        why = "its slices are far apart and show little of a head" if sparse else f"implausible for a head{hint}"
        text = f"has voxels of {mm}: {why}"
        yield HeaderIssue("error" if beyond else "warning", "voxel-size", text)
    if header.codes == (0, 0):
        yield HeaderIssue("warning", "orientation", "has neither sform nor qform: it does not say where left is")
    for what in header.odd:
        yield HeaderIssue("warning", "header", f"has {what}")
    if header.disagreement > _DISAGREEMENT:
        what = f"has an sform and a qform that place a corner {header.disagreement:.1f} mm apart; the sform is used"
        yield HeaderIssue("warning", "affine-conflict", what)
    if header.codes[0] and not np.allclose(header.stated, header.zooms, rtol=_SIZES, atol=0):
        what = f"states voxels of {_sizes(header.stated)} mm, and its sform places them {mm} apart; the sform is used"
        yield HeaderIssue("warning", "affine-conflict", what)
    axes = _directions(header.affine)
    between = np.degrees(np.arccos(np.clip((axes.T @ axes)[np.triu_indices(3, 1)], -1, 1)))
    if (skew := float(np.abs(between - 90).max())) > _SQUARE:
        yield HeaderIssue(
            "warning", "header", f"has a sheared affine: two of its axes meet at {90 - skew:.0f} degrees, not 90"
        )
    elif (tilt := tilt_of(header)) > _TILT:
        what = f"has axes that are tilted by {tilt:.0f} degrees against the head's, and so are slices that are cut along them"
        yield HeaderIssue("info", "orientation", what)
    if header.behind:
        yield HeaderIssue("warning", "header", f"holds {header.behind} bytes behind its voxels, which are not read")


def tilt_of(header: Header) -> float:
    """Degrees between the stored axis that lies most obliquely and the nearest of the head's."""
    nearest = np.abs(_directions(header.affine)).max(axis=0).min()
    return float(np.degrees(np.arccos(min(1.0, nearest))))
