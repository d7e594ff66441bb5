"""Checks of the files of one case, header by header and, if asked, voxel by voxel."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from adbench.datasets import issues
from adbench.datasets.adapters.lesion_masks import LABEL_TOLERANCE, labels_in, merged, no_majority
from adbench.datasets.adapters.scans import Expected, Scan, require_channels, swapped
from adbench.datasets.adapters.volume_reader import STRIPPED
from adbench.datasets.geometry import to_ras, voxel_ml, zooms
from adbench.datasets.io import nifti, nifti_header
from adbench.datasets.io.archive import File, FileError
from adbench.datasets.io.mask_names import BRAIN, LESION
from adbench.datasets.io.nifti import NiftiVolume
from adbench.datasets.io.nifti_header import Header
from adbench.datasets.issues import OUTSIDE_BRAIN, Issue
from adbench.datasets.preprocessing.brain_extraction import background_values, no_brain
from adbench.datasets.store import similarity

_ZOOM_TOLERANCE = 0.01  # mm
_LARGEST_BRAIN = 2500.0  # ml
_TEMPLATE_MARGIN = 5.0  # mm around the template's brain that still counts as brain


@dataclass(frozen=True)
class Use:
    """How a case would be used in preparation.

    Attributes:
        votes: share of several lesion masks of which more must mark a voxel.
        brain: the rule that finds the brain where there is no mask of it.
        companions: modality -> the one whose brain serves it, where the case has that.
    """

    votes: float = 0.0
    brain: str = "auto"
    companions: Mapping[str, str] = field(default_factory=dict)


@dataclass
class CheckedCase:
    """Results of the checks of one case.

    Attributes:
        issues: of its files.
        checksums: modality or kind of mask -> CRC-32 and length of the uncompressed file; of uncompressed files only
            when every voxel is read.
        labels: of every lesion mask whose voxels were read.
        prints: modality -> fingerprint and slice hashes, where every voxel was read.
    """

    scan: Scan
    issues: list[Issue] = field(default_factory=list)
    checksums: dict[str, tuple[int, int]] = field(default_factory=dict)
    labels: list[tuple[int, ...]] = field(default_factory=list)
    prints: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)


def check_case(scan: Scan, expected: Expected, deep: bool, use: Use | None = None) -> CheckedCase:
    """Check every file of ``scan`` against what its dataset should be like; where ``deep``, every voxel is read, not
    headers alone.
    """
    result = CheckedCase(scan)
    headers: dict[str, Header] = {}
    for kind, file in sorted(scan.files.items(), key=lambda item: (item[0] in (LESION, BRAIN), item[0])):
        try:
            header = nifti.read_header(file)
            checksum = nifti.checksum(file, plain=deep)
        except FileError as error:
            result.issues.append(Issue("error", error.code, scan.id, str(file), str(error)))
            continue
        if kind in scan.channels:
            try:
                require_channels(file, header, expected.channels)
                header = header.channel(scan.channels[kind], file)
            except FileError as error:
                issue = Issue("error", error.code, scan.id, str(file), str(error))
                result.issues += [issue] if issue not in result.issues else []
                continue
        if checksum is not None and not scan.channels.get(kind):  # a 4-D file stands for its first sequence
            result.checksums[kind] = checksum
        if not scan.channels.get(kind):  # else said of the first one of its file
            result.issues += _header(scan.id, kind in (LESION, BRAIN), file, header, expected)
        if len(header.shape) == 3:  # what has other axes lies on no grid
            headers[kind] = header
    result.issues += _grids(scan, headers, expected)
    for piece in scan.pieces:
        if piece != scan.files[LESION]:
            result.issues += _piece(replace(scan, files={**scan.files, LESION: piece}), headers, expected)
    if deep:
        found = _voxels(scan, headers, expected, result, use or Use())
        result.issues += [issue for issue in found if issue.code != "axes"]  # which the header said
    return result


def _piece(scan: Scan, headers: Mapping[str, Header], expected: Expected) -> Iterator[Issue]:
    """Header and grid of a further lesion mask, which stands for the first one in ``scan``."""
    file = scan.files[LESION]
    try:
        header = nifti.read_header(file)
        nifti.checksum(file, plain=False)
    except FileError as error:
        yield Issue("error", error.code, scan.id, str(file), str(error))
        return
    yield from _header(scan.id, True, file, header, expected)
    found = _grids(scan, {**headers, LESION: header}, expected)
    yield from (issue for issue in found if issue.file == str(file))


def _header(case: str, mask: bool, file: File, header: Header, expected: Expected) -> Iterator[Issue]:
    def warning(code: issues.Code, message: str) -> Issue:
        return issues.warning(code, file, f"{file} {message}", case)

    size = nifti_header.by(header.shape)
    if len(header.shape) != 3:
        what = f"{file} has {len(header.shape)} axes ({size} voxels), expected 3"
        yield issues.error("axes", file, what, case)
        return
    if expected.shape and header.shape != expected.shape:
        yield warning("shape", f"has {size} voxels, the distribution {nifti_header.by(expected.shape)}")
    if expected.zooms and max(abs(a - b) for a, b in zip(header.zooms, expected.zooms, strict=True)) > _ZOOM_TOLERANCE:
        yield warning("voxel-size", f"has voxels of {_mm(header.zooms)}, the distribution {_mm(expected.zooms)}")
    if header.codes != (0, 0) and expected.orientation and header.orientation != expected.orientation:
        what = f"is stored as {header.orientation}, the distribution as {expected.orientation}; the affine is trusted"
        yield warning("orientation", what)
    for found in nifti_header.header_issues(header):
        yield Issue(found.severity, found.code, case, str(file), f"{file} {found.text}")
    if mask and header.dtype.kind == "f":
        yield warning("dtype", f"stores labels as {header.dtype}")
    elif not mask and expected.integers and header.dtype.kind == "f":
        yield warning("dtype", f"stores {header.dtype} voxels, the distribution integers: was it processed?")


def _grids(scan: Scan, headers: Mapping[str, Header], expected: Expected) -> Iterator[Issue]:
    """Masks and sequences that do not lie on the grid of the case's first image."""
    images = [kind for kind in dict.fromkeys((*expected.sequences, *scan.sequences)) if kind in headers]
    hint = ""
    if expected.one_grid:
        pairs = [(kind, images[0]) for kind in headers if images and kind != images[0]]
    else:
        on = [kind for kind in images if expected.drawn_on in ("", kind)]
        pairs = [(LESION, kind) for kind in on if LESION in headers]
        hint = swapped(expected.drawn_on) if expected.drawn_on else ""
        places = [nifti_header.off_grid(headers[BRAIN], headers[kind]) for kind in images if BRAIN in headers]
        if places and all(places):
            file = scan.files[BRAIN]
            what = f"{file} lies on the grid of no image of {scan.id} ({places[0]}), and is not used"
            yield issues.warning("off-grid", file, what, scan.id)
    for kind, reference in pairs:
        if len(headers[kind].shape) != 3:
            continue
        if difference := nifti_header.off_grid(headers[kind], headers[reference]):
            file, image = scan.files[kind], scan.files[reference]
            what = f"{file} does not lie on the grid of {image.name}: {difference}{hint}"
            yield issues.error("off-grid", file, what, scan.id)


