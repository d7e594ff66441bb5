"""Pixels of a slice store, memory-mapped and held against their digests as they are read.

:class:`PixelStore` is what a method's slice sets read from: images, brain masks and ids of the cases of one role. No
attribute of it leads to a lesion mask, to a file name, or to the pixels of another role.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.lib import format as npy

from adbench.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

ARRAYS: dict[str, DTypeLike] = {"images": np.float16, "brains": np.bool_, "lesions": np.bool_}
_PATHS: WeakKeyDictionary[Rows, Path] = WeakKeyDictionary()  # kept here, because methods hold ``Rows``


@dataclass(frozen=True)
class SeenCase:
    """What a method may know of a case; its rows are ``start <= row < start + len(slices)``.

    Attributes:
        digests: SHA-256 of the case's bytes, by array.
        checksums: CRC-32 of the same bytes: fast enough to be taken whenever a case is read. Older stores have none.
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
        return np.arange(self.start, self.stop)


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
    """

    def __init__(self, cases: Sequence[SeenCase]) -> None:
        self._starts = np.array([case.start for case in cases], np.int64)
        self._stops = np.array([case.stop for case in cases], np.int64)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """(n,) index into the cases of each of (n,) rows.

        Raises:
            IndexError: a row belongs to none of them.
        """
        index = np.searchsorted(self._starts, rows, side="right") - 1
        outside = (index < 0) | (rows >= self._stops[index]) if len(self._stops) else np.ones(len(rows), bool)
        if outside.any():
            raise IndexError(f"row {int(rows[outside][0])} belongs to no case that is open here")
        return index


class Rows:
    """The rows of some cases in one array of a store; looks like the whole array when it is indexed by row numbers.

    Only the stretch from the first case to the last is mapped. The bytes of a case are held against its checksum when one
    of its rows is first read in this process.

    Args:
        path: the ``.npy`` file, opened on first use.
        cases: with ascending rows.
        shape: (H, W) of a row.
    """

    def __init__(self, path: Path, cases: Sequence[SeenCase], shape: tuple[int, int]) -> None:
        _PATHS[self] = path
        self.name, self.shape, self.dtype = path.stem, shape, np.dtype(ARRAYS[path.stem])
        self._cases, self._owner = tuple(cases), CaseIndex(cases)
        self._low, self._high = (cases[0].start, cases[-1].stop) if cases else (0, 0)
        self._unread = np.ones(len(cases), bool)
        self._arrays: tuple[np.ndarray, np.ndarray] | None = None

    def __getitem__(self, rows: np.ndarray | slice | int) -> np.ndarray:
        """A copy of some rows.

        Raises:
            IndexError: a row belongs to no case that is open here.
            UserError: the file is truncated, or the pixels are not those that were written.
        """
        wanted = np.arange(*rows.indices(self._high)) if isinstance(rows, slice) else np.asarray(rows, np.int64)
        owner = self._owner(wanted.reshape(-1))
        if self._unread[owner].any():
            for index in np.unique(owner):
                if self._unread[index] and (fault := self.fault(index)):
                    raise UserError(fault)
                self._unread[index] = False
        head, body = self._mapped()
        places = wanted - self._low
        if not wanted.ndim:
            return (head[places] if places < len(head) else body[places - len(head)]).copy()
        early = places < len(head)
        if not early.any():
            return body[places - len(head)]
        found = np.empty((len(places), *self.shape), self.dtype)
        found[early], found[~early] = head[places[early]], body[places[~early] - len(head)]
        return found

    def fault(self, index: int, *, deep: bool = False) -> str:
        """What is wrong with the pixels of a case, one sentence; "" when they are those that were written.

        Args:
            index: of the case, among those that are open here.
            deep: hold them against their SHA-256, not the checksum alone.

        Raises:
            UserError: the file is truncated.
        """
        case = self._cases[index]
        head, body = self._mapped()
        start, stop = case.start - self._low, case.stop - self._low
        block = body[max(0, start - len(head)) : max(0, stop - len(head))]
        if start < len(head):
            block = np.concatenate([head[start:stop], block])
        if deep or self.name not in case.checksums:
            kind, found, written = "SHA-256", digest_block(block), case.digests[self.name]
        else:
            kind, found, written = "checksum", checksum(block), case.checksums[self.name]
        if found == written:
            return ""
        path = _PATHS[self]
        return (
            f"{path}: the pixels of case {case.id} have the {kind} {found[:16]} and were written with {written[:16]}: they "
            f"were changed after preparation. Delete {path.parent} and run the command again to prepare it anew."
        )

    def faults(self) -> Iterator[tuple[str, str]]:
        """The id of every case and its :meth:`fault` by the SHA-256, one after the other."""
        return ((case.id, self.fault(index, deep=True)) for index, case in enumerate(self._cases))

    def _mapped(self) -> tuple[np.ndarray, np.ndarray]:
        """The first rows, in memory, and the others, mapped: a mapping starts on a page, and the bytes before the first row
        belong to others."""
        if self._arrays is None:
            self._arrays = self._map(_PATHS[self])
        return self._arrays

    def _map(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        count = self._high - self._low
        with open(path, "rb") as file:
            try:
                npy.read_magic(file)
                (_, *shape), _, dtype = npy.read_array_header_1_0(file)
            except ValueError as error:
                raise UserError(f"{path} is damaged ({error}): delete {path.parent} and run again.") from None
            size = int(np.prod(self.shape)) * self.dtype.itemsize
            begin, stop = (file.tell() + row * size for row in (self._low, self._high))
            there = path.stat().st_size
            if tuple(shape) != self.shape or dtype != self.dtype or stop > there:
                raise UserError(
                    f"{path} holds {there} bytes of {dtype} {tuple(shape)} where {stop} bytes of {self.dtype} {self.shape} "
                    f"were written: delete {path.parent} and run the command again to prepare it anew."
                )
            page = -(-begin // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
            early = min(count, -(-(page - begin) // size))
            file.seek(begin)
            head = np.frombuffer(file.read(early * size), self.dtype).reshape(early, *self.shape)
            if early == count:
                return head, head[:0]
            held = mmap.mmap(file.fileno(), stop - page, access=mmap.ACCESS_READ, offset=page)
        return head, np.ndarray((count - early, *self.shape), self.dtype, held, begin + early * size - page)


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
