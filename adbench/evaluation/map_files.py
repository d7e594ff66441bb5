"""Anomaly maps and masks in folders of NIfTI volumes or PNG slices, or boxes in a CSV file, matched by case id."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adbench.datasets.adapters.lesion_masks import LABEL_TOLERANCE
from adbench.datasets.io import nifti, nifti_header
from adbench.datasets.io.archive import FileError
from adbench.datasets.io.nifti_header import Header
from adbench.datasets.io.patient_names import subject_of
from adbench.datasets.io.png import read_shape, read_stored
from adbench.errors import UserError
from adbench.metrics.counting import as_bool
from adbench.utils import limits
from adbench.utils.plain_files import read_table

_ENDINGS = {
    "map": ("_anomaly_map", "_map", "_score", "_anomaly"),
    "mask": ("_lesion_mask", "_mask", "_seg", "_segmentation", "_lesion"),
    "brain mask": ("_brain_mask", "_brainmask", "_brain"),
}
_TYPES = (".nii.gz", ".nii", ".png")
_PAIR = (".hdr", ".img", ".hdr.gz", ".img.gz")
# What `adbench data export` and `adbench report --nifti` write; both put maps, masks and images into one folder.
_EXPORTED = re.compile(
    r"(?P<case>.+)_(?:(?P<name>map|lesion|brain)_space-(?:prepared|original)"
    r"|space-(?:prepared|orig)_desc-(?:(?P<desc>lesion|brain)_mask|[A-Za-z0-9]+_anomaly))"
)
_SLICE = re.compile(r"(?P<case>.+?)[-_]slice[-_]?(?P<index>\d+)(?P<rest>.*)")


@dataclass(frozen=True)
class External:
    """One case as read.

    Attributes:
        volume: its id.
        subject: the part of the id that names the subject, see :func:`adbench.datasets.io.patient_names.subject_of`.
        maps: (S, H, W) in the type of the file, scaled by its header; for NIfTI the last axis of the file comes first.
        lesion: (S, H, W) bool, wherever the mask says so.
        brain: (S, H, W) bool; all True when no brain masks were given.
        slices: (S,) slice indices.
        spacing: mm from slice to slice, row to row, column to column; None for PNG slices, which do not say.
    """

    volume: str
    subject: str
    maps: np.ndarray
    lesion: np.ndarray
    brain: np.ndarray
    slices: np.ndarray
    spacing: tuple[float, float, float] | None = None


class CaseFolder:
    """Cases of a folder of maps and a folder of masks; read one at a time, as often as it is iterated.

    A case id is the file name without its type and without an ending that names its role (``_map``, ``_score``,
    ``_mask``, ``_seg``, ``_lesion``, ``_brain`` and the like). PNG files named ``ID_slice_K`` are slices of one case;
    any other PNG is a case of one slice. NIfTI volumes are cut along their last axis. Scores are used as stored. What
    ``adbench data export`` and ``adbench report --nifti`` wrote is read by their names, all roles from one folder. Cases
    whose ids differ in the session alone (``sub-01_ses-1``, ``sub-01_ses-2``) are volumes of one subject.

    Args:
        maps: folder of score maps.
        masks: folder of lesion masks, of the same type as the maps; or a CSV file of boxes, see :func:`read_boxes`, which
            count as lesion wherever they are.
        brain: folder of brain masks, or None: every voxel of the image counts.
        labels: values of the masks that are lesion; None for 1 (and 255 in a PNG). 0 is background, others are errors.

    Raises:
        UserError: a folder is missing or empty, two files claim one place, a case is missing on one side, or a box is of
            no map.
    """

    def __init__(
        self,
        maps: str | Path,
        masks: str | Path,
        brain: str | Path | None = None,
        labels: Collection[int] | None = None,
    ) -> None:
        if labels is not None and (not labels or 0 in labels):
            raise UserError(f"labels = {sorted(labels)} is not valid: name the lesion values; 0 is background.")
        self._labels = None if labels is None else sorted(labels)
        self._odd: dict[str, dict[Path, str]] = {}
        self._maps = _find(Path(maps), "map")
        self._brain = None if brain is None else _find(Path(brain), "brain mask")
        self._boxes, self._masks = None, dict[str, _Files]()
        if Path(masks).suffix.lower() == ".csv":
            if labels is not None:
                raise UserError(f"{masks} holds boxes, which have no labels: leave --labels away.")
            self._boxes, self._source = read_boxes(Path(masks)), Path(masks)
            if stray := sorted(self._boxes.keys() - self._maps.keys()):
                shown = ", ".join(stray[:10]) + (", ..." if len(stray) > 10 else "")
                raise UserError(f"{len(stray)} cases of {masks} have no map: {shown}.")
        else:
            self._masks = _find(Path(masks), "mask")
            _match("map", self._maps, "mask", self._masks)
        if self._brain is not None:
            _match("map", self._maps, "brain mask", self._brain)

    @property
    def volumes(self) -> list[str]:
        """Case ids, sorted."""
        return sorted(self._maps)

    @property
    def has_boxes(self) -> bool:
        """Whether boxes were given instead of masks."""
        return self._boxes is not None

    @property
    def has_brain(self) -> bool:
        """Whether brain masks were given."""
        return self._brain is not None

    @property
    def odd_headers(self) -> list[str]:
        """What ``adbench data check`` warns of in the headers read so far: a sentence a kind, with the first file of it."""
        found = []
        for files in self._odd.values():
            first, text = next(iter(files.items()))
            more = f" (and {len(files) - 1} more files alike)" if len(files) > 1 else ""
            found.append(f"{first} {text}{more}.")
        return found

    def _stack(self, files: _Files) -> tuple[np.ndarray, Header | None]:
        values, header = _stack(files)
        for one in () if header is None else nifti_header.header_issues(header):
            if one.severity != "info":
                self._odd.setdefault(re.sub(r"[-\d.]+", "", one.text), {})[files[0]] = one.text
        return values, header

    def __len__(self) -> int:
        return len(self._maps)

    def __iter__(self) -> Iterator[External]:
        for case in self.volumes:
            maps, grid = self._stack(self._maps[case])
            slices = np.array(sorted(self._maps[case])) if grid is None else np.arange(len(maps))
            if self._boxes is not None:
                found = _filled(self._boxes.get(case, []), maps.shape, slices, grid is not None, self._source)
            else:
                lesion = _on_grid(case, "mask", self._stack(self._masks[case]), maps, grid)
                found = _binary(lesion, f"case {case!r}", self._labels, grid is None)
            brain = np.ones(maps.shape, bool)
            if self._brain is not None:
                values = _on_grid(case, "brain mask", self._stack(self._brain[case]), maps, grid)
                brain = _binary(values, f"case {case!r} (brain)", None, grid is None)
            spacing = None if grid is None else (grid.zooms[2], grid.zooms[0], grid.zooms[1])
            yield External(case, subject_of(case), maps, found, brain, slices, spacing)


def _binary(values: np.ndarray, where: str, labels: list[int] | None, is_png: bool) -> np.ndarray:
    if values.dtype.kind == "f":
        whole = np.rint(values)
        if (np.abs(values - whole) <= LABEL_TOLERANCE).all():  # rounded in a float
            values = whole
    if labels is None:
        if is_png and not np.any((values != 0) & (values != 255)):
            return np.asarray(values == 255)
        return as_bool(values, where)
    other = np.setdiff1d(values, [0, *labels])
    if len(other):
        raise UserError(
            f"Labels of {where} hold {', '.join(f'{v:g}' for v in other[:5])}, neither 0 nor one of the given "
            f"lesion labels {', '.join(map(str, labels))}."
        )
    return np.isin(values, labels)


_FARTHEST = 1e6  # pixels or slices from the first to a box
_BOX = ("slice", "x", "y", "width", "height")


@dataclass(frozen=True)
class Box:
    """One annotated box.

    Attributes:
        row: of the file it stands in, from 2.
        slice: index of the slice.
        x: left edge, pixels from that of the image; in a NIfTI volume along its first axis.
        y: upper edge, pixels from that of the image; in a NIfTI volume along its second axis.
        width: pixels.
        height: pixels.
    """

    row: int
    slice: int
    x: float
    y: float
    width: float
    height: float


def read_boxes(path: Path) -> dict[str, list[Box]]:
    """Case -> its boxes, of a table with the columns of fastMRI+ (Zhao et al. 2022, Sci Data 9:152).

    They are ``file`` (or ``case``), ``slice`` (0 where there is no such column), ``x``, ``y``, ``width`` and ``height``, in upper
    or lower case, separated by commas, semicolons or tabs; other columns are not looked at. Behind semicolons a number may
    have a decimal comma, as spreadsheets write it in half of Europe. A row without a box (a label of the whole study, a
    normal case) is passed over.

    Raises:
        UserError: no such file, no text, a column is missing, there twice or says another case than its namesake, or a value
            is no number of pixels; names file and row.
    """
    try:
        cells, mark = read_table(path, ",;\t", strict=True)
    except FileNotFoundError:
        raise UserError(f"There is no file {path} of boxes.") from None
    first, *rows = cells or [[]]
    names = [name.strip().lower() for name in first]
    keys = [name for name in ("file", "case") if name in names] or ["file"]
    if missing := [name for name in (keys[0], *_BOX[1:]) if name not in names]:
        raise UserError(
            f"{path} lacks the column {', '.join(missing)}: boxes have file, slice, x, y, width and height."
        )
    if twice := [name for name in (*keys, *_BOX) if names.count(name) > 1]:
        raise UserError(f"{path} has the column {twice[0]} twice: keep the one that is meant.")
    found: dict[str, list[Box]] = {}
    for number, own in enumerate(rows, 2):
        row = dict(zip(names, (cell.strip() for cell in own), strict=False))
        given = {name: row.get(name, "") for name in _BOX}
        if not any(given[name] for name in _BOX[1:]):
            continue
        try:
            texts = [text.replace(",", ".") if mark == ";" else text for text in given.values()]
            values = [float(text or (0 if name == "slice" else "")) for name, text in zip(_BOX, texts, strict=True)]
        except ValueError:
            values = [math.nan]
        if not all(0 <= value <= _FARTHEST for value in values) or min(values[3:]) == 0 or values[0] % 1:
            said = ", ".join(f"{name} {text or 'nothing'}" for name, text in given.items())
            raise UserError(f"{path}, row {number}: {said} is no box: a slice index, and pixels in the image.")
        cases = list(dict.fromkeys(_without_type(row[key]) for key in keys if row.get(key)))
        if len(cases) != 1:
            said = f"file {cases[0]!r} and case {cases[1]!r}" if cases else "no file"
            raise UserError(
                f"{path}, row {number}: the box is of {said}: name its map, in one column or in both alike."
            )
        found.setdefault(cases[0], []).append(Box(number, int(values[0]), *values[1:]))
    if not found:
        raise UserError(f"{path} holds no box.")
    return found


def _without_type(name: str) -> str:
    return next((name[: -len(kind)] for kind in _TYPES if name.lower().endswith(kind)), name)


def _filled(boxes: list[Box], shape: tuple[int, ...], slices: np.ndarray, is_volume: bool, source: Path) -> np.ndarray:
    """(S, H, W) bool: every pixel that a box touches."""
    filled = np.zeros(shape, bool)
    for box in boxes:
        place = np.flatnonzero(slices == box.slice)
        spans = [(box.x, box.width, "x"), (box.y, box.height, "y")]
        ends = [(math.floor(start), math.ceil(start + size)) for start, size, _ in spans]
        size = shape[1:] if is_volume else shape[:0:-1]
        if not len(place) or any(end > limit for (_, end), limit in zip(ends, size, strict=True)):
            raise UserError(
                f"{source}, row {box.row}: slice {box.slice}, x {box.x:g} to {box.x + box.width:g}, y {box.y:g} to "
                f"{box.y + box.height:g} lies outside its map of {len(slices)} slices of {size[0]} x {size[1]} pixels."
            )
        first, second = (slice(*span) for span in (ends if is_volume else ends[::-1]))
        filled[place[0], first, second] = True
    return filled


_Files = dict[int, Path]  # slice index -> file; a NIfTI volume is at index 0


def _find(folder: Path, role: str) -> dict[str, _Files]:
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder} of {role}s.")
    found: dict[str, _Files] = {}
    exported = {
        path: case
        for path in [*folder.glob("*_space-*.nii.gz"), *folder.glob("sub-*/**/anat/*_space-*.nii.gz")]
        for case, of in [_exported(path.name.removesuffix(".nii.gz"))]
        if of == role
    }
    for path in sorted(exported or folder.iterdir()):
        if path.name.lower().endswith(_PAIR) and not path.name.startswith("."):
            raise UserError(f"{path} is one of a pair of files: {nifti_header.pair_way_out(path.name)}.")
        kind = next((kind for kind in _TYPES if path.name.lower().endswith(kind)), None)
        if kind is None or path.name.startswith("."):
            continue
        if not path.name.isprintable():  # signs that are no text, of another encoding than UTF-8 too
            raise UserError(f"{folder} has a file whose name is no printable text, {path.name!a}: rename it.")
        name, index = path.name[: -len(kind)], 0
        matched = _SLICE.fullmatch(name) if kind == ".png" else None
        if matched:
            name, index = matched["case"], int(matched["index"])
        elif path in exported:
            name = exported[path]
        else:
            name = next((name[: -len(end)] for end in _ENDINGS[role] if name.lower().endswith(end)), name)
        files = found.setdefault(name, {})
        if index in files:
            raise UserError(f"{files[index].name} and {path.name} in {folder} are both the {role} of case {name!r}.")
        files[index] = path
    if not found:
        raise UserError(f"The folder {folder} holds no {role}: give .nii, .nii.gz or .png files.")
    return found


def _exported(name: str) -> tuple[str, str]:
    """Case and role of a file that adbench exported; the role of an image, and of any other file, is ""."""
    if match := _EXPORTED.fullmatch(name):
        what = match["name"] or match["desc"] or "map"
        return match["case"], {"map": "map", "lesion": "mask", "brain": "brain mask"}[what]
    return "", ""


def _match(a: str, first: Mapping[str, _Files], b: str, second: Mapping[str, _Files]) -> None:
    parts = []
    for has, lacks, own, other in ((a, b, first, second), (b, a, second, first)):
        names = sorted(set(own) - set(other))
        names += [
            f"{name} slice {k}"
            for name in sorted(set(own) & set(other))
            for k in sorted(set(own[name]) - set(other[name]))
        ]
        if names:
            shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            parts.append(f"{len(names)} with a {has} but no {lacks}: {shown}")
    if parts:
        raise UserError(
            f"Cases are missing on one side. {'; '.join(parts)}. File names without their ending must agree."
        )


def _stack(files: _Files) -> tuple[np.ndarray, Header | None]:
    """((S, H, W) values as stored, the header of a NIfTI volume or None for PNG slices)."""
    if 0 in files and not files[0].name.lower().endswith(".png"):
        volume = nifti.read(files[0], finite=False, exact=True)
        return np.moveaxis(volume.data, -1, 0), volume.header
    paths = [files[index] for index in sorted(files)]
    shapes = [_shape(path) for path in paths]
    if len(set(shapes)) > 1:
        sizes = " and ".join(sorted({str(shape) for shape in shapes}))
        raise UserError(f"The slices beside {paths[0]} have different sizes: {sizes}.")
    what = f"and its {len(paths) - 1} other slices may need"
    limits.check(paths[0], what, 2 * math.prod(shapes[0]) * len(paths), limits.VOLUME_BYTES)
    return np.stack([read_stored(path) for path in paths]), None


def _shape(path: Path) -> tuple[int, int]:
    """As :func:`read_shape`, and nothing is quoted of what a link leads to."""
    try:
        return read_shape(path)
    except FileError as error:
        if error.code != "unreadable" or path.resolve() == path.absolute():
            raise
        raise FileError("unreadable", f"{path} is a link that leads to no PNG image. Replace or remove it.") from None


def _on_grid(
    case: str, role: str, mask: tuple[np.ndarray, Header | None], maps: np.ndarray, grid: Header | None
) -> np.ndarray:
    """The values of a case's mask, which must lie on the grid of its map."""
    values, own = mask
    if (grid is None) != (own is None):
        raise UserError(
            f"The map and the {role} of case {case!r} are of different types: give both as NIfTI or as PNG."
        )
    difference = ""
    if grid is not None and own is not None:
        difference = nifti_header.off_grid(own, grid)
    elif values.shape != maps.shape:
        difference = f"{nifti_header.by(values.shape)} pixels against {nifti_header.by(maps.shape)}"
    if difference:
        raise UserError(
            f"The {role} of case {case!r} does not lie on the grid of its map: {difference}. Resample one onto the other, or "
            "correct the header that is wrong."
        )
    return values