def _voxels(
    scan: Scan, headers: Mapping[str, Header], expected: Expected, result: CheckedCase, use: Use
) -> Iterator[Issue]:
    found = _Voxels(scan, headers, expected, result, use)
    lesions: list[tuple[File, NiftiVolume]] = []
    files = [(kind, scan.files[kind]) for kind in sorted(headers) if kind != LESION]
    masks = scan.pieces or [scan.files[kind] for kind in (LESION,) if kind in headers]
    for kind, file in [*files, *((LESION, mask) for mask in masks)]:
        try:
            volume = nifti.read(file, channel=scan.channels.get(kind))
        except FileError as error:
            yield Issue("error", error.code, scan.id, str(file), str(error))
            continue
        said = set(nifti_header.header_issues(replace(volume.header, behind=0)))
        for odd in nifti_header.header_issues(volume.header):
            if odd not in said:  # from the header alone
                yield Issue(odd.severity, odd.code, scan.id, str(file), f"{file} {odd.text}")
        if kind == LESION:
            lesions.append((file, volume))
            result.labels.append(labels_in([np.rint(volume.data)]))
            yield from _labels(scan.id, file, volume.data, expected)
        elif kind == BRAIN:
            yield from found.brain_mask(file, volume)
        else:
            yield from found.image(kind, file, volume)
    yield from _merged(scan.id, lesions, use.votes, expected)
    for file, lesion in lesions:
        yield from found.lesion_place(file, lesion)


