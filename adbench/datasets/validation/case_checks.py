"""The files of one case, header by header and, if asked, voxel by voxel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from adbench.datasets.adapters.volumes import Expected, Scan, off_grid
from adbench.datasets.io import nifti
from adbench.datasets.io.archive import File
from adbench.datasets.io.filename_patterns import BRAIN, LESION
from adbench.datasets.io.nifti import Header, NiftiError, Volume
from adbench.datasets.preprocessing.reorient import to_ras, zooms
from adbench.datasets.validation import similarity
from adbench.datasets.validation.issues import Finding, Severity
from adbench.errors import UserError

ZOOM_TOLERANCE = 0.01  # mm
PLAUSIBLE_ZOOMS = (0.2, 10.0)  # mm
SHEARED = 1.0  # mm by which sform and qform may place a corner apart
OUTSIDE = 0.05  # share of a lesion outside the brain that is worth a warning
STRIPPED = 0.3  # share of voxels at exactly 0 that says an image is skull-stripped
TEMPLATE_MARGIN = 5.0  # mm around the template's brain that still counts as brain


@dataclass
class Examined:
    """What was found in one case.

    Attributes:
        checksums: kind -> CRC-32 and length of the uncompressed file; of plain files only when every voxel is read.
        prints: modality -> fingerprint and slice hashes, where every voxel was read.
        files: how many were opened.
    """

    scan: Scan
    findings: list[Finding] = field(default_factory=list)
    checksums: dict[str, tuple[int, int]] = field(default_factory=dict)
    prints: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    files: int = 0


def examine(scan: Scan, expected: Expected, deep: bool) -> Examined:
    """Open every file of ``scan``, images first."""
    result = Examined(scan)
    headers: dict[str, Header] = {}
    kinds = sorted(scan.files, key=lambda kind: (kind in (LESION, BRAIN), kind))
    for kind in kinds:
        file = scan.files[kind]
        result.files += 1

        def add(severity: Severity, code: str, message: str, file: File = file) -> None:
            result.findings.append(Finding(severity, code, scan.id, str(file), message))

        try:
            headers[kind] = nifti.read_header(file)
            whole = nifti.checksum(file, plain=deep)
            if whole is not None:
                result.checksums[kind] = whole
        except NiftiError as error:
            add("error", error.kind, str(error))
            headers.pop(kind, None)
            continue
        except UserError as error:
            add("error", "unreadable", str(error))
            headers.pop(kind, None)
            continue
        for severity, code, message in _header(kind, file, headers[kind], expected):
            add(severity, code, message)
    result.findings += _grids(scan, headers, expected)
    if deep:
        result.findings += _voxels(scan, headers, expected, result.prints)
    return result


Check = tuple[Severity, str, str]


def _header(kind: str, file: File, header: Header, expected: Expected) -> Iterator[Check]:
    mask = kind in (LESION, BRAIN)
    if len(header.shape) != 3:
        yield "error", "axes", f"{file} has {len(header.shape)} axes ({_by(header.shape)} voxels), expected 3"
        return
    if expected.shape and header.shape != expected.shape:
        yield "warning", "shape", f"{file} has {_by(header.shape)} voxels, the distribution {_by(expected.shape)}"
    if expected.zooms and max(abs(a - b) for a, b in zip(header.zooms, expected.zooms, strict=True)) > ZOOM_TOLERANCE:
        yield (
            "warning",
            "voxel-size",
            f"{file} has voxels of {_mm(header.zooms)}, the distribution {_mm(expected.zooms)}",
        )
    elif min(header.zooms) < PLAUSIBLE_ZOOMS[0] or max(header.zooms) > PLAUSIBLE_ZOOMS[1]:
        yield "warning", "voxel-size", f"{file} has voxels of {_mm(header.zooms)}: implausible for a head"
    if header.codes == (0, 0):
        yield "warning", "orientation", f"{file} has neither sform nor qform: it does not say where left is"
    elif expected.orientation and header.orientation != expected.orientation:
        yield (
            "warning",
            "orientation",
            f"{file} is stored as {header.orientation}, the distribution as {expected.orientation}; the affine is trusted",
        )
    if header.disagreement > SHEARED:
        yield (
            "warning",
            "affine-conflict",
            f"{file}: sform and qform place a corner {header.disagreement:.1f} mm apart; the sform is used",
        )
    if mask and header.dtype.kind == "f":
        yield "warning", "dtype", f"{file} stores labels as {header.dtype}"
    elif not mask and expected.integers and header.dtype.kind == "f":
        yield "warning", "dtype", f"{file} stores {header.dtype} voxels, the distribution integers: was it processed?"


def _grids(scan: Scan, headers: Mapping[str, Header], expected: Expected) -> Iterator[Finding]:
    """Masks and sequences that do not lie on the grid of the case's first image."""
    if not expected.one_grid:
        return
    reference = next((kind for kind in (*expected.sequences, *scan.sequences) if kind in headers), None)
    if reference is None:
        return
    for kind, header in headers.items():
        if kind == reference or len(header.shape) != 3:
            continue
        if apart := off_grid(header, headers[reference]):
            file, image = scan.files[kind], scan.files[reference]
            message = f"{file} does not lie on the grid of {image.name}: {apart}"
            yield Finding("error", "off-grid", scan.id, str(file), message)


