"""The slice store: one dataset and modality, prepared once, memory-mapped, hashed.

A store is a folder with ``images.npy`` (N, H, W) float16 in [0, 1], ``brains.npy`` and ``lesions.npy`` (N, H, W) bool and
``manifest.json``: the recipe, every case with its rows, digests, geometry and quality figures, every source file with its
size and hash, and what was left out. :mod:`adbench.datasets.store.prepare` writes it, :mod:`adbench.datasets.store.pixels` reads the
arrays.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import numpy as np
from numpy.lib import format as npy

from adbench.context import Progress
from adbench.datasets.base import Dataset, Split
from adbench.datasets.slices import LabelledSet, SliceSet
from adbench.datasets.store.pixels import ARRAYS, PixelStore, Rows, SeenCase
from adbench.errors import UserError, unknown
from adbench.utils.hashing import digest

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from adbench.datasets.geometry import Geometry

STORE_VERSION = 2
MANIFEST = "manifest.json"
NO_SLICE = "no slice left"  # remark of a case of which nothing could be kept


@dataclass(frozen=True)
class StoredCase(SeenCase):
    """One case of a store.

    Attributes:
        lesion_voxels: per slice.
        masked: False when the case came without a lesion mask (its rows then hold no lesion).
        geometry: as :meth:`adbench.datasets.geometry.Geometry.to_json` gives it; None for slices without a volume.
        quality: figures about the preparation, by name.
    """

    split: str
    site: str
    flags: tuple[str, ...]
    lesion_voxels: tuple[int, ...]
    brain_voxels: tuple[int, ...]
    masked: bool
    geometry: dict[str, Any] | None = None
    quality: dict[str, float] = field(default_factory=dict)

    @classmethod
    def from_json(cls, case: dict[str, Any]) -> Self:
        fields: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in case.items()}
        return cls(**fields)

    def seen(self) -> SeenCase:
        """What a method may know of it."""
        digests, checksums = (
            {name: value for name, value in of.items() if name != "lesions"} for of in (self.digests, self.checksums)
        )
        return SeenCase(self.subject, self.session, self.start, self.slices, digests, checksums=checksums)


class SliceStore(PixelStore):
    """An open store. Use :meth:`open`; pixels are read, and held against their digests, only when asked for.

    Attributes:
        images: (H, W) float16 in [0, 1] a row.
        brains: (H, W) bool a row.
        lesions: (H, W) bool a row.
    """

    cases: list[StoredCase]

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        cases = [StoredCase.from_json(case) for case in manifest["cases"]]
        shape = tuple(manifest["shape"])
        images, brains, self.lesions = (Rows(folder / f"{name}.npy", cases, shape) for name in ARRAYS)
        super().__init__(manifest["modality"], shape, cases, images, brains)
        self._seen: dict[tuple[int, int], PixelStore] = {}
        self._labels: dict[tuple[int, int], Rows] = {}

    def __len__(self) -> int:
        return int(self.manifest["rows"])

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a store; sizes and the list of cases are checked now, pixels when they are read.

        Raises:
            UserError: a file is missing, truncated or changed, or the store is of another version.
        """
        folder = Path(folder)
        again = f"Delete {folder} and run the command again to prepare it anew."
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            if manifest["store_version"] != STORE_VERSION:
                raise UserError(
                    f"The store {folder} has version {manifest['store_version']}, this adbench reads {STORE_VERSION}. {again}"
                )
            for name, written in manifest["files"].items():
                found = (folder / name).stat()
                if found.st_size != written["bytes"]:
                    raise UserError(
                        f"{folder / name} has {found.st_size} bytes where {written['bytes']} were written: "
                        f"the store was truncated or changed after preparation. {again}"
                    )
            if (found := digest(manifest["cases"])) != manifest["cases_digest"]:
                raise UserError(
                    f"{folder / MANIFEST} was changed after preparation: its case list has the digest {found[:16]} and was "
                    f"written with {str(manifest['cases_digest'])[:16]}. {again}"
                )
            return cls(folder, manifest)
        except FileNotFoundError as error:
            raise UserError(
                f"The store {folder} is incomplete: {Path(error.filename).name} is missing. {again}"
            ) from None
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{folder / MANIFEST} is damaged ({type(error).__name__}: {error}). {again}") from None

    def seen(self, rows: np.ndarray) -> PixelStore:
        """The stretch of the store from the first case of ``rows`` to the last, without labels and without a path.

        Cases are sorted by split, so the stretch of a split's rows holds no case of another. Sets of one stretch share
        what they have read.
        """
        low, high = stretch = self._stretch(rows)
        if stretch not in self._seen:
            cases = [case.seen() for case in self.cases[low:high]]
            images, brains = (Rows(self.folder / f"{name}.npy", cases, self.shape) for name in ("images", "brains"))
            self._seen[stretch] = PixelStore(self.modality, self.shape, cases, images, brains)
        return self._seen[stretch]

    def labels(self, rows: np.ndarray) -> Rows:
        """The lesion masks of the same stretch."""
        low, high = stretch = self._stretch(rows)
        if stretch not in self._labels:
            self._labels[stretch] = Rows(self.folder / "lesions.npy", self.cases[low:high], self.shape)
        return self._labels[stretch]

    def _stretch(self, rows: np.ndarray) -> tuple[int, int]:
        owner = self.owner(rows)
        return (int(owner.min()), int(owner.max()) + 1) if len(owner) else (0, 0)

    def faults(self) -> Iterator[tuple[str, str]]:
        """Of every array and case, the case's id and one sentence if its pixels are not those that were written, else ""."""
        for rows in (self.images, self.brains, self.lesions):
            yield from rows.faults()

    @property
    def empty_cases(self) -> list[str]:
        """Ids of cases that were found and have no usable slice (no brain in any, say): they are in no split."""
        end = f": {NO_SLICE}"
        return [remark.removesuffix(end) for remark in self.manifest["remarks"] if remark.endswith(end)]

    def case(self, case_id: str) -> StoredCase:
        """The case called ``case_id``.

        Raises:
            UserError: there is none (the nearest is given).
        """
        for case in self.cases:
            if case.id == case_id:
                return case
        raise unknown(f"case of {self.manifest['dataset']} {self.modality}", case_id, (case.id for case in self.cases))

    def geometry(self, case_id: str) -> Geometry:
        """Where the slices of ``case_id`` lie in its original volume.

        Raises:
            UserError: no such case, or its slices never were part of a volume.
        """
        from adbench.datasets.geometry import Geometry

        stored = self.case(case_id).geometry
        if stored is None:
            raise UserError(f"The slices of {case_id} come from no volume, so they have no place in one.")
        return Geometry.from_json(stored)

    def case_of(self, row: int) -> StoredCase:
        """The case that ``row`` belongs to."""
        return self.cases[int(self.owner(np.array([row]))[0])]

    def spacing_of(self, row: int) -> tuple[float, float, float] | None:
        """Mm from one slice index to the next, from row to row, from column to column; None for slices of no volume."""
        from adbench.datasets.geometry import Geometry

        stored = self.case_of(row).geometry
        if stored is None:
            return None
        column, line, plane = np.linalg.norm(Geometry.from_json(stored).prepared_affine()[:3, :3], axis=0).tolist()
        return plane, line, column

    def rows(self, split: Split, *, healthy_only: bool = False) -> np.ndarray:
        """Row numbers of ``split``; with ``healthy_only`` those whose lesion mask, where there is one, is empty."""
        chosen = [np.empty(0, np.int64)]
        for case in self.cases:
            if case.split == split:
                chosen.append(case.rows[np.array(case.lesion_voxels) == 0] if healthy_only else case.rows)
        return np.concatenate(chosen)

    def healthy(self, split: Split) -> SliceSet:
        """Lesion-free slices of ``split``, without masks: what a method may be given."""
        return SliceSet(self, self.rows(split, healthy_only=True))

    def labelled(self, split: Split) -> LabelledSet:
        """All slices of ``split`` that belong to cases with a lesion mask, with their masks."""
        chosen = [np.empty(0, np.int64)]
        return LabelledSet(self, np.concatenate(chosen + [c.rows for c in self.cases if c.split == split and c.masked]))