class _Voxels:
    """The voxels of one case, volume by volume; what the images show is kept for its lesion masks, which come last.

    Attributes:
        brain: every voxel that is brain in some image of the case, or the given mask; None before there is one.
        stripped: whether the images are skull-stripped.
    """

    def __init__(
        self, scan: Scan, headers: Mapping[str, Header], expected: Expected, result: CheckedCase, use: Use
    ) -> None:
        self.brain: np.ndarray | None = None
        self.stripped = expected.zero_background
        self._scan, self._headers, self._expected, self._result, self._use = scan, headers, expected, result, use
        self._channels: dict[bytes, str] = {}  # digest of the voxels -> sequence

    def brain_mask(self, file: File, volume: NiftiVolume) -> Iterator[Issue]:
        """A given mask that is empty, or larger than a brain."""
        self.brain = volume.data != 0
        if not self.brain.any():
            yield issues.error("empty-mask", file, f"{file} is an empty brain mask", self._scan.id)
        yield from _brain_volume(self._scan.id, file, volume, self.brain)

    def image(self, kind: str, file: File, volume: NiftiVolume) -> Iterator[Issue]:
        """An image that holds one value alone or is another one of the case, a background that is odd, no brain to be found."""
        outside, *others = background_values(volume.data)
        if (low := volume.data.min()) == volume.data.max():
            yield issues.error("constant", file, f"{file} is constant: every voxel is {low:g}", self._scan.id)
            return
        inside = ~np.isin(volume.data, (outside, *others)) if others else volume.data != outside
        if kind in self._scan.channels:
            yield from self._same_channel(kind, file, volume)
        head, affine = to_ras(volume.data, volume.affine)
        coarse = similarity.fingerprint(
            head.T, to_ras(inside, volume.affine)[0].T, spacing=zooms(affine)[::-1].tolist()
        )
        self._result.prints[kind] = (coarse, similarity.slice_hashes(head.T.astype(np.float32)))
        yield from self._background(file, volume, outside, others)
        yield from self._brain_of(kind, file, volume, inside)

    def _same_channel(self, kind: str, file: File, volume: NiftiVolume) -> Iterator[Issue]:
        content = hashlib.blake2b(np.ascontiguousarray(volume.data).data).digest()
        if (same := self._channels.setdefault(content, kind)) != kind:
            what = f"{file} holds one volume as {same} and as {kind}: {same} and {kind} of {self._scan.id} are one"
            yield issues.error("duplicate-volume", file, what, self._scan.id)

    def _background(self, file: File, volume: NiftiVolume, outside: float, others: list[float]) -> Iterator[Issue]:
        if self._expected.zero_background and (corners := _corners(volume.data)):
            what = f"{file} is not 0 in its corners (up to {corners:g}): it is not skull-stripped as distributed"
            taken = f"; {outside:g} is taken for its background" if outside else ""
            yield issues.warning("background", file, f"{what}{taken}", self._scan.id)
        elif outside or others:
            beside = "".join(f", and {value:g} in most voxels besides" for value in others)
            taken = "are both" if others else "is"
            what = f"{file} has the value {outside:g} in all corners{beside}, which {taken} taken for its background"
            yield issues.info("background", file, what, self._scan.id)

    def _brain_of(self, kind: str, file: File, volume: NiftiVolume, inside: np.ndarray) -> Iterator[Issue]:
        """Whether the brain of an image can be found; ``inside`` is what is not its background."""
        use, given, case = self._use, BRAIN in self._headers, self._scan.id
        skull = self._expected.skull if self._expected.skull is not None else inside.mean() >= 1 - STRIPPED
        masked = given and use.brain in ("auto", "given")
        own = use.companions.get(kind, kind) not in set(self._headers) - {kind}
        where = f"{kind} of case {case} ({file})"
        if own and not masked and (why := no_brain(use.brain, volume.data, kind, bool(skull), where)):
            yield issues.error("no-brain", file, why, case)
        elif not skull and not given:
            yield from _brain_volume(case, file, volume, inside)
        self.stripped = self.stripped or bool(inside.mean() < 1 - STRIPPED)
        if not given and (self._expected.one_grid or kind == self._expected.drawn_on):
            before = self.brain
            self.brain = inside if before is None or before.shape != inside.shape else before | inside

    def lesion_place(self, file: File, lesion: NiftiVolume) -> Iterator[Issue]:
        """Lesion voxels outside the brain; called after all images."""
        within = _where_lesions_may_be(self.brain, lesion, BRAIN in self._headers, self.stripped)
        marked = lesion.data != 0
        if within is not None and (outside := int((marked & ~within).sum())):
            total = int(marked.sum())
            what = f"{file} marks {outside} of {total} lesion voxels ({outside / total:.1%}) outside the brain"
            severity = issues.warning if outside >= OUTSIDE_BRAIN * total else issues.info
            yield severity("outside-brain", file, what, self._scan.id)


