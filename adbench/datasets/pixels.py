"""Pixels of prepared cases, memory-mapped and compared with their checksums as they are read.

A case file holds, without padding, ``images`` (S, H, W) float16 in [0, 1], ``brains`` and ``lesions`` (S, H, W) bool, and
then what the manifest says of the case (:mod:`adbench.datasets.store.case_file`). :class:`PixelStore` is what a method's
slice sets read from: images, brain masks and ids of the cases of one role. No attribute of it leads to a lesion mask, to a
file name, or to the pixels of another role: a mapping ends before the lesions begin.
"""

from __future__ import annotations

import hashlib
import mmap
import resource
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from weakref import ReferenceType, WeakKeyDictionary, ref

import numpy as np

from adbench.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

ARRAYS: dict[str, DTypeLike] = {
    "images": np.float16,
    "brains": np.bool_,
    "lesions": np.bool_,
}  # in their order in a file
MAPPED = 2048  # most case files that a process keeps mapped, by all its arrays together
PREPARE_AGAIN = "`adbench data prepare` or a run on this data prepares"  # what: "the case again"
_FILES: WeakKeyDictionary[Rows, Sequence[Path]] = WeakKeyDictionary()  # kept here, because methods hold ``Rows``
_RECENT: OrderedDict[tuple[ReferenceType[Rows], int], None] = OrderedDict()  # mapped cases, the last used one last


@dataclass(frozen=True)
class SeenCase:
    """What a method may know of a case; its rows are ``start <= row < start + len(slices)``.

    Attributes:
        digests: SHA-256 of the case's bytes, by array.
        checksums: CRC-32 of the same bytes, fast enough to be computed whenever a case is read.
    """

    subject: str
    session: str
    start: int
    slices: tuple[int, ...]
    digests: dict[str, str]
    checksums: dict[str, str] = field(default_factory=dict, kw_only=True)

    @property
    def id(self) -> str:
        """Subject and session in one word, as :attr:`adbench.datasets.base.Case.id`."""
        return f"{self.subject}_{self.session}" if self.session else self.subject

    @property
    def stop(self) -> int:
        """The row after the last one."""
        return self.start + len(self.slices)

    @property
    def rows(self) -> np.ndarray:
        """(S,) row numbers of the case."""
        return np.arange(self.start, self.stop)


@dataclass(frozen=True)
class StoredCase(SeenCase):
    """One case of a store, with what only the evaluation may know.

    Attributes:
        lesion_voxels: per slice.
        masked: False when the case came without a lesion mask (its rows then hold no lesion).
        geometry: as :meth:`adbench.datasets.geometry.Geometry.to_json` gives it; None for slices without a volume.
        quality: figures about the preparation, by name.
        file: name of its case file.
    """

    split: str
    site: str
    flags: tuple[str, ...]
    lesion_voxels: tuple[int, ...]
    brain_voxels: tuple[int, ...]
    masked: bool
    geometry: dict[str, Any] | None = None
    quality: dict[str, float] = field(default_factory=dict)
    file: str = ""

    @classmethod
    def from_json(cls, case: dict[str, Any]) -> Self:
        """The case that a manifest describes."""
        fields: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in case.items()}
        return cls(**fields)

    def seen(self) -> SeenCase:
        """What a method may know of it."""
        digests, checksums = (
            {name: value for name, value in of.items() if name != "lesions"} for of in (self.digests, self.checksums)
        )
        return SeenCase(self.subject, self.session, self.start, self.slices, digests, checksums=checksums)


def digest_block(block: np.ndarray) -> str:
    """SHA-256 (hex) of the bytes of a contiguous array."""
    return hashlib.sha256(block.data).hexdigest()


def checksum(block: np.ndarray) -> str:
    """CRC-32 (hex) of the bytes of a contiguous array."""
    from isal import isal_zlib

    return f"{isal_zlib.crc32(block.data):08x}"


class CaseIndex:
    """Which case a row belongs to.

    Args:
        cases: with ascending rows.

    Attributes:
        starts: (cases,) first row of each.
    """

    def __init__(self, cases: Sequence[SeenCase]) -> None:
        self.starts = np.array([case.start for case in cases], np.int64)
        self._stops = np.array([case.stop for case in cases], np.int64)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """(n,) index into the cases of each of (n,) rows.

        Raises:
            IndexError: a row belongs to none of them.
        """
        index = np.searchsorted(self.starts, rows, side="right") - 1
        outside = (index < 0) | (rows >= self._stops[index]) if len(self._stops) else np.ones(len(rows), bool)
        if outside.any():
            raise IndexError(f"row {int(rows[outside][0])} belongs to no case that is open here")
        return index