class _Writer:
    """Streams one array to a ``.npy`` file, from its beginning or from a row on; the row count enters the header at the end."""

    def __init__(self, path: Path, dtype: DTypeLike) -> None:
        self.dtype = np.dtype(dtype)
        self.file: BinaryIO = open(path, "r+b" if path.exists() else "w+b")
        self.rows = 0
        self.shape: tuple[int, ...] = ()

    def append(self, block: np.ndarray) -> None:
        if not self.shape:
            self.resume(0, block.shape[1:])
        block = np.ascontiguousarray(block, dtype=self.dtype)
        self.file.write(block.data)
        self.rows += len(block)

    def resume(self, rows: int, shape: tuple[int, ...]) -> None:
        """Keep the first ``rows`` rows and go on behind them."""
        self.file.seek(0)
        self._header((rows, *shape))
        self.file.truncate(self.file.tell() + rows * int(np.prod(shape)) * self.dtype.itemsize)
        self.file.seek(0, os.SEEK_END)
        self.rows, self.shape = rows, shape

    def _header(self, shape: tuple[int, ...]) -> None:
        # NumPy pads the header so that the first axis can grow in place.
        npy.write_array_header_1_0(
            self.file, {"descr": npy.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        )

    def close(self) -> None:
        self.file.seek(0)
        self._header((self.rows, *self.shape))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()


def prepare(
    dataset: Dataset, modality: str, cache: Path, progress: Progress | None = None, *, workers: int | None = None
) -> SliceStore:
    """The store of ``dataset`` and ``modality`` below ``cache``, prepared first unless a valid one is there.

    A store is found by recipe and by the paths, sizes and times of its sources; touched sources give a new store, which
    takes over the cases that did not change. What was interrupted goes on where it stopped.

    Args:
        dataset: with its root and parameters.
        modality: sequence.
        cache: folder of all stores.
        progress: receives progress.
        workers: cases at a time; None: as many as the machine has cores and memory for, one for a dataset whose cases
            take no time.

    Raises:
        UserError: from the dataset (nothing there, unreadable file, ...), cases that cannot be prepared (the others are
            kept for the next attempt), no room on the disk, or a damaged store.
    """
    from adbench.datasets.store.prepare import prepare_all

    return prepare_all(dataset, (modality,), cache, progress, workers=workers)[modality]