def _merged(case: str, masks: list[tuple[File, NiftiVolume]], votes: float, expected: Expected) -> Iterator[Issue]:
    """Several lesion masks that mark something and make an empty one."""
    if votes and no_majority([file for file, _ in masks]):  # refused by the names alone
        return
    data = [np.rint(volume.data) for _, volume in masks]
    if len(data) < 2 or len({mask.shape for mask in data}) > 1 or not any(mask.any() for mask in data):
        return
    if not (merged(data, votes, None, expected.not_counted) == 1).any():
        names = ", ".join(file.name for file, _ in masks)
        what = f"The lesion masks of {case} ({names}) make an empty one: no voxel is lesion by the vote of them"
        yield issues.warning("empty-mask", masks[0][0], what, case)


def _brain_volume(case: str, file: File, volume: NiftiVolume, brain: np.ndarray) -> Iterator[Issue]:
    if (ml := float(brain.sum()) * voxel_ml(volume.affine)) > _LARGEST_BRAIN:
        what = f"{file} says that {ml:.0f} ml are brain, of a human at most {_LARGEST_BRAIN:g}: is all else exactly the background?"
        yield issues.warning("brain-volume", file, what, case)


def _where_lesions_may_be(
    brain: np.ndarray | None, lesion: NiftiVolume, given: bool, stripped: bool
) -> np.ndarray | None:
    """The given mask, the foreground of skull-stripped images, or on the MNI grid the template's brain."""
    from adbench.datasets.preprocessing import template

    if brain is None or brain.shape != lesion.data.shape:
        return None
    if not given and template.same_grid(lesion.header.shape, lesion.affine):
        return template.mask(_TEMPLATE_MARGIN)
    return brain if given or stripped else None


def _labels(case: str, file: File, data: np.ndarray, expected: Expected) -> Iterator[Issue]:
    values, counts = np.unique(data, return_counts=True)
    rounded = np.rint(values)
    wrong = (np.abs(values - rounded) > LABEL_TOLERANCE) | (rounded < 0)
    allowed = "whole numbers from 0 (the background) are allowed"
    if expected.labels:
        wrong |= ~np.isin(rounded, list(expected.labels))
        allowed = f"allowed are {', '.join(map(str, expected.labels))}"
    for value, count in list(zip(values[wrong], counts[wrong], strict=True))[:5]:
        yield issues.error("label", file, f"{file} holds the label {value:.9g} in {count} voxels; {allowed}", case)
    if not (values != 0).any():
        yield issues.warning("empty-mask", file, f"{file} is empty: no voxel is lesion", case)


def _corners(data: np.ndarray) -> float:
    """The largest absolute value in the eight corners, 3 voxels wide each."""
    ends = (slice(0, 3), slice(-3, None))
    return float(max(np.abs(data[a, b, c].astype(np.float64)).max() for a in ends for b in ends for c in ends))


def _mm(zooms: tuple[float, float, float]) -> str:
    return " x ".join(f"{zoom:.3g}" for zoom in zooms) + " mm"