def _voxels(
    scan: Scan, headers: Mapping[str, Header], expected: Expected, prints: dict[str, tuple[np.ndarray, np.ndarray]]
) -> Iterator[Finding]:
    brain: np.ndarray | None = None  # every voxel that is brain in some image of the case
    lesion: Volume | None = None
    stripped = expected.zero_background
    for kind in sorted(headers, key=lambda kind: (kind == LESION, kind)):
        file = scan.files[kind]
        try:
            volume = nifti.decode(file)
        except NiftiError as error:
            yield Finding("error", error.kind, scan.id, str(file), str(error))
            continue
        bad = nifti.nonfinite(volume.data)
        if bad is not None:
            message = f"{file} holds {bad[0]} NaN or infinite voxels, the first at {bad[1]}"
            yield Finding("error", "nonfinite", scan.id, str(file), message)
            continue
        if kind == LESION:
            lesion = volume
            yield from _labels(scan, file, volume, expected)
            continue
        if kind == BRAIN:
            brain = volume.data != 0
            if not brain.any():
                yield Finding("error", "empty-mask", scan.id, str(file), f"{file} is an empty brain mask")
            continue
        low, high = volume.data.min(), volume.data.max()
        if low == high:
            yield Finding("error", "constant", scan.id, str(file), f"{file} is constant: every voxel is {low:g}")
            continue
        inside = volume.data != 0
        head, affine = to_ras(volume.data, volume.affine)
        coarse = similarity.fingerprint(head.T, head.T != 0, spacing=zooms(affine)[::-1].tolist())
        prints[kind] = (coarse, similarity.slice_hashes(head.T.astype(np.float32)))
        if expected.zero_background and (corners := _corners(volume.data)):
            message = f"{file} is not 0 in its corners (up to {corners:g}): it is not skull-stripped as distributed"
            yield Finding("warning", "background", scan.id, str(file), message)
        stripped = stripped or inside.mean() < 1 - STRIPPED
        if BRAIN not in headers:
            brain = inside if brain is None or brain.shape != inside.shape else brain | inside
    if lesion is not None:
        within = _within(brain, lesion, BRAIN in headers, stripped)
        if within is not None:
            yield from _outside(scan, scan.files[LESION], lesion, within)


def _within(brain: np.ndarray | None, lesion: Volume, given: bool, stripped: bool) -> np.ndarray | None:
    """Where a lesion may be: the given mask, the foreground of stripped images, or on the MNI grid the template's brain."""
    from adbench.datasets.preprocessing import template

    if brain is None or brain.shape != lesion.data.shape:
        return None
    if not given and template.same_grid(lesion.header.shape, lesion.affine):
        return template.mask(TEMPLATE_MARGIN)
    return brain if given or stripped else None


def _labels(scan: Scan, file: File, volume: Volume, expected: Expected) -> Iterator[Finding]:
    values, counts = np.unique(volume.data, return_counts=True)
    if expected.labels:
        wrong = ~np.isin(values, list(expected.labels))
        allowed = f"allowed are {', '.join(map(str, expected.labels))}"
    else:
        wrong = np.rint(values) != values
        allowed = "whole numbers are allowed"
    for value, count in list(zip(values[wrong], counts[wrong], strict=True))[:5]:
        message = f"{file} holds the label {value:g} in {count} voxels; {allowed}"
        yield Finding("error", "label", scan.id, str(file), message)
    if not (values != 0).any():
        yield Finding("warning", "empty-mask", scan.id, str(file), f"{file} is empty: no voxel is lesion")


def _outside(scan: Scan, file: File, lesion: Volume, brain: np.ndarray) -> Iterator[Finding]:
    marked = lesion.data != 0
    outside, total = int((marked & ~brain).sum()), int(marked.sum())
    if outside:
        share = outside / total
        message = f"{file} marks {outside} of {total} lesion voxels ({share:.1%}) outside the brain"
        yield Finding("warning" if share >= OUTSIDE else "info", "outside-brain", scan.id, str(file), message)


def _corners(data: np.ndarray) -> float:
    """The largest absolute value in the eight corners, 3 voxels wide each."""
    ends = (slice(0, 3), slice(-3, None))
    return float(max(np.abs(data[a, b, c].astype(np.float64)).max() for a in ends for b in ends for c in ends))


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _mm(zooms: tuple[float, float, float]) -> str:
    return " x ".join(f"{zoom:.3g}" for zoom in zooms) + " mm"