class Rows:
    """One array of some cases; looks like the array of all cases of the store when it is indexed by row numbers.

    The file of a case is mapped when one of its rows is first read in this process, up to the end of this array, and the
    bytes are then compared with their checksum.

    Args:
        name: key of :data:`ARRAYS`.
        cases: with ascending rows.
        shape: (H, W) of a row.
        files: the case file of each case.
    """

    def __init__(self, name: str, cases: Sequence[SeenCase], shape: tuple[int, int], files: Sequence[Path]) -> None:
        _FILES[self] = files
        self.name, self.shape, self.dtype = name, shape, np.dtype(ARRAYS[name])
        self._cases, self._owner = tuple(cases), CaseIndex(cases)
        self._unread = np.ones(len(cases), bool)
        self._blocks: dict[int, np.ndarray] = {}
        self._ref = ref(self)

    def __getitem__(self, rows: np.ndarray | slice | int) -> np.ndarray:
        """A copy of some rows.

        Raises:
            IndexError: a row belongs to no case that is open here.
            UserError: a file is missing or truncated, or the pixels are not those that were written.
        """
        end = self._cases[-1].stop if self._cases else 0
        wanted = np.arange(*rows.indices(end)) if isinstance(rows, slice) else np.asarray(rows, np.int64)
        owner = self._owner(wanted.reshape(-1))
        for index in np.unique(owner[self._unread[owner]]).tolist():
            if fault := self.fault(index):
                raise UserError(fault)
            self._unread[index] = False
        places = wanted.reshape(-1) - self._owner.starts[owner]
        if not wanted.ndim:
            return np.array(self._block(int(owner[0]))[places[0]].reshape(self.shape))
        found = np.empty((len(wanted), *self.shape), self.dtype)
        flat = found.reshape(len(wanted), int(np.prod(self.shape)))
        cuts = (np.flatnonzero(np.diff(owner)) + 1).tolist()
        stretches = zip([0, *cuts], [*cuts, len(wanted)], strict=True) if len(wanted) else ()
        for first, last in stretches:  # of one case each
            block = self._block(int(owner[first]))
            if last - first == 1:  # faster than the general way, in a random order
                flat[first] = block[places[first]]
            else:
                np.take(block, places[first:last], axis=0, out=flat[first:last], mode="clip")
        return found

    def fault(self, index: int, *, deep: bool = False) -> str:
        """What is wrong with the pixels of a case, one sentence; "" when they are those that were written.

        Args:
            index: of the case, among those that are open here.
            deep: compare their SHA-256, not the checksum alone.

        Raises:
            UserError: the file is missing or truncated.
        """
        case, block = self._cases[index], self._block(index)
        kind, compute, listed = (
            ("SHA-256", digest_block, case.digests) if deep else ("checksum", checksum, case.checksums)
        )
        found, written = compute(block), listed[self.name]
        if found == written:
            return ""
        path = _FILES[self][index]
        return (
            f"{path}: the {self.name} of case {case.id} have the {kind} {found[:16]} and were written with {written[:16]}: "
            f"they were changed after preparation. Delete {path}, then {PREPARE_AGAIN} the case again."
        )

    def _block(self, index: int) -> np.ndarray:
        """(S, H * W) of one case, mapped."""
        block, key = self._blocks.get(index), (self._ref, index)
        if block is None:
            _make_room()
            block = self._blocks[index] = self._map(index)
        _RECENT.pop(key, None)  # not move_to_end: another thread may close it now
        _RECENT[key] = None
        return block

    def _map(self, index: int) -> np.ndarray:
        path, count = _FILES[self][index], len(self._cases[index].slices)
        sizes = [np.dtype(dtype).itemsize for dtype in ARRAYS.values()]
        voxels, place = count * int(np.prod(self.shape)), list(ARRAYS).index(self.name)
        offset, end = voxels * sum(sizes[:place]), voxels * sum(sizes[: place + 1])
        try:
            with open(path, "rb") as file:
                mapped = mmap.mmap(file.fileno(), end, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise UserError(f"{path} is missing: {PREPARE_AGAIN} the case again.") from None
        except ValueError:  # longer than the file
            raise UserError(
                f"{path} has {path.stat().st_size} bytes where {end} were written up to the end of the {self.name}: it was "
                f"truncated after preparation. Delete {path}, then {PREPARE_AGAIN} the case again."
            ) from None
        if self._unread[index] and hasattr(mapped, "madvise"):  # all of it is about to be read for its checksum
            page = offset // mmap.PAGESIZE * mmap.PAGESIZE
            mapped.madvise(mmap.MADV_WILLNEED, page, end - page)
        return np.ndarray((count, voxels // max(count, 1)), self.dtype, mapped, offset)


def mapping_limit() -> int:
    """Case files that this process may keep mapped: a third of the files it may open, because a mapping keeps one open."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MAPPED if files == resource.RLIM_INFINITY else max(1, min(MAPPED, files // 3))


def _make_room() -> None:
    """Close the least recently used mappings until one more is within the limit."""
    limit = mapping_limit()
    while len(_RECENT) >= limit:
        try:
            (owner, index), _ = _RECENT.popitem(last=False)
        except KeyError:  # another thread was faster
            return
        rows = owner()
        if rows is not None:
            rows._blocks.pop(index, None)


class PixelStore:
    """Images, brain masks and ids of some cases.

    Args:
        modality: sequence.
        shape: (H, W) of every slice.
        cases: with ascending rows.
        images: (H, W) float16 in [0, 1] a row.
        brains: (H, W) bool a row.
    """

    def __init__(
        self, modality: str, shape: tuple[int, int], cases: Sequence[SeenCase], images: Rows, brains: Rows
    ) -> None:
        self.modality, self.shape, self.cases = modality, shape, cases
        self.images, self.brains = images, brains
        self.owner = CaseIndex(cases)

    def seen(self, rows: np.ndarray) -> PixelStore:
        """The part of the store that holds ``rows``, without anything that a method may not see: this is one."""
        return self

    def describe_rows(self, rows: np.ndarray) -> list[Any]:
        """What identifies ``rows``: per case its ids, slices and the digests that are known here."""
        described: list[Any] = [self.modality, list(self.shape)]
        owner = self.owner(rows)
        for index in dict.fromkeys(owner.tolist()):
            case = self.cases[index]
            slices = [case.slices[row - case.start] for row in rows[owner == index]]
            digests = [case.digests[name] for name in ARRAYS if name in case.digests]
            described.append([case.subject, case.session, slices, digests])
        return described
